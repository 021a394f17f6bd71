"""From per-volume metrics to the paper's tables, side by side with the published values.

No method and no data set is named here: a table is a :class:`TableSpec` from the
config, the numbers are data frames. Everything is in percent, as in the paper.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv
from uad.report.air import air_table, write_air_table
from uad.report.claims import (
    LEVEL,
    MARK,
    MARK_COLUMNS,
    add_marks,
    significance_notes,
    was_tested,
)
from uad.report.render import (
    NOT_PUBLISHED,
    PHANTOM_WARNING,
    Cell,
    Document,
    PathLike,
    Row,
    checked_facts,
    counted,
    csv_text,
    html_page,
    latex,
    markdown,
    mean_std,
    signed,
    span,
    write_all,
)

__all__ = [
    "Column",
    "TableSpec",
    "air_table",
    "collect_metrics",
    "published_value",
    "read_published",
    "summarise",
    "terminal_table",
    "write_air_table",
    "write_table",
]

METRICS = {"dice": "DICE [%]", "auprc": "AUPRC [%]"}
KEYS = ["experiment", "method", "fold", "test_dataset", "subject"]
PUBLISHED_COLUMNS = [
    "table",
    "row",
    "experiment",
    "test_dataset",
    "metric",
    "mean",
    "std",
    "source",
]
SUMMARY_COLUMNS = [
    "row",
    "experiment",
    "test_dataset",
    "metric",
    "mean",
    "std",
    "n_folds",
    "published_mean",
    "published_std",
    "n_volumes",
    "published_source",
    "difference",
    "verdict",
    *MARK_COLUMNS,
]

PHANTOM_VERDICT = "phantom: not comparable"
_VERDICTS = ("within 1 std", "within 2 std", "outside")
_NO_STD = "no published std"

#: Below these counts a verdict says how little it stands on. A standard deviation of
#: two folds means next to nothing; 20 is the smallest test set of the paper (MSLUB).
FEW_FOLDS = 3
FEW_VOLUMES = 20


@dataclass(frozen=True)
class Column:
    """One pair of columns (Dice, AUPRC) of a table."""

    experiment: str
    test_dataset: str
    label: str


@dataclass(frozen=True)
class TableSpec:
    """What a table shows: which methods in which order, on which test sets."""

    name: str
    title: str
    rows: Sequence[str]
    columns: Sequence[Column]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty table, and rows or columns that cannot be told apart."""
        cells = [(column.experiment, column.test_dataset) for column in self.columns]
        labels = [column.label for column in self.columns]
        for what, listed in (("row", self.rows), ("column", cells), ("column label", labels)):
            if not listed:
                raise ConfigError(f"table {self.name}: it has no {what}s.")
            if len(set(listed)) < len(listed):
                raise ConfigError(f"table {self.name}: a {what} is listed twice: {listed}.")

    @classmethod
    def of(cls, spec: TableSpec | Mapping[str, Any]) -> TableSpec:
        """Accept a spec as it is or as a mapping from the config.

        Raises:
            ConfigError: a key is missing, or a row or a column is listed twice.
        """
        if isinstance(spec, TableSpec):
            return spec
        try:
            columns = [
                Column(c["experiment"], c["test_dataset"], c.get("label") or c["test_dataset"])
                for c in spec["columns"]
            ]
            return cls(
                str(spec["name"]),
                str(spec["title"]),
                list(spec["rows"]),
                columns,
                dict(spec.get("labels") or {}),
            )
        except KeyError as error:
            raise ConfigError(
                f"table {spec.get('name', '?')}: the key {error} is missing from its definition."
            ) from error

    def label(self, method: str) -> str:
        """The display name of a method (its key where none is given)."""
        return self.labels.get(method) or method


# Reading ---------------------------------------------------------------------------------


def collect_metrics(paths: Iterable[PathLike]) -> pd.DataFrame:
    """Read per-volume metrics of many cells into one frame, sorted by their keys.

    Args:
        paths: files ``.../<experiment>/<method>/fold-<k>/<test_dataset>.tsv`` with at
            least the columns experiment, method, fold, test_dataset, subject, dice and
            auprc (the last two in [0, 1], ``n/a`` where a metric is not defined).

    Raises:
        DataError: a file is missing, empty, lacks a column, has a value outside [0, 1],
            lists a volume twice, or says something else than its own path.
    """
    frames = []
    for path in sorted({Path(path) for path in paths}):
        if not path.is_file():
            raise DataError(f"{path}: no such file. Run the evaluation of this cell first.")
        try:
            frame = read_tsv(path)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is not a table of metrics ({error}).") from error
        _check_metrics(frame, str(path))
        found = re.search(r"([^/]+)/([^/]+)/fold-(\d+)/([^/]+)\.tsv$", path.as_posix())
        if found:
            said = frame[["experiment", "method", "fold", "test_dataset"]].astype(str)
            wrong = said.ne(list(found.groups())).any(axis=1)
            if wrong.any():
                raise DataError(
                    f"{path}: a row says {'/'.join(said[wrong].iloc[0])}, the path says "
                    f"{'/'.join(found.groups())}. Was the file moved? Make it again."
                )
        frames.append(frame)
    if not frames:
        raise DataError("No files of metrics were given.")
    metrics = pd.concat(frames, ignore_index=True)
    return metrics.sort_values(KEYS, kind="stable", ignore_index=True)


