"""Which values of a table are significantly better, and which published differences hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from uad.core.columns import SIGNIFICANCE
from uad.report.metric_files import CELL, short
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
    """The tests over volumes between two methods of one table, in the order of the table.

    They come from :func:`uad.evaluate.test_claims`, if any were made; those of other methods and
    columns are left out.
    """
    if significance is None or significance.empty:
        return pd.DataFrame(columns=SIGNIFICANCE)
    tests = significance[significance["unit"] == "volumes"]
    sides = (tests[CELL], tests[["against", *CELL[1:]]])
    row, against = (spec.cells.get_indexer(pd.MultiIndex.from_frame(side)) for side in sides)
    order = [place for place in np.lexsort((against, row)) if min(row[place], against[place]) >= 0]
    return tests.iloc[order][SIGNIFICANCE].reset_index(drop=True)


def _held(tests: pd.DataFrame) -> pd.Series:
    """Whether the first method of a test is better, beyond chance."""
    return (tests["difference"] > 0) & (tests["p_holm"] < LEVEL)


def add_marks(summary: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """Add :data:`MARKS` to the summary of a table, by the tests of :func:`tests_of_table`.

    A cell is significant when its method is better (difference above 0) than every method it was
    tested against in that column and metric, each with a Holm-corrected p value below
    :data:`LEVEL`.
    """
    if tests.empty:
        return summary.assign(**MARKS)
    marks = (
        tests.assign(better=_held(tests).map({True: "yes", False: "no"}))
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


def test_facts(summary: pd.DataFrame, spec: TableSpec, tests: pd.DataFrame) -> dict[str, Any]:
    """What ``texts/table.txt`` says of the tests of :func:`tests_of_table`.

    ``pairs`` that were tested; how many of them are published as higher (``claimed``), and which
    of those do not hold (``failed``); test sets that are too small for any mark (``too_small``).
    """
    known = summary.set_index(CELL)["published_mean"]
    pairs, claimed, failed = {}, 0, []
    for test, held in zip(tests.itertuples(index=False), _held(tests), strict=True):
        place, against = (test.experiment, test.test_dataset), spec.label(test.against)
        pairs.setdefault(spec.label(test.row), {})[against] = None
        if known[test.row, *place, test.metric] > known[test.against, *place, test.metric]:
            claimed += 1
            if not held:
                failed.append(
                    f"{spec.label(test.row)} over {against} on {spec.places[place]}, "
                    f"{short(test.metric)} ({signed(test.difference)}, p = {test.p_holm:.2g})"
                )
    # Holm's first step multiplies the smallest p of a family by the size of the family
    least = tests.groupby(CELL[1:], sort=False)["smallest_p"].agg(lambda p: p.min() * len(p))
    too_small = [spec.places[place[:2]] for place, p in least.items() if p >= LEVEL]
    return {
        "pairs": [f"{row} against {' and '.join(others)}" for row, others in pairs.items()],
        "claimed": claimed,
        "failed": failed,
        "too_small": list(dict.fromkeys(too_small)),
    }
