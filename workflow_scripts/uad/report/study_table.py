"""What variants of scoring and post-processing change, on the same reconstructions.

No method, data set or variant is named here: a study is a :class:`StudySpec` from the
config, the numbers are data frames of per-volume metrics. Everything is in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError
from uad.evaluate import bootstrap_interval
from uad.report.metric_files import METRICS, check_columns, check_unique
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    csv_text,
    data_and_seed,
    mean_std,
    signed,
    span,
    titled,
    write_document,
)
from uad.report.tables import spread

#: The variant that takes, in each fold, the one that is best on the validation set.
CHOSEN = "chosen on validation"
#: In place of the difference of a variant that changes nothing for a method.
NO_EFFECT = "does not apply"
#: A bootstrap of fewer volumes than this gives intervals that are too narrow.
FEW_VOLUMES = 10
VALIDATION, TEST = "val_unhealthy", "test"
STUDY_COLUMNS = (
    "experiment method test_dataset variant metric mean std n_folds n_volumes difference ci_low "
    "ci_high validation_mean chosen n_chosen same_as_baseline"
).split()
_PHANTOM_WARNING = (
    "These numbers come from phantom data: they show that the study runs, and say nothing about "
    "the variants on real scans."
)
_KEYS = ["experiment", "method", "fold", "test_dataset", "variant", "role", "subject"]


@dataclass(frozen=True)
class StudySpec:
    """What a study compares; the config has checked it.

    Attributes:
        name: its key.
        title: a line without a full stop.
        baseline: the variant that the others are compared with.
        variants: names in the order in which they are shown.
        labels: display names of methods, in the order in which they are shown.
        columns: test sets in order, each with ``experiment``, ``test`` and ``label``.
        select_on: the metric whose validation value chooses a variant, or None.
        sweep: the name of the number that the variants sweep, or None.
    """

    name: str
    title: str
    baseline: str
    variants: Sequence[str]
    labels: Mapping[str, str]
    columns: Sequence[Mapping[str, Any]]
    select_on: str | None = None
    sweep: str | None = None

    @property
    def places(self) -> dict[tuple[str, str], str]:
        """Display names of test sets by (experiment, test_dataset), in order."""
        return {
            (c["experiment"], c["test"]): c.get("label") or f"{c['test']} ({c['experiment']})"
            for c in self.columns
        }


# Summarising -----------------------------------------------------------------------------


def summarise_study(volumes: pd.DataFrame, spec: StudySpec, *, seed: int = 0) -> pd.DataFrame:
    """Every variant of every method on every test set, and its difference to the baseline.

    A fold's value is the mean over its test volumes, as in the tables. The difference is
    the mean over folds of the paired fold differences. Its 95 % interval is a bootstrap
    over volumes of the paired differences, averaged beforehand over the folds that test
    the same volume; it is not corrected for the number of variants.

    Args:
        volumes: one row per volume and variant, with the columns experiment, method, fold,
            test_dataset, variant, role (``test`` or ``val_unhealthy``), subject, dice and
            auprc (in [0, 1]); ``same_as_baseline``, as from :func:`uad.evaluate.rescore`,
            is read where it is there.
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
    volumes = _checked(volumes, spec)
    cells = dict(iter(volumes.groupby(["experiment", "method", "test_dataset"])))
    parts = [
        _summarise_cell(cells[place], spec, place, seed)
        for method in spec.labels
        for experiment, test in spec.places
        if (place := (experiment, method, test)) in cells
    ]
    return pd.concat(parts, ignore_index=True)[STUDY_COLUMNS]


