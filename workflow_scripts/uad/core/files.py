"""Files that are either whole or absent: temporary name first, rename last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: How the name of a file begins that is not whole yet.
TEMPORARY = ".tmp-"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it on success, remove it on failure.

    The temporary name keeps the suffixes of ``path`` because nibabel, ANTs and
    matplotlib choose the format by them. A process that is killed leaves only
    the temporary file, never half of ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f"{TEMPORARY}{platform.node()}-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what a process of this host that is no longer alive left of ``path``."""
    for stale in path.parent.glob(f"{TEMPORARY}{platform.node()}-*-{path.name}"):
        process = stale.name.removeprefix(f"{TEMPORARY}{platform.node()}-").partition("-")[0]
        with contextlib.suppress(ValueError, PermissionError):
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                stale.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON with a final newline (NaN is refused)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file; by libyaml where it is there, which is eight times as fast."""
    import yaml

    text = Path(path).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def write_tsv(path: str | os.PathLike[str], table: Any) -> None:
    """Write a pandas data frame as TSV, missing values as ``n/a`` (as BIDS does)."""
    write_text(path, table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))


def read_tsv(path: str | os.PathLike[str]) -> Any:
    """Read a TSV file into a data frame; columns that name subjects stay text."""
    import pandas as pd

    text = {"subject": str, "age": str, "site": str, "group": str}
    return pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype=text)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as a hexadecimal string."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> list[str | None]:
    """SHA-256 of many files, in some threads; None for what is no file, or cannot be read."""
    from concurrent.futures import ThreadPoolExecutor

    def digest(path: Path) -> str | None:
        try:
            return sha256(path)
        except OSError:
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, paths))


def text_digest(content: Any) -> str:
    """SHA-256 of a JSON-able object, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
