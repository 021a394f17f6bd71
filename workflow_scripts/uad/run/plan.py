"""What a target would cost: the jobs of a dry run times their seconds, put together and printed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from uad.config import Config
from uad.core.paths import Tree
from uad.run.estimates import Estimator, finished_jobs
from uad.run.jobs import UPSTREAM, Command, Job, submissions
from uad.run.mirror import Mirror

#: What the words in the last column mean.
SOURCES = {
    "measured": "timed once, on the machine that resources/unit_costs.yaml names",
    "derived": "not measured: operations counted, at an assumed rate; or as the file says",
    "unknown": "no cost is known, for example of a network with other options: not in the hours",
    "finished jobs": "the mean of their records, scaled by the work",
}
_COUNTS = ["to_do", "done"]
_HOURS = ["core_hours", "gpu_hours", "derived_core_hours", "derived_gpu_hours"]


def make_plan(
    cfg: Config,
    command: Command,
    targets: Sequence[str],
    *,
    directory: str | Path = ".",
    tflops: float | None = None,
) -> dict[str, Any]:
    """Plan targets without running, writing or locking anything in the working directory.

    Returns:
        Plain data: ``targets``; ``rows``, one per rule: ``to_do``, ``done`` (its jobs in these
        results), ``core_hours`` and ``gpu_hours`` that the jobs to do hold, ``derived_...`` those
        of them that are not measured, ``sources`` (how many jobs have their cost from where);
        ``totals``; ``tflops`` behind derived GPU-hours; ``bytes_kept``, ``bytes_peak`` (no
        temporary file removed before the end), ``bytes_free``; ``bytes_raw`` of raw data that are
        not there, by data set (null: unknown); ``scheduler`` and ``submissions`` (groups, single
        jobs); ``notes`` on what was stood in for.

    Raises:
        DataError: Snakemake refuses, or a raw tree cannot be used.
    """
    results, scheduler = Path(directory, cfg.results).resolve(), command.executor()
    with tempfile.TemporaryDirectory(prefix="uad-plan-") as folder:
        mirror = Mirror(Path(folder), Path(directory), cfg)
        jobs = _jobs_to_do(mirror, command, targets)
        tables = mirror.tables()
    keys = {job.key for job in jobs}
    finished = [entry for entry in finished_jobs(results) if entry[0].key not in keys]
    estimator = Estimator(cfg, tables, finished, tflops)
    records = [{"rule": job.rule, "done": 1} for job, _ in finished]
    records += [_record(job, estimator) for job in jobs]
    columns = ["rule", *_COUNTS, *_HOURS, "kept", "temporary", "source"]
    table = pd.DataFrame(records, columns=columns)
    order = {cost["rule"]: place for place, cost in enumerate(estimator.costs["costs"])}
    rules = sorted(table["rule"].unique(), key=lambda rule: order.get(rule, 1000))
    of_run = {job.wildcards["dataset"] for job in jobs if job.rule in UPSTREAM}
    raw = {name: size for name, size in mirror.raw.items() if name in of_run}
    kept = float(table["kept"].sum() + sum(size or 0 for size in raw.values()))
    existing = next(path for path in (results, *results.parents) if path.exists())
    return {
        "targets": list(targets),
        "rows": [{"rule": rule, **_totals(table[table["rule"] == rule])} for rule in rules],
        "totals": _totals(table, sources=False),
        "tflops": estimator.tflops,
        "bytes_kept": kept,
        "bytes_peak": kept + float(table["temporary"].sum()),
        "bytes_free": shutil.disk_usage(existing).free,
        "bytes_raw": raw,
        "scheduler": scheduler,
        "submissions": submissions(jobs) if scheduler else (0, 0),
        "notes": mirror.notes,
    }


def _jobs_to_do(mirror: Mirror, command: Command, targets: Sequence[str]) -> list[Job]:
    """The jobs that have outputs; data sets are indexed until no index is to be made."""
    mirror.index(mirror.unindexed())
    for _ in range(3):
        jobs = command.dry_run(mirror.root, targets, overlay=mirror.overlay)
        stale = [job for job in jobs if job.rule in UPSTREAM]
        if not stale:
            break
        remade = [job.wildcards["dataset"] for job in stale if job.rule != "index_dataset"]
        mirror.index(sorted({job.wildcards["dataset"] for job in stale}), remade)
    else:
        mirror.notes.append("Incomplete: jobs behind the index of a data set are not counted.")
    # stand-ins for data sets that the target does not need are no work
    read = {path for job in jobs for path in job.inputs}
    tree = Tree(str(mirror.results))
    needed = [j for j in mirror.upstream if tree.participants(j.wildcards["dataset"]) in read]
    return [*needed, *(job for job in jobs if job.outputs)]


def _record(job: Job, estimator: Estimator) -> dict[str, Any]:
    seconds, source = estimator.seconds(job)
    kept, temporary = estimator.bytes(job)
    cores, gpus = job.threads * seconds / 3600, job.gpus * seconds / 3600
    derived = source == "derived"
    hours = dict(zip(_HOURS, (cores, gpus, cores * derived, gpus * derived), strict=True))
    record = {"rule": job.rule, "to_do": 1, "source": source, "kept": kept, "temporary": temporary}
    return record | hours


def _totals(table: pd.DataFrame, sources: bool = True) -> dict[str, Any]:
    totals: dict[str, Any] = {name: int(table[name].sum()) for name in _COUNTS}
    totals |= {name: float(table[name].sum()) for name in _HOURS}
    return totals | ({"sources": table["source"].value_counts().to_dict()} if sources else {})


def render(plan: dict[str, Any]) -> str:
    """A plan for the terminal."""
    table = _table([*plan["rows"], {"rule": "total", **plan["totals"], "sources": {}}])
    used = {source for row in plan["rows"] for source in row["sources"]}
    sources = {name: text for name, text in SOURCES.items() if name in used}
    unknown = sum(row["sources"].get("unknown", 0) for row in plan["rows"])
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"hours": _hours, "gb": lambda size: f"{size / 1e9:.1f}"}
    template = Path(__file__).with_name("plan.txt").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        **plan, table=table, sources=sources, unknown=unknown
    )


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table: a rule each, the total between lines of its own."""
    cells = [["rule", "to do", "done", "core-hours", "GPU-hours", "cost"]]
    for row in rows:
        counts = [str(row[name]) for name in _COUNTS]
        hours = [_hours(row[name]) for name in _HOURS[:2]]
        cells.append([row["rule"], *counts, *hours, ", ".join(row["sources"])])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, "<>>>><", widths, strict=True)).rstrip()
        for row in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _hours(value: float) -> str:
    if value < 0.005:
        return "<0.01" if value else "-"
    return f"{value:.2f}" if value < 0.95 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"
