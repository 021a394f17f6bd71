"""A results tree as the checks see it: records, config, and the real hash of every file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
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
_TREE = Tree(".")


def key(path: str) -> str:
    """The key of a path of ``Tree(".")``."""
    return path.removeprefix("./")


def participants_key(dataset: str) -> str:
    """Key of a data set's participants table."""
    return key(_TREE.participants(dataset))


def split_key(names: dict[str, str]) -> str:
    """Key of the split of a job's experiment and fold."""
    return key(_TREE.split(names["experiment"], names["fold"]))


def is_raw(name: str) -> bool:
    """Whether a key is of a raw scan: outside of the tree, or in a raw tree in it."""
    return name.startswith(EXTERNAL) or (name.startswith(RAW) and name.count("/") > 1)


def is_free(name: str) -> bool:
    """Whether a file is none of the artifacts: a log, a benchmark, a record, a verdict."""
    return name.startswith(("logs/", "benchmarks/", "audit/")) or name.endswith(SUFFIX)


@dataclass(frozen=True)
class Finding:
    """An artifact that fails.

    Attributes:
        artifact: its key (see ``uad.core.records``); of a record, where the record is wrong.
    """

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
    _tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The results folder."""
        return self.records.root

    @cached_property
    def marked(self) -> str | None:
        """What the marker says of the kind of data."""
        try:
            return str(read_json(self.root / MARKER).get("source"))
        except (OSError, ValueError, AttributeError):
            return None

    @property
    def phantom(self) -> bool | None:
        """Whether the data are synthetic: as the config says, else as the marker does."""
        if self.cfg is not None:
            return self.cfg.phantom
        return {"phantom": True, "real": False}.get(self.marked)

    @cached_property
    def sound(self) -> list[Record]:
        """The records that can be relied on."""
        return [r for name, r in self.records.all.items() if name not in self.records.broken]

    @cached_property
    def current(self) -> list[Record]:
        """The sound records of this run: those that are not left over."""
        return [record for record in self.sound if record.key not in self.leftovers]

    @property
    def known(self) -> set[str]:
        """Keys of all artifacts: outputs, raw files and other inputs."""
        inputs = {entry.key for record in self.sound for entry in record.inputs}
        return {*self.records.outputs, *self.raw, *inputs, *self.unrecorded}

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
        found: dict[str, list[Record]] = {}
        for record in self.current:
            found.setdefault(record.rule, []).append(record)
        return found

    def of_rule(self, rule: str) -> list[Record]:
        """The current records of a rule."""
        return self._by_rule.get(rule, [])

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self.records.path(name)

    def table(self, name: str) -> pd.DataFrame:
        """A TSV of the tree, read once; not to be changed."""
        if name not in self._tables:
            self._tables[name] = read_tsv(self.path(name))
        return self._tables[name]

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
        record, digest = self.made_by(name), self.digest(name)
        return digest is not None and (
            record is None or self.records.outputs[name].sha256 == digest
        )

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
    folders = _generated_raw(tree)
    listed = {
        f"{folder}/{row['path']}" for folder in folders for row in manifest_rows(tree.root, folder)
    }
    inputs = {entry.key for record in tree.sound for entry in record.inputs}
    tree.digests = _digests(tree, {*tree.files, *records.outputs, *listed, *inputs})
    tree.cfg = _config(tree)
    _read_participants(tree, inputs)
    _register_raw(tree, folders, inputs)
    return tree


def _digests(tree: AuditedTree, names: Iterable[str]) -> dict[str, tuple[int, str] | None]:
    artifacts = sorted(name for name in names if not is_free(name))
    paths = list(map(tree.path, artifacts))
    found = {}
    for name, path, digest in zip(artifacts, paths, sha256_of_all(paths), strict=True):
        found[name] = (path.stat().st_size, digest) if digest else None
        if digest is None and path.is_file():
            tree.notes.add(f"{name}: cannot be read.")
    return found


def _config(tree: AuditedTree) -> uad_config.Config | None:
    """The config of the run, if it is as it was written."""
    entry = tree.records.outputs.get(CONFIG)
    if tree.digest(CONFIG) is None or (entry and entry.sha256 != tree.digest(CONFIG)):
        tree.skipped.add(f"comparison with the config: {CONFIG} is not what the run wrote.")
        return None
    try:
        return uad_config.load_files([tree.root / CONFIG])
    except ConfigError as error:
        tree.skipped.add(f"comparison with the config: {error}")
        return None


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table that may be damaged: none then."""
    try:
        return read_tsv(path).fillna("").to_dict("records")
    except (ValueError, UnicodeDecodeError, OSError):
        return []


def _read_participants(tree: AuditedTree, read: set[str]) -> None:
    """Who is in the data sets, and the raw files of theirs that a job read."""
    start, end = participants_key("\0").split("\0")
    for name in sorted(tree.files):
        if not (name.startswith(start) and name.endswith(end)) or not tree.is_as_recorded(name):
            continue
        rows = _rows(tree.root / name)
        tree.participants[name.removeprefix(start).removesuffix(end)] = rows
        roots = (tree.made_by(name) or tree.sound[0]).content["roots"]
        columns = ("image", "lesion", "mask")
        listed = {key_of(row[c], roots) for row in rows for c in columns if row.get(c)}
        # a raw file that no job read has nothing to be compared with
        tree.raw |= {k: None for k in listed & read if k.startswith((EXTERNAL, RAW))}


def _register_raw(tree: AuditedTree, generated: set[str], read: set[str]) -> None:
    """The raw files of generated trees, by their manifest; where those of others lie."""
    for record in (r for r in tree.sound if r.rule == "index_dataset"):
        folder = key_of(str(record.params.get("root")), record.content["roots"])
        if folder.startswith(RAW) and folder not in generated:
            tree.own_raw.add(folder)
    for folder in sorted(generated):
        if tree.is_as_recorded(folder + MANIFEST):
            rows = manifest_rows(tree.root, folder)
            tree.raw |= {f"{folder}/{row['path']}": row["sha256"] for row in rows}
        else:  # what the jobs saw is all that is known
            there = read | tree.files
            tree.raw |= {k: None for k in there if k.startswith(f"{folder}/")}
            tree.skipped.add(
                f"raw files below {folder} that no job read: {folder}{MANIFEST} fails itself."
            )


def _generated_raw(tree: AuditedTree) -> set[str]:
    """Keys of the generated raw trees, also of one whose manifest is gone."""
    made = {record.outputs[0].key for record in tree.sound if record.rule == "make_phantom"}
    there = {name for name in tree.files if name.startswith(RAW) and name.endswith(MANIFEST)}
    return {name.removesuffix(MANIFEST) for name in made | there}


def manifest_rows(root: Path, folder: str) -> list[dict[str, Any]]:
    """Rows (path, sha256, ...) of the manifest of a generated raw tree; none if it is damaged."""
    return [row for row in _rows(root / (folder + MANIFEST)) if {"path", "sha256"} <= set(row)]


def is_outside(name: str) -> bool:
    """Whether a key is of a file of the code's repository, or elsewhere outside of the tree."""
    return name.startswith((REPOSITORY, EXTERNAL))
