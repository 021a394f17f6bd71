"""All metrics of a table with intervals over volumes, of whole test sets and by strata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uad.core.seeds import derive_seed
from uad.evaluate import bootstrap_interval, described_columns
from uad.report.metric_files import METRICS
from uad.report.render import (
    NOTHING,
    Cell,
    Document,
    PathLike,
    Row,
    counted,
    digits,
    write_document,
)
from uad.report.table_spec import TableSpec

METRICS_COLUMNS = (
    "row experiment test_dataset strata stratum metric mean std n_folds n_volumes ci_low ci_high"
).split()
#: A column of fewer volumes than this gets a note.
FEW_VOLUMES = 50
WHOLE = "all volumes"
#: In ml, between small, medium and large lesions.
_LIMITS = (1.0, 10.0)


def with_facts(
    metrics: pd.DataFrame, participants: Mapping[str, pd.DataFrame], voxel_ml: float
) -> pd.DataFrame:
    """Metrics with ``lesion_ml``, and ``site`` and ``age`` of the participants where known."""
    known = pd.concat([table.assign(test_dataset=name) for name, table in participants.items()])
    known = known.reindex(columns=["test_dataset", "subject", "site", "age"])
    known = known.drop_duplicates(["test_dataset", "subject"]).astype({"age": float})
    frame = metrics.merge(known, "left", ["test_dataset", "subject"])
    return frame.assign(lesion_ml=frame["lesion_voxels"] * voxel_ml)


def _strata(part: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """A test set as a whole, and its parts: (how it is divided, name of the part, volumes)."""
    yield WHOLE, WHOLE, part
    volumes = part.drop_duplicates("subject")
    divided = {
        "lesion volume [ml], thirds": ("lesion_ml", _thirds(volumes["lesion_ml"])),
        "lesion volume [ml]": ("lesion_ml", _LIMITS),
        "age [years], thirds": ("age", _thirds(volumes["age"])),
    }
    for strata, (column, limits) in divided.items():
        if len(set(limits)) < 2 or part[column].isna().all():
            continue
        low, high = (f"{limit:.3g}" for limit in limits)
        names = [f"below {low}", f"{low} to {high}", f"{high} and above"]
        stratum = pd.cut(part[column], [-np.inf, *limits, np.inf], right=False, labels=names)
        for name, there in part.groupby(stratum, observed=True):
            yield strata, name, there
    if volumes["site"].nunique() > 1:
        for name, there in part.groupby("site"):
            yield "site", name, there


def _thirds(values: pd.Series) -> list[float]:
    return list(values.dropna().quantile([1 / 3, 2 / 3]))


def described(metrics: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The columns of a frame by which methods are judged, as :mod:`uad.evaluate` describes them."""
    columns = described_columns().items()
    return {name: column for name, column in columns if name in metrics and "direction" in column}


def summarise_metrics(
    metrics: pd.DataFrame, spec: TableSpec, shown: Sequence[str], *, seed: int
) -> pd.DataFrame:
    """Every metric of every cell of a table, on all volumes and (Dice and AUPRC) by strata.

    Mean and sample standard deviation are over folds of the mean over volumes, as in the tables.
    The 95 % interval is a BCa bootstrap over volumes, each averaged over the folds that test it.

    Returns:
        A frame in long form with :data:`METRICS_COLUMNS`, in the units of the metrics ``shown``.
    """
    metrics = metrics[metrics["method"].isin(spec.methods)]
    records = []
    for place in spec.places:
        here = metrics[(metrics[["experiment", "test_dataset"]] == list(place)).all(axis=1)]
        for strata, stratum, part in _strata(here):
            for method in spec.methods:
                mine = part[part["method"] == method]
                for metric in shown if strata == WHOLE else METRICS:
                    key = (method, *place, strata, stratum, metric)
                    own = derive_seed(seed, "metrics", *map(str, key))
                    records.append([*key, *_numbers(mine, metric, own)])
    return pd.DataFrame(records, columns=METRICS_COLUMNS)


def _numbers(cell: pd.DataFrame, metric: str, seed: int) -> list[float]:
    """Mean, std, folds, volumes and interval of one metric."""
    folds = cell.groupby("fold")[metric].mean().dropna()
    volumes = cell.groupby("subject")[metric].mean().dropna()
    low = high = float("nan")
    if len(volumes):
        interval = bootstrap_interval(volumes.to_numpy(), seed)
        low, high = interval.low, interval.high
    return [folds.mean(), folds.std(ddof=1), len(folds), len(volumes), low, high]


def write_metrics(
    summary: pd.DataFrame,
    spec: TableSpec,
    described: Mapping[str, Mapping[str, Any]],
    out_paths: Iterable[PathLike],
    *,
    phantom: bool,
    seed: int,
) -> None:
    """Write the summary as :func:`uad.report.tables.write_table` does, a block per stratum."""
    metrics = list(dict.fromkeys(summary["metric"]))
    shown = {metric: described.get(metric, {}) for metric in metrics}
    counts = summary[summary["strata"] == WHOLE].groupby(METRICS_COLUMNS[1:3], sort=False)
    few = {
        spec.places[place]: counted(volumes, "volume")
        for place, volumes in counts["n_volumes"].max().items()
        if volumes < FEW_VOLUMES
    }
    facts = {"spec": spec, "seed": seed, "described": shown, "few": few, "limit": FEW_VOLUMES}
    whole = summary[summary["strata"] == WHOLE]  # a page of LaTeX has no room for the strata
    for part, suffixes in ((whole, {".tex"}), (summary, {".csv", ".md", ".html"})):
        table = {
            "name": f"metrics-{spec.name}",
            "corner": "Method",
            "heads": [("", _heading(metric, about)) for metric, about in shown.items()],
            "rows": list(_rows(part, spec, metrics)),
        }
        document = Document.of("metrics", phantom=phantom, table=table, **facts)
        paths = [path for path in out_paths if Path(path).suffix in suffixes]
        write_document(paths, document, summary[METRICS_COLUMNS], "%.6g")


def _rows(summary: pd.DataFrame, spec: TableSpec, metrics: Sequence[str]) -> Iterator[Row]:
    for (*place, strata, stratum), block in summary.groupby(METRICS_COLUMNS[1:5], sort=False):
        where, volumes = spec.places[tuple(place)], int(block["n_volumes"].max())
        where = where if strata == WHOLE else f"{where}, {strata}: {stratum}"
        yield Row(f"{where} ({counted(volumes, 'volume')})")
        for method, line in block.groupby("row", sort=False):
            records = {record.metric: record for record in line.itertuples()}
            cells = [_cell(records.get(metric), volumes) for metric in metrics]
            yield Row(spec.label(method), cells)


def _cell(record: Any, volumes: int) -> Cell:
    if record is None or np.isnan(record.mean):
        return Cell(NOTHING)
    text = digits(record.mean) + ("" if np.isnan(record.std) else f"±{digits(record.std)}")
    if not np.isnan(record.ci_low):
        text += f" [{digits(record.ci_low)}, {digits(record.ci_high)}]"
    return Cell(text + (f" (n = {record.n_volumes})" if record.n_volumes < volumes else ""))


def _heading(metric: str, described: Mapping[str, Any]) -> str:
    unit, direction = described.get("unit", ""), described.get("direction", "")
    arrow = {"higher": " ↑", "lower": " ↓", "nearer to 0": " → 0"}.get(direction, "")
    return f"{metric}{f' [{unit}]' if unit and not metric.endswith(f'_{unit}') else ''}{arrow}"
