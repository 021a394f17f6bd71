"""Slices with their anomaly maps: which are shown (chosen by a rule), and their figure."""

from __future__ import annotations

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
#: Inches: an image is wide, the gap beside it, the labels of the rows, what is below the images.
_SIZE, _GAP, _LABEL, _BOTTOM = 1.1, 0.05, 0.98, 0.42


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

    keys = ["truth", *(column.key for column in columns)]
    arrays = [{key: np.asarray(sample[key], float) for key in keys} for sample in samples]
    shape = arrays[0]["truth"].shape
    groups = {c.key: (c.scale, "" if c.scale else c.key) for c in columns if c.kind == "map"}
    scales = map_scales(arrays, groups)
    shared = {1: "all maps", len(groups): "per column"}.get(len({*groups.values()}), "per measure")
    names = [textwrap.fill(column.title, 17) for column in columns]
    tall = _SIZE * shape[0] / shape[1]
    width = _LABEL + len(columns) * (_SIZE + _GAP)
    heading = textwrap.fill(titled(title, phantom), max(40, int(width * 12.5)))
    deepest = max(name.count("\n") + 1 for name in names)
    top = 0.29 + 0.15 * len(heading.splitlines()) + 0.13 * deepest
    height = top + len(samples) * (tall + _GAP) + _BOTTOM
    below = height - _BOTTOM + 0.06
    with style():
        figure = Figure(figsize=(width, height), facecolor="white")

        def place(x: float, y: float, w: float, h: float) -> Axes:
            # in inches from the upper left corner
            return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

        def write(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(x / width, 1 - y / height, text, **look)

        write(0.06, 0.08, heading, va="top", size=9, weight="bold")
        for i, (sample, row) in enumerate(zip(samples, arrays, strict=True)):
            y = top + i * (tall + _GAP)
            write(0.06, y + tall / 2, _row_label(sample), va="center", ha="left", size=6.5)
            ground = next((row[c.key] for c in columns if c.kind == "image"), np.zeros(shape))
            for j, column in enumerate(columns):
                x = _LABEL + j * (_SIZE + _GAP)
                axes = place(x, y, _SIZE, tall)
                axes.set_axis_off()
                if i == 0:
                    write(x + _SIZE / 2, top - 0.06, names[j], va="bottom", ha="center", size=8)
                limit, _ = scales.get(column.key, (1, False))
                _draw(axes, column.kind, row[column.key], row["truth"], ground, limit)
        for j, column in enumerate(columns):
            if column.kind == "map":
                x = _LABEL + j * (_SIZE + _GAP) + 0.08
                _colour_bar(place(x, below, _SIZE - 0.16, 0.06), *scales[column.key])
        write(0.06, below, f"outline: lesion\nscale: {shared}", va="top", size=5.5, color=GREY)
        save(figure, path)


def _draw(
    axes: Axes, kind: str, array: np.ndarray, truth: np.ndarray, ground: np.ndarray, limit: float
) -> None:
    """One image: a slice, a map with the lesion's outline, or the lesion over the slice."""
    if kind == "map":
        axes.imshow(array, interpolation="nearest", vmin=0, vmax=limit, cmap="inferno")
        _outline(axes, truth > 0, _OUTLINE, 0.5)
        return
    axes.imshow(array if kind == "image" else ground, cmap="gray", vmin=0, vmax=1)
    if kind == "truth":
        tint = np.zeros((*array.shape, 4))
        tint[array > 0] = (0.84, 0.37, 0.0, 0.55)
        axes.imshow(tint, interpolation="nearest")
        _outline(axes, array > 0, ORANGE, 0.6)


def _outline(axes: Axes, mask: np.ndarray, color: str, width: float) -> None:
    """Draw the border of a mask along the edges of its pixels."""
    from matplotlib.collections import LineCollection

    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    edges = [((c - 0.5, r - 1.5), (c - 0.5, r - 0.5)) for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:, :] != padded[:-1, :])
    edges += [((c - 1.5, r - 0.5), (c - 0.5, r - 0.5)) for r, c in zip(rows, columns, strict=True)]
    axes.add_collection(
        LineCollection(edges, colors=color, linewidths=width, capstyle="projecting")
    )


def _colour_bar(axes: Axes, limit: float, cut: bool) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    look = {"orientation": "horizontal", "extend": "max" if cut else "neither"}
    axes.figure.colorbar(ScalarMappable(Normalize(0, limit), "inferno"), cax=axes, **look)
    ticks = [0, limit / 2, limit]
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.tick_params(labelsize=5.5, length=2, pad=1.5)


def _row_label(sample: Mapping[str, Any]) -> str:
    subject = str(sample["subject"])
    # Long names break after a separator near the middle rather than run into the image.
    if len(subject) > 15:
        middle = len(subject) // 2
        breaks = [i + 1 for i, c in enumerate(subject) if c in "-_."] or [middle]
        at = min(breaks, key=lambda i: abs(i - middle))
        subject = f"{subject[:at]}\n{subject[at:]}"
    return f"{subject}\nslice {sample['slice']}\nlesion {int(sample['lesion_voxels']):,} vox."


def map_scales(
    arrays: Sequence[Mapping[str, np.ndarray]], groups: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[float, bool]]:
    """Upper limit of each map column's colour scale, one per group, and whether it cuts values."""
    scales = {}
    for group in dict.fromkeys(groups.values()):
        keys = [key for key, name in groups.items() if name == group]
        numbers = np.concatenate([row[key].ravel() for row in arrays for key in keys])
        limit, top = float(np.percentile(numbers, 99.9)), float(numbers.max())
        # A map that is zero nearly everywhere still needs a scale.
        limit = limit if limit > 0 else (top if top > 0 else 1.0)
        scales |= dict.fromkeys(keys, (limit, top > limit * 1.001))
    return scales
