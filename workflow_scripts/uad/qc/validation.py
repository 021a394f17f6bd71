"""Is a raw tree what it should be? Every scan measured once, then compared with the others.

Three steps, so that a workflow can take the first in batches and the rest at once:
:func:`inspect_subjects` opens each file once and writes down what it finds,
:func:`judge` compares the scans of a data set and names faults and warnings, and
:func:`report` turns them into one verdict per subject. Nothing is excluded here: a fault is
a recommendation, the decision stands in the config (``exclude: {name: reason}``). Only a
file that cannot be read at all stops the work (:func:`refuse_unreadable`).

A lesion mask is held against the images, because a mask of another patient often fits the
grid and lies inside the brain: lesions are brighter than their surroundings on T2 and FLAIR.
Mean inside minus mean of a shell around the mask, in standard deviations of the head, was
1.2 to 2.0 (FLAIR) and 0.8 (T2) for three real patients, and below 0.2 for masks that were
exchanged between two of them or shifted by 10 mm.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError

VERDICTS = ("used", "used with warning", "should be excluded", "excluded")

#: Grid (mm) on which outlines are compared: fine enough for a head, and fast.
COARSE = 2.0
#: Plausible volumes (ml) of a brain and of a head, and of something that is neither.
BRAIN_ML, HEAD_ML, EMPTY_ML = (400.0, 2500.0), (1000.0, 7000.0), 100.0
#: Share of non-zero voxels below which a volume is as good as empty.
EMPTY_SHARE = 0.01
#: Two headers may put a corner of the volume this many voxels apart.
GRID_TOLERANCE = 0.5
#: Axes this far from a right angle (cosine) are sheared.
SHEAR = 0.01
#: A share of the scans that makes a majority, and how many scans it takes.
MAJORITY, FEW = 0.6, 3
#: Lesion contrast (standard deviations) that supports a mask, by modality, and the one below
#: which nothing does. T1 shows too few lesions to speak against a mask, and T2 alone is not
#: enough to recommend an exclusion: a lesion beside a ventricle may have no contrast there.
SUPPORT, NO_SUPPORT = {"FLAIR": 0.5, "T2": 0.4}, 0.2
#: A displaced mask that gains this much FLAIR contrast lies in the wrong place.
DISPLACED = 0.3
#: Displacements (mm) that are tried, and voxels of a mask that are looked at.
STEPS, POINTS = (4, 8, 16, 24), 2000
#: Dice of the outlines of two images of one patient (co-registered, without skull).
OUTLINE = 0.96
#: Between the findings of one row.
SEPARATOR = " | "
#: Suspicious masks that are tried on each other's images.
MATCHED = 12


@dataclass(frozen=True)
class Rules:
    """What a layout promises.

    Attributes:
        name: pattern of a public subject name.
        file: pattern of every file name that belongs to the layout.
        labels: values of a lesion mask other than 0.
        stripped: the images have no skull; None: to be found out.
        coregistered: all images of a subject share one grid.
        one_grid: all subjects share one grid.
    """

    name: str
    file: str
    labels: frozenset[int] = frozenset()
    stripped: bool | None = None
    coregistered: bool = True
    one_grid: bool = False


RULES = {
    "ixi": Rules(
        name=r"IXI\d{3}-(Guys|HH|IOP)-\d{4}",
        file=r"IXI\d{3}-[A-Za-z]+-\d{4}-(T1|T2|PD|MRA|DTI-\d\d)",
        stripped=False,
        coregistered=False,
    ),
    "brats21": Rules(
        name=r"BraTS2021_\d{5}",
        file=r"BraTS2021_\d{5}_(flair|t1|t1ce|t2|seg)",
        labels=frozenset({1, 2, 4}),
        stripped=True,
        one_grid=True,
    ),
    "mslub": Rules(
        name=r"patient\d{2}",
        file=r"(patient\d{2}_)?(T1W|T1WKS|T2W|FLAIR|brainmask|consensus_gt)",
        labels=frozenset({1}),
    ),
}

_TEXT = (
    "error", "shape", "spacing", "orientation", "extent", "digest", "stripped",
    "mask_error", "mask_axes",
    "lesion_error", "lesion_axes", "lesion_values", "lesion_digest", "lesion_where",
    "lesion_fits",
)  # fmt: skip
_NUMBERS = (
    "voxel_ml", "shear", "header_mm", "nonfinite", "minimum", "maximum", "negative", "nonzero",
    "foreground_ml", "outline",
    "mask_off", "mask_ml", "mask_maximum", "mask_fractional", "mask_dice",
    "lesion_off", "lesion_ml", "lesion_fractional", "lesion_faint",
    "lesion_inside", "lesion_contrast", "lesion_best",
)  # fmt: skip


@dataclass
class _Volume:
    """A file as it is: ``data`` (X, Y, Z) with the file's own numbers, ``affine`` 4x4."""

    data: np.ndarray
    affine: np.ndarray
    header: Any

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axes(self) -> str:
        import nibabel as nib

        return "".join(nib.aff2axcodes(self.affine))


