"""The files that tables are made of: metrics of every volume, and the published values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from uad.core.files import read_tsv
from uad.report.render import PathLike

#: Metric -> its heading.
METRICS = {"dice": "DICE [%]", "auprc": "AUPRC [%]"}
KEYS = ["experiment", "method", "fold", "test_dataset", "subject"]
#: What identifies a number of a table.
CELL = ["row", "experiment", "test_dataset", "metric"]


def short(metric: str) -> str:
    """``DICE``: the name of a metric without its unit."""
    return METRICS[metric].split()[0]


def collect_metrics(paths: Iterable[PathLike]) -> pd.DataFrame:
    """Read per-volume metrics of many cells into one frame, sorted by their keys.

    The files have at least :data:`KEYS`, dice and auprc (in [0, 1], ``n/a`` where not defined).
    """
    frames = [read_tsv(path) for path in sorted({Path(path) for path in paths})]
    metrics = pd.concat(frames, ignore_index=True)
    return metrics.sort_values(KEYS, kind="stable", ignore_index=True)


def fold_means(metrics: pd.DataFrame) -> pd.Series:
    """The mean over the volumes of each fold in percent, by method, test set, metric and fold."""
    frame = metrics.rename(columns={"method": "row"})
    means = 100 * frame.groupby([*CELL[:3], "fold"])[[*METRICS]].mean()
    return means.rename_axis(columns="metric").stack().reorder_levels([*CELL, "fold"])


def read_published(path: PathLike) -> pd.DataFrame:
    """Read the published values (``resources/published/tables.csv``), in percent."""
    return pd.read_csv(path)


def published_for(published: pd.DataFrame, table: str) -> pd.DataFrame:
    """The published ``mean``, ``std`` and ``source`` of each cell, by :data:`CELL`.

    Of a value that several tables print, the one of the same table is taken, else the first.
    """
    here_first = published.sort_values(
        "table", key=lambda names: names != table, kind="stable", ignore_index=True
    )
    return here_first.drop_duplicates(CELL).set_index(CELL)[["mean", "std", "source"]]
