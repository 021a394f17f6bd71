"""How much work a job is, and how many seconds that takes."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd

from uad import methods as method_registry
from uad.config import Config, Train
from uad.core.files import read_json
from uad.core.paths import Tree
from uad.methods.base import Setup
from uad.run.jobs import Job
from uad.run.room import ATLAS_MM3, HEAD_MM3, model_bytes, scan_bytes
from uad.run.unit_costs import UnitCosts
from uad.splits import cross_dataset, intra_dataset

#: Bytes per voxel of a stored reconstruction (float16) and anomaly map (float32).
_RESULT_BYTES = {"reconstruct_volumes": 2, "score_volumes": 4}
_OF_SCANS = (
    "predict_brain_masks", "skullstrip_scan", "register_scan", "pack_slices", "validate_dataset"
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a job has to do.

    Attributes:
        tags: what its costs depend on, for example ``gpu`` and a family of methods.
        units: amounts by unit.
        operations: 10^12 operations of a network; None: not known.
        kept: bytes that stay.
        temporary: bytes that go when they have been used.
    """

    tags: frozenset[str] = frozenset()
    units: dict[str, float] = field(default_factory=dict)
    operations: float | None = 0.0
    kept: float = 0.0
    temporary: float = 0.0


def steps_per_epoch(volumes: int, loop: Train) -> int:
    """Training steps of an epoch: whole batches of the slices that are drawn.

    Args:
        volumes: training volumes.
        loop: the training loop.
    """
    return volumes * loop.samples_per_volume // loop.batch_size


