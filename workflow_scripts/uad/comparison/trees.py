"""One of two runs that are compared: its files, where they come from, and what it was asked for.

Files are named alike wherever a run lies: by their path below the results folder, and raw data
elsewhere by ``raw/<data set>/<path in the raw tree>``.
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from uad.core.errors import DataError
from uad.core.files import read_json, sha256
from uad.core.provenance import SUFFIX
from uad.records import EXTERNAL, REPOSITORY, Record, Records, load_records

#: Ending of the list of a generated raw tree, which lies beside the tree (uad.core.paths).
MANIFEST = ".manifest.tsv"
#: Stages of files that no rule made.
RAW, CODE, UNKNOWN = "raw", "repository", "no record"
#: Folder of the results tree in a crate, and the crate's list of what it was made from.
RESULTS, CRATE_LIST = "results", "manifest.tsv"


@dataclass(frozen=True)
class File:
    """A file of a run.

    Attributes:
        key: its name, see the module.
        path: where it lies; None if it is not there, being temporary or left out.
        sha256: of its bytes, or, where it is not there, what the records say of them.
        expected: SHA-256 that it had when it was made, as far as a record or a manifest says so.
        record: of the job that made it.
    """

    key: str
    path: Path | None
    sha256: str | None
    expected: str | None = None
    record: Record | None = field(default=None, repr=False)

    @property
    def changed_since(self) -> bool:
        """Whether it is no longer what its job wrote."""
        return None not in (self.expected, self.sha256) and self.expected != self.sha256


@dataclass(frozen=True)
class Run:
    """A results tree.

    Attributes:
        name: as the user named it.
        root: the results folder.
        records: its records.
    """

    name: str
    root: Path
    records: Records

    @cached_property
    def config(self) -> dict[str, Any]:
        """The merged config of the run; empty if it is not there."""
        path = self.root / "config.resolved.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def phantom(self) -> bool:
        """Whether the tree is marked as one of phantom data."""
        marker = self.root / "source.json"
        return marker.is_file() and read_json(marker).get("source") == "phantom"

    @cached_property
    def _places(self) -> list[tuple[str, str]]:
        """Where the run had its folders, and what they are called wherever they lie."""
        found = {}
        for record in self.records.all.values():
            roots = record.content["roots"]
            found[os.path.normpath(roots["repository"])] = "repository"
            found[os.path.normpath(roots["results"])] = "results"
        for name, spec in (self.config.get("datasets") or {}).items():
            if spec.get("path"):
                found[os.path.normpath(spec["path"])] = f"results/{RAW}/{name}"
        # the longest first: one folder may lie in another
        return sorted(found.items(), key=lambda place: -len(place[0]))

    def portable(self, text: str) -> str:
        """A text in which the run's own folders have the names that they have everywhere."""
        if "/../" in text and "\n" not in text:
            text = os.path.normpath(text)
        for place, name in self._places:
            if text == place or text.startswith(f"{place}/"):
                return name + text[len(place) :]
            if "/" in place and f"{place}/" in text:
                text = text.replace(f"{place}/", f"{name}/")
        return text

    def key(self, recorded: str) -> str:
        """The name of a file here, from its key in the records (see ``uad.records``)."""
        if recorded.startswith(EXTERNAL):
            path = self.portable(recorded.removeprefix(EXTERNAL))
            below = PurePosixPath(path)
            if below.is_relative_to("results"):
                return below.relative_to("results").as_posix()
        return recorded

    def inputs(self, record: Record) -> dict[str, str | None]:
        """What a job of this run read: SHA-256 by key."""
        return {self.key(entry.key): entry.sha256 for entry in record.inputs}

    @cached_property
    def files(self) -> dict[str, File]:
        """All files but records, by key, in alphabetical order."""
        there = dict(self._on_disk())
        digests = dict(zip(there, _digests(there.values()), strict=True))
        made, listed, read, left_out = self._made(), self._listed(), self._read(), self._left_out()
        found = {}
        for key in sorted({*there, *made, *listed, *read, *left_out}):
            expected, record = made.get(key) or listed.get(key) or (None, None)
            recorded = [] if key in made else [read.get(key)]
            recorded = [left_out.get(key), *recorded, expected]
            digest = next(filter(None, [digests.get(key), *recorded]), None)
            if digest is not None:  # None: a folder
                found[key] = File(key, there.get(key), digest, expected, record)
        return found

    def _on_disk(self) -> Iterator[tuple[str, Path]]:
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                hidden = name.startswith(".") or name.endswith(SUFFIX)
                if not hidden and path.is_file():  # not a link to nowhere
                    yield path.relative_to(self.root).as_posix(), path

    def _made(self) -> dict[str, tuple[str | None, Record]]:
        outputs = self.records.outputs
        return {key: (outputs[key].sha256, job) for key, job in self.records.producers.items()}

    def _listed(self) -> dict[str, tuple[str, Record]]:
        """Files of generated raw trees: the rule declares their list only."""
        found = {}
        for key, record in self.records.producers.items():
            path = self.root / key
            if not key.endswith(MANIFEST) or not path.is_file():
                continue
            with path.open(encoding="utf-8", newline="") as lines:
                for row in csv.DictReader(lines, delimiter="\t"):
                    found[f"{key.removesuffix(MANIFEST)}/{row['path']}"] = row["sha256"], record
        return found

    def _left_out(self) -> dict[str, str]:
        """What a crate says of the files of the run that it does not hold."""
        path = self.root.parent / CRATE_LIST
        if self.root.name != RESULTS or not path.is_file():
            return {}
        with path.open(encoding="utf-8", newline="") as lines:
            return {
                row["path"].removeprefix(f"{RESULTS}/"): row["sha256"]
                for row in csv.DictReader(lines, delimiter="\t")
                if row["path"].startswith(f"{RESULTS}/")
                and not row["path"].endswith(SUFFIX)
                and row["included"] == "no"
                and row["sha256"]
            }

    def _read(self) -> dict[str, str | None]:
        """Files that no job made, as the newest job that read them found them."""
        newest = sorted(self.records.all.values(), key=lambda record: record.content["started"])
        return {
            self.key(entry.key): entry.sha256
            for record in newest
            for entry in record.inputs
            if entry.key not in self.records.producers
        }

    def stage(self, key: str) -> str:
        """The rule that made a file; for others where they are from."""
        file = self.files.get(key)
        if key.startswith(f"{RAW}/") and (file is None or key not in self.records.producers):
            return RAW
        if file and file.record:
            return file.record.rule
        return CODE if key.startswith(REPOSITORY) else UNKNOWN


