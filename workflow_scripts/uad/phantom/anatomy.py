"""Shape of a phantom: the template bent to one subject, on the grid of its files.

Coordinates: *template* means ICBM152 millimetres (RAS+), *scanner* means the world of the written
file (RAS+, millimetres). Random fields live on nodes with a fixed distance in millimetres, so that
a subject keeps its anatomy and its lesions at every resolution.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from uad.core.errors import DataError

#: ICBM152 is larger than an average brain; these factors give the size of SRI24's.
_TEMPLATE_SCALE = np.array([0.90, 0.96, 0.88])
#: The same as one number, where only a voxel's size in template mm is needed.
SHRINKAGE = float(np.mean(_TEMPLATE_SCALE))
#: Middle of the template brain's bounding box, template mm.
_TEMPLATE_CENTRE = np.array([0.0, -17.0, 5.0])


@dataclass(frozen=True)
class Layout:
    """What distinguishes the images of one data set from those of another.

    ``extent`` is the field of view in mm along right-left, back-front, foot-head; ``centre`` and
    ``corner`` are scanner coordinates of the middle of the brain and of the outer corner of voxel
    (0, 0, 0); ``directions`` is the sign of the step along each array axis, (-1, -1, +1) is LPS.
    """

    subject_limit: int
    whole_head: bool
    extent: tuple[float, float, float]
    centre: tuple[float, float, float]
    corner: tuple[float, float, float]
    directions: tuple[int, int, int]
    lesion: Literal["tumour", "plaques"] | None = None
    brain_mask: bool = False


_HEAD = Layout(
    subject_limit=998,
    whole_head=True,
    extent=(192.0, 240.0, 204.0),
    centre=(0.0, -10.0, 0.0),
    corner=(-96.0, -120.0, -109.0),
    directions=(1, 1, 1),
)
LAYOUTS = {
    "ixi": _HEAD,
    "brats21": Layout(
        subject_limit=100_000,
        whole_head=False,
        extent=(240.0, 240.0, 155.0),
        centre=(-119.0, 109.0, 73.0),
        corner=(0.5, 239.5, -0.5),
        directions=(-1, -1, 1),
        lesion="tumour",
    ),
    "mslub": replace(_HEAD, subject_limit=99, lesion="plaques", brain_mask=True),
}


def along(axis: int, values: np.ndarray) -> np.ndarray:
    """One value per voxel of an axis, in a shape that broadcasts over the volume."""
    return values.reshape([-1 if other == axis else 1 for other in range(3)])


@dataclass(frozen=True)
class Template:
    """Tissue maps on the template grid, blurred to a working resolution.

    ``tissue`` holds ``gm``, ``wm`` and ``brain`` fractions in [0, 1] at 1 mm from
    ``tissue_origin`` (template mm), ``outside`` the signed distance in mm to a smooth brain
    surface (negative within) at 2 mm from ``outside_origin``. The sites, ``(K, 3)`` template
    coordinates, are where a tumour or a plaque may begin, ``plaque_weights`` their probability.
    """

    tissue: dict[str, np.ndarray]
    tissue_origin: np.ndarray
    outside: np.ndarray
    outside_origin: np.ndarray
    tumour_sites: np.ndarray
    plaque_sites: np.ndarray
    plaque_weights: np.ndarray


@lru_cache(maxsize=1)
def _load_template() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tissue fractions at 1 mm, cropped to the brain, and the crop's origin in mm."""
    from scipy import ndimage

    from uad.core.nifti import read_volume

    # find_spec does not run nilearn, whose import costs more than a subject
    spec = importlib.util.find_spec("nilearn")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data" if spec else Path()
    maps = {}
    for name in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if spec is None or not path.exists():
            raise DataError(f"{path}: not found. The phantom needs the Python package nilearn.")
        maps[name], affine = read_volume(path)
    box = ndimage.find_objects((maps["t1"] > 0).astype(np.uint8))[0]
    # below, the template ends at its own border in the brain stem
    box = tuple(slice(max(part.start - 4, 0), part.stop + 4) for part in box)
    brain = maps["t1"][box] > 0
    # one millimetre of fluid around the gyri, as skull-stripping tools leave
    brain = ndimage.binary_dilation(brain)
    gm = np.where(brain, maps["gm"][box] / np.float32(255), 0).astype(np.float32)
    wm = np.where(brain, maps["wm"][box] / np.float32(255), 0).astype(np.float32)
    csf = np.clip(brain - gm - wm, 0, 1)
    # The maps are averages of 152 people; squares bring back a single one's edges.
    # Fluid is weighted up because averaging hides most of the narrow sulci.
    weights = [2.0 * csf**2, gm**2, wm**2]
    total = np.maximum(sum(weights), np.float32(1e-6))
    tissue = {
        "gm": (weights[1] / total).astype(np.float32),
        "wm": (weights[2] / total).astype(np.float32),
        "brain": brain.astype(np.float32),
    }
    return tissue, affine[:3, 3] + [part.start for part in box]


