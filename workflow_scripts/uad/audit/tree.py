"""A results tree as the checks see it: records, config, and the real hash of every file."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from uad import config as uad_config
from uad.core.errors import ConfigError, DataError
from uad.core.files import TEMPORARY, read_json, read_tsv, sha256_of_all
from uad.core.paths import Tree
from uad.core.provenance import SUFFIX
from uad.core.records import EXTERNAL, REPOSITORY, Artifact, Record, Records, key_of, load_records
from uad.core.walk import files_below

CONFIG = "config.resolved.yaml"
#: Says which kind of data a tree holds.
MARKER = "source.json"
RAW, MANIFEST = "raw/", ".manifest.tsv"
#: Advice for a file that is not what it was.
MAKE_AGAIN = (
    "Restore it from a copy, or delete it together with its record and run the workflow again."
)


def key(path: str) -> str:
    """The key of a path of ``Tree(".")``."""
    return path.removeprefix("./")


def participants_key(dataset: str) -> str:
    """Key of a data set's participants table."""
    return key(Tree(".").participants(dataset))


def split_key(names: dict[str, str]) -> str:
    """Key of the split of a job's experiment and fold."""
    return key(Tree(".").split(names["experiment"], names["fold"]))


def is_raw(name: str) -> bool:
    """Whether a key is of a raw scan: outside of the tree, or in a raw tree in it."""
    return name.startswith(EXTERNAL) or (name.startswith(RAW) and name.count("/") > 1)


def is_free(name: str) -> bool:
    """Whether a file is none of the artifacts: a log, a benchmark, a record, a verdict."""
    return name.startswith(("logs/", "benchmarks/", "audit/")) or name.endswith(SUFFIX)


def is_outside(name: str) -> bool:
    """Whether a key is of a file of the code's repository, or elsewhere outside of the tree."""
    return name.startswith((REPOSITORY, EXTERNAL))


@dataclass(frozen=True)
class Finding:
    """An artifact that fails, by its key; of a record, where the record is wrong."""

    artifact: str
    check: str
    why: str
    advice: str


