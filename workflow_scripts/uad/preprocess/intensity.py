"""Intensities and grids on the way from a registered scan to the packed volume.

All arrays are in NIfTI axis order (x, y, z) on RAS+ axes, axial slices on the last axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uad.core.errors import DataError

#: Time step (mm2; stable for 1 mm in 3D) and iterations of the authors' SimpleITK CurvatureFlow.
CURVATURE_STEP, CURVATURE_ITERATIONS = 0.125, 3
#: Share of negative values in a brain that is more than ringing (up to 0.01 in MSLUB).
NEGATIVE_SHARE = 0.1


def crop_or_pad(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Crop or pad (with 0) every axis about its centre, any mix of both.

    An odd difference takes one voxel more at the low end, as torchio's CropOrPad does,
    so padding and then cropping back gives the volume again.
    """
    if len(shape) != volume.ndim:
        raise ValueError(f"shape {tuple(shape)} does not fit an array of {volume.ndim} dimensions")
    result = np.zeros(tuple(shape), dtype=volume.dtype)
    source, target = [], []
    for have, want in zip(volume.shape, shape, strict=True):
        low = (abs(have - want) + 1) // 2
        cut, pad = (low, 0) if have > want else (0, low)
        source.append(slice(cut, cut + min(have, want)))
        target.append(slice(pad, pad + min(have, want)))
    result[tuple(target)] = volume[tuple(source)]
    return result