def _check_metrics(metrics: pd.DataFrame, where: str) -> None:
    """Refuse a frame of metrics that would give wrong tables."""
    missing = [c for c in [*KEYS, *METRICS] if c not in metrics.columns]
    if missing:
        raise DataError(f"{where}: the columns {', '.join(missing)} are missing.")
    if metrics.empty:
        raise DataError(f"{where}: has no rows. No test volume was evaluated.")
    for metric in METRICS:
        values = pd.to_numeric(metrics[metric], errors="coerce")
        bad = (values.isna() & metrics[metric].notna()) | (values < 0) | (values > 1)
        if bad.any():
            row = metrics[bad].iloc[0]
            raise DataError(
                f"{where}: {metric} of {row['subject']} is {row[metric]}, expected a number "
                "from 0 to 1."
            )
    twice = metrics.duplicated(KEYS)
    if twice.any():
        row = metrics[twice].iloc[0]
        raise DataError(
            f"{where}: {row['subject']} is listed twice for {row['experiment']}/{row['method']}/"
            f"fold-{row['fold']}/{row['test_dataset']}."
        )


def read_published(path: PathLike) -> pd.DataFrame:
    """Read the published values (``resources/published/tables.csv``), in percent.

    Raises:
        DataError: the file is missing, lacks a column, or has a value twice.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file. It is part of the repository: check it out again.")
    frame = pd.read_csv(path, dtype={"table": str, "row": str, "source": str})
    missing = [c for c in PUBLISHED_COLUMNS if c not in frame.columns]
    if missing:
        raise DataError(f"{path}: the columns {', '.join(missing)} are missing.")
    twice = frame.duplicated(PUBLISHED_COLUMNS[:5])
    if twice.any():
        raise DataError(f"{path}: a value is listed twice: {frame[twice].iloc[0].to_dict()}.")
    return frame


def published_value(
    published: pd.DataFrame, table: str, row: str, experiment: str, test_dataset: str, metric: str
) -> tuple[float, float, str]:
    """Look up one published value: in the same table first, then in any other.

    Returns:
        Mean and standard deviation in percent (NaN where the paper gives none) and the
        source, which names the table that the value was found in (``none`` if nowhere).
    """
    found = published[
        (published["row"] == row)
        & (published["experiment"] == experiment)
        & (published["test_dataset"] == test_dataset)
        & (published["metric"] == metric)
    ]
    if found.empty:
        return float("nan"), float("nan"), "none"
    same = found[found["table"] == table]
    best = (same if len(same) else found).iloc[0]
    return float(best["mean"]), float(best["std"]), str(best["source"])


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
        metrics: per-volume metrics, as from :func:`collect_metrics`.
        spec: the table.
        published: published values, as from :func:`read_published`.
        phantom: the volumes are phantoms, so nothing may be compared with the paper.
        significance: tests between rows, with :data:`uad.core.columns.SIGNIFICANCE`.

    Returns:
        A frame in long form with :data:`SUMMARY_COLUMNS`. ``n_volumes`` counts the
        different volumes with a value, ``std`` is NaN for a single fold. ``significant``
        is yes, no or not tested, see :func:`uad.report.claims.add_marks`.

    Raises:
        DataError: a cell has no metrics, a fold has no value, or two methods of one
            column were tested on different volumes.
    """
    spec = TableSpec.of(spec)
    _check_metrics(metrics, f"metrics of {spec.name}")
    cells = dict(iter(metrics.groupby(["method", "experiment", "test_dataset"])))
    wanted = [(row, c.experiment, c.test_dataset) for row in spec.rows for c in spec.columns]
    absent = ["/".join((e, m, d)) for m, e, d in wanted if (m, e, d) not in cells]
    if absent:
        raise DataError(
            f"{spec.name}: no metrics for {', '.join(absent)} (experiment/method/test set). "
            "Run their evaluation, or take the row out of the table in the config."
        )
    for column in spec.columns:
        _check_same_volumes(cells, spec, column)

    records = []
    for method, experiment, dataset in wanted:
        cell = cells[method, experiment, dataset]
        for metric in METRICS:
            folds = cell.groupby("fold")[metric].mean() * 100
            if folds.isna().any():
                fold = folds[folds.isna()].index[0]
                raise DataError(
                    f"{spec.name}: {metric} of {experiment}/{method}/fold-{fold}/{dataset} is not "
                    "defined for any volume. Do its test volumes have lesions?"
                )
            mean = float(folds.mean())
            std = float(folds.std(ddof=1)) if len(folds) > 1 else float("nan")
            volumes = int(cell.loc[cell[metric].notna(), "subject"].nunique())
            known, known_std, source = published_value(
                published, spec.name, method, experiment, dataset, metric
            )
            difference = mean - known
            verdict = _verdict(difference, known_std, len(folds), volumes)
            values = [mean, std, len(folds), known, known_std, volumes, source, difference]
            records.append([method, experiment, dataset, metric, *values, verdict])
    columns = [column for column in SUMMARY_COLUMNS if column not in MARK_COLUMNS]
    summary = add_marks(pd.DataFrame(records, columns=columns), spec, significance)
    return _as_phantom(summary) if phantom else summary


