"""Numbers computed again from what they were made of."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from uad.audit.evidence import Evidence
from uad.audit.tree import KEYS, Audited, key
from uad.core.errors import DataError
from uad.core.files import read_json, read_tsv, sha256
from uad.core.provenance import LIBRARY
from uad.preprocess.slices import names_in, read_lesion, read_store, read_volumes
from uad.records import REPOSITORY, Record, is_temporary
from uad.splits import cross_dataset, intra_dataset, subjects_of
from uad.statistics import air_statistics

#: How far computed numbers may be from stored ones: relative, for means of float32 intensities.
CLOSE = 1e-9
#: Tables have four decimals.
ROUNDED = 0.5e-4 + 1e-9
METRICS = ("dice", "auprc")
PUBLISHED = f"{REPOSITORY}resources/published/tables.csv"
_AGAIN = "Delete it together with its record and run the workflow again."


def check_splits(tree: Audited, evidence: Evidence) -> None:
    """Splits of our own are what their participants, sizes and seed give."""
    for record in tree.of_rule("make_splits"):
        name, experiment = record.outputs[0].key, record.params["experiment"]
        intra = experiment["setting"] == "intra"
        if not intra and record.params["splits"]["kind"] != "clean":
            continue
        names = list(dict.fromkeys([experiment["train"], *experiment["test"]]))
        tables = [key(KEYS.participants(dataset)) for dataset in names]
        if not tree.ready(f"recomputation of {name}", name, *tables):
            continue
        tree.checks["splits recomputed"] += 1
        people = {n: read_tsv(tree.path(t)) for n, t in zip(names, tables, strict=True)}
        people = {n: t[t["modality"] == experiment["modality"]] for n, t in people.items()}
        columns = ["dataset", "subject", "role", "weight"]
        wanted = _split(record, people)[columns].astype(str).to_numpy().tolist()
        there = read_tsv(tree.path(name))[columns].astype(str).to_numpy().tolist()
        if there == wanted:
            evidence.proven.add(name)
            continue
        strange = [row for row in there if row not in wanted] or there
        tree.findings.add(
            name,
            "recomputation",
            "It is not the split that its participants, sizes and seed give: computed again, "
            f"{' '.join(strange[0])} is not in it as it stands.{_version_hint(record)}",
            "Delete the split and run again; results that were made from it are not valid.",
        )


def _split(record: Record, people: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The split of a job's experiment, fold, sizes and seed."""
    experiment, options = record.params["experiment"], dict(record.params["splits"])
    kind = options.pop("kind")
    healthy = experiment["train"], people[experiment["train"]]
    place = int(record.wildcards["fold"]), experiment["folds"]
    if experiment["setting"] == "intra":
        return intra_dataset(*healthy, *place, kind=kind, **options)
    tested = {test: people[test] for test in experiment["test"]}
    return cross_dataset(healthy, tested, *place, **options)


def _version_hint(record: Record) -> str:
    """A remark where this library is not the one that made the artifact."""
    made_with = record.content["code"]["library_files"]
    present = {name: LIBRARY / name for name in made_with}
    other = [n for n, p in present.items() if not p.is_file() or sha256(p) != made_with[n]]
    if not other:
        return ""
    return (
        f" This software has another version of {len(other)} files that the job ran with (such as "
        f"{other[0]}): audit with the version of the run to be sure."
    )


def check_air(tree: Audited, evidence: Evidence) -> None:
    """AIR again, from the slice stores."""
    for record in tree.of_rule("compute_air"):
        name, params = record.outputs[0].key, record.params
        split, *stores = (entry.key for entry in record.inputs)
        if not tree.ready(f"recomputation of {name}", name, split, *stores):
            continue
        tree.checks["AIR recomputed"] += 1
        table, stored = read_tsv(tree.path(split)), read_json(tree.path(name))
        subjects = {test: subjects_of(table, test, "val_unhealthy") for test in params["tests"]}
        try:
            volumes = {
                test: read_store(tree.path(store), subjects[test])
                for test, store in zip(params["tests"], stores, strict=True)
            }
            rule = params["modality"], params["reference"], params["rule"]
            wanted = air_statistics(volumes, *rule)
        except DataError as error:
            tree.findings.add(name, "recomputation", f"It cannot follow: {error}", _AGAIN)
            continue
        sets, hint = stored.get("sets", {}), _version_hint(record)
        differ = {t: _first_difference(sets.get(t, {}), wanted["sets"][t]) for t in subjects}
        for test, store in zip(params["tests"], stores, strict=True):
            why = f"{test}: {differ[test]}.{hint}"
            for subject in subjects[test]:
                evidence.weigh(store, name, subject, differ[test] is None, why)
        rest = {field: value for field, value in wanted.items() if field != "sets"}
        # where the sets differ the rest does, too: that is weighed with them
        if not any(differ.values()) and (other := _first_difference(stored, rest)):
            tree.findings.add(name, "recomputation", f"{other}.{hint}", _AGAIN)


