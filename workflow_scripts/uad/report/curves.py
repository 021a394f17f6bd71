"""Figures of curves: over the threshold, and over a value that a study sweeps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uad.core.errors import DataError
from uad.report.style import CYCLE, GREY, PathLike, save, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

#: Thresholds of methods that differ by more than this factor need a logarithmic axis.
_WIDE = 8.0


def figure_curves(
    path: PathLike | Sequence[PathLike],
    curves: Mapping[str, pd.DataFrame],
    *,
    phantom: bool,
    title: str,
    chosen: Mapping[str, Sequence[float]] | None = None,
    prevalence: float | None = None,
) -> None:
    """Precision over recall, and Dice over the threshold, of several methods.

    A thin line is a fold, a strong one the mean over folds: of the precision at equal
    recall, and of the Dice at equal threshold. Precision at a recall is that of the
    highest threshold that reaches it, as in average precision; the mean ends where the
    first fold does.

    Args:
        path: where to write, one path or several (``.png`` at 200 dpi, ``.svg``, ``.pdf``).
        curves: by method label, in the order of the legend: a frame with the columns
            fold, threshold, precision, recall (over all voxels together) and mean_dice
            (over volumes).
        phantom: the data are phantoms; the title says so.
        title: the title of the figure.
        chosen: by method label, the threshold that validation chose in each fold, in
            the order of the folds.
        prevalence: fraction of lesion voxels, the precision of a random guess.

    Raises:
        DataError: no curves, a column is missing, a curve has no finite values, or
            ``chosen`` does not fit the curves.
    """
    if not curves:
        raise DataError("figure of curves: no curves were given.")
    chosen = chosen or {}
    unknown = sorted(set(chosen) - set(curves))
    if unknown:
        raise DataError(f"figure of curves: thresholds of {', '.join(unknown)}, but no curve.")
    folds = {label: _folds(label, frame) for label, frame in curves.items()}
    for label, values in chosen.items():
        if len(values) != len(folds[label]):
            raise DataError(
                f"figure of curves: {label} has {len(folds[label])} folds, but {len(values)} "
                "chosen thresholds."
            )
    single = all(len(parts) == 1 for parts in folds.values())

    with style():
        from matplotlib.lines import Line2D

        height = max(3.0, 0.8 + 0.17 * (len(curves) + 4))
        figure, body = _titled(f"{title} (phantom data)" if phantom else title, 9.2, height)
        left, right = body.subplots(1, 2)
        handles, ranges = [], []
        for number, (label, parts) in enumerate(folds.items()):
            look = CYCLE[number % len(CYCLE)]
            if len(parts) > 1:
                for part in parts:
                    thin = {**look, "lw": 0.5, "alpha": 0.28}
                    left.plot(part["recall"], part["precision"], **thin)
                    right.plot(part["threshold"], part["mean_dice"], **thin)
            left.plot(*_mean_precision(parts), **look, lw=1.5)
            thresholds, dice = _mean_dice(parts)
            right.plot(thresholds, dice, **look, lw=1.5)
            ranges.append(_useful(thresholds, dice))
            for part, value in zip(parts, chosen.get(label, []), strict=False):
                at = np.interp(value, part["threshold"], part["mean_dice"])
                color = look["color"]
                right.plot([value], [at], "o", ms=3.6, mfc=color, mec="white", mew=0.5, zorder=4)
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], value * 1.05))
            handles.append(Line2D([], [], **look, lw=1.5, label=textwrap.fill(label, 30)))
        handles.append(Line2D([], [], ls="", label=""))
        if not single:
            handles.append(Line2D([], [], color=GREY, lw=1.5, label="mean over folds"))
            handles.append(Line2D([], [], color=GREY, lw=0.5, alpha=0.6, label="one fold"))
        if chosen:
            spot = {"marker": "o", "ms": 3.6, "mfc": GREY, "mec": "white", "mew": 0.5}
            handles.append(Line2D([], [], ls="", **spot, label="threshold from validation"))
        if prevalence is not None:
            left.axhline(prevalence, color=GREY, lw=0.9, ls=":", zorder=1)
            text = f"prevalence, {100 * prevalence:.2g} %"
            handles.append(Line2D([], [], color=GREY, lw=0.9, ls=":", label=text))

        left.set_xlabel("recall (all test voxels together)")
        left.set_ylabel("precision")
        left.set_xlim(0, 1)
        left.set_ylim(0, 1)
        right.set_xlabel("threshold of the anomaly score")
        right.set_ylabel("Dice (mean over test volumes)")
        _threshold_axis(right, ranges)
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.grid(lw=0.4, color="#e3e6ea")
            axes.set_axisbelow(True)
        body.legend(handles=handles, loc="outside right upper", handlelength=2.6)
        save(figure, path, colours=128)


def _titled(title: str, width: float, height: float) -> tuple[Figure, SubFigure]:
    """A figure with a title of its full width, and below it the part for all the rest.

    A legend beside the panels would otherwise stand in the title's way.

    Args:
        title: of any length.
        width: of the figure in inches.
        height: of the part below the title in inches.
    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(11 * width))
    head = 0.1 + 0.16 * len(lines)
    figure = Figure(figsize=(width, head + height), facecolor="white", layout="constrained")
    top, body = figure.subfigures(2, 1, height_ratios=(head, height))
    top.text(0.01, 0.35, "\n".join(lines), ha="left", va="center", weight="bold", size=9)
    return figure, body


