"""Synthetic brain MRI in the public file layouts of IXI, BraTS 2021 and MSLUB.

The phantom is the demonstration data of the workflow: raw data-set trees that
the same code reads as the real ones. Anatomy comes from the tissue probability
maps of the ICBM152 2009a template (Fonov et al., NeuroImage 54, 2011,
doi:10.1016/j.neuroimage.2010.07.033), which ship in the wheel of nilearn.
Every subject bends them by its own smooth random deformation, widens or narrows
its sulci, and gets a contrast per modality, a bias field, tissue texture and
Rician noise. Whole-head layouts add a skull, a scalp, eyes and a neck; the other
layouts add lesions: a glioma (necrotic core, enhancing rim, oedema that follows
the white matter) or multiple-sclerosis plaques.

Contrasts are set so that in-mask percentiles agree with those measured on real
scans; ``tests/test_phantom.py`` holds them there. A phantom shows that the
workflow works. It says nothing about how well a method finds real lesions.

Coordinates: *template* means ICBM152 millimetres (RAS+), *scanner* means the
world of the written file (RAS+, millimetres). Random fields live on nodes with
a fixed distance in millimetres, so that a subject keeps its anatomy and its
lesions at every resolution.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from uad.core.errors import ConfigError, DataError
from uad.core.patterns import BRAIN, LESION, layout_of
from uad.core.seeds import derive_seed

_SPACING_LIMITS = (0.5, 6.0)
"""Voxel sizes in mm for which skull, rim and plaques are still drawn sensibly."""

_TEMPLATE_SCALE = np.array([0.90, 0.96, 0.88])
"""ICBM152 is larger than an average brain; these factors give the size of SRI24's."""

_SHRINKAGE = float(np.mean(_TEMPLATE_SCALE))
"""The same as one number, where only a voxel's size in template mm is needed."""

_TEMPLATE_CENTRE = np.array([0.0, -17.0, 5.0])
"""Middle of the template brain's bounding box, template mm."""


