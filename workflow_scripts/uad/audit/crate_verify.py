"""Verifying a crate from nothing but itself: its files by hash, then the audit of its results."""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from uad.audit.crate_contents import CODE_FOLDER, RESULTS_FOLDER, place_of
from uad.audit.verdict import Verdict, audit
from uad.core.errors import DataError
from uad.core.files import sha256
from uad.core.records import EXTERNAL

METADATA, MANIFEST, CHECKSUMS = "ro-crate-metadata.json", "manifest.tsv", "manifest.sha256"
#: Of the manifest.
COLUMNS = ("path", "bytes", "sha256", "included", "why_not")


@dataclass
class Verified:
    """What was found in a crate: what is wrong by place, and how many files were left out why.

    Two crates with the same ``seal`` (SHA-256 of the list of checksums) are the same.
    """

    files: int = 0
    seal: str = ""
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: Counter[str] = field(default_factory=Counter)
    verdict: Verdict | None = None


def verify(crate: str | Path) -> Verified:
    """Check a crate, a zip file or a folder: every file by hash, then the audit of its results.

    Nothing in the crate is executed.

    Raises:
        DataError: there is no crate.
    """
    crate = Path(crate)
    if crate.is_dir():
        return _verify_folder(crate, {})
    if not crate.is_file():
        raise DataError(f"{crate}: there is no such crate. Make one with 'make crate'.")
    with tempfile.TemporaryDirectory(prefix="uad-crate-") as folder:
        return _verify_folder(Path(folder), unpack(crate, Path(folder)))


def unpack(path: Path, folder: Path) -> dict[str, str]:
    """Unpack a zip file into an empty folder; returns places that could not be read, and why.

    Raises:
        DataError: it is no zip file, or would write outside the folder.
    """
    damaged = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                place = PurePosixPath(entry.filename)
                if place.is_absolute() or ".." in place.parts:
                    raise DataError(f"{path}: would write outside its folder: {entry.filename}")
                try:
                    archive.extract(entry, folder)
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                    damaged[entry.filename] = f"cannot be unpacked: {error}"
                    (folder / place).unlink(missing_ok=True)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: is no zip file, or damaged ({error}). Get it again.") from None
    return damaged


def left_out_of(root: Path) -> dict[str, dict[str, str]]:
    """Rows of a crate's manifest for what it lacks, by path; as far as they can be read."""
    path = root / MANIFEST
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    rows = [dict(zip(COLUMNS, line.split("\t"), strict=False)) for line in text.splitlines()]
    return {row["path"]: row for row in rows if row.get("included") == "no" and "why_not" in row}


def _verify_folder(root: Path, damaged: dict[str, str]) -> Verified:
    checksums, left_out = root / CHECKSUMS, left_out_of(root)
    if not checksums.is_file():
        why = damaged.get(CHECKSUMS, "this is no crate of this workflow")
        raise DataError(f"{root}: holds no {CHECKSUMS}; {why}. Get it again.")
    found = Verified(
        seal=sha256(checksums), left_out=Counter(r["why_not"] for r in left_out.values())
    )
    _compare_hashes(root, damaged, found)

    def omitted(key: str) -> bool:
        """Whether a crate may lack a file: one that it lists as left out, or raw data."""
        raw = key.startswith(("raw/", EXTERNAL)) and not (root / place_of(key)).exists()
        return raw or place_of(key) in left_out

    try:
        found.verdict = audit(root / RESULTS_FOLDER, repository=root / CODE_FOLDER, omitted=omitted)
    except DataError as error:
        found.failures[RESULTS_FOLDER].append(str(error))
    for finding in found.verdict.findings if found.verdict else ():
        found.failures[place_of(finding.artifact)].append(f"{finding.check}: {finding.why}")
    return found


def _compare_hashes(root: Path, damaged: dict[str, str], found: Verified) -> None:
    expected: dict[str, str] = {}
    text = (root / CHECKSUMS).read_bytes().decode(errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line):
            expected[match[2]] = match[1]
        else:
            found.failures[CHECKSUMS].append(f"line {number} is no checksum and path")
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    found.files = len(there)
    for place in sorted((there | expected.keys() | damaged.keys()) - {CHECKSUMS}):
        if place in damaged:
            found.failures[place].append(damaged[place])
        elif place not in there:
            found.failures[place].append("is missing")
        elif place not in expected:
            found.failures[place].append(f"is not in {CHECKSUMS}: it was added")
        elif sha256(root / place) != expected[place]:
            found.failures[place].append("was changed since the crate was packed")
