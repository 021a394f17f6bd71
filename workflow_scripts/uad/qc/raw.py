"""Measures of raw scans: every file is opened once and described by numbers and short texts.

:mod:`uad.qc.verdicts` judges the measures of a data set without opening a file again.

A lesion mask of another patient often fits the grid and lies inside the brain, but lesions are
brighter than their surroundings on T2 and FLAIR. Mean inside minus mean of a shell around the
mask, in standard deviations of the head, was 1.2 to 2.0 (FLAIR) and 0.8 (T2) for three real
patients, and below 0.2 for masks that were exchanged between two of them or shifted by 10 mm.
Masks of other gliomas (FLAIR, 16 pairs) had -0.24 to 0.22, one 0.5; a cyst has less than -0.2.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from uad.core.masks import SMALLEST_HEAD_ML, background_of, dice, outline_ml
from uad.core.nifti import UnreadableVolumeError, Volume, corner_distance, open_volume
from uad.core.patterns import Layout, layout_of

#: Grid (mm) on which outlines are compared: fine enough for a head, and fast.
COARSE = 2.0
#: Lesion contrast (standard deviations) that supports a mask, by modality. T1 shows too few
#: lesions to speak against a mask.
SUPPORT = {"FLAIR": 0.5, "T2": 0.4}
#: Displacements (mm) of a lesion mask that are tried, and voxels of it that are looked at.
STEPS, POINTS = (4, 8, 16, 24), 2000
#: Unsupported lesion masks, at most, that are tried on each other's images.
MATCHED = 12

#: In place of axes: no orientation code; an affine that any array gets, without a rotation and
#: an origin.
NO_CODES, NO_AXES = "none", "identity"

TEXTS = (
    "error", "shape", "spacing", "orientation", "extent", "digest", "stripped",
    "mask_error", "mask_axes",
    "lesion_error", "lesion_axes", "lesion_values", "lesion_digest", "lesion_where",
    "lesion_fits",
)  # fmt: skip
NUMBERS = (
    "voxel_ml", "shear", "header_mm", "nonfinite", "minimum", "maximum", "negative", "nonzero",
    "foreground_ml", "outline_ml", "outline",
    "mask_off", "mask_ml", "mask_maximum", "mask_fractional", "mask_dice",
    "lesion_off", "lesion_ml", "lesion_fractional", "lesion_faint",
    "lesion_inside", "lesion_contrast", "lesion_best",
)  # fmt: skip


class Promise(NamedTuple):
    """What a layout promises about its files."""

    layout: Layout
    labels: frozenset[int]
    stripped: bool | None  # None: to be found out
    expected: bool | None  # what they should be: without skull, heads, or either
    one_grid: bool  # all subjects share one grid
    preprocessed: bool  # registered, cropped and corrected by somebody else; masks were warped


def promise_of(layout: str, rows: pd.DataFrame, backend: str = "") -> Promise:
    """What the scans of a participants table promise; only preprocessed ones have brain masks."""
    patterns, labels = layout_of(layout), frozenset(layout_of(layout).labels or ())
    if "mask" in rows:  # fractions at the edges of a mask are expected
        labels = frozenset(range(1, max(labels, default=0) + 1))
        return Promise(patterns, labels, True, True, one_grid=False, preprocessed=True)
    stripped = {"whole": False, "stripped": True, "auto": None}[patterns.head]
    expected = stripped
    if backend:  # of the config, which goes before the layout
        expected = None if backend.startswith("auto-") else backend == "foreground"
        stripped = stripped if stripped == expected else None
    one_grid = patterns.grid == "data set"
    return Promise(patterns, labels, stripped, expected, one_grid, preprocessed=False)


def measure_scans(
    layout: str, rows: pd.DataFrame, threads: int = 1, backend: str = ""
) -> pd.DataFrame:
    """Measure the scans of some subjects, ``threads`` subjects at the same time.

    ``rows`` are those of a participants table, all of a subject in one call; they come back with
    :data:`TEXTS` and :data:`NUMBERS`. What the ``backend`` of skull stripping is for goes before
    what the layout says.

    Volumes are in millilitres, distances in millimetres, ``lesion_off`` and ``mask_off`` in voxels
    of the image, contrasts in standard deviations of the foreground. What concerns a file that
    cannot be used stands in ``error``, ``mask_error`` and ``lesion_error``.
    """
    promise = promise_of(layout, rows, backend)
    subjects = [part for _, part in rows.groupby("subject", sort=False)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = pool.map(lambda part: _measure_subject(promise, part), subjects)
        measures = {index: row for part in found for index, row in part.items()}
    table = pd.DataFrame.from_dict(measures, orient="index", columns=[*TEXTS, *NUMBERS])
    table[[*TEXTS]] = table[[*TEXTS]].fillna("")
    table[[*NUMBERS]] = table[[*NUMBERS]].astype(float)
    return pd.concat([rows, table.loc[rows.index]], axis=1)


def _measure_subject(promise: Promise, rows: pd.DataFrame) -> dict[Any, dict]:
    """The measures of one subject by row index; whatever a file holds costs only its scan."""
    measures: dict[Any, dict[str, Any]] = {}
    outlines: dict[Any, np.ndarray] = {}
    open_mask, open_lesion = cache(open_volume), cache(Lesion)  # one serves all modalities
    for index, scan in rows.to_dict("index").items():
        lesion, mask = scan.get("lesion") or "", scan.get("mask") or ""
        try:
            image = Image(open_volume(scan["image"]), promise.stripped)
            measures[index] = image.measures()
        except Exception as error:
            measures[index] = {"error": _reason(error, scan["image"])}
            continue
        if not image.sd:
            continue
        outlines[index] = image.filled
        try:
            if mask:
                measures[index] |= _brain_mask_measures(open_mask(mask), image)
        except Exception as error:
            measures[index]["mask_error"] = _reason(error, mask)
        try:
            if lesion:
                measures[index] |= open_lesion(lesion).measures_on(image, scan["modality"])
        except Exception as error:
            measures[index]["lesion_error"] = _reason(error, lesion)
    if promise.layout.grid != "scan" and len(outlines) > 1:
        for index, outline in outlines.items():
            others = [o for i, o in outlines.items() if i != index and o.shape == outline.shape]
            # the best match: of three images, only the odd one fits none
            measures[index]["outline"] = max((dice(outline, o) for o in others), default=np.nan)
    return measures


def _reason(error: Exception, path: str) -> str:
    """Why a file cannot be measured; a surprise goes into the log with its traceback."""
    if isinstance(error, UnreadableVolumeError):
        return f"{error.reason}: {path}"
    logging.error("%s cannot be measured", path, exc_info=error)
    said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return f"cannot be measured ({said}): {path}"


class Image:
    """An image with its foreground on a coarse grid.

    ``data`` is float32 (X, Y, Z), not finite values as 0; ``filled`` (bool) is the foreground
    without holes, every ``stride``-th voxel, and ``sd`` the standard deviation of its values. Where
    the image is ``stripped``, the foreground is what differs from the background.
    """

    def __init__(self, volume: Volume, stripped: bool | None) -> None:
        self.volume = volume
        self.data = np.asarray(volume.data, dtype=np.float32)
        self.nonfinite = int(self.data.size - np.isfinite(self.data).sum())
        if self.nonfinite:
            self.data = np.nan_to_num(self.data, nan=0, posinf=0, neginf=0)
        self.stride = tuple(max(1, round(COARSE / s)) for s in volume.spacing)
        small = self.coarse(self.data)
        self.outline_ml = outline_ml(small, np.array(volume.spacing) * self.stride)
        is_brain = self.outline_ml <= SMALLEST_HEAD_ML
        self.stripped = is_brain if stripped is None else stripped
        voxel_ml = volume.voxel_ml * float(np.prod(self.stride))
        level = background_of(small) if self.stripped else _otsu(small)
        foreground = small != level if self.stripped else small > level
        self.filled = ndimage.binary_fill_holes(foreground)
        if not is_brain and self.filled.sum() * voxel_ml < SMALLEST_HEAD_ML / 2:
            # fat so bright that the threshold parts it from all else
            foreground = small > _otsu(small[small <= level])
            self.filled = ndimage.binary_fill_holes(foreground)
        self.foreground_ml = float(self.filled.sum()) * voxel_ml
        self.sd = float(small[foreground].std()) if foreground.any() else 0.0
        self.nonzero = float(np.count_nonzero(small) / small.size)

    def coarse(self, data: np.ndarray) -> np.ndarray:
        """Every ``stride``-th voxel of an array on this grid."""
        return data[tuple(slice(None, None, s) for s in self.stride)]

    def measures(self) -> dict[str, Any]:
        """The columns that concern the image alone."""
        volume, data = self.volume, self.data
        unit = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
        return {
            "error": "",
            "shape": _by(data.shape),
            "spacing": _by(np.round(volume.spacing, 3)),
            "orientation": _orientation(volume),
            "stripped": "yes" if self.stripped else "no",
            "extent": _by(np.round(self._extent())),
            "digest": _digest(volume.data),
            "voxel_ml": volume.voxel_ml,
            "shear": float(np.abs(unit.T @ unit - np.eye(3)).max()),
            "header_mm": _header_mm(volume),
            "nonfinite": self.nonfinite,
            "minimum": float(data.min()),
            "maximum": float(data.max()),
            "negative": float((data < 0).mean()),
            "nonzero": self.nonzero,
            "outline_ml": self.outline_ml,
            "foreground_ml": self.foreground_ml,
        }

    def _extent(self) -> np.ndarray:
        """Extent of the foreground (mm) to the right, to the front and upwards."""
        extent, orientation = np.zeros(3), nib.io_orientation(self.volume.affine)
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
        off = corner_distance(mask.affine, image.affine, image.data.shape) / min(image.spacing)
        return axes if mask.axes != image.axes else "", off


def _brain_mask_measures(mask: Volume, image: Image) -> dict[str, Any]:
    axes, off = image.grid_of(mask)
    data = np.nan_to_num(np.asarray(mask.data, dtype=np.float32))
    small = image.coarse(data) > 0
    return {
        "mask_axes": axes,
        "mask_off": off,
        "mask_ml": float((data > 0).sum() * mask.voxel_ml),
        "mask_maximum": float(data.max()),
        "mask_fractional": float((data != np.rint(data)).mean()),
        "mask_dice": dice(small, image.filled) if small.shape == image.filled.shape else np.nan,
    }


class Lesion:
    """A lesion mask, reduced to what is compared with the images.

    ``inside`` and ``shell`` are voxels of it and around it, at most :data:`POINTS`, (N, 3);
    ``measures`` need no image.
    """

    def __init__(self, path: str) -> None:
        self.volume = open_volume(path)
        data = self.volume.data
        if bad := int(data.size - np.isfinite(data).sum()):
            raise UnreadableVolumeError(path, f"{bad} of its voxels are NaN or infinite")
        self.inside, self.shell = _points_of(data >= 0.5, np.array(self.volume.spacing))
        kept = data[data != 0]
        whole = np.rint(kept)
        self.measures = {
            "lesion_values": " ".join(f"{v:g}" for v in np.unique(whole[whole != 0])[:20]),
            "lesion_digest": _digest(data),
            "lesion_ml": float((kept > 0).sum() * self.volume.voxel_ml),
            "lesion_fractional": int((kept != whole).sum()),
            "lesion_faint": int(((kept > 0) & (kept < 0.5)).sum()),
        }

    def measures_on(self, image: Image, modality: str) -> dict[str, Any]:
        """The columns that concern the mask and one image."""
        axes, off = image.grid_of(self.volume)
        measures = {**self.measures, "lesion_axes": axes, "lesion_off": off}
        if np.isnan(off) or not len(self.inside):
            return measures
        measures["lesion_inside"] = float(image.inside(self.inside).mean())
        measures["lesion_contrast"] = self.contrast(image)
        if modality == "FLAIR":
            best, where = self._best_shift(image)
            measures |= {"lesion_best": best, "lesion_where": _direction(where)}
        return measures

    def contrast(self, image: Image, shift: np.ndarray | int = 0) -> float:
        """Mean inside minus mean around the (shifted) mask in standard deviations."""
        means = []
        for points in (self.inside + shift, self.shell + shift):
            valid = image.inside(points)
            if valid.sum() < max(1, len(points) // 2):
                return np.nan
            means.append(float(image.data[tuple(points[valid].T)].mean()))
        return (means[0] - means[1]) / image.sd if image.sd else np.nan

    def _best_shift(self, image: Image) -> tuple[float, np.ndarray]:
        """The highest contrast of a displaced mask, and its displacement (mm, RAS)."""
        directions = [np.array(d) for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]
        steps = {
            tuple(np.rint(d * mm / np.linalg.norm(d) / image.volume.spacing).astype(int))
            for d in directions
            for mm in STEPS
        } - {(0, 0, 0)}
        found = [(self.contrast(image, np.array(step)), step) for step in sorted(steps)]
        best, step = max(
            (pair for pair in found if np.isfinite(pair[0])), default=(np.nan, [0] * 3)
        )
        return best, image.volume.affine[:3, :3] @ np.array(step)


def _points_of(mask: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some voxels of a mask, and some of a shell around it."""
    points = np.argwhere(mask)
    if not len(points):
        return points, points
    reach = max(4.0, 1.5 * float(spacing.max()))
    margin = np.ceil(reach / spacing).astype(int) + 1
    start = np.maximum(points.min(axis=0) - margin, 0)
    box = tuple(slice(a, b) for a, b in zip(start, points.max(axis=0) + margin, strict=True))
    away = ndimage.distance_transform_edt(~mask[box], sampling=spacing)
    shell = np.argwhere((away > 1) & (away <= reach)) + start
    return tuple(
        every if len(every) <= POINTS else every[np.linspace(0, len(every) - 1, POINTS).astype(int)]
        for every in (points, shell)
    )


