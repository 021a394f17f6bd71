"""A raw image: its file as it is, and its head on a coarse grid."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Grid (mm) on which outlines are compared: fine enough for a head, and fast.
COARSE = 2.0
#: Share of equal voxels at the border of a volume whose background was set: there is no skull.
SET_BACKGROUND = 0.95


class UnusableFileError(Exception):
    """A file cannot be measured; the message names it."""


def reason(error: Exception, path: str) -> str:
    """Why a file cannot be measured; a surprise goes into the log with its traceback."""
    if isinstance(error, UnusableFileError):
        return str(error)
    logging.error("%s cannot be measured", path, exc_info=error)
    return f"cannot be measured ({_first_line(error)}): {path}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


@dataclass
class Volume:
    """A file as it is: ``data`` (X, Y, Z) with the file's own numbers, ``affine`` 4x4."""

    data: np.ndarray
    affine: np.ndarray
    header: Any

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (mm) along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axes(self) -> str:
        """Where the axes point to, for example ``LPS``."""
        import nibabel as nib

        return "".join(nib.aff2axcodes(self.affine))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def digest(self) -> str:
        """Hash of shape and values, whatever the file's type and compression."""
        digest = hashlib.sha256(repr(self.data.shape).encode())
        digest.update(np.ravel(self.data, order="F").astype(np.float32, copy=False))
        return f"h{digest.hexdigest()[:20]}"  # a letter first: nobody may take it for a number

    def header_mm(self) -> float:
        """Distance (mm) of qform and sform at a corner; NaN where the header has only one."""
        try:
            both = self.header["qform_code"] > 0 and self.header["sform_code"] > 0
        except (ValueError, KeyError, IndexError):
            return np.nan
        if not both:
            return np.nan
        from uad.core.nifti import corner_distance

        return corner_distance(self.header.get_qform(), self.header.get_sform(), self.data.shape)

    def shear(self) -> float:
        """Largest cosine between two axes."""
        axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.abs(axes.T @ axes - np.eye(3)).max())


def read_raw(path: str) -> Volume:
    """Open a file of any numeric type.

    Raises:
        UnusableFileError: missing, damaged, not 3D, no numbers, or no voxel size.
    """
    from uad.core.nifti import UnreadableVolumeError, open_volume

    try:
        return Volume(*open_volume(path))
    except UnreadableVolumeError as error:
        raise UnusableFileError(f"{error.reason}: {path}") from error


def _by(values: Sequence[float]) -> str:
    return "x".join(f"{v:g}" for v in values)


class Image:
    """An image with its foreground on a coarse grid.

    Attributes:
        volume: the file.
        data: float32 (X, Y, Z), not finite values as 0.
        stripped: without skull: the foreground is what differs from the background.
        filled: bool, the foreground without holes, every ``stride``-th voxel.
        sd: standard deviation of the foreground's values.
    """

    def __init__(self, volume: Volume, stripped: bool | None) -> None:
        from scipy import ndimage

        self.volume = volume
        self.data = np.asarray(volume.data, dtype=np.float32)
        self.nonfinite = int(self.data.size - np.isfinite(self.data).sum())
        if self.nonfinite:
            self.data = np.nan_to_num(self.data, nan=0, posinf=0, neginf=0)
        self.stride = tuple(max(1, round(COARSE / s)) for s in volume.spacing)
        small = self.coarse(self.data)
        border = np.concatenate([np.take(small, (0, -1), axis).ravel() for axis in range(3)])
        values, counts = np.unique(border, return_counts=True)
        background, share = values[counts.argmax()], counts.max() / border.size
        self.stripped = bool(share >= SET_BACKGROUND) if stripped is None else stripped
        foreground = small != background if self.stripped else small > _otsu(small)
        self.filled = ndimage.binary_fill_holes(foreground)
        self.sd = float(small[foreground].std()) if foreground.any() else 0.0
        self.nonzero = float(np.count_nonzero(small) / small.size)

    def coarse(self, data: np.ndarray) -> np.ndarray:
        """Every ``stride``-th voxel of an array on this grid."""
        return data[tuple(slice(None, None, s) for s in self.stride)]

    def measures(self) -> dict[str, Any]:
        """The columns of :mod:`uad.qc.raw` that concern the image alone."""
        volume, data = self.volume, self.data
        return {
            "error": "",
            "shape": _by(data.shape),
            "spacing": _by(np.round(volume.spacing, 3)),
            "orientation": volume.axes,
            "stripped": "yes" if self.stripped else "no",
            "extent": _by(np.round(self._extent())),
            "digest": volume.digest(),
            "voxel_ml": volume.voxel_ml,
            "shear": volume.shear(),
            "header_mm": volume.header_mm(),
            "nonfinite": self.nonfinite,
            "minimum": float(data.min()),
            "maximum": float(data.max()),
            "negative": float((data < 0).mean()),
            "nonzero": self.nonzero,
            "foreground_ml": float(self.filled.sum() * volume.voxel_ml * np.prod(self.stride)),
        }

    def _extent(self) -> np.ndarray:
        """Extent of the foreground (mm) to the right, to the front and upwards."""
        import nibabel as nib

        extent = np.zeros(3)
        orientation = nib.orientations.io_orientation(self.volume.affine)
        for axis in range(3):
            profile = self.filled.sum(axis=tuple(a for a in range(3) if a != axis))
            if total := profile.sum():
                place = np.cumsum(profile) / total
                length = 1 + (np.searchsorted(place, 0.995) - np.searchsorted(place, 0.005))
                along = int(orientation[axis, 0])
                extent[along] = length * self.stride[axis] * self.volume.spacing[axis]
        return extent

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Which voxels (N, 3) lie in the volume and in the filled foreground."""
        valid = ((points >= 0) & (points < self.data.shape)).all(axis=1)
        coarse = np.minimum(points // self.stride, np.array(self.filled.shape) - 1)
        valid[valid] = self.filled[tuple(coarse[valid].T)]
        return valid

    def grid_of(self, mask: Volume) -> tuple[str, float]:
        """How the axes of a mask differ from ours (or "") and its distance in voxels."""
        image = self.volume
        if mask.data.shape != image.data.shape:
            return f"has {_by(mask.data.shape)} voxels, its image {_by(image.data.shape)}", np.nan
        axes = f"its axes point to {mask.axes}, those of its image to {image.axes}"
        from uad.core.nifti import corner_distance

        off = corner_distance(mask.affine, image.affine, image.data.shape)
        off /= float(image.spacing.min())
        return axes if mask.axes != image.axes else "", off


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts a volume into two classes (Otsu 1979), robust to outliers."""
    low, high = np.percentile(values, [0, 99.5])
    counts, edges = np.histogram(values, bins=256, range=(low, high if high > low else low + 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_below = np.cumsum(counts * centres) / below
        mean_above = (np.cumsum((counts * centres)[::-1]) / np.cumsum(counts[::-1]))[::-1]
    between = np.nan_to_num(below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2.0)
    return float(edges[1 + int(between.argmax())])
