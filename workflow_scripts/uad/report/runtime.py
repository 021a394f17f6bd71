"""What a run took: jobs, time and memory by rule, and from which code and environment, by records.

Only the jobs behind given files count, so that a job that ran since changes nothing.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from uad.core.records import Record, Records
from uad.report.render import Cell, Document, PathLike, Row, counted, html_page, write_all

__all__ = [
    "cost_by_rule",
    "environments",
    "job_table",
    "jobs_behind",
    "only",
    "run_facts",
    "write_runtime_page",
]

_NONE = "–"


def jobs_behind(records: Records, keys: Sequence[str]) -> list[Record]:
    """The records of the jobs that made some files, and of those before them, by their keys."""
    found = {
        record.key: record
        for key in records.ancestors(keys)
        if (record := records.producers.get(key)) is not None
    }
    return [found[key] for key in sorted(found)]


def only(records: Records, jobs: Sequence[Record]) -> Records:
    """Records without those of other jobs, which may be at work or stem from an earlier run.

    So the order of the rules, and who made a file, follow from the given jobs alone.
    """
    return replace(records, all={job.key: job for job in jobs})


def job_table(jobs: Sequence[Record]) -> pd.DataFrame:
    """One row per job.

    Returns:
        ``key`` (of the record), ``rule``, ``seconds``, ``threads``, ``core_seconds``,
        ``peak_memory_mib``, ``peak_gpu_memory_mib`` (NaN without one), ``record_seconds`` (that
        writing the record took), ``started`` and ``ended`` (seconds since 1970), ``bytes`` of
        the outputs, ``device``, ``driver``, ``host``, ``commit``, ``diff``, ``lock``.
    """
    rows = []
    for job in jobs:
        content = job.content
        started = calendar.timegm(time.strptime(content["started"], "%Y-%m-%dT%H:%M:%SZ"))
        host, code = content["host"], content["code"]
        rows.append(
            {
                "key": job.key,
                "rule": job.rule,
                "seconds": content["seconds"],
                "threads": content["threads"],
                "core_seconds": content["seconds"] * content["threads"],
                "peak_memory_mib": content["peak_memory_mib"],
                "peak_gpu_memory_mib": content["peak_gpu_memory_mib"],
                "record_seconds": content["record_seconds"],
                "started": started,
                "ended": started + content["seconds"],
                "bytes": sum(output.bytes or 0 for output in job.outputs),
                "device": host["device"],
                "driver": host["driver"],
                "host": host["name"],
                "commit": code["commit"],
                "diff": code["diff_sha256"],
                "lock": content["environment"]["lock_sha256"],
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({"peak_gpu_memory_mib": float}) if len(frame) else frame


def cost_by_rule(jobs: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Sums and extremes by rule.

    Args:
        jobs: from :func:`job_table`.
        order: of the rules, see ``Records.rule_order``.

    Returns:
        ``rule``, ``jobs``, ``core_hours``, ``share`` of all core hours in percent, ``mean`` and
        ``longest`` seconds of a job, ``memory_mib`` and ``gpu_memory_mib`` at most.
    """
    grouped = jobs.groupby("rule", sort=False)
    frame = pd.DataFrame(
        {
            "jobs": grouped.size(),
            "core_hours": grouped["core_seconds"].sum() / 3600,
            "mean": grouped["seconds"].mean(),
            "longest": grouped["seconds"].max(),
            "memory_mib": grouped["peak_memory_mib"].max(),
            "gpu_memory_mib": grouped["peak_gpu_memory_mib"].max(),
        }
    )
    frame.insert(2, "share", 100 * frame["core_hours"] / frame["core_hours"].sum())
    return frame.reindex([rule for rule in order if rule in frame.index]).reset_index()


