"""What a volume's anomaly map is worth: at the threshold that was searched, and at all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.evaluate.lesion_wise import lesion_metrics, surface_metrics
from uad.evaluate.metrics import (
    Ranked,
    binary,
    check_same_shape,
    dice,
    ranking_metrics,
    split_scores,
)
from uad.evaluate.postprocessing import remove_small_components

if TYPE_CHECKING:
    import pandas as pd


def cell_of(names: Any) -> dict[str, Any]:
    """The first columns of a cell's files, from the wildcards of its job."""
    place = {"experiment": names.experiment, "method": names.method, "fold": int(names.fold)}
    return {**place, "test_dataset": names.test}


def predict(scores: np.ndarray, threshold: float, component_max_size: int) -> np.ndarray:
    """The voxels that are called lesion: above the threshold, and not in a small component."""
    return remove_small_components(np.asarray(scores) > threshold, component_max_size)


def evaluate_volume(
    scores: np.ndarray,
    lesion: np.ndarray,
    brain_mask: np.ndarray,
    threshold: float,
    component_max_size: int,
    voxel_mm: Sequence[float] = (2.0, 2.0, 2.0),
) -> dict[str, Any]:
    """All metrics of one test volume: a row of ``results/metrics/``.

    What each is, its unit and when it is NaN is in ``resources/metric_columns.yaml``. ``scores`` is
    the post-processed anomaly map ``(x, y, z)``; the prediction is above the ``threshold``, without
    components of at most ``component_max_size`` voxels.

    Raises:
        DataError: the shapes differ, or a score is NaN.
    """
    lesion, brain_mask, scores = binary(lesion), binary(brain_mask), np.asarray(scores)
    check_same_shape(brain_mask, lesion)
    check_same_shape(scores, lesion)
    prediction = predict(scores, threshold, component_max_size)
    annotated, predicted, brain = (
        int(np.count_nonzero(mask)) for mask in (lesion, prediction, brain_mask)
    )
    hits = int(np.count_nonzero(prediction & lesion))
    healthy, voxel_ml = lesion.size - annotated, math.prod(voxel_mm) / 1000
    parts = [split_scores(scores, lesion, inside) for inside in (brain_mask, ~brain_mask)]
    others = [Ranked.of([other]) for _, *other in parts]
    within = ranking_metrics(parts[0][0], others[:1])
    whole = ranking_metrics(np.concatenate([parts[0][0], parts[1][0]]), others)
    prevalence = annotated / lesion.size
    return {
        "dice": dice(prediction, lesion),
        "auprc": whole["auprc"],
        "threshold": float(threshold),
        "lesion_voxels": annotated,
        "predicted_voxels": predicted,
        "brain_voxels": brain,
        "prevalence": prevalence,
        "best_dice": whole["best_dice"],
        "precision": hits / predicted if predicted else math.nan,
        "recall": hits / annotated if annotated else math.nan,
        "specificity": 1 - (predicted - hits) / healthy if healthy else math.nan,
        "auroc": whole["auroc"],
        "auprc_over_chance": whole["auprc"] / prevalence if annotated else math.nan,
        "auprc_brain": within["auprc"],
        "auroc_brain": within["auroc"],
        "prevalence_brain": parts[0][0].size / brain if brain else math.nan,
        "volume_difference_ml": (predicted - annotated) * voxel_ml,
        "false_positive_ml": (predicted - hits) * voxel_ml,
        **surface_metrics(prediction, lesion, voxel_mm),
        **lesion_metrics(prediction, lesion, voxel_ml),
    }


def described_columns() -> dict[str, Any]:
    """The columns of ``results/metrics/``: meaning, unit, range, direction, when NaN, source."""
    import yaml

    described = Path(__file__).resolve().parents[3] / "resources" / "metric_columns.yaml"
    return yaml.safe_load(described.read_text(encoding="utf-8"))


def threshold_curve(
    volumes: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], *, points: int = 100
) -> pd.DataFrame:
    """Precision, recall and mean Dice of a test set over the threshold, for figures.

    The thresholds are the union of two sets, so that both curves are smooth: ``points`` that
    rise in even steps of recall up to 1 (each just below a score of a lesion voxel), and
    ``points`` in even steps from 0 to the largest score. Numbers are exact at each of them. A
    prediction is ``score > threshold``, without component filter.

    ``volumes()`` gives all pairs of a post-processed anomaly map (of one floating-point type, not
    negative) and a lesion; it is called twice.

    Returns:
        One row per threshold, rising: ``threshold`` (the lowest can be a hair below zero: where
        lesion voxels have the score 0, full recall means that every voxel is predicted);
        ``true_positives``, ``false_positives``, ``lesion_voxels`` of all volumes; ``precision``
        (NaN where nothing is predicted) and ``recall`` of all voxels pooled; ``mean_dice`` of the
        volumes where it is defined.

    Raises:
        DataError: there is no lesion voxel, a score is NaN or infinite, shapes do not match.
    """
    import pandas as pd

    thresholds, lesion_voxels = _thresholds(volumes(), points)
    hits, alarms, defined = (np.zeros(thresholds.size, dtype=np.int64) for _ in range(3))
    dice_sum = np.zeros(thresholds.size)
    for scores, labels in volumes():
        inside, *outside = split_scores(scores, labels)
        inside.sort()
        true_positives = inside.size - np.searchsorted(inside, thresholds, side="right")
        false_positives = Ranked.of([outside]).above(thresholds)
        hits += true_positives
        alarms += false_positives
        size = true_positives + false_positives + inside.size
        dice_sum += 2 * true_positives / np.maximum(size, 1)
        defined += size > 0
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
        return pd.DataFrame(
            {
                "threshold": thresholds.astype(np.float64),
                "true_positives": hits,
                "false_positives": alarms,
                "lesion_voxels": lesion_voxels,
                "precision": hits / (hits + alarms),
                "recall": hits / lesion_voxels,
                "mean_dice": dice_sum / defined,
            }
        )


def _thresholds(
    volumes: Iterable[tuple[np.ndarray, np.ndarray]], points: int
) -> tuple[np.ndarray, int]:
    """Where the curve is evaluated, rising, in the type of the scores; the number of lesion voxels.

    Of each volume only the scores of its lesion voxels are kept.
    """
    found, top = [], 0.0
    for scores, labels in volumes:
        inside, outside, _ = split_scores(scores, labels)
        found.append(inside)
        top = max(top, *(float(part.max(initial=0)) for part in (inside, outside)))
    lesion = np.sort(np.concatenate(found)) if found else np.empty(0)
    if lesion.size == 0:
        raise DataError("the test set has no lesion voxel, so there is no curve to draw.")
    if not np.isfinite(top):
        raise DataError(
            "an anomaly map of the test set has infinite values. The model has probably diverged: "
            "look at its training history."
        )
    steps = np.arange(1, points + 1)
    lowest_found = lesion[lesion.size + (-steps * lesion.size) // points]
    even_recall = np.nextafter(lowest_found, lesion.dtype.type(-np.inf))
    even_steps = np.linspace(0, top, points).astype(lesion.dtype)
    return np.unique(np.concatenate([even_recall, even_steps])), lesion.size
