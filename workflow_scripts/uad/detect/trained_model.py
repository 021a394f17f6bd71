"""A trained model with what its run stored beside it, and which scan it may be used on."""

from __future__ import annotations

import re
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from uad.config import Config, load_files
from uad.config.params import PARAMS
from uad.core.errors import DataError, near
from uad.core.files import read_json, read_tsv
from uad.core.paths import Tree
from uad.data.layouts import bids_label
from uad.evaluate.reconstruct import load_network
from uad.methods import load
from uad.methods.base import Method, Setup
from uad.networks.execution import device_of
from uad.preprocess.atlas import prepare_atlas
from uad.preprocess.hdbet import HdBet


class Subject(NamedTuple):
    """What a scan is taken for: a subject of a data set of the run.

    ``test`` is the test set whose noise level and threshold are used. ``role`` is the subject's
    role in the split of the model; None: the run does not know the scan.
    """

    dataset: str
    label: str
    test: str
    role: str | None = None


class TrainedModel:
    """A model of a finished run: ``<results>/models/<experiment>/<method>/fold-<k>``.

    ``test`` is the test set whose threshold and noise level are used; default: the scan's own if
    the run has the scan, else the first of the experiment. ``threads``: default as in the run.

    Raises:
        DataError: something that is needed is not there.
    """

    def __init__(self, folder: Path, test: str | None = None, threads: int | None = None) -> None:
        self.weights = folder.resolve() / "model.safetensors"
        if not self.weights.is_file() or not folder.resolve().name.startswith("fold-"):
            raise DataError(
                f"{folder}: no trained model (model.safetensors). Name a folder of a finished run, "
                "such as results/models/intra_FLAIR/pddpm-iqa/fold-0."
            )
        fold, method, experiment, _, self.results = self.weights.parents[:5]
        self.names = {
            "experiment": experiment.name,
            "method": method.name,
            "fold": fold.name.removeprefix("fold-"),
        }
        self.tree = Tree(str(self.results))
        self.cfg: Config = load_files([self.stored("config.resolved.yaml")])
        self.experiment = self.cfg.experiments[experiment.name]
        self.test = test
        if test and test not in self.experiment.test:
            known = near(test, self.experiment.test)
            raise DataError(f"'{test}' is no test set of {experiment.name}{known}")
        self.scan_threads = threads or self.cfg.run.scan_threads
        self.train_threads = threads or self.cfg.run.train_threads

    @property
    def label(self) -> str:
        """What it is, for people."""
        label = self.cfg.labels[self.names["method"]]
        return f"{label} of {self.names['experiment']}, fold {self.names['fold']}"

    def stored(self, path: str) -> str:
        """A file of the run."""
        if not (self.results / path).is_file():
            raise DataError(
                f"{self.results / path}: no such file. A model is used with what its run stored: "
                "leave it in the results folder of a finished run."
            )
        return str(self.results / path)

    def params(self, rule: str, **names: str) -> dict[str, Any]:
        """The params of a rule, as its jobs in the run had them."""
        return {k: of(self.cfg, {**self.names, **names}) for k, of in PARAMS[rule].items()}

    @cached_property
    def air(self) -> str:
        """The AIR record that decides on inversion; empty if the method uses none."""
        if not self.cfg.methods[self.names["method"]].air:
            return ""
        return self.stored(self.tree.air(self.names["experiment"], self.names["fold"]))

    def threshold(self, test: str) -> float:
        """What the run found on the unhealthy validation set of a test set."""
        path = self.tree.per_test("thresholds", "json", *self.names.values(), test)
        return read_json(self.stored(path))["threshold"]

    @cached_property
    def atlas(self) -> Path:
        """The folder of the atlas at the run's voxel size; made if it is not there."""
        folder = self.results / "atlas"
        if not (folder / "brain.nii.gz").is_file():
            options = self.cfg.preprocessing
            self._made = tempfile.TemporaryDirectory(prefix="uad-atlas-")
            folder = Path(self._made.name)
            prepare_atlas(folder, options.spacing, options.atlas)
        return folder

    @cached_property
    def stripper(self) -> HdBet:
        """The network that strips skulls, loaded once for all scans."""
        options = self.params("predict_brain_masks", dataset=self.experiment.train)["network"]
        return HdBet(threads=self.scan_threads, **options)

    @cached_property
    def method(self) -> Method:
        """The method with the options of the run."""
        params = self.params("reconstruct_volumes", test=self.experiment.test[0])
        width, height, _ = self.cfg.preprocessing.shape
        setup = Setup(noise_field=params["noise_field"], image_size=(height, width))
        return load(params["model"]["family"])(params["model"]["options"], setup)

    @cached_property
    def device(self) -> str:
        """A GPU if there is one, unless the run was on the CPU."""
        wanted = self.cfg.train_of(self.names["method"]).accelerator
        return device_of("cpu" if wanted == "cpu" else "auto")

    @cached_property
    def network(self) -> Any:
        """The trained network."""
        return load_network(self.method, self.weights, self.device)

    def subject_of(self, scan: Path) -> Subject:
        """What a scan is taken for: itself if the run has it, else a new subject."""
        first = self.test or self.experiment.test[0]
        for dataset in dict.fromkeys([*self.experiment.test, self.experiment.train]):
            table = Path(self.tree.participants(dataset))
            for row in read_tsv(table).to_dict("records") if table.is_file() else ():
                if row["modality"] == self.experiment.modality and self._is(scan, row["image"]):
                    test = dataset if dataset in self.experiment.test and not self.test else first
                    label = row["subject"]
                    return Subject(dataset, label, test, self._role(dataset, label))
        return Subject(first, bids_label(stem_of(scan)), first)

    def _is(self, scan: Path, image: str) -> bool:
        """Whether a scan is this image of the run, whose path is that of the run's folder."""
        below = image.partition(f"{self.cfg.results}/")[2]
        places = (self.results / below, self.results.parent / image, Path(image))
        return any(place.is_file() and place.samefile(scan) for place in places)

    def _role(self, dataset: str, subject: str) -> str:
        table = self.tree.split(self.names["experiment"], self.names["fold"])
        split = read_tsv(self.stored(table))
        own = split[(split["dataset"] == dataset) & (split["subject"] == subject)]
        return ", ".join(own["role"]) or "not in the split"


def stem_of(scan: Path) -> str:
    """The name of a scan without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", scan.name)
