"""Two runs, artifact by artifact: what is identical, what differs, where they part and why."""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from uad.audit.compare_contents import TOLERANCES, Tolerance, compare_files
from uad.audit.compare_reasons import about_the_run, changes, differences_of_jobs, reasons_of
from uad.audit.compare_trees import CODE, RAW, UNKNOWN, Run, open_run
from uad.report.html import render_page

#: Version of the layout of the JSON.
FORMAT = 4
IDENTICAL, SAME, CLOSE, DIFFERENT = "identical", "same content", "within tolerance", "different"
#: Other bytes of a file that shows what others hold: a page, a notebook, a picture.
PRESENTED = "presentation only"
#: Other bytes by the records, but not there to be read: being temporary, or left out of a crate.
UNMEASURED = "not measured"
ONLY_HERE, ONLY_THERE = "only here", "only there"
STATES = (IDENTICAL, SAME, PRESENTED, CLOSE, UNMEASURED, DIFFERENT, ONLY_HERE, ONLY_THERE)
#: States in which nothing that follows can differ because of the file.
ALIKE = {IDENTICAL, SAME, PRESENTED}
#: Their bytes differ with the time and with versions of libraries.
PRESENTATIONS = (".html", ".ipynb", ".md", ".tex", ".png", ".webp", ".svg", ".pdf")
#: Columns that a reader finds a table's row by, and those that make its column.
ROW = ("row", "method", "variant")
COLUMN = "experiment modality reference_dataset test_dataset fold strata stratum".split()
#: Folders of the tables whose cells are compared.
TABLES = ("tables/", "studies/")
#: Columns of a terminal, and how many cells it is shown.
WIDTH, MOST = 100, 20
PHANTOM = "phantom results: they show that the workflow runs, and cannot rank methods"
HEAD = ("table", "row", "column", "metric", "here", "there", "difference")


