"""What a run took: jobs, time and memory by rule, and from which code and environment, by records.

Only the jobs behind given files count, so that a job that ran since changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from uad.core.files import write_text
from uad.core.records import Record, Records
from uad.report.html import render_page
from uad.report.render import PathLike, counted, titled


def jobs_behind(records: Records, keys: Sequence[str]) -> list[Record]:
    """The records of the jobs that made some files, and of those before them, by their keys."""
    makers = (records.producers.get(key) for key in records.ancestors(keys))
    found = {record.key: record for record in makers if record is not None}
    return [found[key] for key in sorted(found)]


def only(records: Records, jobs: Sequence[Record]) -> Records:
    """Records without those of other jobs, which may be at work or stem from an earlier run.

    So the order of the rules, and who made a file, follow from the given jobs alone.
    """
    return replace(records, all={job.key: job for job in jobs})


def job_table(jobs: Sequence[Record]) -> pd.DataFrame:
    """One row per job: what its record says of time (since 1970), memory, machine and code."""
    copied = "rule seconds threads peak_memory_mib peak_gpu_memory_mib record_seconds started"
    renamed = {
        "host.name": "host",
        "host.device": "device",
        "host.driver": "driver",
        "code.commit": "commit",
        "code.diff_sha256": "diff",
        "environment.lock_sha256": "lock",
    }
    frame = pd.json_normalize([job.content for job in jobs])[[*copied.split(), *renamed]]
    frame = frame.rename(columns=renamed)
    started = pd.to_datetime(frame["started"]).dt.tz_localize(None) - pd.Timestamp(0)
    frame["started"] = started.dt.total_seconds()
    return frame.astype({"peak_gpu_memory_mib": float}).assign(
        key=[job.key for job in jobs],
        bytes=[sum(output.bytes or 0 for output in job.outputs) for job in jobs],
        ended=frame["started"] + frame["seconds"],
        core_seconds=frame["seconds"] * frame["threads"],
    )


def cost_by_rule(jobs: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Sums and extremes by rule, in the given order, of a :func:`job_table`; shares in percent."""
    frame = jobs.groupby("rule").agg(
        jobs=("key", "size"),
        core_hours=("core_seconds", "sum"),
        share=("core_seconds", "sum"),
        mean=("seconds", "mean"),
        longest=("seconds", "max"),
        memory_mib=("peak_memory_mib", "max"),
        gpu_memory_mib=("peak_gpu_memory_mib", "max"),
    )
    frame["core_hours"] /= 3600
    frame["share"] *= 100 / frame["share"].sum()
    return frame.reindex([rule for rule in order if rule in frame.index]).reset_index()


def run_facts(jobs: pd.DataFrame) -> dict[str, Any]:
    """Totals over all jobs of a :func:`job_table`; ``hours`` have the pauses in between."""
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
    versions = pd.DataFrame([job.content["environment"] for job in jobs])
    names = sorted(set(versions) - {"lock_sha256"})
    return {name: sorted(versions[name].dropna().unique()) for name in names}


def write_runtime_page(
    path: PathLike, jobs: Sequence[Record], order: Sequence[str], *, phantom: bool
) -> None:
    """Write what the jobs took as a page, the rules in the given order."""
    table = job_table(jobs)
    costs = cost_by_rule(table, order)
    page = render_page(
        "runtime.html",
        title=titled("What this run took", phantom),
        phantom=phantom,
        costs=costs.to_dict("records"),
        has_gpu=bool(costs["gpu_memory_mib"].notna().any()),
        facts=run_facts(table),
        counted=counted,
        hours=hours,
        duration=duration,
        whole=lambda number: "–" if pd.isna(number) else f"{number:.0f}",
    )
    write_text(path, page)


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
