"""Two runs, artifact by artifact: what is identical, what differs, where they part and why.

>>> comparison = compare("results", "theirs/results")  # doctest: +SKIP
>>> comparison.verdict  # doctest: +SKIP
'identical'
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from uad.comparison.about import about_the_run
from uad.comparison.cells import FOLDERS, Cell, touched_cells
from uad.comparison.contents import TOLERANCES, Tolerance, compare_files
from uad.comparison.reasons import Reason, changes, differences_of_jobs, reasons_of
from uad.comparison.trees import CODE, RAW, UNKNOWN, File, Run, open_run
from uad.records import Records

__all__ = [
    "TOLERANCES",
    "Cell",
    "Comparison",
    "Finding",
    "Origin",
    "Tolerance",
    "compare",
    "compare_runs",
]

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


@dataclass(frozen=True)
class Finding:
    """One file of two runs.

    Attributes:
        key: its path below the results folder; ``repository:`` and ``external:`` before others.
        stage: the rule that made it, ``raw``, ``repository`` or ``no record``.
        state: one of ``STATES``.
        about_run: whether it describes a run and not a result; it has no part in the verdict.
        here: SHA-256, by the records where the file is not there; None if it is unknown.
        there: likewise.
        by_record: whether one of the two is known by the records only.
        read: whether a job made something from it.
        detail: how far they are apart.
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

    @property
    def judged(self) -> str:
        """The state as the verdict has it.

        How far two files are apart that are not there is seen in what was made from them; these
        files are judged themselves.
        """
        if self.state == UNMEASURED:
            return CLOSE if self.read else DIFFERENT
        return self.state


@dataclass(frozen=True)
class Origin:
    """Where two runs part: files that differ although all that they were made from does not.

    Attributes:
        stage: as in :class:`Finding`.
        keys: files of one stage that have the same reasons.
        reasons: why, the likeliest first.
    """

    stage: str
    keys: tuple[str, ...]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        here: one run, as it was named.
        there: the other.
        findings: all files, in the order of the stages.
        origins: where they part, the first stage first.
        cells: table cells that differ or rest on files that do: what differs first, tables before
            studies, the largest difference first.
        setup: what the runs were asked for and with what they were made, as far as it differs:
            sentences by ``config``, ``commit``, and ``rule <name>``.
        notes: what could not be compared, and why.
        phantom: one of the two is a run on phantom data.
    """

    here: str
    there: str
    findings: tuple[Finding, ...]
    origins: tuple[Origin, ...]
    cells: tuple[Cell, ...]
    setup: dict[str, list[str]]
    notes: tuple[str, ...]
    phantom: bool

    @cached_property
    def results(self) -> tuple[Finding, ...]:
        """Findings that count."""
        return tuple(finding for finding in self.findings if not finding.about_run)

    @cached_property
    def about_the_run(self) -> tuple[Finding, ...]:
        """Findings that do not."""
        return tuple(finding for finding in self.findings if finding.about_run)

    @property
    def verdict(self) -> str:
        """``identical``, ``identical within tolerance`` or ``different``."""
        states = {finding.judged for finding in self.results}
        if states <= set(ALIKE):
            return "identical"
        return "identical within tolerance" if states <= {*ALIKE, CLOSE} else "different"

    @property
    def same(self) -> bool:
        """Whether nothing differs by more than the tolerances."""
        return self.verdict != "different"

    def counts(self) -> dict[str, Counter[str]]:
        """Files by stage and state, in the order of the stages; only those that count."""
        found: dict[str, Counter[str]] = {}
        for finding in self.results:
            found.setdefault(finding.stage, Counter())[finding.state] += 1
        return found


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
    order = {stage: place for place, stage in enumerate(_stages(here, there))}
    made_from = _made_from((here, there))
    findings = [
        _finding(key, here, there, allowed, read=key in made_from)
        for key in sorted({*here.files, *there.files})
    ]
    findings.sort(key=lambda finding: (order[finding.stage], finding.key))
    differing = {f.key for f in findings if f.differs and not f.about_run}
    touched = _downstream(differing, made_from)
    tables = [
        f.key
        for f in findings
        if f.key.startswith(FOLDERS) and f.key.endswith(".csv") and not f.about_run
    ]
    at_hand = [key for key in tables if _at_hand(key, here) and _at_hand(key, there)]
    cells = sorted(touched_cells(at_hand, here, there, touched), key=_largest_first)
    return Comparison(
        here.name,
        there.name,
        tuple(findings),
        _origins(differing, here, there, order),
        tuple(cells),
        _setup(here, there),
        tuple(_notes(here, there, [key for key in tables if key not in at_hand])),
        here.phantom or there.phantom,
    )


def _stages(here: Run, there: Run) -> list[str]:
    """Rules of both runs in the order in which files pass through them; raw files first."""
    records = Records(
        here.root, here.records.repository, {**there.records.all, **here.records.all}, {}
    )
    return [RAW, CODE, *records.rule_order, UNKNOWN]


def _finding(
    key: str, here: Run, there: Run, tolerances: Mapping[str, Tolerance], *, read: bool
) -> Finding:
    ours, theirs = here.files.get(key), there.files.get(key)
    stage = (here if ours else there).stage(key)
    state, detail = _state(ours, theirs, here, there, tolerances)
    return Finding(
        key,
        stage,
        state,
        about_the_run(key),
        ours.sha256 if ours else None,
        theirs.sha256 if theirs else None,
        any(file is not None and file.path is None for file in (ours, theirs)),
        read,
        detail,
    )


def _state(
    ours: File | None,
    theirs: File | None,
    here: Run,
    there: Run,
    tolerances: Mapping[str, Tolerance],
) -> tuple[str, str]:
    if ours is None or theirs is None:
        return (ONLY_THERE if ours is None else ONLY_HERE), ""
    if ours.sha256 == theirs.sha256:
        return IDENTICAL, ""
    if ours.path is None or theirs.path is None:
        return UNMEASURED, "other bytes by the records; not there to be measured"
    portable = (here.portable, there.portable)
    difference = compare_files(ours.path, theirs.path, tolerances, portable)
    return difference.state, str(difference)


def _made_from(runs: Iterable[Run]) -> dict[str, set[str]]:
    """What was made from each file in one of the runs."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for record in run.records.all.values():
            for key in run.inputs(record):
                found.setdefault(key, set()).update(entry.key for entry in record.outputs)
    return found


