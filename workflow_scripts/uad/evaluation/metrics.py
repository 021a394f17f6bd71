"""Agreement of an anomaly map or a prediction with the annotated lesions."""

from __future__ import annotations

import numpy as np

from uad.errors import DataError


def dice(prediction: np.ndarray, label: np.ndarray) -> float:
    """Dice coefficient, ``2 |A and B| / (|A| + |B|)``.

    Args:
        prediction: binary array of any shape; above zero is anomaly.
        label: binary array of the same shape; above zero is lesion.

    Returns:
        A number in [0, 1]. NaN if both are empty: it is undefined there, and the authors
        average over volumes with ``nanmean``, which leaves such a volume out.

    Raises:
        DataError: the shapes differ.
    """
    prediction, label = np.asarray(prediction) > 0, np.asarray(label) > 0
    check_same_shape(prediction, label)
    size = int(np.count_nonzero(prediction)) + int(np.count_nonzero(label))
    if size == 0:
        return float("nan")
    return 2 * int(np.count_nonzero(prediction & label)) / size


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    r"""Area under the precision-recall curve, as scikit-learn's ``average_precision_score``.

    .. math:: \mathrm{AP} = \sum_n (R_n - R_{n-1}) P_n

    over all distinct thresholds, without interpolation. Every voxel counts, the
    background around the brain included, as in the authors' evaluation. Recall moves only at
    the scores of lesion voxels, so those and the ranks of the others are all that is needed.

    Args:
        scores: anomaly map of any shape, larger is more anomalous.
        labels: array of the same shape; above zero is lesion.

    Returns:
        A number in (0, 1]; NaN if there is no lesion voxel.

    Raises:
        DataError: the shapes differ, or a score is NaN.
    """
    positive, negative = split_scores(scores, labels)
    if positive.size == 0:
        return float("nan")
    thresholds, counts = np.unique(positive, return_counts=True)
    true_positives = positive.size - np.concatenate(([0], np.cumsum(counts)[:-1]))
    negative.sort()
    false_positives = negative.size - np.searchsorted(negative, thresholds, side="left")
    precision = true_positives / (true_positives + false_positives)
    return float(np.sum(counts * precision) / positive.size)


def split_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the lesion voxels and scores of all others, flat, as new arrays.

    Raises:
        DataError: the shapes differ, or a score is NaN.
    """
    scores, labels = np.asarray(scores), np.asarray(labels) > 0
    check_same_shape(scores, labels)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} of {scores.size} anomaly scores are NaN. The model "
            "has probably diverged: look at its training history."
        )
    return scores[labels], scores[~labels]


def check_same_shape(first: np.ndarray, second: np.ndarray) -> None:
    """Raise a :class:`DataError` when prediction and label are not on one grid."""
    if first.shape != second.shape:
        raise DataError(
            f"the prediction has shape {first.shape} and the label {second.shape}; both must be "
            "on one grid."
        )
