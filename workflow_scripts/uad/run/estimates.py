"""Seconds and bytes of a job: the mean of finished jobs of its kind, else the stored unit costs."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from uad.config import Config
from uad.config.params import predicts_in_batches
from uad.core.files import read_json
from uad.core.paths import Tree
from uad.run.jobs import ROOT, Job
from uad.run.room import ATLAS_MM3, HEAD_MM3, model_bytes, scan_bytes
from uad.splits import cross_dataset, intra_dataset

if TYPE_CHECKING:
    import pandas as pd

#: Bytes per voxel of a stored reconstruction (float16) and anomaly map (float32).
_RESULT_BYTES = {"reconstruct_volumes": 2, "score_volumes": 4}
_OF_NETWORKS = ("train_model", "reconstruct_volumes")
#: Volumes that a job of a table cell works on, by their role in the split; default: both.
_ROLES = {
    "search_threshold": ["val_unhealthy"],
    "compute_air": ["val_unhealthy"],
    "evaluate_volumes": ["test"],
}


def load_costs() -> dict[str, Any]:
    """The unit costs of the project, ``resources/unit_costs.yaml``."""
    return yaml.safe_load((ROOT / "resources/unit_costs.yaml").read_text(encoding="utf-8"))


class Amounts:
    """How much work the jobs of a config are.

    Args:
        cfg: the config.
        tables: participants tables by data set.
    """

    def __init__(self, cfg: Config, tables: Mapping[str, pd.DataFrame]) -> None:
        self.cfg, self.tables = cfg, tables
        #: size of a slice and of a volume, in those of the paper
        self.area = prod(cfg.preprocessing.shape[:2]) / 96**2
        self.size = self.area * cfg.preprocessing.shape[2] / 50
        self._split = functools.cache(self._make_split)

    def volumes(self, experiment: str, roles: list[str], dataset: str | None = None) -> int:
        """Subjects of an experiment in some roles (first fold; others differ by one at most)."""
        split = self._split(experiment)
        chosen = split["role"].isin(roles)
        return int((chosen & (split["dataset"] == dataset) if dataset else chosen).sum())

    def _make_split(self, experiment: str) -> pd.DataFrame:
        spec, sizes = self.cfg.experiments[experiment], self.cfg.splits
        healthy = spec.train, self.tables[spec.train]
        if spec.setting == "intra":
            return intra_dataset(*healthy, 0, spec.folds, seed=sizes.seed)
        # the published lists are of about the sizes of the clean splits
        content = sizes.model_dump(exclude={"kind", "reference"})
        tests = {name: self.tables[name] for name in spec.test}
        return cross_dataset(healthy, tests, 0, spec.folds, **content)

    def kind(self, job: Job) -> str:
        """What the cost of a rule's jobs depends on: a model, a score, a back end; else nothing."""
        names, cfg = job.wildcards, self.cfg
        if job.rule in _OF_NETWORKS:
            return cfg.methods[names["method"]].model
        if job.rule == "score_volumes":
            return cfg.methods[names["method"]].score
        if job.rule == "skullstrip_scan" and predicts_in_batches(cfg, names["dataset"]):
            return "predicted"
        return cfg.backend_of(names["dataset"]) if job.rule == "skullstrip_scan" else ""

    def units(self, job: Job) -> dict[str, float]:
        """Amounts of work by unit; a rule that is not known here has none."""
        names, cfg = job.wildcards, self.cfg
        if "dataset" in names:
            return self._units_of_scans(job)
        if job.rule == "train_model":
            batch = cfg.train_of(names["method"]).batch_size
            return {"step": self.steps(names) * batch / 32 * self.area}
        if job.rule == "compute_air" or "test" in names:
            roles = _ROLES.get(job.rule, ["val_unhealthy", "test"])
            count = self.volumes(names["experiment"], roles, names.get("test"))
            if job.rule == "rescore_volumes":
                count *= len(cfg.variants_of(names["study"], names["method"]))
            return {"volume": count * self.size}
        return {}

    def _units_of_scans(self, job: Job) -> dict[str, float]:
        cfg, names = self.cfg, job.wildcards
        table = self.tables[names["dataset"]]
        if "modality" in names:
            table = table[table["modality"] == names["modality"]]
        scans = 1 if "subject" in names else len(table)
        if job.rule == "predict_brain_masks":
            scans = len(job.inputs)
        voxels = ATLAS_MM3 / cfg.preprocessing.spacing**3
        if job.rule == "make_phantom":
            voxels = HEAD_MM3 / cfg.datasets[names["dataset"]].phantom.spacing ** 3
        # HD-BET: five networks or one, on eight mirrored copies or one
        network = cfg.preprocessing.skullstrip
        passes = (5 if network.mode == "accurate" else 1) * (8 if network.tta else 1)
        return {"scan": scans, "pass": scans * passes, "megavoxel": scans * voxels / 1e6}

    def steps(self, names: Mapping[str, str]) -> int:
        """Training steps of a fold: whole batches of the slices that are drawn."""
        loop = self.cfg.train_of(names["method"])
        slices = self.volumes(names["experiment"], ["train"]) * loop.samples_per_volume
        return loop.epochs * (slices // loop.batch_size)

    def bytes(self, job: Job) -> tuple[float, float]:
        """Bytes of a job that stay, and bytes that go when they have been used."""
        names, cfg = job.wildcards, self.cfg
        if job.rule == "train_model":  # of the two, the checkpoint goes when the training ends
            model = cfg.models[cfg.methods[names["method"]].model]
            return model_bytes([model.model_dump(mode="json")], 1) / 2, 0
        if job.rule in _RESULT_BYTES:
            size = self.units(job)["volume"] * 96 * 96 * 50 * _RESULT_BYTES[job.rule]
            return (size, 0) if cfg.run.keep_reconstructions else (0, size)
        what = {"make_phantom": "raw", "register_scan": "registered", "pack_slices": "packed"}
        if job.rule not in what:
            return 0, 0
        spec = cfg.datasets[names["dataset"]].model_dump(mode="json")
        each = scan_bytes(spec, cfg.preprocessing.model_dump(mode="json"))[what[job.rule]]
        return self.units(job)["scan"] * each, 0


class Estimator:
    """Seconds of a job, and where they come from.

    Args:
        amounts: the work of the jobs.
        finished: finished jobs with their seconds.
        timings: what ``snakemake cost`` measured on this machine, by model.
        tflops: sustained rate of a GPU (10^12 operations per second), in place of the stored one.
    """

    def __init__(
        self,
        amounts: Amounts,
        finished: Iterable[tuple[Job, float]] = (),
        timings: Mapping[str, Mapping[str, Any]] | None = None,
        tflops: float | None = None,
    ) -> None:
        self.amounts, self.costs, self._timings = amounts, load_costs(), timings or {}
        self.tflops = tflops or self.costs["rates"]["gpu"]["tflops"]
        self._finished: dict[tuple[str, str], list[tuple[Job, float]]] = defaultdict(list)
        for job, seconds in finished:
            with contextlib.suppress(KeyError):  # of a config that had other entries
                amounts.units(job)
                self._finished[job.rule, amounts.kind(job)].append((job, seconds))
        self._factor = functools.cache(self._scale)

    def seconds(self, job: Job) -> tuple[float, str]:
        """Seconds of a job (0 if unknown), and their source (:data:`uad.run.plan.SOURCES`)."""
        kind = self.amounts.kind(job)
        if self._finished[job.rule, kind]:
            factor = self._factor(job.rule, kind, job.threads, job.gpus)
            return factor * self._stored(job)[0], "finished jobs"
        if (timed := self._timed(job)) is not None:
            return timed, "results/cost"
        seconds, source = self._stored(job)
        return (0.0 if source == "unknown" else seconds), source

    def _scale(self, rule: str, kind: str, threads: int, gpus: int) -> float:
        """How many times as long as stored the finished jobs of a kind took, on average."""
        found = self._finished[rule, kind]
        same = [replace(job, threads=threads, gpus=gpus) for job, _ in found]
        expected = sum(self._stored(job)[0] for job in same)
        return sum(seconds for _, seconds in found) / expected if expected else 0.0

    def _stored(self, job: Job) -> tuple[float, str]:
        """Seconds from the unit costs, and ``measured``, ``derived`` or ``unknown``.

        Of an unknown cost the seconds only compare one such job with another.
        """
        kind, units = self.amounts.kind(job), self.amounts.units(job)
        costs = self.costs["costs"]
        cost = next(
            (c for c in costs if c["rule"] == job.rule and c.get("kind") in (None, kind)), None
        )
        if cost is None:
            return 1.0, "unknown"
        amount, operations = units.get(cost.get("unit"), 0), self._operations(job)
        if operations is None:
            return amount, "unknown"
        operations += amount * cost.get("tflop", 0)
        rate = self.tflops if job.gpus else self.costs["rates"]["cpu"]["tflops"] * job.threads
        seconds = cost["job"] + amount * cost.get("seconds", 0) + operations / rate
        return seconds, "derived" if operations or not cost["measured"] else "measured"

    def _operations(self, job: Job) -> float | None:
        """10^12 operations of the network of a job; None: it is not among the stored ones."""
        if job.rule not in _OF_NETWORKS:
            return 0.0
        cfg, units = self.amounts.cfg, self.amounts.units(job)
        model = cfg.models[self.amounts.kind(job)].model_dump(mode="json")
        for network in self.costs["networks"]:
            same = network["family"] == model["family"]
            if same and _within(network.get("options", {}), model["options"]):
                if job.rule == "train_model":
                    return units["step"] * 32 * network["training"] / 1e3
                return units["volume"] * 50 * network["inference"] / 1e3
        return None

    def _timed(self, job: Job) -> float | None:
        """Seconds by what ``snakemake cost`` measured on this machine, if it fits the job."""
        if job.rule not in _OF_NETWORKS:
            return None
        cfg, record = self.amounts.cfg, self._timings.get(self.amounts.kind(job), {})
        fits = {
            "device": "GPU" if job.gpus else "CPU",
            "batch_size": cfg.train_of(job.wildcards["method"]).batch_size,
            "image_size": list(cfg.preprocessing.shape[1::-1]),
        }
        if any(record.get(key) != value for key, value in fits.items()):
            return None
        if job.rule == "reconstruct_volumes":
            count = self.amounts.units(job)["volume"] / self.amounts.size
            return count * record["seconds_per_volume"]
        step = max(record.get(f"seconds_per_step{s}") or 0 for s in ("", "_late"))
        return self.amounts.steps(job.wildcards) * step or None


def _within(some: Any, whole: Any) -> bool:
    """Whether these options are among those: mappings key by key, all else equal."""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(_within(value, whole.get(key)) for key, value in some.items())
    return some == whole


def finished_jobs(results: Path) -> list[tuple[Job, float]]:
    """Jobs of a results tree with their seconds, from the records beside their files.

    Trainings that only went on from a checkpoint are left out, and so are damaged records.
    """
    found = []
    for path in sorted(results.rglob("*.prov.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            record = read_json(path)
            if not record["facts"].get("resumed"):
                inputs = tuple(entry["path"] for entry in record["inputs"])
                job = Job(record["rule"], record["wildcards"], inputs)
                found.append((job, float(record["seconds"])))
    return found


def read_timings(cfg: Config, directory: Path) -> dict[str, dict[str, Any]]:
    """What ``snakemake cost`` left in the results, by model."""
    found: dict[str, dict[str, Any]] = {}
    for name, method in cfg.methods.items():
        with contextlib.suppress(OSError, ValueError):
            found.setdefault(method.model, read_json(directory / Tree(cfg.results).cost(name)))
    return found
