"""From SRI24 back to the grid of the scan itself: the inverse of registration and packing."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from uad.core.errors import DataError
from uad.core.nifti import Scan
from uad.preprocess.ants_images import orthogonal

#: RAS+ to ITK's LPS+ coordinates, and back.
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def packed_affine(
    shape: Sequence[int],
    affine: np.ndarray,
    field_of_view_mm: Sequence[float],
    packed: Sequence[int],
) -> np.ndarray:
    """Affine of a packed volume (voxel index to RAS+ mm of SRI24).

    ``shape`` and ``affine`` are of the registered image, ``packed`` are the voxels that
    :func:`uad.preprocess.intensity.pack_volume` made of the field of view.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = [max(1, round(e / s)) for e, s in zip(field_of_view_mm, spacing, strict=True)]
    step = np.eye(4)
    for axis, (have, want, voxels) in enumerate(zip(shape, wanted, packed, strict=True)):
        # as crop_or_pad: an odd difference takes one voxel more at the low end
        start = (abs(have - want) + 1) // 2 * (1 if have > want else -1)
        step[axis, axis] = want / voxels
        step[axis, 3] = start + (want / voxels - 1) / 2
    return affine @ step


def atlas_to_scan(transform: str | os.PathLike[str]) -> np.ndarray:
    """The recorded affine of a registration, 4x4: RAS+ mm of SRI24 to RAS+ mm of the scan.

    Raises:
        DataError: the file is no affine of ITK.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(transform)
        name = next(key for key in content if key.startswith("AffineTransform"))
        parameters, centre = (content[key].ravel().astype(float) for key in (name, "fixed"))
        matrix = parameters[:9].reshape(3, 3)
        shift = parameters[9:] + centre - matrix @ centre
    except (OSError, ValueError, TypeError, StopIteration, MatReadError) as error:
        raise DataError(
            f"{transform}: not an affine as ANTs writes it ({type(error).__name__}). Register the "
            "scan again."
        ) from error
    return _FLIP @ np.block([[matrix, shift[:, None]], [np.zeros((1, 3)), np.eye(1)]]) @ _FLIP


def to_own_grid(
    volume: np.ndarray, affine: np.ndarray, scan: Scan, transform: str | os.PathLike[str]
) -> np.ndarray:
    """A volume in SRI24 resampled to the grid of the scan, on the axes of its file: float32,
    linearly interpolated, 0 outside; a mask (bool) is where that is above one half.

    The affine goes to RAS+ mm of SRI24 (for packed volumes :func:`packed_affine`); ``transform`` is
    the ``.mat`` of the scan's registration.
    """
    from scipy import ndimage

    index = np.linalg.inv(atlas_to_scan(transform) @ affine) @ orthogonal(scan.affine)
    found = ndimage.affine_transform(
        np.asarray(volume, dtype=np.float32),
        index[:3, :3],
        index[:3, 3],
        output_shape=scan.data.shape,
        order=1,
        mode="grid-constant",
    )
    return scan.to_raw(found > 0.5 if volume.dtype == bool else found)
