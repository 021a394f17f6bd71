"""Cells of the tables of methods: which one is meant, and what the table says in it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from uad.audit.recompute import METRICS, PUBLISHED, ROUNDED
from uad.core.errors import DataError, unknown
from uad.core.provenance import SUFFIX
from uad.core.records import Record, Records


@dataclass(frozen=True)
class Value:
    """A cell of a table; NaN where there is no number."""

    mean: float
    std: float
    n_folds: int
    n_volumes: int
    published_mean: float
    published_std: float
    published_source: str
    phantom: bool
    percent: bool = True  # else in the unit of the metric, as the tables of all metrics have it

    def __str__(self) -> str:
        """``44.08 ± 2.95 %``, with ``(phantom)`` where it is one."""
        number = f"{plus_minus(self.mean, self.std)} %"
        if not self.percent:
            number = plus_minus(self.mean, self.std, ".4g")
        return f"{number}{' (phantom)' if self.phantom else ''}"

    def is_about(self, mean: float, std: float) -> bool:
        """Whether computed numbers (in percent) are those of the cell, to its last digit."""
        scale = 1 if self.percent else 100
        return all(
            isnan(said) == isnan(found)
            and not abs(said - found / scale)
            > (ROUNDED if self.percent else 1e-5 * abs(said) + 1e-9)
            for said, found in ((self.mean, mean), (self.std, std))
        )

    @property
    def published(self) -> str:
        """The published value with its source; ``not published`` where there is none."""
        if isnan(self.published_mean):
            return "not published"
        return f"{plus_minus(self.published_mean, self.published_std)} ({self.published_source})"


@dataclass(frozen=True)
class Cell:
    """Which cell of which table: ``row`` and its label, ``column`` is a label."""

    table: str
    row: str
    label: str
    experiment: str
    test: str
    column: str
    metric: str


def find_cell(
    records: Records, *, table: str, row: str, column: str | None, metric: str
) -> tuple[Record, Cell, Value]:
    """The job that made a cell's table, the cell, and its value; names as ``trace`` takes them.

    Raises:
        DataError: there is no such table, row, column or metric (the message lists what there
            is), or the cell was not computed here.
    """
    made = _table_record(records, table)
    params = made.params
    row = _row(records, made, row)
    found = _column(table, params["table"]["columns"], column)
    metrics = METRICS
    if made.rule == "make_metrics_table":
        metrics = tuple(
            dict.fromkeys(line["metric"] for line in _lines(records.path(csv_of(made))))
        )
    if metric not in metrics:
        raise DataError(f"{table}: {unknown('metric', metric, metrics)}")
    label = params["labels"].get(row, row)
    cell = Cell(table, row, label, found["experiment"], found["test"], _label(found), metric)
    return made, cell, _value(records, made, cell)


def csv_of(made: Record) -> str:
    """Key of the table as CSV, of the job that made it."""
    return next(output.key for output in made.outputs if output.key.endswith(".csv"))


def plus_minus(mean: float, std: float, digits: str = ".2f") -> str:
    """``44.08 ± 2.95``; the mean alone where there is no deviation."""
    return " ± ".join(f"{number:{digits}}" for number in (mean, std) if not isnan(number))


def _table_record(records: Records, table: str) -> Record:
    names = {"make_table": "{table}", "make_metrics_table": "metrics_{table}"}
    jobs = [record for record in records.all.values() if record.rule in names]
    made = {names[record.rule].format(**record.wildcards): record for record in jobs}
    key = f"tables/{table}.csv"
    if table not in made and records.path(key).is_file():
        why = records.broken.get(f"{key}{SUFFIX}", "is missing")
        raise DataError(
            f"{records.path(key)}: its record ({key}{SUFFIX}) {why}; nothing says what the table "
            "was made from. Make it again."
        )
    if table not in made and any(entry["table"] == table for entry in _published(records)):
        raise DataError(
            f"{table}: – (this run did not make it; its values are published only). Tables of "
            f"this run: {', '.join(sorted(made)) or 'none'}."
        )
    if table not in made:
        raise DataError(f"{records.root}: {unknown('table', table, made)}")
    return made[table]


def _row(records: Records, made: Record, row: str) -> str:
    """The key of a row that was named by its key or its label."""
    table, rows, labels = (
        made.wildcards["table"],
        made.params["table"]["rows"],
        made.params["labels"],
    )
    for key in rows:
        if row == key or row.lower() == labels.get(key, key).lower():
            return key
    if found := [e for e in _published(records) if (e["row"], e["table"]) == (row, table)]:
        texts = [
            f"{e['experiment']}/{e['test_dataset']} {e['metric']} {plus_minus(e['mean'], e['std'])}"
            for e in found
        ]
        raise DataError(
            f"{table}: the cells of {row} are – (this run did not compute them). Published only: "
            f"{'; '.join(texts)} ({found[0]['source']}). Rows of this run: {', '.join(rows)}."
        )
    raise DataError(f"{table}: {unknown('row', row, rows)}")


def _label(column: dict[str, str]) -> str:
    return column.get("label") or f"{column['test']} ({column['experiment']})"


def _column(table: str, columns: list[dict[str, str]], name: str | None) -> dict[str, str]:
    exact = {f"{column['experiment']}/{column['test']}": column for column in columns}
    if name in exact:
        return exact[name]
    found = [c for c in columns if name is None or _label(c).lower() == name.lower()]
    found = found or [c for c in columns if name in (c["experiment"], c["test"])]
    if not found:
        raise DataError(f"{table}: {unknown('column', name, exact)}")
    if len(found) > 1:
        which = f"{len(found)} columns are called {name!r}." if name else "which column?"
        listed = ", ".join(f"{key} ({_label(column)})" for key, column in exact.items())
        raise DataError(f"{table}: {which} It has {listed}.")
    return found[0]


def _value(records: Records, made: Record, cell: Cell) -> Value:
    path = records.path(csv_of(made))
    wanted = {"row": cell.row, "experiment": cell.experiment, "test_dataset": cell.test}
    wanted |= {"metric": cell.metric}
    line = next((line for line in _lines(path) if wanted.items() <= line.items()), None)
    name = "/".join(wanted.values())
    if line is None:
        raise DataError(f"{path}: has no line for {name}. Make it again.")
    names = ("mean", "std", "n_folds", "n_volumes", "published_mean", "published_std")
    numbers = pd.to_numeric(pd.Series([line.get(key) for key in names]), errors="coerce")
    mean, std, folds, volumes, *published = numbers
    counts = (0 if isnan(count) else int(count) for count in (folds, volumes))
    source, phantom = line.get("published_source", "none"), bool(made.params["phantom"])
    percent = made.rule == "make_table"
    value = Value(mean, std, *counts, *published, source, phantom, percent)
    if isnan(mean):
        raise DataError(
            f"{path}: the cell {name} is – (it was not run). Published: {value.published}."
        )
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a CSV, a number where one is written, text elsewhere."""
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan", ""]).to_dict("records")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Make it again.") from error


def _published(records: Records) -> list[dict[str, Any]]:
    path = records.path(PUBLISHED)
    return _lines(path) if path.is_file() else []
