"""Why a file of two runs differs although what it was made from does not, as far as records say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from uad.comparison.about import about_the_run
from uad.comparison.trees import CODE, RAW, File, Run
from uad.records import Record

#: Changes of one kind that are told; the rest is counted.
MOST = 5
NOT_DETERMINISTIC = "same inputs, params, code: not deterministic here"
ARROW = "→"


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


def reasons_of(key: str, here: Run, there: Run) -> tuple[Reason, ...]:
    """Reasons for one file, the likeliest first; at least one."""
    ours, theirs = here.files.get(key), there.files.get(key)
    if ours is None or theirs is None:
        return tuple(_not_made(key, here, there))
    found = list(_changed_since(ours, theirs))
    if found and ours.expected == theirs.expected:
        return tuple(found)  # a job that wrote the same needs no other reason
    if ours.record and theirs.record:
        found += differences_of_jobs(ours.record, theirs.record, here, there)
        return tuple(found) or (Reason("unknown", NOT_DETERMINISTIC),)
    if here.stage(key) == RAW:
        found.append(Reason("raw bytes", "other raw bytes"))
    elif here.stage(key) == CODE:
        found.append(Reason("repository", "another version of this file of the repository"))
    else:
        found.append(Reason("no record", "no record says how it was made"))
    return tuple(found)


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


def _changed_since(ours: File, theirs: File) -> Iterator[Reason]:
    sides = [s for s, file in (("here", ours), ("there", theirs)) if file.changed_since]
    if sides:
        where = " and ".join(sides)
        yield Reason("changed since", f"other bytes: changed after it was made ({where})")


def differences_of_jobs(ours: Record, theirs: Record, here: Run, there: Run) -> Iterator[Reason]:
    """What two jobs that made the same file did not have in common."""
    yield from _inputs(here.inputs(ours), there.inputs(theirs), here, there)
    told = [_told(record, run) for record, run in ((ours, here), (theirs, there))]
    yield from _others(*told, ("seed", "params", "config"))
    code, other = ours.content["code"], theirs.content["code"]
    if code["script_sha256"] != other["script_sha256"]:
        yield Reason("script", f"other code: script {ours.rule}.py")
    files = code["library_files"], other["library_files"]
    names = sorted({*files[0], *files[1]})
    if names := [name for name in names if files[0].get(name) != files[1].get(name)]:
        yield Reason("library", f"other code: library {_listed(names)}")
    yield from _others(*told, ("environment", "device"))


def _others(
    ours: dict[str, Any], theirs: dict[str, Any], kinds: tuple[str, ...]
) -> Iterator[Reason]:
    for kind in kinds:
        if found := changes(ours[kind], theirs[kind]):
            yield Reason(kind, f"other {kind}: {_listed(found)}")


def _told(record: Record, run: Run) -> dict[str, Any]:
    """What a job was asked for and what it ran on, by kind of reason."""
    content = record.content
    environment, host = dict(content["environment"]), content["host"]
    pins = environment.pop("lock_sha256", None)
    seeds = content["seeds"]
    return {
        "seed": seeds,
        "params": _portable(_params(record), run),
        "config": _portable(content["config"]["used"], run),
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


def _params(record: Record) -> dict[str, Any]:
    """Params; without the run's seed, which would be the same news."""
    known = "run" in record.content["seeds"]
    return {name: value for name, value in record.params.items() if not (known and name == "seed")}


def _inputs(
    ours: dict[str, str | None], theirs: dict[str, str | None], here: Run, there: Run
) -> Iterator[Reason]:
    for side, more, less in (("here", ours, theirs), ("there", theirs, ours)):
        if names := [key for key in more if key not in less]:
            yield Reason("inputs", f"read only {side}: {_listed(names)}")
    shared = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if about := [key for key in shared if about_the_run(key)]:
        yield Reason("inputs", f"reads what describes the run: {_listed(about)}")
    # the files agree today, but did not when the two jobs read them
    stale = [
        key
        for key in shared
        if not about_the_run(key) and _digest(key, here) == _digest(key, there)
    ]
    if stale:
        yield Reason("inputs", f"read other bytes when it was made: {_listed(stale)}")


def _digest(key: str, run: Run) -> str | None:
    return run.files[key].sha256 if key in run.files else None


def _portable(content: Any, run: Run) -> Any:
    if isinstance(content, dict):
        return {key: _portable(value, run) for key, value in content.items()}
    if isinstance(content, list):
        return [_portable(value, run) for value in content]
    return run.portable(content) if isinstance(content, str) else content


def changes(ours: Any, theirs: Any) -> list[str]:
    """``key: here → there`` for each value that differs in two nested contents."""
    return list(_changes(ours, theirs))


def _changes(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
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
        yield f"{where} {_value(ours)} {ARROW} {_value(theirs)}".strip()


def _value(value: Any, most: int = 60) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return ", ".join(texts[:MOST]) + more
