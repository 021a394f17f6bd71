"""From per-volume metrics to the paper's tables, side by side with the published values.

No method and no data set is named here: a table is a :class:`TableSpec` from the
config, the numbers are data frames. Everything is in percent, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError
from uad.core.files import read_json
from uad.evaluate.readiness import LIMIT
from uad.report.metric_files import (
    CELL,
    METRICS,
    fold_means,
    published_for,
)
from uad.report.render import (
    NOTHING,
    Cell,
    Document,
    PathLike,
    Row,
    counted,
    mean_std,
    signed,
    span,
    terminal,
    write_document,
)
from uad.report.significance_marks import MARK, MARKS, add_marks, test_facts, tests_of_table
from uad.report.table_spec import TableSpec

#: How far a method is from reconstructing healthy tissue: mean DSSIM over the folds.
DSSIM = "mean_healthy_dssim"
SUMMARY_COLUMNS = [
    *"row experiment test_dataset metric mean std n_folds published_mean published_std".split(),
    *"n_volumes published_source difference verdict".split(),
    *MARKS,
    DSSIM,
]
PHANTOM_VERDICT = "phantom: not comparable"
_VERDICTS = ("within 1 std", "within 2 std", "outside")

#: Below these counts a verdict says how little it stands on. A standard deviation of
#: two folds means next to nothing; 20 is the smallest test set of the paper (MSLUB).
FEW_FOLDS = 3
FEW_VOLUMES = 20


def summarise(
    metrics: pd.DataFrame,
    spec: TableSpec,
    published: pd.DataFrame,
    *,
    phantom: bool = False,
    significance: pd.DataFrame | None = None,
    readiness: pd.Series | None = None,
) -> pd.DataFrame:
    """Mean and standard deviation over folds of every cell of a table.

    A fold's value is the mean over its test volumes (volumes where the metric is not
    defined are left out, as the paper's code does); the cell is the mean and the
    sample standard deviation (NaN for one fold) of the folds' values, in percent. Phantoms are
    not compared with the paper; ``significance`` is from :func:`uad.evaluate.test_claims`,
    ``readiness`` from :func:`collect_readiness`.

    Returns:
        A frame in long form with :data:`SUMMARY_COLUMNS`. ``n_volumes`` counts the
        different volumes with a value.

    Raises:
        DataError: a fold has no value, or two methods of one column were tested on different
            volumes.
    """
    cells = _cells_of(metrics, spec)
    folds = fold_means(cells)
    if folds.isna().any():
        method, experiment, test, metric, fold = folds.index[folds.isna()][0]
        raise DataError(
            f"{spec.name}: {metric} of {experiment}/{method}/fold-{fold}/{test} is not defined for "
            "any volume. Do its test volumes have lesions?"
        )
    summary = folds.groupby(CELL).agg(["mean", "std", "size"]).reindex(spec.cells)
    known = published_for(published, spec.name).reindex(spec.cells)
    values = cells.rename(columns={"method": "row"}).melt(
        [*CELL[:3], "subject"], [*METRICS], "metric"
    )
    summary = summary.rename(columns={"size": "n_folds"}).assign(
        n_volumes=values.dropna().groupby(CELL)["subject"].nunique(),
        published_mean=known["mean"],
        published_std=known["std"],
        published_source=known["source"].fillna("none"),
        difference=summary["mean"] - known["mean"],
    )
    summary["verdict"] = [_verdict(record) for record in summary.itertuples()]
    if phantom:  # a phantom's distance from the paper means nothing
        summary = summary.assign(difference=float("nan"), verdict=PHANTOM_VERDICT)
    summary = add_marks(summary.reset_index(), tests_of_table(significance, spec))
    dssim = pd.Series(dtype=float) if readiness is None else readiness
    keys = pd.MultiIndex.from_frame(summary[CELL[:3]])
    return summary.assign(**{DSSIM: dssim.reindex(keys).to_numpy()})[SUMMARY_COLUMNS]


def _cells_of(metrics: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """The metrics that a table shows, of the same volumes for all methods of a column."""
    places = pd.MultiIndex.from_frame(metrics[["experiment", "test_dataset"]])
    cells = metrics[metrics["method"].isin(spec.methods) & places.isin(list(spec.places))]
    for (experiment, test, fold), part in cells.groupby(["experiment", "test_dataset", "fold"]):
        volumes = part.groupby("method", sort=False)["subject"].agg(set)
        for method, tested in volumes.items():
            if apart := tested ^ volumes.iloc[0]:
                raise DataError(
                    f"{spec.name}: {method} and {volumes.index[0]} were tested on different "
                    f"volumes of {experiment}/fold-{fold}/{test} (for example {min(apart)}). "
                    "Evaluate both again with the same splits."
                )
    return cells


def _verdict(record: Any) -> str:
    """Say how far a value is from the published one, and on how little that stands."""
    if np.isnan(record.difference):
        return "no published value"
    # Without the tolerance, 59.82 against 59.45±0.37 would be outside by float dust.
    distance, std = abs(record.difference) - 1e-9, record.published_std
    verdict = _VERDICTS[(distance > std) + (distance > 2 * std)]
    few = [counted(record.n_folds, "fold")] * (record.n_folds < FEW_FOLDS)
    few += [counted(record.n_volumes, "volume")] * (record.n_volumes < FEW_VOLUMES)
    verdict = "no published std" if np.isnan(std) else verdict
    return f"{verdict} (only {', '.join(few)})" if few else verdict


# Methods that reconstruct too poorly -----------------------------------------------------


def collect_readiness(paths: Iterable[PathLike]) -> pd.Series:
    """Mean over folds of the DSSIM in healthy tissue of test volumes, by row and test set.

    The files are those of rule ``score_volumes``; NaN for methods that reconstruct nothing.
    """
    found = []
    for content in map(read_json, paths):
        place = content["method"], content["experiment"], content["test_dataset"]
        found.append([*place, content["roles"].get("test", {}).get("dssim")])
    frame = pd.DataFrame(found, columns=[*CELL[:3], DSSIM]).astype({DSSIM: float})
    return frame.groupby(CELL[:3])[DSSIM].mean()


def unready(summary: pd.DataFrame, label: Callable[[str], str]) -> list[str]:
    """One sentence that names the rows of a summary above the limit on some test set, if any."""
    shown = summary[summary[DSSIM].astype(float).round(2) > LIMIT]
    highest = shown.groupby("row", sort=False)[DSSIM].max()
    rows = [f"{label(row)} ({value:.2f})" for row, value in highest.items()]
    return rows and [
        f"Not trained far enough to rank by an SSIM-based score (healthy DSSIM above {LIMIT}, "
        f"docs/positive-control.md): {', '.join(rows)}."
    ]


# Showing ---------------------------------------------------------------------------------


def write_table(
    summary: pd.DataFrame,
    spec: TableSpec,
    out_paths: Iterable[PathLike],
    *,
    seed: Any,
    notes: Iterable[str] = (),
    significance: pd.DataFrame | None = None,
) -> None:
    """Write the summary of a table in the formats that the suffixes of ``out_paths`` name.

    Any of ``.csv`` (long form, four decimals), ``.md``, ``.tex`` and ``.html``. The caption has the
    seed; below the table are what the tests of its marks show, and ``notes``.
    """
    document = table_document(summary, spec, notes=notes, seed=seed, significance=significance)
    write_document(out_paths, document, summary[SUMMARY_COLUMNS])


def terminal_table(summary: pd.DataFrame, spec: TableSpec, width: int = 100) -> str:
    """The table as plain text for a terminal, with the published values beside."""
    return terminal(table_document(summary, spec), width)


def table_document(
    summary: pd.DataFrame,
    spec: TableSpec,
    *,
    notes: Iterable[str] = (),
    seed: Any = None,
    significance: pd.DataFrame | None = None,
) -> Document:
    """Lay out a table as the paper does: a row per method, two columns per test set."""
    summary = summary.set_index(CELL).reindex(spec.cells).reset_index()
    cells, width = _cells(summary, spec), len(spec.places) * len(METRICS)
    rows = [
        Row(spec.label(method), cells[number * width : (number + 1) * width])
        for number, method in enumerate(spec.methods)
    ]
    heads = [(name, metric) for name in spec.places.values() for metric in METRICS.values()]
    sources = summary.loc[summary["published_source"] != "none", "published_source"]
    judged = (
        summary.loc[summary["difference"].notna(), "verdict"].str.split(" (", regex=False).str[0]
    )
    return Document.of(
        "table",
        phantom=bool((summary["verdict"] == PHANTOM_VERDICT).any()),
        notes=notes,
        table={"name": spec.name, "corner": "Method", "heads": heads, "rows": rows},
        spec=spec,
        seed=seed,
        sizes=sizes(summary, spec),
        sources=list(sources.unique()),
        distances=[f"{n} {verdict}" for verdict, n in judged.value_counts().items()],
        uneven=list(_uneven(summary, spec)),
        unready=unready(summary, spec.label),
        **test_facts(summary, spec, tests_of_table(significance, spec)),
    )


def _cells(summary: pd.DataFrame, spec: TableSpec) -> list[Cell]:
    """Every value as text, with marks and published values."""
    # by the two decimals that a reader sees; equal numbers get equal marks
    shown = summary["mean"].map(lambda value: float(f"{value:.2f}"))
    ranks = shown.groupby([summary[key] for key in CELL[1:]]).rank("dense", ascending=False)
    ranks = ranks.where((ranks <= 2) & (len(spec.methods) > 1), 0)  # a single row beats nobody
    return [
        Cell(
            mean_std(record.mean, record.std),
            int(rank),
            mean_std(record.published_mean, record.published_std) or NOTHING,
            "" if np.isnan(record.difference) else f"{signed(record.difference)}, {record.verdict}",
            MARK if record.significant == "yes" else "",
        )
        for record, rank in zip(summary.itertuples(), ranks, strict=True)
    ]


def sizes(frame: pd.DataFrame, spec: TableSpec) -> str:
    """``MSLUB (T2): 20 test volumes, 5 folds.``"""
    texts = []
    for place, part in frame.groupby(CELL[1:3], sort=False):
        volumes, folds = span(part["n_volumes"], "test volume"), span(part["n_folds"], "fold")
        texts.append(f"{spec.places[place]}: {volumes}, {folds}")
    return f"{'; '.join(texts)}."


def _uneven(summary: pd.DataFrame, spec: TableSpec) -> Iterable[str]:
    """Rows that stand on fewer folds or volumes than others of their column."""
    keys = [*CELL[1:3], "row"]
    counts = summary.groupby(keys, sort=False)[["n_folds", "n_volumes"]].min()
    most = counts.groupby(CELL[1:3]).transform("max").add_prefix("most_")
    fewer = "n_folds < most_n_folds | n_volumes < most_n_volumes"
    for record in counts.join(most).query(fewer).itertuples():
        experiment, test, method = record.Index
        yield (
            f"{spec.label(method)} on {spec.places[experiment, test]}: only "
            f"{counted(record.n_folds, 'fold')} and {counted(record.n_volumes, 'volume')} "
            f"(others {record.most_n_folds} and {record.most_n_volumes})."
        )