def _direction(mm: np.ndarray) -> str:
    """A displacement in words: ``8 mm left, 8 mm up``."""
    words = (("left", "right"), ("back", "front"), ("down", "up"))
    return ", ".join(
        f"{abs(v):.0f} mm {w[int(v > 0)]}" for v, w in zip(mm, words, strict=True) if abs(v) >= 0.5
    )


def _by(values: Sequence[float]) -> str:
    return "x".join(f"{v:g}" for v in values)


def _digest(data: np.ndarray) -> str:
    """Hash of shape and values, whatever the file's type and compression."""
    digest = hashlib.sha256(repr(data.shape).encode())
    digest.update(np.ravel(data, order="F").astype(np.float32, copy=False))
    return f"h{digest.hexdigest()[:20]}"  # a letter first: nobody may take it for a number


def _codes(volume: Volume) -> tuple[int, int]:
    """The codes of qform and sform; a format that has none counts as one with a sform."""
    try:
        return int(volume.header["qform_code"]), int(volume.header["sform_code"])
    except (ValueError, KeyError, IndexError):
        return 0, 1


def _header_mm(volume: Volume) -> float:
    """Distance (mm) of qform and sform at a corner; NaN with one of them, inf if one is invalid."""
    if not all(_codes(volume)):
        return np.nan
    try:
        header = volume.header
        return corner_distance(header.get_qform(), header.get_sform(), volume.data.shape)
    except ValueError:  # a quaternion that is longer than 1
        return np.inf


