"""Slices with their anomaly maps: which are shown (chosen by a rule), and their figure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.preprocess.slices import read_store
from uad.report.render import titled
from uad.report.style import GREY, ORANGE, PathLike, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OUTLINE = "#5CE1FF"
#: Inches: width of an image, and of the labels of the rows.
_SIZE, _LABEL = 1.15, 1.0


@dataclass(frozen=True)
class MapColumn:
    """A column of :func:`figure_maps`."""

    key: str  # where a sample holds the array
    title: str  # the heading
    kind: str  # image (0 to 1), map (with a colour scale) or truth (mask over the first image)
    scale: str = ""  # map columns that name the same one share it; else a column has its own


MAP_COLUMNS = (
    MapColumn("input", "input", "image"),
    MapColumn("reconstruction", "reconstruction", "image"),
    MapColumn("l1", "ℓ1 map", "map"),
    MapColumn("ssim", "SSIM map", "map"),
    MapColumn("fusion", "fusion map", "map"),
    MapColumn("truth", "truth", "truth"),
)


def choose_slices(sizes: Mapping[str, int]) -> list[str]:
    """Choose test volumes to show by a rule, not by their looks: a small, a median, a large lesion.

    Volumes with a lesion are sorted by its size in voxels (ties by name); a quantile ``q`` of
    ``n`` volumes takes the one at ``floor(q n)``, each once.

    Raises:
        DataError: no volume has a lesion.
    """
    ranked = sorted((size, name) for name, size in sizes.items() if size > 0)
    if not ranked:
        raise DataError("No test volume has a lesion, so there is no slice to show.")
    # The small term keeps 1/6 of 6 volumes from becoming 0.9999.
    places = [int(q * len(ranked) + 1e-9) for q in (1 / 6, 1 / 2, 5 / 6)]
    return [ranked[place][1] for place in dict.fromkeys(places)]


def map_samples(
    store: PathLike,
    subjects: Iterable[str],
    layers: Callable[[str, np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
) -> list[dict[str, Any]]:
    """The samples of :func:`figure_maps`: of each chosen volume the slice with the most lesion.

    ``layers`` is called with a chosen subject, its volume and brain mask (both ``(X, Y, Z)``), and
    gives the volumes to show by name. One volume is in memory at a time.

    Returns:
        One sample per chosen slice: ``subject``, ``slice``, ``lesion_voxels`` (of the whole
        volume), the layers and ``truth``, each ``(Y, X)`` as displayed.
    """
    sizes = {s: int(read_store(store, [s]).lesions.sum()) for s in subjects}
    samples = []
    for subject in choose_slices(sizes):
        part = read_store(store, [subject])
        z = int(part.lesions[0].sum(axis=(0, 1)).argmax())  # the first of equals
        shown = {**layers(subject, part.volumes[0], part.masks[0]), "truth": part.lesions[0]}
        # the atlas is stored left to right, back to front: turn it for display
        arrays = {name: np.rot90(layer[:, :, z]) for name, layer in shown.items()}
        samples.append({"subject": subject, "slice": z, "lesion_voxels": sizes[subject], **arrays})
    return samples


def figure_maps(
    path: PathLike,
    samples: Sequence[Mapping[str, Any]],
    *,
    phantom: bool,
    title: str,
    columns: Sequence[MapColumn] = MAP_COLUMNS,
) -> None:
    """Slices of several subjects: images, anomaly maps and truth side by side.

    A colour scale goes from 0 to the 99.9th percentile of the values of all columns that
    share it (an arrow on the colour bar says that larger values are cut). The samples are those
    of :func:`map_samples`, one per row.
    """
    from matplotlib.figure import Figure

    groups = {c.key: (c.scale, "" if c.scale else c.key) for c in columns if c.kind == "map"}
    scales = map_scales(samples, groups)
    shared = {1: "all maps", len(groups): "per column"}.get(len({*groups.values()}), "per measure")
    shape = samples[0]["truth"].shape
    width = _LABEL + len(columns) * _SIZE
    heading = textwrap.fill(titled(title, phantom), max(40, int(width * 12.5)))
    names = [textwrap.fill(column.title, 17) for column in columns]
    lines = heading.count("\n") + max(name.count("\n") for name in names)
    height = 0.8 + 0.15 * lines + len(samples) * (_SIZE * shape[0] / shape[1] + 0.05)
    with style():
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)
        figure.suptitle(heading, x=0.01, ha="left", size=9, weight="bold")
        figure.supxlabel(f"outline: lesion; scale: {shared}", x=0.01, ha="left", size=5.5, c=GREY)
        panels = figure.subplots(len(samples), len(columns), squeeze=False)
        for line, sample in zip(panels, samples, strict=True):
            look = {"transform": line[0].transAxes, "ha": "right", "va": "center", "size": 6.5}
            line[0].text(-0.06, 0.5, _row_label(sample), **look)
            ground = next((sample[c.key] for c in columns if c.kind == "image"), np.zeros(shape))
            for axes, column in zip(line, columns, strict=True):
                axes.set_axis_off()
                limit, _ = scales.get(column.key, (1, False))
                _draw(axes, column.kind, np.asarray(sample[column.key], float), sample["truth"] > 0,
                      ground, limit)  # fmt: skip
        for axes, name in zip(panels[0], names, strict=True):
            axes.set_title(name, size=8)
        for stack, column in zip(panels.T, columns, strict=True):
            if column.kind == "map":
                limit, cut = scales[column.key]
                look = {"location": "bottom", "shrink": 0.85, "aspect": 16, "panchor": False}
                look |= {"extend": "max" if cut else "neither", "ticks": [0, limit / 2, limit]}
                bar = figure.colorbar(stack[0].images[0], ax=list(stack), format="%.2g", **look)
                bar.ax.tick_params(labelsize=5.5, length=2, pad=1.5)
        save(figure, path)


def _draw(
    axes: Axes, kind: str, array: np.ndarray, truth: np.ndarray, ground: np.ndarray, limit: float
) -> None:
    """One image: a slice, a map with the lesion's outline, or the lesion over the slice."""
    if kind == "map":
        axes.imshow(array, interpolation="nearest", vmin=0, vmax=limit, cmap="inferno")
    else:
        axes.imshow(array if kind == "image" else ground, cmap="gray", vmin=0, vmax=1)
    if kind == "truth":
        tint = np.zeros((*array.shape, 4))
        tint[truth] = (0.84, 0.37, 0.0, 0.55)
        axes.imshow(tint, interpolation="nearest")
    if kind != "image" and truth.any():
        color, line = (_OUTLINE, 0.5) if kind == "map" else (ORANGE, 0.6)
        axes.contour(truth, levels=[0.5], colors=color, linewidths=line)


def _row_label(sample: Mapping[str, Any]) -> str:
    # a long name is broken at its separators rather than run into the image
    name = re.sub(r"(?<=[-_.])", " ", str(sample["subject"]))
    subject = "\n".join(line.replace(" ", "") for line in textwrap.wrap(name, 16))
    return f"{subject}\nslice {sample['slice']}\nlesion {int(sample['lesion_voxels']):,} vox."


def map_scales(
    arrays: Sequence[Mapping[str, np.ndarray]], groups: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[float, bool]]:
    """Upper limit of each map column's colour scale, one per group, and whether it cuts values."""
    scales = {}
    for group in dict.fromkeys(groups.values()):
        keys = [key for key, name in groups.items() if name == group]
        numbers = np.concatenate([np.ravel(row[key]) for row in arrays for key in keys])
        limit, top = float(np.percentile(numbers, 99.9)), float(numbers.max())
        # A map that is zero nearly everywhere still needs a scale.
        limit = limit or top or 1.0
        scales |= dict.fromkeys(keys, (limit, top > limit * 1.001))
    return scales