def inspect_subjects(
    layout: str, rows: pd.DataFrame, *, content: bool = True, threads: int = 1
) -> pd.DataFrame:
    """Measure the scans of some subjects, each file opened once.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        rows: rows of a participants table (``subject``, ``name``, ``site``, ``modality``,
            ``image``, ``lesion``; ``mask``, a brain mask, for preprocessed data). All rows of
            a subject must be in one call.
        content: open the files; False: say only whether they are there.
        threads: subjects at the same time.

    Returns:
        One row per row, in their order, with the measures as plain texts and numbers, so that
        batches can be written as TSV and put together again. Volumes are in millilitres,
        distances in millimetres, ``lesion_off`` and ``mask_off`` in voxels of the image,
        contrasts in standard deviations of the foreground.
    """
    subjects = [part for _, part in rows.groupby("subject", sort=False)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = pool.map(lambda part: _inspect_subject(RULES[layout], part, content), subjects)
        measures = {index: row for part in found for index, row in part.items()}
    table = pd.DataFrame.from_dict(measures, orient="index", columns=[*_TEXT, *_NUMBERS])
    table[[*_TEXT]] = table[[*_TEXT]].fillna("")
    table[[*_NUMBERS]] = table[[*_NUMBERS]].astype(float)
    return pd.concat([rows, table.loc[rows.index]], axis=1)


def _inspect_subject(rules: Rules, rows: pd.DataFrame, content: bool) -> dict[Any, dict[str, Any]]:
    """The measures of one subject by row index."""
    measures: dict[Any, dict[str, Any]] = {}
    outlines: dict[Any, np.ndarray] = {}
    opened: dict[str, Any] = {}

    def labels(path: str, kind: Any) -> Any:
        # one mask serves all modalities of a subject
        if path not in opened:
            opened[path] = kind(path)
        return opened[path]

    for index, scan in rows.to_dict("index").items():
        measured = measures[index] = {"error": "", "stripped": ""}
        lesion, mask = scan.get("lesion") or "", scan.get("mask") or ""
        if not content:
            missing = [p for p in (scan["image"], lesion, mask) if p and not Path(p).exists()]
            measured["error"] = f"no such file: {missing[0]}" if missing else ""
            continue
        image = _open(scan["image"])
        if isinstance(image, str):
            measured["error"] = image
            continue
        preprocessed = "mask" in scan
        head = _Head(image, True if preprocessed else rules.stripped)
        measured |= head.measures()
        if not head.sd:
            continue
        outlines[index] = head.filled
        if mask:
            measured |= _mask_measures(labels(mask, _open), head)
        if lesion:
            measured |= _lesion_measures(labels(lesion, _Lesion), head, scan["modality"])
    if rules.coregistered and len(outlines) > 1:
        for index, outline in outlines.items():
            others = [o for i, o in outlines.items() if i != index and o.shape == outline.shape]
            # the best match: of three images, only the odd one fits none
            measures[index]["outline"] = max((_dice(outline, o) for o in others), default=np.nan)
    return measures


def _open(path: str) -> _Volume | str:
    """A volume, or why there is none."""
    import nibabel as nib

    if not Path(path).exists():
        return f"no such file: {path}"
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (
        EOFError, OSError, ValueError, TypeError, zlib.error, nib.filebasedimages.ImageFileError,
    ) as error:  # fmt: skip
        return f"cannot be read, probably truncated or damaged ({_short(error)}): {path}"
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3 or not data.size:
        return f"is not a 3D volume but {_by(data.shape)}: {path}"
    if data.dtype.kind not in "iufb":
        return f"has values of type {data.dtype}, not numbers: {path}"
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return f"has a singular affine, its voxel size cannot be known: {path}"
    return _Volume(data, affine, image.header)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _by(values: Sequence[float]) -> str:
    return "x".join(f"{v:g}" for v in values)


class _Head:
    """An image with its foreground on a coarse grid.

    Attributes:
        volume: the image.
        data: float32 (X, Y, Z), not finite values as 0.
        stripped: without skull: the foreground is what differs from the background.
        filled: bool, the foreground without holes, every ``stride``-th voxel.
        sd: standard deviation of the foreground's values.
    """

    def __init__(self, volume: _Volume, stripped: bool | None) -> None:
        from scipy import ndimage

        self.volume = volume
        self.data = np.asarray(volume.data, dtype=np.float32)
        self.nonfinite = int(self.data.size - np.isfinite(self.data).sum())
        if self.nonfinite:
            self.data = np.nan_to_num(self.data, nan=0, posinf=0, neginf=0)
        self.stride = tuple(max(1, round(COARSE / s)) for s in volume.spacing)
        small = self.data[tuple(slice(None, None, s) for s in self.stride)]
        border = np.concatenate([np.take(small, (0, -1), axis).ravel() for axis in range(3)])
        values, counts = np.unique(border, return_counts=True)
        background, share = values[counts.argmax()], counts.max() / border.size
        self.stripped = bool(share >= 0.95) if stripped is None else stripped
        foreground = small != background if self.stripped else small > _otsu(small)
        self.filled = ndimage.binary_fill_holes(foreground)
        self.sd = float(small[foreground].std()) if foreground.any() else 0.0
        self.nonzero = float(np.count_nonzero(small) / small.size)

    def measures(self) -> dict[str, Any]:
        volume, data = self.volume, self.data
        digest = hashlib.sha256(repr(data.shape).encode())
        digest.update(np.ravel(volume.data, order="F").astype(np.float32, copy=False))
        voxel = float(abs(np.linalg.det(volume.affine[:3, :3])) / 1000)
        return {
            "shape": _by(data.shape),
            "spacing": _by(np.round(volume.spacing, 3)),
            "orientation": volume.axes,
            "stripped": "yes" if self.stripped else "no",
            "extent": _by(np.round(self._extent())),
            # a letter first: no reader may take it for a number
            "digest": f"h{digest.hexdigest()[:20]}",
            "voxel_ml": voxel,
            "shear": _shear(volume.affine),
            "header_mm": _header_disagreement(volume),
            "nonfinite": self.nonfinite,
            "minimum": float(data.min()),
            "maximum": float(data.max()),
            "negative": float((data < 0).mean()),
            "nonzero": self.nonzero,
            "foreground_ml": float(self.filled.sum() * voxel * np.prod(self.stride)),
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


def _shear(affine: np.ndarray) -> float:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _apart(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """How far (mm) two affines put a corner of a volume apart."""
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in shape], [1]))).T
    return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())


