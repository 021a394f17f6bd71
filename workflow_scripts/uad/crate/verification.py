"""Verifying a crate from nothing but itself: its files, its records, and the tables' cells."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from uad.audit.verdict import Verdict
from uad.core.errors import DataError
from uad.core.files import sha256
from uad.crate.archive import unpack
from uad.crate.contents import CODE_FOLDER, RESULTS_FOLDER, place_of
from uad.records import EXTERNAL, load_records

METADATA, README = "ro-crate-metadata.json", "README.md"
MANIFEST, CHECKSUMS = "manifest.tsv", "manifest.sha256"
COLUMNS = ("path", "bytes", "sha256", "included", "why_not")
#: Tables have four decimals.
HALF_A_DIGIT = 0.5001e-4


@dataclass
class Verified:
    """What was found in a crate.

    Attributes:
        files: in the crate.
        seal: SHA-256 of its list of checksums: two crates with the same one are the same.
        failures: place and what is wrong there.
        left_out: number of files by the reason why they are not there.
        verdict: of the audit of the results; None if they could not be audited.
    """

    files: int = 0
    seal: str = ""
    failures: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures

    def require(self, crate: str | Path) -> None:
        """Refuse a crate that did not pass.

        Args:
            crate: as the message calls it.

        Raises:
            DataError: it did not; names the first files that fail.
        """
        if self.passed:
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
    """Check a crate: every file by hash, every record, every cell that its metrics give again.

    Nothing in the crate is executed, and no results of your own are needed.

    Args:
        crate: the zip file, or the folder that it was unpacked into.

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


def _verify_folder(root: Path, damaged: dict[str, str]) -> Verified:
    found = Verified()
    for place, why in damaged.items():
        found.fail(place, why)
    checksums = root / CHECKSUMS
    if not checksums.is_file() and CHECKSUMS not in damaged:
        raise DataError(f"{root}: holds no {CHECKSUMS}; this is no crate of this workflow.")
    expected = _read_checksums(checksums, found)
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
    left_out = _check_manifest(root, actual, found)
    _check_description(root, actual, found)
    _audit(root, left_out, found)
    return found


def _read_checksums(path: Path, found: Verified) -> dict[str, str]:
    expected: dict[str, str] = {}
    if not path.is_file():
        return expected
    for number, line in enumerate(_text(path, CHECKSUMS, found).splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if match is None:
            found.fail(CHECKSUMS, f"line {number} is no checksum and path")
        else:
            expected[match[2]] = match[1]
    return expected


def _text(path: Path, place: str, found: Verified) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        found.fail(place, f"is not text ({error.reason} at byte {error.start})")
        return ""


def _check_manifest(root: Path, actual: dict[str, str], found: Verified) -> set[str]:
    """The table of all files agrees with the files; returns the places of those left out."""
    path, left_out = root / MANIFEST, set()
    if not path.is_file():
        return left_out
    header, *lines = _text(path, MANIFEST, found).splitlines() or [""]
    if header != "\t".join(COLUMNS):
        found.fail(MANIFEST, f"does not begin with the columns {', '.join(COLUMNS)}")
        return left_out
    listed = set()
    for number, line in enumerate(lines, start=2):
        row = dict(zip(COLUMNS, line.split("\t"), strict=False))
        if len(row) != len(COLUMNS) or row["included"] not in ("yes", "no"):
            found.fail(MANIFEST, f"line {number} is not a row of this table")
        elif row["included"] == "no":
            left_out.add(row["path"])
            found.left_out[row["why_not"]] = found.left_out.get(row["why_not"], 0) + 1
        else:
            listed.add(row["path"])
            if row["path"] in actual and actual[row["path"]] != row["sha256"]:
                found.fail(row["path"], f"is not the file that {MANIFEST} lists")
    for place in sorted(set(actual) - listed - {MANIFEST}):
        found.fail(place, f"is not in {MANIFEST}")
    return left_out


def _check_description(root: Path, actual: dict[str, str], found: Verified) -> None:
    """The files that ``ro-crate-metadata.json`` describes are these."""
    path = root / METADATA
    if not path.is_file():
        return
    try:
        graph = json.loads(path.read_bytes())["@graph"]
        hashes = {unquote(entity["@id"]): entity.get("sha256") for entity in graph}
    except (ValueError, KeyError, TypeError, AttributeError):
        found.fail(METADATA, "is no RO-Crate description")
        return
    for place, digest in sorted(hashes.items()):
        if place in actual and digest and actual[place] != digest:
            found.fail(place, f"is not the file that {METADATA} describes")


def _audit(root: Path, left_out: set[str], found: Verified) -> None:
    """Records against files, splits, thresholds, AIR, and tables against metrics."""
    from uad.audit import audit

    results = root / RESULTS_FOLDER
    try:
        found.verdict = audit(
            results, repository=root / CODE_FOLDER, omitted=_omitted(root, left_out)
        )
    except DataError as error:
        found.fail(RESULTS_FOLDER, str(error))
        return
    for finding in found.verdict.findings:
        found.fail(place_of(finding.artifact), f"{finding.check}: {finding.why}")
        if finding.check == "changed" and finding.artifact.endswith(".csv"):
            for cell in _wrong_cells(results, finding.artifact):
                found.fail(place_of(finding.artifact), cell)


def _wrong_cells(results: Path, key: str) -> list[str]:
    """Cells of a changed table that its metrics do not give; the audit does not open such a one."""
    import pandas as pd

    from uad.core.files import read_tsv

    record = load_records(results).record_of(key)
    metrics = [results / e.key for e in record.inputs if e.key.startswith("metrics/")]
    if record.rule != "make_table" or not all(path.is_file() for path in metrics):
        return []
    try:
        table = pd.read_csv(results / key).set_index(
            ["row", "experiment", "test_dataset", "metric"]
        )
        said = table["mean"].astype(float)
        volumes = pd.concat([read_tsv(path) for path in metrics])
        place = ["method", "experiment", "test_dataset"]
        folds = volumes.groupby([*place, "fold"])[["dice", "auprc"]].mean()
        computed = folds.groupby(place).mean().mul(100).stack()
    except (ValueError, KeyError):  # no longer such a table; that it was changed is said already
        return []
    return [
        f"cell {'/'.join(cell)}: the mean is {value}, the metrics give {computed[cell]:.4f}"
        for cell, value in pd.to_numeric(said, errors="coerce").items()
        if cell in computed and not abs(value - computed[cell]) < HALF_A_DIGIT
    ]


def _omitted(root: Path, left_out: set[str]) -> Callable[[str], bool]:
    """Which files a crate may lack: those that it lists, and raw data."""

    def is_omitted(key: str) -> bool:
        raw = key.startswith(("raw/", EXTERNAL)) and not (root / place_of(key)).exists()
        return raw or place_of(key) in left_out

    return is_omitted
