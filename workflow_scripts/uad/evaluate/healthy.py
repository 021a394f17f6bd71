"""What a method finds in healthy scans, and thresholds that fix how much that may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.evaluate.metrics import Ranked, dice, ranking_metrics, split_scores
from uad.evaluate.volumes import predict

if TYPE_CHECKING:
    import pandas as pd

#: Shares of the voxels of healthy brains that may be called anomalous.
RATES = (0.01, 0.05)

#: Statistics of the map within the brain that rank scans.
STATISTICS = {"mean_score": np.mean, "maximum_score": np.max}

#: A subject, its post-processed map, brain mask and lesion.
Scored = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def judge_healthy(
    healthy: Iterable[Scored],
    unhealthy: Iterable[Scored],
    threshold: float,
    component_max_size: int,
    voxel_mm: Sequence[float],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Compare the maps of healthy and unhealthy test scans of one cell.

    Returns:
        A row per scan: ``subject``, ``healthy``, ``false_positive_ml`` at the threshold, and
        :data:`STATISTICS`. And of all scans: the mean false-positive volume of healthy ones;
        ``auroc_<statistic>`` and ``average_precision_<statistic>`` of telling unhealthy scans from
        healthy ones; by name of a threshold (``searched``, or of a false-positive rate in the
        healthy brain) its value and the mean Dice of the unhealthy scans.
    """
    import pandas as pd

    voxel_ml = float(np.prod(voxel_mm)) / 1000
    rows, within = [], []

    def add(subject: str, healthy: bool, wrong: np.ndarray, scores: np.ndarray) -> None:
        statistics = {name: float(function(scores)) for name, function in STATISTICS.items()}
        wrong_ml = int(np.count_nonzero(wrong)) * voxel_ml
        row = {"subject": subject, "healthy": healthy, "false_positive_ml": wrong_ml}
        rows.append(row | statistics)

    for subject, scores, brain, _ in healthy:
        within.append(scores[brain])
        add(subject, True, predict(scores, threshold, component_max_size), within[-1])
    pooled = np.concatenate(within)
    # a prediction is above its threshold: at most this share of the voxels is
    at_rate = {
        f"rate_{r:g}": float(np.quantile(pooled, 1 - r, method="inverted_cdf")) for r in RATES
    }
    thresholds = {"searched": threshold, **at_rate}
    dices: dict[str, list[float]] = {name: [] for name in thresholds}
    for subject, scores, brain, lesion in unhealthy:
        predictions = {n: predict(scores, t, component_max_size) for n, t in thresholds.items()}
        for name, prediction in predictions.items():
            dices[name].append(dice(prediction, lesion))
        add(subject, False, predictions["searched"] & ~lesion, scores[brain])
    frame = pd.DataFrame(rows)
    summary: dict[str, Any] = {
        "n_healthy": int(frame["healthy"].sum()),
        "n_unhealthy": int((~frame["healthy"]).sum()),
        "false_positive_ml": float(frame.loc[frame["healthy"], "false_positive_ml"].mean()),
    }
    for name in STATISTICS:
        ill, *well = split_scores(frame[name].to_numpy(), ~frame["healthy"].to_numpy())
        ranks = ranking_metrics(ill, [Ranked.of([well])])
        summary |= {f"auroc_{name}": ranks["auroc"], f"average_precision_{name}": ranks["auprc"]}
    summary["thresholds"] = {
        name: {"threshold": value, "mean_dice": float(np.nanmean(dices[name]))}
        for name, value in thresholds.items()
    }
    return frame, summary
