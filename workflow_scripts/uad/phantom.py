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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from uad.errors import ConfigError, DataError
from uad.seeds import derive_seed

_SPACING_LIMITS = (0.5, 6.0)
"""Voxel sizes in mm for which skull, rim and plaques are still drawn sensibly."""

_TEMPLATE_SCALE = 0.92
"""ICBM152 is larger than an average brain and than SRI24 by about this factor."""

_TEMPLATE_CENTRE = np.array([0.0, -17.0, 5.0])
"""Middle of the template brain's bounding box, template mm."""

# Signals relative to the brightest brain tissue of the sequence. "wm" white matter,
# "gm" grey matter, "iron" lentiform nucleus, "rim" enhancing tumour, "core" necrosis.
_HEAD_SIGNAL = {
    "T1": {"fat": 1.15, "muscle": 0.50, "bone": 0.06, "marrow": 0.75, "eye": 0.16, "vessel": 0.40},
    "T1CE": {"fat": 1.15, "muscle": 0.55, "bone": 0.06, "marrow": 0.75, "eye": 0.16, "vessel": 1.15},
    "T2": {"fat": 0.62, "muscle": 0.17, "bone": 0.04, "marrow": 0.30, "eye": 1.00, "vessel": 0.10},
    "FLAIR": {"fat": 0.60, "muscle": 0.32, "bone": 0.04, "marrow": 0.30, "eye": 0.12, "vessel": 0.30},
}
_GLIOMA_SIGNAL = {
    "T1": {"csf": 0.12, "gm": 0.56, "wm": 0.82, "iron": 0.72,
           "oedema": 0.56, "core": 0.36, "rim": 0.58},
    "T1CE": {"csf": 0.14, "gm": 0.52, "wm": 0.70, "iron": 0.62,
             "oedema": 0.46, "core": 0.28, "rim": 1.05},
    "T2": {"csf": 1.00, "gm": 0.42, "wm": 0.27, "iron": 0.27,
           "oedema": 0.52, "core": 0.72, "rim": 0.46},
    "FLAIR": {"csf": 0.08, "gm": 0.62, "wm": 0.54, "iron": 0.52,
              "oedema": 0.95, "core": 0.80, "rim": 0.90},
}
_SCLEROSIS_SIGNAL = {
    "T1": {"csf": 0.10, "gm": 0.63, "wm": 0.88, "iron": 0.77, "plaque": 0.58},
    "T1CE": {"csf": 0.12, "gm": 0.60, "wm": 0.82, "iron": 0.72, "plaque": 0.58},
    "T2": {"csf": 1.00, "gm": 0.33, "wm": 0.22, "iron": 0.22, "plaque": 0.52},
    "FLAIR": {"csf": 0.10, "gm": 0.80, "wm": 0.68, "iron": 0.66, "plaque": 1.08},
}
_LESION_CLASSES = ("oedema", "core", "rim", "plaque")


@dataclass(frozen=True)
class _Layout:
    """What distinguishes one data set from another."""

    subject_pattern: str
    subject_limit: int
    image_path: str
    modality_names: dict[str, str]
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
    masks: dict[str, str] = field(default_factory=dict)


