"""Figures of a training's losses and of the average intensity ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from uad.core.errors import DataError
from uad.report.render import titled
from uad.report.style import BLUE, GREEN, GREY, ORANGE, PathLike, grid, save, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def figure_loss(path: PathLike, history: pd.DataFrame, title: str) -> None:
    """Training and healthy-validation loss over the steps, with the best epoch marked.

    The axis is logarithmic where the losses span more than a factor of ten.

    Args:
        path: where to write.
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
            _draw_training(axes, train)
        if len(val):
            _draw_validation(axes, val)
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
        grid(axes, "y")
        axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
        save(figure, path, dpi=130, colours=64)  # a run has a hundred of them in its report


def _draw_training(axes: Axes, train: pd.DataFrame) -> None:
    """The loss of each step; where there are many, pale behind their moving average."""
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
        mean = train["train_loss"].astype(float).rolling(window, min_periods=1, center=True).mean()
        axes.plot(train["step"], mean, color=BLUE, lw=1.4, label=f"training (mean of {window})")


def _draw_validation(axes: Axes, val: pd.DataFrame) -> None:
    """The validation loss, and the epoch whose weights were taken."""
    marker = "o" if len(val) <= 60 else None
    look = {"color": ORANGE, "lw": 1.2, "ms": 2.8, "label": "healthy validation"}
    axes.plot(val["step"], val["val_loss"], marker=marker, **look)
    chosen = val[val["weights"] == 1] if "weights" in val else val
    chosen = chosen if len(chosen) else val
    best = chosen.loc[chosen["val_loss"].astype(float).idxmin()]
    text = f"weights: epoch {int(best['epoch'])}, {best['val_loss']:.4g}"
    axes.axvline(best["step"], color=GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
    ring = {"ms": 7, "mfc": "none", "mec": GREEN, "mew": 1.4, "zorder": 5, "label": text}
    axes.plot([best["step"]], [best["val_loss"]], "o", **ring)


def figure_air(path: PathLike, air_frame: pd.DataFrame, *, phantom: bool = False) -> None:
    """Mean intensities, and the ratio before and after the transform, per experiment.

    Small dots are folds, large ones their mean.

    Args:
        path: where to write.
        air_frame: from :func:`uad.report.air_table.air_table`.
        phantom: the data are phantoms; the title says so.
    """
    folds = air_frame[air_frame["fold"] != "mean"]
    means = air_frame[air_frame["fold"] == "mean"].reset_index(drop=True)

    with style():
        from matplotlib.figure import Figure

        size = (7.2, 1.5 + 0.5 * len(means))
        figure = Figure(figsize=size, facecolor="white", layout="constrained")
        heading = titled("Average intensity ratio", phantom)
        figure.suptitle(heading, x=0.01, ha="left", weight="bold", size=9)
        left, right = figure.subplots(1, 2, sharey=True)
        for y, mean in means.iterrows():
            key = ["experiment", "reference_dataset"]
            _draw_experiment(left, right, y, mean, folds[(folds[key] == mean[key]).all(axis=1)])
        labels = [f"{m.experiment}\n({m.modality})" for m in means.itertuples()]
        left.set_yticks(range(len(means)), labels)
        left.set_ylim(len(means) - 0.5, -0.6)
        left.axvline(0.5, color=GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
        left.set_xlim(0, 1)
        left.set_xlabel("mean intensity before the transform\n(dashed: 0.5, the paper's threshold)")
        _ratio_axis(
            right, air_frame[["air_before", "air_after", "air_if_inverted"]].to_numpy(float)
        )
        for axes in (left, right):
            grid(axes, "x")
            axes.tick_params(axis="y", length=0)
        _key(left, [("μn healthy", BLUE, "o", False), ("μa lesion", ORANGE, "s", False)])
        kinds = [("before", GREY, "o", True), ("after", GREEN, "o", False)]
        _key(right, [*kinds, ("other choice", GREY, "D", True)])
        save(figure, path, colours=64)


def _draw_experiment(left: Axes, right: Axes, y: int, mean: pd.Series, folds: pd.DataFrame) -> None:
    """The line of one experiment: intensities, and what became of the ratio."""
    _dots(left, y, folds["mean_normal"], mean["mean_normal"], BLUE, "o")
    _dots(left, y, folds["mean_anomalous"], mean["mean_anomalous"], ORANGE, "s")
    before, after, inverted = mean["air_before"], mean["air_after"], mean["air_if_inverted"]
    if after != before:
        arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1, "shrinkA": 4, "shrinkB": 4}
        right.annotate("", (after, y), (before, y), arrowprops=arrow, zorder=1)
    if not np.isclose(inverted, after):
        right.plot([inverted], [y], "D", ms=5, mfc="none", mec=GREY, mew=0.9, zorder=2)
    _dots(right, y, folds["air_before"], before, GREY, "o", hollow=True)
    _dots(right, y, folds["air_after"], after, GREEN, "o")
    note, warn = _choice(mean, folds)
    # At the right edge, above the row: the longest note still fits the panel.
    look = {"ha": "right", "va": "bottom", "size": 6.5, "color": ORANGE if warn else "#30353b"}
    right.text(0.99, y - 0.2, note, transform=right.get_yaxis_transform(), **look)


def _ratio_axis(axes: Axes, ratios: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    axes.set_xlabel("AIR (logarithmic)")
    axes.set_xscale("log")
    high = max(2.0, float(ratios.max()) * 1.6)
    axes.set_xlim(min(1.0, float(ratios.min())) * 0.96, high)
    ticks = [t for t in (1, 1.2, 1.5, 2, 3, 5, 8, 12, 20, 50) if t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


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
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(handles=handles, ncols=len(handles), handletextpad=0.2, columnspacing=1.2, **place)
