"""What variants of scoring and post-processing change, on the same reconstructions.

No method, data set or variant is named here: a study is a :class:`StudySpec` from the
config, the numbers are data frames of per-volume metrics. Everything is in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import ConfigError, DataError
from uad.evaluate import bootstrap_interval
from uad.report.curves import draw_sweep
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    checked_facts,
    csv_text,
    html_page,
    latex,
    markdown,
    mean_std,
    signed,
    span,
    write_all,
)
from uad.report.tables import METRICS

__all__ = [
    "CHOSEN",
    "STUDY_COLUMNS",
    "StudySpec",
    "figure_sweep",
    "summarise_study",
    "trained_points",
    "write_study",
]

#: The variant that takes, in each fold, the one that is best on the validation set.
CHOSEN = "chosen on validation"
#: In place of the difference of a variant that changes nothing for a method.
NO_EFFECT = "does not apply"
#: A bootstrap of fewer volumes than this gives intervals that are too narrow.
FEW_VOLUMES = 10
VALIDATION, TEST = "val_unhealthy", "test"
STUDY_COLUMNS = [
    "experiment",
    "method",
    "test_dataset",
    "variant",
    "metric",
    "mean",
    "std",
    "n_folds",
    "n_volumes",
    "difference",
    "ci_low",
    "ci_high",
    "validation_mean",
    "chosen",
    "n_chosen",
    "same_as_baseline",
]
PHANTOM_WARNING = (
    "These numbers come from phantom data: they show that the study runs, and say nothing about "
    "the variants on real scans."
)
_INPUT = ["experiment", "method", "fold", "test_dataset", "variant", "role", "subject"]


@dataclass(frozen=True)
class StudySpec:
    """What a study compares.

    Attributes:
        name: its key.
        title: a line without a full stop.
        baseline: the variant that the others are compared with.
        variants: names in the order in which they are shown.
        labels: display names of methods, in the order in which they are shown.
        variant_labels: display names of variants.
        columns: display names of test sets by (experiment, test_dataset), in order.
        select_on: the metric whose validation value chooses a variant, or None.
        sweep: the name of the number that the variants sweep, or None.
    """

    name: str
    title: str
    baseline: str
    variants: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    variant_labels: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[tuple[str, str], str] = field(default_factory=dict)
    select_on: str | None = None
    sweep: str | None = None

    def __post_init__(self) -> None:
        """Refuse variants that cannot be told apart, and a baseline that is none of them."""
        where = f"study {self.name}"
        if len(set(self.variants)) < len(self.variants):
            raise ConfigError(f"{where}: a variant is listed twice: {list(self.variants)}.")
        if self.baseline not in self.variants:
            raise ConfigError(f"{where}: the baseline '{self.baseline}' is not a variant of it.")
        if CHOSEN in self.variants:
            raise ConfigError(f"{where}: '{CHOSEN}' cannot be the name of a variant.")
        if self.select_on not in (None, *METRICS):
            raise ConfigError(
                f"{where}: select_on is '{self.select_on}', expected {' or '.join(METRICS)}."
            )

    @classmethod
    def of(cls, spec: StudySpec | Mapping[str, Any]) -> StudySpec:
        """Accept a spec as it is or as a mapping; ``columns`` may be a list as in the config.

        Raises:
            ConfigError: a key is missing, or a value makes no sense.
        """
        if isinstance(spec, StudySpec):
            return spec
        try:
            columns = spec.get("columns") or {}
            if not isinstance(columns, Mapping):
                places = [(c["experiment"], c.get("test_dataset") or c["test"]) for c in columns]
                columns = {
                    place: c.get("label") or f"{place[1]} ({place[0]})"
                    for place, c in zip(places, columns, strict=True)
                }
            return cls(
                str(spec["name"]),
                str(spec["title"]),
                str(spec["baseline"]),
                [str(variant) for variant in spec["variants"]],
                dict(spec.get("labels") or {}),
                dict(spec.get("variant_labels") or {}),
                columns,
                spec.get("select_on"),
                spec.get("sweep"),
            )
        except KeyError as error:
            raise ConfigError(
                f"study {spec.get('name', '?')}: the key {error} is missing from its definition."
            ) from error

    def label(self, method: str) -> str:
        """The display name of a method (its key where none is given)."""
        return self.labels.get(method) or method

    def variant_label(self, variant: str) -> str:
        """The display name of a variant (its key where none is given)."""
        return self.variant_labels.get(variant) or variant

    def column_label(self, place: tuple[str, str]) -> str:
        """The display name of a test set."""
        return self.columns.get(place) or f"{place[1]} ({place[0]})"


# Summarising -----------------------------------------------------------------------------


def summarise_study(
    rows: pd.DataFrame, spec: StudySpec | Mapping[str, Any], *, seed: int = 0
) -> pd.DataFrame:
    """Every variant of every method on every test set, and its difference to the baseline.

    A fold's value is the mean over its test volumes, as in the tables. The difference is
    the mean over folds of the paired fold differences. Its 95 % interval is a bootstrap
    over volumes of the paired differences, averaged beforehand over the folds that test
    the same volume; it is not corrected for the number of variants.

    Args:
        rows: one row per volume and variant, with the columns experiment, method, fold,
            test_dataset, variant, role (``test`` or ``val_unhealthy``), subject, dice and
            auprc (in [0, 1]). ``same_as_baseline``, as from
            :func:`uad.evaluate.rescore`, is read where it is there; further columns are
            not.
        spec: the study.
        seed: of the bootstrap.

    Returns:
        A frame in long form with :data:`STUDY_COLUMNS`, in percent and percentage points.
        With ``select_on`` the variant :data:`CHOSEN` takes, in each fold, the variant with
        the best mean validation value (the first of equals); ``chosen`` says which those
        were, and ``n_chosen`` of a variant in how many folds it was taken.
        ``same_as_baseline``: the variant changes nothing for the method (as the baseline
        itself), so that its difference was not measured and has no interval.

    Raises:
        DataError: a column, a variant or the validation volumes are missing, a value is
            outside [0, 1], or variants were not evaluated on the same volumes.
    """
    spec = StudySpec.of(spec)
    rows = _checked(rows, spec)
    methods = [m for m in spec.labels if m in set(rows["method"])]
    methods += sorted(set(rows["method"]) - set(methods))
    found = set(zip(rows["experiment"], rows["test_dataset"], strict=True))
    places = [place for place in spec.columns if place in found]
    places += sorted(found - set(places))
    cells = dict(iter(rows.groupby(["experiment", "test_dataset", "method"])))
    records = [
        record
        for method in methods
        for place in places
        if (*place, method) in cells
        for record in _cell_records(
            cells[(*place, method)], spec, (place[0], method, place[1]), seed
        )
    ]
    return pd.DataFrame(records, columns=STUDY_COLUMNS)


def _checked(rows: pd.DataFrame, spec: StudySpec) -> pd.DataFrame:
    """Refuse rows that would give wrong numbers."""
    missing = [column for column in [*_INPUT, *METRICS] if column not in rows.columns]
    if missing:
        raise DataError(f"study {spec.name}: the columns {', '.join(missing)} are missing.")
    rows = rows.assign(variant=rows["variant"].astype(str), subject=rows["subject"].astype(str))
    rows["same_as_baseline"] = rows.get("same_as_baseline", rows["variant"] == spec.baseline)
    unknown = sorted(set(rows["role"]) - {VALIDATION, TEST})
    if unknown:
        raise DataError(f"study {spec.name}: unknown role {', '.join(map(str, unknown))}.")
    twice = rows.duplicated(_INPUT)
    if twice.any():
        which = "/".join(map(str, rows.loc[twice, _INPUT].iloc[0]))
        raise DataError(f"study {spec.name}: {which} is listed twice.")
    for metric in METRICS:
        values = pd.to_numeric(rows[metric], errors="coerce")
        if ((values < 0) | (values > 1)).any():
            raise DataError(f"study {spec.name}: a {metric} is outside 0 to 1.")
    return rows[rows["variant"].isin(spec.variants)]


def _wide(part: pd.DataFrame, metric: str, spec: StudySpec, where: str) -> pd.DataFrame:
    """One metric with a column per variant, one row per fold and volume, all in percent."""
    counts = part.groupby("variant")["subject"].count().reindex(spec.variants, fill_value=0)
    wide = part.pivot(index=["fold", "subject"], columns="variant", values=metric)
    if (counts < len(wide)).any():
        raise DataError(
            f"study {spec.name}: {where} has {counts.min()} volumes for variant "
            f"'{counts.idxmin()}', but {len(wide)} in all. Score the cell again."
        )
    return wide[list(spec.variants)].astype(float).sort_index() * 100


def _cell_records(
    cell: pd.DataFrame, spec: StudySpec, key: tuple[str, str, str], seed: int
) -> list[list[Any]]:
    """The records of one method on one test set."""
    where = "/".join(key)
    test = cell[cell["role"] == TEST]
    validation = cell[cell["role"] == VALIDATION]
    if test.empty:
        raise DataError(f"study {spec.name}: {where} has no test volumes.")
    same = test.groupby("variant")["same_as_baseline"].all()
    choice = None
    if spec.select_on:
        choice = _choose(validation, set(test["fold"]), spec, where)
    records: dict[tuple[str, str], list[Any]] = {}
    for metric in METRICS:
        wide = _wide(test, metric, spec, where)
        known = None
        if len(validation):
            known = _wide(validation, metric, spec, where).groupby(level="fold").mean()
        if choice is not None:
            wide[CHOSEN] = _taken(wide, choice)
            known[CHOSEN] = _taken(known, choice)
        folds = wide.groupby(level="fold").mean()
        if folds.isna().any(axis=None):
            fold, variant = folds.isna().stack().idxmax()
            raise DataError(
                f"study {spec.name}: {metric} of {where}/fold-{fold} is not defined for any "
                f"volume under variant '{variant}'."
            )
        for variant in wide.columns:
            differences = (wide[variant] - wide[spec.baseline]).groupby(level="subject").mean()
            low = high = float("nan")
            idle = variant != CHOSEN and bool(same[variant])
            if variant != spec.baseline and not idle and differences.notna().any():
                interval = bootstrap_interval(differences.dropna().to_numpy(), seed=seed)
                low, high = interval.low, interval.high
            records[variant, metric] = [
                key[0],
                key[1],
                key[2],
                variant,
                metric,
                float(folds[variant].mean()),
                float(folds[variant].std(ddof=1)),
                len(folds),
                int(wide[variant].dropna().index.get_level_values("subject").nunique()),
                float((folds[variant] - folds[spec.baseline]).mean()),
                low,
                high,
                float("nan") if known is None else float(known[variant].mean()),
                _counts(choice, spec) if variant == CHOSEN else "none",
                0 if choice is None or variant == CHOSEN else int((choice == variant).sum()),
                idle,
            ]
    variants = [*spec.variants, *([CHOSEN] if choice is not None else [])]
    return [records[variant, metric] for variant in variants for metric in METRICS]


def _choose(validation: pd.DataFrame, folds: set[Any], spec: StudySpec, where: str) -> pd.Series:
    """The variant of each fold with the best mean validation value, the first of equals."""
    absent = sorted(folds - set(validation["fold"]))
    if absent:
        raise DataError(
            f"study {spec.name}: {where}/fold-{absent[0]} has no validation volumes to choose "
            "a variant by."
        )
    means = _wide(validation, str(spec.select_on), spec, where).groupby(level="fold").mean()
    undefined = means.isna().all(axis=1)
    if undefined.any():
        raise DataError(
            f"study {spec.name}: {spec.select_on} of {where}/fold-{undefined.idxmax()} is not "
            "defined for any validation volume."
        )
    # Rounded, so that float dust does not decide between variants that are the same.
    return means.round(9).idxmax(axis=1)


def _taken(wide: pd.DataFrame, choice: pd.Series) -> np.ndarray:
    """From each row the value of the variant that its fold chose."""
    folds = wide.index.get_level_values("fold")
    places = wide.columns.get_indexer(choice.reindex(folds))
    return wide.to_numpy()[np.arange(len(wide)), places]


def _counts(choice: pd.Series, spec: StudySpec) -> str:
    """``0.84 (3x), 0.6 (2x)``: the most frequent first."""
    counts = choice.value_counts()
    order = sorted(counts.index, key=lambda v: (-counts[v], list(spec.variants).index(v)))
    return ", ".join(f"{spec.variant_label(v)} ({counts[v]}x)" for v in order)


def trained_points(
    metrics: pd.DataFrame,
    trained: Mapping[str, Sequence[str]],
    values: Mapping[str, float],
) -> pd.DataFrame:
    """The second series of :func:`figure_sweep`, from the metrics of trained methods.

    Args:
        metrics: per-volume metrics, as from :func:`uad.report.tables.collect_metrics`.
        trained: for a method of the study, the methods trained with other values (and
            itself, if its own training shall be a point).
        values: the number of each of those methods.

    Returns:
        Columns experiment, method (of the study), test_dataset, metric, value, mean, std
        and n_folds; in percent.
    """
    records = []
    for method, others in trained.items():
        for other in others:
            cells = metrics[metrics["method"] == other]
            if cells.empty:
                raise DataError(f"sweep of {method}: no metrics of {other}.")
            for (experiment, dataset), cell in cells.groupby(["experiment", "test_dataset"]):
                for metric in METRICS:
                    folds = 100 * cell.groupby("fold")[metric].mean()
                    numbers = [float(folds.mean()), float(folds.std(ddof=1)), len(folds)]
                    place = [experiment, method, dataset, metric, float(values[other])]
                    records.append([*place, *numbers])
    names = ["experiment", "method", "test_dataset", "metric", "value", "mean", "std", "n_folds"]
    frame = pd.DataFrame(records, columns=names)
    return frame.sort_values(names[:5], kind="stable", ignore_index=True)


def figure_sweep(
    path: PathLike | Sequence[PathLike],
    summary: pd.DataFrame,
    spec: StudySpec | Mapping[str, Any],
    *,
    phantom: bool,
    baseline_value: float | Mapping[str, float] | None = None,
    trained: pd.DataFrame | None = None,
) -> None:
    """Dice and AUPRC over the number that a study sweeps, a column of panels per test set.

    Args:
        path: where to write, one path or several (``.png`` at 200 dpi, ``.svg``, ``.pdf``).
        summary: from :func:`summarise_study`, or its CSV read again; variants whose names
            are numbers make the lines.
        spec: the study.
        phantom: the data are phantoms; the title says so.
        baseline_value: the number that the baseline has, one for all methods or by method:
            a thin upright line, and the baseline's own value as a ring. Without it the
            baseline's value is a thin level line.
        trained: a second series, from :func:`trained_points`: methods that were trained
            with the number, not only scored with it.

    Raises:
        DataError: no variant of the summary has a number as its name.
    """
    spec = StudySpec.of(spec)
    draw_sweep(
        path,
        summary,
        phantom=phantom,
        title=spec.title,
        value_name=spec.sweep or "value",
        baseline=spec.baseline,
        baseline_value=baseline_value,
        trained=trained,
        labels=spec.labels,
        columns=spec.columns,
    )


# Writing ---------------------------------------------------------------------------------


def write_study(
    summary: pd.DataFrame,
    spec: StudySpec | Mapping[str, Any],
    out_paths: Iterable[PathLike] | Mapping[str, PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
) -> None:
    """Write a study in the formats that the suffixes of ``out_paths`` name.

    Args:
        summary: from :func:`summarise_study`.
        spec: the study.
        out_paths: any of ``.csv`` (long form, four decimals), ``.md``, ``.tex``, ``.html``.
        phantom: the data are phantoms: title and caption say so.
        caption_facts: as for :func:`uad.report.tables.write_table`.
    """
    spec = StudySpec.of(spec)
    facts = checked_facts(caption_facts)
    document = _document(summary, spec, phantom, facts)
    write_all(
        out_paths,
        {
            ".csv": lambda: csv_text(summary[STUDY_COLUMNS]),
            ".md": lambda: markdown(document),
            ".tex": lambda: latex(document),
            ".html": lambda: html_page(document),
        },
    )


def _document(
    summary: pd.DataFrame, spec: StudySpec, phantom: bool, facts: Mapping[str, Any]
) -> Document:
    """Variants down, metrics across, a block per method and test set."""
    validated = bool(summary["validation_mean"].notna().any())
    parts = ["test", "difference [95 % interval]", *(["validation"] if validated else [])]
    rows: list[Row] = []
    blocks = summary.groupby(["method", "experiment", "test_dataset"], sort=False)
    for (method, experiment, dataset), block in blocks:
        rows.append(Row(f"{spec.label(method)}, {spec.column_label((experiment, dataset))}", []))
        for variant, lines in block.groupby("variant", sort=False):
            records = {record.metric: record for record in lines.itertuples(index=False)}
            label = spec.variant_label(variant)
            if variant == CHOSEN:
                label = f"{CHOSEN}: {next(iter(records.values())).chosen}"
            cells = [
                cell
                for metric in METRICS
                for cell in _cells(records[metric], spec.baseline, validated)
            ]
            rows.append(Row(label, cells, apart=variant == CHOSEN))
    return Document(
        name=spec.name,
        title=f"{spec.title} (phantom data)" if phantom else spec.title,
        caption=_caption(summary, spec, facts),
        warning=PHANTOM_WARNING if phantom else "",
        corner="Variant",
        heads=[(head, part) for head in METRICS.values() for part in parts],
        rows=rows,
        footnotes=_footnotes(summary, spec, facts),
        panel=6,
    )


def _cells(record: Any, baseline: str, validated: bool) -> list[Cell]:
    """Test value, difference with its interval, and validation value of one variant."""
    difference = Cell("–")
    if record.variant != baseline and record.same_as_baseline:
        difference = Cell(NO_EFFECT)
    elif record.variant != baseline:
        text, clear = signed(record.difference), False
        if not np.isnan(record.ci_low):
            text += f" [{signed(record.ci_low)}, {signed(record.ci_high)}]"
            clear = record.n_volumes >= FEW_VOLUMES and (record.ci_low > 0 or record.ci_high < 0)
        difference = Cell(text, rank=int(clear))
    known = record.validation_mean
    validation = Cell("–" if np.isnan(known) else f"{known:.2f}")
    return [Cell(mean_std(record.mean, record.std)), difference, *([validation] * validated)]


def _caption(summary: pd.DataFrame, spec: StudySpec, facts: Mapping[str, Any]) -> list[str]:
    sizes = []
    for place, part in summary.groupby(["experiment", "test_dataset"], sort=False):
        volumes, folds = span(part["n_volumes"], "test volume"), span(part["n_folds"], "fold")
        sizes.append(f"{spec.column_label(place)}: {volumes}, {folds}")
    spread = "Mean ± sample standard deviation over folds of the mean over test volumes."
    return [
        f"Data: {str(facts['data_source']).rstrip('.')}.",
        f"{'; '.join(sizes)}. Seed {facts['seed']}.",
        "The same reconstructions scored in other ways; nothing was trained for a variant, and "
        "each variant has its own threshold from the validation set.",
        spread
        if (summary["n_folds"] > 1).any()
        else "Mean over the test volumes of one fold, hence no standard deviation.",
    ]


def _footnotes(summary: pd.DataFrame, spec: StudySpec, facts: Mapping[str, Any]) -> list[str]:
    notes = [
        f"Differences are to '{spec.variant_label(spec.baseline)}', in percentage points: mean "
        "over folds of the paired differences. In brackets the 95 % bootstrap interval over test "
        "volumes (one with an interval without 0 is bold); it is not corrected for the number of "
        "variants, and does not know of the spread between trainings."
    ]
    if spec.select_on:
        name = METRICS[spec.select_on].split()[0]
        notes.append(
            f"'{CHOSEN}' takes, in each fold, the variant with the best mean {name} on the "
            "unhealthy validation set, and its value on the test set. To pick the best variant "
            "of this table would be to choose on the test set."
        )
    if (summary["same_as_baseline"] & (summary["variant"] != spec.baseline)).any():
        notes.append(
            f"'{NO_EFFECT}': the variant changes nothing for this method, because the method does "
            "not use what it sets or is configured with the same value. Its numbers are the "
            "baseline's."
        )
    if (summary["n_volumes"] < FEW_VOLUMES).any():
        notes.append(
            f"Intervals of fewer than {FEW_VOLUMES} volumes are too narrow to rely on, and are "
            "never bold; a single volume has none."
        )
    return [*notes, *map(str, facts["notes"])]