def _orientation(volume: Volume) -> str:
    """Where the axes point to; :data:`NO_CODES` or :data:`NO_AXES` where the file does not say."""
    if not any(_codes(volume)):
        return NO_CODES
    plain = (np.diagonal(volume.affine) > 0).all() and not volume.affine[:3, 3].any()
    plain = plain and np.array_equal(volume.affine, np.diag(np.diagonal(volume.affine)))
    return NO_AXES if plain else volume.axes


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


def support(subject: pd.DataFrame) -> tuple[str, float] | None:
    """The modality that decides about a subject's lesion mask, and its contrast."""
    seen = subject.set_index("modality")["lesion_contrast"].dropna()
    return next(((m, float(seen[m])) for m in SUPPORT if m in seen.index), None)


def match_masks(measures: pd.DataFrame) -> pd.DataFrame:
    """Try lesion masks that their own images do not support on each other's images.

    In ``lesion_fits`` is then the name of the subject whose image shows the lesion. At most
    :data:`MATCHED` masks are tried, each file is read once more.
    """
    table = measures.reset_index(drop=True)
    suspects = {}
    for name, part in table.groupby("name", sort=False):
        decided = support(part)
        if decided and decided[1] < SUPPORT[decided[0]]:
            suspects[name] = part[part["modality"] == decided[0]].iloc[0]
    if not 2 <= len(suspects) <= MATCHED:
        return table
    lesions = {name: Lesion(scan["lesion"]) for name, scan in suspects.items()}
    best: dict[str, tuple[float, str]] = {}
    for name, scan in suspects.items():
        image = Image(open_volume(scan["image"]), scan["stripped"] == "yes")
        for other, lesion in lesions.items():
            if other == name or lesion.volume.data.shape != image.data.shape:
                continue
            contrast = lesion.contrast(image) if len(lesion.inside) else np.nan
            if contrast >= max(SUPPORT[scan["modality"]], best.get(other, (0.0, ""))[0]):
                best[other] = (contrast, name)
    return table.assign(lesion_fits=[best.get(name, (0.0, ""))[1] for name in table["name"]])