def _first_difference(stored: Any, wanted: Any, place: str = "") -> str | None:
    """Where stored values are not the computed ones; None if they are."""
    if isinstance(wanted, Mapping):
        for name, value in wanted.items():
            if not isinstance(stored, Mapping) or name not in stored:
                return f"{place}{name} is missing"
            if found := _first_difference(stored[name], value, f"{place}{name}."):
                return found
        return None
    if isinstance(wanted, float) and isinstance(stored, int | float):
        same = math.isclose(stored, wanted, rel_tol=CLOSE, abs_tol=CLOSE)
    else:
        same = stored == wanted
    return None if same else f"{place.rstrip('.')} is {stored}, computed again it is {wanted}"


def check_thresholds(tree: Audited) -> None:
    """The Dice of a threshold, where the anomaly maps were kept."""
    for record in tree.of_rule("search_threshold"):
        name = record.outputs[0].key
        maps, store = (entry.key for entry in record.inputs)
        if tree.digest(maps) is None and is_temporary(maps) and not tree.is_omitted(maps):
            tree.notes.add(
                "The Dice of thresholds was not computed again: anomaly maps are deleted after use "
                "(run.keep_reconstructions)."
            )
            continue
        if not tree.ready(f"recomputation of {name}", name, maps, store):
            continue
        tree.checks["thresholds recomputed"] += 1
        stored = read_json(tree.path(name))
        hits = predicted = annotated = 0
        for label, scores in read_volumes(tree.path(maps), "val_unhealthy/").items():
            above = scores > scores.dtype.type(stored["threshold"])
            lesion = read_lesion(tree.path(store), label.split("/")[1])
            hits += int(np.count_nonzero(above & lesion))
            predicted += int(np.count_nonzero(above))
            annotated += int(np.count_nonzero(lesion))
        both = predicted + annotated
        dice = 2 * hits / both if both else 0.0
        there = [label.split("/")[1] for label in names_in(tree.path(maps), "val_unhealthy/")]
        if not math.isclose(dice, stored["dice"], rel_tol=CLOSE) or there != stored["subjects"]:
            tree.findings.add(
                name,
                "recomputation",
                f"Its threshold gives a Dice of {dice:.6f} on the validation maps of {maps}, it "
                f"says {stored['dice']:.6f}.",
                _AGAIN,
            )


def check_metrics(tree: Audited, evidence: Evidence) -> None:
    """What metrics say of threshold and volumes, from the threshold file and the slice store."""
    voxels: dict[tuple[str, str], tuple[int, int, float]] = {}
    for record in tree.of_rule("evaluate_volumes"):
        name = record.outputs[0].key
        _, store, threshold = (entry.key for entry in record.inputs)
        if not tree.ready(f"recomputation of {name}", name, store, threshold):
            continue
        tree.checks["metrics against store and threshold"] += 1
        rows = read_tsv(tree.path(name))
        _check_threshold(tree, name, rows, threshold)
        for row in rows.itertuples(index=False):
            if (store, row.subject) not in voxels:
                voxels[store, row.subject] = _sizes(tree, store, row.subject)
            wanted = voxels[store, row.subject]
            said = row.lesion_voxels, row.brain_voxels, row.prevalence
            agrees = said[:2] == wanted[:2] and math.isclose(said[2], wanted[2], rel_tol=CLOSE)
            why = (
                f"{name} says that {row.subject} has {said[0]} lesion and {said[1]} brain voxels, "
                f"{store} has {wanted[0]} and {wanted[1]}."
            )
            evidence.weigh(store, name, row.subject, agrees, why)
            problem = _impossible(row)
            if problem:
                tree.findings.add(name, "recomputation", f"{row.subject}: {problem}.", _AGAIN)


def _check_threshold(tree: Audited, name: str, rows: pd.DataFrame, threshold: str) -> None:
    """All volumes were judged at the threshold of the validation set."""
    value = read_json(tree.path(threshold))["threshold"]
    other = rows[~np.isclose(rows["threshold"], value, rtol=CLOSE, atol=0)]
    if len(other):
        tree.findings.add(
            name,
            "recomputation",
            f"{other['subject'].iloc[0]} was judged at {other['threshold'].iloc[0]}, the threshold "
            f"of {threshold} is {value}.",
            _AGAIN,
        )


