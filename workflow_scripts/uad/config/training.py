"""Sections of the config: protocol, training loop, models, methods and experiments."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from uad import methods as method_registry
from uad.core.errors import near
from uad.core.patterns import Modality
from uad.core.strict import Strict

Quality = Literal["l1", "l2", "ssim", "fusion", "ms-ssim", "gms"]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("the side of the median window must be odd; 1: off")
    return value


#: The side of a median window, which has a middle.
OddSide = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class Protocol(Strict):
    """Every choice in which the paper and the authors' code differ, or that both leave open.

    ``preset`` fills what is not given: ``reference`` is what the authors ran,
    ``paper`` what they wrote. ``docs/deviations.md`` has a row for each field.
    """

    preset: Literal["reference", "paper"] = "reference"
    postprocessing_order: Literal["erosion_first", "median_first"] = "erosion_first"
    erosion: int = Field(3, ge=0)
    median: OddSide = 5
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
    intra_slices: Literal["whole_brain_stack", "central_stack", "all"] = Field(
        "whole_brain_stack",
        description="Slices of a patient that training may draw: of those without a lesion, "
        "stacked, the central half of the field of view, before (whole_brain_stack) or after "
        "(central_stack) the scan is cropped to it; or all of the cropped scan.",
    )
    intra_scaling: Literal["stack", "scan"] = Field(
        "stack", description="Whose percentiles become 0 and 1 in them: their own or the scan's."
    )
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
    "intra_scaling": "scan",
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
    precision: Literal["tf32", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "tf32",
        description="Of training and reconstruction. tf32: float32, but for a GPU's convolutions, "
        "which use TF32, as with the authors' PyTorch 1.13; 32-true: float32 throughout.",
    )
    deterministic: bool = Field(
        True,
        description="The same weights from the same seed on the same GPU; false: its fastest "
        "algorithms.",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    data_device: Literal["auto", "accelerator", "host"] = Field(
        "auto",
        description="Where the slices live; auto: beside the network if they take at most half "
        "of the memory that is free there.",
    )
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = Field(
        "off",
        description="Mode of torch.compile, for networks that are trained as one call, and for all "
        "networks at test time; the first steps take minutes.",
    )
    layout: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto",
        description="Order of the networks' memory; auto: channels last for a compiled network on "
        "a GPU, else contiguous (a network that reconstructs on a CPU is always channels last).",
    )
    inference_batch: int = Field(
        50,
        ge=1,
        description="Slices per forward pass at test time; on a GPU those of several volumes, as "
        "many as fit whole.",
    )

    #: How a training is run, not what it is: free to change without a new training.
    HOW: ClassVar[frozenset[str]] = frozenset(
        "accelerator data_device compile layout inference_batch checkpoint_every "
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


#: Options that a quality map takes, of ``alpha``, ``window`` and ``clamp`` (a test compares).
QUALITY_OPTIONS = {
    "ssim": ("window", "clamp"),
    "ms-ssim": ("window",),
    "fusion": ("alpha", "window", "clamp"),
}
