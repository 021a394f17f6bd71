"""The threshold that turns an anomaly map into a prediction, from labelled validation data."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from uad.core.errors import DataError
from uad.evaluate.metrics import Ranked, split_scores, steps_of


@dataclasses.dataclass(frozen=True)
class ThresholdResult:
    """What :func:`search_threshold` found: the Dice, over all voxels pooled, of the prediction
    ``score > threshold``, and how many thresholds were compared.
    """

    threshold: float
    dice: float
    method: str
    evaluations: int


def search_threshold(
    scores: np.ndarray | Collection[np.ndarray],
    labels: np.ndarray | Collection[np.ndarray],
    *,
    method: str = "halving",
    steps: int = 10,
) -> ThresholdResult:
    """The threshold with the best Dice over all given voxels together.

    ``halving`` is the authors' greedy search (``find_best_val`` in ``src/utils/utils_eval.py``
    of zx-pan/MedAnomalyDetection-IQA): start from the interval [0, largest score], compare the
    Dice at one quarter and at three quarters of it, go on with the half around the better
    one (the lower on a tie), ``steps`` times. The answer is the best of all thresholds that
    were evaluated (the last on a tie). It can miss the maximum when Dice has more than one.

    ``exact`` compares every distinct prediction. Its threshold is the largest score left out.

    ``scores`` is an anomaly map of any shape, or a collection of them, which is gone through once;
    ``labels`` are lesions of the same shapes, above zero.

    Raises:
        DataError: no voxel is labelled as lesion, a score is NaN or infinite, or the shapes
            do not match.
    """
    if isinstance(scores, np.ndarray):
        scores, labels = [scores], [labels]
    if len(scores) != len(labels):
        raise DataError(f"{len(scores)} anomaly maps, but {len(labels)} labels.")
    parts = [split_scores(*pair) for pair in zip(scores, labels, strict=True)]
    lesion = np.concatenate([lesion for lesion, *_ in parts]) if parts else np.empty(0)
    if lesion.size == 0:
        raise DataError(
            "the validation set has no lesion voxel, so no threshold can be searched. Check that "
            "its lesion masks are not empty after registration and cropping, or put other "
            "subjects into the unhealthy validation set."
        )
    other = Ranked.of([other for _, *other in parts])
    if not (np.isfinite(lesion).all() and np.isfinite(other.values).all()):
        raise DataError(
            "the anomaly scores of the validation set have infinite values. The model has "
            "probably diverged: look at its training history."
        )
    return _exact(lesion, other) if method == "exact" else _halving(lesion, other, steps)


def _halving(lesion: np.ndarray, other: Ranked, steps: int) -> ThresholdResult:
    lesion = np.sort(lesion)

    def dice_above(threshold: float) -> float:
        threshold = lesion.dtype.type(threshold)  # as NumPy compares an array with a number
        true_positives = lesion.size - int(np.searchsorted(lesion, threshold, side="right"))
        predicted = true_positives + int(other.above(threshold))
        return 2 * true_positives / (predicted + lesion.size)

    bottom, top = 0.0, float(max(lesion[-1], other.largest))
    if top == bottom:
        top = 1.0  # a map of zeros, as in the authors' code
    best_threshold, best_dice = 0.0, 0.0
    for _ in range(steps):
        width = top - bottom
        low, high = bottom + 0.25 * width, bottom + 0.75 * width
        dice_low, dice_high = dice_above(low), dice_above(high)
        if dice_low >= dice_high:
            threshold, value, top = low, dice_low, bottom + 0.5 * width
        else:
            threshold, value, bottom = high, dice_high, bottom + 0.5 * width
        if value >= best_dice:
            best_threshold, best_dice = threshold, value
    return ThresholdResult(best_threshold, best_dice, "halving", 2 * steps)


def _exact(lesion: np.ndarray, other: Ranked) -> ThresholdResult:
    # Lowering the threshold helps only when a lesion voxel comes in: the best prediction is
    # "at least this lesion score" for one of them.
    candidates, _, true_positives = steps_of(lesion)
    dices = 2 * true_positives / (true_positives + other.at_least(candidates) + lesion.size)
    best = int(len(dices) - 1 - np.argmax(dices[::-1]))  # the highest threshold on a tie
    below = max(candidates[best - 1] if best else -np.inf, other.next_below(candidates[best]))
    if below == -np.inf:  # everything is predicted
        below = np.nextafter(candidates[best], candidates.dtype.type(-np.inf))
    return ThresholdResult(float(below), float(dices[best]), "exact", int(candidates.size))