_LAYOUTS = {
    "ixi": _Layout(
        subject_pattern=r"IXI\d{3}-(Guys|HH|IOP)-\d{4}",
        subject_limit=998,
        image_path="IXI-{modality}/{subject}-{modality}.nii.gz",
        modality_names={"T1": "T1", "T2": "T2"},
        signal=_SCLEROSIS_SIGNAL,
        whole_head=True,
        extent=(192.0, 240.0, 204.0),
        centre=(0.0, -10.0, 0.0),
        corner=(-96.0, -120.0, -109.0),
        directions=(1, 1, 1),
    ),
    "brats21": _Layout(
        subject_pattern=r"BraTS2021_\d{5}",
        subject_limit=100_000,
        image_path="{subject}/{subject}_{modality}.nii.gz",
        modality_names={"T1": "t1", "T1CE": "t1ce", "T2": "t2", "FLAIR": "flair"},
        signal=_GLIOMA_SIGNAL,
        whole_head=False,
        extent=(240.0, 240.0, 155.0),
        centre=(-119.5, 119.5, 76.0),
        corner=(0.5, 239.5, -0.5),
        directions=(-1, -1, 1),
        masks={"tumour": "{subject}/{subject}_seg.nii.gz"},
    ),
    "mslub": _Layout(
        subject_pattern=r"patient\d{2}",
        subject_limit=99,
        image_path="{subject}/{subject}_{modality}.nii.gz",
        modality_names={"T1": "T1W", "T1CE": "T1WKS", "T2": "T2W", "FLAIR": "FLAIR"},
        signal=_SCLEROSIS_SIGNAL,
        whole_head=True,
        extent=(192.0, 240.0, 204.0),
        centre=(0.0, -10.0, 0.0),
        corner=(-96.0, -120.0, -109.0),
        directions=(1, 1, 1),
        masks={
            "plaques": "{subject}/{subject}_consensus_gt.nii.gz",
            "brain": "{subject}/{subject}_brainmask.nii.gz",
        },
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
    _check_request(layout, kind, subject, modalities, spacing)
    from uad.volumes import write_volume

    images, masks, affine = _make_subject(
        kind, modalities, float(spacing), derive_seed(seed, layout, subject)
    )
    outputs = [
        (kind.image_path.format(subject=subject, modality=kind.modality_names[name]), image)
        for name, image in images.items()
    ]
    outputs += [(path.format(subject=subject), masks[name]) for name, path in kind.masks.items()]
    paths = []
    for name, data in outputs:
        path = Path(out_dir) / name
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


def _check_request(
    layout: str, kind: _Layout, subject: str, modalities: Sequence[str], spacing: float
) -> None:
    if not re.fullmatch(kind.subject_pattern, subject):
        raise ConfigError(
            f"phantom {layout}: {subject!r} is not a subject name of this data set "
            f"(pattern {kind.subject_pattern})."
        )
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ConfigError(
            f"phantom {layout}: modalities must be a list of distinct names, not {modalities!r}."
        )
    missing = [name for name in modalities if name not in kind.modality_names]
    if missing:
        raise ConfigError(
            f"phantom {layout}: the real data set has no {', '.join(missing)}; "
            f"choose from {', '.join(kind.modality_names)}."
        )
    low, high = _SPACING_LIMITS
    if not low <= spacing <= high:
        raise ConfigError(f"phantom {layout}: spacing is {spacing} mm, allowed are {low} to {high}.")


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
    box = ndimage.find_objects(maps["t1"] > 0)[0]
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
    width = max(round(spacing / _TEMPLATE_SCALE), 1)
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
    x, y, z = (
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
        four terms per axis, because the result of BLAS depends on its threads.
        """
        starts, weights, nodes = [], [], []
        for axis in self.axes:
            ascending = axis if axis[0] < axis[-1] else axis[::-1]
            position = (axis - (ascending[0] - self.spacing / 2)) / scale
            start = np.floor(position).astype(int)
            t = position - start
            starts.append(start)
            weights.append(
                np.stack(
                    [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t - t**2 + t**3) + 1 - 6 * t**2
                     + 6 * t**2 - 6 * t**3 + 0 * t, t**3]
                ).astype(np.float32) / 6
            )
            # the extent, not the voxel count, sets the number of nodes: same field at any spacing
            nodes.append(int(np.ceil(300 / scale)) + 4)
        values = rng.standard_normal(nodes, dtype=np.float32)
        for axis in range(3):
            shape = [-1 if other == axis else 1 for other in range(3)]
            values = sum(
                np.take(values, starts[axis] + k, axis=axis) * weights[axis][k].reshape(shape)
                for k in range(4)
            )
        # the mean over positions of the sum of squared weights is 151/315 per axis
        return values * np.float32((315 / 151) ** 1.5)