def _digests(paths: Iterable[Path]) -> list[str]:
    # reading and hashing both release the interpreter's lock
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256, paths))


@contextlib.contextmanager
def open_run(path: str | os.PathLike[str]) -> Iterator[Run]:
    """Open a results folder, a folder that holds one as ``results``, or a zip of either.

    A zip is unpacked into a temporary folder, which goes when the context ends.

    Raises:
        DataError: there is no such thing, or no results of a run in it.
    """
    if not Path(path).exists():
        raise DataError(
            f"{path}: no such folder or file. Name a results folder, or a crate: a folder or zip "
            "with the tree at results/."
        )
    with contextlib.ExitStack() as stack:
        folder = Path(path)
        if folder.is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uad-compare-")))
            _unpack(Path(path), folder)
        records = _records_in(folder)
        if records is None:
            raise DataError(
                f"{path}: holds no results of a run (no record, *{SUFFIX}). Name a results folder, "
                "or a crate: a folder or zip with the tree at results/."
            )
        yield Run(str(path), records.root, records)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive}: is not a zip file, or a damaged one ({error}). Name a results folder, "
            "or a crate: a folder or zip with the tree at results/."
        ) from error


def _records_in(folder: Path) -> Records | None:
    """Records of the results tree in a folder; None if there is none."""
    inner = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    of_zip = [inner[0] / RESULTS] if len(inner) == 1 else []
    for candidate in (folder / RESULTS, *of_zip, folder):
        if candidate.is_dir() and next(candidate.rglob(f"*{SUFFIX}"), None):
            records = load_records(candidate)
            root = _root_of(records)
            return records if root == candidate else load_records(root)
    return None


def _root_of(records: Records) -> Path:
    """Where a tree begins in the folder that was searched: every record lies beside its output."""
    for record in records.all.values():
        place = f"/{record.outputs[0].key}{SUFFIX}"
        if f"/{record.key}".endswith(place):
            return records.root / f"/{record.key}".removesuffix(place).lstrip("/")
    return records.root
