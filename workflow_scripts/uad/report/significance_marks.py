"""Which values of a table are significantly better, and which published differences hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from uad.core.columns import SIGNIFICANCE
from uad.report.metric_files import CELL, check_unique, short
from uad.report.render import signed
from uad.report.table_spec import TableSpec

#: A corrected p value below this is significant, as in the paper.
LEVEL = 0.05
MARK = "†"
#: What :func:`add_marks` says of each cell: its value where the cell was not tested.
MARKS = {
    "significant": "not tested",
    "tested_against": "none",
    "n_pairs": 0,
    "smallest_difference": float("nan"),
    "largest_p_holm": float("nan"),
}


def tests_of_table(significance: pd.DataFrame | None, spec: TableSpec) -> pd.DataFrame:
    """The tests between two methods of one table, in the order of the table.

    They come from :func:`uad.evaluate.test_claims`, if any were made; those of other methods and
    columns are left out.
    """
    if significance is None or significance.empty:
        return pd.DataFrame(columns=SIGNIFICANCE)
    check_unique(significance, [*CELL, "against", "unit"], f"significance of {spec.name}")
    sides = (significance[CELL], significance[["against", *CELL[1:]]])
    row, against = (spec.cells.get_indexer(pd.MultiIndex.from_frame(side)) for side in sides)
    order = [place for place in np.lexsort((against, row)) if min(row[place], against[place]) >= 0]
    return significance.iloc[order][SIGNIFICANCE].reset_index(drop=True)


def add_marks(summary: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """Add :data:`MARKS` to the summary of a table, by the tests of :func:`tests_of_table`.

    A cell is significant when, over volumes, its method is better (difference above 0) than
    every method it was tested against in that column and metric, each with a Holm-corrected
    p value below :data:`LEVEL`.
    """
    volumes = tests[tests["unit"] == "volumes"]
    if volumes.empty:
        return summary.assign(**MARKS)
    better = (volumes["difference"] > 0) & (volumes["p_holm"] < LEVEL)
    marks = (
        volumes.assign(better=better.map({True: "yes", False: "no"}))
        .groupby(CELL)
        .agg(
            significant=("better", "min"),
            tested_against=("against", "; ".join),
            n_pairs=("n", "min"),
            # a test without a p value is the worst that can be
            smallest_difference=("difference", lambda values: values.min(skipna=False)),
            largest_p_holm=("p_holm", lambda values: values.max(skipna=False)),
        )
    )
    summary = summary.join(marks, on=CELL).fillna({k: MARKS[k] for k in list(MARKS)[:3]})
    return summary.astype({"n_pairs": int})


def test_facts(
    summary: pd.DataFrame, spec: TableSpec, significance: pd.DataFrame | None
) -> dict[str, Any]:
    """What ``texts/table.txt`` says of the tests; without any, only that none was made."""
    cells = summary[summary["significant"] != "not tested"]
    if cells.empty:
        return {"tested": False}
    pairs = [
        f"{spec.label(method)} against {_listed(map(spec.label, against.split('; ')))}"
        for method, against in zip(cells["row"], cells["tested_against"], strict=True)
    ]
    sizes = []
    for place, pairs_there in cells.groupby(CELL[1:3], sort=False)["n_pairs"]:
        numbers = dict.fromkeys(map(str, (pairs_there.min(), pairs_there.max())))
        sizes.append(f"{spec.places[place]} n = {' to '.join(numbers)}")
    tests = tests_of_table(significance, spec)
    return {
        "tested": True,
        "earned": bool((cells["significant"] == "yes").any()),
        "pairs": list(dict.fromkeys(pairs)),
        "sizes_tested": sizes,
        "limits": _limits(spec, tests),
        **_claims(summary, spec, tests),
    }


def _claims(summary: pd.DataFrame, spec: TableSpec, tests: pd.DataFrame) -> dict[str, list[str]]:
    """Tested differences that are published as higher (``held``, ``failed``) or not."""
    published = summary.set_index(CELL)["published_mean"]
    found: dict[str, list[str]] = {key: [] for key in ("held", "failed", "other", "unknown")}
    for test in tests[tests["unit"] == "volumes"].itertuples(index=False):
        place = (test.experiment, test.test_dataset, test.metric)
        lead = published[(test.row, *place)] - published[(test.against, *place)]
        result = f"{signed(test.difference)}, {_p(test.p_holm)}" if test.n else "no pairs"
        text = (
            f"{spec.label(test.row)} over {spec.label(test.against)} on "
            f"{spec.places[place[:2]]}, {short(test.metric)} ({result})"
        )
        if lead > 0:
            kind = "held" if test.difference > 0 and test.p_holm < LEVEL else "failed"
        else:
            kind = "other" if lead <= 0 else "unknown"
        found[kind].append(text)
    return found


def _limits(spec: TableSpec, tests: pd.DataFrame) -> dict[str, list[str]]:
    """Where the number of pairs is too small for any difference to be significant, by unit."""
    found: dict[str, dict[str, None]] = {}
    family = ["unit", *CELL[1:]]
    for (unit, *place, _), part in tests[tests["n"] > 0].groupby(family, sort=False):
        # Holm's first step multiplies the smallest p of a family by the size of the family.
        least = len(part) * float(part["smallest_p"].min())
        if least >= LEVEL:
            pairs = f"{spec.places[tuple(place)]}: {int(part['n'].max())} {unit}"
            text = f"{pairs}, corrected p at least {min(least, 1):.3g}"
            found.setdefault(unit, {})[text] = None
    return {unit: list(texts) for unit, texts in found.items()}


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _p(p: float) -> str:
    if p != p:
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3g}"
