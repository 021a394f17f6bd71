"""From per-volume metrics to the paper's tables, side by side with the published values.

No method and no data set is named here: a table is a :class:`TableSpec` from the
config, the numbers are data frames. Everything is in percent, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError
from uad.report.metric_files import (
    CELL,
    METRICS,
    check_metrics,
    fold_means,
    published_for,
    short,
)
from uad.report.not_ready import COLUMN, unready
from uad.report.render import (
    NOT_PUBLISHED,
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

SUMMARY_COLUMNS = [
    *"row experiment test_dataset metric mean std n_folds published_mean published_std".split(),
    *"n_volumes published_source difference verdict".split(),
    *MARKS,
    COLUMN,
]
PHANTOM_VERDICT = "phantom: not comparable"
_VERDICTS = ("within 1 std", "within 2 std", "outside")
_NO_STD = "no published std"

#: Below these counts a verdict says how little it stands on. A standard deviation of
#: two folds means next to nothing; 20 is the smallest test set of the paper (MSLUB).
FEW_FOLDS = 3
FEW_VOLUMES = 20


def summarise(
    metrics: pd.DataFrame,
    table: Mapping[str, Any],
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
    ``readiness`` from :func:`uad.report.not_ready.collect_readiness`.

    Returns:
        A frame in long form with :data:`SUMMARY_COLUMNS`. ``n_volumes`` counts the
        different volumes with a value.

    Raises:
        DataError: a cell has no metrics, a fold has no value, or two methods of one
            column were tested on different volumes.
    """
    spec = TableSpec.of(table)
    check_metrics(metrics, f"metrics of {spec.name}")
    cells = _cells_of(metrics, spec)
    _check_same_volumes(cells, spec)
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
    return summary.assign(**{COLUMN: dssim.reindex(keys).to_numpy()})[SUMMARY_COLUMNS]


