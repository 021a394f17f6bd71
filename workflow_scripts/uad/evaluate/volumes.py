"""What a volume's anomaly map is worth: at the threshold that was searched, and at all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.evaluate.metrics import (
    Ranked,
    average_precision,
    binary,
    check_same_shape,
    dice,
    split_scores,
)
from uad.evaluate.postprocessing import remove_small_components

if TYPE_CHECKING:
    import pandas as pd


def predict(scores: np.ndarray, threshold: float, component_max_size: int) -> np.ndarray:
    """The voxels that are called lesion: above the threshold, and not in a small component."""
    return remove_small_components(np.asarray(scores) > threshold, component_max_size)


def evaluate_volume(
    scores: np.ndarray,
    lesion: np.ndarray,
    brain_mask: np.ndarray,
    threshold: float,
    component_max_size: int,
) -> dict[str, Any]:
    """Dice, AUPRC and sizes of one test volume: a row of ``results/metrics/``.

    Dice is of the prediction; AUPRC is of the map, without threshold and component filter.
    Both are over all voxels of the volume, the background included, as in the authors' code.

    Args:
        scores: post-processed anomaly map ``(x, y, z)``, larger is more anomalous.
        lesion: annotated lesion, same shape; above zero is lesion.
        brain_mask: brain mask, same shape; only counted.
        threshold: from :func:`uad.evaluate.search_threshold`; the prediction is above it.
        component_max_size: largest component, in voxels, that is not predicted; 0 keeps all.

    Returns:
        ``dice`` and ``auprc`` in [0, 1], each NaN where it is undefined (no lesion and nothing
        predicted; no lesion); ``threshold``; ``lesion_voxels``, ``predicted_voxels`` and
        ``brain_voxels``; ``prevalence``, the share of lesion voxels among all of the volume,
        which is the AUPRC of a score that knows nothing.

    Raises:
        DataError: the shapes differ, or a score is NaN.
    """
    lesion, brain_mask = binary(lesion), binary(brain_mask)
    check_same_shape(brain_mask, lesion)
    prediction = predict(scores, threshold, component_max_size)
    lesion_voxels = int(np.count_nonzero(lesion))
    return {
        "dice": dice(prediction, lesion),
        "auprc": average_precision(scores, lesion),
        "threshold": float(threshold),
        "lesion_voxels": lesion_voxels,
        "predicted_voxels": int(np.count_nonzero(prediction)),
        "brain_voxels": int(np.count_nonzero(brain_mask)),
        "prevalence": lesion_voxels / lesion.size,
    }


def threshold_curve(
    volumes: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], *, points: int = 100
) -> pd.DataFrame:
    """Precision, recall and mean Dice of a test set over the threshold, for figures.

    The thresholds are the union of two sets, so that both curves are smooth: ``points`` that
    rise in even steps of recall up to 1 (each just below a score of a lesion voxel), and
    ``points`` in even steps from 0 to the largest score. Numbers are exact at each of them. A
    prediction is ``score > threshold``, without component filter.

    Args:
        volumes: gives all pairs of a post-processed anomaly map (of one floating-point type, not
            negative) and a lesion. Called twice; only the scores of the lesion voxels are kept
            in between.
        points: size of either set of thresholds, at least 2.

    Returns:
        One row per threshold, rising:

        - ``threshold``, in the unit of the scores. The lowest can be a hair below zero: where
          lesion voxels have the score 0, full recall means that every voxel is predicted;
        - ``true_positives``, ``false_positives``, ``lesion_voxels``: voxels of all volumes;
        - ``precision`` (NaN where nothing is predicted) and ``recall``, of all voxels pooled;
        - ``mean_dice``: mean of the volumes' Dice, without those where it is undefined.

    Raises:
        DataError: there is no lesion voxel, a score is NaN or infinite, shapes do not match.
    """
    import pandas as pd

    found, top = [], -np.inf
    for scores, labels in volumes():
        inside, outside, zeros = split_scores(scores, labels)
        found.append(inside)
        values = [part.max(initial=-np.inf) for part in (inside, outside)]
        top = max(top, *values, 0 if zeros else -np.inf)
    lesion = np.concatenate(found) if found else np.empty(0)
    if lesion.size == 0:
        raise DataError("the test set has no lesion voxel, so there is no curve to draw.")
    if not np.isfinite(top):
        raise DataError(
            "an anomaly map of the test set has infinite values. The model has probably diverged: "
            "look at its training history."
        )
    thresholds = _thresholds(lesion, float(top), points)

    hits, alarms = (np.zeros(thresholds.size, dtype=np.int64) for _ in range(2))
    dice_sum, dice_count = np.zeros(thresholds.size), np.zeros(thresholds.size, dtype=np.int64)
    for scores, labels in volumes():
        inside, *outside = split_scores(scores, labels)
        inside.sort()
        true_positives = inside.size - np.searchsorted(inside, thresholds, side="right")
        false_positives = Ranked.of([outside]).above(thresholds)
        hits += true_positives
        alarms += false_positives
        size = true_positives + false_positives + inside.size
        dice_sum += 2 * true_positives / np.maximum(size, 1)
        dice_count += size > 0
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
        return pd.DataFrame(
            {
                "threshold": thresholds.astype(np.float64),
                "true_positives": hits,
                "false_positives": alarms,
                "lesion_voxels": lesion.size,
                "precision": hits / (hits + alarms),
                "recall": hits / lesion.size,
                "mean_dice": dice_sum / dice_count,
            }
        )


def _thresholds(lesion: np.ndarray, top: float, points: int) -> np.ndarray:
    """Where the curve is evaluated, rising and distinct, in the type of the scores."""
    lesion.sort()
    steps = np.arange(1, points + 1)
    lowest_found = lesion[lesion.size + (-steps * lesion.size) // points]
    even_recall = np.nextafter(lowest_found, lesion.dtype.type(-np.inf))
    even_steps = np.linspace(0, top, points).astype(lesion.dtype)
    return np.unique(np.concatenate([even_recall, even_steps]))
