"""Agreement of an anomaly map or a prediction with the annotated lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uad.core.errors import DataError


def dice(prediction: np.ndarray, label: np.ndarray) -> float:
    """Dice coefficient, ``2 |A and B| / (|A| + |B|)``, of what is above zero.

    NaN if both are empty: it is undefined there, and the authors average over volumes with
    ``nanmean``, which leaves such a volume out.

    Raises:
        DataError: the shapes differ.
    """
    prediction, label = binary(prediction), binary(label)
    check_same_shape(prediction, label)
    size = int(np.count_nonzero(prediction)) + int(np.count_nonzero(label))
    if size == 0:
        return float("nan")
    return 2 * int(np.count_nonzero(prediction & label)) / size


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    r"""Area under the precision-recall curve, as scikit-learn's ``average_precision_score``.

    .. math:: \mathrm{AP} = \sum_n (R_n - R_{n-1}) P_n

    over all distinct thresholds, without interpolation. Every voxel counts, the background around
    the brain included, as in the authors' evaluation. NaN if no label is above zero.

    Raises:
        DataError: the shapes differ, or a score is NaN.
    """
    lesion, *other = split_scores(scores, labels)
    return ranking_metrics(lesion, [Ranked.of([other])])["auprc"]


def ranking_metrics(lesion: np.ndarray, others: Sequence[Ranked]) -> dict[str, float]:
    """``auprc`` (:func:`average_precision`), ``auroc`` and ``best_dice``, that of the threshold
    which suits the volume best, from scores of the lesion voxels and ranks of the other voxels.

    Recall moves, and Dice is best, only at the scores of lesion voxels. Without any all are NaN.
    """
    if lesion.size == 0:
        return dict.fromkeys(("auprc", "auroc", "best_dice"), float("nan"))
    thresholds, counts, true_positives = steps_of(lesion)
    not_below = sum(other.at_least(thresholds) for other in others)
    higher = (not_below + sum(other.above(thresholds) for other in others)) / 2  # ties count half
    precision = true_positives / (true_positives + not_below)
    pairs = lesion.size * sum(other.values.size + other.zeros for other in others)
    return {
        "auprc": float(np.sum(counts * precision) / lesion.size),
        "auroc": 1 - float(np.sum(counts * higher)) / pairs if pairs else float("nan"),
        "best_dice": float(np.max(2 * true_positives / (true_positives + not_below + lesion.size))),
    }


def steps_of(lesion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores of the lesion voxels, rising; how many have each, and at least each."""
    thresholds, counts = np.unique(lesion, return_counts=True)
    return thresholds, counts, lesion.size - np.concatenate(([0], np.cumsum(counts)[:-1]))


class Ranked(NamedTuple):
    """Flat, rising scores; zeros, which are most of a post-processed map, are only counted."""

    values: np.ndarray
    zeros: int

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, int]]) -> Ranked:
        """All scores of at least one part: those that are not zero, and how many are."""
        values = np.concatenate([values for values, _ in parts])
        values.sort()
        return cls(values, sum(zeros for _, zeros in parts))

    @property
    def largest(self) -> float:
        """The largest score; minus infinity if there is none."""
        return max(self.values.max(initial=-np.inf), 0 if self.zeros else -np.inf)

    def at_least(self, thresholds: np.ndarray) -> np.ndarray:
        """How many scores are not below each threshold; thresholds are of the scores' type."""
        below = np.searchsorted(self.values, thresholds, side="left")
        return self.values.size - below + self.zeros * (thresholds <= 0)

    def above(self, thresholds: np.ndarray) -> np.ndarray:
        """How many scores are above each threshold; thresholds are of the scores' type."""
        within = np.searchsorted(self.values, thresholds, side="right")
        return self.values.size - within + self.zeros * (thresholds < 0)

    def next_below(self, threshold: np.generic) -> float:
        """The largest score that is below the threshold; minus infinity if there is none."""
        below = self.values[: np.searchsorted(self.values, threshold, side="left")]
        return max(below.max(initial=-np.inf), 0 if self.zeros and threshold > 0 else -np.inf)


def split_scores(
    scores: np.ndarray, labels: np.ndarray, inside: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """New flat arrays: scores of the lesion voxels; of the others those that are not zero, and
    how many are. With a bool mask ``inside`` of the voxels in it alone.

    Raises:
        DataError: the shapes differ, or a score is NaN.
    """
    scores, labels = np.asarray(scores), binary(labels)
    check_same_shape(scores, labels)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} of {scores.size} anomaly scores are NaN. The model "
            "has probably diverged: look at its training history."
        )
    found, rest, count = labels, (scores != 0) & ~labels, scores.size
    if inside is not None:
        found, rest, count = found & inside, rest & inside, int(np.count_nonzero(inside))
    lesion, other = scores[found], scores[rest]
    return lesion, other, count - lesion.size - other.size


def binary(array: np.ndarray) -> np.ndarray:
    """Above zero, as bool; a bool array as it is."""
    array = np.asarray(array)
    return array if array.dtype == bool else array > 0


def check_same_shape(first: np.ndarray, second: np.ndarray) -> None:
    """Refuse a prediction and a label that are not on one grid."""
    if first.shape != second.shape:
        raise DataError(
            f"the prediction has shape {first.shape} and the label {second.shape}; both must be "
            "on one grid."
        )
