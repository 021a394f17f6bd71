"""A results tree as the checks see it: records, config, and the real hash of every file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from uad import config as uad_config
from uad.audit.verdict import Findings
from uad.core.errors import ConfigError, DataError
from uad.core.files import TEMPORARY, read_json, read_tsv, sha256
from uad.core.paths import Tree
from uad.core.provenance import SUFFIX
from uad.core.walk import files_below, working_directory
from uad.records import EXTERNAL, REPOSITORY, Artifact, Record, Records, key_of, load_records

#: Paths of the tree as keys.
KEYS = Tree(".")
CONFIG = "config.resolved.yaml"
#: Says which kind of data a tree holds.
MARKER = "source.json"
RAW = "raw/"
#: The rule of the audit itself, which leaves a log and no record.
AUDIT = "audit"
#: Advice for a file that is not what it was.
MAKE_AGAIN = (
    "Restore it from a copy, or delete it together with its record and run the workflow again."
)


def key(path: str) -> str:
    """The key of a path of :data:`KEYS`."""
    return path.removeprefix("./")


@dataclass
class Audited:
    """The tree and what was found so far.

    Attributes:
        records: of the tree.
        cfg: the config of the run; None if it is not there or cannot be trusted.
        digests: size and SHA-256 of every file that a record, a manifest or a participants table
            names, by key; None if it is not there.
        files: keys of all files below the results folder.
        participants: rows (dicts) of each data set's participants table, by data set.
        raw: registered raw files, and the SHA-256 that they should have where that is known.
        compared: keys whose content was compared with what is said about them.
        lost: files that are there and whose record is not.
        own_raw: folders of the tree that hold real raw data, which no manifest lists.
        leftovers: records of an earlier config or selection, and what they are left over of.
    """

    records: Records
    omitted: Callable[[str], bool]
    digests: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    cfg: uad_config.Config | None = None
    participants: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    raw: dict[str, str | None] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    own_raw: set[str] = field(default_factory=set)
    leftovers: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    notes: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    checks: Counter[str] = field(default_factory=Counter)

    @property
    def root(self) -> Path:
        """The results folder."""
        return self.records.root

    @property
    def phantom(self) -> bool | None:
        """Whether the data are synthetic: as the config says, else as the marker does."""
        if self.cfg is not None:
            return self.cfg.phantom
        return {"phantom": True, "real": False}.get(self.marked)

    @cached_property
    def marked(self) -> str | None:
        """What the marker says of the kind of data."""
        try:
            return str(read_json(self.root / MARKER).get("source"))
        except (OSError, ValueError, AttributeError):
            return None

    @property
    def known(self) -> set[str]:
        """Keys of all artifacts: outputs, raw files and other inputs."""
        inputs = {entry.key for record in self.sound for entry in record.inputs}
        return {*self.records.outputs, *self.raw, *inputs, *self.lost}

    @cached_property
    def sound(self) -> list[Record]:
        """The records that were not edited, and lie beside the file that they are of."""
        return [
            record
            for name, record in self.records.all.items()
            if name not in self.records.broken and is_in_place(record)
        ]

    @cached_property
    def scans(self) -> dict[str, set[tuple[str, str]]]:
        """Subject and modality of the scans of each participants table, by data set."""
        return {
            name: {(str(row.get("subject")), str(row.get("modality"))) for row in rows}
            for name, rows in self.participants.items()
        }

    @cached_property
    def current(self) -> list[Record]:
        """The sound records of this run: those that are not left over."""
        return [record for record in self.sound if record.key not in self.leftovers]

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
        """Where a file lies; a relative path outside the tree starts where the run did."""
        path = self.records.path(name)
        if not name.startswith(EXTERNAL) or path.is_absolute():
            return path
        return self.start / path

    @cached_property
    def start(self) -> Path:
        """The folder that the run was started in, as far as the place of the results tells."""
        first = next(iter(self.records.all.values()))
        return working_directory(self.root, first.content["roots"]["results"])

    def digest(self, name: str) -> str | None:
        """The SHA-256 that a file has now; None if it is not there."""
        found = self.digests.get(name)
        return found[1] if found else None

    def is_omitted(self, name: str) -> bool:
        """Whether a file was left out on purpose."""
        return self.omitted(name)

    def made_by(self, name: str) -> Record | None:
        """The record of a file, if it has a sound one."""
        record = self.records.producers.get(name)
        return record if record and record.key not in self.records.broken else None

    def usable(self, *names: str) -> bool:
        """Whether files are there, are what their records say, and nothing was found in them."""
        return all(
            self.digest(name) is not None
            and name not in self.findings
            and (self.made_by(name) is not None or name in self.raw)
            for name in names
        )

    def ready(self, what: str, *names: str) -> bool:
        """:meth:`usable`, or else a note that ``what`` was not checked, and why."""
        for name in names:
            if self.usable(name):
                continue
            if name in self.findings or self.records.producers.get(name) is None:
                why = f"{name} fails itself"
            elif self.digest(name) is None:
                why = f"{name} is not here"
            else:
                why = f"the record of {name} fails"
            self.skipped.add(f"{what}: {why}.")
            return False
        return True


def open_tree(
    root: Path,
    repository: str | os.PathLike[str] | None,
    omitted: Collection[str] | Callable[[str], bool],
) -> Audited:
    """Read records and config, and hash all files.

    Raises:
        DataError: as :func:`uad.audit.audit`.
    """
    records = load_records(root, repository)
    if not records.all:
        name, why = next(iter(records.broken.items()))
        raise DataError(
            f"{root}: none of its {len(records.broken)} records can be used; {name} {why}. "
            "Run the workflow again with this version of the software, or audit the tree with the "
            "version that made it."
        )
    left_out = omitted if callable(omitted) else frozenset(omitted).__contains__
    tree = Audited(records, left_out)
    tree.files = set(_files(tree))
    wanted = {*tree.files, *records.outputs, *_raw_listed(tree)}
    wanted |= {entry.key for record in tree.sound for entry in record.inputs}
    tree.digests = _digests(tree, sorted(n for n in wanted if not is_free(n)))
    tree.cfg = _config(tree)
    _register_raw(tree)
    return tree


def is_free(name: str) -> bool:
    """Whether a file is none of the artifacts: a log, a benchmark, a record, a verdict."""
    return name.startswith(("logs/", "benchmarks/", "audit/")) or name.endswith(SUFFIX)


def _files(tree: Audited) -> Iterable[str]:
    for path in files_below(tree.root):
        name = path.relative_to(tree.root).as_posix()
        if path.name.startswith(TEMPORARY):
            tree.notes.add(f"{name}: left by a killed job, or being written; may be deleted.")
        else:
            yield name


def is_in_place(record: Record) -> bool:
    """Whether a record lies beside its job's first output."""
    return record.key == f"{record.outputs[0].key}{SUFFIX}"


