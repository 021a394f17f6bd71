"""Images of a phantom: contrasts of tissues and lesions, the head around the brain, artefacts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uad.core.seeds import derive_seed
from uad.phantom.anatomy import SHRINKAGE, Anatomy, Layout
from uad.phantom.lesions import Lesions


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


class _Canvas:
    """The images of all modalities, painted with the same shapes in the same order."""

    def __init__(self, shape: tuple[int, ...], signals: dict[str, dict[str, float]]) -> None:
        self.signals = signals
        self.images = {name: np.zeros(shape, dtype=np.float32) for name in signals}

    def paint(self, weight: np.ndarray, tissue: str) -> None:
        """Cover the fraction ``weight`` in [0, 1] of each voxel with a tissue."""
        for name, image in self.images.items():
            image += weight * (np.float32(self.signals[name][tissue]) - image)

    def paint_brain(self, anatomy: Anatomy) -> None:
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


def _paint_head(canvas: _Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Face, neck, scalp, skull, fluid and eyes around the brain, from outside inwards."""
    at, grid, outside = anatomy.coordinates, anatomy.grid, anatomy.outside
    width = grid.spacing / SHRINKAGE
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


def _paint_vessels(canvas: _Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
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


def make_images(
    kind: Layout,
    anatomy: Anatomy,
    lesions: Lesions | None,
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


def _subject_signal(kind: Layout, modality: str, seed: int) -> dict[str, float]:
    """Tissue signals of one scan: every tissue some per cent off its usual value."""
    rng = np.random.default_rng(seed)
    tissue = _GLIOMA_SIGNAL if kind.lesion == "tumour" else _SCLEROSIS_SIGNAL
    signal = {**_HEAD_SIGNAL[modality], **tissue[modality]}
    return {
        tissue: value * float(np.exp(rng.normal(0, 0.06 if tissue in _LESION_CLASSES else 0.03)))
        for tissue, value in signal.items()
    }


def _acquire(
    image: np.ndarray,
    texture: np.ndarray,
    anatomy: Anatomy,
    kind: Layout,
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