@lru_cache(maxsize=2)
def template_at(spacing: float) -> Template:
    """The template for a voxel size in mm (partial volume included)."""
    from scipy import ndimage

    sharp, origin = _load_template()
    width = max(round(spacing / SHRINKAGE), 1)
    tissue = {name: ndimage.uniform_filter(data, width) for name, data in sharp.items()}

    coarse, pad = 2, 16
    fine = tuple(slice(None, None, coarse) for _ in range(3))
    brain = np.pad(sharp["brain"][fine] > 0.5, pad)
    # the inner table of the skull does not follow the sulci; 10 mm of closing
    hull = ndimage.distance_transform_edt(~brain) <= 5
    hull = ndimage.distance_transform_edt(hull) > 5
    outside = ndimage.distance_transform_edt(~hull) - ndimage.distance_transform_edt(hull)
    outside = ndimage.gaussian_filter((coarse * outside).astype(np.float32), 1.5)
    inner = outside[pad:-pad, pad:-pad, pad:-pad]

    wm = sharp["wm"][fine]
    csf = sharp["brain"][fine] - sharp["gm"][fine] - wm
    x, _, z = (along(axis, origin[axis] + coarse * np.arange(wm.shape[axis])) for axis in range(3))
    ventricles = (csf > 0.6) & (inner < -20) & (z > -8) & (np.abs(x) < 45)
    to_ventricle = coarse * ndimage.distance_transform_edt(~ventricles)
    tumour = (wm > 0.8) & (inner < -12) & (inner > -34) & (np.abs(x) > 16) & (z > -12)
    plaque = (wm > 0.75) & (inner < -8) & (to_ventricle < 30) & (z > -6) & (np.abs(x) > 4)
    density = np.exp(-to_ventricle[plaque] / 7.0)

    def places(mask: np.ndarray) -> np.ndarray:
        return origin + coarse * np.argwhere(mask)

    outside_origin, weights = origin - coarse * pad, density / density.sum()
    return Template(
        tissue, origin, outside, outside_origin, places(tumour), places(plaque), weights
    )


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file: its affine, and the millimetres along each axis."""

    affine: np.ndarray
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return tuple(len(axis) for axis in self.axes)

    def smooth_field(self, rng: np.random.Generator, scale: float) -> np.ndarray:
        """A smooth random field, mean 0, standard deviation 1, float32, of the grid's shape.

        Cubic B-splines with white-noise coefficients on nodes ``scale`` mm apart:
        twice differentiable, and the same at every voxel size. Plain sums of
        four terms per axis, because what BLAS returns depends on its threads.
        """
        # a fixed number of nodes, enough for the largest field of view
        values = rng.standard_normal([int(260 / scale) + 4] * 3, dtype=np.float32)
        for axis, places in enumerate(self.axes):
            position = (np.abs(places - places[0]) + self.spacing / 2) / scale
            start = np.floor(position).astype(int)
            t = (position - start).astype(np.float32)
            inner = (3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1)
            weights = ((1 - t) ** 3, *inner, t**3)
            values = sum(
                np.take(values, start + step, axis=axis) * along(axis, weight / 6)
                for step, weight in enumerate(weights)
            )
        # the squares of the four weights sum to 151/315 on average
        return values * np.float32((315 / 151) ** 1.5)


def make_grid(kind: Layout, spacing: float) -> Grid:
    """The grid of a layout's files at a voxel size in mm."""
    steps = spacing * np.array(kind.directions, dtype=float)
    first = np.array(kind.corner) + steps / 2
    counts = [round(extent / spacing) for extent in kind.extent]
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = first
    axes = tuple(
        start + step * np.arange(count)
        for start, step, count in zip(first, steps, counts, strict=True)
    )
    return Grid(affine, axes, spacing)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix about x, then y, then z; angles in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles)):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = cos
        turn[first, second], turn[second, first] = -sin, sin
        matrix = turn @ matrix
    return matrix


