"""Reading and writing NIfTI volumes, with the checks that every stage needs."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from uad.core.errors import DataError
from uad.core.files import atomic_path


def read_volume(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3D volume as float32 with its affine (4x4, RAS+, millimetres).

    Raises:
        DataError: the file is missing, truncated, not NIfTI, not 3D, has NaN or
            infinite values, is constant, or has a singular affine.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file. Check the path of the data set in the config.")
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except (EOFError, OSError, zlib.error, nib.filebasedimages.ImageFileError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as a NIfTI volume ({error}). The file is probably "
            "truncated or damaged: fetch it again, or exclude the subject in the config."
        ) from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise DataError(
            f"{path}: has {data.ndim} dimensions {data.shape}, expected a 3D volume. "
            "Take one volume of the series, or exclude the subject in the config."
        )
    bad = int(np.size(data) - np.isfinite(data).sum())
    if bad:
        raise DataError(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite. "
            "Repair the file, or exclude the subject in the config."
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise DataError(f"{path}: its affine is singular; the voxel size cannot be known.")
    return data, affine


def read_mask(
    path: str | os.PathLike[str], like: tuple[int, ...] | None = None, image: str = "its image"
) -> np.ndarray:
    """Read a mask (any value above zero counts) as bool.

    Args:
        path: the mask file.
        like: the shape that the mask must have.
        image: the name of what it belongs to, for the message.

    Raises:
        DataError: as :func:`read_volume`, or the shape differs from ``like``.
    """
    data, _ = read_volume(path)
    if like is not None and data.shape != tuple(like):
        raise DataError(
            f"{path}: the mask has shape {data.shape}, but {image} has {tuple(like)}. "
            "A mask must be on the grid of its image."
        )
    return data > 0


def write_volume(path: str | os.PathLike[str], data: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as NIfTI-1, whole or not at all, the same bytes for the same content.

    Booleans become uint8. gzip carries no time stamp and no file name.
    """
    data = np.ascontiguousarray(data)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as temporary:
        # nibabel writes an empty name and time stamp 0 into the gzip header
        nib.save(image, temporary)


def write_empty_like(path: str | os.PathLike[str], mask: str | os.PathLike[str]) -> None:
    """Write a mask without any voxel on the grid of another (a healthy subject's lesions)."""
    data, affine = read_volume(mask)
    write_volume(path, np.zeros(data.shape, dtype=bool), affine)
