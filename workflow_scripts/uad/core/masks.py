"""Binary masks: their overlap and their pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Between the outlines (ml) of the largest brain and the smallest head of docs/qc.md.
SMALLEST_HEAD_ML = 2000.0


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice overlap of two masks in [0, 1]; 0 when both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 0.0


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected component of a mask (the mask itself when empty)."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count <= 1:
        return mask.astype(bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax())


def background_of(data: np.ndarray) -> float:
    """The commonest value of the border of a volume."""
    faces = (np.take(data, (0, -1), axis).ravel() for axis in range(3))
    values, counts = np.unique(np.concatenate(list(faces)), return_counts=True)
    return float(values[counts.argmax()])


def outline_ml(data: np.ndarray, spacing: Sequence[float]) -> float:
    """Volume (ml) of what differs from the background, holes filled, every 6 mm.

    It tells a head from a brain without skull (:data:`SMALLEST_HEAD_ML`), whatever the contrast.
    2 % of the range count as background.
    """
    from scipy import ndimage

    strides = [max(1, round(6.0 / size)) for size in spacing]
    small = data[tuple(slice(None, None, stride) for stride in strides)]
    away = np.abs(small - background_of(small))
    if not away.any():
        return 0.0
    seen = largest_component(away > 0.02 * np.percentile(away[away > 0], 98))
    voxel_ml = float(np.prod(spacing) * np.prod(strides)) / 1000
    return float(ndimage.binary_fill_holes(seen).sum()) * voxel_ml