def template_coordinates(
    kind: Layout, grid: Grid, rng: np.random.Generator, bulge: np.ndarray | None
) -> np.ndarray:
    """Template coordinates in mm of every voxel, ``(3, X, Y, Z)`` float32.

    An affine map (pose, and size within about 5 %), then a smooth displacement of
    some millimetres. ``bulge`` is a template point that a tumour pushes away from.
    """
    # BraTS is already registered to SRI24, so only a residual pose is left
    turn, shift = (4.0, 4.0) if kind.whole_head else (1.0, 1.0)
    pose = rotation(rng.uniform(-turn, turn, 3))
    scale = _TEMPLATE_SCALE * (1 + rng.uniform(-0.025, 0.025) + rng.uniform(-0.025, 0.025, 3))
    matrix = (pose.T / scale[:, None]).astype(np.float32)
    centre = np.array(kind.centre) + rng.uniform(-shift, shift, 3)
    x, y, z = (
        along(axis, (places - middle).astype(np.float32))
        for axis, (places, middle) in enumerate(zip(grid.axes, centre, strict=True))
    )
    coordinates = np.empty((3, *grid.shape), dtype=np.float32)
    for axis in range(3):
        coordinates[axis] = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] * z
        coordinates[axis] += np.float32(_TEMPLATE_CENTRE[axis])
        # amplitude over node distance stays near 0.1, so that nothing folds
        coordinates[axis] += np.float32(3.5) * grid.smooth_field(rng, 45.0)
        coordinates[axis] += np.float32(1.3) * grid.smooth_field(rng, 16.0)
    if bulge is not None:
        away = coordinates - bulge.astype(np.float32).reshape(3, 1, 1, 1)
        pull = np.float32(rng.uniform(0.10, 0.22)) * np.exp(-(away**2).sum(0) / np.float32(1800))
        coordinates -= pull * away
    return coordinates


def _sample(
    volume: np.ndarray, origin: np.ndarray, step: float, coordinates: np.ndarray, mode: str
) -> np.ndarray:
    """Values of a template volume at template coordinates, linear interpolation."""
    from scipy import ndimage

    index = (coordinates - origin.astype(np.float32).reshape(3, 1, 1, 1)) / np.float32(step)
    return ndimage.map_coordinates(volume, index, output=np.float32, order=1, mode=mode)


@dataclass(frozen=True)
class Anatomy:
    """One subject's brain on its grid.

    ``csf``, ``gm``, ``wm`` are fractions that sum to ``cover``, the fraction of the voxel that is
    brain; ``brain`` is ``cover`` above one half; ``outside`` is as in :class:`Template`.
    """

    grid: Grid
    coordinates: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    cover: np.ndarray
    brain: np.ndarray
    outside: np.ndarray


def make_anatomy(
    template: Template, grid: Grid, coordinates: np.ndarray, rng: np.random.Generator
) -> Anatomy:
    """The tissues of one subject, with its own sulci and ventricles."""
    gm, wm, cover = (
        _sample(template.tissue[name], template.tissue_origin, 1.0, coordinates, "constant")
        for name in ("gm", "wm", "brain")
    )
    outside = _sample(template.outside, template.outside_origin, 2.0, coordinates, "nearest")
    csf = np.maximum(cover - gm - wm, 0)
    # age differs: wider or narrower sulci and ventricles, unlike from place to place
    csf *= np.exp(np.float32(rng.uniform(-0.3, 0.5)) + 0.45 * grid.smooth_field(rng, 11.0))
    gm *= np.exp(np.float32(0.3) * grid.smooth_field(rng, 11.0))
    scale = cover / np.maximum(csf + gm + wm, np.float32(1e-6))
    csf, gm, wm = csf * scale, gm * scale, wm * scale
    return Anatomy(grid, coordinates, csf, gm, wm, cover, cover > 0.5, outside)
