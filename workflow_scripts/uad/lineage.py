"""Lineage of a table's cell: from the number down to the raw files that it came from.

Only what the cell depends on is followed: the metrics of its own row and column, and of each data
set the subjects that were trained on, validated on or tested on for it. A file is a node; what it
was made from are its inputs. Every node is hashed again and compared with what the records say.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from math import isnan
from statistics import fmean, stdev
from typing import Any

from uad.core.errors import DataError, unknown
from uad.core.files import read_json, sha256
from uad.core.paths import Tree
from uad.core.provenance import SUFFIX
from uad.core.walk import working_directory
from uad.records import EXTERNAL, REPOSITORY, Artifact, Record, Records, is_temporary

#: Version of the layout of the JSON.
FORMAT = 1
METRICS = ("dice", "auprc")
PUBLISHED = f"{REPOSITORY}resources/published/tables.csv"
#: Kinds of nodes, from the cell to the source of the raw data.
STAGES = (
    "cell",
    "published",
    "metrics",
    "threshold",
    "maps",
    "reconstructions",
    "weights",
    "air",
    "split",
    "list",
    "store",
    "registered",
    "transform",
    "brain mask",
    "participants",
    "atlas",
    "raw",
    "source",
    "other",
)
#: What the outputs of a rule are; a rule that is not here makes nodes of the kind ``other``.
_STAGE_OF_RULE = {
    "make_table": "cell",
    "evaluate_volumes": "metrics",
    "search_threshold": "threshold",
    "score_volumes": "maps",
    "reconstruct_volumes": "reconstructions",
    "train_model": "weights",
    "compute_air": "air",
    "make_splits": "split",
    "fetch_split_list": "list",
    "pack_slices": "store",
    "register_scan": "registered",
    "skullstrip_scan": "brain mask",
    "predict_brain_masks": "brain mask",
    "index_dataset": "participants",
    "prepare_atlas": "atlas",
    "download_atlas": "source",
    "make_phantom": "source",
    "download_dataset": "source",
}
#: What a file is, by its folder, where its record is lost.
_STAGE_OF_FOLDER = {
    "metrics": "metrics",
    "thresholds": "threshold",
    "maps": "maps",
    "reconstructions": "reconstructions",
    "models": "weights",
    "air": "air",
    "splits": "split",
    "slices": "store",
    "participants": "participants",
    "atlas": "atlas",
}
#: Ends of the names of files that say where raw data are from.
_SOURCES = (".manifest.tsv", ".download.json")
#: Roles of the subjects whose volumes a rule takes from a slice store.
_ROLES_READ = {
    "train_model": ("train", "val_healthy"),
    "compute_air": ("val_unhealthy",),
    "reconstruct_volumes": ("val_unhealthy", "test"),
    "score_volumes": ("val_unhealthy", "test"),
    "search_threshold": ("val_unhealthy",),
    "evaluate_volumes": ("test",),
}

SAME, NOT_KEPT, CHANGED, MISSING, UNCHECKED = (
    "as recorded",
    "not kept",
    "changed",
    "missing",
    "not checked",
)
#: The table prints four decimals.
_ROUNDING = 0.5e-4 + 1e-9


@dataclass(frozen=True)
class Value:
    """A cell of a table, in percent as the table has it.

    Attributes:
        mean: over folds.
        std: sample standard deviation over folds; NaN for one fold.
        n_folds: number of folds.
        n_volumes: number of different test volumes with a value.
        published_mean: of the paper; NaN where it gives none.
        published_std: likewise.
        published_source: where the paper gives it, or ``none``.
        phantom: whether the volumes are phantoms.
    """

    mean: float
    std: float
    n_folds: int
    n_volumes: int
    published_mean: float
    published_std: float
    published_source: str
    phantom: bool

    def __str__(self) -> str:
        """``44.08 ± 2.95 %``, with ``(phantom)`` where it is one."""
        return f"{_plus_minus(self.mean, self.std)} %{' (phantom)' if self.phantom else ''}"

    @property
    def published(self) -> str:
        """The published value with its source; ``not published`` where there is none."""
        if isnan(self.published_mean):
            return "not published"
        return f"{_plus_minus(self.published_mean, self.published_std)} ({self.published_source})"


@dataclass(frozen=True)
class Fold:
    """One fold's value.

    Attributes:
        fold: its number.
        value: mean over its test volumes in percent, computed here; None if it cannot be.
        subjects: the test volumes with a value.
        metrics: key of the file that it was computed from.
    """

    fold: int
    value: float | None
    subjects: list[str]
    metrics: str


@dataclass
class Node:
    """A file that a cell depends on.

    Attributes:
        key: its name, as in :mod:`uad.records`.
        stage: one of :data:`STAGES`.
        rule: that made it; None for raw files, and for what has no record.
        place: wildcards of its job (experiment, method, fold, dataset, subject, ...).
        sha256: of its content, as recorded; None if no record has it.
        bytes: size, likewise.
        inputs: keys of the nodes that it was made from.
        facts: what is worth telling, by stage.
        status: ``as recorded``, ``not kept`` (deleted after use, as the config has it),
            ``changed``, ``missing`` or ``not checked``.
        problems: what does not match, in words.
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

    @property
    def short(self) -> str:
        """The first 12 characters of the SHA-256."""
        return self.sha256[:12] if self.sha256 else "no hash"


