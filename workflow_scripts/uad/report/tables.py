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
from uad.report.metric_files import METRICS, check_metrics, published_value
from uad.report.render import (
    NOT_PUBLISHED,
    PHANTOM_WARNING,
    Cell,
    Document,
    PathLike,
    Row,
    counted,
    csv_text,
    data_and_seed,
    mean_std,
    signed,
    span,
    terminal,
    titled,
    write_document,
)
from uad.report.significance_marks import (
    LEVEL,
    MARK,
    MARK_COLUMNS,
    add_marks,
    significance_notes,
    was_tested,
)
from uad.report.table_spec import TableSpec, part_of

SUMMARY_COLUMNS = [
    *"row experiment test_dataset metric mean std n_folds published_mean published_std".split(),
    *"n_volumes published_source difference verdict".split(),
    *MARK_COLUMNS,
]
PHANTOM_VERDICT = "phantom: not comparable"
_VERDICTS = ("within 1 std", "within 2 std", "outside")
_NO_STD = "no published std"

#: Below these counts a verdict says how little it stands on. A standard deviation of
#: two folds means next to nothing; 20 is the smallest test set of the paper (MSLUB).
FEW_FOLDS = 3
FEW_VOLUMES = 20


# Summarising -----------------------------------------------------------------------------


def summarise(
    metrics: pd.DataFrame,
    spec: TableSpec | Mapping[str, Any],
    published: pd.DataFrame,
    *,
    phantom: bool = False,
    significance: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Mean and standard deviation over folds of every cell of a table.

    A fold's value is the mean over its test volumes (volumes where the metric is not
    defined are left out, as the paper's code does); the cell is the mean and the
    sample standard deviation of the folds' values, in percent.

    Args:
        metrics: per-volume metrics, as from :func:`uad.report.metric_files.collect_metrics`.
        spec: the table.
        published: published values, as from :func:`uad.report.metric_files.read_published`.
        phantom: the volumes are phantoms, so nothing may be compared with the paper.
        significance: tests between methods, with :data:`uad.core.columns.SIGNIFICANCE`.

    Returns:
        A frame in long form with :data:`SUMMARY_COLUMNS`. ``n_volumes`` counts the
        different volumes with a value, ``std`` is NaN for a single fold. ``significant``
        is yes, no or not tested, see :func:`uad.report.significance_marks.add_marks`.

    Raises:
        DataError: a cell has no metrics, a fold has no value, or two methods of one
            column were tested on different volumes.
    """
    spec = TableSpec.of(spec)
    check_metrics(metrics, f"metrics of {spec.name}")
    cells = dict(iter(metrics.groupby(["method", "experiment", "test_dataset"])))
    wanted = [(method, *place) for method in spec.methods for place in spec.places]
    absent = ["/".join((e, m, t)) for m, e, t in wanted if (m, e, t) not in cells]
    if absent:
        raise DataError(
            f"{spec.name}: no metrics for {', '.join(absent)} (experiment/method/test set). "
            "Run their evaluation, or take the row out of the table in the config."
        )
    for place in spec.places:
        _check_same_volumes(cells, spec, place)
    records = [
        _record(cells[place], spec.name, place, metric, published)
        for place in wanted
        for metric in METRICS
    ]
    summary = add_marks(pd.DataFrame(records), spec, significance)[SUMMARY_COLUMNS]
    if phantom:  # a phantom's distance from the paper means nothing
        summary = summary.assign(difference=float("nan"), verdict=PHANTOM_VERDICT)
    return summary


def _record(
    cell: pd.DataFrame,
    table: str,
    place: tuple[str, str, str],
    metric: str,
    published: pd.DataFrame,
) -> dict[str, Any]:
    """One line of a summary, without its marks."""
    method, experiment, test = place
    folds = cell.groupby("fold")[metric].mean() * 100
    if folds.isna().any():
        fold = folds[folds.isna()].index[0]
        raise DataError(
            f"{table}: {metric} of {experiment}/{method}/fold-{fold}/{test} is not defined for any "
            "volume. Do its test volumes have lesions?"
        )
    mean = float(folds.mean())
    volumes = int(cell.loc[cell[metric].notna(), "subject"].nunique())
    known, known_std, source = published_value(published, table, *place, metric)
    return {
        "row": method,
        "experiment": experiment,
        "test_dataset": test,
        "metric": metric,
        "mean": mean,
        "std": float(folds.std(ddof=1)) if len(folds) > 1 else float("nan"),
        "n_folds": len(folds),
        "published_mean": known,
        "published_std": known_std,
        "n_volumes": volumes,
        "published_source": source,
        "difference": mean - known,
        "verdict": _verdict(mean - known, known_std, len(folds), volumes),
    }


def _check_same_volumes(
    cells: Mapping[tuple[str, str, str], pd.DataFrame], spec: TableSpec, place: tuple[str, str]
) -> None:
    """Methods of one column are comparable only on the same volumes, fold by fold."""
    seen: dict[Any, tuple[str, set[str]]] = {}
    for method in spec.methods:
        for fold, part in cells[(method, *place)].groupby("fold"):
            volumes = set(part["subject"])
            other, expected = seen.setdefault(fold, (method, volumes))
            if volumes != expected:
                raise DataError(
                    f"{spec.name}: {method} and {other} were tested on different volumes of "
                    f"{place[0]}/fold-{fold}/{place[1]} (for example "
                    f"{min(volumes ^ expected)}). Evaluate both again with the same splits."
                )


def _verdict(difference: float, published_std: float, folds: int, volumes: int) -> str:
    """Say how far a value is from the published one, and on how little that stands."""
    if np.isnan(difference):
        return "no published value"
    # Without the tolerance, 59.82 against 59.45±0.37 would be outside by float dust.
    distance = abs(difference) - 1e-9
    verdict = _NO_STD
    if not np.isnan(published_std):
        verdict = _VERDICTS[(distance > published_std) + (distance > 2 * published_std)]
    few = [counted(folds, "fold")] * (folds < FEW_FOLDS)
    few += [counted(volumes, "volume")] * (volumes < FEW_VOLUMES)
    return f"{verdict} (only {', '.join(few)})" if few else verdict


# Showing ---------------------------------------------------------------------------------


def write_table(
    summary: pd.DataFrame,
    spec: TableSpec | Mapping[str, Any],
    out_paths: Iterable[PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
    significance: pd.DataFrame | None = None,
) -> None:
    """Write a table in the formats that the suffixes of ``out_paths`` name.

    Args:
        summary: from :func:`summarise`.
        spec: the table.
        out_paths: any of ``.csv`` (long form, four decimals), ``.md``, ``.tex``, ``.html``.
        phantom: the data are phantoms: title and caption say so.
        caption_facts: ``data_source`` (in words) and ``seed``; ``notes`` may list footnotes.
        significance: the tests behind the marks, for the footnotes.

    Raises:
        DataError: the summary lacks a cell of the table, or says otherwise than
            ``phantom`` whether it is of phantoms.
    """
    spec = TableSpec.of(spec)
    if (summary["verdict"] == PHANTOM_VERDICT).any() != phantom:
        raise DataError(
            f"{spec.name}: the summary {'is not' if phantom else 'is'} of a phantom, but "
            f"phantom={phantom} was given."
        )
    data, seed = data_and_seed(caption_facts)
    document = _document(
        summary,
        spec,
        [data, f"{_sizes(summary, spec)} {seed}", *_caption(summary, spec, phantom)],
        [
            *significance_notes(summary, spec, significance, phantom),
            *_footnotes(summary, spec),
            *caption_facts.get("notes", ()),
        ],
    )
    write_document(out_paths, document, csv_text(summary[SUMMARY_COLUMNS]))


def terminal_table(
    summary: pd.DataFrame, spec: TableSpec | Mapping[str, Any], width: int = 100
) -> str:
    """The table as plain text for a terminal, with the published values beside.

    ``*`` marks the best value of a column, ``+`` the second best.
    """
    spec = TableSpec.of(spec)
    legend = "* best, + second best." if len(spec.methods) > 1 else ""
    if was_tested(summary):
        legend += (
            f" {MARK} significantly better (Holm-corrected p < {LEVEL:g}) than all rows it was "
            "tested against."
        )
    sources = _sources(summary)
    if sources:
        legend += f" Published: from the paper ({sources}), not computed here."
    return terminal(_document(summary, spec, [_sizes(summary, spec), legend], []), width)


def _document(
    summary: pd.DataFrame, spec: TableSpec, caption: list[str], footnotes: list[str]
) -> Document:
    """Lay out a table as the paper does: a row per method, two columns per test set."""
    phantom = bool((summary["verdict"] == PHANTOM_VERDICT).any())
    pairs = [(place, metric) for place in spec.places for metric in METRICS]
    cells = zip(*(_cells(summary, spec, *pair) for pair in pairs), strict=True)
    return Document(
        name=spec.name,
        title=titled(spec.title, phantom),
        caption=caption,
        warning=PHANTOM_WARNING if phantom else "",
        corner="Method",
        heads=[(spec.places[place], METRICS[metric]) for place, metric in pairs],
        rows=[Row(spec.label(m), list(c)) for m, c in zip(spec.methods, cells, strict=True)],
        footnotes=footnotes,
    )


def _cells(
    summary: pd.DataFrame, spec: TableSpec, place: tuple[str, str], metric: str
) -> list[Cell]:
    """One column as text, with marks and published values."""
    part = part_of(summary, place)
    part = part[part["metric"] == metric].set_index("row").reindex(spec.methods)
    if part["mean"].isna().any():
        cell = (part.index[part["mean"].isna()][0], *place, metric)
        raise DataError(f"{spec.name}: the summary has no value for {'/'.join(cell)}.")
    cells = []
    for record, rank in zip(part.itertuples(), _ranks(part["mean"]), strict=True):
        known, apart = record.published_mean, record.difference
        cells.append(
            Cell(
                mean_std(record.mean, record.std),
                rank,
                NOT_PUBLISHED if np.isnan(known) else mean_std(known, record.published_std),
                "" if np.isnan(apart) else f"{signed(apart)}, {record.verdict}",
                MARK if record.significant == "yes" else "",
            )
        )
    return cells


def _ranks(values: Iterable[float]) -> list[int]:
    """1 for the best, 2 for the second best, by the two decimals that a reader sees.

    Equal numbers get equal marks. A single row is not marked: it beats nobody.
    """
    shown = [float(f"{value:.2f}") for value in values]
    if len(shown) < 2:
        return [0] * len(shown)
    places = sorted(set(shown), reverse=True)[:2]
    return [places.index(value) + 1 if value in places else 0 for value in shown]


def _sizes(summary: pd.DataFrame, spec: TableSpec) -> str:
    """``MSLUB (T2): 20 test volumes, 5 folds.``"""
    sizes = []
    for place, label in spec.places.items():
        part = part_of(summary, place)
        volumes = part.groupby("row")["n_volumes"].max()
        sizes.append(f"{label}: {span(volumes, 'test volume')}, {span(part['n_folds'], 'fold')}")
    return f"{'; '.join(sizes)}."


def _sources(summary: pd.DataFrame) -> str:
    """``arXiv 2408.08228v1, Tables I and II``: where the published values are from."""
    tables: dict[str, list[str]] = {}
    for source in dict.fromkeys(summary["published_source"]):
        if source != "none":
            paper, _, table = source.partition(", Table ")
            tables.setdefault(paper, []).append(table)
    texts = []
    for paper, names in tables.items():
        names = sorted(name for name in names if name)
        plural = "s" if len(names) > 1 else ""
        texts.append(f"{paper}, Table{plural} {' and '.join(names)}" if names else paper)
    return "; ".join(texts)


def _caption(summary: pd.DataFrame, spec: TableSpec, phantom: bool) -> list[str]:
    """Sentences that tell a reader what the numbers are before they are read."""
    caption = [spread(summary)]
    if len(spec.methods) > 1:
        marks = "The best value of a column is bold, the second best underlined"
        caption.append(f"{marks}{'; here the marks rank nothing' if phantom else ''}.")
    sources = _sources(summary)
    known = f"Values marked published are from the paper ({sources}), not computed here."
    return [*caption, known if sources else "The paper has no published values for these cells."]


def spread(summary: pd.DataFrame) -> str:
    """What the numbers before and behind the ± are."""
    if (summary["n_folds"] > 1).any():
        return "Mean ± sample standard deviation over folds of the mean over test volumes."
    return "Mean over the test volumes of one fold, hence no standard deviation."


def _footnotes(summary: pd.DataFrame, spec: TableSpec) -> list[str]:
    """What a careful reader has to know about single cells."""
    notes = _tally(summary)
    given = summary[summary["published_source"] != "none"]
    if given["published_std"].notna().any():
        notes.append(
            "The published ± is the standard deviation over the paper's five folds, not over "
            "volumes."
        )
    if given["published_source"].nunique() > 1:
        place = ["published_source", "experiment", "test_dataset"]
        for (source, *where), part in given.groupby(place, sort=False):
            methods = ", ".join(spec.label(method) for method in dict.fromkeys(part["row"]))
            notes.append(f"Published values of {methods} on {spec.places[tuple(where)]}: {source}.")
    for where, label in spec.places.items():
        part = part_of(summary, where)
        for count, noun in (("n_folds", "fold"), ("n_volumes", "volume")):
            most = part[count].max()
            for (method, number), cells in part[part[count] < most].groupby(["row", count]):
                metrics = " and ".join(METRICS[m].split()[0] for m in cells["metric"])
                notes.append(
                    f"{spec.label(method)} on {label}: {metrics} from "
                    f"{counted(number, noun)} only (others {most})."
                )
    return notes


def _tally(summary: pd.DataFrame) -> list[str]:
    """How many values are how far from the published ones."""
    verdicts = summary["verdict"].str.replace(r" \(only .*", "", regex=True)
    counts = {text: int((verdicts == text).sum()) for text in _VERDICTS}
    judged, without = sum(counts.values()), int((verdicts == _NO_STD).sum())
    parts = []
    if judged:
        texts = ", ".join(f"{number} {text}" for text, number in counts.items())
        parts.append(f"of {counted(judged, 'value')} with a published std: {texts}")
    if without:
        parts.append(f"{counted(without, 'value')} without a published std, not judged")
    return [f"Distance from the published means: {'; '.join(parts)}."] if parts else []
