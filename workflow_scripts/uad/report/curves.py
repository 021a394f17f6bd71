"""Figures of curves: over the threshold, the lesion volume, and a value that a study sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.report.metric_files import METRICS
from uad.report.render import titled
from uad.report.style import GREY, PathLike, grid, key_line, looks, method_key, panels_and_key

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from uad.report.table_spec import StudySpec, TableSpec

#: Thresholds of methods that differ by more than this factor need a logarithmic axis.
_WIDE = 8.0
_SPOT = {"marker": "o", "ms": 3.6, "mec": "white", "mew": 0.5}


def figure_curves(
    path: PathLike,
    curves: Mapping[str, pd.DataFrame],
    *,
    phantom: bool,
    title: str,
    chosen: Mapping[str, Sequence[float]],
    prevalence: float,
) -> None:
    """Precision over recall, and Dice over the threshold, of several methods.

    A thin line is a fold, a strong one the mean over folds: of the precision at equal
    recall, and of the Dice at equal threshold.

    ``curves`` has, by method label, a frame with the columns fold, threshold, precision, recall
    (over all voxels together) and mean_dice (over volumes), ``chosen`` the threshold of each fold.
    ``prevalence``: of lesion voxels, the precision of a random guess.
    """
    folds = {label: _folds(label, frame) for label, frame in curves.items()}
    height = max(3.0, 0.8 + 0.17 * (len(curves) + 4))
    with panels_and_key(path, titled(title, phantom), 9.2, height) as body:
        left, right = body.subplots(1, 2)
        ranges = [
            _draw_method(left, right, parts, chosen[label], look)
            for (label, parts), look in zip(folds.items(), looks(folds), strict=True)
        ]
        left.axhline(prevalence, color=GREY, lw=0.9, ls=":", zorder=1)
        left.set(xlabel="recall (all test voxels together)", ylabel="precision")
        left.set(xlim=(0, 1), ylim=(0, 1))
        right.set(ylabel="Dice (mean over test volumes)")
        _threshold_axis(right, ranges)
        right.set_ylim(bottom=0)
        grid(left)
        grid(right)
        handles = [*method_key(list(folds), 1.5, 30), key_line()]
        if any(len(parts) > 1 for parts in folds.values()):
            handles.append(key_line(color=GREY, lw=1.5, label="mean over folds"))
            handles.append(key_line(color=GREY, lw=0.5, alpha=0.6, label="one fold"))
        handles.append(key_line(ls="", mfc=GREY, **_SPOT, label="threshold from validation"))
        text = f"prevalence, {100 * prevalence:.2g} %"
        handles.append(key_line(color=GREY, lw=0.9, ls=":", label=text))
        body.legend(handles=handles, loc="outside right upper", handlelength=2.6)


def _draw_method(
    left: Axes,
    right: Axes,
    parts: Sequence[pd.DataFrame],
    chosen: Sequence[float],
    look: Mapping[str, Any],
) -> tuple[float, float]:
    """The lines of one method; the range of thresholds that is worth showing."""
    for part in parts if len(parts) > 1 else ():
        thin = {**look, "lw": 0.5, "alpha": 0.28}
        left.plot(part["recall"], part["precision"], **thin)
        right.plot(part["threshold"], part["mean_dice"], **thin)
    left.plot(*mean_precision(parts), **look, lw=1.5)
    thresholds, dice = mean_dice(parts)
    right.plot(thresholds, dice, **look, lw=1.5)
    good = thresholds[dice >= 0.03 * dice.max()] if dice.max() > 0 else thresholds
    for part, value in zip(parts, chosen, strict=True):
        at = np.interp(value, part["threshold"], part["mean_dice"])
        right.plot([value], [at], ls="", mfc=look["color"], zorder=4, **_SPOT)
    return float(thresholds[dice.argmax()]), max(float(good.max()), 1.05 * max(chosen))


def _folds(label: str, frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The curve of each fold, by rising threshold, without undefined points."""
    parts = []
    for fold, part in frame.groupby("fold"):
        part = part.sort_values("threshold", kind="stable")
        part = part[np.isfinite(part[["threshold", "mean_dice"]]).all(axis=1)]
        if part.empty or not np.isfinite(part["precision"]).any():
            raise DataError(f"curve of {label}, fold {fold}: it has no finite values.")
        parts.append(part)
    return parts


