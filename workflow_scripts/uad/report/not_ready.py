"""Which methods of a table reconstruct too poorly to be ranked by an SSIM-based score."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


def unready(summary: pd.DataFrame, label: Callable[[str], str]) -> list[str]:
    """One sentence that names the rows of a summary above the limit on some test set, if any."""
    if COLUMN not in summary:
        return []
    shown = summary.drop_duplicates(CELL[:3]).astype({COLUMN: float})
    above = shown[shown[COLUMN].round(2) > LIMIT]
    rows = [
        f"{label(row)} {' to '.join(dict.fromkeys(map(_short, (values.min(), values.max()))))}"
        for row, values in above.groupby("row", sort=False)[COLUMN]
    ]
    return rows and [
        f"Not trained far enough to rank by an SSIM-based score (healthy DSSIM above "
        f"{_short(LIMIT)}, docs/positive-control.md): {', '.join(rows)}."
    ]


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
