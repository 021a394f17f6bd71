"""Jobs and estimates put together, and printed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from uad.config import Config
from uad.core.paths import Tree
from uad.run.estimates import Amounts, Estimator
from uad.run.jobs import UPSTREAM, Command, Job, submissions
from uad.run.mirror import Mirror
from uad.run.unit_costs import UnitCosts, load_costs


@dataclass
class Row:
    """A rule of a plan.

    Attributes:
        rule: its name.
        to_do: jobs that would run.
        done: jobs that would not.
        core_hours: cores that the jobs hold, times hours.
        gpu_hours: GPUs that they hold, times hours.
        derived_core_hours: those of the core hours that are not measured.
        derived_gpu_hours: those of the GPU hours that are not measured.
        sources: how many of the jobs have their cost from where.
    """

    rule: str
    to_do: int = 0
    done: int = 0
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    derived_core_hours: float = 0.0
    derived_gpu_hours: float = 0.0
    sources: dict[str, int] = field(default_factory=dict)


@dataclass
class Plan:
    """What a target costs.

    Attributes:
        targets: what was asked for.
        rows: one per rule.
        tflops: the rate (10^12 operations per second) behind derived GPU-hours.
        bytes_kept: bytes that the jobs to do will leave.
        bytes_peak: the most that can be there at once: no temporary file removed before the end.
        bytes_free: free bytes of the results' file system.
        bytes_raw: raw data that are not there (in the figures above), by data set; None: unknown.
        scheduler: what jobs are sent to, if to anything.
        submissions: groups and single jobs that are sent there.
        notes: what was stood in for.
    """

    targets: list[str]
    rows: list[Row]
    tflops: float
    bytes_kept: float
    bytes_peak: float
    bytes_free: float
    bytes_raw: dict[str, int | None] = field(default_factory=dict)
    scheduler: str | None = None
    submissions: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)

    def total(self, name: str) -> float:
        """Sum of a column."""
        return sum(getattr(row, name) for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with totals."""
        names = [field.name for field in fields(Row) if field.name not in ("rule", "sources")]
        totals = {name: self.total(name) for name in names}
        return {**asdict(self), "totals": totals}


def make_plan(
    cfg: Config,
    command: Command,
    targets: Sequence[str],
    *,
    directory: str | Path = ".",
    costs: UnitCosts | None = None,
    tflops: float | None = None,
) -> Plan:
    """Plan targets without running or locking anything.

    Args:
        cfg: the config that ``command`` gives.
        command: how Snakemake is called.
        targets: targets or files.
        directory: the working directory of the run; only read.
        costs: unit costs; default: those of the project.
        tflops: sustained rate of a GPU, in place of that of the unit costs.

    Raises:
        DataError: Snakemake refuses, or a raw tree cannot be used.
    """
    costs, directory, scheduler = costs or load_costs(), Path(directory), command.executor()
    with tempfile.TemporaryDirectory(prefix="uad-plan-") as folder:
        mirror = Mirror(Path(folder), directory, cfg)
        order = list(dict.fromkeys(cost.rule for cost in costs.costs))
        known = [rule for rule in order if rule not in ("*", *UPSTREAM)]
        to_do, finished = _jobs(mirror, command, targets, known)
        amounts = Amounts(cfg, mirror.tables(), costs)
    estimator = Estimator(amounts, costs, tflops)
    estimator.calibrate(finished, directory)
    rows: dict[str, Row] = {}
    of_run = {job.wildcards["dataset"] for job in to_do if job.rule in UPSTREAM}
    raw = {name: size for name, size in mirror.raw.items() if name in of_run}
    kept, temporary = float(sum(size or 0 for size in raw.values())), 0.0
    for job in to_do:
        seconds, source, work = estimator.seconds(job)
        row = rows.setdefault(job.rule, Row(job.rule))
        row.to_do += 1
        cores, gpus = (held * seconds / 3600 for held in (job.threads, job.gpus))
        row.core_hours += cores
        row.gpu_hours += gpus
        row.derived_core_hours += cores * (source == "derived")
        row.derived_gpu_hours += gpus * (source == "derived")
        row.sources[source] = row.sources.get(source, 0) + 1
        kept += work.kept
        temporary += work.temporary
    for job in finished:
        rows.setdefault(job.rule, Row(job.rule)).done += 1
    places = {rule: place for place, rule in enumerate(order)}
    ordered = sorted(rows.values(), key=lambda row: places.get(row.rule, len(places)))
    return Plan(
        list(targets),
        ordered,
        tflops or costs.rates["gpu"].tflops,
        kept,
        kept + temporary,
        shutil.disk_usage(_existing(directory / cfg.results)).free,
        raw,
        scheduler,
        submissions(to_do) if scheduler else (0, 0),
        mirror.notes,
    )