def _sizes(tree: Audited, store: str, subject: str) -> tuple[int, int, float]:
    """Lesion voxels, brain voxels and prevalence of a volume of a store."""
    part = read_store(tree.path(store), [subject])
    lesion, brain = (int(np.count_nonzero(a)) for a in (part.lesions[0], part.masks[0]))
    return lesion, brain, lesion / part.lesions[0].size


def _impossible(row: Any) -> str | None:
    """Whether a Dice can be: with A predicted and B annotated voxels it is 2k / (A + B)."""
    both = row.predicted_voxels + row.lesion_voxels
    if both == 0 or math.isnan(row.dice):
        return None if math.isnan(row.dice) == (both == 0) else "its Dice does not fit its voxels"
    hits = row.dice * both / 2
    whole = math.isclose(hits, round(hits), abs_tol=1e-6)
    if whole and 0 <= round(hits) <= min(row.predicted_voxels, row.lesion_voxels):
        return None
    return (
        f"no overlap of {row.predicted_voxels} predicted and {row.lesion_voxels} lesion voxels has "
        f"a Dice of {row.dice}"
    )


# Tables --------------------------------------------------------------------------------------


def check_tables(tree: Audited) -> None:
    """Every cell of the tables of methods, from the metrics of the volumes.

    Not with the code that made them (:mod:`uad.report.tables`).
    """
    for record in tree.of_rule("make_table"):
        metrics = [e.key for e in record.inputs if e.key.startswith("metrics/")]
        files = {entry.key.rpartition(".")[2]: entry.key for entry in record.outputs}
        what = f"recomputation of {files['csv']}"
        if not tree.ready(what, *metrics):
            continue
        wanted = _cells([read_tsv(tree.path(name)) for name in metrics])
        spec = record.params["table"]
        columns = [(column["experiment"], column["test"]) for column in spec["columns"]]
        if tree.ready(what, files["csv"]):
            _check_csv(tree, files["csv"], wanted, spec["rows"], columns)
            _check_published(tree, files["csv"], record)
        for ending, read in (("md", _from_markdown), ("html", _from_html), ("tex", _from_tex)):
            name = files.get(ending)
            if name and tree.ready(f"cells of {name}", name):
                shown = read(tree.path(name).read_text(encoding="utf-8"))
                panels = _chunks(columns, 2) if ending == "tex" else [columns]
                order = [
                    (row, *column, metric)
                    for panel in panels
                    for row in spec["rows"]
                    for column in panel
                    for metric in METRICS
                ]
                _check_shown(tree, name, shown, order, wanted)


def _cells(frames: Iterable[pd.DataFrame]) -> dict[tuple[str, ...], dict[str, float]]:
    """Mean and std over folds of the fold means, in percent, by row, experiment, test, metric."""
    table = pd.concat(frames, ignore_index=True)
    long = table.melt(
        ["method", "experiment", "test_dataset", "fold", "subject"],
        list(METRICS),
        var_name="metric",
    ).dropna(subset="value")
    place = ["method", "experiment", "test_dataset", "metric"]
    folds = long.groupby([*place, "fold"])["value"].mean().mul(100)
    summary = folds.groupby(place).agg(["mean", "std", "count"])
    summary["volumes"] = long.groupby(place)["subject"].nunique()
    return {name: row.to_dict() for name, row in summary.iterrows()}


def _check_csv(
    tree: Audited,
    name: str,
    wanted: dict[tuple[str, ...], dict[str, float]],
    rows: list[str],
    columns: list[tuple[str, str]],
) -> None:
    table = pd.read_csv(tree.path(name))
    there = {(r.row, r.experiment, r.test_dataset, r.metric): r for r in table.itertuples()}
    listed = {(row, *column, metric) for row in rows for column in columns for metric in METRICS}
    for cell in sorted(listed | set(there)):
        tree.checks["table cells recomputed"] += 1
        if cell not in there or cell not in wanted or cell not in listed:
            problem = "it is missing" if cell not in there else "there are no metrics for it"
        else:
            problem = _wrong_value(there[cell], wanted[cell])
        if problem:
            tree.findings.add(name, "recomputation", f"Cell {'/'.join(cell)}: {problem}.", _AGAIN)


