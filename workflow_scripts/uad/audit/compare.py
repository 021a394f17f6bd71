"""Two runs, file by file: what is identical, what differs, where they part and why."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from uad.audit.compare_contents import CLOSE, DIFFERENT, SAME, TOLERANCES, Tolerance, compare_files
from uad.audit.compared_run import CODE, RAW, UNKNOWN, Run, open_run
from uad.core.errors import first_of
from uad.core.records import Record
from uad.report.html import render_page
from uad.report.render import counted

#: Version of the layout of the JSON.
FORMAT = 5
IDENTICAL, ONLY_HERE, ONLY_THERE = "identical", "only here", "only there"
#: Other bytes of a file that shows what others hold: a page, a notebook, a picture.
PRESENTED = "presentation only"
#: Other bytes by the records, but not there to be read: being temporary, or left out of a crate.
UNMEASURED = "not measured"
STATES = (IDENTICAL, SAME, PRESENTED, CLOSE, UNMEASURED, DIFFERENT, ONLY_HERE, ONLY_THERE)
#: States in which nothing that follows can differ because of the file.
ALIKE = {IDENTICAL, SAME, PRESENTED}
#: Their bytes differ with the time and with versions of libraries.
PRESENTATIONS = (".html", ".ipynb", ".md", ".tex", ".png", ".webp", ".svg", ".pdf")
#: Folders of the tables whose cells are compared, and the columns that say which row a line is.
TABLES = ("tables/", "studies/")
ROW = "row method variant experiment modality reference_dataset test_dataset fold strata stratum"


def compare(
    here: str | os.PathLike[str],
    there: str | os.PathLike[str],
    tolerances: Mapping[str, Tolerance] | None = None,
) -> dict[str, Any]:
    """Compare two runs, each a results folder, or a crate: a folder or zip with ``results``.

    ``tolerances``: by kind of file, those that are not to be as in ``TOLERANCES``.

    Returns:
        What ``compare.json`` holds: ``verdict`` (``identical``, ``identical within tolerance`` or
        ``different``); ``files``, a row for every file with SHA-256 ``here`` and ``there``;
        ``origins``, where the runs part, the first stage first, with ``keys`` of the files and the
        ``reason``; ``cells`` of tables that differ, the largest difference first; ``config``,
        what the runs were asked for, as far as it differs; ``notes``; ``phantom``.

    Raises:
        DataError: one of the two is no such thing.
    """
    with open_run(here) as ours, open_run(there) as theirs:
        return compare_runs(ours, theirs, tolerances or {})


def compare_runs(here: Run, there: Run, tolerances: Mapping[str, Tolerance]) -> dict[str, Any]:
    """As :func:`compare`, of two runs that are open."""
    # rules of both runs in the order in which files pass through them; raw files first
    both = replace(here.records, all={**there.records.all, **here.records.all})
    order = {stage: i for i, stage in enumerate([RAW, CODE, *both.rule_order, UNKNOWN])}
    keys = sorted({*here.files, *there.files})
    files = [_compare_file(key, here, there, {**TOLERANCES, **tolerances}) for key in keys]
    files.sort(key=lambda file: (order[file["stage"]], file["key"]))
    notes, cells = [*_notes("here", here), *_notes("there", there)], []
    for key in (key for key in keys if key.startswith(TABLES) and key.endswith(".csv")):
        paths = [run.files[key].path if key in run.files else None for run in (here, there)]
        if all(paths):
            cells += _changed_cells(key, *paths)
        else:
            notes.append(f"not read, because one run does not hold it: {key}")
    return {
        "format": FORMAT,
        "verdict": _verdict({file["state"] for file in files}),
        "here": here.name,
        "there": there.name,
        "phantom": here.phantom or there.phantom,
        "origins": _origins(files, here, there),
        "cells": sorted(cells, key=lambda cell: -abs(cell["difference"] or 0.0)),
        "config": _changes(here.config, there.config),
        "notes": notes,
        "files": files,
    }


def _verdict(states: set[str]) -> str:
    if states <= ALIKE:
        return IDENTICAL
    # how far apart files are that are not there is seen in what was made from them
    return "identical within tolerance" if states <= {*ALIKE, CLOSE, UNMEASURED} else DIFFERENT


def _compare_file(
    key: str, here: Run, there: Run, tolerances: Mapping[str, Tolerance]
) -> dict[str, Any]:
    ours, theirs, detail = here.files.get(key), there.files.get(key), ""
    if ours is None or theirs is None:
        state = ONLY_THERE if ours is None else ONLY_HERE
    elif ours.sha256 == theirs.sha256:
        state = IDENTICAL
    elif key.endswith(PRESENTATIONS):
        state = DIFFERENT if ours.changed_since or theirs.changed_since else PRESENTED
    elif ours.path is None or theirs.path is None:
        state = UNMEASURED
    else:
        portable = (here.portable, there.portable)
        state, detail = compare_files(ours.path, theirs.path, tolerances, portable)
    return {
        "key": key,
        "stage": (here if ours else there).stage(key),
        "state": state,
        "here": ours and ours.sha256,
        "there": theirs and theirs.sha256,
        "detail": detail,
    }


# Where the runs part, and why ---------------------------------------------------------------


def _origins(files: list[dict[str, Any]], here: Run, there: Run) -> list[dict[str, Any]]:
    """Files that differ although none that they were made from does, by stage and reason."""
    differing = {file["key"]: file["stage"] for file in files if file["state"] not in ALIKE}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, stage in differing.items():
        both = [(run, run.files[key]) for run in (here, there) if key in run.files]
        changed = len(both) == 2 and any(file.changed_since for _, file in both)
        read = {name for run, file in both if file.record for name in run.inputs(file.record)}
        if changed or differing.keys().isdisjoint(read):
            groups[stage, _reason(key, here, there)].append(key)
    return [
        {"stage": stage, "reason": reason, "keys": keys} for (stage, reason), keys in groups.items()
    ]


def _reason(key: str, here: Run, there: Run) -> str:
    """The likeliest reason for one file; values are those here, an arrow, those there."""
    ours, theirs = here.files.get(key), there.files.get(key)
    if ours is None or theirs is None:
        side, other = ("there", there) if ours else ("here", here)
        if (record := (ours or theirs).record) is None:
            return f"not {side}"
        ran = record.key in other.records.all
        why = "ran, and did not make it" if ran else "did not run"
        return f"not {side}: the job ({record.rule}) {why}"
    if sides := [s for s, file in (("here", ours), ("there", theirs)) if file.changed_since]:
        return f"changed after it was made ({' and '.join(sides)})"
    if not ours.record or not theirs.record:
        other = {RAW: "other raw bytes", CODE: "another version of this file of the repository"}
        return other.get(here.stage(key), "no record says how it was made")
    # what two jobs that made the same file did not have in common, the likeliest cause first
    facts, others = _facts(ours.record, here), _facts(theirs.record, there)
    for kind in facts:
        found = _changes(facts[kind], others[kind])
        if kind in ("inputs", "code"):  # a hash says nothing
            found = [text.partition(" ")[0] for text in found]
        if found:
            return f"other {kind}: {first_of(found)}"
    return "same inputs, params, code: not deterministic here"


def _facts(record: Record, run: Run) -> dict[str, Any]:
    content, host = record.content, record.content["host"]
    asked = {"params": record.params, "config": content["config"]["used"]}
    script = {f"{record.rule}.py": content["code"]["script_sha256"]}
    return {
        "seed": content["seeds"],
        **json.loads(run.portable(json.dumps(asked))),
        "inputs": run.inputs(record),
        "code": {**script, **content["code"]["library_files"]},
        "environment": {**content["environment"], "platform": host["platform"]},
        "device": {"device": host["device"], "driver": host.get("driver")},
    }


def _changes(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """``key here → there`` for each value that differs in two nested contents."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            text
            for key in dict.fromkeys([*ours, *theirs])
            for text in _changes(ours.get(key), theirs.get(key), f"{where}.{key}".lstrip("."))
        ]
    texts = ("none" if value is None else str(value) for value in (ours, theirs))
    return [] if ours == theirs else [f"{where} {' → '.join(text[:60] for text in texts)}"]


