"""Slices with their anomaly maps: which are shown (chosen by a rule), and their figure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uad.core.errors import DataError
from uad.preprocess.slices import read_store
from uad.report.render import titled
from uad.report.style import GREY, ORANGE, PathLike, drawing

_OUTLINE = "#5CE1FF"
#: Inches: width of an image, and of the labels of the rows.
_SIZE, _LABEL = 1.15, 1.0


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
    images: Sequence[str],
    maps: Mapping[str, tuple[str, str]],
    *,
    phantom: bool,
    title: str,
) -> None:
    """Slices of several subjects: images (0 to 1), anomaly maps and truth side by side.

    The samples are those of :func:`map_samples`, one per row; ``maps`` has, by key, the heading of
    a map and what it measures. A colour scale goes from 0 to the 99.9th percentile of all maps
    with the same measure (an arrow on the colour bar says that larger values are cut).
    """
    measures = [measure for _, measure in maps.values()]
    shared = {1: "all maps", len(maps): "per column"}.get(len({*measures}), "per measure")
    shape, columns = samples[0]["truth"].shape, [*images, *maps, "truth"]
    width = _LABEL + len(columns) * _SIZE
    heading = textwrap.fill(titled(title, phantom), max(40, int(width * 12.5)))
    names = [textwrap.fill(maps[key][0] if key in maps else key, 17) for key in columns]
    lines = heading.count("\n") + max(name.count("\n") for name in names)
    height = 0.8 + 0.15 * lines + len(samples) * (_SIZE * shape[0] / shape[1] + 0.05)
    with drawing(path, width, height) as figure:
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)
        figure.suptitle(heading, x=0.01, ha="left", size=9, weight="bold")
        figure.supxlabel(f"outline: lesion; scale: {shared}", x=0.01, ha="left", size=5.5, c=GREY)
        panels = figure.subplots(len(samples), len(columns), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for axes, name in zip(panels[0], names, strict=True):
            axes.set_title(name, size=8)
        for line, sample in zip(panels, samples, strict=True):
            look = {"transform": line[0].transAxes, "ha": "right", "va": "center", "size": 6.5}
            line[0].text(-0.06, 0.5, _row_label(sample), **look)
            for axes, key in zip(line, images, strict=False):
                axes.imshow(np.asarray(sample[key], float), cmap="gray", vmin=0, vmax=1)
            truth = sample["truth"] > 0
            line[-1].imshow(np.asarray(sample[images[0]], float), cmap="gray", vmin=0, vmax=1)
            tint = np.zeros((*shape, 4))
            tint[truth] = (0.84, 0.37, 0.0, 0.55)
            line[-1].imshow(tint, interpolation="nearest")
            _outline(line[-1], truth, colors=ORANGE, linewidths=0.6)
        for stack, (key, (_, measure)) in zip(panels.T[len(images) :], maps.items(), strict=False):
            limit, cut = map_scale(samples, [other for other in maps if maps[other][1] == measure])
            for axes, sample in zip(stack, samples, strict=True):
                look = {"interpolation": "nearest", "vmin": 0, "vmax": limit, "cmap": "inferno"}
                shown = axes.imshow(np.asarray(sample[key], float), **look)
                _outline(axes, sample["truth"] > 0, colors=_OUTLINE, linewidths=0.5)
            look = {"location": "bottom", "shrink": 0.85, "aspect": 16, "panchor": False}
            look |= {"extend": "max" if cut else "neither", "ticks": [0, limit / 2, limit]}
            bar = figure.colorbar(shown, ax=list(stack), format="%.2g", **look)
            bar.ax.tick_params(labelsize=5.5, length=2, pad=1.5)


def _outline(axes: Any, truth: np.ndarray, **look: Any) -> None:
    if truth.any():
        axes.contour(truth, levels=[0.5], **look)


def _row_label(sample: Mapping[str, Any]) -> str:
    # a long name is broken at its separators rather than run into the image
    name = re.sub(r"(?<=[-_.])", " ", str(sample["subject"]))
    subject = "\n".join(line.replace(" ", "") for line in textwrap.wrap(name, 16))
    return f"{subject}\nslice {sample['slice']}\nlesion {int(sample['lesion_voxels']):,} vox."


def map_scale(samples: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[float, bool]:
    """Upper limit of the colour scale that some maps share, and whether it cuts values."""
    numbers = np.concatenate([np.ravel(sample[key]) for sample in samples for key in keys])
    limit, top = float(np.percentile(numbers, 99.9)), float(numbers.max())
    limit = limit or top or 1.0  # a map that is zero nearly everywhere still needs a scale
    return limit, top > limit * 1.001