def _check_published(tree: Audited, name: str, record: Record) -> None:
    """The published values beside the cells, and how far the cells are from them."""
    source = next((e for e in record.inputs if e.key == PUBLISHED), None)
    if source is None or tree.digest(PUBLISHED) != source.sha256:
        return
    known: dict[tuple[str, ...], Any] = {}
    place = ["row", "experiment", "test_dataset", "metric"]
    for row in pd.read_csv(tree.path(PUBLISHED)).itertuples():
        cell = tuple(getattr(row, column) for column in place)
        # the value of the same table counts first, then the first of any other
        if cell not in known or (row.table == record.wildcards["table"] != known[cell].table):
            known[cell] = row
    for row in pd.read_csv(tree.path(name)).itertuples():
        tree.checks["published values of tables"] += 1
        cell = tuple(getattr(row, column) for column in place)
        mean, std = (
            (float(known[cell].mean), float(known[cell].std)) if cell in known else (math.nan,) * 2
        )
        apart = math.nan if record.params.get("phantom") else row.mean - mean
        columns = {"published_mean": mean, "published_std": std, "difference": apart}
        for column, value in columns.items():
            said = float(getattr(row, column))
            if (
                not (math.isnan(said) and math.isnan(value))
                and not abs(said - value) <= 2 * ROUNDED
            ):
                why = f"Cell {'/'.join(cell)}: {column} is {said:g}, it should be {value:g}."
                tree.findings.add(name, "recomputation", why, _AGAIN)


def _wrong_value(said: Any, wanted: Mapping[str, float]) -> str | None:
    numbers = {"mean": "mean", "std": "std", "n_folds": "count", "n_volumes": "volumes"}
    for column, name in numbers.items():
        value, computed = float(getattr(said, column)), float(wanted[name])
        unknown = math.isnan(value) and math.isnan(computed)
        if not unknown and not abs(value - computed) <= ROUNDED:
            return f"{column} is {value:g}, the metrics give {computed:.4f}"
    return None


def _check_shown(
    tree: Audited,
    name: str,
    shown: list[str],
    order: list[tuple[str, ...]],
    wanted: dict[tuple[str, ...], dict[str, float]],
) -> None:
    """The cells that a page shows, in their order."""
    if len(shown) != len(order):
        why = f"It shows {len(shown)} cells, the table has {len(order)}."
        tree.findings.add(name, "recomputation", why, _AGAIN)
        return
    for cell, text in zip(order, shown, strict=True):
        tree.checks["table cells recomputed"] += 1
        mean, _, std = text.partition("±")
        value = wanted.get(cell, {"mean": math.nan, "std": math.nan})
        wrong = not abs(float(mean) - value["mean"]) <= 0.005 + 1e-9
        if math.isnan(value["std"]) != (not std) or (
            std and not abs(float(std) - value["std"]) <= 0.005 + 1e-9
        ):
            wrong = True
        if wrong:
            computed = f"{value['mean']:.2f}±{value['std']:.2f}"
            why = f"Cell {'/'.join(cell)}: it shows {text}, the metrics give {computed}."
            tree.findings.add(name, "recomputation", why, _AGAIN)


_VALUE = re.compile(r"\d+\.\d\d(?:±\d+\.\d\d)?")


def _from_markdown(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    bare = (re.sub(r"\((?:not )?published[^|]*", "", line) for line in lines)
    cells = (cell for line in bare for cell in line.split("|")[2:-1])
    return [found[0] for cell in cells if (found := _VALUE.search(cell))]


def _from_html(text: str) -> list[str]:
    cells = re.findall(r"<td>(.*?)</td>", text, re.DOTALL)
    bare = (re.sub(r"<small.*?</small>|<sup>.*?</sup>|<[^>]+>", "", cell) for cell in cells)
    return [found[0] for cell in bare if (found := _VALUE.search(html.unescape(cell)))]


def _from_tex(text: str) -> list[str]:
    table = text.partition(r"\begin{tabular}")[2].partition(r"\end{tabular}")[0]
    cells = []
    for line in table.replace(r"$\pm$", "±").splitlines():
        if "&" in line and not line.startswith(r"\quad{\scriptsize published}"):
            cells += line.split("&")[1:]
    return [found[0] for cell in cells if (found := _VALUE.search(cell))]


def _chunks(columns: list[tuple[str, str]], size: int) -> list[list[tuple[str, str]]]:
    return [columns[place : place + size] for place in range(0, len(columns), size)]


def check_air_table(tree: Audited) -> None:
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
                tree.findings.add(name, "recomputation", why, _AGAIN)