def _check_same_volumes(
    cells: Mapping[tuple[str, str, str], pd.DataFrame], spec: TableSpec, column: Column
) -> None:
    """Methods of one column are comparable only on the same volumes, fold by fold."""
    seen: dict[Any, tuple[str, set[str]]] = {}
    for method in spec.rows:
        cell = cells[method, column.experiment, column.test_dataset]
        for fold, part in cell.groupby("fold"):
            volumes = set(part["subject"])
            other, expected = seen.setdefault(fold, (method, volumes))
            if volumes != expected:
                raise DataError(
                    f"{spec.name}: {method} and {other} were tested on different volumes of "
                    f"{column.experiment}/fold-{fold}/{column.test_dataset} (for example "
                    f"{min(volumes ^ expected)}). Evaluate both again with the same splits."
                )


def _verdict(difference: float, published_std: float, folds: int, volumes: int) -> str:
    """Say how far a value is from the published one, and on how little that stands."""
    if np.isnan(difference):
        return "no published value"
    # Without the tolerance, 59.82 against 59.45±0.37 would be outside by float dust.
    distance = abs(difference) - 1e-9
    if np.isnan(published_std):
        verdict = _NO_STD
    else:
        verdict = _VERDICTS[(distance > published_std) + (distance > 2 * published_std)]
    few = []
    if folds < FEW_FOLDS:
        few.append(counted(folds, "fold"))
    if volumes < FEW_VOLUMES:
        few.append(counted(volumes, "volume"))
    return f"{verdict} (only {', '.join(few)})" if few else verdict


def _as_phantom(summary: pd.DataFrame) -> pd.DataFrame:
    """Take back every comparison: a phantom's distance from the paper means nothing."""
    return summary.assign(difference=float("nan"), verdict=PHANTOM_VERDICT)


# Writing ---------------------------------------------------------------------------------