def _header_disagreement(volume: _Volume) -> float:
    """Distance (mm) of qform and sform at a corner; NaN where the header has only one."""
    try:
        both = volume.header["qform_code"] > 0 and volume.header["sform_code"] > 0
    except (ValueError, KeyError, IndexError):
        return np.nan
    if not both:
        return np.nan
    qform, sform = volume.header.get_qform(), volume.header.get_sform()
    return _apart(qform, sform, volume.data.shape)


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 0.0


def _grid(labels: _Volume, head: _Head) -> tuple[str, float]:
    """The axes of a mask if they are not those of its image, and its distance in voxels."""
    image = head.volume
    if labels.data.shape != image.data.shape:
        return f"has {_by(labels.data.shape)} voxels, its image {_by(image.data.shape)}", np.nan
    axes = (
        f"its axes point to {labels.axes}, those of its image to {image.axes}"
        if labels.axes != image.axes
        else ""
    )
    off = _apart(labels.affine, image.affine, image.data.shape) / float(image.spacing.min())
    return axes, off


def _mask_measures(mask: _Volume | str, head: _Head) -> dict[str, Any]:
    """A brain mask against its image."""
    if isinstance(mask, str):
        return {"mask_error": mask}
    axes, off = _grid(mask, head)
    data = np.nan_to_num(np.asarray(mask.data, dtype=np.float32))
    small = data[tuple(slice(None, None, s) for s in head.stride)] > 0
    voxel = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    return {
        "mask_axes": axes,
        "mask_off": off,
        "mask_ml": float((data > 0).sum() * voxel),
        "mask_maximum": float(data.max()),
        "mask_fractional": float((data != np.rint(data)).mean()),
        "mask_dice": _dice(small, head.filled) if small.shape == head.filled.shape else np.nan,
    }