def _signals(tissues: str, **rows: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """A table of signals: one row per modality, one column per tissue."""
    return {name: dict(zip(tissues.split(), row, strict=True)) for name, row in rows.items()}


# Signals are relative to about the brightest brain tissue of a sequence.
_HEAD_SIGNAL = _signals(
    "fat   muscle bone marrow eye vessel dura",
    T1=(1.15, 0.50, 0.06, 0.75, 0.16, 0.40, 0.60),
    T1CE=(1.15, 0.55, 0.06, 0.75, 0.16, 1.20, 1.08),
    T2=(0.62, 0.17, 0.04, 0.30, 1.00, 0.10, 0.08),
    FLAIR=(0.60, 0.32, 0.04, 0.30, 0.12, 0.30, 1.08),
)
# "iron" is grey matter rich in iron, "core" necrosis, "rim" enhancing tumour.
_GLIOMA_SIGNAL = _signals(
    "csf gm wm iron oedema core rim",
    T1=(0.12, 0.56, 0.82, 0.72, 0.56, 0.36, 0.58),
    T1CE=(0.12, 0.55, 0.71, 0.64, 0.47, 0.26, 1.00),
    T2=(1.00, 0.46, 0.32, 0.18, 0.65, 0.80, 0.56),
    FLAIR=(0.08, 0.67, 0.58, 0.55, 0.95, 0.82, 0.90),
)
_SCLEROSIS_SIGNAL = _signals(
    "csf gm wm iron plaque",
    T1=(0.10, 0.63, 0.88, 0.77, 0.50),
    T1CE=(0.12, 0.60, 0.82, 0.72, 0.54),
    T2=(1.00, 0.43, 0.33, 0.17, 0.84),
    FLAIR=(0.08, 0.78, 0.68, 0.66, 1.05),
)
_IRON_NUCLEI = (
    ((19.0, -4.0, -1.0), (6.5, 11.0, 8.0)),
    ((26.0, 3.0, 1.0), (6.0, 16.0, 9.0)),
    ((9.0, -18.0, -10.0), (6.0, 7.0, 5.0)),
    ((15.0, -58.0, -34.0), (9.0, 8.0, 6.0)),
)
"""Pallidum, putamen, nigra with red nucleus, dentate: right-hand centre, radii; template mm."""

_LESION_CLASSES = ("oedema", "core", "rim", "plaque")


@dataclass(frozen=True)
class _Layout:
    """What distinguishes the images of one data set from those of another."""

    subject_limit: int
    signal: dict[str, dict[str, float]]
    whole_head: bool
    extent: tuple[float, float, float]
    """Field of view in mm along right-left, back-front, foot-head."""
    centre: tuple[float, float, float]
    """Scanner coordinates of the middle of the brain."""
    corner: tuple[float, float, float]
    """Scanner coordinates of the outer corner of voxel (0, 0, 0)."""
    directions: tuple[int, int, int]
    """Sign of the step along each array axis: +1 is RAS, (-1, -1, +1) is LPS."""
    lesion: Literal["tumour", "plaques"] | None = None
    brain_mask: bool = False


_LAYOUTS = {
    "ixi": _Layout(
        subject_limit=998,
        signal=_SCLEROSIS_SIGNAL,
        whole_head=True,
        extent=(192.0, 240.0, 204.0),
        centre=(0.0, -10.0, 0.0),
        corner=(-96.0, -120.0, -109.0),
        directions=(1, 1, 1),
    ),
    "brats21": _Layout(
        subject_limit=100_000,
        signal=_GLIOMA_SIGNAL,
        whole_head=False,
        extent=(240.0, 240.0, 155.0),
        centre=(-119.0, 109.0, 73.0),
        corner=(0.5, 239.5, -0.5),
        directions=(-1, -1, 1),
        lesion="tumour",
    ),
    "mslub": _Layout(
        subject_limit=99,
        signal=_SCLEROSIS_SIGNAL,
        whole_head=True,
        extent=(192.0, 240.0, 204.0),
        centre=(0.0, -10.0, 0.0),
        corner=(-96.0, -120.0, -109.0),
        directions=(1, 1, 1),
        lesion="plaques",
        brain_mask=True,
    ),
}


# --------------------------------------------------------------------------- interface


def subject_names(layout: str, n: int, seed: int) -> list[str]:
    """Names of the first ``n`` subjects, in the data set's own style.

    The list for a smaller ``n`` is the beginning of the list for a larger one.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        n: number of subjects, 0 or more.
        seed: master seed; it chooses IXI's site and scan number, the other
            layouts only count.

    Raises:
        ConfigError: unknown layout, or more subjects than its names can count.
    """
    limit = _layout(layout).subject_limit
    if not 0 <= n <= limit:
        raise ConfigError(f"phantom {layout}: n is {n}, its file names allow 0 to {limit}.")
    if layout == "ixi":
        return [_ixi_name(number, seed) for number in range(2, n + 2)]
    if layout == "brats21":
        return [f"BraTS2021_{number:05d}" for number in range(n)]
    return [f"patient{number:02d}" for number in range(1, n + 1)]


def write_dataset(
    out_dir: str | os.PathLike[str],
    layout: str,
    n: int,
    modalities: Sequence[str],
    spacing: float,
    seed: int,
) -> list[Path]:
    """Write ``n`` subjects; see :func:`write_subject`.

    Returns:
        All paths written, subject by subject.

    Raises:
        ConfigError: as :func:`subject_names` and :func:`write_subject`.
    """
    return [
        path
        for subject in subject_names(layout, n, seed)
        for path in write_subject(out_dir, layout, subject, modalities, spacing, seed)
    ]


def write_subject(
    out_dir: str | os.PathLike[str],
    layout: str,
    subject: str,
    modalities: Sequence[str],
    spacing: float,
    seed: int,
) -> list[Path]:
    """Write one subject's images, and its masks where the real data set has them.

    Images are int16 with a scanner-like scale that differs between scans (white
    or grey matter at some hundreds); masks are uint8. A subject depends on
    ``(seed, layout, subject)`` alone and each image also on its modality, not on
    which others are asked for. Equal arguments give equal bytes.

    Args:
        out_dir: root of the raw tree, made if absent.
        layout: ``ixi``, ``brats21`` or ``mslub``.
        subject: a name as :func:`subject_names` gives.
        modalities: some of ``T1``, ``T1CE``, ``T2``, ``FLAIR``.
        spacing: isotropic voxel size in mm, 0.5 to 6.
        seed: master seed.

    Returns:
        The paths written: images in the order of ``modalities``, then masks.

    Raises:
        ConfigError: unknown layout, a name of another style, no modality, one
            that the real data set lacks or named twice, or an unusable spacing.
        DataError: nilearn's template files are not installed.
    """
    kind = _layout(layout)
    _check_request(layout, subject, modalities, spacing)
    from uad.core.nifti import write_volume

    images, masks, affine = _make_subject(
        kind, modalities, float(spacing), derive_seed(seed, layout, subject)
    )
    paths = []
    for role, data in {**images, **masks}.items():
        path = Path(out_dir) / layout_of(layout).path(subject, role)
        write_volume(path, data, affine)
        paths.append(path)
    return paths


def _layout(name: str) -> _Layout:
    if name not in _LAYOUTS:
        raise ConfigError(f"phantom: unknown layout {name!r}, expected one of {sorted(_LAYOUTS)}.")
    return _LAYOUTS[name]


def _ixi_name(number: int, seed: int) -> str:
    draw = derive_seed(seed, "ixi", "name", number)
    # Guys scanned more than half of IXI, Hammersmith a third, the Institute the rest
    site = ("Guys", "Guys", "Guys", "Guys", "HH", "HH", "HH", "IOP")[draw % 8]
    return f"IXI{number:03d}-{site}-{600 + draw // 8 % 2200:04d}"


def _check_request(layout: str, subject: str, modalities: Sequence[str], spacing: float) -> None:
    patterns = layout_of(layout)
    if not re.fullmatch(patterns.subject, subject):
        raise ConfigError(
            f"phantom {layout}: {subject!r} is not a subject name of this data set "
            f"(pattern {patterns.subject})."
        )
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ConfigError(
            f"phantom {layout}: modalities must be a list of distinct names, not {modalities!r}."
        )
    missing = [name for name in modalities if name not in patterns.modalities]
    if missing:
        raise ConfigError(
            f"phantom {layout}: the real data set has no {', '.join(missing)}; "
            f"choose from {', '.join(patterns.modalities)}."
        )
    low, high = _SPACING_LIMITS
    if not low <= spacing <= high:
        raise ConfigError(
            f"phantom {layout}: spacing is {spacing} mm, allowed are {low} to {high}."
        )


# ---------------------------------------------------------------------------- template


@dataclass(frozen=True)
class _Template:
    """Tissue maps on the template grid, blurred to a working resolution.

    ``tissue`` holds ``gm``, ``wm`` and ``brain`` fractions in [0, 1], float32, at
    1 mm from ``tissue_origin`` (template mm). ``outside`` is the signed distance
    in mm to a smooth brain surface (negative within), at 2 mm from
    ``outside_origin``. The two ``(K, 3)`` arrays are template coordinates
    where a tumour or a plaque may begin, ``plaque_weights`` (K,) their probability.
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
    import nibabel as nib
    from scipy import ndimage

    # find_spec does not run nilearn, whose import costs more than a subject
    spec = importlib.util.find_spec("nilearn")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data" if spec else Path()
    maps = {}
    for name in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if spec is None or not path.exists():
            raise DataError(f"{path}: not found. The phantom needs the Python package nilearn.")
        image = nib.load(path)
        maps[name] = np.asarray(image.dataobj)
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
    origin = image.affine[:3, 3] + [part.start for part in box]
    return tissue, origin


@lru_cache(maxsize=2)
def _template(spacing: float) -> _Template:
    """The template for a voxel size in mm (partial volume included)."""
    from scipy import ndimage

    sharp, origin = _load_template()
    width = max(round(spacing / _SHRINKAGE), 1)
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
    x, _, z = (
        (origin[axis] + coarse * np.arange(wm.shape[axis])).reshape(
            [-1 if other == axis else 1 for other in range(3)]
        )
        for axis in range(3)
    )
    ventricles = (csf > 0.6) & (inner < -20) & (z > -8) & (np.abs(x) < 45)
    to_ventricle = coarse * ndimage.distance_transform_edt(~ventricles)
    tumour = (wm > 0.8) & (inner < -12) & (inner > -34) & (np.abs(x) > 16) & (z > -12)
    plaque = (wm > 0.75) & (inner < -8) & (to_ventricle < 30) & (z > -6) & (np.abs(x) > 4)
    density = np.exp(-to_ventricle[plaque] / 7.0)

    def places(mask: np.ndarray) -> np.ndarray:
        return origin + coarse * np.argwhere(mask)

    return _Template(
        tissue=tissue,
        tissue_origin=origin,
        outside=outside,
        outside_origin=origin - coarse * pad,
        tumour_sites=places(tumour),
        plaque_sites=places(plaque),
        plaque_weights=density / density.sum(),
    )


# -------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class _Grid:
    """The voxel grid of a file: its affine, and the millimetres along each axis."""

    affine: np.ndarray
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
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
            weights = (
                (1 - t) ** 3,
                3 * t**3 - 6 * t**2 + 4,
                -3 * t**3 + 3 * t**2 + 3 * t + 1,
                t**3,
            )
            shape = [-1 if other == axis else 1 for other in range(3)]
            values = sum(
                np.take(values, start + step, axis=axis) * (weight / 6).reshape(shape)
                for step, weight in enumerate(weights)
            )
        # the squares of the four weights sum to 151/315 on average
        return values * np.float32((315 / 151) ** 1.5)


def _make_grid(kind: _Layout, spacing: float) -> _Grid:
    steps = spacing * np.array(kind.directions, dtype=float)
    first = np.array(kind.corner) + steps / 2
    counts = [round(extent / spacing) for extent in kind.extent]
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = first
    axes = tuple(
        start + step * np.arange(count)
        for start, step, count in zip(first, steps, counts, strict=True)
    )
    return _Grid(affine, axes, spacing)


def _rotation(angles: np.ndarray) -> np.ndarray:
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


def _template_coordinates(
    kind: _Layout, grid: _Grid, rng: np.random.Generator, bulge: np.ndarray | None
) -> np.ndarray:
    """Template coordinates in mm of every voxel, ``(3, X, Y, Z)`` float32.

    An affine map (pose, and size within about 5 %), then a smooth displacement of
    some millimetres. ``bulge`` is a template point that a tumour pushes away from.
    """
    # BraTS is already registered to SRI24, so only a residual pose is left
    turn, shift = (4.0, 4.0) if kind.whole_head else (1.0, 1.0)
    rotation = _rotation(rng.uniform(-turn, turn, 3))
    scale = _TEMPLATE_SCALE * (1 + rng.uniform(-0.025, 0.025) + rng.uniform(-0.025, 0.025, 3))
    matrix = (rotation.T / scale[:, None]).astype(np.float32)
    centre = np.array(kind.centre) + rng.uniform(-shift, shift, 3)
    x, y, z = (
        (places - middle).astype(np.float32).reshape([-1 if a == b else 1 for b in range(3)])
        for a, (places, middle) in enumerate(zip(grid.axes, centre, strict=True))
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


# --------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class _Anatomy:
    """One subject's brain on its grid; all arrays have the grid's shape.

    ``csf``, ``gm``, ``wm`` are fractions that sum to ``cover``, the fraction of
    the voxel that is brain; ``brain`` is ``cover`` above one half; ``outside`` is the
    signed distance in template mm to a smooth brain surface.
    """

    grid: _Grid
    coordinates: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    cover: np.ndarray
    brain: np.ndarray
    outside: np.ndarray


def _make_anatomy(
    template: _Template, grid: _Grid, coordinates: np.ndarray, rng: np.random.Generator
) -> _Anatomy:
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
    return _Anatomy(
        grid=grid,
        coordinates=coordinates,
        csf=csf * scale,
        gm=gm * scale,
        wm=wm * scale,
        cover=cover,
        brain=cover > 0.5,
        outside=outside,
    )


# --------------------------------------------------------------------------- lesions


@dataclass(frozen=True)
class _Lesions:
    """``labels`` as the file has them (uint8), and each class's soft weight in [0, 1]."""

    labels: np.ndarray
    weights: dict[str, np.ndarray]


def _lowest(values: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` allowed voxels with the lowest values (all, if fewer)."""
    places = np.flatnonzero(allowed)
    count = min(count, len(places))
    # a stable sort, so that ties break by position on every machine
    chosen = places[np.argsort(values.ravel()[places], kind="stable")[:count]]
    mask = np.zeros(values.size, dtype=bool)
    mask[chosen] = True
    return mask.reshape(values.shape)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component of a mask that is not empty."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _make_tumour(anatomy: _Anatomy, site: np.ndarray, rng: np.random.Generator) -> _Lesions:
    """A glioma: labels 1 necrotic core, 2 oedema, 4 enhancing rim, as in BraTS.

    The core is an ellipsoid with a noisy border. Oedema grows from it, cheaply
    through white matter, dearly through grey matter and hardly through fluid.
    """
    from scipy import ndimage

    grid = anatomy.grid
    litre = np.clip(0.095 * np.exp(rng.normal(0, 0.35)), 0.05, 0.15)
    core_part = rng.uniform(0.18, 0.40)
    axes = np.exp(rng.normal(0, 0.16, 3))
    turn = (_rotation(rng.uniform(-180, 180, 3)) / axes[:, None]).astype(np.float32)
    offset = anatomy.coordinates - site.astype(np.float32).reshape(3, 1, 1, 1)
    distance = np.zeros(grid.shape, dtype=np.float32)
    for row in turn:
        distance += (row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2]) ** 2
    distance = np.sqrt(distance)
    coarse, fine = grid.smooth_field(rng, 18.0), grid.smooth_field(rng, 8.0)

    voxels = litre * 1e6 / grid.spacing**3
    solid = anatomy.brain & (anatomy.csf < 0.6)
    # the falx holds a tumour back
    across = anatomy.coordinates[0] * np.float32(np.sign(site[0])) < -1
    core = _lowest(
        distance * (1 + 0.22 * coarse + 0.12 * fine),
        solid & ~across,
        max(round(core_part * voxels), 8),
    )
    core = _largest_part(core)
    radius = np.float32((litre * 1e6 * 3 / (4 * np.pi)) ** (1 / 3))
    cost = distance * (1 + 0.18 * coarse) + radius * (
        0.8 * anatomy.gm + 2.0 * anatomy.csf + 0.6 * across
    )
    cost[core] = -1
    whole = _lowest(cost, solid, max(round(voxels), 16))
    # oedema grows from the tumour: leave out what has no connection to it
    whole = _largest_part(whole)
    core &= whole

    depth = (ndimage.distance_transform_edt(core) - 0.5) * grid.spacing
    rim = core & (depth < rng.uniform(2.5, 4.5) * (1 + 0.25 * fine))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[whole] = 2
    labels[core] = 1
    labels[rim] = 4

    # tissue borders are blurred by half a voxel, and by a millimetre in the body
    blur = max(0.4, 1.0 / grid.spacing)
    weights = {
        name: ndimage.gaussian_filter((labels == label).astype(np.float32), blur)
        for name, label in (("core", 1), ("oedema", 2), ("rim", 4))
    }
    # infiltration and enhancement are uneven
    weights["oedema"] *= np.clip(0.85 + 0.2 * fine, 0.4, 1)
    weights["core"] *= np.clip(0.85 + 0.2 * coarse, 0.4, 1)
    weights["rim"] *= np.clip(0.75 + 0.2 * coarse, 0.45, 1)
    return _Lesions(labels, weights)


def _make_plaques(anatomy: _Anatomy, template: _Template, rng: np.random.Generator) -> _Lesions:
    """Multiple-sclerosis plaques: small ellipsoids, most of them near the ventricles.

    Their volume together is .0006 to .006 of the brain's, within what MSLUB has.
    """
    grid = anatomy.grid
    number = int(rng.integers(6, 21))
    part = np.clip(0.0025 * np.exp(rng.normal(0, 0.6)), 0.0006, 0.006)
    sites = rng.choice(template.plaque_sites, size=number, replace=False, p=template.plaque_weights)
    coarse = grid.smooth_field(rng, 9.0)
    level = np.full(grid.shape, np.inf, dtype=np.float32)
    activity = np.ones(grid.shape, dtype=np.float32)
    for site in sites:
        axes = np.exp(rng.normal(0, 0.35)) * np.exp(rng.normal(0, 0.25, 3))
        turn = (_rotation(rng.uniform(-180, 180, 3)) / axes[:, None]).astype(np.float32)
        near = np.ones(grid.shape, dtype=bool)
        for axis in range(3):
            near &= np.abs(anatomy.coordinates[axis] - np.float32(site[axis])) < 20
        offset = anatomy.coordinates[:, near] - site.astype(np.float32)[:, None]
        squares = sum(
            (row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2]) ** 2 for row in turn
        )
        nearest = np.sqrt(squares) < level[near]
        level[near] = np.where(nearest, np.sqrt(squares), level[near])
        activity[near] = np.where(nearest, np.float32(rng.uniform(0.45, 1.1)), activity[near])
    level *= np.clip(1 + 0.2 * coarse, 0.5, 1.5)
    solid = anatomy.brain & (anatomy.csf < 0.5) & (anatomy.wm > 0.3)
    mask = _lowest(level, solid, max(round(part * int(anatomy.brain.sum())), 4))
    border = level[mask].max()
    # full at the centre, about half at the border, a faint halo beyond
    weight = np.clip(1.25 - 0.7 * (level / border), 0, 1) * np.minimum(activity, 1)
    weight = np.where(np.isfinite(level), weight, 0).astype(np.float32)
    weight[~mask] *= np.float32(0.35)
    return _Lesions(mask.astype(np.uint8), {"plaque": weight})


# ---------------------------------------------------------------------------- images


class _Canvas:
    """The images of all modalities, painted with the same shapes in the same order."""

    def __init__(self, shape: tuple[int, ...], signals: dict[str, dict[str, float]]) -> None:
        self.signals = signals
        self.images = {name: np.zeros(shape, dtype=np.float32) for name in signals}

    def paint(self, weight: np.ndarray, tissue: str) -> None:
        """Cover the fraction ``weight`` in [0, 1] of each voxel with a tissue."""
        for name, image in self.images.items():
            image += weight * (np.float32(self.signals[name][tissue]) - image)

    def paint_brain(self, anatomy: _Anatomy) -> None:
        """Cover each voxel with its brain tissues, in their own fractions."""
        for name, image in self.images.items():
            signal = self.signals[name]
            image *= 1 - anatomy.cover
            for tissue, part in (("csf", anatomy.csf), ("gm", anatomy.gm), ("wm", anatomy.wm)):
                image += part * np.float32(signal[tissue])


def _within(distance: np.ndarray, limit: np.ndarray | float, width: float) -> np.ndarray:
    """Fraction of a voxel where ``distance`` is under ``limit``; ``width`` is its size."""
    return np.clip(0.5 + (limit - distance) / np.float32(width), 0, 1)


def _ellipsoid(
    coordinates: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> np.ndarray:
    """About the distance in mm to an ellipsoid's surface, negative within."""
    level = sum(
        ((coordinates[axis] - np.float32(centre[axis])) / np.float32(radii[axis])) ** 2
        for axis in range(3)
    )
    return (np.sqrt(level) - 1) * np.float32(np.mean(radii))


def _paint_head(canvas: _Canvas, anatomy: _Anatomy, rng: np.random.Generator) -> None:
    """Face, neck, scalp, skull, fluid and eyes around the brain, from outside inwards."""
    at, grid, outside = anatomy.coordinates, anatomy.grid, anatomy.outside
    width = grid.spacing / _SHRINKAGE
    fluid = 1.5 + np.abs(0.8 * grid.smooth_field(rng, 30.0))
    skull = fluid + rng.uniform(5.0, 7.5) + 0.8 * grid.smooth_field(rng, 40.0)
    scalp = skull + rng.uniform(4.5, 7.0) + 0.8 * grid.smooth_field(rng, 40.0)
    uneven = 2.5 * grid.smooth_field(rng, 25.0)

    face = _ellipsoid(at, (0, 42, -62), (62, 58, 66)) + uneven
    neck = np.hypot(at[0] / 1.15, at[1] + 38) - 52 + uneven
    neck = np.where(at[2] < -30, neck, np.float32(np.inf))
    nose = _ellipsoid(at, (0, 92, -52), (13, 22, 24))
    skin = np.minimum(np.minimum(face, neck), np.minimum(nose, outside - scalp))
    canvas.paint(_within(skin, 0.0, width), "fat")
    canvas.paint(_within(np.minimum(face, neck), -5.0, width), "muscle")
    # muscles have fat between them
    planes = np.clip(1 - np.abs(grid.smooth_field(rng, 22.0)) / np.float32(0.25), 0, 1)
    canvas.paint(_within(np.minimum(face, neck), -8.0, width) * planes, "fat")
    for side in (-1, 1):
        temporal = _ellipsoid(at, (73 * side, 12, -28), (12, 30, 30))
        canvas.paint(_within(np.maximum(temporal, skin + 3), 0.0, width), "muscle")
    for centre, radii in (
        ((0, 62, -62), (9, 36, 22)),
        ((0, 12, -85), (13, 10, 40)),
        ((31, 62, -58), (13, 15, 15)),
        ((-31, 62, -58), (13, 15, 15)),
        ((0, 84, -14), (16, 5, 10)),
    ):
        canvas.paint(_within(_ellipsoid(at, centre, radii), 0.0, width), "bone")
    # the jaw and the palate
    palate = np.abs(_ellipsoid(at, (0, 52, -92), (30, 34, 8)))
    canvas.paint(_within(palate, 1.5, width), "bone")

    canvas.paint(_within(outside, skull, width), "bone")
    middle = np.abs(outside - (fluid + skull) / 2)
    canvas.paint(_within(middle, (skull - fluid) / 6, width) * np.float32(0.8), "marrow")
    for side in (-1, 1):
        orbit = _ellipsoid(at, (32 * side, 62, -34), (18, 24, 17))
        canvas.paint(_within(orbit, 0.0, width) * (outside > fluid + 2), "fat")
        eye = _ellipsoid(at, (33 * side, 69, -34), (12.5, 12.5, 12.5))
        canvas.paint(_within(eye, 0.0, width), "eye")
        nerve = np.hypot(at[0] - side * (22 + 11 * (at[1] - 40) / 30), at[2] + 34)
        behind = (at[1] > 38) & (at[1] < 58)
        canvas.paint(_within(nerve, 2.5, width) * behind, "muscle")
    # the template ends in the brain stem: a cord in its fluid goes on below
    cord = np.hypot(at[0], at[1] + 40)
    below = _within(at[2], -66.0, width)
    canvas.paint(_within(cord, 17.0, width) * below, "bone")
    canvas.paint(_within(cord, 10.0, width) * below, "csf")
    canvas.paint(_within(cord, 6.5, width) * below, "wm")
    canvas.paint(_within(outside, fluid, width), "csf")


def _paint_vessels(canvas: _Canvas, anatomy: _Anatomy, rng: np.random.Generator) -> None:
    """Surface vessels, the sagittal sinus, the choroid plexus, and remains of the dura.

    Skull-stripped scans keep patches of dura at their border, and whole heads have it
    there anyway. It is what an intensity threshold takes for a lesion on FLAIR.
    """
    at, grid = anatomy.coordinates, anatomy.grid
    # two smooth fields vanish together along curves
    first, second = grid.smooth_field(rng, 16.0), grid.smooth_field(rng, 16.0)
    tubes = np.exp(-(first**2 + second**2) / np.float32(2 * 0.12**2))
    surface = np.clip(1 + anatomy.outside / np.float32(12), 0, 1) * (anatomy.outside < 2)
    canvas.paint(tubes * surface * anatomy.cover, "vessel")
    patches = np.clip(2.5 * grid.smooth_field(rng, 22.0) - np.float32(1.2), 0, 1)
    border = 1 - _within(anatomy.outside, -2.5, grid.spacing)
    canvas.paint(patches * border * anatomy.cover, "dura")
    sinus = _within(np.abs(at[0]), 3.0, 3.0) * _within(np.abs(anatomy.outside), 3.0, 3.0)
    canvas.paint(sinus * ((at[2] > 10) | (at[1] < -70)) * anatomy.cover * 0.8, "vessel")
    plexus = anatomy.csf * (anatomy.outside < -25) * np.clip(grid.smooth_field(rng, 6.0) - 1, 0, 1)
    canvas.paint(plexus * ((at[2] > -5) & (at[1] < 0)) * np.float32(0.6), "vessel")


def _make_images(
    kind: _Layout,
    anatomy: _Anatomy,
    lesions: _Lesions | None,
    modalities: Sequence[str],
    seed: int,
) -> dict[str, np.ndarray]:
    """The int16 image of every modality."""
    grid, at = anatomy.grid, anatomy.coordinates
    signals = {name: _subject_signal(kind, name, derive_seed(seed, name)) for name in modalities}
    canvas = _Canvas(grid.shape, signals)
    if kind.whole_head:
        _paint_head(canvas, anatomy, np.random.default_rng(derive_seed(seed, "head")))
    canvas.paint_brain(anatomy)
    solid = anatomy.gm + anatomy.wm
    iron = np.clip(0.2 + 1.6 * anatomy.gm, 0, 1) * solid
    ripple = 2.5 * grid.smooth_field(np.random.default_rng(derive_seed(seed, "iron")), 7.0)
    for (x, y, z), radii in _IRON_NUCLEI:
        for side in (-1, 1):
            nucleus = _ellipsoid(at, (x * side, y, z), radii) + ripple
            canvas.paint(_within(nucleus, 0.0, 5.0) * iron, "iron")
    _paint_vessels(canvas, anatomy, np.random.default_rng(derive_seed(seed, "vessels")))
    if lesions is not None:
        for name, weight in lesions.weights.items():
            canvas.paint(weight * np.clip(1.1 * solid + 0.1, 0, 1), name)

    common = grid.smooth_field(np.random.default_rng(derive_seed(seed, "texture")), 7.0)
    return {
        name: _acquire(
            image, common, anatomy, kind, np.random.default_rng(derive_seed(seed, "scan", name))
        )
        for name, image in canvas.images.items()
    }


def _subject_signal(kind: _Layout, modality: str, seed: int) -> dict[str, float]:
    """Tissue signals of one scan: every tissue some per cent off its usual value."""
    rng = np.random.default_rng(seed)
    signal = {**_HEAD_SIGNAL[modality], **kind.signal[modality]}
    return {
        tissue: value * float(np.exp(rng.normal(0, 0.06 if tissue in _LESION_CLASSES else 0.03)))
        for tissue, value in signal.items()
    }


def _acquire(
    image: np.ndarray,
    texture: np.ndarray,
    anatomy: _Anatomy,
    kind: _Layout,
    rng: np.random.Generator,
) -> np.ndarray:
    """Texture, bias field, Rician noise, and the scanner's own scale as int16."""
    grid = anatomy.grid
    image = image * (1 + 0.025 * texture + 0.02 * grid.smooth_field(rng, 13.0))
    image *= np.exp(np.float32(rng.uniform(0.05, 0.11)) * grid.smooth_field(rng, 110.0))
    # larger voxels average more signal, but demo data at 3 mm should stay noisy
    noise = np.float32(rng.uniform(0.014, 0.024))
    image += noise * rng.standard_normal(grid.shape, dtype=np.float32)
    image = np.hypot(image, noise * rng.standard_normal(grid.shape, dtype=np.float32))
    if not kind.whole_head:
        image[~anatomy.brain] = 0
    scale = np.float32(rng.uniform(500, 1100))
    return np.clip(np.rint(image * scale), 0, 32767).astype(np.int16)


def _make_subject(
    kind: _Layout, modalities: Sequence[str], spacing: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Images by modality, masks by what the layout calls them, and the affine."""
    template = _template(spacing)
    grid = _make_grid(kind, spacing)
    lesion_rng = np.random.default_rng(derive_seed(seed, "lesions"))
    site = None
    if kind.lesion == "tumour":
        site = lesion_rng.choice(template.tumour_sites)
    shape_rng = np.random.default_rng(derive_seed(seed, "shape"))
    coordinates = _template_coordinates(kind, grid, shape_rng, bulge=site)
    tissue_rng = np.random.default_rng(derive_seed(seed, "tissue"))
    anatomy = _make_anatomy(template, grid, coordinates, tissue_rng)
    masks: dict[str, np.ndarray] = {}
    lesions = None
    if site is not None:
        lesions = _make_tumour(anatomy, site, lesion_rng)
        masks[LESION] = lesions.labels
    elif kind.lesion == "plaques":
        lesions = _make_plaques(anatomy, template, lesion_rng)
        masks[LESION] = lesions.labels
    if kind.brain_mask:
        masks[BRAIN] = anatomy.brain.astype(np.uint8)
    return _make_images(kind, anatomy, lesions, modalities, seed), masks, grid.affine
