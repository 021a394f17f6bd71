"""From a cell of a table down to the raw files that it came from.

Only what the cell depends on is followed: the metrics of its own row and column, and of each data
set the subjects that were trained on, validated on or tested on for it. docs/lineage.md says more.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from uad.audit.cells import csv_of, find_cell
from uad.audit.recompute import PUBLISHED, ROUNDED, cells_of, fold_means
from uad.audit.trace_facts import STAGES, facts_of, stage_of
from uad.audit.tree import MANIFEST, participants_key, split_key
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
        metric: ``dice`` or ``auprc``.
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
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.manifests: dict[str, dict[str, str]] = {}
        self.cell_place = {
            "experiment": cell["experiment"],
            "method": cell["row"],
            "test": cell["test"],
        }
        # by their names, so that a file whose record is lost is followed, too
        self.own = re.compile(
            Tree("").per_test("metrics", "tsv", fold=r"(\d+)", **self.cell_place)[1:]
        )

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
                    self.place(child, record, subject)
            self.transform(node, record)

    def deciding(self, node: Node, record: Record) -> Iterator[tuple[Artifact, str | None]]:
        """What of a job's inputs the cell depends on, and whose scan it is."""
        packs = record.rule in ("pack_slices", "predict_brain_masks")
        owners, wanted = (self.owners(record), self.wanted(record)) if packs else ({}, set())
        packed = set()
        for entry in record.inputs:
            made_by = self.records.producers.get(entry.key)
            names = made_by.wildcards if made_by else {}
            subject = record.wildcards.get("subject") or names.get("subject")
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
            else:
                follows = True
            if follows:
                yield entry, subject
        if record.rule == "pack_slices":
            node.facts |= {"packed": len(packed - {None}), "used": len(wanted)}
            if absent := sorted(wanted - packed):
                node.note(f"was not packed from scans of {_some(absent)}, whom the split names")

    def wanted(self, record: Record) -> set[str]:
        dataset = record.wildcards["dataset"]
        stores = [key for key in self.subjects if self.nodes[key].place.get("dataset") == dataset]
        return {name for key in stores for role in self.subjects[key].values() for name in role}

    def owners(self, record: Record) -> dict[str, str]:
        rows = self.table(participants_key(record.wildcards["dataset"]))
        roots, columns = record.content["roots"], ("image", "lesion", "mask")
        files = [(row[c], row.get("subject")) for row in rows for c in columns if row.get(c)]
        found = {key_of(path, roots): subject for path, subject in files}
        if record.rule == "predict_brain_masks":  # one image each
            keys = (entry.key for entry in record.inputs)
            found |= dict(zip(keys, record.params["subjects"], strict=True))
        return found

    def remember(self, store: Node, record: Record) -> None:
        """Whose volumes a job took from a store: those of its roles in the split of its fold."""
        roles, fold = ROLES_READ.get(record.rule), int(record.wildcards["fold"])
        wanted = self.subjects.setdefault(store.key, {})
        for row in self.split(split_key(record.wildcards)):
            mine = row["dataset"] == store.place.get("dataset")
            if mine and (roles is None or row["role"] in roles):
                folds = wanted.setdefault(row["role"], {}).setdefault(row["subject"], [])
                if fold not in folds:
                    folds.append(fold)

    def split(self, key: str) -> list[dict[str, Any]]:
        rows = self.table(key)
        return rows if all({"dataset", "subject", "role"} <= row.keys() for row in rows) else []

    def table(self, key: str) -> list[dict[str, Any]]:
        """Rows of a table on the path; none if it is not there or cannot be read."""
        if key not in self.tables:
            try:
                rows = read_tsv(self.records.path(key)).fillna("").to_dict("records")
            except _UNREADABLE:
                rows = []
            self.tables[key] = rows
        return self.tables[key]

    def place(self, node: Node, record: Record, subject: str | None) -> None:
        """Say where a raw file is from: a generator, a download, or somebody's folder."""
        dataset = record.wildcards.get("dataset")
        if node.stage != "raw" or dataset is None:
            return
        node.place |= {"dataset": dataset, **({"subject": subject} if subject else {})}
        index = self.records.producers.get(participants_key(dataset))
        params = index.params if index else {}
        node.facts["source"] = params.get("dataset", {}).get("source", "unknown")
        node.facts["folder"] = params.get("root")
        manifest = f"raw/{dataset}.manifest.tsv"
        for key in (manifest, f"raw/{dataset}.download.json"):
            if key in self.records.producers:
                self.node(key)
                node.inputs.append(key)
        listed = self.listed(manifest)
        if listed and node.key not in listed:
            node.note(f"is not listed in {manifest}")
        elif listed and listed[node.key] != node.sha256:
            short = str(listed[node.key])[:12]
            node.note(f"was read with other bytes than its manifest lists ({short})")

    def listed(self, manifest: str) -> dict[str, str]:
        if manifest not in self.manifests:
            folder, rows = manifest.removesuffix(MANIFEST), self.table(manifest)
            found = {f"{folder}/{row.get('path')}": row.get("sha256") for row in rows}
            self.manifests[manifest] = found
        return self.manifests[manifest]

    def transform(self, node: Node, record: Record | None) -> None:
        """The transform that a registered volume was resampled with: an output of its own job."""
        for output in record.outputs if record else ():
            if output.key.endswith(".mat") and output.key != node.key:
                self.node(output.key).inputs = node.inputs
                node.facts["with"] = [output.key]

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
        broken = self.records.broken.get(record.key if record else f"{key}{SUFFIX}")
        if broken:
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
        cell, place, frames, folds = self.cell, self.cell_place, [], []
        metric, scale = cell["metric"], 1 if value["percent"] else 100
        shared = {"method": cell["row"], "experiment": cell["experiment"]}
        metrics = [node for node in self.nodes.values() if node.stage == "metrics"]
        for node in sorted(metrics, key=lambda node: int(node.place["fold"])):
            fold, mean, subjects = int(node.place["fold"]), None, []
            try:
                rows = read_tsv(self.records.path(node.key))
                rows = rows.assign(**shared, test_dataset=cell["test"], fold=fold)
                means = fold_means([rows], [metric]).xs(metric, level="metric")
                mean = float(means.iloc[0]) / scale if len(means) else None
                subjects = rows.loc[rows[metric].notna(), "subject"].tolist()
                frames.append(rows)
                split = self.split(split_key({**place, "fold": str(fold)}))
                mine = [row for row in split if row["dataset"] == cell["test"]]
                tested = {row["subject"] for row in mine if row["role"] == "test"}
                if tested and (odd := sorted(set(rows["subject"]) ^ tested)):
                    node.note(f"tests other subjects than the split's test set ({_some(odd)})")
            except _UNREADABLE:
                node.note(f"is not a table with the columns subject and {metric}")
            node.facts |= {"value": mean, "subjects": subjects, "metric": metric}
            fold_of = {"fold": fold, "value": mean, "subjects": subjects, "metrics": node.key}
            folds.append(fold_of)
        table.place |= {"table": cell["table"], **place}
        table.facts |= {"mean": value["mean"], "std": _or_none(value["std"])}
        if not folds or any(fold["value"] is None for fold in folds):
            table.note("the cell cannot be computed again: metrics of a fold are missing")
            return folds
        name = cell["row"], cell["experiment"], cell["test"], metric
        found = cells_of(frames, [metric]).loc[name, ["mean", "std"]]
        mean, std = (float(number) / scale for number in found)
        table.facts |= {"recomputed_mean": mean, "recomputed_std": _or_none(std)}
        pairs = ((value["mean"], mean), (value["std"], std))
        if not all(_agree(*pair, ROUNDED if value["percent"] else None) for pair in pairs):
            said = f"{value['mean']:.4f} ± {value['std']:.4f}"
            table.note(f"the cell says {said}, its metrics give {mean:.4f} ± {std:.4f}")
        if len(folds) != value["n_folds"]:
            table.note(f"the cell counts {value['n_folds']} folds, there are {len(folds)}")
        return folds

    def tell(self, node: Node) -> None:
        """Gather what is worth telling about a node; check who a threshold or AIR is from."""
        record, there = self.records.producers.get(node.key), self.records.path(node.key).is_file()
        if node.stage in ("split", "participants") and there:
            rows = self.split(node.key) if node.stage == "split" else self.table(node.key)
            if not rows:
                node.note("cannot be read, or lacks a column or all rows")
            elif node.stage == "split":
                sizes = node.facts.setdefault("sizes", {})
                counts = Counter((row["dataset"], row["role"]) for row in rows)
                for (dataset, role), number in counts.items():
                    sizes.setdefault(dataset, {})[role] = number
        try:
            node.facts |= facts_of(node.stage, record, self.records) if record else {}
        except _UNREADABLE:
            if there:
                node.note("its content cannot be read")
        if node.stage in ("threshold", "air") and "fold" in node.place:
            used = {
                name
                for roles in self.subjects.values()
                for name, folds in roles.get("val_unhealthy", {}).items()
                if int(node.place["fold"]) in folds
            }
            if odd := sorted(set(node.facts.get("subjects", used)) - used):
                node.note(f"is from {_some(odd)}, who are not in the split's val_unhealthy set")


