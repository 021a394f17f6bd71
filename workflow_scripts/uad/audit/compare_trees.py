"""One of two runs that are compared: its files, where they come from, and what it was asked for.

Files are named alike wherever a run lies: by their path below the results folder, and raw data
elsewhere by ``raw/<data set>/<path in the raw tree>``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uad.audit.crate_verify import left_out_of, unpack
from uad.audit.tree import CONFIG, MANIFEST, MARKER, manifest_rows
from uad.core.errors import DataError
from uad.core.files import read_json, read_yaml, sha256_of_all
from uad.core.provenance import SUFFIX
from uad.core.records import EXTERNAL, REPOSITORY, Record, Records, files_below, load_records

#: Stages of files that no rule made.
RAW, CODE, UNKNOWN = "raw", "repository", "no record"
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
    sha256: str
    expected: str | None = None
    record: Record | None = None

    @property
    def changed_since(self) -> bool:
        """Whether it is no longer what its job wrote."""
        return self.expected not in (None, self.sha256)


@dataclass(frozen=True)
class Run:
    """A results tree; ``name`` is what the user called it."""

    name: str
    records: Records

    @cached_property
    def config(self) -> dict[str, Any]:
        """The merged config of the run; empty if it is not there."""
        path = self.records.root / CONFIG
        content = read_yaml(path) if path.is_file() else {}
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
            found |= {roots["repository"]: "repository", roots["results"]: "results"}
        for name, spec in (self.config.get("datasets") or {}).items():
            if spec.get("path"):
                found[spec["path"]] = f"results/{RAW}/{name}"
        # the longest first: one folder may lie in another
        places = [(os.path.normpath(place), name) for place, name in found.items()]
        return sorted(places, key=lambda place: -len(place[0]))

    def portable(self, text: str) -> str:
        """Text in which the run's own folders have the names that they have everywhere."""
        for place, name in self._places:
            text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?=[/\"\s]|$)", name, text)
        return text

    def asked(self, content: Any) -> Any:
        """Plain data as :meth:`portable` text."""
        return json.loads(self.portable(json.dumps(content)))

    def key(self, recorded: str) -> str:
        """The name of a file here, from its key in the records."""
        path = self.portable(recorded.removeprefix(EXTERNAL))
        moved = recorded.startswith(EXTERNAL) and path.startswith("results/")
        return path.removeprefix("results/") if moved else recorded

    def inputs(self, record: Record) -> dict[str, str | None]:
        """What a job of this run read: SHA-256 by key."""
        return {self.key(entry.key): entry.sha256 for entry in record.inputs}

    @cached_property
    def read(self) -> dict[str, str | None]:
        """What any job of this run read, as the last one saw it."""
        jobs = sorted(self.records.all.values(), key=lambda record: record.content["started"])
        return {key: digest for job in jobs for key, digest in self.inputs(job).items()}

    @cached_property
    def files(self) -> dict[str, File]:
        """All files but records, by key, in alphabetical order."""
        root, there, made = self.records.root, {}, self.records.producers
        for path in files_below(root):
            key = path.relative_to(root)
            hidden = any(part.startswith(".") for part in key.parts)
            if not hidden and not key.name.endswith(SUFFIX) and path.is_file():
                there[key.as_posix()] = path
        digests = dict(zip(there, sha256_of_all(there.values()), strict=True))
        expected = {
            f"{folder}/{row['path']}": (row["sha256"], made[key])
            for key in made
            if key.endswith(MANIFEST) and (folder := key.removesuffix(MANIFEST))
            for row in manifest_rows(root, folder)
        }
        expected |= {key: (self.records.outputs[key].sha256, made[key]) for key in made}
        # what is there counts first; else what a crate says, the job that made it, those that read
        known = {key: digest for key, (digest, _) in expected.items()}
        known |= {key: digest for key, digest in self.read.items() if digest and key not in made}
        if root.name == "results":
            left_out = left_out_of(root.parent).items()
            known |= {
                n.removeprefix("results/"): r["sha256"] for n, r in left_out if "results/" in n
            }
        known |= {key: digest for key, digest in digests.items() if digest}
        return {
            key: File(there.get(key), known[key], *expected.get(key, ()))
            for key in sorted(known)
            if known[key]
        }

    def stage(self, key: str) -> str:
        """The rule that made a file; for others where they are from."""
        if key.startswith(f"{RAW}/") and key not in self.records.producers:
            return RAW
        file = self.files.get(key)
        if file and file.record:
            return file.record.rule
        return CODE if key.startswith(REPOSITORY) else UNKNOWN


@contextlib.contextmanager
def open_run(path: str | os.PathLike[str]) -> Iterator[Run]:
    """Open a results folder, a folder that holds one as ``results``, or a zip of either.

    Raises:
        DataError: there is no such thing, or no results of a run in it.
    """
    folder = Path(path)
    if not folder.exists():
        raise DataError(f"{path}: no such folder or file. {_WHAT}")
    with contextlib.ExitStack() as stack:
        inner: list[Path] = []
        if folder.is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uad-compare-")))
            if damaged := unpack(Path(path), folder):
                raise DataError(
                    f"{path}: {'; '.join(map(' '.join, damaged.items()))}. Get it again."
                )
            inner = [entry for entry in folder.iterdir() if entry.is_dir()][:1]
        for root in (folder / "results", *(f / "results" for f in inner), *inner, folder):
            if any(root.rglob(f"*{SUFFIX}")):
                yield Run(str(path), load_records(root))
                return
        raise DataError(f"{path}: holds no results of a run (no record, *{SUFFIX}). {_WHAT}")
