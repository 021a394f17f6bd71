"""From a cell of a table down to the raw files that it came from.

Only what the cell depends on is followed: the metrics of its own row and column, and of each data
set the subjects that were trained on, validated on or tested on for it. docs/lineage.md says more.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from uad.audit.cells import csv_of, find_cell
from uad.audit.leaks import wrong_subjects
from uad.audit.recompute import PUBLISHED, ROUNDED
from uad.audit.tree import owners_of_raw_files, participants_key, short, split_key
from uad.core.errors import first_of
from uad.core.files import read_json, read_tsv, sha256_of_all
from uad.core.paths import Tree
from uad.core.provenance import SUFFIX
from uad.core.records import EXTERNAL, Artifact, Record, Records, is_temporary

#: Version of the layout of the JSON.
FORMAT = 2
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
#: What is worth telling about the files of a rule: where it stands in the job's record, or in the
#: JSON that the job wrote (``written``). A fact is called as the last part of its place.
FACTS = {
    "search_threshold": "written.threshold written.method written.subjects",
    "compute_air": "written.invert written.rule written.reference_dataset written.air_before "
    "written.air_after",
    "train_model": "seed params.loop.epochs facts.weights_of_epoch facts.steps facts.resumed "
    "host.device seconds",
    "reconstruct_volumes": "facts.volumes facts.t_test host.device",
    "score_volumes": "params.score",
    "make_splits": "params.splits.kind params.splits.seed",
    "fetch_split_list": "facts.url facts.checksum facts.verified",
    "prepare_atlas": "written.name written.source",
    "download_atlas": "written.files",
    "download_dataset": "written.files",
    "make_phantom": "seed params.dataset.phantom",
    "index_dataset": "params.dataset.source params.root facts.scans params.dataset.exclude "
    "facts.left_out",
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Node:
    """A file that a cell depends on.

    Attributes:
        rule: that made it; None for raw files, and for what has no record.
        place: wildcards of its job (experiment, method, fold, dataset, subject, ...).
        sha256: as recorded; None if no record has it.
        inputs: keys of the nodes that it was made from.
        facts: of a slice store the ``subjects`` that matter by role, of others see ``FACTS``.
    """

    key: str
    rule: str | None = None
    place: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    inputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    status: str = UNCHECKED
    problems: list[str] = field(default_factory=list)

    @property
    def is_store(self) -> bool:
        """Whether it holds the packed volumes of a data set."""
        return self.key.startswith("slices/")

    def note(self, problem: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)


@dataclass(frozen=True)
class Lineage:
    """Everything that a cell depends on.

    Attributes:
        cell: which it is, and ``value``, what the table says (see ``cells.find_cell``).
        folds: of each its ``value`` and the key of the ``metrics``.
        nodes: the files, from the cell to the raw data.
        code: commits of the jobs and how many jobs ran from each.
    """

    cell: dict[str, str]
    value: dict[str, Any]
    folds: list[dict[str, Any]]
    nodes: list[Node]
    code: dict[str, int]
    checked: bool

    @property
    def problems(self) -> list[str]:
        """What does not match, each with the name of its file; empty if all is as recorded."""
        return [f"{node.key}: {text}" for node in self.nodes for text in node.problems]

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
    folds = walk.compute_again(walk.nodes[csv_of(made)], value)
    nodes = list(walk.nodes.values())
    for node in nodes:
        walk.tell(node)
    _compare_with_files(records, nodes, check)
    jobs = {r.key: r.content["code"] for n in nodes if (r := records.producers.get(n.key))}
    commits = Counter(
        (code["commit"] or "unknown") + (" with changes" if code["diff_sha256"] else "")
        for code in jobs.values()
    )
    return Lineage(cell, value, folds, nodes, dict(commits.most_common()), checked=check)


class _Walk:
    """Collects the nodes of a cell.

    Everything between the cell and the slice stores comes first: it tells which subjects matter.
    """

    def __init__(self, records: Records, cell: dict[str, str]) -> None:
        self.records, self.cell = records, cell
        self.nodes: dict[str, Node] = {}
        place = {"experiment": cell["experiment"], "method": cell["row"], "test": cell["test"]}
        # by their names, so that a file whose record is lost is followed, too
        self.own = re.compile(Tree("").per_test("metrics", "tsv", fold=r"(\d+)", **place)[1:])
        self.table = cache(self._table)

    def _table(self, key: str, *columns: str) -> pd.DataFrame:
        """A table on the way; empty if it is not there, cannot be read or lacks a column."""
        try:
            table = read_tsv(self.records.path(key))
        except _UNREADABLE:
            table = pd.DataFrame()
        return table if {*columns} <= {*table} else pd.DataFrame(columns=columns)

    def split(self, experiment: str, fold: str) -> pd.DataFrame:
        names = {"experiment": experiment, "fold": fold}
        return self.table(split_key(names), "dataset", "subject", "role")

    def follow(self, made: Record) -> None:
        waiting, stores = deque([self.node(csv_of(made))]), deque()
        while waiting or stores:
            node = (waiting or stores).popleft()
            record = self.records.producers.get(node.key)
            for entry in self.deciding_inputs(node, record) if record else ():
                new = entry.key not in self.nodes
                child = self.node(entry.key, entry)
                node.inputs.append(child.key)
                if entry.sha256 != child.sha256:
                    child.note(f"{record.rule} read other bytes ({short(entry.sha256)})")
                if child.is_store:
                    self.remember_subjects(child, record)
                if new:
                    (stores if child.is_store else waiting).append(child)
                    self.link_source(child, record)

    def deciding_inputs(self, node: Node, record: Record) -> list[Artifact]:
        """What of a job's inputs the cell depends on."""
        inputs = list({entry.key: entry for entry in record.inputs}.values())
        if record.rule in ("make_table", "make_metrics_table"):
            return [e for e in inputs if e.key == PUBLISHED or self.own.fullmatch(e.key)]
        if record.rule == "compute_air" and "reference" in record.params:
            # AIR is measured on all test sets, but the reference set alone decides
            makers = {entry.key: self.records.producers.get(entry.key) for entry in inputs}
            sets = {key: made.wildcards.get("dataset") for key, made in makers.items() if made}
            return [e for e in inputs if sets.get(e.key) in (None, record.params["reference"])]
        if record.rule not in ("pack_slices", "predict_brain_masks"):
            return inputs
        owners, wanted = self.owners(record), self.wanted(record.wildcards["dataset"])
        if record.rule == "pack_slices" and (lost := sorted(wanted - set(owners.values()))):
            node.note(f"was not packed from scans of {first_of(lost, 3)}, whom the split names")
        return [e for e in inputs if e.key not in owners or owners[e.key] in wanted]

    def wanted(self, dataset: str) -> set[str]:
        stores = [
            n for n in self.nodes.values() if n.is_store and n.place.get("dataset") == dataset
        ]
        return {name for s in stores for names in s.facts["subjects"].values() for name in names}

    def owners(self, record: Record) -> dict[str, str]:
        """Subject by key of each input that is of a scan."""
        people = self.table(participants_key(record.wildcards["dataset"]), "subject")
        raw = owners_of_raw_files(people, record.content["roots"])
        found = {}
        for entry in record.inputs:
            made_by = self.records.producers.get(entry.key)
            if made_by and "subject" in made_by.wildcards:
                found[entry.key] = made_by.wildcards["subject"]
            elif entry.key in raw:
                found[entry.key] = min(raw[entry.key])[0]
        return found

    def remember_subjects(self, store: Node, record: Record) -> None:
        """Whose volumes a job took from a store: those of its roles in the split of its fold."""
        wanted = store.facts.setdefault("subjects", {})
        for row in self.split(
            record.wildcards["experiment"], record.wildcards["fold"]
        ).itertuples():
            roles = ROLES_READ.get(record.rule, (row.role,))
            if row.dataset == store.place.get("dataset") and row.role in roles:
                names = wanted.setdefault(row.role, [])
                names += [] if row.subject in names else [row.subject]

    def link_source(self, node: Node, record: Record) -> None:
        """A raw file is from a generator, a download, or somebody's folder."""
        dataset = record.wildcards.get("dataset")
        if node.rule or dataset is None or not node.key.startswith(("raw/", EXTERNAL)):
            return
        manifest = f"raw/{dataset}.manifest.tsv"
        for key in (manifest, f"raw/{dataset}.download.json"):
            if key in self.records.producers:
                node.inputs.append(self.node(key).key)
        listed = self.table(manifest, "path", "sha256")
        mine = listed.loc[f"raw/{dataset}/" + listed["path"] == node.key, "sha256"]
        if len(listed) and list(mine) != [node.sha256]:
            node.note(f"was read with other bytes than {manifest} lists ({', '.join(mine)})")

    def node(self, key: str, entry: Artifact | None = None) -> Node:
        """The node of a file; a new one has what its record says."""
        if key in self.nodes:
            return self.nodes[key]
        record = self.records.producers.get(key)
        entry = self.records.outputs.get(key, entry)
        rule, place = (record.rule, dict(record.wildcards)) if record else (None, {})
        node = self.nodes[key] = Node(key, rule, place, entry and entry.sha256)
        if broken := self.records.broken.get(record.key if record else f"{key}{SUFFIX}"):
            node.note(f"its record {broken}")
        elif record is None and not key.startswith(("raw/", EXTERNAL, PUBLISHED)):
            node.note("no record says how it was made")
        return node

    # What the numbers say

    def compute_again(self, table: Node, value: dict[str, Any]) -> list[dict[str, Any]]:
        """The cell and its folds from the metrics; the tested subjects must be the split's."""
        metric, test, folds = self.cell["metric"], self.cell["test"], []
        found = {match[1]: key for key in self.nodes if (match := self.own.fullmatch(key))}
        for fold, key in sorted(found.items(), key=lambda item: int(item[0])):
            node, rows = self.nodes[key], self.table(key, "subject", metric)
            if not len(rows):
                node.note(f"is not a table with the columns subject and {metric}")
            mean = pd.to_numeric(rows[metric], "coerce").mean() * (100 if value["percent"] else 1)
            self.check_subjects(node, fold, test, "test", rows["subject"])
            folds.append({"fold": int(fold), "value": _or_none(mean), "metrics": key})
            node.facts[metric] = _or_none(mean)
        means = pd.Series([fold["value"] for fold in folds], dtype=float)
        if len(folds) != value["n_folds"]:
            table.note(f"the cell counts {value['n_folds']} folds, there are {len(folds)}")
        if not len(means) or means.isna().any():
            table.note("the cell cannot be computed again: metrics of a fold are missing")
            return folds
        mean, std = means.mean(), means.std()
        table.facts |= {"recomputed_mean": _or_none(mean), "recomputed_std": _or_none(std)}
        # to the last digit of the table
        close = {"rtol": 0, "atol": ROUNDED} if value["percent"] else {"rtol": 1e-5, "atol": 1e-9}
        said = [value["mean"], value["std"]]
        if not np.allclose(said, [mean, std], equal_nan=True, **close):
            texts = (" ± ".join(f"{number:.4f}" for number in pair) for pair in (said, (mean, std)))
            table.note("the cell says {}, its metrics give {}".format(*texts))
        return folds

    def check_subjects(
        self, node: Node, fold: str, dataset: str, role: str, used: Iterable[str]
    ) -> None:
        split = self.split(self.cell["experiment"], fold)
        for what in wrong_subjects(split, dataset, role, used) if len(split) else ():
            node.note(what)

    def tell(self, node: Node) -> None:
        """Gather what is worth telling about a node; check who a threshold or AIR is from."""
        if node.rule not in FACTS:
            return
        record = self.records.producers[node.key]
        try:
            content = {**record.content, "seed": record.content["seeds"].get("job")}
            written = next((e.key for e in record.outputs if e.key.endswith(".json")), None)
            if written and "written" in FACTS[node.rule]:
                content["written"] = read_json(self.records.path(written))
            for place in FACTS[node.rule].split():
                found: Any = content
                for name in place.split("."):
                    found = (found or {}).get(name)
                node.facts[place.rpartition(".")[2]] = found
            if node.rule == "compute_air":
                dataset = content["written"]["reference_dataset"]
                node.facts["subjects"] = content["written"]["sets"][dataset]["subjects"]
                used = node.facts["subjects"]
                self.check_subjects(node, node.place["fold"], dataset, "val_unhealthy", used)
            elif node.rule == "search_threshold":
                dataset, used = node.place["test"], node.facts["subjects"]
                self.check_subjects(node, node.place["fold"], dataset, "val_unhealthy", used)
            elif node.rule == "make_splits":
                sizes = read_tsv(self.records.path(node.key)).groupby(["dataset", "role"]).size()
                node.facts |= {" ".join(place): int(number) for place, number in sizes.items()}
        except _UNREADABLE:
            if self.records.path(node.key).is_file():
                node.note("its content cannot be read")


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


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