@dataclass
class AuditedTree:
    """The tree, and what was found so far.

    Attributes:
        omitted: whether the file of a key was left out on purpose.
        digests: size and SHA-256 of every file that a record, a manifest or a participants table
            names, by key; None if it is not there.
        cfg: the config of the run; None if it is not there or cannot be trusted.
        raw: registered raw files, and the SHA-256 that they should have where that is known.
        compared: keys whose content was compared with what is said about them.
        unrecorded: files of which no record says how they were made.
        own_raw: folders of the tree that hold real raw data, which no manifest lists.
        leftovers: records of an earlier config or selection, and what they are left over of.
        findings: by key; the first check that fails an artifact names the cause.
        skipped: checks that could not be made, and why.
    """

    records: Records
    omitted: Callable[[str], bool]
    digests: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    cfg: uad_config.Config | None = None
    participants: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    raw: dict[str, str | None] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    unrecorded: set[str] = field(default_factory=set)
    own_raw: set[str] = field(default_factory=set)
    leftovers: dict[str, str] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    checks: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        #: A TSV of the tree, read once; not to be changed.
        self.table: Callable[[str], pd.DataFrame] = cache(lambda name: read_tsv(self.path(name)))

    @cached_property
    def marked(self) -> str | None:
        """What the marker says of the kind of data."""
        try:
            return str(read_json(self.path(MARKER)).get("source"))
        except (OSError, ValueError, AttributeError):
            return None

    @property
    def phantom(self) -> bool | None:
        """Whether the data are synthetic: as the config says, else as the marker does."""
        said = {"phantom": True, "real": False}.get(self.marked)
        return said if self.cfg is None else self.cfg.phantom

    @cached_property
    def sound(self) -> list[Record]:
        """The records that can be relied on."""
        return [r for name, r in self.records.all.items() if name not in self.records.broken]

    @cached_property
    def current(self) -> list[Record]:
        """The sound records of this run: those that are not left over."""
        return [record for record in self.sound if record.key not in self.leftovers]

    @cached_property
    def read(self) -> set[str]:
        """Keys of all files that a job read."""
        return {entry.key for record in self.sound for entry in record.inputs}

    @property
    def known(self) -> set[str]:
        """Keys of all artifacts: outputs, raw files and other inputs."""
        return {*self.records.outputs, *self.raw, *self.read, *self.unrecorded}

    @cached_property
    def readers(self) -> dict[str, list[tuple[Record, Artifact]]]:
        """Current records that read a file, with what they say of it, by key of the file."""
        found: dict[str, list[tuple[Record, Artifact]]] = {}
        for record in self.current:
            for entry in record.inputs:
                if entry.sha256:
                    found.setdefault(entry.key, []).append((record, entry))
        return found

    @cached_property
    def _by_rule(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.current:
            found[record.rule].append(record)
        return found

    def of_rule(self, *rules: str) -> list[Record]:
        """The current records of some rules."""
        return [record for rule in rules for record in self._by_rule.get(rule, [])]

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self.records.path(name)

    def digest(self, name: str) -> str | None:
        """The SHA-256 that a file has now; None if it is not there."""
        found = self.digests.get(name)
        return found[1] if found else None

    def made_by(self, name: str) -> Record | None:
        """The record of a file, if it has a sound one."""
        record = self.records.producers.get(name)
        return record if record and record.key not in self.records.broken else None

    def is_as_recorded(self, name: str) -> bool:
        """Whether a file is what the record that wrote it says, as far as there is a sound one."""
        digest, made_by = self.digest(name), self.made_by(name)
        said = self.records.outputs[name].sha256 if made_by else digest
        return digest is not None and digest == said

    def fail(self, artifact: str, check: str, why: str, advice: str = MAKE_AGAIN) -> None:
        """Report an artifact; a second reason for the same one is added to the first."""
        first = self.findings.get(artifact)
        if first is None:
            self.findings[artifact] = Finding(artifact, check, why, advice)
        elif why not in first.why:
            also = f"{first.why} Also ({check}): {why}"
            self.findings[artifact] = Finding(artifact, first.check, also, first.advice)

    def ready(self, what: str, *names: str) -> bool:
        """Whether files are there and nothing was found in them; else ``what`` is skipped."""
        for name in names:
            if name in self.findings or self.records.producers.get(name) is None:
                why = f"{name} fails itself"
            elif self.digest(name) is None:
                why = f"{name} is not here"
            elif self.made_by(name) is None:
                why = f"the record of {name} fails"
            else:
                continue
            self.skipped.add(f"{what}: {why}.")
            return False
        return True


def open_tree(
    root: Path,
    repository: str | os.PathLike[str] | None,
    omitted: Collection[str] | Callable[[str], bool],
) -> AuditedTree:
    """Read records and config, and hash all files.

    Raises:
        DataError: as ``uad.audit.verdict.audit``.
    """
    records = load_records(root, repository)
    if not records.all:
        name, why = next(iter(records.broken.items()))
        raise DataError(
            f"{root}: none of its {len(records.broken)} records can be used; {name} {why}. "
            "Run the workflow again with this version of the software, or audit the tree with the "
            "version that made it."
        )
    tree = AuditedTree(records, omitted if callable(omitted) else frozenset(omitted).__contains__)
    for path in files_below(root):
        name = path.relative_to(root).as_posix()
        if path.name.startswith(TEMPORARY):
            tree.notes.add(f"{name}: left by a killed job, or being written; may be deleted.")
        else:
            tree.files.add(name)
    # the generated raw trees, also of one whose manifest is gone
    made = {record.outputs[0].key for record in tree.sound if record.rule == "make_phantom"}
    there = {name for name in tree.files if name.startswith(RAW) and name.endswith(MANIFEST)}
    generated = {name.removesuffix(MANIFEST) for name in made | there}
    listed = {f"{f}/{row['path']}" for f in generated for row in manifest_rows(root, f)}
    _hash(tree, {*tree.files, *records.outputs, *listed, *tree.read})
    tree.cfg = _config(tree)
    _read_participants(tree)
    _register_raw(tree, generated)
    return tree


def _hash(tree: AuditedTree, names: set[str]) -> None:
    artifacts = sorted(name for name in names if not is_free(name))
    paths = list(map(tree.path, artifacts))
    for name, path, digest in zip(artifacts, paths, sha256_of_all(paths), strict=True):
        tree.digests[name] = (path.stat().st_size, digest) if digest else None
        if digest is None and path.is_file():
            tree.notes.add(f"{name}: cannot be read.")


def _config(tree: AuditedTree) -> uad_config.Config | None:
    why = f"{CONFIG} is not what the run wrote."
    if tree.is_as_recorded(CONFIG):
        try:
            return uad_config.load_files([tree.path(CONFIG)])
        except ConfigError as error:
            why = str(error)
    tree.skipped.add(f"comparison with the config: {why}")
    return None


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_tsv(path).fillna("").to_dict("records")
    except (ValueError, UnicodeDecodeError, OSError):
        return []


def _read_participants(tree: AuditedTree) -> None:
    """Who is in the data sets, and the raw files of theirs that a job read."""
    start, end = participants_key("\0").split("\0")
    for name in sorted(tree.files):
        if not (name.startswith(start) and name.endswith(end)) or not tree.is_as_recorded(name):
            continue
        rows = _rows(tree.path(name))
        tree.participants[name.removeprefix(start).removesuffix(end)] = rows
        roots = (tree.made_by(name) or tree.sound[0]).content["roots"]
        columns = ("image", "lesion", "mask")
        listed = {key_of(row[c], roots) for row in rows for c in columns if row.get(c)}
        # a raw file that no job read has nothing to be compared with
        tree.raw |= {k: None for k in listed & tree.read if k.startswith((EXTERNAL, RAW))}


def _register_raw(tree: AuditedTree, generated: set[str]) -> None:
    """The raw files of generated trees, by their manifest; where those of others lie."""
    for record in (r for r in tree.sound if r.rule == "index_dataset"):
        folder = key_of(str(record.params.get("root")), record.content["roots"])
        if folder.startswith(RAW) and folder not in generated:
            tree.own_raw.add(folder)
    for folder in sorted(generated):
        if tree.is_as_recorded(folder + MANIFEST):
            rows = manifest_rows(tree.records.root, folder)
            tree.raw |= {f"{folder}/{row['path']}": row["sha256"] for row in rows}
        else:  # what the jobs saw is all that is known
            there = tree.read | tree.files
            tree.raw |= {k: None for k in there if k.startswith(f"{folder}/")}
            tree.skipped.add(
                f"raw files below {folder} that no job read: {folder}{MANIFEST} fails itself."
            )


def manifest_rows(root: Path, folder: str) -> list[dict[str, Any]]:
    """Rows (path, sha256, ...) of the manifest of a generated raw tree; none if it is damaged."""
    return [row for row in _rows(root / (folder + MANIFEST)) if {"path", "sha256"} <= set(row)]