def _cells_of(metrics: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """The metrics that a table shows; each cell has some."""
    found = metrics.groupby(["method", "experiment", "test_dataset"]).groups
    wanted = [(method, *place) for method in spec.methods for place in spec.places]
    absent = ["/".join((e, m, t)) for m, e, t in wanted if (m, e, t) not in found]
    if absent:
        raise DataError(
            f"{spec.name}: no metrics for {', '.join(absent)} (experiment/method/test set). "
            "Run their evaluation, or take the row out of the table in the config."
        )
    return pd.concat([metrics.loc[found[cell]] for cell in wanted])


def _check_same_volumes(cells: pd.DataFrame, spec: TableSpec) -> None:
    """Methods of one column are comparable only on the same volumes, fold by fold."""
    for (experiment, test, fold), part in cells.groupby(["experiment", "test_dataset", "fold"]):
        volumes = part.groupby("method", sort=False)["subject"].agg(set)
        for method, tested in volumes.items():
            if apart := tested ^ volumes.iloc[0]:
                raise DataError(
                    f"{spec.name}: {method} and {volumes.index[0]} were tested on different "
                    f"volumes of {experiment}/fold-{fold}/{test} (for example {min(apart)}). "
                    "Evaluate both again with the same splits."
                )


def _verdict(record: Any) -> str:
    """Say how far a value is from the published one, and on how little that stands."""
    if np.isnan(record.difference):
        return "no published value"
    # Without the tolerance, 59.82 against 59.45±0.37 would be outside by float dust.
    distance, std = abs(record.difference) - 1e-9, record.published_std
    verdict = _NO_STD if np.isnan(std) else _VERDICTS[(distance > std) + (distance > 2 * std)]
    few = [counted(record.n_folds, "fold")] * (record.n_folds < FEW_FOLDS)
    few += [counted(record.n_volumes, "volume")] * (record.n_volumes < FEW_VOLUMES)
    return f"{verdict} (only {', '.join(few)})" if few else verdict


# Showing ---------------------------------------------------------------------------------


def write_table(
    summary: pd.DataFrame,
    table: Mapping[str, Any],
    out_paths: Iterable[PathLike],
    *,
    seed: Any,
    notes: Iterable[str] = (),
    significance: pd.DataFrame | None = None,
) -> None:
    """Write the summary of a table in the formats that the suffixes of ``out_paths`` name.

    Any of ``.csv`` (long form, four decimals), ``.md``, ``.tex`` and ``.html``. The caption has the
    seed; below the table are what the tests of its marks show, and ``notes``.

    Raises:
        DataError: the summary lacks a cell of the table.
    """
    spec = TableSpec.of(table)
    document = _document("table", summary, spec, notes=notes, seed=seed, significance=significance)
    write_document(out_paths, document, summary[SUMMARY_COLUMNS])


def terminal_table(summary: pd.DataFrame, table: Mapping[str, Any], width: int = 100) -> str:
    """The table as plain text for a terminal, with the published values beside.

    ``*`` marks the best value of a column, ``+`` the second best.
    """
    return terminal(_document("terminal", summary, TableSpec.of(table)), width)


def _document(
    words: str,
    summary: pd.DataFrame,
    spec: TableSpec,
    *,
    notes: Iterable[str] = (),
    seed: Any = None,
    significance: pd.DataFrame | None = None,
) -> Document:
    """Lay out a table as the paper does: a row per method, two columns per test set."""
    summary = summary.set_index(CELL).reindex(spec.cells).reset_index()
    if (lost := summary["mean"].isna()).any():
        cell = "/".join(summary.loc[lost, CELL].iloc[0])
        raise DataError(f"{spec.name}: the summary has no value for {cell}.")
    cells, width = _cells(summary, spec), len(spec.places) * len(METRICS)
    rows = [
        Row(spec.label(method), cells[number * width : (number + 1) * width])
        for number, method in enumerate(spec.methods)
    ]
    heads = [(name, metric) for name in spec.places.values() for metric in METRICS.values()]
    most = summary.groupby(CELL[:3])["n_volumes"].transform("max")
    return Document.of(
        words,
        phantom=bool((summary["verdict"] == PHANTOM_VERDICT).any()),
        notes=notes,
        table={"name": spec.name, "corner": "Method", "heads": heads, "rows": rows},
        spec=spec,
        seed=seed,
        sizes=sizes(summary.assign(n_volumes=most), spec),
        spread=spread(summary),
        sources=_sources(summary),
        published_std=summary["published_std"].notna().any(),
        several_sources=_several_sources(summary, spec),
        uneven=list(_uneven(summary, spec)),
        distances=_distances(summary),
        unready=unready(summary, spec.label),
        **test_facts(summary, spec, significance),
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
            mean_std(record.published_mean, record.published_std) or NOT_PUBLISHED,
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


def spread(summary: pd.DataFrame) -> str:
    """What the numbers before and behind the ± are."""
    if (summary["n_folds"] > 1).any():
        return "Mean ± sample standard deviation over folds of the mean over test volumes."
    return "Mean over the test volumes of one fold, hence no standard deviation."


def _sources(summary: pd.DataFrame) -> str:
    """``arXiv 2408.08228v1, Tables I and II``: where the published values are from."""
    tables: dict[str, list[str]] = {}
    for source in summary.loc[summary["published_source"] != "none", "published_source"].unique():
        paper, _, table = source.partition(", Table ")
        tables.setdefault(paper, []).extend([table] if table else [])
    texts = [
        f"{paper}, Table{'s' * (len(names) > 1)} {' and '.join(sorted(names))}" if names else paper
        for paper, names in tables.items()
    ]
    return "; ".join(texts)


def _several_sources(summary: pd.DataFrame, spec: TableSpec) -> list[str]:
    """Which published values are of which table, where there are several."""
    given = summary[summary["published_source"] != "none"]
    if given["published_source"].nunique() < 2:
        return []
    return [
        f"Published values of {', '.join(map(spec.label, part['row'].unique()))} on "
        f"{spec.places[tuple(place)]}: {source}."
        for (source, *place), part in given.groupby(["published_source", *CELL[1:3]], sort=False)
    ]


def _uneven(summary: pd.DataFrame, spec: TableSpec) -> Iterable[str]:
    """Cells that stand on fewer folds or volumes than others of their column."""
    for place, part in summary.groupby(CELL[1:3], sort=False):
        for count, noun in (("n_folds", "fold"), ("n_volumes", "volume")):
            most = part[count].max()
            for (method, number), cells in part[part[count] < most].groupby(["row", count]):
                yield (
                    f"{spec.label(method)} on {spec.places[place]}: "
                    f"{' and '.join(map(short, cells['metric']))} from "
                    f"{counted(number, noun)} only (others {most})."
                )


def _distances(summary: pd.DataFrame) -> str:
    """How many values are how far from the published ones."""
    verdicts = summary["verdict"].str.replace(r" \(only .*", "", regex=True)
    counts = verdicts.value_counts().reindex([*_VERDICTS, _NO_STD], fill_value=0)
    judged, without, parts = int(counts[[*_VERDICTS]].sum()), counts[_NO_STD], []
    if judged:
        texts = ", ".join(f"{counts[text]} {text}" for text in _VERDICTS)
        parts.append(f"of {counted(judged, 'value')} with a published std: {texts}")
    if without:
        parts.append(f"{counted(without, 'value')} without a published std, not judged")
    return "; ".join(parts)