def write_table(
    summary: pd.DataFrame,
    spec: TableSpec | Mapping[str, Any],
    out_paths: Iterable[PathLike] | Mapping[str, PathLike],
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
        phantom: the data are phantoms: title, caption and verdicts say so.
        caption_facts: ``data_source`` (what was trained and tested on, in words) and
            ``seed``; ``notes`` may list further footnotes. Volumes and folds are counted
            from the summary, never told.
        significance: the tests behind the marks, as for :func:`summarise`; without them
            no footnote says which published differences hold.

    Raises:
        DataError: the summary lacks a cell of the table, or is of a phantom while
            ``phantom`` is False.
        ConfigError: a format or a fact is not known, or a fact is missing.
    """
    spec = TableSpec.of(spec)
    facts = checked_facts(caption_facts)
    summary = _marked(summary, spec, significance)
    if phantom:
        summary = _as_phantom(summary)
    elif (summary["verdict"] == PHANTOM_VERDICT).any():
        raise DataError(f"{spec.name}: the summary is of a phantom, but phantom=False was given.")
    document = _table_document(summary, spec, phantom, facts, significance)
    write_all(
        out_paths,
        {
            ".csv": lambda: csv_text(summary[SUMMARY_COLUMNS]),
            ".md": lambda: markdown(document),
            ".tex": lambda: latex(document),
            ".html": lambda: html_page(document),
        },
    )


def _marked(
    summary: pd.DataFrame, spec: TableSpec, significance: pd.DataFrame | None
) -> pd.DataFrame:
    """The summary with its marks: those of the given tests, else those it has."""
    if significance is None and set(MARK_COLUMNS) <= set(summary.columns):
        return summary
    return add_marks(summary, spec, significance)


def _published_text(mean: float, std: float) -> str:
    return NOT_PUBLISHED if np.isnan(mean) else mean_std(mean, std)


def _ranks(values: Sequence[float]) -> list[int]:
    """1 for the best, 2 for the second best, by the two decimals that a reader sees.

    Equal numbers get equal marks. A single row is not marked: it beats nobody.
    """
    shown = [float(f"{value:.2f}") for value in values]
    if len(shown) < 2:
        return [0] * len(shown)
    places = sorted(set(shown), reverse=True)[:2]
    return [places.index(value) + 1 if value in places else 0 for value in shown]


def _indexed(summary: pd.DataFrame, spec: TableSpec) -> dict[tuple[str, str, str, str], Any]:
    """The summary's records by (row, experiment, test_dataset, metric); all must be there."""
    records = {
        (r.row, r.experiment, r.test_dataset, r.metric): r for r in summary.itertuples(index=False)
    }
    for row in spec.rows:
        for column in spec.columns:
            for metric in METRICS:
                key = (row, column.experiment, column.test_dataset, metric)
                if key not in records or np.isnan(records[key].mean):
                    raise DataError(f"{spec.name}: the summary has no value for {'/'.join(key)}.")
    return records


def _cells(summary: pd.DataFrame, spec: TableSpec) -> dict[tuple[str, Column, str], Cell]:
    """Every cell of the table as text, with its mark and its published value."""
    records = _indexed(summary, spec)
    cells = {}
    for column in spec.columns:
        for metric in METRICS:
            found = [records[r, column.experiment, column.test_dataset, metric] for r in spec.rows]
            ranks = _ranks([record.mean for record in found])
            for row, record, rank in zip(spec.rows, found, ranks, strict=True):
                remark = ""
                if not np.isnan(record.difference):
                    remark = f"{signed(record.difference)}, {record.verdict}"
                cells[row, column, metric] = Cell(
                    mean_std(record.mean, record.std),
                    rank,
                    _published_text(record.published_mean, record.published_std),
                    remark,
                    MARK if record.significant == "yes" else "",
                )
    return cells


def _table_document(
    summary: pd.DataFrame,
    spec: TableSpec,
    phantom: bool,
    facts: Mapping[str, Any],
    significance: pd.DataFrame | None,
) -> Document:
    """Lay out a table as the paper does: a row per method, two columns per test set."""
    cells = _cells(summary, spec)
    return Document(
        name=spec.name,
        title=f"{spec.title} (phantom data)" if phantom else spec.title,
        caption=_caption(summary, spec, phantom, facts),
        warning=PHANTOM_WARNING if phantom else "",
        corner="Method",
        heads=[(column.label, head) for column in spec.columns for head in METRICS.values()],
        rows=[
            Row(spec.label(row), [cells[row, c, m] for c in spec.columns for m in METRICS])
            for row in spec.rows
        ],
        footnotes=[
            *significance_notes(summary, spec, significance, phantom),
            *_footnotes(summary, spec, facts),
        ],
    )


def _of_column(summary: pd.DataFrame, column: Column) -> pd.DataFrame:
    return summary[
        (summary["experiment"] == column.experiment)
        & (summary["test_dataset"] == column.test_dataset)
    ]


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


def _caption(
    summary: pd.DataFrame, spec: TableSpec, phantom: bool, facts: Mapping[str, Any]
) -> list[str]:
    """Sentences that tell a reader what the numbers are before they are read."""
    sizes = []
    for column in spec.columns:
        part = _of_column(summary, column)
        volumes = part.groupby("row")["n_volumes"].max()
        sizes.append(
            f"{column.label}: {span(volumes, 'test volume')}, {span(part['n_folds'], 'fold')}"
        )
    caption = [
        f"Data: {str(facts['data_source']).rstrip('.')}.",
        f"{'; '.join(sizes)}. Seed {facts['seed']}.",
        "Mean ± sample standard deviation over folds of the mean over test volumes."
        if (summary["n_folds"] > 1).any()
        else "Mean over the test volumes of one fold, hence no standard deviation.",
    ]
    if len(spec.rows) > 1:
        marks = "The best value of a column is bold, the second best underlined"
        caption.append(f"{marks}{'; here the marks rank nothing' if phantom else ''}.")
    sources = _sources(summary)
    caption.append(
        f"Values marked published are from the paper ({sources}), not computed here."
        if sources
        else "The paper has no published values for these cells."
    )
    return caption


def _footnotes(summary: pd.DataFrame, spec: TableSpec, facts: Mapping[str, Any]) -> list[str]:
    """What a careful reader has to know about single cells."""
    notes = _tally(summary)
    labels = {(c.experiment, c.test_dataset): c.label for c in spec.columns}
    given = summary[summary["published_source"] != "none"]
    if given["published_std"].notna().any():
        notes.append(
            "The published ± is the standard deviation over the paper's five folds, not over "
            "volumes."
        )
    if given["published_source"].nunique() > 1:
        place = ["published_source", "experiment", "test_dataset"]
        for (source, experiment, dataset), part in given.groupby(place, sort=False):
            rows = ", ".join(spec.label(row) for row in dict.fromkeys(part["row"]))
            notes.append(f"Published values of {rows} on {labels[experiment, dataset]}: {source}.")
    for column in spec.columns:
        part = _of_column(summary, column)
        for count, noun in (("n_folds", "fold"), ("n_volumes", "volume")):
            most = part[count].max()
            for (row, number), cells in part[part[count] < most].groupby(["row", count]):
                metrics = " and ".join(METRICS[m].split()[0] for m in cells["metric"])
                notes.append(
                    f"{spec.label(row)} on {column.label}: {metrics} from {counted(number, noun)} "
                    f"only (others {most})."
                )
    return notes + [str(note) for note in facts["notes"]]


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


def terminal_table(
    summary: pd.DataFrame,
    spec: TableSpec | Mapping[str, Any],
    width: int = 100,
    *,
    significance: pd.DataFrame | None = None,
) -> str:
    """The table as plain text for a terminal, with the published values beside.

    Test sets that do not fit side by side go below each other. ``*`` marks the best
    value of a column, ``+`` the second best; ``†`` is explained below the table.
    """
    spec = TableSpec.of(spec)
    summary = _marked(summary, spec, significance)
    phantom = bool((summary["verdict"] == PHANTOM_VERDICT).any())
    cells = _cells(summary, spec)
    marks = {0: " ", 1: "*", 2: "+"}
    labels = [textwrap.shorten(spec.label(row), 36, placeholder="...") for row in spec.rows]
    label_width = max(len("Method"), *map(len, labels))

    blocks = []
    for column in spec.columns:
        lists = []
        for metric, head in METRICS.items():
            measured = [cells[row, column, metric] for row in spec.rows]
            # One more place where any cell of the table has the mark, so that numbers align.
            blank = " " if any(c.mark for c in cells.values()) else ""
            texts = [c.text + marks[c.rank] + (c.mark or blank) for c in measured]
            lists.append([f"{head} {blank}", *texts])
            lists.append(["published", *(c.published or "" for c in measured)])
        widths = [max(map(len, texts)) for texts in lists]
        rows = [
            "  ".join(text.rjust(w) for text, w in zip(texts, widths, strict=True))
            for texts in zip(*lists, strict=True)
        ]
        part = _of_column(summary, column)
        size = f"{span(part['n_volumes'], 'volume')}, {span(part['n_folds'], 'fold')}"
        title = f"{column.label}: {size}"
        block_width = max(len(rows[0]), len(title))
        blocks.append([text.ljust(block_width) for text in (title, *rows)])

    panels: list[list[list[str]]] = []
    for block in blocks:
        used = label_width + sum(3 + len(b[0]) for b in panels[-1]) if panels else width
        if used + 3 + len(block[0]) > width:
            panels.append([])
        panels[-1].append(block)

    title = f"{spec.title} (phantom data)" if phantom else spec.title
    lines = [*textwrap.wrap(title, width), "=" * width]
    for number, panel in enumerate(panels):
        if number:
            lines.append("-" * width)
        for text, parts in zip(["", "Method", *labels], zip(*panel, strict=True), strict=True):
            lines.append("   ".join([text.ljust(label_width), *parts]).rstrip()[:width])
    lines.append("=" * width)
    legend = "* best, + second best." if len(spec.rows) > 1 else ""
    if was_tested(summary):
        legend += (
            f" {MARK} significantly better (Holm-corrected p < {LEVEL:g}) than all rows it was "
            "tested against."
        )
    if phantom:
        legend = f"{PHANTOM_WARNING} {legend}"
    sources = _sources(summary)
    if sources:
        legend += f" Published: from the paper ({sources}), not computed here."
    lines += textwrap.wrap(legend.strip(), width)
    return "\n".join(lines) + "\n"
