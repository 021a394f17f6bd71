"""Reading and writing NIfTI volumes, with the checks that every stage needs."""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from uad.core.errors import DataError, cause
from uad.core.files import atomic_path

#: How far (in voxels) a mask's corners may lie from its image's before it is worth a warning.
GRID_TOLERANCE = 0.5
#: How a gzip file begins.
GZIP = b"\x1f\x8b"
#: What nibabel raises at a file that is no image, or half of one.
UNREADABLE = (EOFError, OSError, ValueError, TypeError, zlib.error, ImageFileError)


class UnreadableVolumeError(DataError):
    """A file is no usable volume; ``reason`` says why, without the name of the file."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: {reason}. Fetch it again, or exclude the subject in the config.")


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) with their affine (4x4, voxel index to RAS+ mm) and the file's header."""

    data: np.ndarray
    affine: np.ndarray
    header: Any

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along the axes of ``data``."""
        return tuple(float(value) for value in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    @property
    def axes(self) -> str:
        """Where the axes point to, for example ``LPS``."""
        return "".join(nib.aff2axcodes(self.affine))


@dataclass(frozen=True)
class Scan(Volume):
    """A volume whose axes were turned to run right, front and up (closest to RAS+).

    Results do not depend then on how the file at ``path`` stores its axes (``raw_affine``).
    """

    raw_affine: np.ndarray
    path: Path

    def to_raw(self, data: np.ndarray) -> np.ndarray:
        """Bring a volume on the grid of ``data`` back to the axes of the file."""
        ras = nib.orientations.axcodes2ornt("RAS")
        back = nib.orientations.ornt_transform(ras, nib.io_orientation(self.raw_affine))
        return np.ascontiguousarray(nib.orientations.apply_orientation(data, back))


def load_image(path: str | os.PathLike[str], *, voxels: bool = True) -> Any:
    """A nibabel image by what its file holds, whatever its name says of compression.

    For its voxels a packed file is read to its checksum: nibabel stops before that, and would take
    damaged ones.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
    if packed == str(path).endswith(".gz") and not (packed and voxels):
        return nib.load(path)
    content = Path(path).read_bytes()
    content = _unpacked(content) if packed else content
    if content[344:347] == b"n+1":
        return nib.Nifti1Image.from_bytes(content)
    return nib.Nifti2Image.from_bytes(content) if content[4:7] == b"n+2" else nib.load(path)


def _unpacked(content: bytes) -> bytes:
    """The content of a gzip file, checked by its checksums; without what follows its parts."""
    parts = []
    while content.startswith(GZIP):
        unpack = zlib.decompressobj(wbits=31)
        parts.append(unpack.decompress(content))
        if not unpack.eof:
            raise EOFError("the compressed data break off")
        content = unpack.unused_data
    return b"".join(parts)


def open_volume(path: str | os.PathLike[str], dtype: type | None = None) -> Volume:
    """Read a file of any numeric type; a series of one volume counts as a volume.

    Raises:
        UnreadableVolumeError: missing, damaged, not NIfTI, not 3D, no numbers, or no voxel size.
    """
    path = Path(path)
    if not path.exists():
        raise UnreadableVolumeError(path, "no such file")
    try:
        image = load_image(path)
        data = np.asarray(image.dataobj, dtype=dtype)
        affine = np.asarray(image.affine, dtype=np.float64)
    except HeaderDataError as error:
        raise UnreadableVolumeError(path, f"its header is not valid ({error})") from error
    except UNREADABLE as error:
        raise UnreadableVolumeError(
            path,
            "cannot be read as a NIfTI volume, it is probably truncated or damaged "
            f"({cause(error, path)})",
        ) from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3 or not data.size:
        shape = "x".join(map(str, data.shape))
        raise UnreadableVolumeError(path, f"is not a 3D volume but {shape}")
    if data.dtype.kind not in "iufb":
        raise UnreadableVolumeError(path, f"has values of type {data.dtype}, not numbers")
    if not _is_usable(affine):
        raise UnreadableVolumeError(path, "has a singular affine, its voxel size cannot be known")
    return Volume(data, affine, image.header)


def why_unusable(path: str | os.PathLike[str]) -> str:
    """Why :func:`open_volume` would refuse a file; empty where it would not.

    Header and length of the file tell; voxels are read only where these two do not fit.
    """
    if not _is_whole(path):
        try:
            open_volume(path)
        except UnreadableVolumeError as error:
            return error.reason
    return ""


