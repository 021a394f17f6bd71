"""The files that tables are made of: metrics of every volume, and the published values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from uad.core.errors import DataError
from uad.core.files import read_tsv
from uad.report.render import PathLike

#: Metric -> its heading.
METRICS = {"dice": "DICE [%]", "auprc": "AUPRC [%]"}
KEYS = ["experiment", "method", "fold", "test_dataset", "subject"]
PUBLISHED_COLUMNS = "table row experiment test_dataset metric mean std source".split()


def collect_metrics(paths: Iterable[PathLike]) -> pd.DataFrame:
    """Read per-volume metrics of many cells into one frame, sorted by their keys.

    Args:
        paths: files ``.../<experiment>/<method>/fold-<k>/<test_dataset>.tsv`` with at
            least :data:`KEYS`, dice and auprc (in [0, 1], ``n/a`` where not defined).

    Raises:
        DataError: a file is missing, empty, lacks a column, has a value outside [0, 1],
            lists a volume twice, or says something else than its own path.
    """
    frames = [_read_metrics(path) for path in sorted({Path(path) for path in paths})]
    if not frames:
        raise DataError("No files of metrics were given.")
    metrics = pd.concat(frames, ignore_index=True)
    return metrics.sort_values(KEYS, kind="stable", ignore_index=True)


def _read_metrics(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Run the evaluation of this cell first.")
    try:
        frame = read_tsv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a table of metrics ({error}).") from error
    check_metrics(frame, str(path))
    found = re.search(r"([^/]+)/([^/]+)/fold-(\d+)/([^/]+)\.tsv$", path.as_posix())
    if found:
        said = frame[KEYS[:4]].astype(str)
        wrong = said.ne(list(found.groups())).any(axis=1)
        if wrong.any():
            raise DataError(
                f"{path}: a row says {'/'.join(said[wrong].iloc[0])}, the path says "
                f"{'/'.join(found.groups())}. Was the file moved? Make it again."
            )
    return frame


def check_metrics(metrics: pd.DataFrame, where: str) -> None:
    """Refuse a frame of metrics that would give wrong tables."""
    check_columns(metrics, [*KEYS, *METRICS], where)
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
    check_unique(metrics, KEYS, where)


def check_columns(frame: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    """Refuse a frame that lacks a column."""
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise DataError(f"{where}: the columns {', '.join(missing)} are missing.")


def check_unique(frame: pd.DataFrame, key: list[str], where: str) -> None:
    """Refuse a frame that has two rows of the same key."""
    twice = frame.duplicated(key)
    if twice.any():
        which = "/".join(map(str, frame.loc[twice, key].iloc[0]))
        raise DataError(f"{where}: {which} is listed twice.")


def read_published(path: PathLike) -> pd.DataFrame:
    """Read the published values (``resources/published/tables.csv``), in percent."""
    frame = pd.read_csv(path, dtype={"table": str, "row": str, "source": str})
    check_columns(frame, PUBLISHED_COLUMNS, str(path))
    check_unique(frame, PUBLISHED_COLUMNS[:5], str(path))
    return frame


def published_value(
    published: pd.DataFrame,
    table: str,
    *cell: str,
) -> tuple[float, float, str]:
    """Look up one published value: in the same table first, then in any other.

    Args:
        published: from :func:`read_published`.
        table: key of the table.
        cell: method, experiment, test set and metric.

    Returns:
        Mean and standard deviation in percent (NaN where the paper gives none) and the
        source, which names the table that the value was found in (``none`` if nowhere).
    """
    found = published[(published[PUBLISHED_COLUMNS[1:5]] == list(cell)).all(axis=1)]
    if found.empty:
        return float("nan"), float("nan"), "none"
    same = found[found["table"] == table]
    best = (same if len(same) else found).iloc[0]
    return float(best["mean"]), float(best["std"]), str(best["source"])
