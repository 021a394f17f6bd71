"""From a cell of a table down to the raw files that it came from.

Only what the cell depends on is followed: the metrics of its own row and column, and of each data
set the subjects that were trained on, validated on or tested on for it. docs/lineage.md says more.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from math import isclose, isnan
from typing import Any

import pandas as pd

from uad.audit.cells import csv_of, find_cell
from uad.audit.leaks import wrong_subjects
from uad.audit.recompute import PUBLISHED, ROUNDED, cells_of, fold_means
from uad.audit.trace_facts import STAGES, facts_of, stage_of
from uad.audit.tree import participants_key, split_key
from uad.core.files import read_tsv, sha256_of_all
from uad.core.paths import Tree
from uad.core.provenance import SUFFIX
from uad.core.records import Artifact, Record, Records, is_temporary, key_of

#: Version of the layout of the JSON.
FORMAT = 1
SAME, NOT_KEPT, CHANGED = "as recorded", "not kept", "changed"
MISSING, UNCHECKED = "missing", "not checked"
#: Roles of the subjects whose volumes a rule takes from a slice store.
ROLES_READ = {
    "train_model": ("train", "val_healthy"),
    "compute_air": ("val_unhealthy",),
    "reconstruct_volumes": ("val_unhealthy", "test"),
    "score_volumes": ("val_unhealthy", "test"),
    "search_threshold": ("val_unhealthy",),
    "evaluate_volumes": ("test",),
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Node:
    """A file that a cell depends on.

    Attributes:
        stage: one of ``uad.audit.trace_facts.STAGES``.
        rule: that made it; None for raw files, and for what has no record.
        place: wildcards of its job (experiment, method, fold, dataset, subject, ...).
        sha256: as recorded; None if no record has it.
        inputs: keys of the nodes that it was made from.
    """

    key: str
    stage: str
    rule: str | None = None
    place: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    bytes: int | None = None
    inputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    status: str = UNCHECKED
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)


@dataclass(frozen=True)
class Lineage:
    """Everything that a cell depends on.

    Attributes:
        cell: which it is, and ``value``, what the table says (see ``cells.find_cell``).
        folds: of each its ``value``, the test ``subjects`` and the key of the ``metrics``.
        nodes: the files, in order from the cell to the raw data.
        subjects: which subjects matter, by key of the slice store, role and subject: the folds.
        code: commits of the jobs and how many jobs ran from each.
    """

    cell: dict[str, str]
    value: dict[str, Any]
    folds: list[dict[str, Any]]
    nodes: list[Node]
    subjects: dict[str, dict[str, dict[str, list[int]]]]
    code: list[dict[str, Any]]
    checked: bool

    @property
    def problems(self) -> list[str]:
        """What does not match, each with the name of its file; empty if all is as recorded."""
        return [f"{node.key}: {text}" for node in self.nodes for text in node.problems]

    def of(self, stage: str) -> list[Node]:
        """The nodes of one of ``uad.audit.trace_facts.STAGES``."""
        return [node for node in self.nodes if node.stage == stage]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data, without NaN."""
        value = {k: None if v != v else v for k, v in self.value.items()}
        return {"format": FORMAT, **asdict(self), "value": value, "problems": self.problems}


def trace(
    records: Records,
    *,
    table: str,
    row: str,
    column: str | None = None,
    metric: str = "dice",
    check: bool = True,
) -> Lineage:
    """Follow a cell down to the raw files.

    Args:
        records: of the results folder, from :func:`uad.core.records.load_records`.
        table: name of the table.
        row: key of the method, or its label in the table.
        column: ``experiment/test``, the column's label, or the experiment's or the test data
            set's name alone where that is unique; may be left out for a table with one column.
        metric: ``dice`` or ``auprc``; any of a table of all metrics.
        check: hash every file and compare; without it only the records are compared.

    Raises:
        DataError: see :func:`uad.audit.cells.find_cell`.
    """
    made, cell, value = find_cell(records, table=table, row=row, column=column, metric=metric)
    walk = _Walk(records, cell)
    walk.follow(made)
    folds = walk.recompute(walk.nodes[csv_of(made)], value)
    nodes = sorted(walk.nodes.values(), key=lambda node: STAGES.index(node.stage))
    for node in nodes:
        walk.tell(node)
    _compare_with_files(records, nodes, check)
    return Lineage(cell, value, folds, nodes, walk.subjects, _code(records, nodes), checked=check)


