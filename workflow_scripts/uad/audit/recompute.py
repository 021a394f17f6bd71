"""Numbers computed again from what they were made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from uad.air import air_statistics
from uad.audit.compare_contents import leaves
from uad.audit.leaks import BOTH_AGAIN, CONTRADICTION, SPLIT_AGAIN
from uad.audit.tree import AuditedTree, participants_key
from uad.core.errors import DataError
from uad.core.files import read_json
from uad.core.records import REPOSITORY, Record, is_temporary
from uad.preprocess.slices import names_in, read_lesion, read_store, read_volumes
from uad.splits import cross_dataset, intra_dataset, subjects_of

#: How far computed numbers may be from stored ones: relative, for means of float32 intensities.
CLOSE = 1e-9
#: Tables have four decimals.
ROUNDED = 0.5e-4 + 1e-9
METRICS = ("dice", "auprc")
#: Columns that name a cell of a table of methods.
CELL = ["row", "experiment", "test_dataset", "metric"]
#: Columns of such a table that are computed again.
DSSIM = "mean_healthy_dssim"
NUMBERS = "mean std n_folds n_volumes published_mean published_std difference".split()
PUBLISHED = f"{REPOSITORY}resources/published/tables.csv"
_AGAIN = "Delete it together with its record and run the workflow again."


def _fail(tree: AuditedTree, name: str, why: str) -> None:
    tree.fail(name, "recomputation", why, _AGAIN)


def splits(tree: AuditedTree) -> None:
    """Splits of our own are what their participants, sizes and seed give."""
    for record in tree.of_rule("make_splits"):
        name, experiment = record.outputs[0].key, record.params["experiment"]
        if experiment["setting"] != "intra" and record.params["splits"]["kind"] != "clean":
            continue
        names = list(dict.fromkeys([experiment["train"], *experiment["test"]]))
        tables = [participants_key(dataset) for dataset in names]
        if not tree.ready(f"recomputation of {name}", name, *tables):
            continue
        tree.checks["splits recomputed"] += 1
        people = {n: tree.table(t) for n, t in zip(names, tables, strict=True)}
        people = {n: t[t["modality"] == experiment["modality"]] for n, t in people.items()}
        columns = ["dataset", "subject", "role", "weight"]
        wanted = _split(record, people)[columns].astype(str).to_numpy().tolist()
        there = tree.table(name)[columns].astype(str).to_numpy().tolist()
        if there != wanted:
            strange = [row for row in there if row not in wanted] or there
            why = (
                "It is not the split that its participants, sizes and seed give: computed again, "
                f"{' '.join(strange[0])} is not in it as it stands."
            )
            tree.fail(name, "recomputation", why, SPLIT_AGAIN)


def _split(record: Record, people: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    experiment, options = record.params["experiment"], dict(record.params["splits"])
    kind = options.pop("kind")
    healthy = experiment["train"], people[experiment["train"]]
    place = int(record.wildcards["fold"]), experiment["folds"]
    if experiment["setting"] == "intra":
        return intra_dataset(*healthy, *place, kind=kind, **options)
    tested = {test: people[test] for test in experiment["test"]}
    return cross_dataset(healthy, tested, *place, **options)


def air(tree: AuditedTree) -> None:
    """AIR again, from the slice stores."""
    for record in tree.of_rule("compute_air"):
        name, params = record.outputs[0].key, record.params
        split, *stores = (entry.key for entry in record.inputs)
        if not tree.ready(f"recomputation of {name}", name, split, *stores):
            continue
        tree.checks["AIR recomputed"] += 1
        table, asked = tree.table(split), (params["modality"], params["reference"], params["rule"])
        try:
            volumes = {
                test: read_store(tree.path(store), subjects_of(table, test, "val_unhealthy"))
                for test, store in zip(params["tests"], stores, strict=True)
            }
            wanted = air_statistics(volumes, *asked)
        except DataError as error:
            _fail(tree, name, f"It cannot follow: {error}")
            continue
        stored = dict(leaves(read_json(tree.path(name))))
        for place, value in leaves(wanted):
            there = stored.get(place, "missing")
            numbers = isinstance(value, float) and isinstance(there, int | float)
            if there != value and not (
                numbers and math.isclose(there, value, rel_tol=CLOSE, abs_tol=CLOSE)
            ):
                why = f"{place} is {there}, computed again it is {value}, from {', '.join(stores)}."
                tree.fail(name, CONTRADICTION, why, BOTH_AGAIN)
                break


def thresholds(tree: AuditedTree) -> None:
    """The Dice of a threshold, where the anomaly maps were kept."""
    for record in tree.of_rule("search_threshold"):
        name = record.outputs[0].key
        maps, store = (entry.key for entry in record.inputs)
        if tree.digest(maps) is None and is_temporary(maps) and not tree.omitted(maps):
            tree.notes.add(
                "The Dice of thresholds was not computed again: anomaly maps are deleted after use "
                "(run.keep_reconstructions)."
            )
            continue
        if not tree.ready(f"recomputation of {name}", name, maps, store):
            continue
        tree.checks["thresholds recomputed"] += 1
        stored = read_json(tree.path(name))
        hits = both = 0
        for label, scores in read_volumes(tree.path(maps), "val_unhealthy/").items():
            above = scores > scores.dtype.type(stored["threshold"])
            lesion = read_lesion(tree.path(store), label.split("/")[1])
            hits += int(np.count_nonzero(above & lesion))
            both += int(np.count_nonzero(above)) + int(np.count_nonzero(lesion))
        dice = 2 * hits / both if both else 0.0
        there = [label.split("/")[1] for label in names_in(tree.path(maps), "val_unhealthy/")]
        if not math.isclose(dice, stored["dice"], rel_tol=CLOSE) or there != stored["subjects"]:
            why = f"Its threshold gives a Dice of {dice:.6f} on the validation maps of {maps}, it "
            _fail(tree, name, f"{why}says {stored['dice']:.6f}.")


def metrics(tree: AuditedTree) -> None:
    """What metrics say of threshold and volumes, from the threshold file and the slice store."""
    sizes = cache(lambda store, subject: _sizes(tree, store, subject))
    for record in tree.of_rule("evaluate_volumes"):
        name = record.outputs[0].key
        _, store, threshold = (entry.key for entry in record.inputs)
        if not tree.ready(f"recomputation of {name}", name, store, threshold):
            continue
        tree.checks["metrics against store and threshold"] += 1
        value = read_json(tree.path(threshold))["threshold"]
        for row in tree.table(name).itertuples(index=False):
            if not math.isclose(row.threshold, value, rel_tol=CLOSE):
                why = f"{row.subject} was judged at {row.threshold}, {threshold} says {value}."
                _fail(tree, name, why)
            lesion, brain, prevalence = sizes(store, row.subject)
            said = (row.lesion_voxels, row.brain_voxels)
            same = math.isclose(row.prevalence, prevalence, rel_tol=CLOSE)
            if said != (lesion, brain) or not same:
                why = (
                    f"It says that {row.subject} has {said[0]} lesion and {said[1]} brain voxels, "
                    f"{store} has {lesion} and {brain}."
                )
                tree.fail(name, CONTRADICTION, why, BOTH_AGAIN)
            if problem := next(_contradictions(row, record.params.get("voxel_mm")), None):
                _fail(tree, name, f"{row.subject}: {problem}.")


def _sizes(tree: AuditedTree, store: str, subject: str) -> tuple[int, int, float]:
    """Voxels of lesion and brain, and the share of the lesion."""
    try:
        part = read_store(tree.path(store), [subject])
    except DataError:
        return 0, 0, math.nan
    lesion, brain = (int(np.count_nonzero(a)) for a in (part.lesions[0], part.masks[0]))
    return lesion, brain, lesion / part.lesions[0].size


def _contradictions(row: Any, voxel_mm: Sequence[float] | None) -> Iterator[str]:
    """Metrics of a volume that its voxels do not allow, or do not give.

    With A predicted and B annotated voxels a Dice is 2k / (A + B), where k voxels are in both.
    """
    predicted, lesion = row.predicted_voxels, row.lesion_voxels
    both, undefined = predicted + lesion, math.isnan(row.dice)
    if undefined != (both == 0):
        yield "its Dice does not fit its voxels"
        return
    hits = 0.0 if undefined else row.dice * both / 2
    whole = math.isclose(hits, round(hits), abs_tol=1e-6)
    if not whole or not 0 <= round(hits) <= min(predicted, lesion):
        yield (
            f"no overlap of {predicted} predicted and {lesion} lesion voxels has a Dice of "
            f"{row.dice}"
        )
    hits = round(hits)
    derived = {"precision": (hits, predicted), "recall": (hits, lesion)}
    if voxel_mm:
        size = math.prod(voxel_mm) / 1000
        derived["false_positive_ml"] = (predicted - hits) * size, 1
        derived["volume_difference_ml"] = (predicted - lesion) * size, 1
    for name, (part, total) in derived.items():
        said = getattr(row, name, math.nan)  # older runs have none of them
        if total and not math.isnan(said) and not math.isclose(said, part / total, abs_tol=1e-6):
            yield f"its {name} is {said}, its voxels and its Dice give {part / total:g}"


# Tables --------------------------------------------------------------------------------------


def cells_of(frames: Iterable[pd.DataFrame], metrics: Iterable[str] = METRICS) -> pd.DataFrame:
    """Cells of tables, from the metrics of volumes; not by the code that makes the tables.

    Returns:
        ``mean`` and ``std`` over folds of the means over volumes with a value, in percent,
        ``n_folds`` and ``n_volumes`` (different subjects with a value), by row, experiment, test
        set, metric.
    """
    place = ["method", "experiment", "test_dataset", "fold", "subject"]
    table = pd.concat([frame[[*place, *metrics]] for frame in frames], ignore_index=True)
    long = table.melt(place, var_name="metric").dropna(subset="value")
    long = long.rename(columns={"method": "row"})
    folds = long.groupby([*CELL, "fold"])["value"].mean().mul(100)
    cells = folds.groupby(CELL).agg(mean="mean", std="std", n_folds="count")
    return cells.assign(n_volumes=long.groupby(CELL)["subject"].nunique())


def tables(tree: AuditedTree) -> None:
    """Every cell of the tables of methods, from the metrics of the volumes.

    Also of a table whose bytes were found to be others: then the cells are named.
    """
    for record in tree.of_rule("make_table"):
        sources, readiness = (_inputs(record, folder) for folder in ("metrics/", "readiness/"))
        name = next(entry.key for entry in record.outputs if entry.key.endswith(".csv"))
        needed = [*sources, *readiness]
        if tree.digest(name) is None or not tree.ready(f"recomputation of {name}", *needed):
            continue
        try:
            said = pd.read_csv(tree.path(name)).set_index(CELL, verify_integrity=True)
            said = said.reindex(columns=[*NUMBERS, DSSIM]).apply(pd.to_numeric, errors="coerce")
        except (ValueError, KeyError) as error:
            _fail(tree, name, f"It is no table of cells: {error}.")
            continue
        spec = record.params["table"]
        columns = [(column["experiment"], column["test"]) for column in spec["columns"]]
        listed = {(row, *c, metric) for row in spec["rows"] for c in columns for metric in METRICS}
        tree.checks["table cells recomputed"] += len(listed)
        for cell in sorted(listed ^ set(said.index)):
            what = "is missing" if cell in listed else "is none of this table"
            _fail(tree, name, f"Cell {'/'.join(cell)} {what}.")
        shared = sorted(listed & set(said.index))
        wanted = cells_of(map(tree.table, sources)).reindex(shared)
        _compare_cells(tree, name, said, wanted.assign(**{DSSIM: _dssim(tree, readiness, wanted)}))
        published = _published(tree, record)
        if published is not None:
            tree.checks["published values of tables"] += len(shared)
            known = published.reindex(shared)
            apart = math.nan if record.params.get("phantom") else said["mean"] - known["mean"]
            known = known.set_axis(["published_mean", "published_std"], axis=1)
            _compare_cells(tree, name, said, known.assign(difference=apart), 2 * ROUNDED)


def _inputs(record: Record, folder: str) -> list[str]:
    return [entry.key for entry in record.inputs if entry.key.startswith(folder)]


def _dssim(tree: AuditedTree, sources: Iterable[str], cells: pd.DataFrame) -> list[float]:
    """The healthy DSSIM of each cell: mean over the folds of that of the test volumes."""
    folds: dict[tuple[str, ...], list[float]] = {}
    for content in (read_json(tree.path(source)) for source in sources):
        place = content["method"], content["experiment"], content["test_dataset"]
        folds.setdefault(place, []).append(content["roles"].get("test", {}).get("dssim"))
    return [pd.Series(folds.get(cell[:3], []), dtype=float).mean() for cell in cells.index]


def metrics_tables(tree: AuditedTree) -> None:
    """The tables of all metrics, as far as they are about whole test sets; they have six digits."""
    for record in tree.of_rule("make_metrics_table"):
        name, sources = record.outputs[0].key, _inputs(record, "metrics/")
        if tree.digest(name) is None or not tree.ready(f"recomputation of {name}", *sources):
            continue
        said = pd.read_csv(tree.path(name))
        said = said[said["strata"] == "all volumes"].set_index(CELL)
        wanted = cells_of(map(tree.table, sources), said.index.unique("metric")).reindex(said.index)
        wanted[["mean", "std"]] /= 100  # in the units of the metrics
        tree.checks["cells of all metrics recomputed"] += len(said)
        _compare_cells(tree, name, said, wanted, 1e-5 * wanted.abs().fillna(0) + 1e-9)


def _compare_cells(
    tree: AuditedTree,
    name: str,
    said: pd.DataFrame,
    wanted: pd.DataFrame,
    close: float | pd.DataFrame = ROUNDED,
) -> None:
    there = said.reindex(index=wanted.index, columns=wanted.columns).astype(float)
    counts = {column: 0 for column in wanted if column.startswith("n_")}
    should = wanted.astype(float).fillna(counts)
    wrong = ~((there - should).abs() <= close) & ~(there.isna() & should.isna())
    for *cell, column in wrong.stack().loc[lambda found: found].index:
        value, right = there.loc[tuple(cell), column], should.loc[tuple(cell), column]
        why = f"Cell {'/'.join(cell)}: {column} is {value:g}, it should be {right:.4f}."
        _fail(tree, name, why)


def _published(tree: AuditedTree, record: Record) -> pd.DataFrame | None:
    """Published mean and std by cell: that of the same table, else the first of any other."""
    source = next((entry for entry in record.inputs if entry.key == PUBLISHED), None)
    if source is None or tree.digest(PUBLISHED) != source.sha256:
        return None
    table = pd.read_csv(tree.path(PUBLISHED))
    others = table["table"] != record.wildcards["table"]
    first = table.assign(others=others).sort_values("others", kind="stable")
    return first.drop_duplicates(CELL).set_index(CELL)[["mean", "std"]]


def air_table(tree: AuditedTree) -> None:
    """The numbers of the AIR table, from the AIR files."""
    numbers = "mean_normal mean_anomalous air_before air_if_inverted air_after".split()
    for record in tree.of_rule("make_air_table"):
        name, sources = record.outputs[0].key, [entry.key for entry in record.inputs]
        if not tree.ready(f"recomputation of {name}", name, *sources):
            continue
        table = pd.read_csv(tree.path(name), dtype={"fold": str})
        rows = {(row["experiment"], row["fold"]): row for row in table.to_dict("records")}
        for source in sources:
            content = read_json(tree.path(source))
            place = content["experiment"], str(content["fold"])
            row = rows.get(place)
            tree.checks["table cells recomputed"] += len(numbers)
            wrong = [n for n in numbers if row and not abs(row[n] - content[n]) <= ROUNDED]
            if row is None or wrong or row["invert"] != ("yes" if content["invert"] else "no"):
                what = (wrong or ["invert"])[0]
                why = f"Its row {'/'.join(place)} is not what {source} says ({what})."
                _fail(tree, name, why)
