"""The records of a results tree as a graph: which job made a file, from which others.

A file is named by its key, the same on every machine: its path below the results folder
(``tables/table3.csv``), its path in the repository (``repository:notebooks/results.ipynb``), or,
for raw data elsewhere, the path as it was recorded (``external:/data/ixi/...``).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from uad.core.errors import DataError
from uad.core.files import TEMPORARY
from uad.core.provenance import FORMAT, SUFFIX, record_digest
from uad.core.walk import files_below

REPOSITORY, EXTERNAL = "repository:", "external:"
#: Stages whose files are deleted after use, unless ``run.keep_reconstructions`` is set.
KEPT_ON_DEMAND = ("reconstructions/", "maps/")


@dataclass(frozen=True)
class Artifact:
    """A file as a record describes it.

    Attributes:
        key: its name, see the module.
        bytes: size; None for what is not a plain file.
        sha256: of its content; None likewise.
    """

    key: str
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Record:
    """One job.

    Attributes:
        key: of the record's own file.
        content: the record as it was read (see ``uad.core.provenance``).
        inputs: what the job read, in the order of its rule.
        outputs: what it wrote, likewise.
    """

    key: str
    content: dict[str, Any] = field(repr=False, hash=False, compare=False)
    inputs: tuple[Artifact, ...] = field(repr=False)
    outputs: tuple[Artifact, ...] = field(repr=False)

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return self.content["rule"]

    @property
    def wildcards(self) -> dict[str, str]:
        """Wildcards of the job."""
        return self.content["wildcards"]

    @property
    def params(self) -> dict[str, Any]:
        """Params of the job: what of the config its result depends on."""
        return self.content["params"]


@dataclass(frozen=True)
class Records:
    """All records of a results tree.

    Attributes:
        root: the results folder.
        repository: where keys that begin with ``repository:`` are looked up.
        all: the records, by key of the record's file.
        broken: records that cannot be used or were edited, and why, by key.
    """

    root: Path
    repository: Path
    all: dict[str, Record]
    broken: dict[str, str]

    @cached_property
    def producers(self) -> dict[str, Record]:
        """The record that has a file among its outputs, by key of the file.

        Where several have, the newest counts: a rule may have been renamed in between.
        """
        newest = sorted(self.all.values(), key=lambda record: record.content["started"])
        return {output.key: record for record in newest for output in record.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[Record]]:
        """The records that have a file among their inputs, by key of the file."""
        found: dict[str, list[Record]] = {}
        for record in self.all.values():
            for key in dict.fromkeys(entry.key for entry in record.inputs):
                found.setdefault(key, []).append(record)
        return found

    @cached_property
    def outputs(self) -> dict[str, Artifact]:
        """Every declared output, by key."""
        return {
            entry.key: entry
            for key, record in self.producers.items()
            for entry in record.outputs
            if entry.key == key
        }

    def path(self, key: str) -> Path:
        """Where the file of a key lies, whether it is there or not."""
        if key.startswith(REPOSITORY):
            return self.repository / key.removeprefix(REPOSITORY)
        if key.startswith(EXTERNAL):
            return Path(key.removeprefix(EXTERNAL))
        return self.root / key

    def record_of(self, key: str) -> Record:
        """The record of a file.

        Raises:
            DataError: no record has it among its outputs.
        """
        if key not in self.producers:
            raise DataError(
                f"{self.path(key)}: no record below {self.root} says how it was made. "
                "Is it the results folder of a finished run?"
            )
        return self.producers[key]

    def ancestors(self, keys: Sequence[str]) -> Iterator[str]:
        """Keys of the files that some files were made from, those files first, each once."""
        waiting, seen = list(keys), set(keys)
        while waiting:
            key = waiting.pop(0)
            yield key
            made_by = self.producers.get(key)
            for entry in made_by.inputs if made_by else ():
                if entry.key not in seen:
                    seen.add(entry.key)
                    waiting.append(entry.key)

    @cached_property
    def rule_order(self) -> list[str]:
        """Rules in the order in which files pass through them, from raw data to tables."""
        before: dict[str, set[str]] = {record.rule: set() for record in self.all.values()}
        for record in self.all.values():
            for entry in record.inputs:
                if (made_by := self.producers.get(entry.key)) and made_by.rule != record.rule:
                    before[record.rule].add(made_by.rule)
        order: list[str] = []
        while before:
            # none is free only where records contradict each other; then any order will do
            free = sorted(r for r, needed in before.items() if not needed & set(before)) or sorted(
                before
            )
            order += free
            before = {r: needed for r, needed in before.items() if r not in free}
        return order


def load_records(
    results: str | os.PathLike[str], repository: str | os.PathLike[str] | None = None
) -> Records:
    """Read every record below a results folder.

    Args:
        results: the folder; it may have been moved since.
        repository: of the code; the one that this library lies in if left out.

    Raises:
        DataError: there is no such folder, or no record in it.
    """
    root = Path(results)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Name the results folder of a finished run.")
    records, broken = {}, {}
    for path in sorted(path for path in files_below(root) if path.name.endswith(SUFFIX)):
        if path.name.startswith(TEMPORARY):  # being written, or left by a job that was killed
            continue
        key = path.relative_to(root).as_posix()
        try:
            content = json.loads(path.read_bytes(), object_hook=_interned)
        except FileNotFoundError:  # made anew by a run that is at work
            continue
        except ValueError:
            broken[key] = "is damaged"
            continue
        try:
            if content["format"] != FORMAT:
                broken[key] = f"has format {content['format']}, not {FORMAT}"
                continue
            record = _record(key, content)
        except (ValueError, KeyError, TypeError, AttributeError):
            broken[key] = "is damaged, or was written by another version of this software"
            continue
        records[key] = record
        if content.get("record_sha256") != record_digest(content):
            broken[key] = "was edited after it was written"
    if not records and not broken:
        raise DataError(f"{root}: holds no record (*{SUFFIX}). Is it the results of a run?")
    if repository is None:
        repository = Path(__file__).resolve().parents[2]
    return Records(root, Path(repository), records, broken)


def _interned(values: dict[str, Any]) -> dict[str, Any]:
    """Names and hashes of the library are the same in all records; one copy of each will do."""
    return {
        sys.intern(key): sys.intern(value) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _record(key: str, content: dict[str, Any]) -> Record:
    roots = content["roots"]

    def entries(name: str) -> tuple[Artifact, ...]:
        return tuple(
            Artifact(key_of(file["path"], roots), file.get("bytes"), file.get("sha256"))
            for file in content[name]
        )

    return Record(key, content, entries("inputs"), entries("outputs"))


def is_temporary(key: str) -> bool:
    """Whether the workflow may delete the file of a key after use.

    By its name alone: what run.keep_reconstructions says now says nothing of the run that
    deleted it.
    """
    return key.startswith(KEPT_ON_DEMAND) or (
        key.startswith("preprocessed/") and "/brain_masks/" in key
    )


def key_of(path: str, roots: dict[str, str]) -> str:
    """Key of a file.

    Args:
        path: as a job recorded it.
        roots: ``results`` and ``repository`` of that job.
    """
    recorded = PurePosixPath(os.path.normpath(path))
    for prefix, root in (("", roots["results"]), (REPOSITORY, roots["repository"])):
        folder = PurePosixPath(os.path.normpath(root))
        if recorded.is_relative_to(folder):
            return f"{prefix}{recorded.relative_to(folder)}"
    return f"{EXTERNAL}{recorded}"
