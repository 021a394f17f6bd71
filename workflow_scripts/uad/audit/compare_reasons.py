"""Why a file of two runs differs although what it was made from does not, as far as records say."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from uad.audit.compare_trees import CODE, RAW, Run
from uad.core.records import Record

#: Files that describe a run and not a result, by key; ``*`` also spans folders. They differ between
#: any two runs.
ABOUT_THE_RUN = (
    "logs/*",
    "benchmarks/*",
    "audit/*",
    "notebooks/audit.*",  # shows the audit, with times and places
    "config.resolved.yaml",  # told apart by value; where it matters, it is in a job's params
    "preflight.json",  # disk figures
    "cost/*",  # seconds and memory on one machine
    "tables/cost.*",
    "report.html",  # holds the others, with the times of all jobs
    "report/*",  # its pages about the configuration and the data
    "crate.zip",  # holds the others, with their records
    "README.md",  # of the repository, where its own results folder is used
    "*/checkpoint/*",  # of a training that has not ended
)
#: Changes of one kind that are told; the rest is counted.
MOST = 5


def about_the_run(key: str) -> bool:
    """Whether a file, by its key, can differ without a result being another one."""
    return any(fnmatchcase(key, pattern) for pattern in ABOUT_THE_RUN)


def reasons_of(key: str, here: Run, there: Run) -> tuple[str, ...]:
    """Reasons for one file, the likeliest first; at least one.

    Each is a clause that can stand alone; values are those here, an arrow, those there.
    """
    ours, theirs, found = here.files.get(key), there.files.get(key), []
    if ours and theirs:
        jobs = [ours.record, theirs.record]
        sides = [s for s, file in (("here", ours), ("there", theirs)) if file.changed_since]
        if sides:
            found.append(f"other bytes: changed after it was made ({' and '.join(sides)})")
            if ours.expected == theirs.expected:
                return tuple(found)  # a job that wrote the same needs no other reason
        if not all(jobs):
            other = {RAW: "other raw bytes", CODE: "another version of this file of the repository"}
            found.append(other.get(here.stage(key), "no record says how it was made"))
    else:
        record, side = (ours or theirs).record, "there" if ours else "here"
        jobs = [run.records.all.get(record.key) if record else None for run in (here, there)]
        ran = "ran, and did not make it" if all(jobs) else "did not run"
        found.append(f"not {side}" + (f": the job ({record.rule}) {ran}" if record else ""))
    if all(jobs):
        found += [*_other_inputs(*jobs, here, there), *differences_of_jobs(*jobs, here, there)]
    return tuple(found) or ("same inputs, params, code: not deterministic here",)


def differences_of_jobs(ours: Record, theirs: Record, here: Run, there: Run) -> Iterator[str]:
    """What two jobs that made the same file did not have in common, besides their inputs."""
    facts, others = _facts(ours, here), _facts(theirs, there)
    for kind in facts:
        found = changes(facts[kind], others[kind])
        if kind == "code":
            found = sorted({text.partition(" ")[0] for text in found})
        if found:
            yield f"other {kind}: {_listed(found)}"


def _facts(record: Record, run: Run) -> dict[str, Any]:
    """What a job was asked for and what it ran on, by kind of reason."""
    content, code, host = record.content, record.content["code"], record.content["host"]
    environment, seeds = dict(content["environment"]), content["seeds"]
    pins = (environment.pop("lock_sha256", None) or "none")[:12]
    params = {k: v for k, v in record.params.items() if k != "seed" or "run" not in seeds}
    return {
        "seed": seeds,
        "params": run.asked(params),
        "config": run.asked(content["config"]["used"]),
        "code": {f"{record.rule}.py": code["script_sha256"], **code["library_files"]},
        "environment": {
            **environment,
            "platform": host["platform"],
            "packages (uv.lock)": pins,
        },
        "device": {
            "device": host["device"],
            "driver": host.get("driver"),
            "threads": content["threads"],
        },
    }


def _other_inputs(ours: Record, theirs: Record, here: Run, there: Run) -> Iterator[str]:
    """What only one of two jobs read, or read with other bytes."""
    left, right = here.inputs(ours), there.inputs(theirs)
    for side, more, less in (("here", left, right), ("there", right, left)):
        if names := [key for key in more if key not in less]:
            yield f"read only {side}: {_listed(names)}"
    other = [key for key in left if key in right and left[key] != right[key]]
    if about := [key for key in other if about_the_run(key)]:
        yield f"reads what describes the run: {_listed(about)}"
    # the files agree today, but did not when the two jobs read them
    now = [{k: run.files[k].sha256 for k in other if k in run.files} for run in (here, there)]
    if stale := [key for key in other if key not in about and now[0].get(key) == now[1].get(key)]:
        yield f"read other bytes when it was made: {_listed(stale)}"


def changes(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """``key: here → there`` for each value that differs in two nested contents."""
    lists = isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs)
    if lists and any(isinstance(value, dict | list) for value in ours):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            text
            for key in dict.fromkeys([*ours, *theirs])
            for text in changes(ours.get(key), theirs.get(key), f"{where}.{key}".lstrip("."))
        ]
    texts = ("none" if value is None else str(value) for value in (ours, theirs))
    short = (text if len(text) <= 60 else f"{text[:59]}…" for text in texts)
    return [] if ours == theirs else [f"{where} {' → '.join(short)}".strip()]


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return ", ".join(texts[:MOST]) + more
