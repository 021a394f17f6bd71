"""From the raw residual to the anomaly map, and from the binary map to the prediction."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from uad.errors import DataError

#: Windows per step of the median filter; 125 float32 values each, so 16 MB at a time.
_CHUNK = 32_768


def postprocess(
    residual: np.ndarray,
    brain_mask: np.ndarray,
    *,
    erosion: int = 3,
    median: int = 5,
    order: str = "erosion_first",
) -> np.ndarray:
    """Suppress the rim of the brain and single outlying voxels of an anomaly map.

    The defaults are those of the authors' code (``src/utils/utils_eval.py`` of
    zx-pan/MedAnomalyDetection-IQA): there the mask is eroded before the median filter, and
    the number of erosions is the second image dimension over 25, hence 3 at 96x96. The
    paper's text has the two steps the other way round.

    Args:
        residual: anomaly map ``(x, y, z)``, any unit, all values finite.
        brain_mask: brain mask ``(x, y, z)``; above zero is brain.
        erosion: erosions of the mask of each axial slice by the cross of four neighbours,
            one voxel each; outside the image is background. 0 leaves the map unmasked.
        median: side in voxels of the cubic median window, odd; 0 or 1 leaves it out.
        order: ``erosion_first`` or ``median_first``.

    Returns:
        A new float32 or float64 array like ``residual``. With ``median_first`` it is zero
        outside the eroded mask. With ``erosion_first`` a voxel outside it can be non-zero
        where more than half of its window lies inside.

    Raises:
        DataError: the shapes differ, are not 3D, or the map has NaN or infinite values.
        ValueError: ``erosion``, ``median`` or ``order`` is not one of the above.
    """
    if order not in ("erosion_first", "median_first"):
        raise ValueError(f"order must be 'erosion_first' or 'median_first', got {order!r}")
    if erosion < 0:
        raise ValueError(f"erosion must not be negative, got {erosion}")
    if median < 0 or (median > 1 and median % 2 == 0):
        raise ValueError(f"median must be odd (or 0 to leave it out), got {median}")
    residual, brain_mask = np.asarray(residual), np.asarray(brain_mask)
    if residual.ndim != 3 or residual.shape != brain_mask.shape:
        raise DataError(
            f"the anomaly map has shape {residual.shape} and the brain mask {brain_mask.shape}; "
            "both must be 3D and on one grid. Score and mask must come from the same volume."
        )
    residual = residual.astype(np.float64 if residual.dtype == np.float64 else np.float32)
    if not np.isfinite(residual).all():
        raise DataError(
            "the anomaly map has NaN or infinite values. The model has probably diverged: "
            "look at its training history."
        )
    if order == "median_first":
        return _mask_out(median_filter(residual, median), brain_mask, erosion)
    return median_filter(_mask_out(residual, brain_mask, erosion), median)


def _mask_out(volume: np.ndarray, brain_mask: np.ndarray, erosion: int) -> np.ndarray:
    if erosion == 0:  # ndimage would take 0 as "until nothing changes"
        return volume
    cross = ndimage.generate_binary_structure(2, 1)[:, :, None]
    inside = ndimage.binary_erosion(brain_mask > 0, structure=cross, iterations=erosion)
    return np.where(inside, volume, volume.dtype.type(0))


def median_filter(volume: np.ndarray, size: int) -> np.ndarray:
    """``scipy.ndimage.median_filter(volume, size)``, the same values, several times faster.

    An anomaly map is mostly zero, and where more than half of a window is zero its median is
    zero. The other windows are partitioned in bulk.

    Args:
        volume: floating-point array ``(x, y, z)`` without NaN; reflected at its borders.
        size: side of the cubic window, odd; 0 or 1 returns a copy.
    """
    if size <= 1:
        return volume.copy()
    padded = np.pad(volume, size // 2, mode="symmetric")
    occupied = (padded != 0).astype(np.int32)
    for axis in range(3):
        windows = np.lib.stride_tricks.sliding_window_view(occupied, size, axis=axis)
        occupied = windows.sum(axis=-1, dtype=np.int32)
    middle = size**3 // 2
    result = np.zeros_like(volume)
    where = np.nonzero(occupied > middle)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3)
    for start in range(0, where[0].size, _CHUNK):
        chunk = tuple(index[start : start + _CHUNK] for index in where)
        values = windows[chunk].reshape(-1, size**3)
        values.partition(middle, axis=1)
        result[chunk] = values[:, middle]
    return result


def remove_small_components(prediction: np.ndarray, max_size: int = 7) -> np.ndarray:
    """Drop the connected components of at most ``max_size`` voxels, their holes included.

    The authors' filter (``src/utils/utils_eval.py`` of zx-pan/MedAnomalyDetection-IQA; not
    in the paper): components touch by faces, edges or corners, and their size is
    ``area_filled`` of :func:`skimage.measure.regionprops`.

    Args:
        prediction: binary volume of any dimension; above zero is anomaly.
        max_size: largest size, in voxels, that is dropped; 0 keeps everything.

    Returns:
        A new bool array.

    Raises:
        ValueError: ``max_size`` is negative.
    """
    if max_size < 0:
        raise ValueError(f"max_size must not be negative, got {max_size}")
    prediction = np.asarray(prediction) > 0
    if max_size == 0 or not prediction.any():
        return prediction
    neighbours = np.ones((3,) * prediction.ndim, dtype=bool)
    labels, count = ndimage.label(prediction, structure=neighbours)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    drop = sizes <= max_size
    drop[0] = False
    # A hole is a voxel that all its neighbours enclose: smaller components have none.
    hollow = np.flatnonzero(drop & (sizes >= neighbours.size - 1))
    if hollow.size:
        boxes = ndimage.find_objects(labels)
        for label in hollow:
            component = labels[boxes[label - 1]] == label
            filled = ndimage.binary_fill_holes(component, structure=neighbours)
            drop[label] = filled.sum() <= max_size
    return prediction & ~drop[labels]