def _is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file is as long as its header says, and this is that of a plain volume."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
            if packed := head.startswith(GZIP):
                head = zlib.decompressobj(wbits=31).decompress(head)
            file.seek(-4 if packed else 0, os.SEEK_END)
            # gzip ends with the length of its content (RFC 1952)
            size = int.from_bytes(file.read(), "little") if packed else file.tell()
        header = nib.Nifti1Header(head[:348])
        shape, kind = header.get_data_shape(), header.get_data_dtype()
        affine, _ = header.get_best_affine(), header.get_slope_inter()
        end = header.get_data_offset() + math.prod(shape) * kind.itemsize
    except (*UNREADABLE, HeaderDataError, WrapStructError):
        return False
    plain = header["magic"] == b"n+1" and len(shape) == 3 and min(shape) > 0 and kind.kind in "iuf"
    return plain and size == end and _is_usable(affine)


def _is_usable(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) > 1e-6


def _read_finite(path: str | os.PathLike[str]) -> Volume:
    volume = open_volume(path, np.float32)
    if bad := int(volume.data.size - np.isfinite(volume.data).sum()):
        reason = f"{bad} of {volume.data.size} voxels are NaN or infinite"
        raise UnreadableVolumeError(path, reason)
    return volume


def read_grid(path: str | os.PathLike[str]) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (without axes of one volume) and affine (4x4) of a file, by its header alone.

    Raises:
        UnreadableVolumeError: it cannot be read.
    """
    try:
        image = load_image(path, voxels=False)
    except (*UNREADABLE, HeaderDataError) as error:
        raise UnreadableVolumeError(path, f"cannot be read as a NIfTI volume ({error})") from error
    shape = image.shape
    return shape[:3] + tuple(n for n in shape[3:] if n != 1), image.affine


def read_volume(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3D volume as float32 with its affine (4x4, RAS+, millimetres).

    Raises:
        DataError: as :func:`open_volume`, or the volume has NaN or infinite values.
    """
    volume = _read_finite(path)
    return volume.data, volume.affine


def read_mask(
    path: str | os.PathLike[str],
    like: Sequence[int],
    image: str | os.PathLike[str],
    labels: Sequence[int] | None = None,
) -> Volume:
    """Read a mask as bool: the voxels with one of ``labels``; by default those above zero.

    Raises:
        DataError: as :func:`read_volume`, or the shape is not ``like``, that of its ``image``.
    """
    volume = _read_finite(path)
    if volume.data.shape != tuple(like):
        raise DataError(
            f"{path}: the mask has shape {volume.data.shape}, but {image} has {tuple(like)}. "
            "A mask must be on the grid of its image."
        )
    inside = volume.data > 0 if labels is None else np.isin(volume.data, labels)
    return Volume(inside, volume.affine, volume.header)


def corner_distance(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """How far (mm) two affines put a corner of a volume of that shape apart."""
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in shape], [1]))).T
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """Read a 3D volume and turn its axes to RAS+.

    Raises:
        DataError: as :func:`read_volume`.
    """
    raw = _read_finite(path)
    orientation = nib.io_orientation(raw.affine)
    data = np.ascontiguousarray(nib.orientations.apply_orientation(raw.data, orientation))
    affine = raw.affine @ nib.orientations.inv_ornt_aff(orientation, raw.data.shape)
    return Scan(data, affine, raw.header, raw.affine, Path(path))


def read_scan_mask(
    path: str | os.PathLike[str], scan: Scan, labels: Sequence[int] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Read a mask that is stored on the grid of a scan.

    Returns:
        The mask (X, Y, Z, bool, on the axes of ``scan.data``) and warnings: a mask whose header
        puts it elsewhere is taken voxel for voxel, as tools that write such masks copy arrays.

    Raises:
        DataError: the shapes differ, the axes point elsewhere, or the file is unusable.
    """
    path, shape = Path(path), scan.to_raw(scan.data).shape
    mask = read_mask(path, shape, scan.path, labels)
    axes = "".join(nib.aff2axcodes(scan.raw_affine))
    if axes != mask.axes:
        raise DataError(
            f"{path}: the axes of the mask point to {mask.axes}, those of {scan.path} to "
            f"{axes}. A mask must be on the grid of its image."
        )
    warnings, apart = [], corner_distance(mask.affine, scan.raw_affine, shape)
    if apart > GRID_TOLERANCE * min(scan.spacing):
        warnings.append(
            f"{path.name}: its header lies {apart:.1f} mm from that of {scan.path.name}; "
            "the mask was taken voxel for voxel"
        )
    turned = nib.orientations.apply_orientation(mask.data, nib.io_orientation(scan.raw_affine))
    return np.ascontiguousarray(turned), warnings


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
