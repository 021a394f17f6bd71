"""What a table of the config shows: which methods, on which test sets, under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uad.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableSpec:
    """What a table shows: methods in their order, on test sets.

    Attributes:
        name: its key.
        title: a line without a full stop.
        methods: from top to bottom.
        places: display names of test sets by (experiment, test_dataset), from left to right.
        labels: display names of methods.
    """

    name: str
    title: str
    methods: Sequence[str]
    places: Mapping[tuple[str, str], str]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, spec: TableSpec | Mapping[str, Any]) -> TableSpec:
        """A table of the config, with ``name`` and the ``labels`` of methods.

        Raises:
            ConfigError: a key is missing, or a row or a column is missing or listed twice.
        """
        if isinstance(spec, TableSpec):
            return spec
        name = str(spec.get("name", "?"))
        try:
            columns = [
                (c["experiment"], c.get("test_dataset", c.get("test")), c.get("label"))
                for c in spec["columns"]
            ]
            methods, title = list(spec["rows"]), str(spec["title"])
        except KeyError as error:
            raise ConfigError(f"table {name}: the key {error} is missing.") from error
        for what, listed in (("row", methods), ("column", [column[:2] for column in columns])):
            if not listed or len(set(listed)) < len(listed):
                raise ConfigError(f"table {name}: it needs {what}s, each listed once: {listed}.")
        places = {(e, test): label or f"{test} ({e})" for e, test, label in columns}
        return cls(name, title, methods, places, dict(spec.get("labels") or {}))

    def label(self, method: str) -> str:
        """The display name of a method (its key where none is given)."""
        return self.labels.get(method) or method


def part_of(summary: pd.DataFrame, place: tuple[str, str]) -> pd.DataFrame:
    """The rows of a summary that are about one test set of one experiment."""
    return summary[(summary[["experiment", "test_dataset"]] == list(place)).all(axis=1)]
