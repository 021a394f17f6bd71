"""A results tree as the checks see it: records, config, and the real hash of every file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from uad.config import Config, load_files
from uad.core.errors import ConfigError
from uad.core.files import TEMPORARY, read_json, read_tsv, sha256_of_all
from uad.core.paths import MODALITY, Tree
from uad.core.provenance import SUFFIX
from uad.core.records import EXTERNAL, REPOSITORY, Artifact, Record, Records, files_below, key_of

CONFIG = "config.resolved.yaml"
#: Says which kind of data a tree holds.
MARKER = "source.json"
RAW, MANIFEST = "raw/", ".manifest.tsv"
#: Columns of a participants table that are read here.
SCAN = ["subject", "modality", "image", "lesion", "mask"]
#: Advice for a file that is not what it was.
MAKE_AGAIN = (
    "Restore it from a copy, or delete it together with its record and run the workflow again."
)


def participants_key(dataset: str) -> str:
    """Key of a data set's participants table."""
    return Tree("").participants(dataset)[1:]


def split_key(names: dict[str, str]) -> str:
    """Key of the split of a job's experiment and fold."""
    return Tree("").split(names["experiment"], names["fold"])[1:]


def modality_of(names: dict[str, str]) -> str:
    """Modality of a job on scans, by its wildcards; empty if it has none."""
    return names.get("modality") or MODALITY.get(names.get("suffix", ""), "")


def is_raw(name: str) -> bool:
    """Whether a key is of a raw scan: outside of the tree, or in a raw tree in it."""
    return name.startswith(EXTERNAL) or (name.startswith(RAW) and name.count("/") > 1)


def is_free(name: str) -> bool:
    """Whether a file is none of the artifacts: a log, a benchmark, a record, a verdict."""
    return name.startswith(("logs/", "benchmarks/", "audit/")) or name.endswith(SUFFIX)


def is_outside(name: str) -> bool:
    """Whether a key is of a file of the code's repository, or elsewhere outside of the tree."""
    return name.startswith((REPOSITORY, EXTERNAL))


def short(digest: str | None) -> str:
    """The first 12 characters of a SHA-256."""
    return digest[:12] if digest else "no hash"


@dataclass(frozen=True)
class Finding:
    """An artifact that fails, by its key; of a record, where the record is wrong."""

    artifact: str
    check: str
    why: str
    advice: str