def _jobs(
    mirror: Mirror, command: Command, targets: Sequence[str], rules: Sequence[str]
) -> tuple[list[Job], list[Job]]:
    """Jobs with outputs: those to do, and those of these rules that are done."""
    mirror.index(mirror.unindexed())

    def dry_run(forced: Sequence[str] = ()) -> list[Job]:
        return command.dry_run(mirror.root, targets, forced=forced, overlay=mirror.overlay)

    with ThreadPoolExecutor(2) as pool:
        every = pool.submit(dry_run, rules) if mirror.has_results else None
        to_do = dry_run()
        for _ in range(3):
            stale = {job.wildcards["dataset"] for job in to_do if job.rule in UPSTREAM}
            if not stale:
                break
            remade = [job.wildcards["dataset"] for job in to_do if job.rule in UPSTREAM[:2]]
            mirror.index(sorted(stale), remade)
            every = pool.submit(dry_run, rules) if every else None
            to_do = dry_run()
        else:
            mirror.notes.append("Incomplete: jobs behind the index of a data set are not counted.")
        jobs = _behind(targets, every.result()) if every else to_do
    # stand-ins for data sets that the target does not need are no work
    read = {path for job in jobs for path in job.inputs}
    tree = Tree(str(mirror.results))
    upstream = [
        job for job in mirror.upstream if tree.participants(job.wildcards["dataset"]) in read
    ]
    to_do = [*upstream, *(job for job in to_do if job.outputs)]
    keys = {job.key for job in to_do}
    return to_do, [job for job in jobs if job.outputs and job.key not in keys]


def _behind(targets: Sequence[str], jobs: Sequence[Job]) -> list[Job]:
    """The jobs that targets need; forced rules without wildcards are in a dry run anyway."""
    makers = {path: job for job in jobs for path in job.outputs}
    wanted = [job for job in jobs if job.rule in targets or set(job.outputs) & set(targets)]
    found: dict[tuple[str, ...], Job] = {}
    while wanted:
        job = wanted.pop()
        if job.key not in found:
            found[job.key] = job
            wanted += [makers[path] for path in job.inputs if path in makers]
    return [job for job in jobs if job.key in found]


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)


#: What the words in the last column mean.
SOURCES = {
    "measured": "timed once, on the machine that resources/unit_costs.yaml names",
    "derived": "not measured: operations counted, at an assumed rate; or as the file says",
    "results/cost": "timed by `snakemake cost` in these results",
    "unknown": "no cost is known, for example of a network with other options: not in the hours",
}


def render(plan: Plan) -> str:
    """A plan for the terminal."""
    head = ("rule", "to do", "done", "core-hours", "GPU-hours", "cost")
    body = [
        (
            row.rule,
            f"{row.to_do}",
            f"{row.done}",
            _hours(row.core_hours),
            _hours(row.gpu_hours),
            _sources(row),
        )
        for row in plan.rows
    ]
    hours, cores = plan.total("gpu_hours"), plan.total("core_hours")
    to_do, done = int(plan.total("to_do")), int(plan.total("done"))
    foot = ("total", f"{to_do}", f"{done}", _hours(cores), _hours(hours), "")
    widths = [max(len(line[i]) for line in (head, *body, foot)) for i in range(6)]

    def line(cells: Sequence[str]) -> str:
        first, *numbers, last = (
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *numbers, last]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [f"Plan for {' '.join(plan.targets)}: nothing was run.", *plan.notes, ""]
    lines += [line(head), rule, *map(line, body), rule, line(foot), ""]
    if not to_do:
        return "\n".join([*lines, "Nothing is to do."])
    guessed = [
        f"{_hours(plan.total(f'derived_{name}'))} of the {_hours(plan.total(name))} {word}-hours"
        for name, word in (("gpu_hours", "GPU"), ("core_hours", "core"))
        if plan.total(f"derived_{name}")
    ]
    if guessed:
        lines.append(f"Not measured but derived: {' and '.join(guessed)}.")
    unknown = sum(row.sources.get("unknown", 0) for row in plan.rows)
    if unknown:
        lines.append(f"Not in the hours: {unknown} jobs of unknown cost (try `snakemake cost`).")
    if plan.scheduler:
        groups, alone = plan.submissions
        lines.append(
            f"Submissions to {plan.scheduler}: {groups + alone} ({groups} groups, {alone} jobs)."
        )
    sizes = (plan.bytes_kept, plan.bytes_peak, plan.bytes_free)
    kept, peak, free = (f"{size / 1e9:.1f}" for size in sizes)
    lines.append(
        f"Disk: {kept} GB kept, at most {peak} GB at peak (if no temporary file went before the "
        f"end); {free} GB free."
    )
    if plan.bytes_raw:
        raw = ", ".join(
            f"{name} {'unknown, not included' if size is None else f'{size / 1e9:.1f} GB'}"
            for name, size in plan.bytes_raw.items()
        )
        lines.append(f"In these figures, raw data that are not there yet: {raw}.")
    used = {source for row in plan.rows for source in row.sources}
    lines += ["", "Hours are of cores and GPUs that jobs hold. Cost:"]
    lines += [f"  {name}: {text}" for name, text in SOURCES.items() if name in used]
    if "derived" in used and hours:
        lines.append(f"  the assumed rate of a GPU is {plan.tflops:g} TFLOP/s (--tflops)")
    if any("finished" in source for source in used):
        lines.append("  finished jobs: the mean of their records, scaled by the work")
    return "\n".join(lines)


def _sources(row: Row) -> str:
    names = list(row.sources)
    finished = [name for name in names if "finished" in name]
    if len(finished) > 1:  # of several kinds
        count = sum(int(name.split()[0]) for name in finished)
        names = [f"{count} finished jobs", *(name for name in names if name not in finished)]
    return ", ".join(names)


def _hours(value: float) -> str:
    if value < 0.005:
        return "<0.01" if value else "-"
    return f"{value:.2f}" if value < 0.95 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"