def _compare_with_files(records: Records, nodes: list[Node], check: bool) -> None:
    """Hash every file and compare it with its record; else only see what was not kept."""
    paths = [records.path(node.key) for node in nodes]
    digests = sha256_of_all(paths) if check else [path.is_file() or None for path in paths]
    for node, found in zip(nodes, digests, strict=True):
        if found is None and is_temporary(node.key):
            node.status = NOT_KEPT
        elif check:
            node.status = MISSING if found is None else SAME if found == node.sha256 else CHANGED
            if node.status == MISSING:
                node.problems.append("the file is missing")
            elif node.status == CHANGED:
                node.problems.append(
                    f"the file's SHA-256 is {found[:12]}, recorded is {short(node.sha256)}"
                )


def _code(records: Records, nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """States of the code that the jobs of the nodes ran from, the most frequent first."""
    jobs = {r.key: r.content for n in nodes if (r := records.producers.get(n.key))}
    counts = Counter(
        (c["code"]["commit"], c["code"]["diff_sha256"], c["environment"]["lock_sha256"])
        for c in jobs.values()
    )
    return [
        {"commit": commit, "diff_sha256": diff, "lock_sha256": lock, "jobs": number}
        for (commit, diff, lock), number in counts.most_common()
    ]


def short(digest: str | None) -> str:
    """The first 12 characters of a SHA-256."""
    return digest[:12] if digest else "no hash"


def _agree(said: float, computed: float, rounded: float | None) -> bool:
    """Whether a number of a table, to its last digit (of six if not given), is a computed one."""
    most = 1e-5 * abs(said) + 1e-9 if rounded is None else rounded
    return isnan(said) == isnan(computed) and not abs(said - computed) > most


def _or_none(number: float) -> float | None:
    return None if isnan(number) else number


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
