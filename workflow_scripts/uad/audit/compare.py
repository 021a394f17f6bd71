"""Two runs, artifact by artifact: what is identical, what differs, where they part and why.

>>> comparison = compare("results", "theirs/results")  # doctest: +SKIP
>>> comparison.verdict  # doctest: +SKIP
'identical'
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx

from uad.audit.compare_contents import TOLERANCES, Tolerance, compare_files
from uad.audit.compare_reasons import about_the_run, changes, differences_of_jobs, reasons_of
from uad.audit.compare_trees import CODE, RAW, UNKNOWN, Run, open_run

#: Version of the layout of the JSON.
FORMAT = 2
IDENTICAL, SAME, CLOSE, DIFFERENT = (
    "identical",
    "same content",
    "within tolerance",
    "different",
)
#: Other bytes by the records, but not there to be read: being temporary, or left out of a crate.
UNMEASURED = "not measured"
ONLY_HERE, ONLY_THERE = "only here", "only there"
STATES = (IDENTICAL, SAME, CLOSE, UNMEASURED, DIFFERENT, ONLY_HERE, ONLY_THERE)
#: States in which nothing that follows can differ because of the file.
ALIKE = (IDENTICAL, SAME)
#: Columns that say which cell a line is, and the wildcard that each names in the jobs before it.
IDENTITY = {
    "row": "method",
    "method": "method",
    "experiment": "experiment",
    "modality": "modality",
    "reference_dataset": "dataset",
    "test_dataset": "test",
    "variant": "variant",
    "fold": "fold",
    "metric": "metric",
}
#: Columns that a reader finds a cell's row by; the other identities make its column.
ROW = ("row", "method", "variant")
#: Folders of the tables whose cells are compared.
TABLES, STUDIES = "tables/", "studies/"


@dataclass(frozen=True)
class ComparedFile:
    """One file of two runs.

    Attributes:
        stage: the rule that made it, ``raw``, ``repository`` or ``no record``.
        here: SHA-256, by the records where the file is not there; None if it is unknown.
        by_record: whether one of the two is known by the records only.
        read: whether a job made something from it.
    """

    key: str
    stage: str
    state: str
    about_run: bool
    here: str | None
    there: str | None
    by_record: bool
    read: bool
    detail: str = ""

    @property
    def differs(self) -> bool:
        """Whether the two are not the same, be it within tolerance."""
        return self.state not in ALIKE


@dataclass(frozen=True)
class Origin:
    """Where two runs part: files that differ although all that they were made from does not."""

    stage: str
    keys: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ComparedCell:
    """A number of a table.

    Attributes:
        row: method, and variant in a study.
        column: ``experiment/test set``, as ``make trace`` has it; more in tables of another kind.
        metric: ``dice``, ``auprc``, or the name of the column in tables without metrics.
        here: the value, as it is written; None if there is no such cell.
        also: other columns of the same line that differ, as ``name: here → there``.
    """

    table: str
    row: str
    column: str
    metric: str
    here: str | None
    there: str | None
    also: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Number here minus number there; None where one is not a number."""
        try:
            value = float(self.here) - float(self.there)
        except (TypeError, ValueError):
            return None
        return value if math.isfinite(value) else None

    @property
    def differs(self) -> bool:
        """Whether anything of it is written differently; else it only rests on other files."""
        return self.here != self.there or bool(self.also)


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        origins: where they part, the first stage first.
        cells: table cells that differ or rest on files that do: what differs first, tables before
            studies, the largest difference first.
        setup: what the runs were asked for and with what they were made, as far as it differs:
            sentences by ``config``, ``commit``, and ``rule <name>``.
    """

    here: str
    there: str
    files: tuple[ComparedFile, ...]
    origins: tuple[Origin, ...]
    cells: tuple[ComparedCell, ...]
    setup: dict[str, list[str]]
    notes: tuple[str, ...]
    phantom: bool

    @cached_property
    def results(self) -> tuple[ComparedFile, ...]:
        """Files that count."""
        return tuple(file for file in self.files if not file.about_run)

    @cached_property
    def about_the_run(self) -> tuple[ComparedFile, ...]:
        """Files that do not."""
        return tuple(file for file in self.files if file.about_run)

    @property
    def verdict(self) -> str:
        """``identical``, ``identical within tolerance`` or ``different``."""
        # how far apart files are that are not there is seen in what was made from them
        states = {CLOSE if f.state == UNMEASURED and f.read else f.state for f in self.results}
        if states <= set(ALIKE):
            return "identical"
        return "identical within tolerance" if states <= {*ALIKE, CLOSE} else "different"

    @property
    def same(self) -> bool:
        """Whether nothing differs by more than the tolerances."""
        return self.verdict != "different"

    def counts(self) -> dict[str, Counter[str]]:
        """Files by stage and state, in the order of the stages; only those that count."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for file in self.results:
            found[file.stage][file.state] += 1
        return found

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data; ``findings`` holds every file, those about the run marked."""
        cells = [
            {**asdict(cell), "difference": cell.difference, "differs": cell.differs}
            for cell in self.cells
        ]
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "here": self.here,
            "there": self.there,
            "phantom": self.phantom,
            "counts": {stage: dict(found) for stage, found in self.counts().items()},
            "origins": [asdict(origin) for origin in self.origins],
            "cells": cells,
            "setup": self.setup,
            "notes": list(self.notes),
            "findings": [asdict(file) for file in self.files],
        }


def compare(
    here: str | os.PathLike[str],
    there: str | os.PathLike[str],
    tolerances: Mapping[str, Tolerance] | None = None,
) -> Comparison:
    """Compare two runs.

    Args:
        here: a results folder; or a crate, a folder or zip that holds one as ``results``.
        there: likewise.
        tolerances: by kind of file, those that are not to be as in ``TOLERANCES``.

    Raises:
        DataError: one of the two is no such thing.
        ValueError: a tolerance is for an unknown kind.
    """
    with open_run(here) as ours, open_run(there) as theirs:
        return compare_runs(ours, theirs, tolerances)


def compare_runs(
    here: Run, there: Run, tolerances: Mapping[str, Tolerance] | None = None
) -> Comparison:
    """As :func:`compare`, of two runs that are open."""
    allowed = {**TOLERANCES, **(tolerances or {})}
    if unknown := sorted(allowed.keys() - TOLERANCES.keys()):
        raise ValueError(f"no tolerance for {unknown[0]!r}; kinds: {', '.join(TOLERANCES)}")
    # rules of both runs in the order in which files pass through them; raw files first
    both = replace(here.records, all={**there.records.all, **here.records.all})
    order = {stage: i for i, stage in enumerate([RAW, CODE, *both.rule_order, UNKNOWN])}
    graph = networkx.DiGraph()
    for run in (here, there):
        for record in run.records.all.values():
            graph.add_edges_from((key, record.key) for key in run.inputs(record))
            graph.add_edges_from((record.key, entry.key) for entry in record.outputs)
    files = [
        _compare_file(key, here, there, allowed, read=key in graph and graph.out_degree(key) > 0)
        for key in sorted({*here.files, *there.files})
    ]
    files.sort(key=lambda file: (order[file.stage], file.key))
    differing = {file.key for file in files if file.differs and not file.about_run}
    layers = networkx.bfs_layers(graph, [key for key in differing if key in graph])
    touched = differing.union(*layers)
    tables = [
        file.key
        for file in files
        if file.key.startswith((TABLES, STUDIES))
        and file.key.endswith(".csv")
        and not file.about_run
    ]
    absent = [k for k in tables if not all(k in r.files and r.files[k].path for r in (here, there))]
    at_hand = [key for key in tables if key not in absent]
    cells = [cell for key in at_hand for cell in _touched_cells(key, here, there, touched)]
    return Comparison(
        here.name,
        there.name,
        tuple(files),
        _origins(differing, here, there, order),
        tuple(sorted(cells, key=_largest_first)),
        _setup(here, there),
        tuple(_notes(here, there, absent)),
        here.phantom or there.phantom,
    )


def _compare_file(
    key: str, here: Run, there: Run, tolerances: Mapping[str, Tolerance], *, read: bool
) -> ComparedFile:
    ours, theirs, detail = here.files.get(key), there.files.get(key), ""
    if ours is None or theirs is None:
        state = ONLY_THERE if ours is None else ONLY_HERE
    elif ours.sha256 == theirs.sha256:
        state = IDENTICAL
    elif ours.path is None or theirs.path is None:
        state, detail = UNMEASURED, "other bytes by the records; not there to be measured"
    else:
        portable = (here.portable, there.portable)
        difference = compare_files(ours.path, theirs.path, tolerances, portable)
        state, detail = difference.state, difference.detail
    return ComparedFile(
        key,
        (here if ours else there).stage(key),
        state,
        about_the_run(key),
        ours.sha256 if ours else None,
        theirs.sha256 if theirs else None,
        any(file is not None and file.path is None for file in (ours, theirs)),
        read,
        detail,
    )


def _origins(
    differing: set[str], here: Run, there: Run, order: Mapping[str, int]
) -> tuple[Origin, ...]:
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for key in sorted(differing):
        if not _follows(key, differing, here, there):
            stage = (here if key in here.files else there).stage(key)
            groups[stage, reasons_of(key, here, there)].append(key)
    found = [Origin(stage, tuple(keys), why) for (stage, why), keys in groups.items()]
    return tuple(sorted(found, key=lambda origin: (order[origin.stage], origin.keys)))


def _follows(key: str, differing: set[str], here: Run, there: Run) -> bool:
    """Whether a file differs because one that it was made from does."""
    files = [(run, run.files[key]) for run in (here, there) if key in run.files]
    if len(files) == 2 and any(file.changed_since for _, file in files):
        return False  # it was changed by itself, whatever it was made from
    inputs = [run.inputs(file.record) for run, file in files if file.record]
    return any(entry in differing for entries in inputs for entry in entries)


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
            for reason in differences_of_jobs(ours, theirs, here, there):
                by_rule[ours.rule][reason] = None
    rules = [rule for rule in here.records.rule_order if rule in by_rule]
    return found | {f"rule {rule}": list(by_rule[rule]) for rule in rules}


def _commits(run: Run) -> str:
    """Commits of the code that the jobs ran; ``+`` marks one with changes on top."""
    code = [record.content["code"] for record in run.records.all.values()]
    names = {f"{(c['commit'] or 'unknown')[:12]}{'+' if c['diff_sha256'] else ''}" for c in code}
    return " ".join(sorted(names))


def _notes(here: Run, there: Run, unread: list[str]) -> Iterator[str]:
    for side, run in (("here", here), ("there", there)):
        if broken := run.records.broken:
            key, why = next(iter(broken.items()))
            yield f"{len(broken)} records {side} cannot be relied on; the first: {key} {why}"
    if unread:
        yield f"not read, because one run does not hold them: {', '.join(unread)}"


# Cells ---------------------------------------------------------------------------------------


def _touched_cells(
    table: str, here: Run, there: Run, touched: Container[str]
) -> Iterator[ComparedCell]:
    """Cells of a table in long form that differ, or rest on files that are touched."""
    ours, theirs = (_lines(run.files[table].path) for run in (here, there))
    for key in dict.fromkeys([*ours, *theirs]):
        identity = dict(key)
        rests = any(_rests_on(identity, table, run, touched) for run in (here, there))
        row = " ".join(identity[name] for name in ROW if name in identity)
        column = "/".join(v for name, v in identity.items() if name not in (*ROW, "metric"))
        left, right = ours.get(key, {}), theirs.get(key, {})
        names = list(dict.fromkeys([*left, *right]))
        if "metric" in identity:
            both = [name for name in names if name != "mean"] if left and right else []
            apart = [name for name in both if left.get(name) != right.get(name)]
            also = tuple(f"{name}: {left.get(name)} → {right.get(name)}" for name in apart)
            values = {identity["metric"]: (left.get("mean"), right.get("mean"))}
        else:  # one metric per column
            also, values = (), {name: (left.get(name), right.get(name)) for name in names}
        for metric, pair in values.items():
            cell = ComparedCell(table, row, column, metric, *pair, also)
            if cell.differs or (rests and ("metric" in identity or cell.difference is not None)):
                yield cell


def _lines(path: Path) -> dict[tuple[tuple[str, str], ...], dict[str, str]]:
    """Lines of a CSV, the identity apart from the values."""
    import pandas as pd

    lines = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    return {
        tuple((name, line[name]) for name in IDENTITY if name in line): {
            name: value for name, value in line.items() if name not in IDENTITY
        }
        for line in lines
    }


def _rests_on(identity: dict[str, str], table: str, run: Run, touched: Container[str]) -> bool:
    """Whether a line was made from a file that differs.

    A table reads files of many cells. Those of a line are the ones whose jobs have its method,
    experiment, test set or fold as wildcards, and no other; a table of which no input has any
    rests on all of them.
    """
    job = run.files[table].record
    if job is None:
        return False
    wanted = {IDENTITY[name]: value for name, value in identity.items()}
    own, inputs = [], run.inputs(job)
    for key in inputs:
        made_by = run.records.producers.get(key)
        shared = wanted.keys() & (made_by.wildcards if made_by else {})
        if shared and all(made_by.wildcards[name] == wanted[name] for name in shared):
            own.append(key)
    return any(key in touched for key in own or inputs)


def _largest_first(cell: ComparedCell) -> tuple[bool, bool, float]:
    """What differs first, tables before studies."""
    return not cell.differs, not cell.table.startswith(TABLES), -abs(cell.difference or 0.0)
