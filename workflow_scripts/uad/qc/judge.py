"""Flags of scans that are far from the middle of their data set, and counts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.data.layouts import bids_label
from uad.qc.measure import MEASURES, NAMES, SEPARATOR

if TYPE_CHECKING:
    import pandas as pd

#: Scans below which a median and its spread say too little to call one of them an outlier; the
#: smallest samples for which Iglewicz and Hoaglin tried their threshold.
MIN_SCANS = 10
#: Relative difference that is no more than the last digits of a measure, which has six.
RESOLUTION = 1e-5


def modified_z_scores(values: np.ndarray) -> np.ndarray:
    """Modified z-scores, 0.6745 (x - median) / MAD (Iglewicz and Hoaglin 1993, p. 11).

    MAD is the median absolute deviation; 0.6745 makes the score of normal data that of
    (x - mean) / standard deviation. Where MAD is 0 (half of the values are equal) the mean
    absolute deviation times 1.2533 stands in, as those authors propose.

    Args:
        values: ``(N,)``, any unit; NaN: not measured.

    Returns:
        ``(N,)``: NaN where the value is NaN; 0 for all if they are equal up to
        :data:`RESOLUTION`; infinite where the value is infinite and the others are not.
    """
    values = np.asarray(values, dtype=np.float64)
    scores = np.full(values.shape, np.nan)
    known = ~np.isnan(values)
    if not known.any():
        return scores
    finite = np.isfinite(values)
    if not finite.any():
        scores[known] = 0.0
        return scores
    middle = float(np.median(values[finite]))
    away = values - middle
    away[np.abs(away) <= RESOLUTION * max(abs(middle), np.finfo(float).tiny)] = 0.0
    spread = float(np.median(np.abs(away[finite]))) / 0.6745
    if spread == 0:
        spread = float(np.mean(np.abs(away[finite]))) * np.sqrt(np.pi / 2)
    scores[known] = 0.0
    moved = known & (away != 0)
    scores[moved] = away[moved] / spread if spread else away[moved]
    return scores


def outliers(
    values: np.ndarray, threshold: float = 3.5, *, side: str = "both", logarithmic: bool = False
) -> np.ndarray:
    """Which values are outliers among the others.

    Args:
        values: ``(N,)``; NaN: not measured, and never an outlier.
        threshold: of the modified z-score; 3.5 is what Iglewicz and Hoaglin recommend.
        side: ``low``, ``high`` or ``both``: which deviation is a fault.
        logarithmic: judge the logarithm, for volumes and brightness, whose spread grows with
            their size; 0 is then far below all others.

    Returns:
        ``(N,)`` bool; all false below :data:`MIN_SCANS` measured values.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.count_nonzero(~np.isnan(values)) < MIN_SCANS:
        return np.zeros(values.shape, dtype=bool)
    if logarithmic:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(np.isnan(values), np.nan, np.log(np.maximum(values, 0)))
    scores = modified_z_scores(values)
    low, high = scores < -threshold, scores > threshold
    return {"low": low, "high": high, "both": low | high}[side]


def add_flags(table: pd.DataFrame, threshold: float = 3.5) -> pd.DataFrame:
    """Flag the outliers, among the scans of one modality and data set.

    Args:
        table: rows of :func:`measure_modality`, one data set, any number of modalities.
        threshold: of the modified z-score.

    Returns:
        The table with two more columns: ``flags`` (names of measures) and ``why`` (for each
        the value and the data set's median); empty where there are none.
    """
    flags: dict[Any, list[str]] = {index: [] for index in table.index}
    why: dict[Any, list[str]] = {index: [] for index in table.index}
    for _, part in table.groupby("modality", sort=False):
        for measure in (m for m in MEASURES if m.side is not None):
            values = part[measure.name].to_numpy(dtype=np.float64)
            hits = outliers(values, threshold, side=measure.side, logarithmic=measure.logarithmic)
            for index, value in zip(part.index[hits], values[hits], strict=True):
                flags[index].append(measure.name)
                middle = np.nanmedian(values)
                unit = f" {measure.unit}" if measure.unit else ""
                why[index].append(f"{measure.label} {value:.4g}{unit} (median {middle:.4g})")
    return table.assign(
        flags=[SEPARATOR.join(flags[index]) for index in table.index],
        why=[SEPARATOR.join(why[index]) for index in table.index],
    )


def medians(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Median of each measure by modality, six digits; what was not measured is left out."""
    found = {}
    for modality, part in table.groupby("modality", sort=False):
        middles = part[list(NAMES)].astype(float).median().dropna()
        found[str(modality)] = {name: float(f"{value:.6g}") for name, value in middles.items()}
    return found


def summarise(
    tables: Mapping[str, pd.DataFrame], decisions: Iterable[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Counts for the report, a row per data set and modality.

    Args:
        tables: flagged tables by data set.
        decisions: rows of a decision file, as plain data; ``*``: all scans of the subject.

    Returns:
        ``dataset``, ``modality``, ``scans``, ``judged`` (whether there were enough scans to flag
        any), ``flagged`` and ``warned`` (scans), verdicts ``keep`` and ``unsure``, ``by_measure``
        (flagged scans by measure) and ``medians``.
    """
    given = {
        (row["dataset"], bids_label(row["subject"]), row["modality"]): row["verdict"]
        for row in decisions
    }
    rows = []
    for dataset, table in tables.items():
        middles = medians(table)
        for modality, part in table.groupby("modality", sort=False):
            verdicts = [
                given.get((dataset, subject, modality)) or given.get((dataset, subject, "*"))
                for subject in part["subject"]
            ]
            names = [name for flags in part["flags"] for name in flags.split(SEPARATOR)]
            rows.append(
                {
                    "dataset": dataset,
                    "modality": str(modality),
                    "scans": len(part),
                    "judged": len(part) >= MIN_SCANS,
                    "flagged": int((part["flags"] != "").sum()),
                    "warned": int((part["warnings"] != "").sum()),
                    "keep": verdicts.count("keep"),
                    "unsure": verdicts.count("unsure"),
                    "by_measure": {n: names.count(n) for n in NAMES if n in names},
                    "medians": middles[str(modality)],
                }
            )
    return rows
