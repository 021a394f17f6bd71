"""Where the files of a results tree lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def files_below(root: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield every file below ``root``, sorted within a folder; paths begin with ``root``.

    Stage folders are often links to another disk, so links to folders are followed. One that
    leads back to a folder that it lies in is not.
    """
    yield from _below(Path(root), (os.path.realpath(root),))


def _below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:  # deleted by a job that is at work
        return
    for entry in entries:
        path = folder / entry.name
        if not entry.is_dir():
            yield path
            continue
        place = os.path.realpath(path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
        if place not in above:
            yield from _below(path, (*above, place))


def working_directory(root: str | os.PathLike[str], recorded: str) -> Path:
    """Where the run was started, from which relative paths outside of its results begin.

    Args:
        root: the results folder as it is now.
        recorded: as the run called it: a relative name leads up from ``root``, so that a folder
            moved with its surroundings finds them; with an absolute one it was beside ``root``.
    """
    parts = PurePosixPath(os.path.normpath(recorded))
    place = Path(root).resolve()
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        return place.parent
    return place.parents[min(len(parts.parts), len(place.parents)) - 1]