def _notes(side: str, run: Run) -> list[str]:
    broken = run.records.broken.items()
    first = [f"the first: {key} {why}" for key, why in broken][:1]
    return [f"{len(broken)} records {side} cannot be relied on; {text}" for text in first]


# Cells ---------------------------------------------------------------------------------------


def _changed_cells(table: str, here: Path, there: Path) -> list[dict[str, Any]]:
    """Cells that are written differently; of a line per metric these are its mean and deviation."""
    ours, theirs = _cells(here), _cells(there)
    return [
        {
            "table": table,
            "row": row,
            "column": column,
            "here": ours.get((row, column)),
            "there": theirs.get((row, column)),
            "difference": _difference(ours.get((row, column)), theirs.get((row, column))),
        }
        for row, column in dict.fromkeys([*ours, *theirs])
        if ours.get((row, column)) != theirs.get((row, column))
    ]


def _cells(path: Path) -> dict[tuple[str, str], str]:
    """The text of each cell by row and column."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = [name for name in ROW.split() if name in table]
    cells = {}
    for line in table.to_dict("records"):
        row = " ".join(line.pop(name) for name in rows)
        if "metric" in line:
            line = {line["metric"]: " ± ".join(line[n] for n in ("mean", "std") if n in line)}
        cells |= {(row, column): text for column, text in line.items()}
    return cells


def _difference(here: str | None, there: str | None) -> float | None:
    """Number (mean) here minus that there; None where one is not a number."""
    numbers = [(text or "").partition(" ± ")[0] for text in (here, there)]
    one, other = pd.to_numeric(pd.Series(numbers), errors="coerce")
    return None if pd.isna(one - other) else float(one - other)


# Reports -------------------------------------------------------------------------------------


def summary(comparison: dict[str, Any]) -> str:
    """What fits a screen: the verdict, the first difference and why, stages, touched cells."""
    return render_page("compare.txt", **_shown(comparison)).rstrip()


def page(comparison: dict[str, Any]) -> str:
    """One self-contained HTML page, without scripts or outside resources."""
    return render_page("compare.html", **_shown(comparison))


def _shown(comparison: dict[str, Any]) -> dict[str, Any]:
    by_stage: dict[str, list[Any]] = defaultdict(list)
    for file in comparison["files"]:
        by_stage[file["stage"]].append(file)
    for files in by_stage.values():
        files.sort(key=lambda file: -STATES.index(file["state"]))
    cells = [
        {**c, "difference": "" if c["difference"] is None else f"{c['difference']:+.4f}"}
        for c in comparison["cells"]
    ]
    content = {**comparison, "cells": cells, "by_stage": by_stage, "alike": ALIKE}
    return content | {"count": count_sentence}


def count_sentence(files: Iterable[dict[str, Any]]) -> str:
    """``203 files: 200 identical, 3 different``."""
    counts = Counter(file["state"] for file in files)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(counts.total(), 'file')}: {parts or 'none'}"