def _checked(volumes: pd.DataFrame, spec: StudySpec) -> pd.DataFrame:
    """Refuse rows that would give wrong numbers."""
    where = f"study {spec.name}"
    check_columns(volumes, [*_KEYS, *METRICS], where)
    texts = {column: volumes[column].astype(str) for column in ("variant", "subject")}
    volumes = volumes.assign(**texts)
    idle = volumes["variant"] == spec.baseline
    volumes["same_as_baseline"] = volumes.get("same_as_baseline", idle)
    unknown = sorted(set(volumes["role"]) - {VALIDATION, TEST})
    if unknown:
        raise DataError(f"{where}: unknown role {', '.join(map(str, unknown))}.")
    check_unique(volumes, _KEYS, where)
    for metric in METRICS:
        values = pd.to_numeric(volumes[metric], errors="coerce")
        if ((values < 0) | (values > 1)).any():
            raise DataError(f"{where}: a {metric} is outside 0 to 1.")
    return volumes[volumes["variant"].isin(spec.variants)]


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


def _summarise_cell(
    cell: pd.DataFrame, spec: StudySpec, place: tuple[str, str, str], seed: int
) -> pd.DataFrame:
    """The summary of one method on one test set, variant by variant."""
    where = "/".join(place)
    test = cell[cell["role"] == TEST]
    validation = cell[cell["role"] == VALIDATION]
    if test.empty:
        raise DataError(f"study {spec.name}: {where} has no test volumes.")
    choice = _choose(validation, set(test["fold"]), spec, where) if spec.select_on else None
    parts = []
    for metric in METRICS:
        wide = _wide(test, metric, spec, where)
        known = pd.DataFrame(columns=wide.columns)
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
        parts.append(
            pd.DataFrame(
                {
                    "metric": metric,
                    "mean": folds.mean(),
                    "std": folds.std(ddof=1),
                    "n_folds": len(folds),
                    "n_volumes": wide.groupby(level="subject").count().gt(0).sum(),
                    "difference": folds.sub(folds[spec.baseline], axis=0).mean(),
                    "validation_mean": known.mean().astype(float),
                }
            ).join(_intervals(wide, test, spec, seed))
        )
    # variant by variant, its metrics below each other
    summary = pd.concat(parts).rename_axis("variant").reset_index()
    order = [*spec.variants, CHOSEN]
    summary = summary.sort_values("variant", key=lambda v: v.map(order.index), kind="stable")
    taken = summary["variant"] == CHOSEN
    summary["chosen"] = "none"
    summary["n_chosen"] = 0
    if choice is not None:
        summary.loc[taken, "chosen"] = _counts(choice, spec)
        counts = choice.value_counts()
        summary["n_chosen"] = summary["variant"].map(counts).fillna(0).astype(int)
    return summary.assign(experiment=place[0], method=place[1], test_dataset=place[2])


def _intervals(wide: pd.DataFrame, test: pd.DataFrame, spec: StudySpec, seed: int) -> pd.DataFrame:
    """Limits of the difference to the baseline, by variant; none where it was not measured."""
    same = test.groupby("variant")["same_as_baseline"].all()
    records = {}
    for variant in wide.columns:
        idle = variant != CHOSEN and bool(same[variant])
        low = high = float("nan")
        pairs = (wide[variant] - wide[spec.baseline]).groupby(level="subject").mean().dropna()
        if variant != spec.baseline and not idle and len(pairs):
            interval = bootstrap_interval(pairs.to_numpy(), seed=seed)
            low, high = interval.low, interval.high
        records[variant] = {"ci_low": low, "ci_high": high, "same_as_baseline": idle}
    return pd.DataFrame(records).T.astype(
        {"ci_low": float, "ci_high": float, "same_as_baseline": bool}
    )


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
    return ", ".join(f"{variant} ({counts[variant]}x)" for variant in order)


