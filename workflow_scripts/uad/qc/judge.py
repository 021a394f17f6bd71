"""Robust outliers: who is far from the middle of his data set, by the modified z-score."""

from __future__ import annotations

import numpy as np

#: Scans below which a median and its spread say too little to call one of them an outlier; the
#: smallest samples for which Iglewicz and Hoaglin tried their threshold.
MIN_SCANS = 10
#: Relative difference that is no more than the last digits of a measure, which has six.
RESOLUTION = 1e-5
SIDES = ("low", "high", "both")


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

    Raises:
        ValueError: an unknown side.
    """
    if side not in SIDES:
        raise ValueError(f"unknown side {side!r}: {', '.join(SIDES)}")
    values = np.asarray(values, dtype=np.float64)
    if np.count_nonzero(~np.isnan(values)) < MIN_SCANS:
        return np.zeros(values.shape, dtype=bool)
    if logarithmic:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(np.isnan(values), np.nan, np.log(np.maximum(values, 0)))
    scores = modified_z_scores(values)
    low, high = scores < -threshold, scores > threshold
    return {"low": low, "high": high, "both": low | high}[side]
