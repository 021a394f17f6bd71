"""Verifying a crate from nothing but itself: its files, its records, and the tables' cells."""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections import Counter
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
    failures: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    verdict: Verdict | None = None

    def require(self, crate: str | Path) -> None:
        """Raise a DataError that names the first files that fail, if any does."""
        if not self.failures:
            return
        named = [f"{place} {'; '.join(why)}" for place, why in sorted(self.failures.items())]
        more = f"; and {len(named) - 5} more" if len(named) > 5 else ""
        raise DataError(
            f"{crate}: does not pass its own verification: {'; '.join(named[:5])}{more}. "
            "'make audit' tells what is wrong with the results; the crate is not kept."
        )

    def fail(self, place: str, why: str) -> None:
        """Note what is wrong with a file."""
        found = self.failures.setdefault(place, [])
        if why not in found:
            found.append(why)


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


def _verify_folder(root: Path, damaged: dict[str, str]) -> Verified:
    found = Verified(failures={place: [why] for place, why in damaged.items()})
    checksums = root / CHECKSUMS
    if not checksums.is_file() and CHECKSUMS not in damaged:
        raise DataError(f"{root}: holds no {CHECKSUMS}; this is no crate of this workflow.")
    expected = {}
    for number, line in enumerate(_lines(root, CHECKSUMS, found), start=1):
        if match := re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line):
            expected[match[2]] = match[1]
        else:
            found.fail(CHECKSUMS, f"line {number} is no checksum and path")
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    found.files, found.seal = len(there), sha256(checksums) if checksums.is_file() else ""
    actual = {place: sha256(root / place) for place in sorted(there - {CHECKSUMS})}
    for place in sorted({*expected, *actual} - set(damaged)):
        if place not in actual:
            found.fail(place, "is missing")
        elif place not in expected:
            found.fail(place, f"is not in {CHECKSUMS}: it was added")
        elif actual[place] != expected[place]:
            found.fail(place, "was changed since the crate was packed")
    left_out = _check_manifest(root, actual, found) if MANIFEST in actual else set()

    def omitted(key: str) -> bool:
        """Whether a crate may lack a file: one that it lists as left out, or raw data."""
        raw = key.startswith(("raw/", EXTERNAL)) and not (root / place_of(key)).exists()
        return raw or place_of(key) in left_out

    try:
        found.verdict = audit(root / RESULTS_FOLDER, repository=root / CODE_FOLDER, omitted=omitted)
    except DataError as error:
        found.fail(RESULTS_FOLDER, str(error))
    for finding in found.verdict.findings if found.verdict else ():
        found.fail(place_of(finding.artifact), f"{finding.check}: {finding.why}")
    return found


def _lines(root: Path, place: str, found: Verified) -> list[str]:
    """Lines of a list of the crate; none if it is gone or no text."""
    try:
        return (root / place).read_bytes().decode().splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        found.fail(place, f"is not text ({error.reason} at byte {error.start})")
        return []


def _check_manifest(root: Path, actual: dict[str, str], found: Verified) -> set[str]:
    """The table of all files agrees with the files; returns the places of those left out."""
    left_out, listed = set(), {MANIFEST}
    header, *lines = _lines(root, MANIFEST, found) or [""]
    if header != "\t".join(COLUMNS):
        found.fail(MANIFEST, f"does not begin with the columns {', '.join(COLUMNS)}")
        return left_out
    for number, line in enumerate(lines, start=2):
        row = dict(zip(COLUMNS, line.split("\t"), strict=False))
        if len(row) != len(COLUMNS) or row["included"] not in ("yes", "no"):
            found.fail(MANIFEST, f"line {number} is not a row of this table")
        elif row["included"] == "no":
            left_out.add(row["path"])
            found.left_out[row["why_not"]] += 1
        else:
            listed.add(row["path"])
            if actual.get(row["path"], row["sha256"]) != row["sha256"]:
                found.fail(row["path"], f"is not the file that {MANIFEST} lists")
    for place in sorted(set(actual) - listed):
        found.fail(place, f"is not in {MANIFEST}")
    return left_out