def _folds(label: str, frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The curve of each fold, by rising threshold, without undefined points."""
    needed = ["fold", "threshold", "precision", "recall", "mean_dice"]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise DataError(f"curve of {label}: the columns {', '.join(missing)} are missing.")
    parts = []
    for fold, part in frame.groupby("fold"):
        part = part.sort_values("threshold", kind="stable")
        part = part[np.isfinite(part["threshold"]) & np.isfinite(part["mean_dice"])]
        if part.empty or not np.isfinite(part["precision"]).any():
            raise DataError(f"curve of {label}, fold {fold}: it has no finite values.")
        parts.append(part)
    if not parts:
        raise DataError(f"curve of {label}: it has no rows.")
    return parts


def _mean_precision(parts: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Precision over a common grid of recalls, averaged over folds."""
    grid = np.linspace(0, 1, 101)
    curves = []
    for part in parts:
        falling = part[np.isfinite(part["precision"])].iloc[::-1]
        recall = np.maximum.accumulate(falling["recall"].to_numpy(float))
        places = np.searchsorted(recall, grid - 1e-9, side="left")
        precision = np.append(falling["precision"].to_numpy(float), np.nan)
        curves.append(precision[places])
    mean = np.mean(curves, axis=0)
    inside = np.isfinite(mean)
    return grid[inside], mean[inside]


def _mean_dice(parts: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Dice over the thresholds of all folds together, averaged over folds."""
    grid = np.unique(np.concatenate([part["threshold"].to_numpy(float) for part in parts]))
    curves = [np.interp(grid, part["threshold"], part["mean_dice"]) for part in parts]
    return grid, np.mean(curves, axis=0)


def _useful(thresholds: np.ndarray, dice: np.ndarray) -> tuple[float, float]:
    """The threshold of the best Dice, and the largest at which Dice is still worth showing."""
    good = thresholds[dice >= 0.03 * dice.max()] if dice.max() > 0 else thresholds
    return float(thresholds[dice.argmax()]), float(good.max())


def _threshold_axis(axes: Axes, ranges: Sequence[tuple[float, float]]) -> None:
    """Linear where the methods' scores are alike, logarithmic where they are not."""
    best = [low for low, _ in ranges if low > 0]
    ends = [high for _, high in ranges if high > 0]
    if not ends:
        return
    if best and max(ends) > _WIDE * min(ends):
        axes.set_xscale("log")
        axes.set_xlim(min(best) / 20, max(ends) * 1.1)
        axes.set_xlabel("threshold of the anomaly score (logarithmic)")
    else:
        axes.set_xlim(0, max(ends) * 1.02)


def draw_sweep(
    path: PathLike | Sequence[PathLike],
    summary: pd.DataFrame,
    *,
    phantom: bool,
    title: str,
    value_name: str,
    baseline: str,
    baseline_value: float | Mapping[str, float] | None = None,
    trained: pd.DataFrame | None = None,
    labels: Mapping[str, str] | None = None,
    columns: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Dice (above) and AUPRC (below) over a swept number, a column of panels per test set.

    Args:
        path: where to write, one path or several (``.png`` at 200 dpi, ``.svg``, ``.pdf``).
        summary: from :func:`uad.report.studies.summarise_study`; variants whose names
            are numbers make the lines.
        phantom: the data are phantoms; the title says so.
        title: the title of the figure.
        value_name: what is swept, for the axis.
        baseline: name of the variant that changes nothing.
        baseline_value: the number of the baseline, one for all methods or by method: a
            thin upright line, and the baseline's own value as a ring. Without it the
            baseline's value is a thin level line.
        trained: a second series, from :func:`uad.report.studies.trained_points`:
            methods that were trained with the number, not only scored with it.
        labels: display names of the methods.
        columns: display names of the test sets, by (experiment, test_dataset), in order.

    Raises:
        DataError: no variant of the summary has a number as its name.
    """
    import pandas as pd

    labels = labels or {}
    numeric = summary.assign(value=pd.to_numeric(summary["variant"], errors="coerce"))
    points = numeric[numeric["value"].notna()].sort_values("value", kind="stable")
    if points.empty:
        raise DataError("figure of a sweep: no variant has a number as its name.")
    found = dict.fromkeys(zip(summary["experiment"], summary["test_dataset"], strict=True))
    places = [place for place in columns or {} if place in found]
    places += [place for place in found if place not in places]
    methods = list(dict.fromkeys(summary["method"]))
    rings = {
        method: baseline_value.get(method)
        if isinstance(baseline_value, Mapping)
        else baseline_value
        for method in methods
    }

    with style():
        heading = f"{title} (phantom data)" if phantom else title
        figure, body = _titled(heading, 1.6 + 2.5 * len(places) + 1.4, 4.1)
        panels = body.subplots(2, len(places), sharex=True, squeeze=False)
        for row, (metric, name) in enumerate((("dice", "DICE [%]"), ("auprc", "AUPRC [%]"))):
            for column, place in enumerate(places):
                axes = panels[row][column]
                for number, method in enumerate(methods):
                    _sweep_lines(
                        axes,
                        _cell(points, place, method, metric),
                        _cell(summary[summary["variant"] == baseline], place, method, metric),
                        rings[method],
                        None if trained is None else _cell(trained, place, method, metric),
                        CYCLE[number % len(CYCLE)],
                    )
                for value in dict.fromkeys(v for v in rings.values() if v is not None):
                    axes.axvline(value, color=GREY, lw=0.7, zorder=0)
                if row == 0:
                    text = (columns or {}).get(place) or f"{place[1]} ({place[0]})"
                    axes.set_title(text, size=8)
                else:
                    axes.set_xlabel(value_name)
                if column == 0:
                    axes.set_ylabel(name)
                axes.grid(axis="y", lw=0.4, color="#e3e6ea")
                axes.set_axisbelow(True)
                axes.margins(y=0.12)
        handles = _sweep_key(
            [labels.get(method) or method for method in methods],
            baseline,
            ring=any(value is not None for value in rings.values()),
            chosen="n_chosen" in summary.columns and bool((summary["n_chosen"] > 0).any()),
            trained=trained is not None and not trained.empty,
        )
        body.legend(handles=handles, loc="outside right upper", handlelength=2.2)
        save(figure, path, colours=128)


def _cell(frame: pd.DataFrame, place: tuple[str, str], method: str, metric: str) -> pd.DataFrame:
    return frame[
        (frame["experiment"] == place[0])
        & (frame["test_dataset"] == place[1])
        & (frame["method"] == method)
        & (frame["metric"] == metric)
    ]


_CHOSEN = {"marker": "D", "mfc": "white", "mew": 1.1, "ls": ""}
_RING = {"marker": "o", "ms": 6.5, "mfc": "none", "mew": 1.1, "ls": ""}
_TRAINED = {"marker": "^", "ms": 5.5, "mec": "white", "mew": 0.6}


def _sweep_lines(
    axes: Axes,
    points: pd.DataFrame,
    base: pd.DataFrame,
    ring: float | None,
    trained: pd.DataFrame | None,
    look: Mapping[str, object],
) -> None:
    """One method in one panel."""
    color = look["color"]
    axes.plot(points["value"], points["mean"], **look, lw=1.3, marker=".", ms=4)
    if len(base):
        value = float(base["mean"].iloc[0])
        if ring is None:
            axes.axhline(value, **{**look, "lw": 0.7, "alpha": 0.7}, zorder=1)
        else:
            axes.plot([ring], [value], mec=color, zorder=4, **_RING)
    if "n_chosen" in points.columns:
        spots = points[points["n_chosen"] > 0]
        marks = list(zip(spots["value"], spots["mean"], spots["n_chosen"], strict=True))
        if ring is not None and len(base):
            marks.append((ring, base["mean"].iloc[0], base["n_chosen"].iloc[0]))
        for value, mean, count in marks:
            if count > 0:
                axes.plot([value], [mean], ms=3.4 + 0.7 * count, mec=color, zorder=5, **_CHOSEN)
    if trained is not None and len(trained):
        series = trained.sort_values("value", kind="stable")
        line = {"color": color, "lw": 0.8, "ls": (0, (1, 1.5))}
        axes.plot(series["value"], series["mean"], mfc=color, zorder=3, **line, **_TRAINED)


def _sweep_key(
    labels: Sequence[str], baseline: str, *, ring: bool, chosen: bool, trained: bool
) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **CYCLE[i % len(CYCLE)], lw=1.3, label=textwrap.fill(label, 24))
        for i, label in enumerate(labels)
    ]
    handles.append(Line2D([], [], ls="", label=""))
    look = {**_RING, "ls": "-", "marker": _RING["marker"] if ring else ""}
    handles.append(Line2D([], [], color=GREY, lw=0.7, mec=GREY, **look, label=baseline))
    if chosen:
        text = "chosen on validation\n(size: number of folds)"
        handles.append(Line2D([], [], mec=GREY, ms=5.5, **_CHOSEN, label=text))
    if trained:
        line = {"color": GREY, "lw": 0.8, "ls": (0, (1, 1.5)), "mfc": GREY}
        text = "also trained\nwith the value"
        handles.append(Line2D([], [], **line, **_TRAINED, label=text))
    return handles
