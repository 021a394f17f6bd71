"""Ranks of a table's methods over volumes (Friedman, Nemenyi), with critical differences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from uad.report.metric_files import METRICS, short
from uad.report.render import Cell, Document, PathLike, Row, titled, write_document
from uad.report.style import GREY, ORANGE, drawing
from uad.report.table_spec import TableSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANK_COLUMNS = (
    "experiment test_dataset metric row mean_rank n_volumes n_methods friedman_chi2 friedman_p "
    "critical_difference different_from"
).split()
LEVEL = 0.05


def rank_methods(metrics: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """Mean rank of each method (1 is the best) over the volumes of each test set, by metric.

    A volume's value is the mean over the folds that test it; equal values share their mean rank.
    Friedman's test asks whether any method differs; two do where their mean ranks are at least
    Nemenyi's critical difference apart (level 5 %, Demšar 2006).

    Returns:
        A frame in long form with :data:`RANK_COLUMNS`, the best first; only volumes that all
        methods have a value of count. Empty if the table has fewer than three methods.
    """
    from scipy import stats

    k = len(spec.methods)
    records = []
    for place in spec.places if k > 2 else ():
        here = metrics[(metrics[["experiment", "test_dataset"]] == list(place)).all(axis=1)]
        for metric in METRICS:
            values = here.pivot_table(metric, "subject", "method").reindex(columns=spec.methods)
            values = values.dropna()
            n = len(values)
            ranks = values.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
            chi2, p = np.nan, np.nan
            if values.nunique(axis=1).gt(1).any():
                chi2, p = stats.friedmanchisquare(*values.to_numpy().T)
            # of ranks, for infinitely many degrees of freedom
            q = stats.studentized_range.ppf(1 - LEVEL, k, np.inf) / np.sqrt(2)
            critical = q * np.sqrt(k * (k + 1) / (6 * n)) if n else np.nan
            for method, rank in ranks.items():
                others = ranks.index[(ranks - rank).abs() >= critical]
                facts = [rank, n, k, chi2, p, critical, "; ".join(others) or "none"]
                records.append([*place, metric, method, *facts])
    return pd.DataFrame(records, columns=RANK_COLUMNS)


def write_ranks(
    ranks: pd.DataFrame,
    spec: TableSpec,
    out_paths: Iterable[PathLike],
    *,
    phantom: bool,
) -> None:
    """Write the ranks as :func:`uad.report.tables.write_table` does, best on top."""
    rows: list[Row] = []
    for (*place, metric), block in ranks.groupby(RANK_COLUMNS[:3], sort=False):
        first = block.iloc[0]
        p = "no p" if np.isnan(first.friedman_p) else f"p = {first.friedman_p:.2g}"
        facts = f"n = {first.n_volumes}, Friedman {p}, CD {first.critical_difference:.2f}"
        rows.append(Row(f"{spec.places[tuple(place)]}, {short(metric)} ({facts})"))
        for record in block.itertuples():
            names = [spec.label(name) for name in record.different_from.split("; ")]
            cells = [Cell(f"{record.mean_rank:.2f}"), Cell(", ".join(names))]
            rows.append(Row(spec.label(record.row), cells))
    document = Document.of(
        "ranks",
        phantom=phantom,
        table={
            "name": f"ranks-{spec.name}",
            "corner": "Method",
            "heads": [("", "mean rank"), ("", "different from")],
            "rows": rows,
        },
        spec=spec,
    )
    write_document(out_paths, document, ranks)


def figure_ranks(path: PathLike, ranks: pd.DataFrame, spec: TableSpec, *, phantom: bool) -> None:
    """Critical-difference diagrams: methods on an axis of ranks, a bar over those not different."""
    blocks = list(ranks.groupby(RANK_COLUMNS[:3], sort=False))
    height = 0.45 + (0.95 + 0.1 * len(spec.methods)) * max(1, len(blocks))
    with drawing(path, 7.2, height, colours=64) as figure:
        title = titled(f"{spec.title}: mean ranks over volumes", phantom)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=9)
        panels = figure.subplots(max(1, len(blocks)), 1, squeeze=False).flat
        for axes, ((*place, metric), block) in zip(panels, blocks, strict=True):
            _diagram(axes, block.reset_index(drop=True), spec)
            axes.set_title(f"{spec.places[tuple(place)]}, {short(metric)}", loc="left", size=7)


def _diagram(axes: Axes, block: pd.DataFrame, spec: TableSpec) -> None:
    """One test set: the better half of the methods to the left, the others to the right."""
    k, half = len(block), (len(block) + 1) // 2
    for number, record in block.iterrows():
        left, rank = number < half, record["mean_rank"]
        depth = 1 + (number if left else k - 1 - number)
        end = 0.7 if left else k + 0.3
        axes.plot([rank, rank, end], [0, depth, depth], color="#30353b", lw=0.7)
        side = "right" if left else "left"
        axes.text(end, depth, f" {spec.label(record['row'])} ({rank:.2f}) ", va="center", size=6.5,
                  ha=side)  # fmt: skip
    # a bar over each largest group whose best and worst are not different
    means, critical = block["mean_rank"].to_numpy(), block["critical_difference"].iloc[0]
    ends = [int(np.flatnonzero(means - mean < critical).max()) for mean in means]
    bars = [(i, end) for i, end in enumerate(ends) if end > i and end not in ends[:i]]
    for level, (first, last) in enumerate(bars):
        y = -0.35 - 0.35 * level
        axes.plot([means[first] - 0.04, means[last] + 0.04], [y, y], color=ORANGE, lw=2.2)
    top = -0.35 * len(bars) - 0.9
    axes.plot([1, min(k, 1 + critical)], [top, top], color=GREY, lw=1.2)
    axes.text(1, top - 0.15, f"critical difference {critical:.2f}", size=6, color=GREY, va="bottom")
    axes.plot([1, k], [0, 0], color="#30353b", lw=0.9)
    for rank in range(1, k + 1):
        axes.plot([rank, rank], [0, 0.15], color="#30353b", lw=0.9)
    axes.set(xlim=(-k * 0.35, k * 1.35), ylim=(half + 0.6, top - 0.7))
    axes.set_axis_off()