def mean_precision(parts: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Precision over a common grid of recalls, averaged over folds, up to where the first ends.

    At a recall it is that of the highest threshold that reaches it, as in average precision.
    """
    recalls = np.linspace(0, 1, 101)
    curves = []
    for part in parts:
        falling = part[np.isfinite(part["precision"])].iloc[::-1]
        recall = np.maximum.accumulate(falling["recall"].to_numpy(float))
        places = np.searchsorted(recall, recalls - 1e-9, side="left")
        precision = np.append(falling["precision"].to_numpy(float), np.nan)
        curves.append(precision[places])
    mean = np.mean(curves, axis=0)
    inside = np.isfinite(mean)
    return recalls[inside], mean[inside]


def mean_dice(parts: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Dice over the thresholds of all folds together, averaged over folds."""
    thresholds = np.unique(np.concatenate([part["threshold"].to_numpy(float) for part in parts]))
    curves = [np.interp(thresholds, part["threshold"], part["mean_dice"]) for part in parts]
    return thresholds, np.mean(curves, axis=0)


def _threshold_axis(axes: Axes, ranges: Sequence[tuple[float, float]]) -> None:
    """Linear where the methods' scores are alike, logarithmic where they are not."""
    best = [low for low, _ in ranges if low > 0]
    ends = [high for _, high in ranges if high > 0]
    axes.set_xlabel("threshold of the anomaly score")
    if best and max(ends) > _WIDE * min(ends):
        axes.set_xscale("log")
        axes.set_xlim(min(best) / 20, max(ends) * 1.1)
        axes.set_xlabel("threshold of the anomaly score (logarithmic)")
    elif ends:
        axes.set_xlim(0, max(ends) * 1.02)


# Lesion volumes --------------------------------------------------------------------------


def figure_lesions(
    path: PathLike, metrics: pd.DataFrame, spec: TableSpec, *, phantom: bool
) -> None:
    """Dice over the lesion volume, by method: a panel per test set.

    A dot is a volume (averaged over the folds that test it), the line a running mean over a fifth
    of the volumes. ``metrics`` are those of :func:`uad.report.metrics_table.with_facts`.
    """
    title = titled(f"{spec.title}: Dice over lesion volume", phantom)
    size = 1.9 + 3.0 * len(spec.places), 2.1 + 0.2 * len(spec.methods)
    with panels_and_key(path, title, *size) as body:
        panels = body.subplots(1, len(spec.places), squeeze=False, sharey=True).flat
        for axes, (place, name) in zip(panels, spec.places.items(), strict=True):
            here = metrics[(metrics[["experiment", "test_dataset"]] == list(place)).all(axis=1)]
            volumes = here[here["lesion_ml"] > 0].groupby(["method", "lesion_ml", "subject"])
            means = volumes["dice"].mean().dropna().reset_index()
            for method, look in zip(spec.methods, looks(spec.methods), strict=True):
                mine = means.loc[means["method"] == method, ["lesion_ml", "dice"]]
                x, y = mine.T.to_numpy()  # by rising volume
                axes.plot(x, y, ".", color=look["color"], ms=2.5, alpha=0.4)
                smooth = mine.rolling(max(1, len(mine) // 5), center=True).mean()
                axes.plot(*smooth.T.to_numpy(), **look, lw=1.3)
            axes.set(xscale="log", xlabel="lesion volume [ml]", ylim=(0, 1))
            axes.set_title(f"{name}, n = {means['subject'].nunique()}", size=8)
            grid(axes)
        panels[0].set_ylabel("Dice")
        handles = method_key([spec.label(method) for method in spec.methods], 1.3, 24)
        body.legend(handles=handles, loc="outside right upper", handlelength=2.2)


# Sweeps ----------------------------------------------------------------------------------

_CHOSEN = {"marker": "D", "mfc": "white", "mew": 1.1, "ls": ""}
_RING = {"marker": "o", "ms": 6.5, "mfc": "none", "mew": 1.1}
_TRAINED = {"marker": "^", "ms": 5.5, "mec": "white", "mew": 0.6, "lw": 0.8, "ls": (0, (1, 1.5))}
_CELL = ["experiment", "test_dataset", "method", "metric"]


def figure_sweep(
    path: PathLike,
    summary: pd.DataFrame,
    spec: StudySpec,
    *,
    phantom: bool,
    baseline_values: Mapping[str, float],
    trained: pd.DataFrame,
) -> None:
    """Dice (above) and AUPRC (below) over a swept number, a column of panels per test set.

    Variants whose names are numbers make the lines; ``baseline_values`` has the number of the
    baseline by method (a thin upright line, its value a ring). ``trained`` is a second series, from
    :func:`uad.report.study_table.trained_points`.
    """
    import pandas as pd

    summary = summary.assign(value=pd.to_numeric(summary["variant"], errors="coerce"))
    methods = list(dict.fromkeys(summary["method"]))
    width = 1.6 + 2.5 * len(spec.places) + 1.4
    with panels_and_key(path, titled(spec.title, phantom), width, 4.1) as body:
        panels = body.subplots(2, len(spec.places), sharex=True, squeeze=False)
        for line, (metric, name) in zip(panels, METRICS.items(), strict=True):
            line[0].set_ylabel(name)
            for axes, place in zip(line, spec.places, strict=True):
                for method, look in zip(methods, looks(methods), strict=True):
                    cell = (*place, method, metric)
                    value = baseline_values[method]
                    lines = summary[(summary[_CELL] == cell).all(axis=1)]
                    points = trained[(trained[_CELL] == cell).all(axis=1)]
                    _sweep_lines(axes, lines, spec.baseline, value, points, look)
                for value in dict.fromkeys(baseline_values[method] for method in methods):
                    axes.axvline(value, color=GREY, lw=0.7, zorder=0)
                grid(axes, "y")
                axes.margins(y=0.12)
        for place, above, below in zip(spec.places, *panels, strict=True):
            above.set_title(spec.places[place], size=8)
            below.set_xlabel(spec.sweep)
        handles = [*method_key([spec.labels[method] for method in methods], 1.3, 24), key_line()]
        handles.append(key_line(color=GREY, lw=0.7, mec=GREY, ls="-", **_RING, label=spec.baseline))
        if (summary["n_chosen"] > 0).any():
            text = "chosen on validation\n(size: number of folds)"
            handles.append(key_line(mec=GREY, ms=5.5, **_CHOSEN, label=text))
        if len(trained):
            text = "also trained\nwith the value"
            handles.append(key_line(color=GREY, mfc=GREY, **_TRAINED, label=text))
        body.legend(handles=handles, loc="outside right upper", handlelength=2.2)


def _sweep_lines(
    axes: Axes,
    lines: pd.DataFrame,
    baseline: str,
    baseline_value: float,
    trained: pd.DataFrame,
    look: Mapping[str, Any],
) -> None:
    """One method in one panel."""
    color = look["color"]
    points = lines[lines["value"].notna()].sort_values("value", kind="stable")
    axes.plot(points["value"], points["mean"], **look, lw=1.3, marker=".", ms=4)
    base = lines[lines["variant"] == baseline].assign(value=baseline_value)
    axes.plot(base["value"], base["mean"], mec=color, ls="", zorder=4, **_RING)
    for spots in (points, base):
        for spot in spots[spots["n_chosen"] > 0].itertuples():
            size = 3.4 + 0.7 * spot.n_chosen
            axes.plot([spot.value], [spot.mean], ms=size, mec=color, zorder=5, **_CHOSEN)
    if len(trained):
        series = trained.sort_values("value", kind="stable")
        axes.plot(series["value"], series["mean"], color=color, mfc=color, zorder=3, **_TRAINED)
