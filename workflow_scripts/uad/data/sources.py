"""The registry of public data sets: where each is, under which terms, and how large."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from uad.core.errors import ConfigError, unknown
from uad.core.patterns import (
    AnyLayout,
    Expression,
    Layout,
    layout_of,
    not_valid,
    read_registry,
    registry_path,
)
from uad.core.strict import Strict

Url = Annotated[str, Field(pattern=r"^https?://")]


class File(Strict):
    """One file of a data set as its home distributes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    urls: list[Url] = Field(default_factory=list, description="Tried in this order.")
    synapse: str | None = Field(None, pattern=r"^syn\d+$", description="Number on synapse.org.")
    modality: str | None = Field(None, description="The modality in it, if it is only one.")
    subjects: int | None = Field(None, ge=1, description="Subjects in this file.")
    names: Expression | None = Field(None, description="What their names are; null: all.")
    bytes: int | None = Field(None, ge=1, description="For planning; the checksum decides.")
    unpacked_bytes: int | None = Field(None, ge=1, description="Default: as large as the file.")
    checksum: str | None = Field(None, pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")


class DataSet(Strict):
    """One public data set, the atlas (which has no layout), or only a layout."""

    title: str
    home: Url | None = None
    access: Literal["open", "registration", "layout"] = Field(
        description="layout: only the names of its files are known here."
    )
    licence: str = "not known here"
    terms: str | None = Field(None, description="What to sign and where, as a sentence.")
    citation: str = ""
    layout: Layout | None = None
    preprocessed: list[str] = Field(
        default_factory=list, description="Its folders in the preprocessed tree of pDDPM."
    )
    subjects: int = Field(0, description="Subjects with all modalities; 0: not known.")
    files: list[File] = Field(default_factory=list)
    any_file: bool = Field(False, description="Any one of the files holds the whole data set.")
    nested: Expression | None = Field(None, description="An archive inside a zip, by its name.")
    tables: list[File] = Field(
        default_factory=list,
        description="Tables about the subjects, for the root of the raw tree; none is needed.",
    )
    facts: dict[str, str] = Field(default_factory=dict, description="Where each fact is from.")

    @model_validator(mode="after")
    def _way_in(self) -> DataSet:
        if self.access == "registration" and not self.terms:
            raise ValueError("access 'registration' needs 'terms': what to sign and where")
        if self.access != "layout" and not self.files:
            raise ValueError("needs 'files'; or access 'layout', if only their names are known")
        for file in [*self.files, *self.tables] if self.access == "open" else ():
            if not file.urls:
                raise ValueError(f"access 'open', but {file.name} has no address (urls)")
        return self

    def files_for(self, needs: Iterable[str]) -> list[File]:
        """The files that hold what a subject needs (:meth:`Layout.needs`)."""
        return [file for file in self.files if file.modality in (None, *needs)]

    def expected_for(self, needs: Iterable[str]) -> int:
        """Subjects that have all of this."""
        files = self.files_for(needs)
        alone = len(files) == 1 and files[0].modality
        return files[0].subjects or self.subjects if alone else self.subjects

    def lacking(self, subjects: Mapping[str, Iterable[str]], needs: Iterable[str]) -> list[File]:
        """The files that a raw tree still needs, by what its subjects have (of :meth:`scan`)."""

        def count(needs: set[str], names: str | None = None) -> int:
            having = [name for name, has in subjects.items() if needs <= set(has)]
            return sum(re.fullmatch(names or ".*", name) is not None for name in having)

        needs = set(needs)
        if count(needs) >= self.expected_for(needs):
            return []
        files = self.files_for(needs)
        lacking = [
            file
            for file in files
            if not file.subjects
            or count({file.modality} if file.modality else needs, file.names) < file.subjects
        ]
        return [] if self.any_file and len(lacking) < len(files) else lacking

    def names_of(self, files: list[File] | None = None) -> str:
        """Some of its files (default: all) in words."""
        names = [file.name for file in files or self.files]
        if len(names) > 2 and not self.any_file:
            return f"{names[0]} to {names[-1]}"
        return (" or " if self.any_file else " and ").join(names)

    def in_words(self, files: list[File]) -> str:
        """Some of its files, with their size if it is known."""
        names = f"{'its ' * (files == self.files)}{len(files)} archives"
        names = names if len(files) > 2 else self.names_of(files)
        sizes = [file.bytes or 0 for file in files]
        size = max(sizes) if self.any_file else sum(sizes)
        return f"{names} ({size / 1e9:.1f} GB)" if size else names

    def how_to_get(self, files: list[File] | None = None) -> str:
        """Where to get some of its files (default: all), as a sentence without its end."""
        what = self.in_words(files or self.files)
        if self.access == "layout":
            where = f"get it from {self.home} and " if self.home else ""
            return f"{where}put or link its files where datasets.<name>.path points to"
        if self.access == "registration":
            return f"{self.terms}; get {what}"
        return f"get {what} from {self.home}"


class Registry(Strict):
    """The whole of ``resources/datasets.yaml``."""

    datasets: dict[str, DataSet]

    def of_layout(self, layout: AnyLayout) -> DataSet:
        """The data set that has a layout, which is called as the data set is; or a user's own."""
        if not isinstance(layout, str):
            return DataSet(title="own data", access="layout", layout=layout_of(layout))
        if layout not in self.datasets:
            raise ConfigError(unknown("data set", layout, self.datasets))
        return self.datasets[layout]


def load_registry(path: str | os.PathLike[str] | None = None) -> Registry:
    """Read and validate a registry (default: :func:`uad.core.patterns.registry_path`)."""
    return _load(str(path or registry_path()))


@functools.cache
def _load(path: str) -> Registry:
    try:
        return Registry.model_validate(read_registry(path))
    except ValidationError as error:
        raise not_valid(path, error) from None
