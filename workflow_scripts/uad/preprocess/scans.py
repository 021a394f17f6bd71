"""Scans in one orientation, and the way to and from ANTs images."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np

from uad.core.errors import DataError
from uad.core.imports import import_lightly
from uad.core.nifti import read_mask, read_volume

#: Parts of ANTsPy (plots, statistics, networks) whose imports take most of its time.
NOT_USED = ("contrib", "deeplearn", "learn", "math", "plotting")
#: How far (in voxels) a mask's corners may lie from its image's before it is worth a warning.
GRID_TOLERANCE = 0.5


@dataclass(frozen=True)
class Scan:
    """A volume whose axes run to the right, to the front and upwards (closest to RAS+).

    Working in one orientation makes every result independent of how the file
    stores its axes.

    Attributes:
        data: (X, Y, Z) float32.
        affine: 4x4, voxel index to RAS+ millimetres, of ``data``.
        raw_affine: 4x4 affine of the file.
        orientation: nibabel's orientation of the file's axes.
        path: the file.
    """

    data: np.ndarray
    affine: np.ndarray
    raw_affine: np.ndarray
    orientation: np.ndarray
    path: Path

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along the axes of ``data``."""
        return tuple(float(value) for value in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def to_raw(self, data: np.ndarray) -> np.ndarray:
        """Bring a volume on the grid of ``data`` back to the axes of the file."""
        back = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), self.orientation
        )
        return np.ascontiguousarray(nib.orientations.apply_orientation(data, back))


def _orient(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    orientation = nib.orientations.io_orientation(affine)
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(data, orientation))
    return turned, affine @ nib.orientations.inv_ornt_aff(orientation, data.shape), orientation


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """Read a 3D volume and turn its axes to RAS+.

    Raises:
        DataError: as :func:`uad.core.nifti.read_volume`.
    """
    raw, raw_affine = read_volume(path)
    data, affine, orientation = _orient(raw, raw_affine)
    return Scan(data, affine, raw_affine, orientation, Path(path))


def read_scan_mask(path: str | os.PathLike[str], scan: Scan) -> tuple[np.ndarray, list[str]]:
    """Read a mask that is stored on the grid of a scan.

    Args:
        path: the mask file.
        scan: the image that it belongs to.

    Returns:
        The mask (X, Y, Z, bool, on the axes of ``scan.data``) and warnings: a header
        that puts the mask elsewhere in the world is reported, and the mask is then
        taken voxel for voxel, because the tools that write such masks copy arrays.

    Raises:
        DataError: the shapes differ, the axes point elsewhere, or the file is unusable.
    """
    path = Path(path)
    shape = scan.to_raw(scan.data).shape
    raw = read_mask(path, like=shape, image=str(scan.path))
    affine = np.asarray(nib.load(path).affine, dtype=np.float64)
    warnings = []
    ours, theirs = nib.aff2axcodes(scan.raw_affine), nib.aff2axcodes(affine)
    if ours != theirs:
        raise DataError(
            f"{path}: the axes of the mask point to {''.join(theirs)}, those of {scan.path} to "
            f"{''.join(ours)}. A mask must be on the grid of its image."
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    apart = float(np.linalg.norm(((affine - scan.raw_affine) @ corners)[:3], axis=0).max())
    if apart > GRID_TOLERANCE * min(scan.spacing):
        warnings.append(
            f"{path.name}: its header lies {apart:.1f} mm from that of {scan.path.name}; "
            "the mask was taken voxel for voxel"
        )
    turned = nib.orientations.apply_orientation(raw, scan.orientation)
    return np.ascontiguousarray(turned), warnings


def import_ants(threads: int = 1) -> ModuleType:
    """Import ANTsPy with a number of ITK threads.

    ITK reads the number once, when it is loaded: a later call in the same process
    keeps the first one. One thread gives the same bytes in every run.
    """
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(max(1, int(threads)))
    return import_lightly("ants", empty=[f"ants.{part}" for part in NOT_USED])


def to_ants(data: np.ndarray, affine: np.ndarray) -> Any:
    """Make an ANTs image (float32, LPS+ world) of a volume with a RAS+ affine.

    ITK needs orthogonal axes: a sheared affine gets the closest ones (polar
    decomposition), exact for every affine without shear.
    """
    import ants

    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    left, _, right = np.linalg.svd(matrix / spacing)
    return ants.from_numpy(
        np.asarray(data, dtype=np.float32),
        origin=[-float(affine[0, 3]), -float(affine[1, 3]), float(affine[2, 3])],
        spacing=[float(value) for value in spacing],
        direction=left @ right,
    )


def shear_of(affine: np.ndarray) -> float:
    """How far the axes of an affine are from orthogonal: the largest cosine between two."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


@contextlib.contextmanager
def ants_workspace(seed: int) -> Iterator[Path]:
    """Give a private directory for the files of ANTs, removed afterwards, with its seed set.

    ``ants.registration`` takes its seed from the configuration of the package only.
    """
    import ants

    before = ants.config._random_seed
    # 0 would mean "from the clock" to ITK
    ants.config.set_ants_deterministic(False, 1 + int(seed) % (2**31 - 2))
    try:
        with tempfile.TemporaryDirectory(prefix="uad-ants-") as folder:
            yield Path(folder)
    finally:
        ants.config.set_ants_deterministic(False, before)


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