def compare(
    here: str | os.PathLike[str],
    there: str | os.PathLike[str],
    tolerances: Mapping[str, Tolerance] | None = None,
) -> dict[str, Any]:
    """Compare two runs.

    Args:
        here: a results folder; or a crate, a folder or zip that holds one as ``results``.
        there: likewise.
        tolerances: by kind of file, those that are not to be as in ``TOLERANCES``.

    Returns:
        What ``compare.json`` holds: ``verdict`` (``identical``, ``identical within tolerance`` or
        ``different``); ``findings``, a row for every file with SHA-256 ``here`` and ``there``;
        ``counts`` of those that are results by stage and state; ``origins``, where the runs part,
        the first stage first, with ``keys`` of the files and ``reasons``; ``cells`` of tables that
        differ, the largest difference first; ``setup``, what the runs were asked for and made with,
        as far as it differs; ``notes``; ``phantom``.

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
    files = [
        _compare_file(key, here, there, {**TOLERANCES, **tolerances})
        for key in sorted({*here.files, *there.files})
    ]
    files.sort(key=lambda file: (order[file["stage"]], file["key"]))
    results = [file for file in files if not file["about_run"]]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    cells, notes = [], [*_notes("here", here), *_notes("there", there)]
    for file in results:
        key, there_too = file["key"], file["here"] and file["there"] and not file["by_record"]
        counts[file["stage"]][file["state"]] += 1
        if key.startswith(TABLES) and key.endswith(".csv"):
            if there_too:
                cells += _changed_cells(key, here.files[key].path, there.files[key].path)
            else:
                notes.append(f"not read, because one run does not hold it: {key}")
    return {
        "format": FORMAT,
        "verdict": _verdict(results),
        "here": here.name,
        "there": there.name,
        "phantom": here.phantom or there.phantom,
        "counts": counts,
        "origins": _origins(results, here, there),
        "cells": sorted(cells, key=lambda cell: -abs(cell["difference"] or 0.0)),
        "setup": _setup(here, there),
        "notes": notes,
        "findings": files,
    }


def _verdict(results: Iterable[dict[str, Any]]) -> str:
    # how far apart files are that are not there is seen in what was made from them
    states = {CLOSE if f["state"] == UNMEASURED and f["read"] else f["state"] for f in results}
    if states <= ALIKE:
        return "identical"
    return "identical within tolerance" if states <= {*ALIKE, CLOSE} else "different"


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
        state, detail = UNMEASURED, "other bytes by the records; not there to be measured"
    else:
        portable = (here.portable, there.portable)
        state, detail = compare_files(ours.path, theirs.path, tolerances, portable)
    return {
        "key": key,
        "stage": (here if ours else there).stage(key),
        "state": state,
        "about_run": about_the_run(key),
        "here": ours and ours.sha256,
        "there": theirs and theirs.sha256,
        "by_record": any(file is not None and file.path is None for file in (ours, theirs)),
        "read": key in here.read or key in there.read,
        "detail": detail,
    }


def _origins(results: list[dict[str, Any]], here: Run, there: Run) -> list[dict[str, Any]]:
    """Files that differ although none that they were made from does, by stage and reasons."""
    differing = {file["key"] for file in results if file["state"] not in ALIKE}
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for key, stage in ((file["key"], file["stage"]) for file in results):
        if key in differing and not _follows(key, differing, here, there):
            groups[stage, reasons_of(key, here, there)].append(key)
    return [
        {"stage": stage, "keys": keys, "reasons": reasons}
        for (stage, reasons), keys in groups.items()
    ]


def _follows(key: str, differing: set[str], here: Run, there: Run) -> bool:
    """Whether a file differs because one that it was made from does."""
    files = [(run, run.files[key]) for run in (here, there) if key in run.files]
    if len(files) == 2 and any(file.changed_since for _, file in files):
        return False  # it was changed by itself, whatever it was made from
    return any(not differing.isdisjoint(run.inputs(f.record)) for run, f in files if f.record)


def _setup(here: Run, there: Run) -> dict[str, list[str]]:
    found = {}
    if config := changes(here.config, there.config):
        found["config"] = config
    commits = [_commits(run) for run in (here, there)]
    if commits[0] != commits[1]:
        found["commit"] = [f"{commits[0]} → {commits[1]}"]
    by_rule: dict[str, dict[str, None]] = defaultdict(dict)
    for key, ours in here.records.all.items():
        if theirs := there.records.all.get(key):
            by_rule[ours.rule] |= dict.fromkeys(differences_of_jobs(ours, theirs, here, there))
    rules = here.records.rule_order
    return found | {f"rule {rule}": list(by_rule[rule]) for rule in rules if by_rule[rule]}


def _commits(run: Run) -> str:
    """Commits of the code that the jobs ran; ``+`` marks one with changes on top."""
    code = [record.content["code"] for record in run.records.all.values()]
    names = {f"{(c['commit'] or 'unknown')[:12]}{'+' if c['diff_sha256'] else ''}" for c in code}
    return " ".join(sorted(names))


def _notes(side: str, run: Run) -> list[str]:
    broken = run.records.broken.items()
    first = [f"the first: {key} {why}" for key, why in broken][:1]
    return [f"{len(broken)} records {side} cannot be relied on; {text}" for text in first]


# Cells ---------------------------------------------------------------------------------------


def _changed_cells(table: str, here: Path, there: Path) -> Iterator[dict[str, Any]]:
    """Cells of a table in long form that are written differently.

    Of a line per metric the cell is its mean, and other columns that differ are ``also`` told.
    """
    ours, theirs = _lines(here), _lines(there)
    for key in dict.fromkeys([*ours, *theirs]):
        line, left, right = dict(key), ours.get(key, {}), theirs.get(key, {})
        values = {n: (left.get(n), right.get(n)) for n in dict.fromkeys([*left, *right])}
        values = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
        also = []
        if values and "metric" in line:
            mean = values.pop("mean", (left.get("mean"), right.get("mean")))
            also = [f"{n}: {a} → {b}" for n, (a, b) in values.items()] if left and right else []
            values = {line["metric"]: mean}
        for metric, (one, other) in values.items():
            yield {
                "table": table,
                "row": " ".join(line[name] for name in ROW if name in line),
                "column": "/".join(line[name] for name in COLUMN if name in line),
                "metric": metric,
                "here": one,
                "there": other,
                "also": also,
                "difference": _difference(one, other),
            }


def _difference(here: str | None, there: str | None) -> float | None:
    """Number here minus number there; None where one is not a number."""
    try:
        value = float(here) - float(there)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _lines(path: Path) -> dict[tuple[tuple[str, str], ...], dict[str, str]]:
    """Columns of each line by those that say which line it is."""
    lines, identity = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"), {}
    for line in lines:
        key = [(name, line.pop(name)) for name in (*ROW, *COLUMN, "metric") if name in line]
        identity[tuple(key)] = line
    return identity


# Reports -------------------------------------------------------------------------------------


def summary(comparison: dict[str, Any]) -> str:
    """What fits a screen: the verdict, the first difference and why, stages, touched cells."""
    counts, cells = comparison["counts"], comparison["cells"]
    parted = {stage: found for stage, found in counts.items() if set(found) - ALIKE}
    stages = pd.DataFrame.from_dict(parted, orient="index").reindex(columns=STATES)
    stages = stages.dropna(axis="columns", how="all")
    rows = [[cut(text, 20) for text in cell_row(cell)] for cell in cells[:MOST]]
    text = render_page(
        "compare.txt",
        **comparison,
        warning=PHANTOM,
        count=count_sentence,
        wrapped=lambda text: textwrap.wrap(text, WIDTH - 9),
        stages=stages.to_string(na_rep="-", float_format="{:.0f}".format) if parted else "",
        alike=len(counts) - len(parted),
        rows=pd.DataFrame(rows, columns=HEAD).to_string(index=False).splitlines(),
        more=len(cells) - MOST,
    )
    return "\n".join(map(cut, text.rstrip().splitlines()))


def page(comparison: dict[str, Any]) -> str:
    """One self-contained HTML page, without scripts or outside resources."""
    by_stage: dict[str, list[Any]] = {stage: [] for stage in comparison["counts"]}
    for file in comparison["findings"]:
        if not file["about_run"]:
            by_stage[file["stage"]].append(file)
    return render_page(
        "compare.html",
        **comparison,
        warning=PHANTOM.capitalize(),
        count=count_sentence,
        rows=[(*cell_row(cell), "; ".join(cell["also"])) for cell in comparison["cells"]],
        head=(*HEAD, "beside it"),
        by_stage=by_stage,
        alike=ALIKE,
        ordered=lambda files: sorted(files, key=lambda f: (-STATES.index(f["state"]), f["key"])),
    )


def count_sentence(files: Iterable[dict[str, Any]]) -> str:
    """``203 artifacts: 200 identical, 3 different``."""
    counts = Counter(file["state"] for file in files)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counts.total()} artifacts: {parts or 'none'}"


def cell_row(cell: dict[str, Any]) -> tuple[str, ...]:
    """A cell as seven texts: table, row, column, metric, here, there, difference."""
    difference = "" if cell["difference"] is None else f"{cell['difference']:+.4f}"
    if cell["here"] == cell["there"]:
        difference = "beside it"  # the mean is the same, another column of the line is not
    values = ("none" if value is None else value for value in (cell["here"], cell["there"]))
    name = PurePosixPath(cell["table"]).stem
    return (name, cell["row"], cell["column"], cell["metric"], *values, difference)


def cut(text: str, width: int = WIDTH) -> str:
    """A text without its middle, where it is too long: both ends of a path tell something."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