class Amounts:
    """How much work the jobs of a config are.

    Args:
        cfg: the config.
        tables: participants tables by data set.
        costs: unit costs, for the operations of known networks.
    """

    def __init__(self, cfg: Config, tables: Mapping[str, pd.DataFrame], costs: UnitCosts) -> None:
        self.cfg, self.tables, self.costs = cfg, tables, costs
        self._roles: dict[str, pd.DataFrame] = {}
        self._operations: dict[str, tuple[float, float] | None] = {}

    def scans(self, dataset: str, modality: str | None = None) -> int:
        """Scans of a data set, of one modality or of all."""
        table = self.tables[dataset]
        return len(table) if modality is None else int((table["modality"] == modality).sum())

    def volumes(self, experiment: str, *roles: str, dataset: str | None = None) -> int:
        """Subjects of an experiment in some roles (first fold; others differ by one at most)."""
        if experiment not in self._roles:
            self._roles[experiment] = self._split(experiment)
        split = self._roles[experiment]
        chosen = split["role"].isin(roles)
        return int((chosen & (split["dataset"] == dataset) if dataset else chosen).sum())

    def _split(self, experiment: str) -> pd.DataFrame:
        spec, sizes = self.cfg.experiments[experiment], self.cfg.splits
        healthy = spec.train, self.tables[spec.train]
        if spec.setting == "intra":
            return intra_dataset(*healthy, 0, spec.folds, seed=sizes.seed)
        content = sizes.model_dump()
        for name in ("kind", "reference"):  # the published lists are of about these sizes
            del content[name]
        tests = {name: self.tables[name] for name in spec.test}
        return cross_dataset(healthy, tests, 0, spec.folds, **content)

    def operations(self, method: str) -> tuple[float, float] | None:
        """10^9 operations per slice: training (mean over its stages), inference; None: unknown."""
        name = self.cfg.methods[method].model
        if name not in self._operations:
            self._operations[name] = self._count(name)
        return self._operations[name]

    def _count(self, name: str) -> tuple[float, float] | None:
        model, (width, height, _) = self.cfg.models[name], self.cfg.preprocessing.shape
        family = method_registry.load(model.family)
        if not family.trained:
            return 0.0, 0.0
        loss = next(iter(family.losses or ()), "l1")
        method = family(model.options, Setup(loss=loss, image_size=(height, width)))
        early = sum(not method.selectable(step / 1000) for step in range(1000)) / 1000
        for entry in self.costs.operations:
            same = entry.family == model.family and entry.image_size == (height, width)
            if same and family.Options.model_validate(entry.options) == method.options:
                late = entry.training if entry.late is None else entry.late
                return early * entry.training + (1 - early) * late, entry.inference
        return None

    def of(self, job: Job) -> Work:
        """The work of a job; of a rule that is not known here, one job."""
        names = job.wildcards
        device = "gpu" if job.gpus else "cpu"
        if job.rule in _OF_SCANS:
            return self._of_scans(job, device)
        if job.rule in ("make_phantom", "index_dataset"):
            spec = self.cfg.datasets[names["dataset"]]
            scans, bytes_ = self.scans(names["dataset"]), self._scan_bytes(names["dataset"])["raw"]
            size = HEAD_MM3 / spec.phantom.spacing**3 / 1e6
            made = job.rule == "make_phantom"
            units = {"job": 1, "scan": scans, "megavoxel": scans * size}
            return Work(units=units, kept=scans * bytes_ * made)
        if job.rule == "train_model":
            return self._of_training(names["experiment"], names["method"], device)
        if job.rule in (*_RESULT_BYTES, "rescore_volumes"):
            return self._of_cell(job, device)
        if job.rule in ("search_threshold", "evaluate_volumes"):
            role = "val_unhealthy" if job.rule == "search_threshold" else "test"
            count = self.volumes(names["experiment"], role, dataset=names["test"])
            return Work(units={"job": 1, "volume": count * self.volume_size})
        if job.rule == "compute_air":
            count = self.volumes(names["experiment"], "val_unhealthy")
            return Work(units={"job": 1, "volume": count * self.volume_size})
        return Work(frozenset({device}), {"job": 1})

    @property
    def volume_size(self) -> float:
        """Size of a packed volume, in volumes of the paper."""
        return prod(self.cfg.preprocessing.shape) / (96 * 96 * 50)

    def _scan_bytes(self, dataset: str) -> dict[str, float]:
        spec = self.cfg.datasets[dataset].model_dump(mode="json")
        return scan_bytes(spec, self.cfg.preprocessing.model_dump(mode="json"))

    def _of_scans(self, job: Job, device: str) -> Work:
        dataset = job.wildcards["dataset"]
        if job.rule == "pack_slices":
            count = self.scans(dataset, job.wildcards["modality"])
        elif job.rule == "validate_dataset":
            count = self.scans(dataset)
        elif job.rule == "predict_brain_masks":
            count = len(job.inputs)
        else:  # a scan per job, or several
            pattern = r"sub-(\w+)/anat/sub-\w+?_.*_([A-Za-z0-9]+)\.nii\.gz$"
            count = len({m.groups() for m in (re.search(pattern, p) for p in job.outputs) if m})
        grid = ATLAS_MM3 / self.cfg.preprocessing.spacing**3 / 1e6
        units = {"job": 1, "scan": count, "megavoxel": count * grid}
        size, kept, tags = self._scan_bytes(dataset), 0.0, {device}
        if job.rule == "skullstrip_scan" and any("/brain_masks/" in path for path in job.inputs):
            tags.add("predicted")
        elif job.rule in ("predict_brain_masks", "skullstrip_scan"):
            options = self.cfg.preprocessing.skullstrip
            tags.add(self.cfg.backend_of(dataset))
            networks = 5 if options.mode == "accurate" else 1
            units["pass"] = count * networks * (8 if options.tta else 1)
        elif job.rule == "register_scan":
            kept = count * size["registered"]
        elif job.rule == "pack_slices":
            kept = count * size["packed"]
        return Work(frozenset(tags), units, kept=kept)

    def _of_training(self, experiment: str, name: str, device: str) -> Work:
        cfg, loop = self.cfg, self.cfg.train_of(name)
        model = cfg.models[cfg.methods[name].model]
        family = method_registry.load(model.family)
        sequence = family(model.options, Setup()).sequence
        steps = loop.epochs * steps_per_epoch(self.volumes(experiment, "train"), loop)
        held_out = self.volumes(experiment, "val_healthy") * loop.validation_samples_per_volume
        passes = held_out * (loop.epochs // loop.validate_every)
        # a validation is the forward pass, a third of a training step
        slices = (steps * loop.batch_size + passes / 3) * sequence
        # of the two, the checkpoint goes when the training ends
        kept = model_bytes([model.model_dump(mode="json")], 1) / 2
        return Work(*self._on(device, name, {"job": 1, "step": steps}, slices, 0), kept)

    def _on(
        self, device: str, name: str, units: dict[str, float], slices: float, use: int
    ) -> tuple[frozenset[str], dict[str, float], float | None]:
        """Tags, units and operations of a network's work: training (``use`` 0) or inference."""
        model, found = self.cfg.methods[name].model, self.operations(name)
        tags = {device, self.cfg.models[model].family}
        if found is None:  # then only finished jobs of the same network say anything
            return frozenset({*tags, f"model {model}"}), units, None
        return frozenset(tags), units, slices * found[use] / 1e3

    def _of_cell(self, job: Job, device: str) -> Work:
        cfg, names = self.cfg, job.wildcards
        method = cfg.methods[names["method"]]
        roles = "val_unhealthy", "test"
        count = self.volumes(names["experiment"], *roles, dataset=names["test"])
        if job.rule == "rescore_volumes":
            variants = len(cfg.variants_of(names["study"], names["method"]))
            return Work(units={"job": 1, "volume": count * variants * self.volume_size})
        voxels = prod(cfg.preprocessing.shape) * count
        size = voxels * _RESULT_BYTES[job.rule]
        keep = cfg.run.keep_reconstructions
        work: dict[str, Any] = {"kept": size * keep, "temporary": size * (not keep)}
        units = {"job": 1, "volume": count * self.volume_size}
        if job.rule == "score_volumes":
            return Work(frozenset({device, method.score}), units, **work)
        slices = count * cfg.preprocessing.shape[2]
        return Work(*self._on(device, names["method"], units, slices, 1), **work)


class Estimator:
    """Seconds of a job, and where they come from.

    Args:
        amounts: the work of the jobs.
        costs: unit costs.
        tflops: sustained rate of a GPU (10^12 operations per second), in place of theirs.
    """

    def __init__(self, amounts: Amounts, costs: UnitCosts, tflops: float | None = None) -> None:
        self.amounts, self.costs = amounts, costs
        rates = costs.rates
        self._rate = {"gpu": tflops or rates["gpu"].tflops, "cpu": rates["cpu"].tflops}
        self._factors: dict[tuple[str, frozenset[str]], tuple[float, int]] = {}
        self._records: dict[str, dict[str, Any]] = {}

    def stored(self, job: Job, work: Work) -> tuple[float, str]:
        """Seconds from the unit costs, and ``measured``, ``derived`` or ``unknown``."""
        device = "gpu" if "gpu" in work.tags else "cpu"
        seconds, operations, measured, known = 0.0, work.operations or 0, True, False
        for cost in self.costs.costs:
            if cost.rule in ("*", job.rule) and set(cost.when) <= work.tags:
                amount = work.units.get(cost.per, 0)
                seconds += amount * cost.seconds
                operations += amount * cost.tflop
                known = known or cost.rule != "*"
                measured = measured and (cost.measured or not amount)
        if operations:
            seconds += operations / (self._rate[device] * (job.threads if device == "cpu" else 1))
            measured = measured and self.costs.rates[device].measured
        known = known and work.operations is not None
        return seconds, ("measured" if measured else "derived") if known else "unknown"

    def calibrate(self, finished: Iterable[Job], directory: Path) -> None:
        """Learn from the records of finished jobs and from ``results/cost``.

        Stored seconds are scaled so that the finished jobs of a kind (rule, device, back end,
        family or score) come out right on average.

        Args:
            finished: jobs whose outputs are up to date.
            directory: the working directory.
        """
        seen: dict[tuple[str, frozenset[str]], list[tuple[float, float]]] = defaultdict(list)
        for job in finished:
            seconds = _recorded(directory, job)
            if seconds is not None:
                work = self.amounts.of(job)
                seen[job.rule, work.tags].append((seconds, self.stored(job, work)[0]))
        for kind, pairs in seen.items():
            taken, expected = map(sum, zip(*pairs, strict=True))
            if expected:
                self._factors[kind] = taken / expected, len(pairs)
        tree = Tree(self.amounts.cfg.results)
        for name, method in self.amounts.cfg.methods.items():
            with contextlib.suppress(OSError, ValueError):
                self._records.setdefault(method.model, read_json(directory / tree.cost(name)))

    def seconds(self, job: Job) -> tuple[float, str, Work]:
        """Seconds of a job (0 if unknown), where they come from, and its work."""
        work = self.amounts.of(job)
        seconds, source = self.stored(job, work)
        if found := self._factors.get((job.rule, work.tags)):
            factor, count = found
            return seconds * factor, f"{count} finished job{'s' if count > 1 else ''}", work
        timed = self._timed(job, work)
        if timed is not None:
            return timed, "results/cost", work
        return (0.0 if source == "unknown" else seconds), source, work

    def _timed(self, job: Job, work: Work) -> float | None:
        """Seconds by what ``measure_cost`` found on this machine, if it fits the job."""
        if job.rule not in ("train_model", "reconstruct_volumes"):
            return None
        cfg, name = self.amounts.cfg, job.wildcards["method"]
        record = self._records.get(cfg.methods[name].model, {})
        fits = {
            "device": "GPU" if "gpu" in work.tags else "CPU",
            "batch_size": cfg.train_of(name).batch_size,
            "image_size": list(cfg.preprocessing.shape[1::-1]),
        }
        if any(record.get(key) != value for key, value in fits.items()):
            return None
        if job.rule == "reconstruct_volumes":
            return work.units["volume"] / self.amounts.volume_size * record["seconds_per_volume"]
        step = max(record.get(f"seconds_per_step{s}") or 0 for s in ("", "_late"))
        return work.units["step"] * step or None


def _recorded(directory: Path, job: Job) -> float | None:
    """Seconds of a finished job; None without, or if it had only the end of a training to do."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError, TypeError):
        record = read_json(directory / f"{job.outputs[0]}.prov.json")
        return None if record["facts"].get("resumed") else float(record["seconds"])
    return None
