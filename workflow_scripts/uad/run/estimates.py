"""Seconds and bytes of a job: the mean of finished jobs of its kind, else the stored unit costs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from uad.config import Config
from uad.config.params import predicts_in_batches
from uad.core.files import read_json
from uad.run.dry_run import ROOT, Job
from uad.run.room import ATLAS_MM3, HEAD_MM3, model_bytes, scan_bytes
from uad.splits import cross_dataset, intra_dataset

if TYPE_CHECKING:
    import pandas as pd

#: Bytes per voxel of a stored reconstruction (float16) and anomaly map (float32).
_RESULT_BYTES = {
    "reconstruct_volumes": 2,
    "reconstruct_healthy": 2,
    "score_volumes": 4,
    "score_healthy": 4,
}
_SCAN_PARTS = {"make_phantom": "raw", "register_scan": "registered", "pack_slices": "packed"}
_OF_NETWORKS = ("train_model", "reconstruct_volumes", "reconstruct_healthy")
#: Volumes that a job of a table cell works on, by their role in the split; default: both.
_ROLES = {
    "search_threshold": ["val_unhealthy"],
    "compute_air": ["val_unhealthy"],
    "evaluate_volumes": ["test"],
    "reconstruct_healthy": ["test_healthy"],
    "score_healthy": ["test_healthy"],
    "evaluate_healthy": ["test"],
}


def load_costs() -> dict[str, Any]:
    """The unit costs of the project, ``resources/unit_costs.yaml``."""
    return yaml.safe_load((ROOT / "resources/unit_costs.yaml").read_text(encoding="utf-8"))


class Estimator:
    """Work, seconds and bytes of the jobs of a config.

    Participants tables are by data set, finished jobs come with their seconds; ``tflops`` is the
    sustained rate of a GPU (10^12 operations per second), in place of the stored one.
    """

    def __init__(
        self,
        cfg: Config,
        tables: Mapping[str, pd.DataFrame],
        finished: Iterable[tuple[Job, float]] = (),
        tflops: float | None = None,
    ) -> None:
        self.cfg, self.tables, self.costs = cfg, tables, load_costs()
        self.tflops = tflops or self.costs["rates"]["gpu"]["tflops"]
        #: size of a slice and of a volume, in those of the paper
        self.area = prod(cfg.preprocessing.shape[:2]) / 96**2
        self.size = self.area * cfg.preprocessing.shape[2] / 50
        self._split = functools.cache(self._make_split)
        #: of the finished jobs of a rule and kind: their seconds, and what they are in the stored
        self._sums: dict[tuple[str, str], tuple[float, float]] = {}
        for job, seconds in finished:
            with contextlib.suppress(KeyError):  # of a config that had other entries
                key, work = (job.rule, self.kind(job)), self._work(job)
                before = self._sums.get(key, (0.0, 0.0))
                self._sums[key] = before[0] + seconds, before[1] + work

    def seconds(self, job: Job) -> tuple[float, str]:
        """Seconds of a job (0 if unknown), and their source (:data:`uad.run.plan.SOURCES`)."""
        measured, work = self._sums.get((job.rule, self.kind(job)), (0.0, 0.0))
        if work:
            return measured / work * self._work(job), "finished jobs"
        seconds, source = self._stored(job)
        return (0.0 if source == "unknown" else seconds), source

    def bytes(self, job: Job) -> tuple[float, float]:
        """Bytes of a job that stay, and bytes that go when they have been used."""
        names, cfg = job.wildcards, self.cfg
        if job.rule == "train_model":  # of the two, the checkpoint goes when the training ends
            model = cfg.models[cfg.methods[names["method"]].model].model_dump(mode="json")
            return model_bytes([model], 1) / 2, 0
        if job.rule in _RESULT_BYTES:
            size = self.units(job)["volume"] * 96 * 96 * 50 * _RESULT_BYTES[job.rule]
            return (size, 0) if cfg.run.keep_reconstructions else (0, size)
        if job.rule not in _SCAN_PARTS:
            return 0, 0
        spec = cfg.datasets[names["dataset"]].model_dump(mode="json")
        each = scan_bytes(spec, cfg.preprocessing.model_dump(mode="json"))[_SCAN_PARTS[job.rule]]
        return self.units(job)["scan"] * each, 0

    def kind(self, job: Job) -> str:
        """What the cost of a rule's jobs depends on: a model, a score, a back end; else nothing."""
        names, cfg = job.wildcards, self.cfg
        if job.rule in _OF_NETWORKS:
            return cfg.methods[names["method"]].model
        if job.rule in ("score_volumes", "score_healthy"):
            return cfg.methods[names["method"]].score
        if job.rule != "skullstrip_scan":
            return ""
        predicted = predicts_in_batches(cfg, names["dataset"])
        return "predicted" if predicted else cfg.backend_of(names["dataset"]).removeprefix("auto-")

    def units(self, job: Job) -> dict[str, float]:
        """Amounts of work by unit; a rule that is not known here has none."""
        names, cfg = job.wildcards, self.cfg
        if "dataset" in names:
            return self._units_of_scans(job)
        if job.rule == "train_model":
            loop = cfg.train_of(names["method"])
            slices = self.volumes(names["experiment"], ["train"]) * loop.samples_per_volume
            steps = loop.epochs * (slices // loop.batch_size)  # whole batches
            return {"step": steps * loop.batch_size / 32 * self.area}
        if job.rule != "compute_air" and "test" not in names:
            return {}
        roles = _ROLES.get(job.rule, ["val_unhealthy", "test"])
        dataset = None if roles == ["test_healthy"] else names.get("test")
        count = self.volumes(names["experiment"], roles, dataset)
        if job.rule == "rescore_volumes":
            count *= len(cfg.variants_of(names["study"], names["method"]))
        return {"volume": count * self.size}

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

    def _work(self, job: Job) -> float:
        """How much work a job is, in stored seconds of one core, to compare with its like."""
        return self._stored(job._replace(threads=1, gpus=0))[0]

    def _stored(self, job: Job) -> tuple[float, str]:
        """Seconds from the unit costs, and ``measured``, ``derived`` or ``unknown``.

        Of an unknown cost the seconds only compare one such job with another.
        """
        kind, units, costs = self.kind(job), self.units(job), self.costs["costs"]
        fitting = (c for c in costs if c["rule"] == job.rule and c.get("kind") in (None, kind))
        if (cost := next(fitting, None)) is None:
            return 1.0, "unknown"
        amount, operations = units.get(cost.get("unit"), 0), self._operations(job, units)
        if operations is None:
            return amount, "unknown"
        operations += amount * cost.get("tflop", 0)
        rate = self.tflops if job.gpus else self.costs["rates"]["cpu"]["tflops"] * job.threads
        seconds = cost["job"] + amount * cost.get("seconds", 0) + operations / rate
        return seconds, "derived" if operations or not cost["measured"] else "measured"

    def _operations(self, job: Job, units: Mapping[str, float]) -> float | None:
        """10^12 operations of the network of a job; None: it is not among the stored ones."""
        if job.rule not in _OF_NETWORKS:
            return 0.0
        model = self.cfg.models[self.kind(job)].model_dump(mode="json")
        for network in self.costs["networks"]:
            same = network["family"] == model["family"]
            if same and _within(network.get("options", {}), model["options"]):
                if job.rule == "train_model":
                    return units["step"] * 32 * network["training"] / 1e3
                return units["volume"] * 50 * network["inference"] / 1e3
        return None


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