class AuditedTree:
    """The tree, and what the checks found so far; ``omitted``: what was left out on purpose."""

    def __init__(self, records: Records, omitted: Callable[[str], bool]) -> None:
        """Read the config, and hash all files."""
        self.records, self.omitted, self.path = records, omitted, records.path
        #: by key; the first check that fails an artifact names the cause
        self.findings: dict[str, Finding] = {}
        self.notes: set[str] = set()
        #: checks that could not be made, and why; how many comparisons were made, by kind
        self.skipped: set[str] = set()
        self.checks: Counter[str] = Counter()
        #: keys whose content was compared, and those of which no record says how they were made
        self.compared: set[str] = set()
        self.unrecorded: set[str] = set()
        #: records of an earlier config or selection, and what they are left over of
        self.leftovers: dict[str, str] = {}
        #: a TSV of the tree by its key, read once; not to be changed
        self.table: Callable[[str], pd.DataFrame] = cache(lambda name: read_tsv(self.path(name)))
        self.subjects: Callable[[str, str], list[str]] = cache(self._subjects)
        self.sound = [r for name, r in records.all.items() if name not in records.broken]
        self.read = {entry.key for record in self.sound for entry in record.inputs}
        self.files = set(self._files())
        # the generated raw trees, also of one whose manifest is gone
        made = {record.outputs[0].key for record in self.sound if record.rule == "make_phantom"}
        there = {name for name in self.files if name.startswith(RAW) and name.endswith(MANIFEST)}
        generated = {name.removesuffix(MANIFEST) for name in made | there}
        manifests = {folder: manifest_rows(records.root, folder) for folder in sorted(generated)}
        listed = {f"{folder}/{r['path']}" for folder, rows in manifests.items() for r in rows}
        #: size and SHA-256 of every file, by key; None if it is not there
        self.digests = self._hashed({*self.files, *records.outputs, *listed, *self.read})
        #: the config of the run; None if it is not there or cannot be trusted
        self.cfg = self._config()
        #: registered raw files, and the SHA-256 that they should have where that is known
        self.raw: dict[str, str | None] = {}
        #: subject and modality of the scans of a raw file, by data set and key
        self.owners: dict[str, dict[str, set[tuple[str, str]]]] = {}
        #: scans by data set, of the participants tables that can be relied on
        self.people = dict(self._participants())
        #: folders of the tree that hold real raw data, which no manifest lists
        self.own_raw = {
            key_of(str(record.params.get("root")), record.content["roots"])
            for record in self.sound
            if record.rule == "index_dataset"
        }
        self.own_raw = {name for name in self.own_raw - generated if name.startswith(RAW)}
        for folder, rows in manifests.items():
            if self.is_as_recorded(folder + MANIFEST):
                self.raw |= {f"{folder}/{row['path']}": row["sha256"] for row in rows}
            else:  # what the jobs saw is all that is known
                self.raw |= {k: None for k in self.read | self.files if k.startswith(f"{folder}/")}
                self.skipped.add(
                    f"raw files below {folder} that no job read: {folder}{MANIFEST} fails itself."
                )

    def _files(self) -> Iterator[str]:
        for path in files_below(self.records.root):
            name = path.relative_to(self.records.root).as_posix()
            if path.name.startswith(TEMPORARY):
                self.notes.add(f"{name}: left by a killed job, or being written; may be deleted.")
            else:
                yield name

    def _hashed(self, names: Iterable[str]) -> dict[str, tuple[int, str] | None]:
        paths = {name: self.path(name) for name in sorted(names) if not is_free(name)}
        digests = dict(zip(paths, sha256_of_all(paths.values()), strict=True))
        unreadable = {name for name, path in paths.items() if not digests[name] and path.is_file()}
        self.notes |= {f"{name}: cannot be read." for name in unreadable}
        return {
            name: (paths[name].stat().st_size, digest) if digest else None
            for name, digest in digests.items()
        }

    def _config(self) -> Config | None:
        why = f"{CONFIG} is not what the run wrote."
        if self.is_as_recorded(CONFIG):
            try:
                return load_files([self.path(CONFIG)])
            except ConfigError as error:
                why = str(error)
        self.skipped.add(f"comparison with the config: {why}")
        return None

    def _participants(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Who is in the data sets; registers the raw files of theirs that a job read."""
        start, end = participants_key("\0").split("\0")
        for name in sorted(self.files):
            if not (name.startswith(start) and name.endswith(end)) or not self.is_as_recorded(name):
                continue
            scans = pd.DataFrame(_rows(self.path(name))).reindex(columns=SCAN, fill_value="")
            dataset = name.removeprefix(start).removesuffix(end)
            roots = (self.made_by(name) or self.sound[0]).content["roots"]
            owners = self.owners[dataset] = owners_of_raw_files(scans, roots)
            # a raw file that no job read has nothing to be compared with
            self.raw |= {k: None for k in {*owners} & self.read if k.startswith((EXTERNAL, RAW))}
            yield dataset, scans

    def _subjects(self, dataset: str, modality: str) -> list[str]:
        """Who has a scan of a modality, in the order of the participants table."""
        scans = self.people[dataset]
        return scans.loc[scans["modality"] == modality, "subject"].tolist()

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
    def current(self) -> list[Record]:
        """The sound records of this run: those that are not left over."""
        return [record for record in self.sound if record.key not in self.leftovers]

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

    def of_rule(self, *rules: str) -> list[Record]:
        """The current records of some rules."""
        return [record for record in self.current if record.rule in rules]

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


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_tsv(path).fillna("").to_dict("records")
    except (ValueError, UnicodeDecodeError, OSError):
        return []


def owners_of_raw_files(
    people: pd.DataFrame, roots: dict[str, str]
) -> dict[str, set[tuple[str, str]]]:
    """Subject and modality of the scans that a raw file belongs to, by key of the file."""
    owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
    scans = people.reindex(columns=SCAN).fillna("")
    for subject, modality, *paths in scans.itertuples(index=False):
        for path in filter(None, paths):
            owners[key_of(path, roots)].add((subject, modality))
    return owners


def manifest_rows(root: Path, folder: str) -> list[dict[str, Any]]:
    """Rows (path, sha256, ...) of the manifest of a generated raw tree; none if it is damaged."""
    return [row for row in _rows(root / (folder + MANIFEST)) if {"path", "sha256"} <= set(row)]
