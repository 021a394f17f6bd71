"""What a target would cost: the jobs of a dry run times their seconds, put together and printed.

Snakemake knows the jobs behind the index of a data set only when that is made. Where one is to be
made, the dry run gets the table that it would be; for data that are not there, one of as many
subjects as are expected, all with the same empty file for an image.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from uad.config import Config, Dataset
from uad.core.errors import DataError
from uad.core.files import read_tsv, write_tsv
from uad.core.paths import Tree
from uad.core.patterns import layout_of
from uad.data.sources import load_registry
from uad.qc.decide import exclusions, index_used, read_decisions
from uad.run.dry_run import Job, dry_run, scheduler_of
from uad.run.estimates import Estimator, finished_jobs

#: What the words in the last column mean.
SOURCES = {
    "measured": "timed once, on the machine that resources/unit_costs.yaml names",
    "derived": "not measured: operations counted, at an assumed rate; or as the file says",
    "unknown": "no cost is known, for example of a network with other options: not in the hours",
    "finished jobs": "the mean of their records, scaled by the work",
}
_SUMS = ["to_do", "done", "core_hours", "gpu_hours"]


def make_plan(
    cfg: Config,
    targets: Sequence[str],
    overlays: Sequence[Path] = (),
    profile: Path | None = None,
    tflops: float | None = None,
) -> dict[str, Any]:
    """Plan targets in the current directory without running, writing or locking anything in it.

    Returns:
        Plain data: ``targets``; ``rows``, one per rule: ``to_do``, ``done`` (its jobs in these
        results), ``core_hours`` and ``gpu_hours`` that the jobs to do hold, ``sources`` (how many
        jobs have their cost from where); ``totals``; ``tflops`` behind derived GPU-hours;
        ``bytes_kept``, ``bytes_peak`` (no temporary file removed before the end), ``bytes_free``;
        ``bytes_raw`` of raw data that are not there, by data set (null: unknown); ``scheduler``
        and ``submissions`` to it; ``notes`` on data that are not there.

    Raises:
        DataError: Snakemake refuses, or a raw tree cannot be used.
    """
    scheduler = scheduler_of(profile)
    with tempfile.TemporaryDirectory(prefix="uad-plan-") as folder:
        indexes = PlannedIndexes(cfg, Path(folder))
        indexes.add(n for n in cfg.datasets if not Path(indexes.tree.participants(n)).exists())
        while True:
            jobs, submissions = dry_run(targets, overlays, profile, Path(folder))
            if not indexes.add_for(jobs):
                break
    keys = {job.key for job in jobs}
    finished = [entry for entry in finished_jobs(Path(cfg.results)) if entry[0].key not in keys]
    estimator = Estimator(cfg, indexes.all_tables(), finished, tflops)
    records = [{"rule": job.rule, "done": 1} for job, _ in finished]
    records += [_record(job, estimator) for job in jobs]
    table = pd.DataFrame(records, columns=["rule", *_SUMS, "kept", "temporary", "source"])
    order = {cost["rule"]: place for place, cost in enumerate(estimator.costs["costs"])}
    rules = sorted(table["rule"].unique(), key=lambda rule: order.get(rule, 1000))
    needed = {job.wildcards["dataset"] for job in jobs if job.rule == "index_dataset"}
    raw = {name: size for name, size in indexes.raw.items() if name in needed}
    kept = float(table["kept"].sum() + sum(size or 0 for size in raw.values()))
    results = Path(cfg.results).resolve()
    existing = next(path for path in (results, *results.parents) if path.exists())
    return {
        "targets": list(targets),
        "rows": [{"rule": rule, **_totals(table[table["rule"] == rule])} for rule in rules],
        "totals": _totals(table),
        "tflops": estimator.tflops,
        "bytes_kept": kept,
        "bytes_peak": kept + float(table["temporary"].sum()),
        "bytes_free": shutil.disk_usage(existing).free,
        "bytes_raw": raw,
        "scheduler": scheduler,
        "submissions": submissions if scheduler else 0,
        "notes": [note for name, note in indexes.notes.items() if name in needed],
    }


def _record(job: Job, estimator: Estimator) -> dict[str, Any]:
    seconds, source = estimator.seconds(job)
    kept, temporary = estimator.bytes(job)
    cores, gpus = job.threads * seconds / 3600, job.gpus * seconds / 3600
    record = {"rule": job.rule, "to_do": 1, "core_hours": cores, "gpu_hours": gpus}
    return record | {"source": source, "kept": kept, "temporary": temporary}


def _totals(table: pd.DataFrame) -> dict[str, Any]:
    counts = {name: int(table[name].sum()) for name in _SUMS[:2]}
    hours = {name: float(table[name].sum()) for name in _SUMS[2:]}
    return counts | hours | {"sources": table["source"].value_counts().to_dict()}


class PlannedIndexes:
    """The participants tables that the workflow would make, as files of a folder.

    Attributes:
        tables: by data set.
        stood_in: data sets whose raw data are not there, or would be made or fetched again.
        raw: bytes of their raw data where a person has to get them; None: not known.
        notes: a sentence on each of these.
    """

    def __init__(self, cfg: Config, folder: Path) -> None:
        self.cfg, self.folder, self.tree = cfg, folder, Tree(cfg.results)
        self.tables: dict[str, pd.DataFrame] = {}
        self.stood_in: set[str] = set()
        self.raw: dict[str, int | None] = {}
        self.notes: dict[str, str] = {}

    def add_for(self, jobs: Iterable[Job]) -> bool:
        """Add what a dry run shows to be missing; whether there was anything."""
        indexed = {j.wildcards["dataset"] for j in jobs if j.rule == "index_dataset"}
        fetching = ("make_phantom", "download_dataset")
        again = {j.wildcards["dataset"] for j in jobs if j.rule in fetching} - self.stood_in
        missing = indexed - again - self.tables.keys()
        self.add(missing)
        self.add(again, remade=True)
        return bool(missing | again)

    def add(self, names: Iterable[str], remade: bool = False) -> None:
        """Index data sets; with ``remade`` the workflow would first make or fetch their raw tree.

        Raises:
            DataError: a raw tree that is there cannot be used.
        """
        for name in names:
            spec = self.cfg.datasets[name]
            table = None if remade else self._real(name, spec)
            if table is None:
                table = self._stand_in(name, spec)
                self.stood_in.add(name)
            self.tables[name] = table
            write_tsv(self.folder / f"{name}.tsv", table)

    def _real(self, name: str, spec: Dataset) -> pd.DataFrame | None:
        """The index of a raw tree; None where there is none."""
        markers = {"phantom": self.tree.manifest(name), "download": self.tree.downloaded(name)}
        marker = markers.get(spec.source)
        root = Path(self.tree.raw(name) if spec.source == "phantom" else spec.path or "")
        if not root.is_dir() or (marker and not Path(marker).exists()):
            return None
        modalities = {key: dataset.modalities for key, dataset in self.cfg.datasets.items()}
        decisions = read_decisions(self.cfg.qc.decisions, modalities)
        reviewed = exclusions(decisions, name, spec.modalities)
        return index_used({**spec.model_dump(), "reviewed": reviewed}, root, opened=True).table

    def _stand_in(self, name: str, spec: Dataset) -> pd.DataFrame:
        """A table of as many subjects as a data set that is not there should have."""
        if spec.source == "phantom":
            count = spec.phantom.subjects
        else:
            known = load_registry().of_layout(spec.layout)
            if not (expected := spec.expected or known.subjects):
                raise DataError(
                    f"{name}: no folder '{spec.path}' (looked at {Path(spec.path or '').resolve()})"
                    ". Put or link the scans there, or plan without them: set "
                    f"datasets.{name}.expected to their number of subjects."
                )
            count, by = expected - len(spec.exclude), "config" if spec.expected else "registry"
            self.raw[name] = _raw_bytes(spec)
            used = f"; the first {spec.limit} are used" if spec.limit else ""
            self.notes[name] = (
                f"{name} is not there: planned with the {count} subjects that the {by} expects"
                f"{used}."
            )
        image = self.folder / "scan.nii.gz"
        image.touch()
        files = {"image": str(image), "mask": str(image)}
        files["lesion"] = "" if layout_of(spec.layout).healthy else str(image)
        rows = [
            {"subject": name, "name": name, "site": "", "modality": modality} | files
            for name in (f"planned{n:05d}" for n in range(min(count, spec.limit or count)))
            for modality in spec.modalities
        ]
        return pd.DataFrame(rows)

    def all_tables(self) -> dict[str, pd.DataFrame]:
        """These tables, and those of the indexes that are there."""
        paths = {name: Path(self.tree.participants(name)) for name in self.cfg.datasets}
        there = {name: path for name, path in paths.items() if path.exists()}
        return {name: read_tsv(path).fillna("") for name, path in there.items()} | self.tables


def _raw_bytes(spec: Dataset) -> int | None:
    """Bytes of a raw tree as the registry knows them; of a download, its archives, too."""
    known = load_registry().of_layout(spec.layout)
    files = known.files_for(known.layout.needs(spec.modalities))[: 1 if known.any_file else None]
    archives = [file.bytes for file in files]
    if None in archives:
        return None
    unpacked = sum(file.unpacked_bytes or file.bytes for file in files)
    return unpacked + (sum(archives) if spec.source == "download" else 0)


def render(plan: dict[str, Any]) -> str:
    """A plan for the terminal."""
    totals, rows = plan["totals"], plan["rows"]
    lines = [f"Plan for {' '.join(plan['targets'])}: nothing was run.", *plan["notes"], ""]
    lines += [_table([*rows, {"rule": "total", **totals, "sources": {}}]), ""]
    if not totals["to_do"]:
        return "\n".join([*lines, "Nothing is to do."])
    if unknown := totals["sources"].get("unknown"):
        lines.append(f"Not in the hours: {unknown} jobs of unknown cost.")
    if plan["scheduler"]:
        lines.append(f"Submissions to {plan['scheduler']}: {plan['submissions']}.")
    kept, peak, free = (f"{plan[f'bytes_{n}'] / 1e9:.1f} GB" for n in ("kept", "peak", "free"))
    lines.append(
        f"Disk: {kept} kept, at most {peak} at peak (if no temporary file went before the end); "
        f"{free} free."
    )
    if raw := plan["bytes_raw"]:
        sizes = [
            f"{name} {'unknown, not included' if size is None else f'{size / 1e9:.1f} GB'}"
            for name, size in raw.items()
        ]
        lines.append(f"In these figures, raw data that are not there yet: {', '.join(sizes)}.")
    lines += ["", "Hours are of cores and GPUs that jobs hold. Cost:"]
    lines += [f"  {name}: {text}" for name, text in SOURCES.items() if name in totals["sources"]]
    if "derived" in totals["sources"] and totals["gpu_hours"]:
        lines.append(f"  the assumed rate of a GPU is {plan['tflops']:g} TFLOP/s (--tflops)")
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> str:
    """The table of a plan: a rule each, the total last."""
    cells = [
        [row["to_do"], row["done"], _hours(row["core_hours"]), _hours(row["gpu_hours"])]
        + [", ".join(row["sources"])]
        for row in rows
    ]
    columns = ["to do", "done", "core-hours", "GPU-hours", "cost"]
    return pd.DataFrame(cells, [row["rule"] for row in rows], columns).to_string()


def _hours(value: float) -> str:
    if value < 0.005:
        return "<0.01" if value else "-"
    return f"{value:.2f}" if value < 0.95 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"