@dataclass(frozen=True)
class Lineage:
    """Everything that a cell depends on.

    Attributes:
        table: name of the table.
        row: key of the method.
        label: how the table calls it.
        experiment: of the column.
        test: test data set of the column.
        column: label of the column.
        metric: dice or auprc.
        value: the cell.
        folds: the values that it is the mean of.
        nodes: the files, in order from the cell to the raw data.
        subjects: which subjects matter, by key of the slice store, role and subject: the folds.
        code: commits of the jobs and how many jobs ran from each.
        checked: whether the files were hashed.
    """

    table: str
    row: str
    label: str
    experiment: str
    test: str
    column: str
    metric: str
    value: Value
    folds: list[Fold]
    nodes: list[Node]
    subjects: dict[str, dict[str, dict[str, list[int]]]]
    code: list[dict[str, Any]]
    checked: bool

    @property
    def name(self) -> str:
        """Name of its files: table, row, experiment, test data set and metric."""
        return "_".join((self.table, self.row, self.experiment, self.test, self.metric))

    @property
    def problems(self) -> list[str]:
        """What does not match, each with the name of its file; empty if all is as recorded."""
        return [f"{node.key}: {text}" for node in self.nodes for text in node.problems]

    def node(self, key: str) -> Node:
        """The node of a file.

        Raises:
            KeyError: the cell does not depend on it.
        """
        for node in self.nodes:
            if node.key == key:
                return node
        raise KeyError(key)

    def of(self, stage: str) -> list[Node]:
        """The nodes of one of :data:`STAGES`."""
        return [node for node in self.nodes if node.stage == stage]

    def text(self, full: bool = False) -> str:
        """The tree, for a terminal of 100 columns.

        Args:
            full: all siblings; else the first two where there are more than four.
        """
        from uad.report.lineage_text import render

        return render(self, full)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data, without NaN."""
        value = {k: None if v != v else v for k, v in asdict(self.value).items()}
        cell = ("table", "row", "label", "experiment", "test", "column", "metric")
        return {
            "format": FORMAT,
            "cell": {key: getattr(self, key) for key in cell},
            "value": value,
            "folds": [asdict(fold) for fold in self.folds],
            "checked": self.checked,
            "problems": self.problems,
            "code": self.code,
            "subjects": self.subjects,
            "nodes": [asdict(node) for node in self.nodes],
        }


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
        records: of the results folder, from :func:`uad.records.load_records`.
        table: name of the table.
        row: key of the method, or its label in the table.
        column: ``experiment/test``, the column's label, or the experiment's or the test data
            set's name alone where that is unique; may be left out for a table with one column.
        metric: ``dice`` or ``auprc``.
        check: hash every file and compare; without it only the records are compared.

    Raises:
        DataError: there is no such table, row, column or metric (the message lists what there
            is), or the cell was not computed here.
    """
    made = _table_record(records, table)
    spec, labels = made.params["table"], made.params.get("labels", {})
    row = _row(records, made, row)
    place = _column(table, spec["columns"], column)
    if metric not in METRICS:
        raise DataError(f"{table}: {unknown('metric', metric, METRICS)}")
    experiment, test = place["experiment"], place["test"]
    value = _value(records, made, row, experiment, test, metric)
    walk = _Walk(records, made, row, experiment, test, metric)
    walk.cell(value)
    walk.look(check)
    nodes = sorted(walk.nodes.values(), key=lambda node: STAGES.index(node.stage))
    return Lineage(
        table=table,
        row=row,
        label=labels.get(row, row),
        experiment=experiment,
        test=test,
        column=_label(place),
        metric=metric,
        value=value,
        folds=walk.folds,
        nodes=nodes,
        subjects=walk.subjects,
        code=_code(records, nodes),
        checked=check,
    )