def trained_points(
    metrics: pd.DataFrame,
    trained: Mapping[str, Sequence[str]],
    values: Mapping[str, float],
) -> pd.DataFrame:
    """Points of methods that were trained, not only scored, with other values of a sweep.

    Args:
        metrics: per-volume metrics, as from :func:`uad.report.metric_files.collect_metrics`.
        trained: for a method of the study, the methods trained with other values (and
            itself, if its own training shall be a point).
        values: the number of each of those methods.

    Returns:
        Columns experiment, method (of the study), test_dataset, metric, value, mean, std
        and n_folds; in percent.
    """
    place = ["experiment", "test_dataset", "metric"]
    columns = ["experiment", "method", "test_dataset", "metric", "value", "mean", "std", "n_folds"]
    parts = [pd.DataFrame(columns=columns)]
    for method, others in trained.items():
        for other in others:
            cells = metrics[metrics["method"] == other]
            if cells.empty:
                raise DataError(f"sweep of {method}: no metrics of {other}.")
            folds = 100 * cells.groupby(["experiment", "test_dataset", "fold"])[[*METRICS]].mean()
            folds = folds.rename_axis(columns="metric").stack()
            found = folds.groupby(place).agg([pd.Series.mean, pd.Series.std, len]).reset_index()
            found = found.rename(columns={"len": "n_folds"})
            parts.append(found.assign(method=method, value=float(values[other])))
    frame = pd.concat(parts[1:] or parts, ignore_index=True)[columns]
    return frame.sort_values(columns[:5], kind="stable", ignore_index=True)


# Showing ---------------------------------------------------------------------------------


def write_study(
    summary: pd.DataFrame,
    spec: StudySpec,
    out_paths: Iterable[PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
) -> None:
    """Write a study, as :func:`uad.report.tables.write_table` does a table."""
    validated = bool(summary["validation_mean"].notna().any())
    parts = ["test", "difference [95 % interval]", *["validation"] * validated]
    data, seed = data_and_seed(caption_facts)
    document = Document(
        name=spec.name,
        title=titled(spec.title, phantom),
        caption=[
            data,
            f"{_sizes(summary, spec)} {seed}",
            "The same reconstructions scored in other ways; nothing was trained for a variant, and "
            "each variant has its own threshold from the validation set.",
            spread(summary),
        ],
        warning=_PHANTOM_WARNING if phantom else "",
        corner="Variant",
        heads=[(head, part) for head in METRICS.values() for part in parts],
        rows=_rows(summary, spec, validated),
        footnotes=[*_footnotes(summary, spec), *caption_facts.get("notes", ())],
        panel=6,
    )
    write_document(out_paths, document, csv_text(summary[STUDY_COLUMNS]))


def _rows(summary: pd.DataFrame, spec: StudySpec, validated: bool) -> list[Row]:
    """Variants down, metrics across, a block per method and test set."""
    rows: list[Row] = []
    blocks = summary.groupby(["method", "experiment", "test_dataset"], sort=False)
    for (method, experiment, dataset), block in blocks:
        place = spec.places[experiment, dataset]
        rows.append(Row(f"{spec.labels[method]}, {place}", []))
        for variant, lines in block.groupby("variant", sort=False):
            records = lines.set_index("metric").loc[[*METRICS]]
            label = f"{CHOSEN}: {records['chosen'].iloc[0]}" if variant == CHOSEN else variant
            cells = [
                cell
                for record in records.itertuples(index=False)
                for cell in _cells(record, spec.baseline, validated)
            ]
            rows.append(Row(label, cells, apart=variant == CHOSEN))
    return rows


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


def _sizes(summary: pd.DataFrame, spec: StudySpec) -> str:
    sizes = []
    for place, part in summary.groupby(["experiment", "test_dataset"], sort=False):
        volumes, folds = span(part["n_volumes"], "test volume"), span(part["n_folds"], "fold")
        sizes.append(f"{spec.places[place]}: {volumes}, {folds}")
    return f"{'; '.join(sizes)}."


def _footnotes(summary: pd.DataFrame, spec: StudySpec) -> list[str]:
    notes = [
        f"Differences are to '{spec.baseline}', in percentage points: mean "
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
    return notes
