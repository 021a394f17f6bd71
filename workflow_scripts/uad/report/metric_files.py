"""The files that tables are made of: metrics of every volume, and the published values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from uad.core.errors import DataError
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

    Raises:
        DataError: as :func:`check_metrics`, or no file is given.
    """
    frames = [read_tsv(path) for path in sorted({Path(path) for path in paths})]
    if not frames:
        raise DataError("No files of metrics were given.")
    metrics = pd.concat(frames, ignore_index=True)
    check_metrics(metrics, "metrics")
    return metrics.sort_values(KEYS, kind="stable", ignore_index=True)


def check_metrics(metrics: pd.DataFrame, where: str, keys: list[str] = KEYS) -> None:
    """Refuse a frame of metrics that would give wrong tables: a :class:`DataError`."""
    if missing := [column for column in (*keys, *METRICS) if column not in metrics.columns]:
        raise DataError(f"{where}: the columns {', '.join(missing)} are missing.")
    if metrics.empty:
        raise DataError(f"{where}: has no rows. No test volume was evaluated.")
    for metric in METRICS:
        values = pd.to_numeric(metrics[metric], errors="coerce")
        bad = (values.isna() & metrics[metric].notna()) | (values < 0) | (values > 1)
        if bad.any():
            record = metrics[bad].iloc[0]
            raise DataError(
                f"{where}: {metric} of {record['subject']} is {record[metric]}, expected a number "
                "from 0 to 1."
            )
    check_unique(metrics, keys, where)


def check_unique(frame: pd.DataFrame, key: list[str], where: str) -> None:
    """Refuse a frame that has two rows of the same key."""
    twice = frame.duplicated(key)
    if twice.any():
        which = "/".join(map(str, frame.loc[twice, key].iloc[0]))
        raise DataError(f"{where}: {which} is listed twice.")


def fold_means(metrics: pd.DataFrame) -> pd.Series:
    """The mean over the volumes of each fold in percent, by method, test set, metric and fold."""
    frame = metrics.rename(columns={"method": "row"})
    means = 100 * frame.groupby([*CELL[:3], "fold"])[[*METRICS]].mean()
    return means.rename_axis(columns="metric").stack().reorder_levels([*CELL, "fold"])


def read_published(path: PathLike) -> pd.DataFrame:
    """Read the published values (``resources/published/tables.csv``), in percent."""
    frame = pd.read_csv(path)
    check_unique(frame, ["table", *CELL], str(path))
    return frame


def published_for(published: pd.DataFrame, table: str) -> pd.DataFrame:
    """The published ``mean``, ``std`` and ``source`` of each cell, by :data:`CELL`.

    Of a value that several tables print, the one of the same table is taken, else the first.
    """
    here_first = published.sort_values(
        "table", key=lambda names: names != table, kind="stable", ignore_index=True
    )
    return here_first.drop_duplicates(CELL).set_index(CELL)[["mean", "std", "source"]]
