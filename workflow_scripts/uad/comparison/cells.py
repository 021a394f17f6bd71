"""Table cells that differ between two runs, or that rest on files that do."""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from uad.comparison.trees import Run
from uad.records import Record

#: Columns that say which cell a line is, and the wildcard that each names in the jobs before it.
IDENTITY = {
    "row": "method",
    "method": "method",
    "experiment": "experiment",
    "modality": "modality",
    "reference_dataset": "dataset",
    "test_dataset": "test",
    "variant": "variant",
    "fold": "fold",
    "metric": "metric",
}
#: Columns that a reader finds a cell's row by; the other identities make its column.
ROW = ("row", "method", "variant")
FOLDERS = ("tables/", "studies/")


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        table: key of its CSV.
        row: method, and variant in a study.
        column: ``experiment/test set``, as ``make trace`` has it; more in tables of another kind.
        metric: ``dice``, ``auprc``, or the name of the column in tables without metrics.
        here: the value, as it is written; None if there is no such cell.
        there: likewise.
        also: other columns of the same line that differ, as ``name: here → there``.
    """

    table: str
    row: str
    column: str
    metric: str
    here: str | None
    there: str | None
    also: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Number here minus number there; None where one is not a number."""
        try:
            value = float(self.here) - float(self.there)
        except (TypeError, ValueError):
            return None
        return value if math.isfinite(value) else None

    @property
    def differs(self) -> bool:
        """Whether anything of it is written differently; else it only rests on other files."""
        return self.here != self.there or bool(self.also)


def touched_cells(
    tables: list[str], here: Run, there: Run, touched: Container[str]
) -> Iterator[Cell]:
    """Cells of some tables that differ or rest on files that do.

    Args:
        tables: keys of CSV files in long form.
        here: one run.
        there: the other.
        touched: keys of the files that differ and of all that was made from them.
    """
    for key in tables:
        ours, theirs = (
            _lines(run.files[key].path) if key in run.files else {} for run in (here, there)
        )
        for identity in dict.fromkeys([*ours, *theirs]):
            rests = any(_rests_on(identity, key, run, touched) for run in (here, there))
            for cell in _cells(key, dict(identity), ours.get(identity), theirs.get(identity)):
                if cell.differs or rests:
                    yield cell


def _lines(path: Path | None) -> dict[tuple[tuple[str, str], ...], dict[str, str]]:
    """Lines of a CSV, the identity apart from the values."""
    if path is None:
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        return {
            tuple((name, line[name]) for name in IDENTITY if name in line): {
                name: value for name, value in line.items() if name not in IDENTITY
            }
            for line in csv.DictReader(lines)
        }


def _cells(
    table: str, identity: dict[str, str], ours: dict[str, str] | None, theirs: dict[str, str] | None
) -> Iterator[Cell]:
    row = " ".join(identity[name] for name in ROW if name in identity)
    column = "/".join(v for name, v in identity.items() if name not in (*ROW, "metric"))
    both = [values or {} for values in (ours, theirs)]
    names = list(dict.fromkeys([*both[0], *both[1]]))
    if "metric" not in identity:  # one metric per column
        for name in names:
            cell = Cell(table, row, column, name, both[0].get(name), both[1].get(name))
            if cell.differs or cell.difference is not None:  # a number, or news
                yield cell
        return
    also = tuple(
        f"{name}: {both[0].get(name)} → {both[1].get(name)}"
        for name in names
        if name != "mean" and ours and theirs and both[0].get(name) != both[1].get(name)
    )
    means = (values.get("mean") for values in both)
    yield Cell(table, row, column, identity["metric"], *means, also)


def _rests_on(
    identity: tuple[tuple[str, str], ...], table: str, run: Run, touched: Container[str]
) -> bool:
    """Whether a line was made from a file that differs.

    A table reads files of many cells. Those of a line are the ones whose jobs have its method,
    experiment, test set or fold as wildcards, and no other; a table of which no input has any
    rests on all of them.
    """
    job = run.files[table].record if table in run.files else None
    if job is None:
        return False
    wanted = {IDENTITY[name]: value for name, value in identity}
    own = [key for key in run.inputs(job) if _agrees(run.records.producers.get(key), wanted)]
    return any(key in touched for key in own or run.inputs(job))


def _agrees(job: Record | None, wanted: dict[str, str]) -> bool:
    shared = {name: job.wildcards[name] for name in wanted if job and name in job.wildcards}
    return bool(shared) and all(wanted[name] == value for name, value in shared.items())
