"""Which values of a table are significantly better, and which published differences hold.

The tests themselves are made in :mod:`uad.evaluate`; here their results become a mark
per cell and sentences below a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from uad.core.columns import SIGNIFICANCE
from uad.core.errors import DataError
from uad.report.render import signed

if TYPE_CHECKING:
    from uad.report.tables import TableSpec

#: A corrected p value below this is significant, as in the paper.
LEVEL = 0.05
MARK = "†"
#: What :func:`add_marks` says of each cell.
MARK_COLUMNS = [
    "significant",
    "tested_against",
    "n_pairs",
    "smallest_difference",
    "largest_p_holm",
]
_CELL = ["row", "experiment", "test_dataset", "metric"]
_NAMES = {"dice": "DICE", "auprc": "AUPRC"}
_TEST = (
    "difference above 0 and Holm-corrected p < 0.05; two-sided paired "
    "permutation test over test volumes, 10,000 resamples"
)


def tests_of_table(significance: pd.DataFrame | None, spec: TableSpec) -> pd.DataFrame:
    """The tests between two rows of one table, checked, in the order of the table.

    Args:
        significance: a frame with :data:`uad.core.columns.SIGNIFICANCE`, differences in percentage
            points, as from :func:`uad.evaluate.test_claims`. None or an empty frame:
            nothing was tested.
        spec: the table; tests of other rows and columns are left out.

    Raises:
        DataError: a column is missing, a unit is not known, or a test is listed twice.
    """
    if significance is None or significance.empty:
        return pd.DataFrame(columns=SIGNIFICANCE)
    missing = [c for c in SIGNIFICANCE if c not in significance.columns]
    if missing:
        raise DataError(f"significance of {spec.name}: no column {', '.join(missing)}.")
    for column, known in (("unit", {"volumes", "folds"}), ("metric", set(_NAMES))):
        unknown = sorted(set(significance[column].astype(str)) - known)
        if unknown:
            text = f"unknown {column} {', '.join(unknown)}"
            raise DataError(f"significance of {spec.name}: {text}.")
    key = [*_CELL, "against", "unit"]
    twice = significance.duplicated(key)
    if twice.any():
        which = "/".join(map(str, significance.loc[twice, key].iloc[0]))
        raise DataError(f"significance of {spec.name}: {which} is listed twice.")
    rows = {row: number for number, row in enumerate(spec.rows)}
    columns = {(c.experiment, c.test_dataset): i for i, c in enumerate(spec.columns)}
    metrics = {metric: number for number, metric in enumerate(_NAMES)}
    orders = [
        (rows[t.row], columns[t.experiment, t.test_dataset], metrics[t.metric], rows[t.against], i)
        for i, t in enumerate(significance.itertuples(index=False))
        if {t.row, t.against} <= set(rows) and (t.experiment, t.test_dataset) in columns
    ]
    places = [order[-1] for order in sorted(orders)]
    return significance[SIGNIFICANCE].iloc[places].reset_index(drop=True)


def add_marks(
    summary: pd.DataFrame, spec: TableSpec, significance: pd.DataFrame | None
) -> pd.DataFrame:
    """Add :data:`MARK_COLUMNS` to the summary of a table.

    A cell is significant when, over volumes, its row is better (difference above 0) than
    every row it was tested against in that column and metric, each with a Holm-corrected
    p value below :data:`LEVEL`.
    """
    tests = tests_of_table(significance, spec)
    tests = tests[tests["unit"] == "volumes"]
    found = dict(iter(tests.groupby(_CELL)))
    records = []
    for record in summary.itertuples(index=False):
        cell = found.get((record.row, record.experiment, record.test_dataset, record.metric))
        if cell is None:
            records.append(["not tested", "none", 0, float("nan"), float("nan")])
            continue
        better = (cell["difference"] > 0) & (cell["p_holm"] < LEVEL)
        # A test without a p value is the worst that can be: max() would overlook it.
        largest = float("nan") if cell["p_holm"].isna().any() else float(cell["p_holm"].max())
        records.append(
            [
                "yes" if better.all() else "no",
                "; ".join(cell["against"]),
                int(cell["n"].min()),
                float(cell["difference"].min(skipna=False)),
                largest,
            ]
        )
    marks = pd.DataFrame(records, columns=MARK_COLUMNS, index=summary.index)
    return pd.concat([summary.drop(columns=MARK_COLUMNS, errors="ignore"), marks], axis=1)


def was_tested(summary: pd.DataFrame) -> bool:
    """Whether any cell of a summary was tested."""
    return "significant" in summary.columns and bool((summary["significant"] != "not tested").any())


def significance_notes(
    summary: pd.DataFrame, spec: TableSpec, significance: pd.DataFrame | None, phantom: bool
) -> list[str]:
    """Footnotes: what the mark means, what is not supported, what could not be shown."""
    if not was_tested(summary):
        return []
    tested = summary[summary["significant"] != "not tested"]
    pairs = dict.fromkeys(
        f"{spec.label(row)} against {_listed(spec.label(name) for name in against.split('; '))}"
        for row, against in zip(tested["row"], tested["tested_against"], strict=True)
    )
    sizes = []
    for column in spec.columns:
        part = tested[
            (tested["experiment"] == column.experiment)
            & (tested["test_dataset"] == column.test_dataset)
        ]["n_pairs"]
        if len(part):
            low, high = part.min(), part.max()
            sizes.append(f"{column.label} n = {low if low == high else f'{low} to {high}'}")
    earned = "" if (tested["significant"] == "yes").any() else " No value has earned it."
    notes = [
        f"{MARK} Better than every row that it was tested against in its column and metric "
        f"({_TEST}).{earned} Tested: {'; '.join(pairs)} (volumes: {', '.join(sizes)}). The test "
        "does not know of the spread between trainings. Where the paper states significance, it "
        "names no test."
    ]
    tests = tests_of_table(significance, spec)
    if phantom:
        notes.append(
            f"These are phantom data: {MARK} and its absence say nothing about methods, and "
            "nothing published is judged."
        )
    else:
        notes += _claims(summary, spec, tests)
    return [*notes, *_limits(spec, tests)]


def _claims(summary: pd.DataFrame, spec: TableSpec, tests: pd.DataFrame) -> Iterable[str]:
    """Which published differences hold here: those of a row published as higher."""
    published = summary.set_index(_CELL)["published_mean"]
    columns = {(c.experiment, c.test_dataset): c.label for c in spec.columns}
    failed, other, unknown, held = [], [], [], 0
    for test in tests[tests["unit"] == "volumes"].itertuples(index=False):
        place = (test.experiment, test.test_dataset, test.metric)
        lead = published[(test.row, *place)] - published[(test.against, *place)]
        supported = test.difference > 0 and test.p_holm < LEVEL
        text = (
            f"{spec.label(test.row)} over {spec.label(test.against)} on "
            f"{columns[place[:2]]}, {_NAMES[test.metric]} "
            + (f"({signed(test.difference)}, {_p(test.p_holm)})" if test.n else "(no pairs)")
        )
        if lead != lead:
            unknown.append(text)
        elif lead <= 0:
            other.append(text)
        elif supported:
            held += 1
        else:
            failed.append(text)
    total = held + len(failed)
    if failed:
        yield (
            f"Published as higher, but not supported by this run ({len(failed)} of {total}; "
            f"difference in percentage points, Holm-corrected p): {'; '.join(failed)}."
        )
    elif total:
        yield (
            "This run supports the tested difference that is published as higher."
            if total == 1
            else f"This run supports all {total} tested differences that are published as higher."
        )
    if other:
        yield f"Tested, but not published as higher: {'; '.join(other)}."
    if unknown:
        yield f"Tested, no published numbers: {'; '.join(unknown)}."


def _limits(spec: TableSpec, tests: pd.DataFrame) -> Iterable[str]:
    """Where the number of pairs is too small for any difference to be significant."""
    columns = {(c.experiment, c.test_dataset): c.label for c in spec.columns}
    reach: dict[str, dict[str, None]] = {}
    for place, family in tests[tests["n"] > 0].groupby(
        ["unit", "experiment", "test_dataset", "metric"], sort=False
    ):
        # Holm's first step multiplies the smallest p of a family by the size of the family.
        least = len(family) * float(family["smallest_p"].min())
        if least >= LEVEL:
            n = int(family["n"].max())
            text = (
                f"{columns[place[1:3]]}: {n} {place[0]}, corrected p at least {min(least, 1):.3g}"
            )
            reach.setdefault(place[0], {})[text] = None
    for unit, where in reach.items():
        yield f"Over {unit} no difference can be significant, however large ({'; '.join(where)})."


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _p(p: float) -> str:
    if p != p:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3g}"
