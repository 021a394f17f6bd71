"""Sections of the config: tables, figures, studies, and how much of them a run builds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from uad.config.training import Fraction, OddSide, Quality
from uad.core.errors import near
from uad.core.strict import Strict

Part = Literal["paper", "later", "extras"]


#: The variant of a study that changes nothing.
AS_CONFIGURED = "as configured"


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
    median: OddSide | None = None
    component_max_size: int | None = Field(None, ge=0)
    threshold_search: Literal["halving", "exact"] | None = None


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


class Run(Strict):
    """How much of the paper this run covers (null: all of it)."""

    tables: list[str] | None = Field(None, description="null: those of the part 'paper'.")
    studies: list[str] | None = Field(
        None, description="null: all; with 'tables' those about the same test sets, as of figures."
    )
    analyses: list[Literal["metrics", "ranks"]] = Field(
        ["metrics", "ranks"],
        description="Of each table, in the report and in extras: all metrics with intervals and by "
        "strata, and ranks of three methods or more.",
    )
    healthy_methods: list[str] | None = Field(
        None,
        description="Methods that every report judges on the healthy test scans; null: all of the "
        "tables, in extras only.",
    )
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
