"""Which values of a table are significantly better, and which published differences hold.

The tests themselves are made in :mod:`uad.evaluate`; here their results become a mark
per cell and sentences below a table.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from uad.core.columns import SIGNIFICANCE
from uad.core.errors import DataError
from uad.report.metric_files import METRICS, check_columns, check_unique
from uad.report.render import signed
from uad.report.table_spec import TableSpec, part_of

#: A corrected p value below this is significant, as in the paper.
LEVEL = 0.05
MARK = "†"
#: What :func:`add_marks` says of each cell.
MARK_COLUMNS = "significant tested_against n_pairs smallest_difference largest_p_holm".split()
_CELL = ["row", "experiment", "test_dataset", "metric"]
_TEST = (
    "difference above 0 and Holm-corrected p < 0.05; two-sided paired "
    "permutation test over test volumes, 10,000 resamples"
)


def tests_of_table(significance: pd.DataFrame | None, spec: TableSpec) -> pd.DataFrame:
    """The tests between two methods of one table, checked, in the order of the table.

    Args:
        significance: a frame with :data:`uad.core.columns.SIGNIFICANCE`, differences in percentage
            points, as from :func:`uad.evaluate.test_claims`. None or an empty frame:
            nothing was tested.
        spec: the table; tests of other methods and columns are left out.

    Raises:
        DataError: a column is missing, a unit is not known, or a test is listed twice.
    """
    if significance is None or significance.empty:
        return pd.DataFrame(columns=SIGNIFICANCE)
    where = f"significance of {spec.name}"
    check_columns(significance, SIGNIFICANCE, where)
    for column, known in (("unit", {"volumes", "folds"}), ("metric", set(METRICS))):
        unknown = sorted(set(significance[column].astype(str)) - known)
        if unknown:
            raise DataError(f"{where}: unknown {column} {', '.join(unknown)}.")
    check_unique(significance, [*_CELL, "against", "unit"], where)
    methods = {method: number for number, method in enumerate(spec.methods)}
    columns = {place: number for number, place in enumerate(spec.places)}
    order = pd.DataFrame(
        {
            "row": significance["row"].map(methods),
            "column": [
                columns.get(place)
                for place in zip(
                    significance["experiment"], significance["test_dataset"], strict=True
                )
            ],
            "metric": significance["metric"].map(list(METRICS).index),
            "against": significance["against"].map(methods),
        },
        index=significance.index,
    ).dropna()
    order = order.sort_values(list(order), kind="stable")
    return significance.loc[order.index, SIGNIFICANCE].reset_index(drop=True)


def add_marks(
    summary: pd.DataFrame, spec: TableSpec, significance: pd.DataFrame | None
) -> pd.DataFrame:
    """Add :data:`MARK_COLUMNS` to the summary of a table.

    A cell is significant when, over volumes, its method is better (difference above 0) than
    every method it was tested against in that column and metric, each with a Holm-corrected
    p value below :data:`LEVEL`.
    """
    tests = tests_of_table(significance, spec)
    found = dict(iter(tests[tests["unit"] == "volumes"].groupby(_CELL)))
    records = []
    for place in summary[_CELL].itertuples(index=False, name=None):
        cell = found.get(place)
        if cell is None:
            records.append(["not tested", "none", 0, float("nan"), float("nan")])
            continue
        better = (cell["difference"] > 0) & (cell["p_holm"] < LEVEL)
        records.append(
            [
                "yes" if better.all() else "no",
                "; ".join(cell["against"]),
                int(cell["n"].min()),
                float(cell["difference"].min(skipna=False)),
                # a test without a p value is the worst that can be
                float(cell["p_holm"].max(skipna=False)),
            ]
        )
    marks = pd.DataFrame(records, columns=MARK_COLUMNS, index=summary.index)
    return pd.concat([summary, marks], axis=1)


def was_tested(summary: pd.DataFrame) -> bool:
    """Whether any cell of a summary was tested."""
    return bool((summary["significant"] != "not tested").any())


def significance_notes(
    summary: pd.DataFrame, spec: TableSpec, significance: pd.DataFrame | None, phantom: bool
) -> list[str]:
    """Footnotes: what the mark means, what is not supported, what could not be shown."""
    if not was_tested(summary):
        return []
    tested = summary[summary["significant"] != "not tested"]
    pairs = dict.fromkeys(
        f"{spec.label(method)} against {_listed(map(spec.label, against.split('; ')))}"
        for method, against in zip(tested["row"], tested["tested_against"], strict=True)
    )
    sizes = []
    for place, label in spec.places.items():
        numbers = set(part_of(tested, place)["n_pairs"])
        if numbers:
            low, high = min(numbers), max(numbers)
            sizes.append(f"{label} n = {low if low == high else f'{low} to {high}'}")
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
    """Which published differences hold here: those of a method published as higher."""
    published = summary.set_index(_CELL)["published_mean"]
    failed, other, unknown, held = [], [], [], 0
    for test in tests[tests["unit"] == "volumes"].itertuples(index=False):
        place = (test.experiment, test.test_dataset, test.metric)
        lead = published[(test.row, *place)] - published[(test.against, *place)]
        text = (
            f"{spec.label(test.row)} over {spec.label(test.against)} on "
            f"{spec.places[place[:2]]}, {METRICS[test.metric].split()[0]} "
            + (f"({signed(test.difference)}, {_p(test.p_holm)})" if test.n else "(no pairs)")
        )
        if lead != lead:
            unknown.append(text)
        elif lead <= 0:
            other.append(text)
        elif test.difference > 0 and test.p_holm < LEVEL:
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
    found: dict[str, dict[str, None]] = {}
    family = ["unit", "experiment", "test_dataset", "metric"]
    for (unit, *place, _), part in tests[tests["n"] > 0].groupby(family, sort=False):
        # Holm's first step multiplies the smallest p of a family by the size of the family.
        least = len(part) * float(part["smallest_p"].min())
        if least >= LEVEL:
            n = int(part["n"].max())
            text = (
                f"{spec.places[tuple(place)]}: {n} {unit}, corrected p at least {min(least, 1):.3g}"
            )
            found.setdefault(unit, {})[text] = None
    for unit, where in found.items():
        yield f"Over {unit} no difference can be significant, however large ({'; '.join(where)})."


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _p(p: float) -> str:
    if p != p:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3g}"
