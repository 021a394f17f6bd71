"""One of two runs that are compared: its files, where they come from, and what it was asked for.

Files are named alike wherever a run lies: by their path below the results folder, and raw data
elsewhere by ``raw/<data set>/<path in the raw tree>``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from uad.audit.tree import CONFIG, MANIFEST, MARKER, manifest_rows
from uad.core.errors import DataError
from uad.core.files import read_json, read_tsv, sha256_of_all
from uad.core.provenance import SUFFIX
from uad.core.records import EXTERNAL, REPOSITORY, Record, Records, load_records
from uad.core.walk import files_below

#: Stages of files that no rule made.
RAW, CODE, UNKNOWN = "raw", "repository", "no record"
#: Folder of the results tree in a crate, and the crate's list of what it was made from.
RESULTS, CRATE_LIST = "results", "manifest.tsv"
_WHAT = "Name a results folder, or a crate: a folder or zip with the tree at results/."


@dataclass(frozen=True)
class File:
    """A file of a run.

    Attributes:
        path: where it lies; None if it is not there, being temporary or left out.
        sha256: of its bytes, or, where it is not there, what the records say of them.
        expected: SHA-256 that it had when it was made, as far as a record or a manifest says so.
        record: of the job that made it.
    """

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
    """A results tree."""

    name: str
    records: Records

    @cached_property
    def config(self) -> dict[str, Any]:
        """The merged config of the run; empty if it is not there."""
        path = self.records.root / CONFIG
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def phantom(self) -> bool:
        """Whether the tree is marked as one of phantom data."""
        marker = self.records.root / MARKER
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

    def portable(self, content: Any) -> Any:
        """Plain data in which the run's own folders have the names that they have everywhere."""
        if isinstance(content, dict):
            return {self.portable(key): self.portable(value) for key, value in content.items()}
        if isinstance(content, list):
            return [self.portable(value) for value in content]
        if not isinstance(content, str):
            return content
        if "/../" in content and "\n" not in content:
            content = os.path.normpath(content)
        for place, name in self._places:
            if content == place or content.startswith(f"{place}/"):
                return name + content[len(place) :]
            if "/" in place:
                content = content.replace(f"{place}/", f"{name}/")
        return content

    def key(self, recorded: str) -> str:
        """The name of a file here, from its key in the records."""
        if recorded.startswith(EXTERNAL):
            path = PurePosixPath(self.portable(recorded.removeprefix(EXTERNAL)))
            if path.is_relative_to("results"):
                return path.relative_to("results").as_posix()
        return recorded

    def inputs(self, record: Record) -> dict[str, str | None]:
        """What a job of this run read: SHA-256 by key."""
        return {self.key(entry.key): entry.sha256 for entry in record.inputs}

    @cached_property
    def files(self) -> dict[str, File]:
        """All files but records, by key, in alphabetical order."""
        there = {}
        for path in files_below(self.records.root):
            key = path.relative_to(self.records.root).as_posix()
            hidden = any(part.startswith(".") for part in PurePosixPath(key).parts)
            if not hidden and not key.endswith(SUFFIX) and path.is_file():
                there[key] = path
        pairs = zip(there, sha256_of_all(there.values()), strict=True)
        digests = {key: digest for key, digest in pairs if digest}
        made = {
            key: (self.records.outputs[key].sha256, r) for key, r in self.records.producers.items()
        }
        expected = {**self._listed(), **made}
        known = {key: digest for key, (digest, _) in expected.items() if digest}
        known = {**known, **self._read(), **self._left_out(), **digests}
        return {
            key: File(there.get(key), known[key], *expected.get(key, ())) for key in sorted(known)
        }

    def _listed(self) -> dict[str, tuple[str, Record]]:
        """Files of generated raw trees: the rule declares their list only."""
        return {
            f"{folder}/{row['path']}": (row["sha256"], record)
            for key, record in self.records.producers.items()
            if key.endswith(MANIFEST) and (folder := key.removesuffix(MANIFEST))
            for row in manifest_rows(self.records.root, folder)
        }

    def _left_out(self) -> dict[str, str]:
        """What a crate says of the files of the run that it does not hold."""
        path = self.records.root.parent / CRATE_LIST
        if self.records.root.name != RESULTS or not path.is_file():
            return {}
        rows = read_tsv(path)
        rows = rows[(rows["included"] == "no") & rows["path"].str.startswith(f"{RESULTS}/")]
        rows = rows.dropna(subset="sha256")
        return dict(zip(rows["path"].str.removeprefix(f"{RESULTS}/"), rows["sha256"], strict=True))

    def _read(self) -> dict[str, str]:
        """Files that no job made, as the newest job that read them found them."""
        newest = sorted(self.records.all.values(), key=lambda record: record.content["started"])
        return {
            self.key(entry.key): entry.sha256
            for record in newest
            for entry in record.inputs
            if entry.key not in self.records.producers and entry.sha256  # None: a folder
        }

    def stage(self, key: str) -> str:
        """The rule that made a file; for others where they are from."""
        file = self.files.get(key)
        if key.startswith(f"{RAW}/") and (file is None or key not in self.records.producers):
            return RAW
        if file and file.record:
            return file.record.rule
        return CODE if key.startswith(REPOSITORY) else UNKNOWN


@contextlib.contextmanager
def open_run(path: str | os.PathLike[str]) -> Iterator[Run]:
    """Open a results folder, a folder that holds one as ``results``, or a zip of either.

    A zip is unpacked into a temporary folder, which goes when the context ends.

    Raises:
        DataError: there is no such thing, or no results of a run in it.
    """
    if not Path(path).exists():
        raise DataError(f"{path}: no such folder or file. {_WHAT}")
    with contextlib.ExitStack() as stack:
        folder, candidates = Path(path), []
        if folder.is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uad-compare-")))
            try:
                with zipfile.ZipFile(path) as content:
                    content.extractall(folder)
            except (zipfile.BadZipFile, EOFError, zlib.error) as error:
                raise DataError(
                    f"{path}: is not a zip file, or a damaged one ({error}). {_WHAT}"
                ) from error
            inner = [entry for entry in folder.iterdir() if entry.is_dir()]
            candidates = [inner[0] / RESULTS, inner[0]] if len(inner) == 1 else []
        for root in (folder / RESULTS, *candidates, folder):
            if any(root.rglob(f"*{SUFFIX}")):
                yield Run(str(path), load_records(root))
                return
        raise DataError(f"{path}: holds no results of a run (no record, *{SUFFIX}). {_WHAT}")