def _digests(tree: Audited, names: list[str]) -> dict[str, tuple[int, str] | None]:
    """Hashes, by some threads: hashlib lets go of the interpreter lock."""

    def of(name: str) -> tuple[int, str] | None:
        path = tree.path(name)
        try:
            return (path.stat().st_size, sha256(path)) if path.is_file() else None
        except OSError as error:
            tree.notes.add(f"{name}: cannot be read ({error.strerror}).")
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))


def _config(tree: Audited) -> uad_config.Config | None:
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


def _manifests(tree: Audited) -> dict[str, str]:
    """Key of each manifest of a generated raw tree, with the key of that tree."""
    start, end = key(KEYS.manifest("\0")).split("\0")
    return {
        name: f"{start}{name.removeprefix(start).removesuffix(end)}"
        for name in tree.files
        if name.startswith(start) and name.endswith(end)
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table that may be damaged: none then."""
    try:
        return read_tsv(path).fillna("").to_dict("records")
    except (ValueError, UnicodeDecodeError, OSError):
        return []


def _raw_listed(tree: Audited) -> set[str]:
    """Files that the manifests name, whatever is true of these."""
    return {
        f"{folder}/{row['path']}"
        for manifest, folder in _manifests(tree).items()
        for row in _manifest(tree, manifest)
    }


def is_as_recorded(tree: Audited, name: str) -> bool:
    """Whether a file is what the record that wrote it says, as far as there is a sound one."""
    record, entry = tree.made_by(name), tree.records.outputs.get(name)
    return tree.digest(name) is not None and (record is None or entry.sha256 == tree.digest(name))


def _register_raw(tree: Audited) -> None:
    """Who is in the data sets, and which raw files there are with which hash."""
    start, end = key(KEYS.participants("\0")).split("\0")
    read = {entry.key for record in tree.sound for entry in record.inputs}
    for name in sorted(tree.files):
        if not (name.startswith(start) and name.endswith(end)) or not is_as_recorded(tree, name):
            continue
        rows = _rows(tree.root / name)
        tree.participants[name.removeprefix(start).removesuffix(end)] = rows
        roots = (tree.made_by(name) or tree.sound[0]).content["roots"]
        columns = ("image", "lesion", "mask")
        listed = {key_of(row[c], roots) for row in rows for c in columns if row.get(c)}
        # a raw file that no job read has nothing to be compared with
        tree.raw |= {k: None for k in listed & read if k.startswith((EXTERNAL, RAW))}
    generated = _raw_folders(tree)
    for record in (r for r in tree.sound if r.rule == "index_dataset"):
        folder = key_of(str(record.params.get("root")), record.content["roots"])
        if folder.startswith(RAW) and folder not in generated:
            tree.own_raw.add(folder)
    for folder in sorted(generated):
        manifest = f"{folder}{key(KEYS.manifest('')).removeprefix(key(KEYS.raw('')))}"
        if is_as_recorded(tree, manifest):
            rows = _manifest(tree, manifest)
            tree.raw |= {f"{folder}/{row['path']}": row["sha256"] for row in rows}
        else:  # what the jobs saw is all that is known
            there = read | tree.files
            tree.raw |= {k: None for k in there if k.startswith(f"{folder}/")}
            tree.skipped.add(f"raw files below {folder} that no job read: {manifest} fails itself.")


def _manifest(tree: Audited, name: str) -> list[dict[str, Any]]:
    return [row for row in _rows(tree.root / name) if {"path", "sha256"} <= set(row)]


def _raw_folders(tree: Audited) -> set[str]:
    """Keys of the generated raw trees, also of one whose manifest is gone."""
    made = {record.outputs[0].key for record in tree.sound if record.rule == "make_phantom"}
    end = key(KEYS.manifest("\0")).split("\0")[1]
    return {*_manifests(tree).values(), *(name.removesuffix(end) for name in made)}


def is_repository(name: str) -> bool:
    """Whether a key is of a file of the code's repository."""
    return name.startswith(REPOSITORY)
