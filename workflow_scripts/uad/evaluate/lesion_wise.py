"""Surfaces and single lesions: how far off a prediction is, and which lesions it finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from uad.evaluate.postprocessing import bounding_box, eroded

#: A lesion is found, and a predicted one true, where this share of its voxels overlaps.
OVERLAP = 0.1

#: Of the normalised surface Dice (Nikolov et al., JMIR 23, 2021): one voxel of the paper's grid.
TOLERANCE_MM = 2.0


def surface_metrics(
    prediction: np.ndarray, lesion: np.ndarray, voxel_mm: Sequence[float]
) -> dict[str, float]:
    """95 % Hausdorff distance (mm) and normalised surface Dice of two bool volumes.

    The surface of a mask is its voxels with one of six neighbours outside. The Hausdorff distance
    is the larger of the 95th percentiles of both directions, NaN if a mask is empty; then the
    surface Dice is 0, and NaN if both are.
    """
    found, annotated = bool(prediction.any()), bool(lesion.any())
    if not (found and annotated):
        nothing = float("nan") if found == annotated else 0.0
        return {"hausdorff95_mm": float("nan"), "surface_dice": nothing}
    from scipy.spatial import cKDTree

    box = bounding_box(prediction | lesion)
    masks = prediction[box], lesion[box]
    surfaces = [np.argwhere(mask & ~eroded(mask, axes=(0, 1, 2))) * voxel_mm for mask in masks]
    # a tree of the points is faster than the distances of all voxels
    trees = [cKDTree(points, 32, compact_nodes=False, balanced_tree=False) for points in surfaces]
    distances = [trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]]
    near = sum(int(np.count_nonzero(part <= TOLERANCE_MM)) for part in distances)
    return {
        "hausdorff95_mm": max(float(np.percentile(part, 95)) for part in distances),
        "surface_dice": near / sum(part.size for part in distances),
    }


def lesion_metrics(prediction: np.ndarray, lesion: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Which lesions of a bool volume are found, by connected components (26 neighbours).

    Components of one voxel count, too. The Dice of a lesion is that with all predicted components
    that touch it. For what is NaN see ``resources/metric_columns.yaml``.
    """
    box = bounding_box(prediction | lesion)
    neighbours = np.ones((3, 3, 3), dtype=bool)
    annotated, count = ndimage.label(lesion[box], neighbours)
    predicted, found = ndimage.label(prediction[box], neighbours)
    pairs = (annotated * (found + 1) + predicted).ravel()
    shared = np.bincount(pairs, minlength=(count + 1) * (found + 1)).reshape(count + 1, found + 1)
    sizes, predicted_sizes = shared.sum(1)[1:], shared.sum(0)[1:]
    hits = shared[1:, 1:]
    true_positives = int(np.count_nonzero(hits.sum(1) >= OVERLAP * sizes))
    true_predictions = int(np.count_nonzero(hits.sum(0) >= OVERLAP * predicted_sizes))
    sensitivity = true_positives / count if count else np.nan
    precision = true_predictions / found if found else np.nan
    both = np.nan_to_num(sensitivity) + np.nan_to_num(precision)
    harmonic = 2 * sensitivity * precision / both if both else 0.0
    dices = 2 * hits.sum(1) / (sizes + (hits > 0) @ predicted_sizes)
    return {
        "lesions": count,
        "predicted_lesions": found,
        "lesion_sensitivity": sensitivity,
        "lesion_precision": precision,
        "lesion_f1": np.nan if not (count or found) else float(np.nan_to_num(harmonic)),
        "lesion_dice": float(dices.mean()) if count else np.nan,
        "largest_lesion_ml": float(sizes.max() * voxel_ml) if count else np.nan,
        "median_lesion_ml": float(np.median(sizes) * voxel_ml) if count else np.nan,
    }