# The cell ----------------------------------------------------------------------------------


def _table_record(records: Records, table: str) -> Record:
    made = {r.wildcards["table"]: r for r in records.all.values() if r.rule == "make_table"}
    if table in made:
        return made[table]
    key = f"tables/{table}.csv"
    if records.path(key).is_file() and (why := records.broken.get(f"{key}{SUFFIX}", "is missing")):
        raise DataError(
            f"{records.path(key)}: its record ({key}{SUFFIX}) {why}; nothing says what the table "
            "was made from. Make it again."
        )
    if any(entry["table"] == table for entry in _published(records)):
        raise DataError(
            f"{table}: – (this run did not make it; its values are published only). Tables of "
            f"this run: {', '.join(sorted(made)) or 'none'}."
        )
    raise DataError(f"{records.root}: {unknown('table', table, made)}")


def _row(records: Records, made: Record, row: str) -> str:
    """The key of a row that was named by its key or its label."""
    table, spec, labels = made.wildcards["table"], made.params["table"], made.params["labels"]
    if row in spec["rows"]:
        return row
    called = [key for key in spec["rows"] if labels.get(key, key).lower() == row.lower()]
    if called:
        return called[0]
    found = [e for e in _published(records) if e["row"] == row and e["table"] == table]
    if found:
        texts = [
            f"{e['experiment']}/{e['test_dataset']} {e['metric']} "
            f"{_plus_minus(_number(e['mean']), _number(e['std']))}"
            for e in found
        ]
        raise DataError(
            f"{table}: the cells of {row} are – (this run did not compute them). Published only: "
            f"{'; '.join(texts)} ({found[0]['source']}). Rows of this run: "
            f"{', '.join(spec['rows'])}."
        )
    raise DataError(f"{table}: {unknown('row', row, spec['rows'])}")


def _label(column: dict[str, str]) -> str:
    return column.get("label") or f"{column['test']} ({column['experiment']})"


def _column(table: str, columns: Sequence[dict[str, str]], name: str | None) -> dict[str, str]:
    exact = {f"{column['experiment']}/{column['test']}": column for column in columns}
    listed = ", ".join(f"{key} ({_label(column)})" for key, column in exact.items())
    if name is None:
        if len(columns) > 1:
            raise DataError(f"{table}: which column? It has {listed}.")
        return columns[0]
    if name in exact:
        return exact[name]
    wanted = name.lower()
    found = [column for column in columns if _label(column).lower() == wanted]
    found = found or [c for c in columns if name in (c["experiment"], c["test"])]
    if not found:
        raise DataError(f"{table}: {unknown('column', name, exact)}")
    if len(found) > 1:
        raise DataError(f"{table}: {len(found)} columns are called {name!r}. It has {listed}.")
    return found[0]


