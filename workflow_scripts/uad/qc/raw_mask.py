"""Masks of raw images: a brain mask against its image, a lesion mask against what images show.

A mask of another patient often fits the grid and lies inside the brain, but lesions are brighter
than their surroundings on T2 and FLAIR. Mean inside minus mean of a shell around the mask, in
standard deviations of the head, was 1.2 to 2.0 (FLAIR) and 0.8 (T2) for three real patients, and
below 0.2 for masks that were exchanged between two of them or shifted by 10 mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from uad.core.masks import dice
from uad.qc.raw_image import Image, UnusableFileError, Volume, read_raw, reason

#: Lesion contrast (standard deviations) that supports a mask, by modality. T1 shows too few
#: lesions to speak against a mask.
SUPPORT = {"FLAIR": 0.5, "T2": 0.4}
#: Displacements (mm) of a lesion mask that are tried, and voxels of it that are looked at.
STEPS, POINTS = (4, 8, 16, 24), 2000
#: Unsupported lesion masks, at most, that are tried on each other's images.
MATCHED = 12


def brain_mask_measures(path: str, read: Callable[[str], Volume], image: Image) -> dict[str, Any]:
    """A brain mask against its image."""
    try:
        mask = read(path)
        axes, off = image.grid_of(mask)
        data = np.nan_to_num(np.asarray(mask.data, dtype=np.float32))
        small = image.coarse(data) > 0
        same = small.shape == image.filled.shape
        return {
            "mask_axes": axes,
            "mask_off": off,
            "mask_ml": float((data > 0).sum() * mask.voxel_ml),
            "mask_maximum": float(data.max()),
            "mask_fractional": float((data != np.rint(data)).mean()),
            "mask_dice": dice(small, image.filled) if same else np.nan,
        }
    except Exception as error:
        return {"mask_error": reason(error, path)}


class Lesion:
    """A lesion mask, reduced to what is compared with the images.

    Attributes:
        volume: the file.
        inside: voxels of the mask, at most :data:`POINTS`, evenly chosen, (N, 3).
        shell: voxels around the mask, the same.
        measures: what needs no image.
    """

    def __init__(self, path: str) -> None:
        self.volume = read_raw(path)
        data = self.volume.data
        if bad := int(data.size - np.isfinite(data).sum()):
            raise UnusableFileError(f"{bad} of its voxels are NaN or infinite: {path}")
        self.inside = self.shell = np.zeros((0, 3), dtype=int)
        self._choose_points(data >= 0.5, self.volume.spacing)
        kept = data[data != 0]
        whole = np.rint(kept)
        self.measures = {
            "lesion_values": " ".join(f"{v:g}" for v in np.unique(whole[whole != 0])[:20]),
            "lesion_digest": self.volume.digest(),
            "lesion_ml": float((kept > 0).sum() * self.volume.voxel_ml),
            "lesion_fractional": int((kept != whole).sum()),
            "lesion_faint": int(((kept > 0) & (kept < 0.5)).sum()),
        }

    def _choose_points(self, mask: np.ndarray, spacing: np.ndarray) -> None:
        from scipy import ndimage

        points = np.argwhere(mask)
        if not len(points):
            return
        reach = max(4.0, 1.5 * float(spacing.max()))
        margin = np.ceil(reach / spacing).astype(int) + 1
        start = np.maximum(points.min(axis=0) - margin, 0)
        box = tuple(slice(a, b) for a, b in zip(start, points.max(axis=0) + margin, strict=True))
        away = ndimage.distance_transform_edt(~mask[box], sampling=spacing)
        shell = np.argwhere((away > 1) & (away <= reach)) + start
        self.inside, self.shell = _some(points), _some(shell)

    def contrast(self, image: Image, shift: np.ndarray | int = 0) -> float:
        """Mean inside minus mean around the (shifted) mask in standard deviations."""
        means = []
        for points in (self.inside + shift, self.shell + shift):
            valid = image.inside(points)
            if valid.sum() < max(1, len(points) // 2):
                return np.nan
            means.append(float(image.data[tuple(points[valid].T)].mean()))
        return (means[0] - means[1]) / image.sd if image.sd else np.nan

    def best_shift(self, image: Image) -> tuple[float, np.ndarray]:
        """The highest contrast of a displaced mask, and its displacement (mm, RAS)."""
        directions = [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]
        spacing = image.volume.spacing
        steps = {
            tuple(np.rint(np.array(d) * mm / np.linalg.norm(d) / spacing).astype(int))
            for d in directions
            for mm in STEPS
        } - {(0, 0, 0)}
        found = [(self.contrast(image, np.array(step)), step) for step in sorted(steps)]
        found = [pair for pair in found if np.isfinite(pair[0])]
        if not found:
            return np.nan, np.zeros(3)
        best, step = max(found)
        return best, image.volume.affine[:3, :3] @ np.array(step)


def _some(points: np.ndarray) -> np.ndarray:
    if len(points) <= POINTS:
        return points
    return points[np.linspace(0, len(points) - 1, POINTS).astype(int)]


def lesion_measures(
    path: str, read: Callable[[str], Lesion], image: Image, modality: str
) -> dict[str, Any]:
    """A lesion mask against one image."""
    try:
        lesion = read(path)
        axes, off = image.grid_of(lesion.volume)
        measures = {**lesion.measures, "lesion_axes": axes, "lesion_off": off}
        if np.isnan(off) or not len(lesion.inside):
            return measures
        measures["lesion_inside"] = float(image.inside(lesion.inside).mean())
        measures["lesion_contrast"] = lesion.contrast(image)
        if modality == "FLAIR":
            best, where = lesion.best_shift(image)
            measures |= {"lesion_best": best, "lesion_where": _direction(where)}
        return measures
    except Exception as error:
        return {"lesion_error": reason(error, path)}


def _direction(mm: np.ndarray) -> str:
    """A displacement in words: ``8 mm left, 8 mm up``."""
    words = (("left", "right"), ("back", "front"), ("down", "up"))
    return ", ".join(
        f"{abs(v):.0f} mm {w[int(v > 0)]}" for v, w in zip(mm, words, strict=True) if abs(v) >= 0.5
    )


def support(subject: pd.DataFrame) -> tuple[str, float] | None:
    """The modality that decides about a subject's lesion mask, and its contrast."""
    seen = subject.set_index("modality")["lesion_contrast"].dropna()
    return next(((m, float(seen[m])) for m in SUPPORT if m in seen.index), None)


def match_masks(measures: pd.DataFrame) -> pd.DataFrame:
    """Try lesion masks that their own images do not support on each other's images.

    Returns:
        The measures with ``lesion_fits`` filled in: the name of the subject whose image shows
        the lesion. At most :data:`MATCHED` masks are tried, each file is read once more.
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
        image = Image(read_raw(scan["image"]), scan["stripped"] == "yes")
        for other, lesion in lesions.items():
            if other == name or lesion.volume.data.shape != image.data.shape:
                continue
            contrast = lesion.contrast(image) if len(lesion.inside) else np.nan
            if contrast >= max(SUPPORT[scan["modality"]], best.get(other, (0.0, ""))[0]):
                best[other] = (contrast, name)
    return table.assign(lesion_fits=[best.get(name, (0.0, ""))[1] for name in table["name"]])
