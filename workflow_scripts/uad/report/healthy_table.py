"""What the methods find in healthy test scans, and what thresholds that fix it would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from uad.core.errors import DataError
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    digits,
    mean_std,
    span,
    write_document,
)

HEALTHY_COLUMNS = "experiment test_dataset row measure mean std n_folds n_healthy n_unhealthy"
_KEY = ["experiment", "test_dataset", "row"]
#: Measure of :func:`uad.evaluate.healthy.judge_healthy` -> (group, heading) of its column.
HEADS = {
    "false_positive_ml": ("Healthy scans", "false positives [ml]"),
    "thresholds.searched.threshold": ("Threshold from validation", "threshold"),
    "thresholds.searched.mean_dice": ("Threshold from validation", "DICE [%]"),
    "thresholds.rate_0.01.threshold": ("1 % of healthy voxels above", "threshold"),
    "thresholds.rate_0.01.mean_dice": ("1 % of healthy voxels above", "DICE [%]"),
    "thresholds.rate_0.05.threshold": ("5 % of healthy voxels above", "threshold"),
    "thresholds.rate_0.05.mean_dice": ("5 % of healthy voxels above", "DICE [%]"),
    "auroc_mean_score": ("Healthy or not, by mean score", "AUROC [%]"),
    "average_precision_mean_score": ("Healthy or not, by mean score", "AP [%]"),
    "auroc_maximum_score": ("Healthy or not, by maximum score", "AUROC [%]"),
    "average_precision_maximum_score": ("Healthy or not, by maximum score", "AP [%]"),
}


def healthy_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Mean and sample standard deviation over folds of each measure of :data:`HEADS`, long form.

    Dice, AUROC and average precision are in percent. The records are the JSON files of rule
    ``evaluate_healthy``; rows are in their order.
    """
    frame = pd.json_normalize(list(records))
    if frame.empty:
        raise DataError("No cell was judged on healthy scans: does the split have healthy_test?")
    frame = frame.rename(columns={"method": "row"})
    percent = [measure for measure, (_, head) in HEADS.items() if head.endswith("[%]")]
    frame[percent] *= 100
    counts = ["n_healthy", "n_unhealthy"]
    scans = frame.groupby(_KEY, sort=False)[counts].max()
    found = frame.melt([*_KEY, "fold"], list(HEADS), "measure").groupby([*_KEY, "measure"])
    summary = found["value"].agg(mean="mean", std="std", n_folds="size")
    cells = pd.MultiIndex.from_tuples([(*key, m) for key in scans.index for m in HEADS])
    summary = summary.reindex(cells.set_names([*_KEY, "measure"])).reset_index()
    return summary.merge(scans.reset_index(), on=_KEY)[HEALTHY_COLUMNS.split()]


def write_healthy_table(
    frame: pd.DataFrame, out_paths: Iterable[PathLike], labels: Mapping[str, str], *, phantom: bool
) -> None:
    """Write the frame of :func:`healthy_table`, as :func:`uad.report.tables.write_table` does."""
    rows: list[Row] = []
    for (experiment, test), block in frame.groupby(_KEY[:2], sort=False):
        scans = (
            f"{span(block['n_healthy'], 'healthy scan')}, {block['n_unhealthy'].max()} unhealthy"
        )
        rows.append(Row(f"{experiment}, {test} ({scans}, {span(block['n_folds'], 'fold')})"))
        for method, line in block.groupby("row", sort=False):
            cells = [Cell(_text(record)) for record in line.itertuples()]
            rows.append(Row(labels[method], cells))
    table = {"corner": "Method", "heads": list(HEADS.values()), "rows": rows}
    document = Document.of("healthy", phantom=phantom, table=table)
    write_document(out_paths, document, frame, "%.6g")


def _text(record: Any) -> str:
    """Thresholds without a spread: there is no room for it."""
    percent = HEADS[record.measure][1].endswith("[%]")
    return mean_std(record.mean, record.std) if percent else digits(record.mean)
