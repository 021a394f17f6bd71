"""The records of a results tree as one graph: which job made a file, from which others.

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
from typing import TYPE_CHECKING, Any

from uad.core.errors import DataError
from uad.core.files import TEMPORARY
from uad.core.provenance import FORMAT, SUFFIX, record_digest

if TYPE_CHECKING:
    from networkx import DiGraph

REPOSITORY, EXTERNAL = "repository:", "external:"
#: Stages whose files are deleted after use, unless ``run.keep_reconstructions`` is set.
KEPT_ON_DEMAND = ("reconstructions/", "maps/")


@dataclass(frozen=True)
class Artifact:
    """A file as a record describes it; size and hash are None for what is not a plain file."""

    key: str
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Record:
    """One job: the key of its record's own file, the record as it was read, and its files."""

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
    """All records of a results tree, by key of the record's file.

    ``broken`` are those that cannot be relied on, and why; what of them could be read is also in
    ``all``. Keys that begin with ``repository:`` are looked up in ``repository``.
    """

    root: Path
    repository: Path
    all: dict[str, Record]
    broken: dict[str, str]

    @cached_property
    def _by_trust(self) -> list[Record]:
        """Where several list a file, the newest that can be relied on counts, as the last one."""
        return sorted(
            self.all.values(), key=lambda r: (r.key not in self.broken, r.content["started"])
        )

    @cached_property
    def producers(self) -> dict[str, Record]:
        """The record that has a file among its outputs, by key of the file."""
        return {entry.key: record for record in self._by_trust for entry in record.outputs}

    @cached_property
    def outputs(self) -> dict[str, Artifact]:
        """Every declared output, by key."""
        return {entry.key: entry for record in self._by_trust for entry in record.outputs}

    @cached_property
    def graph(self) -> DiGraph:
        """File -> job that read it -> file that it made; a job's node is its record's key."""
        import networkx

        graph = networkx.DiGraph()
        for record in self.all.values():
            graph.add_node(record.key, record=record)
            graph.add_edges_from((entry.key, record.key) for entry in record.inputs)
        graph.add_edges_from((record.key, key) for key, record in self.producers.items())
        return graph

    @cached_property
    def start(self) -> Path:
        """The folder that the run was started in, as far as the place of the results tells."""
        first = next(iter(self.all.values()), None)
        recorded = first.content["roots"]["results"] if first else self.root.name
        return working_directory(self.root, recorded)

    def path(self, key: str) -> Path:
        """Where the file of a key lies, whether it is there or not."""
        if key.startswith(REPOSITORY):
            return self.repository / key.removeprefix(REPOSITORY)
        if key.startswith(EXTERNAL):
            return self.start / key.removeprefix(EXTERNAL)
        return self.root / key

    def ancestors(self, keys: Sequence[str]) -> set[str]:
        """Keys of some files, and of all files that they were made from."""
        import networkx

        backwards = self.graph.reverse(copy=False)
        layers = networkx.bfs_layers(backwards, [key for key in keys if key in backwards])
        return set(keys).union(*layers) - self.all.keys()

    @cached_property
    def rule_order(self) -> list[str]:
        """Rules in the order in which files pass through them, from raw data to tables."""
        import networkx

        rules = networkx.DiGraph()
        rules.add_nodes_from(record.rule for record in self.all.values())
        rules.add_edges_from(
            (made_by.rule, record.rule)
            for record in self.all.values()
            for entry in record.inputs
            if (made_by := self.producers.get(entry.key)) and made_by.rule != record.rule
        )
        # rules in a circle, which only contradicting records have, count as one
        groups = networkx.condensation(rules)
        return [
            rule
            for layer in networkx.topological_generations(groups)
            for rule in sorted(set().union(*(groups.nodes[group]["members"] for group in layer)))
        ]


