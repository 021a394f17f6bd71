"""Figures of a training's losses and of the average intensity ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.report.render import titled
from uad.report.style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PathLike,
    drawing,
    grid,
    key_line,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def figure_loss(path: PathLike, history: pd.DataFrame, title: str) -> None:
    """Training and healthy-validation loss over the steps, with the best epoch marked.

    The axis is logarithmic where the losses span more than a factor of ten. ``history`` has the
    columns ``epoch``, ``step``, ``train_loss`` and ``val_loss``; NaN where a loss was not measured.
    """
    history = history.sort_values("step", kind="stable")
    train = history[np.isfinite(history["train_loss"].astype(float))]
    val = history[np.isfinite(history["val_loss"].astype(float))]
    if train.empty and val.empty:
        raise DataError("history of training: no loss was measured.")

    # small: a run has a hundred of them in its report
    with drawing(path, 5.2, 3.2, dpi=130, colours=64) as figure:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

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
        axes.set(xlabel="optimisation step", ylabel="loss (logarithmic)" if log else "loss")
        axes.set_title(title, loc="left", weight="bold", size=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        grid(axes, "y")
        axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")


def _draw_training(axes: Axes, train: pd.DataFrame) -> None:
    """The loss of each step; where there are many, pale behind their moving average."""
    window = len(train) // 50
    look = {"lw": 1.2, "label": "training", "marker": "o" if len(train) == 1 else None}
    if window >= 2:
        look = {"lw": 0.6, "alpha": 0.3}
    axes.plot(train["step"], train["train_loss"], color=BLUE, **look)
    if window >= 2:
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
    axes.axvline(best["step"], **DASHED)
    ring = {"ms": 7, "mfc": "none", "mec": GREEN, "mew": 1.4, "zorder": 5, "label": text}
    axes.plot([best["step"]], [best["val_loss"]], "o", **ring)


#: Column of the AIR table -> its look, and its words in the key.
_MEANS = {
    "mean_normal": {"marker": "o", "mec": BLUE, "mfc": BLUE, "label": "μn healthy"},
    "mean_anomalous": {"marker": "s", "mec": ORANGE, "mfc": ORANGE, "label": "μa lesion"},
}
_RATIOS = {
    "air_before": {"marker": "o", "mec": GREY, "mfc": "white", "label": "before"},
    "air_after": {"marker": "o", "mec": GREEN, "mfc": GREEN, "label": "after"},
}
_OTHER = {"air_if_inverted": {"marker": "D", "mec": GREY, "mfc": "none", "label": "other choice"}}


def figure_air(path: PathLike, air_frame: pd.DataFrame, *, phantom: bool = False) -> None:
    """Mean intensities, and the ratio before and after the transform, per experiment.

    Small dots are folds, large ones their mean; the frame is that of
    :func:`uad.report.air_table.air_table`.
    """
    folds = air_frame[air_frame["fold"] != "mean"]
    means = air_frame[air_frame["fold"] == "mean"].reset_index(drop=True)
    with drawing(path, 7.2, 1.5 + 0.5 * len(means), colours=64) as figure:
        heading = titled("Average intensity ratio", phantom)
        figure.suptitle(heading, x=0.01, ha="left", weight="bold", size=9)
        left, right = figure.subplots(1, 2, sharey=True)
        for y, mean in means.iterrows():
            key = ["experiment", "reference_dataset"]
            mine = folds[(folds[key] == mean[key]).all(axis=1)]
            _dots(left, y, mine, mean, _MEANS)
            _draw_ratios(right, y, mine, mean)
        labels = [f"{m.experiment}\n({m.modality})" for m in means.itertuples()]
        left.set_yticks(range(len(means)), labels)
        left.set_ylim(len(means) - 0.5, -0.6)
        left.axvline(0.5, **DASHED)
        left.set_xlim(0, 1)
        left.set_xlabel("mean intensity before the transform\n(dashed: 0.5, the paper's threshold)")
        _ratio_axis(right, air_frame[[*_RATIOS, *_OTHER]].to_numpy(float))
        for axes, entries in ((left, _MEANS), (right, _RATIOS | _OTHER)):
            grid(axes, "x")
            axes.tick_params(axis="y", length=0)
            handles = [key_line(ls="", ms=5, **look) for look in entries.values()]
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
            gaps = {"handletextpad": 0.2, "columnspacing": 1.2, "ncols": len(handles)}
            axes.legend(handles=handles, **place, **gaps)


def _draw_ratios(axes: Axes, y: int, folds: pd.DataFrame, mean: pd.Series) -> None:
    """What became of the ratio of one experiment."""
    before, after, inverted = mean["air_before"], mean["air_after"], mean["air_if_inverted"]
    if after != before:
        arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", (after, y), (before, y), arrowprops=arrow, zorder=1)
    if not np.isclose(inverted, after):
        axes.plot([inverted], [y], "D", ms=5, mfc="none", mec=GREY, mew=0.9, zorder=2)
    _dots(axes, y, folds, mean, _RATIOS)
    worse = (folds["invert"] != folds["maximising_invert"]).any()
    note = {"yes": "inverted", "no": "kept"}.get(mean["invert"])
    note = note or f"inverted in {mean['invert']} folds"
    if worse:
        note += "; not the larger AIR"
    elif mean["choices_differ"] != "no":
        note += "; against the paper's rule"
    # At the right edge, above the row: the longest note still fits the panel.
    look = {"ha": "right", "va": "bottom", "size": 6.5}
    look["color"] = ORANGE if ";" in note else "#30353b"
    axes.text(0.99, y - 0.2, note, transform=axes.get_yaxis_transform(), **look)


def _ratio_axis(axes: Axes, ratios: np.ndarray) -> None:
    high = max(2.0, float(ratios.max()) * 1.6)
    low = min(1.0, float(ratios.min())) * 0.96
    axes.set(xlabel="AIR (logarithmic)", xscale="log", xlim=(low, high))
    ticks = [t for t in (1, 1.2, 1.5, 2, 3, 5, 8, 12, 20, 50) if t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)


def _dots(
    axes: Axes, y: int, folds: pd.DataFrame, mean: pd.Series, entries: dict[str, Any]
) -> None:
    """Folds as small dots around a line, their mean as a large one."""
    offsets = np.linspace(-0.1, 0.1, len(folds)) if len(folds) > 1 else np.zeros(1)
    for column, look in entries.items():
        axes.plot(folds[column], y + 0.22 + offsets, ".", ms=3, color=look["mec"], alpha=0.6, mew=0)
        axes.plot([mean[column]], [y], ls="", ms=6, mew=1.2, zorder=3, **look)
