"""What variants of scoring and post-processing change, on the same reconstructions.

No method, data set or variant is named here: a study is a :class:`StudySpec` from the
config, the numbers are data frames of per-volume metrics. Everything is in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError
from uad.evaluate import bootstrap_interval
from uad.report.metric_files import CELL, METRICS, fold_means, short
from uad.report.render import (
    NOTHING,
    Cell,
    Document,
    PathLike,
    Row,
    mean_std,
    signed,
    write_document,
)
from uad.report.table_spec import StudySpec
from uad.report.tables import sizes

#: The variant that takes, in each fold, the one that is best on the validation set.
CHOSEN = "chosen on validation"
#: In place of the difference of a variant that changes nothing for a method.
NO_EFFECT = "does not apply"
#: A bootstrap of fewer volumes than this gives intervals that are too narrow.
FEW_VOLUMES = 10
TEST = "test"
STUDY_COLUMNS = (
    "experiment method test_dataset variant metric mean std n_folds n_volumes difference ci_low "
    "ci_high validation_mean chosen n_chosen same_as_baseline"
).split()
_PLACE = ["experiment", "method", "test_dataset"]


def summarise_study(volumes: pd.DataFrame, spec: StudySpec, *, seed: int = 0) -> pd.DataFrame:
    """Every variant of every method on every test set, and its difference to the baseline.

    A fold's value is the mean over its test volumes, as in the tables. The difference is
    the mean over folds of the paired fold differences. Its 95 % interval is a bootstrap
    over volumes of the paired differences, averaged beforehand over the folds that test
    the same volume; it is not corrected for the number of variants.

    The volumes are those of :func:`uad.evaluate.rescore`, of each cell and variant.

    Returns:
        A frame in long form with :data:`STUDY_COLUMNS`, in percent and percentage points.
        With ``select_on`` the variant :data:`CHOSEN` takes, in each fold, the variant with
        the best mean validation value (the first of equals): ``chosen``, ``n_chosen``.
        A variant that is ``same_as_baseline`` for a method was not measured: no interval.

    Raises:
        DataError: there are no validation volumes to choose a variant by, or a metric is not
            defined for any volume of a fold.
    """
    volumes = volumes.astype({"variant": str, "subject": str})
    cells = dict(iter(volumes[volumes["variant"].isin(spec.variants)].groupby(_PLACE)))
    places = [(e, method, test) for method in spec.methods for e, test in spec.places]
    parts = [_summarise_cell(cells[p], spec, p, seed) for p in places if p in cells]
    return pd.concat(parts, ignore_index=True)[STUDY_COLUMNS]


def _summarise_cell(
    cell: pd.DataFrame, spec: StudySpec, place: tuple[str, str, str], seed: int
) -> pd.DataFrame:
    """The summary of one method on one test set, variant by variant."""
    where = f"study {spec.name}: {'/'.join(place)}"
    is_test = cell["role"] == TEST
    test, known = _wide(cell[is_test], spec), _wide(cell[~is_test], spec)
    known = known.groupby("fold").mean()
    choice = pd.Series(dtype=str)
    if spec.select_on:
        choice = _choose(known[spec.select_on], test, where)
        test, known = _with_chosen(test, choice), _with_chosen(known, choice)
    folds = test.groupby("fold").mean()
    if folds.isna().any(axis=None):
        fold, metric, variant = folds.isna().stack([0, 1]).idxmax()
        raise DataError(
            f"{where}/fold-{fold}: {metric} is not defined for any volume under variant "
            f"'{variant}'."
        )
    counts = choice.value_counts()
    order = sorted(counts.index, key=lambda v: (-counts[v], spec.variants.index(v)))
    chosen = {CHOSEN: ", ".join(f"{variant} ({counts[variant]}x)" for variant in order)}
    same = cell[is_test].groupby("variant")["same_as_baseline"].all()
    summary = pd.DataFrame(
        {
            "mean": folds.mean(),
            "std": folds.std(ddof=1),
            "n_folds": len(folds),
            "n_volumes": test.groupby("subject").count().gt(0).sum(),
            "difference": _to_baseline(folds, spec).mean(),
            "validation_mean": known.mean().astype(float),
        }
    )
    # variant by variant, its metrics below each other
    lines = [(m, v) for v in [*spec.variants, CHOSEN] for m in METRICS if (m, v) in summary.index]
    summary = summary.loc[lines].rename_axis(["metric", "variant"]).reset_index()
    variants = summary["variant"]
    summary["chosen"] = [chosen.get(variant, "none") for variant in variants]
    summary["n_chosen"] = [int(counts.get(variant, 0)) for variant in variants]
    summary["same_as_baseline"] = [bool(same.get(variant, False)) for variant in variants]
    pairs = _to_baseline(test, spec).groupby("subject").mean()
    measured = ~summary["same_as_baseline"] & (variants != spec.baseline)
    limits = [
        bootstrap_interval(pairs[column].dropna().to_numpy(), seed=seed)[1:]
        if is_measured and pairs[column].notna().any()
        else (np.nan, np.nan)
        for column, is_measured in zip(lines, measured, strict=True)
    ]
    summary[["ci_low", "ci_high"]] = np.array(limits, float)
    return summary.assign(**dict(zip(_PLACE, place, strict=True)))


def _wide(part: pd.DataFrame, spec: StudySpec) -> pd.DataFrame:
    """A column per metric and variant, one row per fold and volume, all in percent."""
    wide = part.pivot(index=["fold", "subject"], columns="variant", values=[*METRICS])
    columns = pd.MultiIndex.from_product([METRICS, spec.variants])
    return wide.reindex(columns=columns).astype(float).sort_index() * 100


def _to_baseline(frame: pd.DataFrame, spec: StudySpec) -> pd.DataFrame:
    parts = {m: frame[m].sub(frame[m, spec.baseline], axis=0) for m in METRICS}
    return pd.concat(parts, axis=1)


def _choose(means: pd.DataFrame, test: pd.DataFrame, where: str) -> pd.Series:
    """The variant of each fold with the best mean validation value, the first of equals."""
    means = means.reindex(test.index.unique("fold"))
    undefined = means.isna().all(axis=1)
    if undefined.any():
        raise DataError(
            f"{where}/fold-{undefined.idxmax()} has no validation volumes to choose a variant by, "
            "or the metric is not defined for any of them."
        )
    # Rounded, so that float dust does not decide between variants that are the same.
    return means.round(9).idxmax(axis=1)


def _with_chosen(frame: pd.DataFrame, choice: pd.Series) -> pd.DataFrame:
    """From each row the value of the variant that its fold chose, as a further variant."""
    chosen = frame.index.get_level_values("fold").map(choice)
    for metric in METRICS:
        values, places = frame[metric], frame[metric].columns.get_indexer(chosen)
        frame[metric, CHOSEN] = values.to_numpy()[np.arange(len(frame)), places]
    return frame


def trained_points(
    metrics: pd.DataFrame, trained: Mapping[str, Sequence[str]], values: Mapping[str, float]
) -> pd.DataFrame:
    """Points of methods that were trained, not only scored, with other values of a sweep.

    ``trained`` has, for a method of the study, the methods trained with other values (and
    itself, if its own training shall be a point), ``values`` the number of each of those.
    """
    columns = ["experiment", "method", "test_dataset", "metric", "value", "mean", "std", "n_folds"]
    parts = [pd.DataFrame(columns=columns)]
    for method, others in trained.items():
        for other in others:
            cells = metrics[metrics["method"] == other]
            found = fold_means(cells).groupby(CELL).agg(["mean", "std", "size"]).reset_index()
            found = found.rename(columns={"size": "n_folds"})
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
    seed: int,
    notes: Iterable[str] = (),
) -> None:
    """Write a study, as :func:`uad.report.tables.write_table` does a table."""
    parts = ["test", "difference [95 % interval]", "validation"]
    document = Document.of(
        "study",
        phantom=phantom,
        notes=notes,
        table={
            "name": spec.name,
            "corner": "Variant",
            "heads": [(head, part) for head in METRICS.values() for part in parts],
            "rows": _rows(summary, spec),
            "panel": 6,
        },
        spec=spec,
        seed=seed,
        sizes=sizes(summary, spec),
        select_on=spec.select_on and short(spec.select_on),
        chosen=CHOSEN,
        no_effect=NO_EFFECT,
        few=FEW_VOLUMES,
    )
    write_document(out_paths, document, summary[STUDY_COLUMNS])


def _rows(summary: pd.DataFrame, spec: StudySpec) -> list[Row]:
    """Variants down, metrics across, a block per method and test set."""
    rows: list[Row] = []
    for (experiment, method, test), block in summary.groupby(_PLACE, sort=False):
        rows.append(Row(f"{spec.labels[method]}, {spec.places[experiment, test]}"))
        for variant, lines in block.groupby("variant", sort=False):
            records = lines.set_index("metric").loc[[*METRICS]]
            label = f"{CHOSEN}: {records['chosen'].iloc[0]}" if variant == CHOSEN else variant
            cells: list[Cell] = []
            for record in records.itertuples(index=False):
                known = mean_std(record.validation_mean, np.nan) or NOTHING
                cells += [Cell(mean_std(record.mean, record.std)), _difference(record, spec)]
                cells.append(Cell(known))
            rows.append(Row(label, cells, apart=variant == CHOSEN))
    return rows


def _difference(record: Any, spec: StudySpec) -> Cell:
    """The difference to the baseline with its interval, bold where that has no 0."""
    if record.variant == spec.baseline or record.same_as_baseline:
        return Cell(NOTHING if record.variant == spec.baseline else NO_EFFECT)
    text = signed(record.difference)
    if np.isnan(record.ci_low):
        return Cell(text)
    clear = record.n_volumes >= FEW_VOLUMES and (record.ci_low > 0 or record.ci_high < 0)
    return Cell(f"{text} [{signed(record.ci_low)}, {signed(record.ci_high)}]", rank=int(clear))
