"""The published values in the repository are those of the paper."""

from pathlib import Path

import numpy as np
import pytest

from uad.report.metric_files import CELL, published_for, read_published

PATH = Path(__file__).parents[1] / "resources" / "published" / "tables.csv"

T2 = [("cross_T2", "brats21"), ("cross_T2", "mslub")]
FLAIR, T1CE = [("intra_FLAIR", "brats21")], [("intra_T1CE", "brats21")]

# Typed from the paper's text, independently of the file under test:
# columns of a table, then for each row Dice and AUPRC of every column.
TABLES = {
    "table1": (
        T2,
        """
        thresh     19.69       20.27       6.21        4.23
        ae         32.87±1.25  31.07±1.75  7.10±0.68   5.58±0.26
        vae        31.11±1.50  28.80±1.92  6.89±0.09   5.00±0.40
        svae       33.32±0.14  33.14±0.20  5.76±0.44   5.04±0.13
        dae        37.05±1.42  44.99±1.72  3.56±0.91   5.35±0.45
        f-anogan   24.16±2.94  22.05±3.05  4.18±1.18   4.01±0.90
        ddpm       40.67±1.21  49.78±1.02  6.42±1.60   7.44±0.52
        mddpm      51.31±0.66  57.09±0.94  8.08±0.70   9.06±0.62
        pddpm      49.41±0.66  54.76±0.83  10.65±1.05  10.37±0.51
        pddpm-iqa  59.45±0.37  62.99±0.37  12.93±0.67  11.51±0.50
        """,
    ),
    "table2": (
        FLAIR + T1CE,
        """
        dae        29.12±2.78  28.52±2.91  36.52±0.77  42.10±0.82
        ddpm       21.13±2.35  19.89±4.06  30.98±2.57  34.69±2.77
        pddpm      42.63±2.51  46.00±2.75  43.85±2.11  49.06±2.69
        pddpm-iqa  55.77±1.78  58.27±2.07  46.16±2.09  47.55±2.66
        """,
    ),
    "table3": (
        FLAIR,
        """
        pddpm       42.63±2.51  46.00±2.75
        pddpm-ssim  47.89±1.51  46.14±1.56
        pddpm-fq    50.15±1.08  49.34±1.04
        pddpm-iqa   55.77±1.78  58.27±2.07
        """,
    ),
    "table4": (
        T2 + FLAIR + T1CE,
        """
        ddpm      40.67 49.78  6.42  7.44   21.13 19.89  30.98 34.69
        ddpm-iqa  62.02 65.53  11.93 11.17  44.98 48.34  45.40 47.36
        """,
    ),
}
ROMAN = {"table1": "I", "table2": "II", "table3": "III", "table4": "IV"}


def typed():
    """Mean and std (NaN without one) of every value, keyed as the file is."""
    values = {}
    for table, (columns, text) in TABLES.items():
        places = [(*place, metric) for place in columns for metric in ("dice", "auprc")]
        for method, *cells in map(str.split, text.strip().splitlines()):
            for place, cell in zip(places, cells, strict=True):
                mean, _, std = cell.partition("±")
                values[table, method, *place] = float(mean), float(std or "nan")
    return values


@pytest.fixture(scope="module")
def published():
    return read_published(PATH)


def test_every_value_with_the_table_as_its_source(published):
    frame, expected = published.set_index(["table", *CELL]), typed()
    assert len(frame) == 80 and set(frame.index) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(
            frame.loc[key, ["mean", "std"]].astype(float), value, str(key)
        )
    for row in published.itertuples():
        assert row.source == f"arXiv 2408.08228v1, Table {ROMAN[row.table]}"


@pytest.mark.parametrize(
    ("experiment", "dataset", "baseline", "gain"),
    [
        ("cross_T2", "brats21", "mddpm", 15.86),
        ("cross_T2", "mslub", "pddpm", 21.41),
        ("intra_FLAIR", "brats21", "pddpm", 30.82),
        ("intra_T1CE", "brats21", "pddpm", 5.27),
    ],
)
def test_headline_gains(published, experiment, dataset, baseline, gain):
    mean = published_for(published, "table1")["mean"]
    ours, theirs = (
        mean[(method, experiment, dataset, "dice")] for method in ("pddpm-iqa", baseline)
    )
    assert round(100 * (ours - theirs) / theirs, 2) == gain


def test_a_value_is_looked_up_in_the_same_table_first_then_elsewhere_with_its_source(published):
    key = ("ddpm", "cross_T2", "brats21", "dice")
    values = {table: published_for(published, table) for table in ROMAN}
    assert list(values["table1"].loc[key]) == [40.67, 1.21, "arXiv 2408.08228v1, Table I"]
    mean, std, source = values["table4"].loc[key]
    assert (mean, source) == (40.67, "arXiv 2408.08228v1, Table IV") and np.isnan(std)
    elsewhere = values["table3"].loc[("dae", "intra_FLAIR", "brats21", "dice")]
    assert list(elsewhere) == [29.12, 2.78, "arXiv 2408.08228v1, Table II"]
    assert ("vae", "intra_FLAIR", "brats21", "dice") not in values["table3"].index