class _Lesion:
    """A lesion mask, reduced to what is compared with the images.

    Attributes:
        error: why it cannot be used.
        measures: those that need no image.
        inside: voxels of the mask, at most :data:`POINTS`, evenly chosen, (N, 3).
        shell: voxels around the mask, the same.
    """

    def __init__(self, path: str) -> None:
        volume = _open(path)
        self.error = volume if isinstance(volume, str) else ""
        self.volume = volume
        self.measures: dict[str, Any] = {"lesion_error": self.error}
        self.inside = self.shell = np.zeros((0, 3), dtype=int)
        if self.error:
            return
        data = volume.data
        if bad := int(data.size - np.isfinite(data).sum()):
            self.error = f"{bad} of its voxels are NaN or infinite: {path}"
            self.measures["lesion_error"] = self.error
            return
        kept = data[data != 0]
        whole = np.rint(kept)
        digest = hashlib.sha256(repr(data.shape).encode())
        digest.update(np.ravel(data, order="F").astype(np.float32, copy=False))
        voxel = float(abs(np.linalg.det(volume.affine[:3, :3])) / 1000)
        self.measures |= {
            "lesion_values": " ".join(f"{v:g}" for v in np.unique(whole[whole != 0])[:20]),
            "lesion_digest": f"h{digest.hexdigest()[:20]}",
            "lesion_ml": float((kept > 0).sum() * voxel),
            "lesion_fractional": int((kept != whole).sum()),
            "lesion_faint": int(((kept > 0) & (kept < 0.5)).sum()),
        }
        self._points(data >= 0.5, volume.spacing)

    def _points(self, mask: np.ndarray, spacing: np.ndarray) -> None:
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

    def contrast(self, head: _Head, shift: np.ndarray | int = 0) -> float:
        """Mean inside minus mean around the (shifted) mask in standard deviations."""
        means = []
        for points in (self.inside + shift, self.shell + shift):
            valid = head.inside(points)
            if valid.sum() < max(1, len(points) // 2):
                return np.nan
            means.append(float(head.data[tuple(points[valid].T)].mean()))
        return (means[0] - means[1]) / head.sd if head.sd else np.nan

    def best_shift(self, head: _Head) -> tuple[float, np.ndarray]:
        """The highest contrast of a displaced mask, and its displacement (mm, RAS)."""
        directions = [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]
        steps = {
            tuple(np.rint(np.array(d) * mm / np.linalg.norm(d) / head.volume.spacing).astype(int))
            for d in directions
            for mm in STEPS
        } - {(0, 0, 0)}
        found = [(self.contrast(head, np.array(step)), step) for step in sorted(steps)]
        found = [pair for pair in found if np.isfinite(pair[0])]
        if not found:
            return np.nan, np.zeros(3)
        best, step = max(found)
        return best, head.volume.affine[:3, :3] @ np.array(step)


def _some(points: np.ndarray) -> np.ndarray:
    if len(points) <= POINTS:
        return points
    return points[np.linspace(0, len(points) - 1, POINTS).astype(int)]


def _lesion_measures(lesion: _Lesion, head: _Head, modality: str) -> dict[str, Any]:
    """A lesion mask against one image."""
    measures = dict(lesion.measures)
    if lesion.error:
        return measures
    axes, off = _grid(lesion.volume, head)
    measures |= {"lesion_axes": axes, "lesion_off": off}
    if np.isnan(off) or not len(lesion.inside):
        return measures
    measures["lesion_inside"] = float(head.inside(lesion.inside).mean())
    measures["lesion_contrast"] = lesion.contrast(head)
    if modality == "FLAIR":
        best, where = lesion.best_shift(head)
        measures |= {"lesion_best": best, "lesion_where": _direction(where)}
    return measures


def _direction(mm: np.ndarray) -> str:
    """A displacement in words: ``8 mm left, 8 mm up``."""
    words = (("left", "right"), ("back", "front"), ("down", "up"))
    parts = [f"{abs(v):.0f} mm {w[int(v > 0)]}" for v, w in zip(mm, words, strict=True)
             if abs(v) >= 0.5]  # fmt: skip
    return ", ".join(parts)


# --- comparing


@dataclass
class _Findings:
    """What is wrong with each row: texts in the order in which they were found."""

    rows: dict[Any, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, level: str, index: Any, text: str) -> None:
        texts = self.rows.setdefault(index, {"faults": [], "warnings": []})[level]
        if text not in texts:
            texts.append(text)

    def fault(self, index: Any, text: str) -> None:
        self.add("faults", index, text)

    def warn(self, index: Any, text: str) -> None:
        self.add("warnings", index, text)

    def joined(self, level: str, index: Any) -> str:
        return SEPARATOR.join(self.rows.get(index, {}).get(level, []))


def judge(layout: str, measures: pd.DataFrame) -> pd.DataFrame:
    """Compare the scans of a data set and say what is wrong with which.

    Args:
        layout: as for :func:`inspect_subjects`.
        measures: its answer for all subjects (with or without ``content``).

    Returns:
        ``measures`` with two more columns of text, ``faults`` and ``warnings``, empty where
        there is nothing to say; several are joined by :data:`SEPARATOR`. What concerns one
        image starts with its modality.
    """
    rules, found = RULES[layout], _Findings()
    table = measures.reset_index(drop=True)
    _judge_names(rules, table, found)
    read = table[(table["error"] == "") & (table["shape"] != "")]
    for row in table[table["error"] != ""].itertuples():
        found.fault(row.Index, f"{row.modality} image: {row.error}")
    for row in read.to_dict("index").items():
        _judge_image(rules, *row, found)
        _judge_masks(rules, *row, found)
    _judge_majority(rules, read, found)
    _judge_duplicates(read, found)
    for _, part in read.groupby("subject", sort=False):
        _judge_support(part, found)
    return table.assign(
        faults=[found.joined("faults", i) for i in table.index],
        warnings=[found.joined("warnings", i) for i in table.index],
    )


def _judge_names(rules: Rules, table: pd.DataFrame, found: _Findings) -> None:
    for row in table.itertuples():
        if not re.fullmatch(rules.name, row.name):
            found.warn(row.Index, f"'{row.name}' is no public name of this data set")
    owners = table.groupby("subject")["name"].unique()
    for label, names in owners[owners.map(len) > 1].items():
        for index in table.index[table["subject"] == label]:
            found.fault(index, f"{' and '.join(names)} have the same label {label}")
    numbers = table["name"].str.extract(r"^(IXI\d{3})-")[0]
    for number, names in table.groupby(numbers)["name"].unique().items():
        if len(names) > 1:
            for index in table.index[numbers == number]:
                found.fault(index, f"subject {number} is there as {' and '.join(names)}")


def _judge_image(rules: Rules, index: Any, row: Mapping[str, Any], found: _Findings) -> None:
    what = f"{row['modality']} image"
    if row["nonfinite"]:
        found.fault(index, f"{what}: {row['nonfinite']:.0f} voxels are NaN or infinite")
    if row["minimum"] == row["maximum"]:
        found.fault(index, f"{what}: constant ({row['minimum']:g})")
        return
    if row["foreground_ml"] < EMPTY_ML or row["nonzero"] < EMPTY_SHARE:
        found.fault(
            index,
            f"{what}: near-empty ({row['nonzero']:.1%} of its voxels are not zero, "
            f"{row['foreground_ml']:.0f} ml of foreground)",
        )
    else:
        stripped = row["stripped"] == "yes"
        low, high = BRAIN_ML if stripped else HEAD_ML
        if not low <= row["foreground_ml"] <= high:
            found.fault(
                index,
                f"{what}: {row['foreground_ml']:.0f} ml ({row['extent']} mm) of "
                f"{'brain' if stripped else 'head'} are not plausible ({low:.0f} to {high:.0f}); "
                f"is the voxel size of {row['spacing']} mm right?",
            )
    if row["negative"] > 0.01:
        found.warn(index, f"{what}: {row['negative']:.1%} of its voxels are negative")
    if row["shear"] > SHEAR:
        found.warn(index, f"{what}: its axes are not orthogonal (cosine {row['shear']:.3f})")
    edge = row["voxel_ml"] ** (1 / 3) * 10
    if row["header_mm"] > GRID_TOLERANCE * edge:
        found.warn(
            index,
            f"{what}: qform and sform disagree by {row['header_mm']:.1f} mm; sform is used",
        )
    # preprocessed modalities were registered one by one
    together = rules.coregistered and "mask" not in row
    if together and row["stripped"] == "yes" and row["outline"] < OUTLINE:
        found.warn(
            index,
            f"{what}: its brain has another outline than another image of this subject "
            f"(Dice {row['outline']:.2f}); is it the same person?",
        )


def _judge_masks(rules: Rules, index: Any, row: Mapping[str, Any], found: _Findings) -> None:
    for kind in ("mask", "lesion"):
        what = "brain mask" if kind == "mask" else "lesion mask"
        if row[f"{kind}_error"]:
            found.fault(index, f"{what}: {row[f'{kind}_error']}")
            continue
        if row[f"{kind}_axes"]:
            found.fault(index, f"{what} and {row['modality']} image: {row[f'{kind}_axes']}")
        elif row[f"{kind}_off"] > GRID_TOLERANCE:
            found.warn(
                index,
                f"{what}: its header lies {row[f'{kind}_off']:.1f} voxels from that of the "
                f"{row['modality']} image; it is taken voxel for voxel",
            )
    if row["mask_maximum"] > 1:
        found.fault(index, f"brain mask: has values up to {row['mask_maximum']:g}; is it a mask?")
    if row["mask_dice"] < 0.9:
        text = f"fits the {row['modality']} image badly (Dice {row['mask_dice']:.2f})"
        found.fault(index, f"brain mask: {text}")
    if np.isnan(row["lesion_ml"]):
        return
    if row["lesion_ml"] == 0:
        found.warn(index, "lesion mask: empty")
        return
    # masks of preprocessed data were warped linearly: fractions are expected there
    warped = "mask" in row
    if row["lesion_faint"] and not warped:
        found.fault(
            index,
            f"lesion mask: float noise, {row['lesion_faint']:.0f} voxels between 0 and 0.5 would "
            "count as lesion",
        )
    elif row["lesion_fractional"] and not warped:
        found.warn(
            index, f"lesion mask: {row['lesion_fractional']:.0f} voxels are no whole numbers"
        )
    values = {int(float(v)) for v in str(row["lesion_values"]).split()}
    known = set(range(1, max(rules.labels, default=0) + 1)) if warped else set(rules.labels)
    if odd := sorted(values - known):
        # whatever is above 0 counts as lesion: a label more does no harm, many are no labels
        (found.fault if len(odd) > 3 else found.warn)(
            index,
            f"lesion mask: has the value(s) {', '.join(map(str, odd))}, expected are "
            f"{', '.join(map(str, [0, *sorted(known)]))}",
        )
    if row["lesion_inside"] < 0.5:
        found.fault(
            index, f"lesion mask: {row['lesion_inside']:.0%} of it is inside the {_body(row)}"
        )
    elif row["lesion_inside"] < 0.95:
        found.warn(
            index, f"lesion mask: only {row['lesion_inside']:.0%} is inside the {_body(row)}"
        )


def _body(row: Mapping[str, Any]) -> str:
    return f"{'brain' if row['stripped'] == 'yes' else 'head'} of the {row['modality']} image"


def _judge_majority(rules: Rules, read: pd.DataFrame, found: _Findings) -> None:
    """Scans that differ from most others of their modality and site.

    Where these are fewer than :data:`FEW`, the modality is the measure, or the data set.
    """
    judged = ["orientation", "spacing"]
    if rules.one_grid and "mask" not in read:  # preprocessed scans are cropped
        judged.append("shape")
    groups = [
        {key: part for key, part in read.groupby(by)}
        for by in (["modality", "site"], ["modality"], lambda _: "all")
    ]
    for row in read.itertuples():
        keys = ((row.modality, row.site), (row.modality,), "all")
        parts = [group[key] for group, key in zip(groups, keys, strict=True)]
        peers = next((part for part in parts if len(part) >= FEW), None)
        if peers is None:
            continue
        for key in judged:
            counts = peers[key].value_counts()
            common = counts.index[0] if counts.iloc[0] >= MAJORITY * len(peers) else None
            if common and getattr(row, key) != common:
                found.warn(row.Index, _odd(row.modality, key, getattr(row, key), common))
        median = parts[1]["foreground_ml"].median()
        if len(parts[1]) > FEW and EMPTY_ML < row.foreground_ml < 0.6 * median:
            found.warn(
                row.Index,
                f"{row.modality} image: {row.foreground_ml:.0f} ml of foreground, others have "
                f"{median:.0f}; is a part of it missing?",
            )


def _odd(modality: str, key: str, value: str, common: str) -> str:
    if key != "orientation":
        unit = {"spacing": "voxels of {} mm", "shape": "a grid of {}"}[key]
        return f"{modality} image: has {unit.format(value)}, most others {unit.format(common)}"
    mirrored = _handedness(value) != _handedness(common)
    note = "; left and right may be exchanged (flipped affine)" if mirrored else ""
    return f"{modality} image: its axes point to {value}, those of most others to {common}{note}"


def _handedness(axes: str) -> int:
    """+1 or -1: the sign of the determinant that goes with axis codes such as ``LPS``."""
    place = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    order = [place[a] for a in axes]
    sign = round(float(np.linalg.det(np.eye(3)[order])))
    return sign * (-1) ** sum(a in "LPI" for a in axes)


def _judge_duplicates(read: pd.DataFrame, found: _Findings) -> None:
    solid = read[read["minimum"] != read["maximum"]]
    for _, part in solid.groupby("digest"):
        for row in part.itertuples():
            others = [f"{o.name} {o.modality}" for o in part.itertuples() if o.Index != row.Index]
            if others:
                found.fault(
                    row.Index,
                    f"{row.modality} image: duplicate, the same voxels as "
                    f"{', '.join(others)}; one carries a wrong name",
                )
    sick = read[read["lesion_ml"] > 0]
    for _, part in sick.groupby("lesion_digest"):
        for row in part.itertuples():
            others = sorted({o.name for o in part.itertuples()} - {row.name})
            if others:
                found.fault(
                    row.Index, f"lesion mask: duplicate, the same voxels as {', '.join(others)}"
                )


def _support(part: pd.DataFrame) -> tuple[str, float] | None:
    """The modality that decides about a subject's lesion mask, and its contrast."""
    seen = part.set_index("modality")["lesion_contrast"].dropna()
    for modality in SUPPORT:
        if modality in seen.index:
            return modality, float(seen[modality])
    return None


def _judge_support(part: pd.DataFrame, found: _Findings) -> None:
    """Whether the images of a subject show the lesion where its mask is."""
    decided = _support(part)
    if decided is None or decided[1] >= SUPPORT[decided[0]]:
        return
    modality, contrast = decided
    seen = f"{modality} contrast {contrast:.2f} sd"
    fits = next((name for name in part["lesion_fits"] if name), "")
    flair = part[part["modality"] == "FLAIR"]
    best = float(flair["lesion_best"].max()) if len(flair) else np.nan
    everywhere = part[part["modality"].isin(SUPPORT)]["lesion_contrast"].max()
    if fits:
        text = f"does not fit its images ({seen}) but those of {fits}; masks exchanged?"
    elif best - contrast > DISPLACED:
        text = f"would fit the FLAIR image better {flair['lesion_where'].iloc[0]} ({seen})"
    elif modality == "FLAIR" and everywhere < NO_SUPPORT:
        text = f"its images show no lesion there ({seen}); is it another patient's?"
    else:
        for index in part.index:
            found.warn(index, f"lesion mask: its images hardly show the lesion ({seen})")
        return
    for index in part.index:
        found.fault(index, f"lesion mask: {text}")


def match_masks(measures: pd.DataFrame) -> pd.DataFrame:
    """Try lesion masks that their own images do not support on each other's images.

    Args:
        measures: answer of :func:`inspect_subjects`.

    Returns:
        The same with the column ``lesion_fits`` filled in: the name of the subject whose
        image shows the lesion. At most :data:`MATCHED` masks are tried, each file is read
        once more.
    """
    table = measures.reset_index(drop=True)
    suspects = {}
    for name, part in table.groupby("name", sort=False):
        decided = _support(part)
        if decided and decided[1] < SUPPORT[decided[0]]:
            row = part[part["modality"] == decided[0]].iloc[0]
            suspects[name] = (decided[0], row["image"], row["lesion"], row["stripped"] == "yes")
    if not 2 <= len(suspects) <= MATCHED:
        return table
    lesions = {name: _Lesion(path) for name, (_, _, path, _) in suspects.items()}
    best: dict[str, tuple[float, str]] = {}
    for name, (modality, path, _, stripped) in suspects.items():
        image = _open(path)
        head = None if isinstance(image, str) else _Head(image, stripped)
        for other, lesion in lesions.items():
            if head is None or other == name or not len(lesion.inside):
                continue
            if lesion.volume.data.shape == image.data.shape:
                contrast = lesion.contrast(head)
                if contrast >= max(SUPPORT[modality], best.get(other, (0.0, ""))[0]):
                    best[other] = (contrast, name)
    fits = [best.get(name, (0.0, ""))[1] for name in table["name"]]
    return table.assign(lesion_fits=fits)


def validate_tree(
    layout: str, participants: pd.DataFrame, *, content: bool = True, threads: int = 1
) -> pd.DataFrame:
    """Inspect and judge all scans of a data set.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        participants: table of :func:`uad.data.layouts.index_dataset`, or of
            :func:`uad.data.preprocessed.index_preprocessed`.
        content: open the files; False for names only (seconds for any data set).
        threads: subjects at the same time.

    Returns:
        One row per subject and modality: the measures, ``faults`` and ``warnings``.
    """
    measures = inspect_subjects(layout, participants, content=content, threads=threads)
    return judge(layout, match_masks(measures) if content else measures)


# --- reporting


@dataclass(frozen=True)
class Report:
    """Verdicts about a data set.

    Attributes:
        dataset: its name in the config.
        subjects: ``name``, ``subject``, ``site``, ``verdict`` (one of :data:`VERDICTS`),
            ``why``; sorted by name.
        notes: sentences about the data set as a whole.
        phantom: the scans are synthetic.
    """

    dataset: str
    subjects: pd.DataFrame
    notes: list[str]
    phantom: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Subjects by verdict, all verdicts."""
        found = self.subjects["verdict"].value_counts()
        return {verdict: int(found.get(verdict, 0)) for verdict in VERDICTS}

    @property
    def advice(self) -> dict[str, str]:
        """What the config would say to follow the recommendations: name and reason."""
        bad = self.subjects[self.subjects["verdict"] == "should be excluded"]
        return dict(zip(bad["name"], bad["why"], strict=True))


def report(
    dataset: str,
    checked: pd.DataFrame,
    *,
    expected: int | None = None,
    exclude: Mapping[str, str] | None = None,
    strays: Sequence[str] = (),
    phantom: bool = False,
) -> Report:
    """One verdict per subject.

    ``used``, ``used with warning`` and ``should be excluded`` are all used until the config
    excludes them; ``excluded`` are those that it excludes, with its reason.

    Args:
        dataset: name in the config.
        checked: answer of :func:`validate_tree` or :func:`judge`.
        expected: number of subjects that the data set should have, excluded ones included.
        exclude: the config's exclusions: public name and reason.
        strays: files of the tree that belong to nobody (:func:`stray_files`).
        phantom: the scans are synthetic.
    """
    exclude = exclude or {}
    rows = []
    for name, part in checked.groupby("name"):
        found = {level: _collected(part[level]) for level in ("faults", "warnings")}
        why = [*found["faults"], *found["warnings"]]
        verdict = VERDICTS[2] if found["faults"] else VERDICTS[1] if why else VERDICTS[0]
        if name in exclude:
            verdict, why = "excluded", [exclude[name], *why]
        first = part.iloc[0]
        rows.append((name, first["subject"], first.get("site", ""), verdict, SEPARATOR.join(why)))
    known = {row[0] for row in rows}
    rows += [(n, "", "", "excluded", why) for n, why in exclude.items() if n not in known]
    columns = ["name", "subject", "site", "verdict", "why"]
    subjects = pd.DataFrame(sorted(rows), columns=columns)
    notes = []
    if expected is not None and len(subjects) != expected:
        more = "more" if len(subjects) > expected else "fewer"
        notes.append(f"{len(subjects)} subjects, {more} than the expected {expected}.")
    if strays:
        shown = ", ".join(strays[:5]) + (" ..." if len(strays) > 5 else "")
        notes.append(f"{len(strays)} file(s) with a name that belongs to nobody: {shown}.")
    return Report(dataset, subjects, notes, phantom)


def _collected(texts: pd.Series) -> list[str]:
    return list(dict.fromkeys(t for text in texts if text for t in text.split(SEPARATOR)))


def stray_files(layout: str, root: str | Path) -> list[str]:
    """NIfTI files of a raw tree whose names no subject of the layout has, relative to it.

    The index passes over them in silence; a misspelt name is better said.
    """
    root, known = Path(root), RULES[layout].file
    paths = (path for path in sorted(root.rglob("*.nii*")) if path.is_file())
    return [
        str(path.relative_to(root))
        for path in paths
        if not re.fullmatch(rf"({known})\.nii(\.gz)?", path.name)
        and not (layout == "mslub" and "raw" in path.relative_to(root).parts)
    ]


def refuse_unreadable(dataset: str, checked: pd.DataFrame) -> None:
    """Stop where a file cannot be read: no later step could go on without it.

    Args:
        dataset: name in the config.
        checked: a table with ``name``, ``error`` and the mask errors.

    Raises:
        DataError: names every such file, and what to do.
    """
    columns = [c for c in ("error", "mask_error", "lesion_error") if c in checked]
    bad = sorted(
        {(n, e) for c in columns for n, e in zip(checked["name"], checked[c], strict=True) if e}
    )
    if bad:
        lines = [f"  {name}: {why}" for name, why in bad]
        raise DataError(
            f"{dataset}: {len(bad)} file(s) cannot be used:\n"
            + "\n".join(lines[:20])
            + ("\n  ..." if len(lines) > 20 else "")
            + "\nFetch them again, or exclude the subjects in the config: "
            f"datasets.{dataset}.exclude: {{{bad[0][0]}: the reason}}"
        )


#: A click on a heading sorts the rows; nothing is fetched from anywhere.
_SORT = """<script>
document.querySelectorAll("thead th").forEach((head, column) => {
  head.style.cursor = "pointer";
  head.title = "sort";
  head.addEventListener("click", () => {
    const body = document.querySelector("tbody"), up = head.dataset.up !== "1";
    head.dataset.up = up ? "1" : "0";
    const text = row => row.children[column].textContent;
    [...body.rows]
      .sort((a, b) => (up ? 1 : -1) * text(a).localeCompare(text(b), "en", {numeric: true}))
      .forEach(row => body.append(row));
  });
});
</script>
"""


def write_report(result: Report, tsv: str | Path, page: str | Path) -> None:
    """Write the verdicts as TSV and as one self-contained HTML page that can be sorted.

    Args:
        result: answer of :func:`report`; if it is of phantoms, the title says so.
        tsv: the table.
        page: the page; subjects that need a look come first.
    """
    from uad.core.files import write_text, write_tsv
    from uad.report.render import Cell, Document, Row, html_page

    write_tsv(tsv, result.subjects)
    shown = result.subjects.assign(
        rank=result.subjects["verdict"].map(
            {"should be excluded": 0, "used with warning": 1, "excluded": 2, "used": 3}
        )
    ).sort_values(["rank", "name"])
    counts = [f"{n} {verdict}" for verdict, n in result.counts.items() if n]
    advice = [
        f"To follow the recommendation, add to the config: datasets.{result.dataset}.exclude: "
        f'{{{name}: "{why}"}}'
        for name, why in result.advice.items()
    ]
    document = Document(
        name=f"validation-{result.dataset}",
        title=f"Validation of {result.dataset}{' (phantom data)' if result.phantom else ''}",
        caption=[
            f"{len(result.subjects)} subjects: {', '.join(counts)}.",
            "A subject that should be excluded is used until the config excludes it.",
            "Click a heading to sort.",
        ],
        corner="Subject",
        heads=[("", "Site"), ("", "Verdict"), ("", "Why")],
        rows=[
            Row(r.name, [Cell(r.site), Cell(r.verdict), Cell(r.why)])
            for r in shown.drop(columns="rank").itertuples(index=False)
        ],
        footnotes=advice,
        warning=" ".join(result.notes),
    )
    write_text(page, html_page(document).replace("</body>", f"{_SORT}</body>"))
