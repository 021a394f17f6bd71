"""Jobs and estimates put together, and printed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from uad.config import Config
from uad.core.paths import Tree
from uad.run.estimates import Amounts, Estimator, finished_jobs, read_timings
from uad.run.jobs import UPSTREAM, Command, Job, submissions
from uad.run.mirror import Mirror

#: What the words in the last column mean.
SOURCES = {
    "measured": "timed once, on the machine that resources/unit_costs.yaml names",
    "derived": "not measured: operations counted, at an assumed rate; or as the file says",
    "results/cost": "timed by `snakemake cost` in these results",
    "unknown": "no cost is known, for example of a network with other options: not in the hours",
    "finished jobs": "the mean of their records, scaled by the work",
}
_SUMS = ["to_do", "done", "core_hours", "gpu_hours", "derived_core_hours", "derived_gpu_hours"]


def make_plan(
    cfg: Config,
    command: Command,
    targets: Sequence[str],
    *,
    directory: str | Path = ".",
    tflops: float | None = None,
) -> dict[str, Any]:
    """Plan targets without running or locking anything.

    Args:
        cfg: the config that ``command`` gives.
        command: how Snakemake is called.
        targets: targets or files.
        directory: the working directory of the run; only read.
        tflops: sustained rate of a GPU, in place of that of the unit costs.

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
    directory, scheduler = Path(directory), command.executor()
    with tempfile.TemporaryDirectory(prefix="uad-plan-") as folder:
        mirror = Mirror(Path(folder), directory, cfg)
        to_do = _jobs_to_do(mirror, command, targets)
        amounts = Amounts(cfg, mirror.tables())
    keys = {job.key for job in to_do}
    found = finished_jobs(directory / cfg.results)
    finished = [(job, seconds) for job, seconds in found if job.key not in keys]
    estimator = Estimator(amounts, finished, read_timings(cfg, directory), tflops)
    jobs = [{"rule": job.rule, "done": 1} for job, _ in finished]
    jobs += [_as_row(job, *estimator.seconds(job), *amounts.bytes(job)) for job in to_do]
    table = pd.DataFrame(jobs, columns=["rule", *_SUMS, "kept", "temporary", "source"])
    order = list(dict.fromkeys([cost["rule"] for cost in estimator.costs["costs"]]))
    groups = dict(list(table.groupby("rule", sort=False)))
    rules = sorted(groups, key=lambda rule: order.index(rule) if rule in order else len(order))
    of_run = {job.wildcards["dataset"] for job in to_do if job.rule in UPSTREAM}
    raw = {name: size for name, size in mirror.raw.items() if name in of_run}
    kept = float(table["kept"].sum() + sum(size or 0 for size in raw.values()))
    return {
        "targets": list(targets),
        "rows": [
            {
                "rule": rule,
                **_totals(groups[rule]),
                "sources": groups[rule]["source"].value_counts().to_dict(),
            }
            for rule in rules
        ],
        "totals": _totals(table),
        "tflops": estimator.tflops,
        "bytes_kept": kept,
        "bytes_peak": kept + float(table["temporary"].sum()),
        "bytes_free": shutil.disk_usage(_existing(directory / cfg.results)).free,
        "bytes_raw": raw,
        "scheduler": scheduler,
        "submissions": submissions(to_do) if scheduler else (0, 0),
        "notes": mirror.notes,
    }


def _as_row(job: Job, seconds: float, source: str, kept: float, temporary: float) -> dict[str, Any]:
    cores, gpus = job.threads * seconds / 3600, job.gpus * seconds / 3600
    derived = source == "derived"
    return {
        "rule": job.rule,
        "to_do": 1,
        "core_hours": cores,
        "gpu_hours": gpus,
        "derived_core_hours": cores * derived,
        "derived_gpu_hours": gpus * derived,
        "kept": kept,
        "temporary": temporary,
        "source": source,
    }


def _totals(table: pd.DataFrame) -> dict[str, float]:
    sums = table[_SUMS].sum()
    counts = {name: int(sums[name]) for name in ("to_do", "done")}
    return counts | {name: float(sums[name]) for name in _SUMS if name not in counts}


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


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)


def render(plan: dict[str, Any]) -> str:
    """A plan for the terminal."""
    rows, totals = plan["rows"], plan["totals"]
    lines = [f"Plan for {' '.join(plan['targets'])}: nothing was run.", *plan["notes"], ""]
    lines += [*_table([*rows, {"rule": "total", **totals, "sources": {}}]), ""]
    if not totals["to_do"]:
        return "\n".join([*lines, "Nothing is to do."])
    guessed = [
        f"{_hours(totals[f'derived_{name}'])} of the {_hours(totals[name])} {word}-hours"
        for name, word in (("gpu_hours", "GPU"), ("core_hours", "core"))
        if totals[f"derived_{name}"]
    ]
    if guessed:
        lines.append(f"Not measured but derived: {' and '.join(guessed)}.")
    if unknown := sum(row["sources"].get("unknown", 0) for row in rows):
        lines.append(f"Not in the hours: {unknown} jobs of unknown cost (try `snakemake cost`).")
    if plan["scheduler"]:
        groups, alone = plan["submissions"]
        count = f"{groups + alone} ({groups} groups, {alone} jobs)"
        lines.append(f"Submissions to {plan['scheduler']}: {count}.")
    kept, peak, free = (f"{plan[f'bytes_{name}'] / 1e9:.1f}" for name in ("kept", "peak", "free"))
    lines.append(
        f"Disk: {kept} GB kept, at most {peak} GB at peak (if no temporary file went before the "
        f"end); {free} GB free."
    )
    raw = [
        f"{name} {'unknown, not included' if size is None else f'{size / 1e9:.1f} GB'}"
        for name, size in plan["bytes_raw"].items()
    ]
    if raw:
        lines.append(f"In these figures, raw data that are not there yet: {', '.join(raw)}.")
    used = {source for row in rows for source in row["sources"]}
    lines += ["", "Hours are of cores and GPUs that jobs hold. Cost:"]
    lines += [f"  {name}: {text}" for name, text in SOURCES.items() if name in used]
    if "derived" in used and totals["gpu_hours"]:
        lines.append(f"  the assumed rate of a GPU is {plan['tflops']:g} TFLOP/s (--tflops)")
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table: a rule each, the total between lines of its own."""
    cells = [["rule", "to do", "done", "core-hours", "GPU-hours", "cost"]]
    for row in rows:
        hours = (_hours(row["core_hours"]), _hours(row["gpu_hours"]))
        cells.append([row["rule"], str(row["to_do"]), str(row["done"]), *hours])
        cells[-1].append(", ".join(row["sources"]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = "<>>>><"
    lines = [
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip()
        for row in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _hours(value: float) -> str:
    if value < 0.005:
        return "<0.01" if value else "-"
    return f"{value:.2f}" if value < 0.95 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"
