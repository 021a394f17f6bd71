"""Which methods of a table reconstruct too poorly to be ranked by an SSIM-based score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from uad.core.files import read_json
from uad.evaluate.readiness import LIMIT
from uad.report.metric_files import CELL
from uad.report.render import PathLike

#: The column of the tables.
COLUMN = "mean_healthy_dssim"


def collect_readiness(paths: Iterable[PathLike]) -> pd.Series:
    """Mean over folds of the DSSIM in healthy tissue of test volumes, by row and test set.

    The files are those of rule ``score_volumes``; NaN for methods that reconstruct nothing.
    """
    found = []
    for content in map(read_json, paths):
        dssim = content["roles"].get("test", {}).get("dssim")
        place = content["method"], content["experiment"], content["test_dataset"]
        found.append([*place, float("nan") if dssim is None else dssim])
    frame = pd.DataFrame(found, columns=[*CELL[:3], COLUMN]).astype({COLUMN: float})
    return frame.groupby(CELL[:3])[COLUMN].mean()


def unready(
    summary: pd.DataFrame, label: Callable[[str], str], places: Mapping[tuple[str, str], str]
) -> list[str]:
    """A sentence for each row of a table's summary that is above the limit on some test set.

    ``places`` names the test sets (experiment, test set).
    """
    if COLUMN not in summary:
        return []
    shown = summary.drop_duplicates(CELL[:3]).astype({COLUMN: float})
    above = shown[shown[COLUMN].round(2) > LIMIT]
    return [
        f"{label(row)}: not trained far enough to rank by an SSIM-based score (healthy DSSIM "
        f"{_listed(part, places)}; limit {_short(LIMIT)}, docs/positive-control.md)."
        for row, part in above.groupby("row", sort=False)
    ]


def _listed(part: pd.DataFrame, places: Mapping[tuple[str, str], str]) -> str:
    """``.46``, or with several test sets ``.46 on BraTS21 (T2), .31 on MSLUB (T2)``."""
    several = len(places) > 1
    return ", ".join(
        _short(value) + (f" on {places[experiment, test]}" if several else "")
        for experiment, test, value in part[[*CELL[1:3], COLUMN]].itertuples(index=False)
    )


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