def _value(
    records: Records, made: Record, row: str, experiment: str, test: str, metric: str
) -> Value:
    """The cell as the table's CSV has it."""
    path = records.path(_csv_of(made))
    wanted = {"row": row, "experiment": experiment, "test_dataset": test, "metric": metric}
    for entry in _read_csv(path):
        if {key: entry.get(key) for key in wanted} == wanted:
            break
    else:
        raise DataError(f"{path}: has no line for {'/'.join(wanted.values())}. Make it again.")
    mean = _number(entry["mean"])
    value = Value(
        mean=mean,
        std=_number(entry["std"]),
        n_folds=int(_number(entry["n_folds"], 0)),
        n_volumes=int(_number(entry["n_volumes"], 0)),
        published_mean=_number(entry["published_mean"]),
        published_std=_number(entry["published_std"]),
        published_source=entry["published_source"],
        phantom=bool(made.params["phantom"]),
    )
    if isnan(mean):
        raise DataError(
            f"{path}: the cell {'/'.join(wanted.values())} is – (it was not run). "
            f"Published: {value.published}."
        )
    return value


def _csv_of(made: Record) -> str:
    return next(output.key for output in made.outputs if output.key.endswith(".csv"))


def _published(records: Records) -> list[dict[str, str]]:
    path = records.path(PUBLISHED)
    return list(_read_csv(path)) if path.is_file() else []


