"""The figures: anomaly maps, training curves, average intensity ratios.

Matplotlib is imported inside the functions, so that importing this module costs
nothing. No figure carries a date or a version, and no user setting changes one: equal
input gives equal bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uad.core.errors import DataError
from uad.preprocess.slices import read_store
from uad.report.curves import figure_curves
from uad.report.style import BLUE, GREEN, GREY, ORANGE, PathLike, save, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "MAP_COLUMNS",
    "MapColumn",
    "SliceChoice",
    "choose_slices",
    "figure_air",
    "figure_curves",
    "figure_loss",
    "figure_maps",
    "map_samples",
]

_OUTLINE = "#5CE1FF"


@dataclass(frozen=True)
class MapColumn:
    """A column of :func:`figure_maps`: the key in a sample, its heading, what it shows.

    Attributes:
        key: where a sample holds the array.
        title: the heading.
        kind: ``image`` (grey, 0 to 1), ``map`` (anomaly map with a colour scale) or
            ``truth`` (the lesion mask over the first image of the row).
        scale: map columns that name the same scale share it, for example those of one
            measure; without a name a column has its own.
    """

    key: str
    title: str
    kind: str
    scale: str = ""


MAP_COLUMNS = (
    MapColumn("input", "input", "image"),
    MapColumn("reconstruction", "reconstruction", "image"),
    MapColumn("l1", "ℓ1 map", "map"),
    MapColumn("ssim", "SSIM map", "map"),
    MapColumn("fusion", "fusion map", "map"),
    MapColumn("truth", "truth", "truth"),
)


class SliceChoice(NamedTuple):
    """One slice to show: a subject, and an index along the slice axis."""

    subject: str
    slice: int


def choose_slices(
    lesions: Mapping[str, Any],
    load_lesion: Callable[[str], np.ndarray] | None = None,
    *,
    quantiles: Sequence[float] = (1 / 6, 1 / 2, 5 / 6),
    axis: int = 2,
) -> list[SliceChoice]:
    """Choose test slices to show by a rule, not by their looks.

    Volumes with a lesion are sorted by lesion size (ties by name); a quantile ``q`` of
    ``n`` volumes takes the one at ``floor(q n)``, so the default shows a small, a median
    and a large lesion. Of each volume the slice with the largest lesion area is taken
    (the first of equals).

    Args:
        lesions: the 3D lesion mask of each test volume, by subject; or, with
            ``load_lesion``, only its number of lesion voxels.
        load_lesion: gives a subject's mask; called for the chosen subjects only.
        quantiles: of lesion size, one per slice to choose.
        axis: the slice axis of the masks.

    Returns:
        One choice per quantile, fewer where there are fewer volumes with a lesion.

    Raises:
        DataError: no volume has a lesion, or a chosen mask is empty.
    """
    if load_lesion is None:
        sizes = {name: np.count_nonzero(np.asarray(mask) > 0) for name, mask in lesions.items()}
    else:
        sizes = {name: int(number) for name, number in lesions.items()}
    ranked = sorted((size, name) for name, size in sizes.items() if size > 0)
    if not ranked:
        raise DataError("No test volume has a lesion, so there is no slice to show.")
    # The small term keeps 1/6 of 6 volumes from becoming 0.9999.
    places = [min(int(q * len(ranked) + 1e-9), len(ranked) - 1) for q in quantiles]
    choices = []
    for size, name in (ranked[place] for place in dict.fromkeys(places)):
        mask = np.asarray(load_lesion(name) if load_lesion else lesions[name]) > 0
        area = mask.sum(axis=tuple(i for i in range(mask.ndim) if i != axis % mask.ndim))
        if not area.any():
            raise DataError(f"{name}: {size} lesion voxels were counted, but its mask is empty.")
        choices.append(SliceChoice(name, int(area.argmax())))
    return choices


def map_samples(
    store: PathLike,
    subjects: Iterable[str],
    layers: Callable[[str, np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
) -> list[dict[str, Any]]:
    """The samples of :func:`figure_maps` on the slices that :func:`choose_slices` takes.

    One volume is in memory at a time.

    Args:
        store: slice store of the test set.
        subjects: BIDS labels of those who are tested.
        layers: called with a chosen subject, its volume and brain mask (both ``(X, Y, Z)``);
            gives the volumes to show, on the same grid, by name.

    Returns:
        One sample per chosen slice: ``subject``, ``slice``, ``lesion_voxels`` (of the whole
        volume), the layers and ``truth``, each ``(Y, X)`` as displayed.
    """
    sizes = {s: int(read_store(store, [s]).lesions.sum()) for s in subjects}
    samples = []
    for subject, z in choose_slices(sizes, lambda s: read_store(store, [s]).lesions[0]):
        part = read_store(store, [subject])
        shown = {**layers(subject, part.volumes[0], part.masks[0]), "truth": part.lesions[0]}
        # the atlas is stored left to right, back to front: turn it for display
        arrays = {name: np.rot90(layer[:, :, z]) for name, layer in shown.items()}
        samples.append({"subject": subject, "slice": z, "lesion_voxels": sizes[subject], **arrays})
    return samples


# Drawing ---------------------------------------------------------------------------------


def _outline(axes: Axes, mask: np.ndarray, color: str, width: float) -> None:
    """Draw the border of a mask along the edges of its pixels."""
    from matplotlib.collections import LineCollection

    padded = np.pad(np.asarray(mask) > 0, 1)
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    edges = [((c - 0.5, r - 1.5), (c - 0.5, r - 0.5)) for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:, :] != padded[:-1, :])
    edges += [((c - 1.5, r - 0.5), (c - 0.5, r - 0.5)) for r, c in zip(rows, columns, strict=True)]
    axes.add_collection(
        LineCollection(edges, colors=color, linewidths=width, capstyle="projecting")
    )


def _panel(sample: Mapping[str, Any], key: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """An array of a sample, checked."""
    name = f"{sample.get('subject', '?')} slice {sample.get('slice', '?')}"
    if key not in sample:
        raise DataError(f"figure of {name}: there is no {key!r} in the sample.")
    array = np.asarray(sample[key], dtype=np.float64)
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        raise DataError(f"figure of {name}: {key!r} has shape {array.shape}, expected {shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"figure of {name}: {key!r} has NaN or infinite values.")
    return array


def figure_maps(
    path: PathLike | Sequence[PathLike],
    samples: Sequence[Mapping[str, Any]],
    *,
    phantom: bool,
    title: str,
    columns: Sequence[MapColumn] = MAP_COLUMNS,
    shared_scale: bool = False,
) -> None:
    """Slices of several subjects: images, anomaly maps and truth side by side.

    Every map column has one colour scale for all rows, from 0 to the 99.9th percentile
    of its values, or of those of all columns with its scale (an arrow on the colour bar
    says that larger values are cut).

    Args:
        path: where to write, one path or several (``.png`` at 200 dpi, ``.svg``, ``.pdf``).
        samples: one per row, with ``subject``, ``slice``, ``truth`` and a 2D array,
            oriented for display, for the key of each column; ``lesion_voxels`` is the
            lesion size in the volume (without it, the one in the slice is written).
        phantom: the samples are phantoms; the title says so.
        title: the title of the figure.
        columns: what to show, for example one map column per method (Fig. 3).
        shared_scale: one colour scale for all map columns, whatever scales they name.
    """
    if not samples:
        raise DataError("figure of anomaly maps: no samples were given.")
    arrays: list[dict[str, np.ndarray]] = []
    shape = None
    for sample in samples:
        row = {}
        for key in dict.fromkeys([*(column.key for column in columns), "truth"]):
            row[key] = _panel(sample, key, shape)
            shape = row[key].shape
        arrays.append(row)
    maps = {
        c.key: ("all", "") if shared_scale else (c.scale, "" if c.scale else c.key)
        for c in columns
        if c.kind == "map"
    }
    scales = _scales(arrays, maps)
    different = len(set(maps.values()))
    scale = "per column" if different == len(maps) else "all maps"
    if 1 < different < len(maps):
        scale = "per measure"

    with style():
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        size, gap, label = 1.1, 0.05, 0.98
        height, width = shape or (1, 1)
        tall = size * height / width
        full_width = label + len(columns) * (size + gap)
        heading = f"{title} (phantom data)" if phantom else title
        heading = textwrap.fill(heading, max(40, int(full_width * 12.5)))
        names = [textwrap.fill(column.title, 17) for column in columns]
        deepest = max(len(name.splitlines()) for name in names)
        top = 0.29 + 0.15 * len(heading.splitlines()) + 0.13 * deepest
        bottom = 0.42
        full_height = top + len(samples) * (tall + gap) + bottom
        figure = Figure(figsize=(full_width, full_height), facecolor="white")

        def place(x: float, y: float, w: float, h: float) -> Axes:
            """Axes at inches from the upper left corner."""
            box = (x / full_width, 1 - (y + h) / full_height, w / full_width, h / full_height)
            return figure.add_axes(box)

        def write(x: float, y: float, text: str, **style: Any) -> None:
            figure.text(x / full_width, 1 - y / full_height, text, **style)

        write(0.06, 0.08, heading, va="top", ha="left", size=9, weight="bold")
        first_image = next((c.key for c in columns if c.kind == "image"), None)
        for i, (sample, row) in enumerate(zip(samples, arrays, strict=True)):
            y = top + i * (tall + gap)
            write(0.06, y + tall / 2, _row_label(sample), va="center", ha="left", size=6.5)
            for j, column in enumerate(columns):
                x = label + j * (size + gap)
                axes = place(x, y, size, tall)
                axes.set_axis_off()
                if i == 0:
                    write(x + size / 2, top - 0.06, names[j], va="bottom", ha="center", size=8)
                if column.kind == "map":
                    limits = {"vmin": 0, "vmax": scales[column.key][0], "cmap": "inferno"}
                    axes.imshow(row[column.key], interpolation="nearest", **limits)
                    _outline(axes, row["truth"], _OUTLINE, 0.5)
                elif column.kind == "image":
                    axes.imshow(row[column.key], cmap="gray", vmin=0, vmax=1)
                else:
                    ground = row[first_image] if first_image else np.zeros(shape or (1, 1))
                    axes.imshow(ground, cmap="gray", vmin=0, vmax=1)
                    mask = row[column.key] > 0
                    tint = np.zeros((*mask.shape, 4))
                    tint[mask] = (0.84, 0.37, 0.0, 0.55)
                    axes.imshow(tint, interpolation="nearest")
                    _outline(axes, mask, ORANGE, 0.6)
        below = full_height - bottom + 0.06
        for j, column in enumerate(columns):
            if column.kind != "map":
                continue
            limit, cut = scales[column.key]
            bar = place(label + j * (size + gap) + 0.08, below, size - 0.16, 0.06)
            mappable = ScalarMappable(Normalize(0, limit), "inferno")
            figure.colorbar(
                mappable, cax=bar, orientation="horizontal", extend="max" if cut else "neither"
            )
            bar.set_xticks([0, limit / 2, limit], [_short(v) for v in (0, limit / 2, limit)])
            bar.tick_params(labelsize=5.5, length=2, pad=1.5)
        write(
            0.06,
            below,
            f"outline: lesion\nscale: {scale}",
            va="top",
            ha="left",
            size=5.5,
            color=GREY,
        )
        save(figure, path)


def _short(value: float) -> str:
    return f"{value:.2g}"


def _row_label(sample: Mapping[str, Any]) -> str:
    if "lesion_voxels" in sample:
        size = f"lesion {int(sample['lesion_voxels']):,} vox."
    else:
        size = f"lesion {np.count_nonzero(np.asarray(sample['truth']) > 0):,} pixels"
    subject = str(sample["subject"])
    # Long names break after a separator near the middle rather than run into the image.
    if len(subject) > 15:
        middle = len(subject) // 2
        breaks = [i + 1 for i, c in enumerate(subject) if c in "-_."] or [middle]
        at = min(breaks, key=lambda i: abs(i - middle))
        subject = f"{subject[:at]}\n{subject[at:]}"
    return f"{subject}\nslice {sample['slice']}\n{size}"


def _scales(
    arrays: Sequence[Mapping[str, np.ndarray]], groups: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[float, bool]]:
    """Upper limit of each map column's colour scale, and whether it cuts values.

    Columns of one group have one scale.
    """
    scales = {}
    for group in dict.fromkeys(groups.values()):
        keys = [key for key, name in groups.items() if name == group]
        numbers = np.concatenate([row[key].ravel() for row in arrays for key in keys])
        limit, top = float(np.percentile(numbers, 99.9)), float(numbers.max())
        # A map that is zero nearly everywhere still needs a scale.
        limit = limit if limit > 0 else (top if top > 0 else 1.0)
        scales |= dict.fromkeys(keys, (limit, top > limit * 1.001))
    return scales


def figure_loss(path: PathLike | Sequence[PathLike], history: pd.DataFrame, title: str) -> None:
    """Training and healthy-validation loss over the steps, with the best epoch marked.

    The axis is logarithmic where the losses span more than a factor of ten.

    Args:
        path: where to write, one path or several.
        history: columns ``epoch``, ``step``, ``train_loss`` and ``val_loss``; NaN where a
            loss was not measured.
        title: the title of the figure.
    """
    missing = [c for c in ("epoch", "step", "train_loss", "val_loss") if c not in history.columns]
    if missing:
        raise DataError(f"history of training: the columns {', '.join(missing)} are missing.")
    history = history.sort_values("step", kind="stable")
    train = history[np.isfinite(history["train_loss"].astype(float))]
    val = history[np.isfinite(history["val_loss"].astype(float))]
    if train.empty and val.empty:
        raise DataError("history of training: no loss was measured.")

    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

        figure = Figure(figsize=(5.2, 3.2), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        if len(train):
            window = len(train) // 50
            smooth = window >= 2
            axes.plot(
                train["step"],
                train["train_loss"],
                color=BLUE,
                lw=0.6 if smooth else 1.2,
                alpha=0.3 if smooth else 1,
                label=None if smooth else "training",
                marker="o" if len(train) == 1 else None,
            )
            if smooth:
                mean = train["train_loss"].astype(float)
                mean = mean.rolling(window, min_periods=1, center=True).mean()
                label = f"training (mean of {window})"
                axes.plot(train["step"], mean, color=BLUE, lw=1.4, label=label)
        if len(val):
            few = len(val) <= 60
            axes.plot(
                val["step"],
                val["val_loss"],
                color=ORANGE,
                lw=1.2,
                marker="o" if few else None,
                ms=2.8,
                label="healthy validation",
            )
            chosen = val[val["weights"] == 1] if "weights" in val else val
            chosen = chosen if len(chosen) else val
            best = chosen.loc[chosen["val_loss"].astype(float).idxmin()]
            text = f"weights: epoch {int(best['epoch'])}, {best['val_loss']:.4g}"
            axes.axvline(best["step"], color=GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
            axes.plot(
                [best["step"]],
                [best["val_loss"]],
                "o",
                ms=7,
                mfc="none",
                mec=GREEN,
                mew=1.4,
                zorder=5,
                label=text,
            )
        losses = np.concatenate([train["train_loss"], val["val_loss"]]).astype(float)
        log = losses.min() > 0 and losses.max() / losses.min() > 10
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("loss (logarithmic)" if log else "loss")
        axes.set_title(title, loc="left", weight="bold", size=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.grid(axis="y", which="major", lw=0.4, color="#e3e6ea")
        axes.set_axisbelow(True)
        axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
        save(figure, path, dpi=130, colours=64)  # a run has a hundred of them in its report


def figure_air(
    path: PathLike | Sequence[PathLike],
    air_frame: pd.DataFrame,
    title: str = "Average intensity ratio",
    *,
    phantom: bool = False,
) -> None:
    """Mean intensities, and the ratio before and after the transform, per experiment.

    Small dots are folds, large ones their mean.

    Args:
        path: where to write, one path or several.
        air_frame: from :func:`uad.report.tables.air_table`.
        title: the title of the figure.
        phantom: the data are phantoms; the title says so.
    """
    folds = air_frame[air_frame["fold"] != "mean"]
    means = air_frame[air_frame["fold"] == "mean"].reset_index(drop=True)
    if folds.empty or means.empty:
        raise DataError("figure of AIR: the frame has no folds or no mean rows.")
    numbers = air_frame[["air_before", "air_after", "air_if_inverted"]].to_numpy(float)
    several = means["experiment"].duplicated().any()

    with style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

        heading = f"{title} (phantom data)" if phantom else title
        figure = Figure(
            figsize=(7.2, 1.5 + 0.5 * len(means)), facecolor="white", layout="constrained"
        )
        figure.suptitle(heading, x=0.01, ha="left", weight="bold", size=9)
        left, right = figure.subplots(1, 2, sharey=True)
        for y, mean in means.iterrows():
            own = folds[
                (folds["experiment"] == mean["experiment"])
                & (folds["reference_dataset"] == mean["reference_dataset"])
            ]
            _dots(left, y, own["mean_normal"], mean["mean_normal"], BLUE, "o")
            _dots(left, y, own["mean_anomalous"], mean["mean_anomalous"], ORANGE, "s")
            before, after = mean["air_before"], mean["air_after"]
            inverted = mean["air_if_inverted"]
            if after != before:
                arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1, "shrinkA": 4, "shrinkB": 4}
                right.annotate("", (after, y), (before, y), arrowprops=arrow, zorder=1)
            if not np.isclose(inverted, after):
                right.plot([inverted], [y], "D", ms=5, mfc="none", mec=GREY, mew=0.9, zorder=2)
            _dots(right, y, own["air_before"], before, GREY, "o", hollow=True)
            _dots(right, y, own["air_after"], after, GREEN, "o")
            note, warn = _choice(mean, own)
            # At the right edge, above the row: the longest note still fits the panel.
            right.text(
                0.99,
                y - 0.2,
                note,
                transform=right.get_yaxis_transform(),
                ha="right",
                va="bottom",
                size=6.5,
                color=ORANGE if warn else "#30353b",
            )
        labels = [
            f"{m['experiment']}\n({m['modality']}, {m['reference_dataset']})"
            if several
            else f"{m['experiment']}\n({m['modality']})"
            for _, m in means.iterrows()
        ]
        left.set_yticks(range(len(means)), labels)
        left.set_ylim(len(means) - 0.5, -0.6)
        left.axvline(0.5, color=GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
        left.set_xlim(0, 1)
        left.set_xlabel("mean intensity before the transform\n(dashed: 0.5, the paper's threshold)")
        right.set_xlabel("AIR (logarithmic)")
        right.set_xscale("log")
        high = max(2.0, float(numbers.max()) * 1.6)
        right.set_xlim(min(1.0, float(numbers.min())) * 0.96, high)
        ticks = [t for t in (1, 1.2, 1.5, 2, 3, 5, 8, 12, 20, 50) if t <= high]
        right.xaxis.set_major_locator(FixedLocator(ticks))
        right.set_xticks(ticks, [f"{t:g}" for t in ticks])
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_minor_formatter(NullFormatter())
        for axes in (left, right):
            axes.grid(axis="x", lw=0.4, color="#e3e6ea")
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        _key(left, [("μn healthy", BLUE, "o", False), ("μa lesion", ORANGE, "s", False)])
        _key(
            right,
            [
                ("before", GREY, "o", True),
                ("after", GREEN, "o", False),
                ("other choice", GREY, "D", True),
            ],
        )
        save(figure, path, colours=64)


def _choice(mean: pd.Series, folds: pd.DataFrame) -> tuple[str, bool]:
    """What was done to an experiment, and whether the other choice had the larger AIR."""
    note = {"yes": "inverted", "no": "kept"}.get(
        mean["invert"], f"inverted in {mean['invert']} folds"
    )
    worse = int((folds["invert"] != folds["maximising_invert"]).sum())
    if worse:
        where = f" in {worse} of {len(folds)} folds" if len(folds) > 1 else ""
        return f"{note}; not the larger AIR{where}", True
    if mean["choices_differ"] != "no":
        return f"{note}; against the paper's rule", True
    return note, False


def _dots(
    axes: Axes,
    y: float,
    folds: pd.Series,
    mean: float,
    color: str,
    marker: str,
    hollow: bool = False,
) -> None:
    """Folds as small dots around a line, their mean as a large one."""
    offsets = np.linspace(-0.1, 0.1, len(folds)) if len(folds) > 1 else np.zeros(1)
    axes.plot(folds, y + 0.22 + offsets, ".", ms=3, color=color, alpha=0.6, mew=0)
    fill = "white" if hollow else color
    axes.plot([mean], [y], marker, ms=6, mfc=fill, mec=color, mew=1.2, zorder=3)


def _key(axes: Axes, entries: Sequence[tuple[str, str, str, bool]]) -> None:
    """A legend in one line above the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker=m, ms=5, mfc="none" if hollow else c, mec=c, label=text)
        for text, c, m, hollow in entries
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