def load_records(
    results: str | os.PathLike[str], repository: str | os.PathLike[str] | None = None
) -> Records:
    """Read every record below a results folder, which may have been moved since.

    ``repository`` is that of the code; the one that this library lies in if left out.

    Raises:
        DataError: there is no such folder, or no record in it.
    """
    root = Path(results)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Name the results folder of a finished run.")
    records, broken = {}, {}
    for path in files_below(root):
        if not path.name.endswith(SUFFIX) or path.name.startswith(TEMPORARY):
            continue
        key = path.relative_to(root).as_posix()
        try:
            content = json.loads(path.read_bytes(), object_hook=_interned)
            if content["format"] == FORMAT:
                records[key] = _record(key, content)
                why = _doubt(records[key])
            else:
                why = f"has format {content['format']}, not {FORMAT}"
        except FileNotFoundError:  # made anew by a run that is at work
            continue
        except ValueError:
            why = "is damaged"
        except (KeyError, TypeError, AttributeError, IndexError):
            records.pop(key, None)
            why = "is damaged, or was written by another version of this software"
        if why:
            broken[key] = why
    if not records and not broken:
        raise DataError(f"{root}: holds no record (*{SUFFIX}). Is it the results of a run?")
    return Records(root, Path(repository or Path(__file__).resolve().parents[3]), records, broken)


def _interned(values: dict[str, Any]) -> dict[str, Any]:
    """Names and hashes of the library are the same in all records; one copy of each will do."""
    return {
        sys.intern(key): sys.intern(value) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _record(key: str, content: dict[str, Any]) -> Record:
    inputs, outputs = (
        tuple(
            Artifact(key_of(file["path"], content["roots"]), file.get("bytes"), file.get("sha256"))
            for file in content[name]
        )
        for name in ("inputs", "outputs")
    )
    _ = content["rule"], content["wildcards"], content["params"], content["started"]
    return Record(key, content, inputs, outputs)


def _doubt(record: Record) -> str:
    """Why a record cannot be relied on; empty if it can."""
    if record.content.get("record_sha256") != record_digest(record.content):
        return "was edited after it was written"
    first = record.outputs[0].key
    beside = first.startswith(EXTERNAL) or record.key == f"{first}{SUFFIX}"
    return "" if beside else f"is of {first} and not beside that file"


def is_temporary(key: str) -> bool:
    """Whether the workflow may delete the file of a key after use.

    By its name alone: what run.keep_reconstructions says now says nothing of the run that
    deleted it.
    """
    healthy = key.startswith("healthy/") and key.endswith(".safetensors")
    masks = key.startswith("preprocessed/") and "/brain_masks/" in key
    return healthy or masks or key.startswith(KEPT_ON_DEMAND)


def key_of(path: str, roots: dict[str, str]) -> str:
    """Key of a file that a job recorded with these ``roots`` (``results``, ``repository``)."""
    recorded = PurePosixPath(os.path.normpath(path))
    for prefix, root in (("", roots["results"]), (REPOSITORY, roots["repository"])):
        folder = PurePosixPath(os.path.normpath(root))
        if recorded.is_relative_to(folder):
            return f"{prefix}{recorded.relative_to(folder)}"
    return f"{EXTERNAL}{recorded}"


def working_directory(root: str | os.PathLike[str], recorded: str) -> Path:
    """Where the run was started, from which relative paths outside of its results begin.

    A relative name, ``recorded`` by the run, leads up from the results folder as it is now, so that
    one that was moved with its surroundings finds them; with an absolute one it was beside it.
    """
    parts = PurePosixPath(os.path.normpath(recorded))
    place = Path(root).resolve()
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        return place.parent
    return place.parents[min(len(parts.parts), len(place.parents)) - 1]


def files_below(root: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield every file below ``root``, sorted within a folder; paths begin with ``root``.

    Stage folders are often links to another disk, so links to folders are followed. One that
    leads back to a folder that it lies in is not.
    """

    def below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:  # deleted by a job that is at work
            return
        for entry in entries:
            path = folder / entry.name
            if not entry.is_dir():
                yield path
                continue
            place = os.path.realpath(path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
            if place not in above:
                yield from below(path, (*above, place))

    yield from below(Path(root), (os.path.realpath(root),))