class _Walk:
    """Collects the nodes of a cell.

    Everything between the cell and the slice stores comes first: it tells which subjects matter.
    """

    def __init__(self, records: Records, cell: dict[str, str]) -> None:
        self.records, self.cell = records, cell
        self.nodes: dict[str, Node] = {}
        self.subjects: dict[str, dict[str, dict[str, list[int]]]] = {}
        self.place = {"experiment": cell["experiment"], "method": cell["row"], "test": cell["test"]}
        # by their names, so that a file whose record is lost is followed, too
        self.own = re.compile(Tree("").per_test("metrics", "tsv", fold=r"(\d+)", **self.place)[1:])
        self.table = cache(self._table)

    def _table(self, key: str, *columns: str) -> pd.DataFrame:
        """A table on the way; empty if it is not there, cannot be read or lacks a column."""
        try:
            table = read_tsv(self.records.path(key))
        except _UNREADABLE:
            table = pd.DataFrame()
        return table if {*columns} <= {*table} else pd.DataFrame(columns=columns)

    def split(self, names: dict[str, str]) -> pd.DataFrame:
        return self.table(split_key(names), "dataset", "subject", "role")

    def follow(self, made: Record) -> None:
        waiting, stores = deque([self.node(csv_of(made))]), deque()
        while waiting or stores:
            node = (waiting or stores).popleft()
            record = self.records.producers.get(node.key)
            for entry, subject in self.deciding(node, record) if record else ():
                new = entry.key not in self.nodes
                child = self.link(node, record, entry)
                if child.stage == "store":
                    self.remember(child, record)
                if new:
                    (stores if child.stage == "store" else waiting).append(child)
                    self.locate(child, record, subject)

    def deciding(self, node: Node, record: Record) -> Iterator[tuple[Artifact, str | None]]:
        """What of a job's inputs the cell depends on, and whose scan it is."""
        packs = record.rule in ("pack_slices", "predict_brain_masks")
        owners, wanted = (self.owners(record), self.wanted(record)) if packs else ({}, set())
        packed = set()
        for entry in record.inputs:
            made_by = self.records.producers.get(entry.key)
            names = made_by.wildcards if made_by else {}
            subject = record.wildcards.get("subject") or names.get("subject")
            follows = True
            if record.rule in ("make_table", "make_metrics_table"):
                follows = entry.key == PUBLISHED or self.own.fullmatch(entry.key)
            elif record.rule == "compute_air":
                # AIR is measured on all test sets, but the reference set alone decides
                reference = record.params.get("reference", names.get("dataset"))
                follows = names.get("dataset", reference) == reference
            elif packs:
                subject = subject or owners.get(entry.key)
                packed.add(subject)
                follows = subject is None or subject in wanted
            if follows:
                yield entry, subject
        if record.rule == "register_scan":  # a volume was resampled with the transform
            for entry in record.outputs:
                if entry.key.endswith(".mat") and entry.key != node.key:
                    yield entry, record.wildcards["subject"]
        if record.rule == "pack_slices":
            node.facts |= {"packed": len(packed - {None}), "used": len(wanted)}
            if absent := sorted(wanted - packed):
                node.note(f"was not packed from scans of {_some(absent)}, whom the split names")

    def wanted(self, record: Record) -> set[str]:
        dataset = record.wildcards["dataset"]
        stores = [key for key in self.subjects if self.nodes[key].place.get("dataset") == dataset]
        return {name for key in stores for role in self.subjects[key].values() for name in role}

    def owners(self, record: Record) -> dict[str, str]:
        """Subject by key of a raw file."""
        if record.rule == "predict_brain_masks":  # one image each
            keys = (entry.key for entry in record.inputs)
            return dict(zip(keys, record.params["subjects"], strict=True))
        people = self.table(participants_key(record.wildcards["dataset"]), "subject")
        columns = people.columns.intersection(["image", "lesion", "mask"])
        files = people.melt("subject", columns, value_name="path").dropna(subset="path")
        roots = record.content["roots"]
        return {key_of(file.path, roots): file.subject for file in files.itertuples() if file.path}

    def remember(self, store: Node, record: Record) -> None:
        """Whose volumes a job took from a store: those of its roles in the split of its fold."""
        roles, fold = ROLES_READ.get(record.rule), int(record.wildcards["fold"])
        wanted = self.subjects.setdefault(store.key, {})
        for row in self.split(record.wildcards).itertuples():
            if row.dataset == store.place.get("dataset") and (roles is None or row.role in roles):
                folds = wanted.setdefault(row.role, {}).setdefault(row.subject, [])
                if fold not in folds:
                    folds.append(fold)

    def locate(self, node: Node, record: Record, subject: str | None) -> None:
        """Say where a raw file is from: a generator, a download, or somebody's folder."""
        dataset = record.wildcards.get("dataset")
        if node.stage != "raw" or dataset is None:
            return
        node.place |= {"dataset": dataset, **({"subject": subject} if subject else {})}
        manifest = f"raw/{dataset}.manifest.tsv"
        for key in (manifest, f"raw/{dataset}.download.json"):
            if key in self.records.producers:
                self.node(key)
                node.inputs.append(key)
        listed = self.table(manifest, "path", "sha256")
        if len(listed):
            mine = listed.loc[f"raw/{dataset}/" + listed["path"] == node.key, "sha256"]
            if list(mine) != [node.sha256]:
                node.note(f"was read with other bytes than {manifest} lists ({', '.join(mine)})")

    def node(self, key: str, entry: Artifact | None = None) -> Node:
        """The node of a file; a new one has what its record says."""
        if key in self.nodes:
            return self.nodes[key]
        record = self.records.producers.get(key)
        entry = self.records.outputs.get(key, entry)
        stage, place = stage_of(key, record)
        node = self.nodes[key] = Node(key, stage, record.rule if record else None, place)
        if match := self.own.fullmatch(key):
            node.place.setdefault("fold", match[1])
        if entry:
            node.sha256, node.bytes = entry.sha256, entry.bytes
        if broken := self.records.broken.get(record.key if record else f"{key}{SUFFIX}"):
            node.note(f"its record {broken}")
        elif record is None and stage not in ("raw", "published"):
            node.note("no record says how it was made")
        return node

    def link(self, node: Node, record: Record, entry: Artifact) -> Node:
        """The node of an input; the record that read it must have seen the same bytes."""
        child = self.node(entry.key, entry)
        if child.rule is None and child.stage == "raw" and record.rule == "make_splits":
            child.stage = "list"  # of a folder that the config names
        if entry.key not in node.inputs:
            node.inputs.append(entry.key)
        if entry.sha256 != child.sha256:
            seen = entry.sha256[:12] if entry.sha256 else "no file"
            child.note(f"{record.rule} read other bytes ({seen}) for {node.key}")
        return child

    # What the numbers say

    def recompute(self, table: Node, value: dict[str, Any]) -> list[dict[str, Any]]:
        """The cell and its folds from the metrics; the tested subjects must be the split's."""
        cell, metric, folds, frames = self.cell, self.cell["metric"], [], []
        scale, test = 1 if value["percent"] else 100, cell["test"]
        own = {"method": cell["row"], "experiment": cell["experiment"], "test_dataset": test}
        metrics = [node for node in self.nodes.values() if node.stage == "metrics"]
        for node in sorted(metrics, key=lambda node: int(node.place["fold"])):
            fold, rows = int(node.place["fold"]), self.table(node.key, "subject", metric)
            rows = rows.assign(**own, fold=fold, **{metric: pd.to_numeric(rows[metric], "coerce")})
            frames.append(rows)
            mean = (
                None if rows[metric].isna().all() else float(fold_means([rows], [metric]).iloc[0])
            )
            subjects = rows.loc[rows[metric].notna(), "subject"].tolist()
            split = self.split({**self.place, "fold": str(fold)})
            if not len(rows):
                node.note(f"is not a table with the columns subject and {metric}")
            for what in wrong_subjects(split, test, "test", rows["subject"]) if len(split) else ():
                node.note(what)
            found = {"value": mean if mean is None else mean / scale, "subjects": subjects}
            node.facts |= {**found, "metric": metric}
            folds.append({"fold": fold, **found, "metrics": node.key})
        table.place |= {"table": cell["table"], **self.place}
        table.facts |= {"mean": value["mean"], "std": _or_none(value["std"])}
        if not folds or any(fold["value"] is None for fold in folds):
            table.note("the cell cannot be computed again: metrics of a fold are missing")
            return folds
        mean, std = (cells_of(frames, [metric])[["mean", "std"]].iloc[0] / scale).tolist()
        table.facts |= {"recomputed_mean": mean, "recomputed_std": _or_none(std)}
        # to the last digit of the table
        close = {"abs_tol": ROUNDED} if value["percent"] else {"rel_tol": 1e-5, "abs_tol": 1e-9}
        for said, computed in ((value["mean"], mean), (value["std"], std)):
            same = isclose(said, computed, **close) or (isnan(said) and isnan(computed))
            if not same:
                said = f"{value['mean']:.4f} ± {value['std']:.4f}"
                table.note(f"the cell says {said}, its metrics give {mean:.4f} ± {std:.4f}")
        if len(folds) != value["n_folds"]:
            table.note(f"the cell counts {value['n_folds']} folds, there are {len(folds)}")
        return folds

    def tell(self, node: Node) -> None:
        """Gather what is worth telling about a node; check who a threshold or AIR is from."""
        record = self.records.producers.get(node.key)
        try:
            node.facts |= facts_of(node.stage, record, self.records) if record else {}
        except _UNREADABLE:
            if self.records.path(node.key).is_file():
                node.note("its content cannot be read")
        if node.stage in ("threshold", "air") and "subjects" in node.facts:
            split, used = self.split(node.place), node.facts["subjects"]
            dataset = node.facts.get("reference_dataset") or node.place["test"]
            for what in wrong_subjects(split, dataset, "val_unhealthy", used) if len(split) else ():
                node.note(what)


