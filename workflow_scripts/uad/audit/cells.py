"""Cells of the tables of methods: which one is meant, and what the table says in it."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from uad.audit.recompute import METRICS, PUBLISHED
from uad.core.errors import DataError, unknown
from uad.core.provenance import SUFFIX
from uad.core.records import Record, Records

_NUMBERS = ("mean", "std", "n_folds", "n_volumes", "published_mean", "published_std")


def find_cell(
    records: Records, *, table: str, row: str, column: str | None, metric: str
) -> tuple[Record, dict[str, str], dict[str, Any]]:
    """The job that made a cell's table, the cell, and its value; names as ``trace`` takes them.

    Returns:
        The cell as ``table``, ``row``, ``label``, ``experiment``, ``test``, ``column`` (a label),
        ``metric``; the value as the table has it: ``mean``, ``std`` over folds, ``n_folds``,
        ``n_volumes``, ``published_mean``, ``published_std``, ``published_source``, ``phantom``,
        ``percent`` (else in the unit of the metric, as tables of all metrics have it); NaN where
        there is no number.

    Raises:
        DataError: there is no such table, row, column or metric (the message lists what there
            is), or the cell was not computed here.
    """
    made = _table_record(records, table)
    spec, labels, path = made.params["table"], made.params["labels"], records.path(csv_of(made))
    rows = [key for key in spec["rows"] if row.lower() in (key, labels.get(key, key).lower())]
    if not rows:
        raise _refusal(records, unknown("row", row, spec["rows"]), table=table, row=row)
    percent, lines = made.rule == "make_table", _lines(path)
    metrics = METRICS if percent else list(dict.fromkeys(line["metric"] for line in lines))
    if metric not in metrics:
        raise DataError(f"{table}: {unknown('metric', metric, metrics)}")
    found = _column(table, spec["columns"], column)
    cell = {"row": rows[0], "experiment": found["experiment"], "test_dataset": found["test"]}
    cell |= {"metric": metric}
    name = "/".join(cell.values())
    line = next((line for line in lines if cell.items() <= line.items()), None)
    if line is None:
        raise DataError(f"{path}: has no line for {name}. Make it again.")
    numbers = pd.to_numeric(pd.Series({n: line.get(n) for n in _NUMBERS}), errors="coerce")
    value = numbers.to_dict() | {"published_source": line.get("published_source", "none")}
    if isnan(value["mean"]):
        raise DataError(
            f"{path}: the cell {name} is – (it was not run). Published: {published(value)}."
        )
    value |= {n: int(numbers.fillna(0)[n]) for n in ("n_folds", "n_volumes")}
    cell["test"] = cell.pop("test_dataset")
    cell |= {"table": table, "label": labels.get(rows[0], rows[0]), "column": _label(found)}
    return made, cell, value | {"phantom": bool(made.params["phantom"]), "percent": percent}


def csv_of(made: Record) -> str:
    """Key of the table as CSV, of the job that made it."""
    return next(output.key for output in made.outputs if output.key.endswith(".csv"))


def plus_minus(mean: float, std: float, digits: str = ".2f") -> str:
    """``44.08 ± 2.95``; the mean alone where there is no deviation."""
    return " ± ".join(f"{number:{digits}}" for number in (mean, std) if not isnan(number))


def published(value: dict[str, Any]) -> str:
    """The published value with its source; ``not published`` where there is none."""
    if isnan(value["published_mean"]):
        return "not published"
    numbers = plus_minus(value["published_mean"], value["published_std"])
    return f"{numbers} ({value['published_source']})"


def _table_record(records: Records, table: str) -> Record:
    names = {"make_table": "{table}", "make_metrics_table": "metrics_{table}"}
    jobs = [record for record in records.all.values() if record.rule in names]
    made = {names[record.rule].format(**record.wildcards): record for record in jobs}
    if table in made:
        return made[table]
    key = f"tables/{table}.csv"
    if records.path(key).is_file():
        why = records.broken.get(f"{key}{SUFFIX}", "is missing")
        raise DataError(
            f"{records.path(key)}: its record ({key}{SUFFIX}) {why}; nothing says what the table "
            "was made from. Make it again."
        )
    raise _refusal(records, unknown("table", table, made), table=table)


def _refusal(records: Records, message: str, **place: str) -> DataError:
    """A table or row that this run does not have, with the published values where there are."""
    path, known = records.path(PUBLISHED), []
    for entry in _lines(path) if path.is_file() else []:
        if place.items() <= entry.items():
            name = f"{entry['row']} {entry['experiment']}/{entry['test_dataset']} {entry['metric']}"
            known.append(f"{name} {plus_minus(entry['mean'], entry['std'])} ({entry['source']})")
    only = f" – (not of this run). Published only: {'; '.join(known[:4])}." if known else ""
    return DataError(f"{place['table']}: {message}{only}")


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


def _lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a CSV, a number where one is written, text elsewhere."""
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan", ""]).to_dict("records")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Make it again.") from error
