"""One of two runs that are compared: its files, where they come from, and its config.

Files are named alike wherever a run lies: by their path below the results folder, and raw data
elsewhere by ``raw/<data set>/<path in the raw tree>``.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
#: Files that describe a run and not a result, by key; ``*`` also spans folders. They differ between
#: any two runs and are not compared.
ABOUT_THE_RUN = (
    "logs/*",
    "benchmarks/*",
    "audit/*",
    "notebooks/audit.*",  # shows the audit, with times and places
    "config.resolved.yaml",  # compared by value; where it matters, it is in a job's params
    "preflight.json",  # disk figures
    "cost/*",  # seconds and memory on one machine
    "tables/cost.*",
    "report.html",  # holds the others, with the times of all jobs
    "report/*",  # its pages about the configuration and the data
    "crate.zip",  # holds the others, with their records
    "README.md",  # of the repository, where its own results folder is used
    "*/checkpoint/*",  # of a training that has not ended
)
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


class Run:
    """A results tree, by the name that the user gave it, and the files of its results by key."""

    def __init__(self, name: str, records: Records) -> None:
        """Read the config, and hash all files."""
        self.name, self.records = name, records
        config, marker = (records.root / name for name in (CONFIG, MARKER))
        content = read_yaml(config) if config.is_file() else {}
        self.config: dict[str, Any] = content if isinstance(content, dict) else {}
        self.phantom = marker.is_file() and read_json(marker).get("source") == "phantom"
        self._places = self._own_places()
        self.files = self._files()

    def _own_places(self) -> list[tuple[str, str]]:
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

    def inputs(self, record: Record) -> dict[str, str | None]:
        """What a job of this run read: SHA-256 by key."""
        return {self._key(entry.key): entry.sha256 for entry in record.inputs}

    def _key(self, recorded: str) -> str:
        path = self.portable(recorded.removeprefix(EXTERNAL))
        moved = recorded.startswith(EXTERNAL) and path.startswith("results/")
        return path.removeprefix("results/") if moved else recorded

    def _files(self) -> dict[str, File]:
        root = self.records.root
        keys = {path.relative_to(root).as_posix(): path for path in files_below(root)}
        there = {
            key: path
            for key, path in keys.items()
            if not (f"/{key}".count("/.") or key.endswith(SUFFIX) or about_the_run(key))
            and path.is_file()
        }
        # of a file that is not there the hash is known from those that read it, from the job that
        # made it, or from the list of a crate; the later counts
        jobs = sorted(self.records.all.values(), key=lambda record: record.content["started"])
        known = {key: digest for job in jobs for key, digest in self.inputs(job).items()}
        made, expected = {}, {}
        for key, record in self.records.producers.items():
            folder = key.removesuffix(MANIFEST)
            for row in manifest_rows(root, folder) if folder != key else ():
                made[f"{folder}/{row['path']}"] = record
                expected[f"{folder}/{row['path']}"] = row["sha256"]
            made[key], expected[key] = record, self.records.outputs[key].sha256
        known |= expected
        if root.name == "results":
            for place, row in left_out_of(root.parent).items():
                if place.startswith("results/"):
                    known[place.removeprefix("results/")] = row["sha256"]
        known |= dict(zip(there, sha256_of_all(there.values()), strict=True))
        return {
            key: File(there.get(key), digest, expected.get(key), made.get(key))
            for key, digest in sorted(known.items())
            if digest and not about_the_run(key)
        }

    def stage(self, key: str) -> str:
        """The rule that made a file; for others where they are from."""
        if made_by := self.records.producers.get(key):
            return made_by.rule
        if key.startswith(f"{RAW}/"):
            return RAW
        return CODE if key.startswith(REPOSITORY) else UNKNOWN


def about_the_run(key: str) -> bool:
    """Whether a file, by its key, can differ without a result being another one."""
    return any(fnmatchcase(key, pattern) for pattern in ABOUT_THE_RUN)


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
