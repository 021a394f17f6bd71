"""Why a file of two runs differs although what it was made from does not, as far as records say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
NOT_DETERMINISTIC = "same inputs, params, code: not deterministic here"


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        kind: ``changed since``, ``not made``, ``raw bytes``, ``repository``, ``inputs``, ``seed``,
            ``params``, ``config``, ``script``, ``library``, ``environment``, ``device``,
            ``no record`` or ``unknown``.
        text: a clause that can stand alone; values are those here, an arrow, those there.
    """

    kind: str
    text: str


def about_the_run(key: str) -> bool:
    """Whether a file, by its key, can differ without a result being another one."""
    return any(fnmatchcase(key, pattern) for pattern in ABOUT_THE_RUN)


def reasons_of(key: str, here: Run, there: Run) -> tuple[Reason, ...]:
    """Reasons for one file, the likeliest first; at least one."""
    ours, theirs = here.files.get(key), there.files.get(key)
    if ours is None or theirs is None:
        return tuple(_not_made(key, here, there))
    found = []
    sides = [s for s, file in (("here", ours), ("there", theirs)) if file.changed_since]
    if sides:
        text = f"other bytes: changed after it was made ({' and '.join(sides)})"
        found.append(Reason("changed since", text))
        if ours.expected == theirs.expected:
            return tuple(found)  # a job that wrote the same needs no other reason
    if ours.record and theirs.record:
        found += differences_of_jobs(ours.record, theirs.record, here, there)
        return tuple(found) or (Reason("unknown", NOT_DETERMINISTIC),)
    other = {
        RAW: Reason("raw bytes", "other raw bytes"),
        CODE: Reason("repository", "another version of this file of the repository"),
    }.get(here.stage(key), Reason("no record", "no record says how it was made"))
    return (*found, other)


def _not_made(key: str, here: Run, there: Run) -> Iterator[Reason]:
    side, lacks, has = ("there", there, here) if key in here.files else ("here", here, there)
    record = has.files[key].record
    if record is None:
        yield Reason("not made", f"not {side}")
    elif record.key not in lacks.records.all:
        yield Reason("not made", f"not {side}: the job ({record.rule}) did not run")
    else:
        yield Reason("not made", f"not {side}: the job ({record.rule}) ran, and did not make it")
        jobs = (run.records.all[record.key] for run in (here, there))
        yield from differences_of_jobs(*jobs, here, there)


def differences_of_jobs(ours: Record, theirs: Record, here: Run, there: Run) -> Iterator[Reason]:
    """What two jobs that made the same file did not have in common."""
    yield from _inputs(here.inputs(ours), there.inputs(theirs), here, there)
    facts = [_facts(record, run) for record, run in ((ours, here), (theirs, there))]
    for kind in ("seed", "params", "config"):
        yield from _others(kind, *(fact[kind] for fact in facts))
    code, other = ours.content["code"], theirs.content["code"]
    if code["script_sha256"] != other["script_sha256"]:
        yield Reason("script", f"other code: script {ours.rule}.py")
    files = code["library_files"], other["library_files"]
    names = sorted({*files[0], *files[1]})
    if names := [name for name in names if files[0].get(name) != files[1].get(name)]:
        yield Reason("library", f"other code: library {_listed(names)}")
    for kind in ("environment", "device"):
        yield from _others(kind, *(fact[kind] for fact in facts))


def _others(kind: str, ours: Any, theirs: Any) -> Iterator[Reason]:
    if found := changes(ours, theirs):
        yield Reason(kind, f"other {kind}: {_listed(found)}")


def _facts(record: Record, run: Run) -> dict[str, Any]:
    """What a job was asked for and what it ran on, by kind of reason."""
    content = record.content
    environment, host, seeds = dict(content["environment"]), content["host"], content["seeds"]
    pins = environment.pop("lock_sha256", None)
    # the run's seed is told as a seed
    params = {k: v for k, v in record.params.items() if not ("run" in seeds and k == "seed")}
    return {
        "seed": seeds,
        "params": run.portable(params),
        "config": run.portable(content["config"]["used"]),
        "environment": {
            **environment,
            "platform": host["platform"],
            "packages (uv.lock)": pins and pins[:12],
        },
        "device": {
            "device": host["device"],
            "driver": host.get("driver"),
            "threads": content["threads"],
        },
    }


def _inputs(
    ours: dict[str, str | None], theirs: dict[str, str | None], here: Run, there: Run
) -> Iterator[Reason]:
    for side, more, less in (("here", ours, theirs), ("there", theirs, ours)):
        if names := [key for key in more if key not in less]:
            yield Reason("inputs", f"read only {side}: {_listed(names)}")
    other = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if about := [key for key in other if about_the_run(key)]:
        yield Reason("inputs", f"reads what describes the run: {_listed(about)}")

    def now(key: str, run: Run) -> str | None:
        return run.files[key].sha256 if key in run.files else None

    # the files agree today, but did not when the two jobs read them
    stale = [key for key in other if key not in about and now(key, here) == now(key, there)]
    if stale:
        yield Reason("inputs", f"read other bytes when it was made: {_listed(stale)}")


def changes(ours: Any, theirs: Any) -> list[str]:
    """``key: here → there`` for each value that differs in two nested contents."""
    return list(_changes(ours, theirs, ""))


def _changes(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            name = f"{where}.{key}" if where else str(key)
            yield from _changes(ours.get(key), theirs.get(key), name)
    elif (
        isinstance(ours, list)
        and isinstance(theirs, list)
        and len(ours) == len(theirs)
        and any(isinstance(value, dict | list) for value in ours)
    ):
        for i, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            yield from _changes(left, right, f"{where}[{i}]")
    elif ours != theirs:
        yield f"{where} {_value(ours)} → {_value(theirs)}".strip()


def _value(value: Any, most: int = 60) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return ", ".join(texts[:MOST]) + more