def _downstream(keys: Iterable[str], made_from: Mapping[str, set[str]]) -> set[str]:
    """Some files, and all that was made from them."""
    found, waiting = set(keys), deque(keys)
    while waiting:
        for key in made_from.get(waiting.popleft(), ()):
            if key not in found:
                found.add(key)
                waiting.append(key)
    return found


def _origins(
    differing: set[str], here: Run, there: Run, order: Mapping[str, int]
) -> tuple[Origin, ...]:
    groups: dict[tuple[str, tuple[Reason, ...]], list[str]] = {}
    for key in sorted(differing):
        if _follows(key, differing, here, there):
            continue
        stage = (here if key in here.files else there).stage(key)
        groups.setdefault((stage, reasons_of(key, here, there)), []).append(key)
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
        found["commit"] = [f"{' '.join(commits[0])} → {' '.join(commits[1])}"]
    by_rule: dict[str, dict[str, None]] = {}
    for key, ours in here.records.all.items():
        if theirs := there.records.all.get(key):
            for reason in differences_of_jobs(ours, theirs, here, there):
                if reason.kind != "inputs":
                    by_rule.setdefault(ours.rule, {})[reason.text] = None
    for rule in here.records.rule_order:
        if rule in by_rule:
            found[f"rule {rule}"] = list(by_rule[rule])
    return found


def _commits(run: Run) -> list[str]:
    """Commits of the code that the jobs ran; ``+`` marks one with changes on top."""
    code = [record.content["code"] for record in run.records.all.values()]
    names = {f"{(c['commit'] or 'unknown')[:12]}{'+' if c['diff_sha256'] else ''}" for c in code}
    return sorted(names)


def _notes(here: Run, there: Run, unread: list[str]) -> Iterable[str]:
    for side, run in (("here", here), ("there", there)):
        if broken := run.records.broken:
            key, why = next(iter(broken.items()))
            yield f"{len(broken)} records {side} cannot be relied on; the first: {key} {why}"
    if unread:
        yield f"not read, because one run does not hold them: {', '.join(unread)}"


def _at_hand(key: str, run: Run) -> bool:
    return key in run.files and run.files[key].path is not None


def _largest_first(cell: Cell) -> tuple[bool, bool, float]:
    """What differs first, tables before studies."""
    is_study = not cell.table.startswith(FOLDERS[0])
    return not cell.differs, is_study, -abs(cell.difference or 0.0)
