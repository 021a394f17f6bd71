"""``import.tsv`` of a raw tree: from which sources each of its files is known."""

from __future__ import annotations

import re
from pathlib import Path

from uad.core.errors import DataError
from uad.core.files import write_text
from uad.data.disk import size_of

MANIFEST = "import.tsv"
COLUMNS = ("path", "bytes", "source", "stamp")


class Manifest:
    """The rows of ``import.tsv``; a source is an archive or a loose image.

    Raises:
        DataError: there is a file of this name that is something else.
    """

    def __init__(self, raw_root: Path) -> None:
        self.root, self.path = raw_root, raw_root / MANIFEST
        #: Size, and size and date of the source, by path in the raw tree and source.
        self.rows: dict[tuple[str, str], tuple[str, str]] = {}
        if not self.path.is_file():
            return
        head, *lines = self.path.read_text(encoding="utf-8").splitlines() or [""]
        rows = [line.split("\t") for line in lines]
        if head.split("\t") != list(COLUMNS) or any(len(row) != len(COLUMNS) for row in rows):
            raise DataError(
                f"{self.path}: not a list of imported files. Remove it and import again."
            )
        self.rows = {(path, source): (size, stamp) for path, size, source, stamp in rows}

    def add(self, path: str, size: int, source: Path) -> None:
        """Note a file of the raw tree that a source has."""
        self.rows[path, str(source)] = (str(size), _stamp(source))

    def knows(self, path: str, source: Path) -> bool:
        """Whether a file of the raw tree is there still, and known from a source as it is now."""
        there = self.root / path
        row = self.rows.get((path, str(source)))
        return there.is_file() and row == (str(size_of(there)), _stamp(source))

    def known_from(self, source: Path) -> dict[str, bool]:
        """The files that a source had, and whether each is still known from it."""
        paths = [path for path, of in self.rows if of == str(source)]
        return {path: self.knows(path, source) for path in paths}

    def write(self) -> None:
        """Write the file, sorted."""
        rows = [(path, size, source, at) for (path, source), (size, at) in self.rows.items()]
        cells = [[re.sub(r"[\t\n]", " ", cell) for cell in row] for row in sorted(rows)]
        lines = ["\t".join(row) for row in [COLUMNS, *cells]]
        write_text(self.path, "\n".join([*lines, ""]))


def _stamp(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size}-{state.st_mtime_ns}"