def run_facts(jobs: pd.DataFrame) -> dict[str, Any]:
    """Totals over all jobs.

    Returns:
        ``jobs``, ``core_hours``, ``hours`` from the first start to the last end (pauses
        included), ``gigabytes`` written, ``hosts`` (how many), ``devices`` and ``drivers`` (names),
        ``memory_mib`` and ``gpu_memory_mib`` at most, ``record_seconds`` and
        ``record_share`` of the jobs' time in percent.
    """
    return {
        "jobs": len(jobs),
        "core_hours": float(jobs["core_seconds"].sum() / 3600),
        "hours": float((jobs["ended"].max() - jobs["started"].min()) / 3600),
        "gigabytes": float(jobs["bytes"].sum() / 1e9),
        "hosts": int(jobs["host"].nunique()),
        "devices": sorted(set(jobs["device"])),
        "drivers": sorted(set(jobs["driver"].dropna())),
        "memory_mib": float(jobs["peak_memory_mib"].max()),
        "gpu_memory_mib": float(jobs["peak_gpu_memory_mib"].max()),
        "record_seconds": float(jobs["record_seconds"].sum()),
        "record_share": float(100 * jobs["record_seconds"].sum() / jobs["seconds"].sum()),
    }


def environments(jobs: Sequence[Record]) -> dict[str, list[str]]:
    """Versions of Python and of the main packages; more than one where jobs differ."""
    found: dict[str, set[str]] = {}
    for job in jobs:
        for name, version in job.content["environment"].items():
            if name != "lock_sha256":
                found.setdefault(name, set()).add(version)
    return {name: sorted(found[name]) for name in sorted(found)}


def write_runtime_page(
    path: PathLike, jobs: Sequence[Record], order: Sequence[str], *, phantom: bool
) -> None:
    """Write what the run took as a page of HTML.

    Args:
        path: of the page.
        jobs: from :func:`jobs_behind`.
        order: of the rules.
        phantom: the run worked on phantoms: title and caption say so.
    """
    table = job_table(jobs)
    document = _document(cost_by_rule(table, order), run_facts(table), phantom)
    write_all([path], {".html": lambda: html_page(document)})


def _document(costs: pd.DataFrame, facts: dict[str, Any], phantom: bool) -> Document:
    has_gpu = costs["gpu_memory_mib"].notna().any()
    heads = ["jobs", "core hours", "share", "mean", "longest", "memory [MiB]"]
    rows = [
        Row(
            str(cost.rule),
            [
                Cell(text)
                for text in (
                    str(cost.jobs),
                    hours(cost.core_hours),
                    f"{cost.share:.1f} %",
                    duration(cost.mean),
                    duration(cost.longest),
                    f"{cost.memory_mib:.0f}",
                    *([_whole(cost.gpu_memory_mib)] if has_gpu else []),
                )
            ],
        )
        for cost in costs.itertuples()
    ]
    total = [str(facts["jobs"]), hours(facts["core_hours"]), "100 %", _NONE, _NONE]
    total += [f"{facts['memory_mib']:.0f}", *([_whole(facts["gpu_memory_mib"])] if has_gpu else [])]
    rows.append(Row("all", [Cell(text) for text in total], apart=True))
    return Document(
        name="runtime",
        title="What this run took" + (" (phantom data)" if phantom else ""),
        caption=[
            f"{counted(facts['jobs'], 'job')} on {counted(facts['hosts'], 'machine')} "
            f"({', '.join(facts['devices'])}), {hours(facts['core_hours'])} core hours, "
            f"{duration(3600 * facts['hours'])} from the first start to the last end, pauses "
            f"included; {facts['gigabytes']:.2f} GB written. From the records of the jobs behind "
            "the tables, figures and checks."
        ],
        warning=(
            "Phantom volumes and networks are as small as the configuration says: these times say "
            "nothing about real scans."
            if phantom
            else ""
        ),
        corner="Rule",
        heads=[("", head) for head in [*heads, *(["GPU memory [MiB]"] if has_gpu else [])]],
        rows=rows,
        footnotes=[
            "Core hours: seconds of a job times the cores that it was given. Start-up of the "
            "interpreter is not in them, nor is the scheduling of jobs.",
            "Memory: the largest of any job of the rule. On a GPU, what PyTorch reserved.",
            f"Provenance records took {facts['record_seconds']:.1f} s, "
            f"{facts['record_share']:.2f} % of the jobs' time.",
            "Times differ between runs; comparing two runs leaves this page out.",
        ],
    )


def hours(number: float) -> str:
    """Hours with about three digits."""
    if number >= 10:
        return f"{number:.1f}"
    return f"{number:.3f}" if number >= 0.01 else f"{number:.4f}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 05 s`` or ``3 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _whole(number: float) -> str:
    return _NONE if number != number else f"{number:.0f}"
