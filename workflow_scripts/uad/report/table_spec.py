"""What a table or a study shows: which methods, on which test sets, under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from uad.report.metric_files import CELL, METRICS


@dataclass(frozen=True)
class TableSpec:
    """What a table shows: methods in their order, on test sets."""

    name: str
    title: str  # without a full stop
    methods: Sequence[str]  # from top to bottom
    places: Mapping[tuple[str, str], str]  # names of (experiment, test_dataset), left to right
    labels: Mapping[str, str]  # names of methods

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any], labels: Mapping[str, str]) -> TableSpec:
        """A table of the config, with the labels of methods."""
        return cls(name, table["title"], list(table["rows"]), _places(table["columns"]), labels)

    @property
    def cells(self) -> pd.MultiIndex:
        """All its cells, line by line."""
        places = [(m, *place) for m in self.methods for place in self.places]
        cells = [(*place, metric) for place in places for metric in METRICS]
        return pd.MultiIndex.from_tuples(cells, names=CELL)

    def label(self, method: str) -> str:
        """The display name of a method (its key where none is given)."""
        return self.labels.get(method) or method


@dataclass(frozen=True)
class StudySpec(TableSpec):
    """What a study compares: variants of the scoring of some methods."""

    baseline: str  # the variant that the others are compared with
    variants: Sequence[str]  # in the order in which they are shown
    select_on: str | None = None  # the metric whose validation value chooses a variant
    sweep: str | None = None  # the number that the variants sweep

    @classmethod
    def of_study(cls, columns: Sequence[Mapping[str, Any]], **study: Any) -> StudySpec:
        """A study of the config, whose methods are those that have ``labels``."""
        return cls(methods=list(study["labels"]), places=_places(columns), **study)


def _places(columns: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    return {
        (c["experiment"], c["test"]): c.get("label") or f"{c['test']} ({c['experiment']})"
        for c in columns
    }