def lifted(data: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Values moved up where many are negative (z-scored scans), and by how much; else as they are.

    What the steps before :func:`percentile_scale` need is at least 0; that scaling undoes the move.
    The lowest thousandth of the values (in the mask) may stay negative.
    """
    inside = data if mask is None else data[mask]
    if (inside < 0).mean() <= NEGATIVE_SHARE:
        return data, 0.0
    low = np.float32(np.percentile(inside, 0.1))
    return data - low, float(-low)


def percentile_scale(
    volume: np.ndarray,
    mask: np.ndarray,
    low: float = 1,
    high: float = 99,
    *,
    name: str = "the volume",
) -> np.ndarray:
    """Map two percentiles of the masked voxels to 0 and 1, clip, and set the rest to 0.

    Volume (any unit, negative values, too) and mask (above 0 in the brain) are (X, Y, Z), the
    result is float32 in [0, 1]; ``name`` is for messages (the file).

    Raises:
        DataError: the mask is empty, or the masked voxels are constant between the percentiles.
    """
    inside = np.asarray(mask) > 0
    if inside.shape != volume.shape:
        raise DataError(f"{name}: has shape {volume.shape}, its mask {inside.shape}")
    if not inside.any():
        raise DataError(f"{name}: its brain mask is empty; look at the skull-stripping picture.")
    bottom, top = np.percentile(volume[inside].astype(np.float64), [low, high])
    if not top > bottom:
        raise DataError(
            f"{name}: constant inside the brain mask ({bottom:g}); there is nothing to scale."
        )
    result = np.zeros(volume.shape, dtype=np.float32)
    # the ratio of tiny differences can pass 1 by rounding: clip last
    scaled = (volume[inside].astype(np.float64) - bottom) / (top - bottom)
    result[inside] = np.clip(scaled, 0.0, 1.0)
    return result


def curvature_flow(volume: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Smooth along level sets, dI/dt = curvature x |grad I|: ITK's CurvatureFlowImageFilter.

    The explicit scheme of ITK with central differences, mirrored at the border (zero flux),
    derivatives in 1/mm (``spacing``: mm along the axes), float32. It stands in for SimpleITK,
    which is no dependency here. Multiplying the volume by a constant multiplies the result by it.
    """
    result = np.array(volume, dtype=np.float32)
    scale = [np.float32(1.0 / value) for value in spacing]
    step = np.float32(CURVATURE_STEP)
    centre = (slice(1, -1),) * 3

    def shifted(padded: np.ndarray, *moves: tuple[int, int]) -> np.ndarray:
        index = list(centre)
        for axis, by in moves:
            index[axis] = slice(1 + by, padded.shape[axis] - 1 + by)
        return padded[tuple(index)]

    for _ in range(CURVATURE_ITERATIONS):
        padded = np.pad(result, 1, mode="edge")
        first, second = [], []
        for axis in range(3):
            above, below = shifted(padded, (axis, 1)), shifted(padded, (axis, -1))
            first.append((above - below) * (np.float32(0.5) * scale[axis]))
            second.append((above + below - 2 * result) * scale[axis] ** 2)
        squared = [value * value for value in first]
        magnitude, total = sum(squared[1:], squared[0]), sum(second[1:], second[0])
        update = sum((total - second[axis]) * squared[axis] for axis in range(3))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            cross = (
                shifted(padded, (a, 1), (b, 1))
                + shifted(padded, (a, -1), (b, -1))
                - shifted(padded, (a, 1), (b, -1))
                - shifted(padded, (a, -1), (b, 1))
            ) * (np.float32(0.25) * scale[a] * scale[b])
            update -= 2 * first[a] * first[b] * cross
        # ITK leaves flat places alone below this squared gradient
        moving = magnitude >= 1e-9
        np.divide(update, magnitude, out=update, where=moving)
        update[~moving] = 0
        result += step * update
    return result


def resample_grid(volume: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    """Resample (X, Y, Z) to another number of voxels over the same field of view.

    ``order`` is 3 for cubic B-splines (float32 result) or 0 for nearest (a half rounds up, as in
    ITK; the data type stays).
    """
    from scipy import ndimage

    factors = [have / want for have, want in zip(volume.shape, shape, strict=True)]
    if order == 0:
        index = [
            np.minimum(np.floor((np.arange(want) + 0.5) * factor).astype(int), have - 1)
            for have, want, factor in zip(volume.shape, shape, factors, strict=True)
        ]
        return np.ascontiguousarray(volume[np.ix_(*index)])
    if tuple(volume.shape) == tuple(shape):
        return np.array(volume, dtype=np.float32)
    # voxel centres: (i + 0.5) * factor - 0.5
    return ndimage.affine_transform(
        np.asarray(volume, dtype=np.float32),
        np.diag(factors),
        offset=[(factor - 1.0) / 2.0 for factor in factors],
        output_shape=tuple(shape),
        order=order,
        mode="mirror",
        output=np.float32,
    )


class Packing(NamedTuple):
    """How a scan with voxels of ``spacing`` mm becomes what the networks see: ``field_of_view``
    (mm) in ``shape`` voxels, smoothed first (:func:`curvature_flow`), percentiles of the masked
    voxels mapped to 0 and 1 (None: the image is scaled).

    ``stack``: whose percentiles scale the slices of :func:`pack_tumour_free`, ``stack`` or
    ``scan``; None: nobody is trained on them.
    """

    spacing: float
    field_of_view: Sequence[float] = (192.0, 192.0, 100.0)
    shape: Sequence[int] = (96, 96, 50)
    percentiles: Sequence[float] | None = (1.0, 99.0)
    smooth: bool = True
    stack: str | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Packing:
        """From the params of the rule pack_slices."""
        return cls(**params["preprocessing"], smooth=params["curvature_flow"])


def pack_volume(
    image: np.ndarray,
    mask: np.ndarray,
    lesion: np.ndarray | None,
    packing: Packing,
    name: str = "the volume",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring a registered, brain-cropped scan to the grid and the range that the networks see.

    Order of the authors' loader: curvature flow (if asked), central crop or pad to the field of
    view, in-mask percentile scaling, resampling (cubic B-spline; labels nearest). The result is not
    clamped: B-splines overshoot [0, 1] slightly, as they did there. Outside the resampled mask it
    is exactly 0.

    Image (cropped to the box of the brain, so that its centre is the brain's), brain mask and
    lesion mask (None: healthy) have one shape (X, Y, Z); ``name`` is for messages (the file).

    Returns:
        Volume (float16, about [-0.1, 1.1]), mask and lesion (uint8, 0 or 1).

    Raises:
        DataError: shapes differ, the mask is empty, or the brain is constant.
    """
    inside = np.asarray(mask) > 0
    sick = np.zeros(image.shape, dtype=bool) if lesion is None else np.asarray(lesion) > 0
    for what, array in (("mask", inside), ("lesion mask", sick)):
        if array.shape != image.shape:
            raise DataError(f"{name}: has shape {image.shape}, its {what} {array.shape}")
    if packing.smooth:
        image = curvature_flow(image, (packing.spacing,) * 3)
    wanted = [max(1, round(extent / packing.spacing)) for extent in packing.field_of_view]
    inside, sick = crop_or_pad(inside, wanted), crop_or_pad(sick, wanted)
    scaled = crop_or_pad(image, wanted)
    if packing.percentiles:
        scaled = percentile_scale(scaled, inside, *packing.percentiles, name=name)
    small_mask = resample_grid(inside, packing.shape, order=0)
    volume = resample_grid(scaled, packing.shape, order=3)
    volume[~small_mask] = 0
    small_lesion = resample_grid(sick, packing.shape, order=0)
    return volume.astype(np.float16), small_mask.astype(np.uint8), small_lesion.astype(np.uint8)


def pack_tumour_free(
    image: np.ndarray, mask: np.ndarray, lesion: np.ndarray, packing: Packing, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Volume and mask of the slices without a lesion, on which a patient is trained.

    The slices of the whole brain that do not touch the lesion, stacked, are packed like a scan of
    half the depth ([IQA] preprocess.py and create_dataset.py), scaled as ``packing.stack`` says.
    Volume (float16) and mask (uint8) are all 0 where the lesion leaves no slice of the brain.
    """
    shape = (*packing.shape[:2], packing.shape[2] // 2)
    kept = ~(lesion > 0).any(axis=(0, 1))
    if not (mask[..., kept] > 0).any():
        return np.zeros(shape, np.float16), np.zeros(shape, np.uint8)
    if packing.stack == "scan":
        image = percentile_scale(image, mask, *packing.percentiles, name=name)
        packing = packing._replace(percentiles=None)
    field = (*packing.field_of_view[:2], packing.field_of_view[2] / 2)
    half = packing._replace(field_of_view=field, shape=shape)
    volume, brain, _ = pack_volume(image[..., kept], mask[..., kept], None, half, name)
    return volume, brain
