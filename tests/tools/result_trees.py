"""Result trees for tests: small ones written at once, and finished ones spoilt on purpose.

A tree is files and a record for each job, as ``uad.core.provenance`` writes them. ``Forge`` spoils
one as a person would who knows the records: it makes all hashes fit again.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from uad.__main__ import main
from uad.core.files import sha256, write_json
from uad.core.provenance import FORMAT, SUFFIX, record_digest

#: The code that jobs of a synthetic tree say they were made with.
CODE = {"script_sha256": "5" * 64, "commit": "c" * 40, "diff_sha256": None}
LIBRARY = {"core/errors.py": "1" * 64, "core/files.py": "2" * 64}
LOCK = 'requires-python = ">=3.11, <3.14"\n[[package]]\nname = "numpy"\nversion = "2.3.5"\n'
ENVIRONMENT = {"python": "3.11.7", "numpy": "2.3.5"}
ENVIRONMENT["lock_sha256"] = hashlib.sha256(LOCK.encode()).hexdigest()


def uad(*words):
    """Run ``uad`` in this process; its status and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(map(str, words)))
        except SystemExit as error:  # of the parser of the command line
            status = error.code
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


class ResultTree:
    """A results folder that is filled job by job.

    Attributes:
        root: the folder; records name it ``results``, as if it had been moved afterwards.
        repository: where ``repository:`` keys lie.
    """

    def __init__(self, root, repository=None):
        self.root = Path(root)
        self.repository = Path(repository or self.root.parent / "repository")
        self.root.mkdir(parents=True, exist_ok=True)
        self._minute = 0

    def write(self, key, content=b""):
        """Write a file that no record knows; returns its path."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def path(self, key):
        """Where a key lies."""
        if key.startswith("repository:"):
            return self.repository / key.removeprefix("repository:")
        return self.root / key

    def job(self, rule, outputs, inputs=(), *, wildcards=None, params=None, **content):
        """Record a job; returns the key of its record.

        ``outputs`` are keys, or content by key (None: the file is there, or is gone on purpose);
        ``content`` are other fields of the record, which replace the usual ones.
        """
        outputs = outputs if isinstance(outputs, dict) else dict.fromkeys(outputs)
        for key, data in outputs.items():
            if data is not None:
                self.write(key, data)
        self._minute += 1
        record = {
            "format": FORMAT,
            "rule": rule,
            "wildcards": dict(wildcards or {}),
            "params": dict(params or {}),
            "config": {"used": {}, "sha256": "0" * 64},
            "seeds": {},
            "roots": {"results": "results", "repository": "/repository"},
            "inputs": [self.entry(key) for key in inputs],
            "outputs": [self.entry(key) for key in outputs],
            "log": f"results/logs/{rule}/{'/'.join((wildcards or {}).values()) or 'job'}.log",
            "code": {**CODE, "library_files": LIBRARY},
            "environment": ENVIRONMENT,
            "host": {"name": "node", "platform": "Linux", "device": "cpu"},
            "threads": 1,
            "started": f"2026-01-01T{self._minute // 60:02}:{self._minute % 60:02}:00Z",
            "seconds": 1.0,
            "peak_memory_mib": 100,
            "peak_gpu_memory_mib": None,
            "facts": {},
            "record_seconds": 0.01,
            **content,
        }
        self.write(record["log"].removeprefix("results/"), "")
        key = f"{next(iter(outputs))}{SUFFIX}"
        write_json(self.root / key, {**record, "record_sha256": record_digest(record)})
        return key

    def record(self, key):
        """The record beside a file."""
        return json.loads((self.root / f"{key}{SUFFIX}").read_bytes())

    def copied(self, folder):
        """A copy that a test may spoil."""
        shutil.copytree(self.root.parent, folder, dirs_exist_ok=True, symlinks=True)
        other = copy.copy(self)
        other.root, other.repository = folder / self.root.name, folder / self.repository.name
        return other

    def entry(self, key):
        """What a record says of a file as it is now."""
        path = self.path(key)
        if key.startswith("repository:"):
            said = f"/repository/{key.removeprefix('repository:')}"
        else:
            said = f"results/{key}"
        return {"path": said, "bytes": path.stat().st_size, "sha256": sha256(path)}


class Forge:
    """Changes a finished tree, and the records with it."""

    def __init__(self, root):
        self.root = Path(root)

    def flip(self, key, place=None):
        """Change one byte of a file (the middle one), and nothing else."""
        path = self.root / key
        content = bytearray(path.read_bytes())
        place = len(content) // 2 if place is None else place
        content[place] ^= 1
        path.write_bytes(content)

    def replace(self, key, old, new):
        """Change a text in a file."""
        path = self.root / key
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{key} has no {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def record(self, key, change):
        """Let ``change`` edit the content of a record (by its key, or that of the first output)."""
        path = self.root / (key if key.endswith(SUFFIX) else f"{key}{SUFFIX}")
        content = json.loads(path.read_bytes())
        change(content)
        write_json(path, {**content, "record_sha256": record_digest(content)})

    def rehash(self, key, *, inputs=True):
        """Make the records fit the file as it is now: its job's, with ``inputs`` its readers'."""
        path = self.root / key
        facts = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for record in self.root.rglob(f"*{SUFFIX}"):
            content = json.loads(record.read_bytes())
            sides = ["outputs", *(["inputs"] if inputs else [])]
            named = [f for side in sides for f in content[side] if f["path"] == f"results/{key}"]
            if named:
                for file in named:
                    file.update(facts)
                write_json(record, {**content, "record_sha256": record_digest(content)})