def _compare_with_files(records: Records, nodes: list[Node], check: bool) -> None:
    """Hash every file and compare it with its record; else only see what was not kept."""
    paths = [records.path(node.key) for node in nodes]
    digests = sha256_of_all(paths) if check else [path.is_file() or None for path in paths]
    for node, found in zip(nodes, digests, strict=True):
        if found is None and is_temporary(node.key):
            node.status = NOT_KEPT
        elif check and found is None:
            node.status = MISSING
            node.note("the file is missing")
        elif check and found != node.sha256:
            node.status = CHANGED
            node.note(f"the file's SHA-256 is {found[:12]}, recorded is {short(node.sha256)}")
        elif check:
            node.status = SAME


def _code(records: Records, nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """States of the code that the jobs of the nodes ran from, the most frequent first."""
    jobs = {r.key: r.content for n in nodes if (r := records.producers.get(n.key))}
    counts = Counter(
        (c["code"]["commit"], c["code"]["diff_sha256"], c["environment"]["lock_sha256"])
        for c in jobs.values()
    )
    names = ("commit", "diff_sha256", "lock_sha256", "jobs")
    return [
        dict(zip(names, (*state, number), strict=True)) for state, number in counts.most_common()
    ]


def short(digest: str | None) -> str:
    """The first 12 characters of a SHA-256."""
    return digest[:12] if digest else "no hash"


def _or_none(number: float) -> float | None:
    return None if isnan(number) else number


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
