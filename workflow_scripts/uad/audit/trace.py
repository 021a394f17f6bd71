"""From a cell of a table down to the raw files that it came from.

Only what the cell depends on is followed: the metrics of its own row and column, and of each data
set the subjects that were trained on, validated on or tested on for it. A file is a node; what it
was made from are its inputs. Every node is hashed again and compared with what the records say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

import pandas as pd

from uad.audit.cells import Cell, Value, csv_of, find_cell
from uad.audit.lineage import CHANGED, MISSING, NOT_KEPT, SAME, Fold, Lineage, Node
from uad.audit.recompute import PUBLISHED, ROUNDED, cells_of
from uad.audit.trace_facts import STAGES, deciding_inputs, facts_of, stage_of
from uad.core.files import read_tsv, sha256_of_all
from uad.core.paths import Tree
from uad.core.provenance import SUFFIX
from uad.core.records import Artifact, Record, Records, is_temporary

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
    walk.follow(made, value)
    nodes = sorted(walk.nodes.values(), key=lambda node: STAGES.index(node.stage))
    _compare_with_files(records, nodes, check)
    return Lineage(
        cell, value, walk.folds, nodes, walk.subjects, _code(records, nodes), checked=check
    )


class _Walk:
    """Collects the nodes of a cell.

    First everything between the cell and the slice stores, fold by fold, which tells who matters
    in which store; then the scans of these subjects.
    """

    def __init__(self, records: Records, cell: Cell) -> None:
        self.records, self.cell = records, cell
        self.nodes: dict[str, Node] = {}
        self.folds: list[Fold] = []
        self.metrics: list[pd.DataFrame] = []
        self.subjects: dict[str, dict[str, dict[str, list[int]]]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def follow(self, made: Record, value: Value) -> None:
        """Follow the cell of a table that a job made."""
        cell = self.cell
        place = {"experiment": cell.experiment, "method": cell.row, "test": cell.test}
        table = self.node(csv_of(made))
        table.place = {"table": self.cell.table, **place}
        # by their names, so that a file whose record is lost is followed, too
        ours = re.compile(Tree("").per_test("metrics", "tsv", fold=r"(\d+)", **place)[1:])
        of_fold = {}
        for entry in made.inputs:
            if entry.key == PUBLISHED:
                self.link(table, made, entry)
            elif match := ours.fullmatch(entry.key):
                of_fold[int(match[1])] = entry
        for fold, entry in sorted(of_fold.items()):
            self.fold(fold, self.link(table, made, entry))
        self.compare(table, value)
        for store in list(self.subjects):
            self.scans(store)
        for node in list(self.nodes.values()):
            self.tell(node)

    # From a fold's metrics to the slice stores

    def fold(self, fold: int, metrics: Node) -> None:
        """Follow a fold; remember whose volumes its jobs took from the stores."""
        metrics.place.setdefault("fold", str(fold))
        waiting, seen, reads = [metrics], {metrics.key}, []
        while waiting:
            node = waiting.pop(0)
            record = self.records.producers.get(node.key)
            for entry in deciding_inputs(record, self.records) if record else ():
                child = self.link(node, record, entry)
                if child.stage == "store":
                    reads.append((child, ROLES_READ.get(record.rule)))
                elif child.key not in seen:
                    seen.add(child.key)
                    waiting.append(child)
        splits = [self.nodes[key] for key in seen if self.nodes[key].stage == "split"]
        rows = [row for split in splits for row in self.rows_of(split)]
        for store, roles in reads:
            wanted = self.subjects.setdefault(store.key, {})
            for row in rows:
                if row["dataset"] == store.place.get("dataset") and (
                    roles is None or row["role"] in roles
                ):
                    folds = wanted.setdefault(row["role"], {}).setdefault(row["subject"], [])
                    if fold not in folds:
                        folds.append(fold)
        place = self.cell.test, "test"
        self.evaluate(
            fold, metrics, {r["subject"] for r in rows if (r["dataset"], r["role"]) == place}
        )

    def rows_of(self, split: Node) -> list[dict[str, Any]]:
        """The rows of a split; one that cannot be read is noted."""
        rows = self.table(split.key)
        if not all(row.get(name) for row in rows for name in ("dataset", "subject", "role")):
            split.note("cannot be read (it lacks the columns dataset, subject and role)")
            return []
        sizes = split.facts["sizes"] = {}
        for (dataset, role), number in Counter((r["dataset"], r["role"]) for r in rows).items():
            sizes.setdefault(dataset, {})[role] = number
        return rows

    def evaluate(self, fold: int, metrics: Node, tested: set[str]) -> None:
        """The fold's value, from its metrics; the subjects must be those of the split."""
        value, subjects, metric = None, [], self.cell.metric
        try:
            rows = read_tsv(self.records.path(metrics.key)).astype({metric: float})
            subjects = rows.loc[rows[metric].notna(), "subject"].tolist()
            value = float(100 * rows[metric].mean()) if subjects else None
            place = {"method": self.cell.row, "experiment": self.cell.experiment}
            place |= {"test_dataset": self.cell.test, "fold": fold}
            self.metrics.append(rows.assign(**place))
            if tested and (odd := sorted(set(rows["subject"]) ^ tested)):
                metrics.note(f"tests other subjects than the split's test set ({_some(odd)})")
        except _UNREADABLE:
            metrics.note(f"is not a table with the columns subject and {metric}")
        metrics.facts |= {"value": value, "subjects": subjects, "metric": metric}
        self.folds.append(Fold(fold, value, subjects, metrics.key))

    def compare(self, table: Node, value: Value) -> None:
        """The cell against its metrics."""
        table.facts |= {"mean": value.mean, "std": None if isnan(value.std) else value.std}
        values = [fold.value for fold in self.folds if fold.value is not None]
        if not values or len(values) < len(self.folds):
            table.note("the cell cannot be computed again: metrics of a fold are missing")
            return
        name = self.cell.row, self.cell.experiment, self.cell.test, self.cell.metric
        found = cells_of(self.metrics).loc[name]
        mean, std = float(found["mean"]), float(found["std"])
        table.facts |= {"recomputed_mean": mean, "recomputed_std": None if isnan(std) else std}
        wrong = abs(mean - value.mean) > ROUNDED or isnan(std) != isnan(value.std)
        if wrong or (not isnan(std) and abs(std - value.std) > ROUNDED):
            table.note(
                f"the cell says {value.mean:.4f} ± {value.std:.4f}, its metrics give "
                f"{mean:.4f} ± {std:.4f}"
            )
        if len(values) != value.n_folds:
            table.note(f"the cell counts {value.n_folds} folds, there are {len(values)}")

    # From the slice stores to the raw files

    def scans(self, key: str) -> None:
        """Follow the scans of a store that matter."""
        store, record = self.nodes[key], self.records.producers.get(key)
        if record is None:
            return
        wanted = {name for role in self.subjects[key].values() for name in role}
        dataset = store.place["dataset"]
        rows = self.table(f"participants/{dataset}.tsv")
        columns = ("image", "lesion", "mask")
        of_raw = {row[c]: row.get("subject") for row in rows for c in columns if row.get(c)}
        waiting: list[tuple[Node, Record, Artifact, str | None]] = []
        packed = set()
        for entry, file in zip(record.inputs, record.content["inputs"], strict=True):
            made_by = self.records.producers.get(entry.key)
            subject = made_by.wildcards.get("subject") if made_by else of_raw.get(file["path"])
            packed.add(subject)
            if subject is None or subject in wanted:
                waiting.append((store, record, entry, subject))
        store.facts |= {"packed": len(packed - {None}), "used": len(wanted)}
        if absent := sorted(wanted - packed):
            store.note(f"was not packed from scans of {_some(absent)}, whom the split names")
        while waiting:
            above, reader, entry, subject = waiting.pop(0)
            known = entry.key in self.nodes
            node = self.link(above, reader, entry)
            made_by = self.records.producers.get(entry.key)
            if made_by is None:
                self.source(node, dataset, subject)
            elif not known or made_by.rule == "predict_brain_masks":
                waiting += [(node, made_by, e, subject) for e in _of_scans(made_by, wanted)]
                self.transform(node, made_by)

    def table(self, key: str) -> list[dict[str, Any]]:
        """A table on the path; one that cannot be read is noted, one that is not there is empty."""
        path = self.records.path(key)
        if key not in self.tables:
            self.tables[key] = []
            try:
                if path.is_file():
                    self.tables[key] = read_tsv(path).fillna("").to_dict("records")
            except _UNREADABLE as error:
                self.node(key).note(f"cannot be read ({error})")
        return self.tables[key]

    def transform(self, node: Node, record: Record) -> None:
        """The transform that a registered volume was resampled with: an output of its own job."""
        for output in record.outputs:
            if output.key.endswith(".mat") and output.key != node.key:
                self.node(output.key).inputs = node.inputs  # the same list: it is filled later
                node.facts.setdefault("with", [])
                _append(node.facts["with"], output.key)

    def source(self, node: Node, dataset: str, subject: str | None) -> None:
        """Say where a raw file is from: a generator, a download, or somebody's folder."""
        if node.stage != "raw":
            return
        node.place |= {"dataset": dataset, **({"subject": subject} if subject else {})}
        index = self.records.producers.get(f"participants/{dataset}.tsv")
        params = index.params if index else {}
        node.facts["source"] = params.get("dataset", {}).get("source", "unknown")
        node.facts["folder"] = params.get("root")
        manifest = f"raw/{dataset}.manifest.tsv"
        for key in (manifest, f"raw/{dataset}.download.json"):
            if key in self.records.producers:
                self.node(key)
                _append(node.inputs, key)
        rows = self.table(manifest)
        listed = {f"raw/{dataset}/{row.get('path')}": str(row.get("sha256")) for row in rows}
        if listed and node.key not in listed:
            node.note(f"is not listed in {manifest}")
        elif listed and listed[node.key] != node.sha256:
            node.note(
                f"was read with other bytes than its manifest lists ({listed[node.key][:12]})"
            )

    # Nodes

    def node(self, key: str, entry: Artifact | None = None) -> Node:
        """The node of a file; a new one has what its record says."""
        if key in self.nodes:
            return self.nodes[key]
        record = self.records.producers.get(key)
        entry = self.records.outputs.get(key, entry)
        stage, place = stage_of(key, record)
        node = self.nodes[key] = Node(key, stage, record.rule if record else None, place)
        if entry:
            node.sha256, node.bytes = entry.sha256, entry.bytes
        if record is None and stage not in ("raw", "published"):
            why = self.records.broken.get(f"{key}{SUFFIX}")
            node.note(f"its record {why}" if why else "no record says how it was made")
        elif record and record.key in self.records.broken:
            node.note(f"its record {self.records.broken[record.key]}")
        return node

    def link(self, node: Node, record: Record, entry: Artifact) -> Node:
        """The node of an input; the record that read it must have seen the same bytes."""
        child = self.node(entry.key, entry)
        if child.rule is None and child.stage == "raw" and record.rule == "make_splits":
            child.stage = "list"  # of a folder that the config names
        _append(node.inputs, entry.key)
        if entry.sha256 != child.sha256:
            seen = entry.sha256[:12] if entry.sha256 else "no file"
            child.note(f"{record.rule} read other bytes ({seen}) for {node.key}")
        return child

    def tell(self, node: Node) -> None:
        """Gather what is worth telling about a node; check who a threshold or AIR is from."""
        record = self.records.producers.get(node.key)
        if record is None:
            return
        try:
            node.facts |= facts_of(node.stage, record, self.records)
        except _UNREADABLE:
            if self.records.path(node.key).is_file():
                node.note("its content cannot be read")
        if node.stage in ("threshold", "air"):
            fold = int(node.place["fold"])
            used = {
                name
                for roles in self.subjects.values()
                for name, folds in roles.get("val_unhealthy", {}).items()
                if fold in folds
            }
            if odd := sorted(set(node.facts.get("subjects", used)) - used):
                node.note(f"is from {_some(odd)}, who are not in the split's val_unhealthy set")


def _of_scans(record: Record, wanted: set[str]) -> Iterable[Artifact]:
    """Inputs of a scan's job; of a batch of scans only those that matter."""
    subjects = record.params.get("subjects")
    if record.rule != "predict_brain_masks" or not subjects:
        return record.inputs
    pairs = zip(record.inputs, subjects, strict=True)
    return [entry for entry, subject in pairs if subject in wanted]


def _compare_with_files(records: Records, nodes: list[Node], check: bool) -> None:
    """Hash every file and compare it with its record; else only see what was not kept."""
    if not check:
        for node in nodes:
            if is_temporary(node.key) and not records.path(node.key).is_file():
                node.status = NOT_KEPT
        return
    digests = sha256_of_all([records.path(node.key) for node in nodes])
    for node, found in zip(nodes, digests, strict=True):
        if found is None:
            node.status = NOT_KEPT if is_temporary(node.key) else MISSING
            if node.status == MISSING:
                node.note("the file is missing")
        elif found != node.sha256:
            node.status = CHANGED
            node.note(f"the file's SHA-256 is {found[:12]}, recorded is {node.short}")
        else:
            node.status = SAME


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


def _append(keys: list[str], key: str) -> None:
    if key not in keys:
        keys.append(key)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