def _read_csv(path: Any, delimiter: str = ",") -> Iterator[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            yield from csv.DictReader(handle, delimiter=delimiter)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, though a record has it. Make it again.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Make it again.") from error


def _number(text: str | None, otherwise: float = float("nan")) -> float:
    try:
        return float(text or "")
    except ValueError:
        return otherwise


def _plus_minus(mean: float, std: float) -> str:
    return f"{mean:.2f}" if isnan(std) else f"{mean:.2f} ± {std:.2f}"


# The walk ----------------------------------------------------------------------------------


class _Walk:
    """Collects the nodes of a cell.

    First everything between the cell and the slice stores, fold by fold, which tells who matters
    in which store; then the scans of these subjects.
    """

    def __init__(
        self, records: Records, made: Record, row: str, experiment: str, test: str, metric: str
    ) -> None:
        self.records, self.made, self.metric = records, made, metric
        self.place = {"experiment": experiment, "method": row, "test": test}
        self.nodes: dict[str, Node] = {}
        self.folds: list[Fold] = []
        self.subjects: dict[str, dict[str, dict[str, list[int]]]] = {}
        self.manifests: dict[str, dict[str, str]] = {}

    def cell(self, value: Value) -> None:
        """Follow the cell of the table."""
        table = self._add(_csv_of(self.made))
        table.place = {"table": self.made.wildcards["table"], **self.place}
        # by their names, so that a file whose record is lost is followed, too
        ours = re.compile(Tree("").per_test("metrics", "tsv", fold=r"(\d+)", **self.place)[1:])
        of_cell = {}
        for entry in self.made.inputs:
            if entry.key == PUBLISHED:
                self._link(table, self.made, entry)
            elif match := ours.fullmatch(entry.key):
                of_cell[int(match[1])] = entry
        for fold, entry in sorted(of_cell.items()):
            self._fold(fold, self._link(table, self.made, entry))
        self._compare(table, value)
        for store in list(self.subjects):
            self._scans(store)
        for node in list(self.nodes.values()):
            self._tell(node)

    # from a fold's metrics to the slice stores

    def _fold(self, fold: int, metrics: Node) -> None:
        metrics.place.setdefault("fold", str(fold))
        waiting, seen, reads = [metrics], {metrics.key}, []
        while waiting:
            node = waiting.pop(0)
            record = self.records.producers.get(node.key)
            for entry in _deciding(record, self.records) if record else ():
                child = self._link(node, record, entry)
                if child.stage == "store":
                    reads.append((child, record.rule))
                elif child.key not in seen:
                    seen.add(child.key)
                    waiting.append(child)
        splits = [self.nodes[key] for key in seen if self.nodes[key].stage == "split"]
        rows = [row for split in splits for row in self._rows_of(split)]
        for store, rule in reads:
            self._want(store, rule, fold, rows)
        self._evaluated(fold, metrics, rows)

    def _rows_of(self, split: Node) -> list[dict[str, str]]:
        try:
            rows = list(_read_csv(self.records.path(split.key), "\t"))
            if not all(row.get(name) for row in rows for name in ("dataset", "subject", "role")):
                raise DataError("it lacks the columns dataset, subject and role")
        except DataError as error:
            _note(split, f"cannot be read ({error})")
            return []
        sizes = split.facts["sizes"] = {}
        for (dataset, role), number in Counter((r["dataset"], r["role"]) for r in rows).items():
            sizes.setdefault(dataset, {})[role] = number
        return rows

    def _want(self, store: Node, rule: str, fold: int, rows: list[dict[str, str]]) -> None:
        """Remember who of a store matters to a fold, because a rule reads their volumes."""
        roles = _ROLES_READ.get(rule)
        wanted = self.subjects.setdefault(store.key, {})
        for row in rows:
            role = row["role"]
            if row["dataset"] == store.place.get("dataset") and (roles is None or role in roles):
                folds = wanted.setdefault(role, {}).setdefault(row["subject"], [])
                if fold not in folds:
                    folds.append(fold)

    def _evaluated(self, fold: int, metrics: Node, rows: list[dict[str, str]]) -> None:
        """The fold's value, from its metrics; the subjects must be those of the split."""
        path = self.records.path(metrics.key)
        value, subjects = None, []
        try:
            lines = list(_read_csv(path, "\t"))
            scores = {line["subject"]: _number(line[self.metric]) for line in lines}
            subjects = [name for name, score in scores.items() if not isnan(score)]
            value = 100 * fmean(scores[name] for name in subjects)
        except DataError as error:
            _note(metrics, str(error))
        except (KeyError, ValueError, TypeError):
            _note(metrics, f"is not a table with the columns subject and {self.metric}")
        else:
            self._same_subjects(metrics, scores, rows)
        metrics.facts |= {"value": value, "subjects": subjects, "metric": self.metric}
        self.folds.append(Fold(fold, value, subjects, metrics.key))

    def _same_subjects(
        self, metrics: Node, tested: Iterable[str], rows: list[dict[str, str]]
    ) -> None:
        place = self.place["test"], "test"
        split = {row["subject"] for row in rows if (row["dataset"], row["role"]) == place}
        if split and (odd := sorted(set(tested) ^ split)):
            _note(metrics, f"tests other subjects than the split's test set ({_some(odd)})")

    def _compare(self, table: Node, value: Value) -> None:
        """The cell against its metrics."""
        values = [fold.value for fold in self.folds if fold.value is not None]
        table.facts |= {"mean": value.mean, "std": None if isnan(value.std) else value.std}
        if not values or len(values) < len(self.folds):
            _note(table, "the cell cannot be computed again: metrics of a fold are missing")
            return
        mean, std = fmean(values), stdev(values) if len(values) > 1 else float("nan")
        table.facts |= {"recomputed_mean": mean, "recomputed_std": None if isnan(std) else std}
        wrong = abs(mean - value.mean) > _ROUNDING or isnan(std) != isnan(value.std)
        if wrong or (not isnan(std) and abs(std - value.std) > _ROUNDING):
            _note(
                table,
                f"the cell says {value.mean:.4f} ± {value.std:.4f}, its metrics give "
                f"{mean:.4f} ± {std:.4f}",
            )
        if len(values) != value.n_folds:
            _note(table, f"the cell counts {value.n_folds} folds, there are {len(values)}")

    # from the slice stores to the raw files

    def _scans(self, key: str) -> None:
        store, record = self.nodes[key], self.records.producers.get(key)
        if record is None:
            return
        wanted = {name for role in self.subjects[key].values() for name in role}
        dataset = store.place["dataset"]
        of_raw = self._subjects_of_raw(dataset)
        paths = [file["path"] for file in record.content["inputs"]]
        waiting: list[tuple[Node, Record, Artifact, str | None]] = []
        packed = set()
        for entry, path in zip(record.inputs, paths, strict=True):
            made_by = self.records.producers.get(entry.key)
            subject = made_by.wildcards.get("subject") if made_by else of_raw.get(path)
            packed.add(subject)
            if subject is None or subject in wanted:
                waiting.append((store, record, entry, subject))
        store.facts |= {"packed": len(packed - {None}), "used": len(wanted)}
        if absent := sorted(wanted - packed):
            _note(store, f"was not packed from scans of {_some(absent)}, whom the split names")
        while waiting:
            above, made_by, entry, subject = waiting.pop(0)
            known = entry.key in self.nodes
            node = self._link(above, made_by, entry)
            record_of_node = self.records.producers.get(entry.key)
            if not record_of_node:
                self._source(node, dataset, subject)
            elif not known or record_of_node.rule == "predict_brain_masks":
                for child in self._inputs_of_scan(record_of_node, wanted):
                    waiting.append((node, record_of_node, child, subject))
                self._transform(node, record_of_node)

    def _subjects_of_raw(self, dataset: str) -> dict[str, str]:
        """Subject by path of its files, as the data set's participants table has them."""
        rows, files = self._table(f"participants/{dataset}.tsv"), ("image", "lesion", "mask")
        return {row[f]: row.get("subject", "") for row in rows for f in files if row.get(f)}

    def _table(self, key: str) -> list[dict[str, str]]:
        """A table on the path; one that cannot be read is noted, one that is not there is empty."""
        path = self.records.path(key)
        try:
            return list(_read_csv(path, "\t")) if path.is_file() else []
        except DataError as error:
            _note(self._add(key), f"cannot be read ({error})")
            return []

    def _inputs_of_scan(self, record: Record, wanted: set[str]) -> Iterator[Artifact]:
        """Inputs of a scan's job; of a batch of scans only those that matter."""
        subjects = record.params.get("subjects")
        if record.rule != "predict_brain_masks" or not subjects:
            yield from record.inputs
            return
        for entry, subject in zip(record.inputs, subjects, strict=True):
            if subject in wanted:
                yield entry

    def _transform(self, node: Node, record: Record) -> None:
        """The transform that a registered volume was resampled with: an output of its own job."""
        for output in record.outputs:
            if output.key.endswith(".mat") and output.key != node.key:
                self._add(output.key).inputs = node.inputs  # the same list: it is filled later
                if output.key not in node.facts.setdefault("with", []):
                    node.facts["with"].append(output.key)

    def _source(self, node: Node, dataset: str, subject: str | None) -> None:
        """Say where a raw file is from: a generator, a download, or somebody's folder."""
        if node.stage != "raw":
            return
        node.place |= {"dataset": dataset, **({"subject": subject} if subject else {})}
        index = self.records.producers.get(f"participants/{dataset}.tsv")
        params = index.params if index else {}
        node.facts["source"] = params.get("dataset", {}).get("source", "unknown")
        node.facts["folder"] = params.get("root")
        for key in (f"raw/{dataset}{ending}" for ending in _SOURCES):
            if key in self.records.producers:
                self._add(key)
                _append(node.inputs, key)
        manifest = self._manifest(dataset)
        listed = manifest.get(node.key, "")
        if manifest and not listed:
            _note(node, f"is not listed in raw/{dataset}.manifest.tsv")
        elif manifest and listed != node.sha256:
            _note(node, f"was read with other bytes than its manifest lists ({listed[:12]})")

    def _manifest(self, dataset: str) -> dict[str, str]:
        """SHA-256 by key of a generated tree's files; empty for other trees."""
        if dataset not in self.manifests:
            self.manifests[dataset] = {
                f"raw/{dataset}/{row.get('path')}": row.get("sha256") or ""
                for row in self._table(f"raw/{dataset}.manifest.tsv")
            }
        return self.manifests[dataset]

    # nodes

    def _add(self, key: str, entry: Artifact | None = None) -> Node:
        """The node of a file; a new one has what its record says."""
        if key in self.nodes:
            return self.nodes[key]
        record = self.records.producers.get(key)
        entry = self.records.outputs.get(key, entry)
        node = self.nodes[key] = Node(
            key,
            _stage_of(key, record),
            record.rule if record else None,
            dict(record.wildcards) if record else _place_of(key),
            entry.sha256 if entry else None,
            entry.bytes if entry else None,
        )
        if record is None and node.stage not in ("raw", "published"):
            why = self.records.broken.get(f"{key}{SUFFIX}")
            _note(node, f"its record {why}" if why else "no record says how it was made")
        elif record and record.key in self.records.broken:
            _note(node, f"its record {self.records.broken[record.key]}")
        return node

    def _link(self, node: Node, record: Record, entry: Artifact) -> Node:
        """The node of an input; the record that read it must have seen the same bytes."""
        child = self._add(entry.key, entry)
        if child.rule is None and child.stage == "raw" and record.rule == "make_splits":
            child.stage = "list"  # of a folder that the config names
        _append(node.inputs, entry.key)
        if entry.sha256 != child.sha256:
            seen = entry.sha256[:12] if entry.sha256 else "no file"
            _note(child, f"{record.rule} read other bytes ({seen}) for {node.key}")
        return child

    def _tell(self, node: Node) -> None:
        """Gather what is worth telling about a node."""
        record = self.records.producers.get(node.key)
        if not (record and (tell := _TELL.get(node.stage))):
            return
        try:
            node.facts |= tell(record, self.records)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if self.records.path(node.key).is_file():
                _note(node, "its content cannot be read")
        if node.stage in ("threshold", "air"):
            self._from_validation(node, int(node.place["fold"]))

    def _from_validation(self, node: Node, fold: int) -> None:
        """A threshold and AIR must come from the unhealthy validation subjects of their fold."""
        used = {
            name
            for roles in self.subjects.values()
            for role, names in roles.items()
            for name, folds in names.items()
            if role == "val_unhealthy" and fold in folds
        }
        if odd := sorted(set(node.facts.get("subjects", used)) - used):
            _note(node, f"is from {_some(odd)}, who are not in the split's val_unhealthy set")

    # bytes

    def look(self, check: bool) -> None:
        """Hash every file and compare it with its record; else only see what was not kept."""
        nodes = list(self.nodes.values())
        if not check:
            for node in nodes:
                if is_temporary(node.key) and not self.records.path(node.key).is_file():
                    node.status = NOT_KEPT
            return
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            digests = pool.map(lambda node: _digest(self.records, node.key), nodes)
            for node, digest in zip(nodes, digests, strict=True):
                _judge(node, digest)


def _stage_of(key: str, record: Record | None) -> str:
    if record is not None:
        return "transform" if key.endswith(".mat") else _STAGE_OF_RULE.get(record.rule, "other")
    if key == PUBLISHED:
        return "published"
    if key.startswith(("raw/", EXTERNAL)):
        return "source" if key.endswith(_SOURCES) else "raw"
    return _STAGE_OF_FOLDER.get(key.partition("/")[0], "other")


def _place_of(key: str) -> dict[str, str]:
    """The data set of a participants table or a slice store, from its name."""
    folder, _, name = key.partition("/")
    stem = name.partition(".")[0]
    if folder == "participants":
        return {"dataset": stem}
    if folder == "slices":
        dataset, _, modality = stem.rpartition("_")
        return {"dataset": dataset, "modality": modality}
    return {}


def _deciding(record: Record, records: Records) -> Iterable[Artifact]:
    """What of a job's inputs its result depends on.

    AIR is measured on all test sets of an experiment, but the reference set alone decides.
    """
    reference = record.params.get("reference") if record.rule == "compute_air" else None
    for entry in record.inputs:
        made_by = records.producers.get(entry.key)
        other = made_by and made_by.rule == "pack_slices" and reference is not None
        if not (other and made_by.wildcards["dataset"] != reference):
            yield entry


def _digest(records: Records, key: str) -> str | None:
    path = records.path(key)
    if key.startswith(EXTERNAL) and not path.is_absolute():
        first = next(iter(records.all.values()))
        path = working_directory(records.root, first.content["roots"]["results"]) / path
    return sha256(path) if path.is_file() else None


def _judge(node: Node, digest: str | None) -> None:
    if digest is None and is_temporary(node.key):
        node.status = NOT_KEPT
    elif digest is None:
        node.status = MISSING
        _note(node, "the file is missing")
    elif digest != node.sha256:
        node.status = CHANGED
        _note(node, f"the file's SHA-256 is {digest[:12]}, recorded is {node.short}")
    else:
        node.status = SAME


def _append(keys: list[str], key: str) -> None:
    if key not in keys:
        keys.append(key)


def _note(node: Node, problem: str) -> None:
    if problem not in node.problems:
        node.problems.append(problem)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


# What is told about each kind of node --------------------------------------------------------


def _of_threshold(record: Record, records: Records) -> dict[str, Any]:
    content = read_json(records.path(record.outputs[0].key))
    return {key: content[key] for key in ("threshold", "method", "subjects")}


def _of_weights(record: Record, records: Records) -> dict[str, Any]:
    content, facts = record.content, record.content["facts"]
    return {
        "seed": content["seeds"].get("job"),
        "epochs": record.params.get("loop", {}).get("epochs"),
        "weights_of_epoch": facts.get("weights_of_epoch"),
        "steps": facts.get("steps"),
        "resumed": facts.get("resumed"),
        "device": content["host"]["device"],
        "seconds": content["seconds"],
    }


def _of_reconstructions(record: Record, records: Records) -> dict[str, Any]:
    facts = record.content["facts"]
    told = {key: facts[key] for key in ("volumes", "t_test") if key in facts}
    return {**told, "device": record.content["host"]["device"]}


def _of_maps(record: Record, records: Records) -> dict[str, Any]:
    return {key: record.params[key] for key in ("score",) if key in record.params}


def _of_air(record: Record, records: Records) -> dict[str, Any]:
    content = read_json(records.path(record.outputs[0].key))
    names = ("invert", "rule", "reference_dataset", "air_before", "air_after")
    decisive = content["sets"][content["reference_dataset"]]
    return {**{key: content[key] for key in names}, "subjects": decisive["subjects"]}


def _of_split(record: Record, records: Records) -> dict[str, Any]:
    options = record.params.get("splits", {})
    return {"kind": options.get("kind"), "seed": options.get("seed")}


def _of_list(record: Record, records: Records) -> dict[str, Any]:
    facts = record.content["facts"]
    return {key: facts.get(key) for key in ("url", "checksum", "verified")}


def _of_atlas(record: Record, records: Records) -> dict[str, Any]:
    key = next(output.key for output in record.outputs if output.key.endswith(".json"))
    content = read_json(records.path(key))
    return {"name": content["name"], "source": content["source"]}


def _of_participants(record: Record, records: Records) -> dict[str, Any]:
    facts = record.content["facts"]
    spec = record.params.get("dataset", {})
    reviewed = [scan["subject"] for scan in spec.get("reviewed", [])]
    left_out = {*spec.get("exclude", {}), *reviewed}
    return {
        "source": spec.get("source"),
        "folder": record.params.get("root"),
        "scans": facts.get("scans"),
        "left_out": sorted(left_out),
    }


def _of_source(record: Record, records: Records) -> dict[str, Any]:
    if record.rule == "make_phantom":
        phantom = record.params["dataset"]["phantom"]
        return {"kind": "phantom", "seed": record.content["seeds"].get("job"), **phantom}
    content = read_json(records.path(record.outputs[0].key))
    names = ("name", "url", "checksum", "verified")
    files = [{key: file.get(key) for key in names} for file in content.get("files", [])]
    return {"kind": "download", "files": files}


_TELL: dict[str, Callable[[Record, Records], dict[str, Any]]] = {
    "threshold": _of_threshold,
    "weights": _of_weights,
    "reconstructions": _of_reconstructions,
    "maps": _of_maps,
    "air": _of_air,
    "split": _of_split,
    "list": _of_list,
    "atlas": _of_atlas,
    "participants": _of_participants,
    "source": _of_source,
}


def _code(records: Records, nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """States of the code that the jobs of the nodes ran from, the most frequent first."""
    jobs = {r.key: r for n in nodes if (r := records.producers.get(n.key))}
    counts: Counter[tuple[Any, ...]] = Counter()
    for record in jobs.values():
        code, lock = record.content["code"], record.content["environment"]["lock_sha256"]
        counts[code["commit"], code["diff_sha256"], lock] += 1
    return [
        {"commit": commit, "diff_sha256": diff, "lock_sha256": lock, "jobs": number}
        for (commit, diff, lock), number in counts.most_common()
    ]
