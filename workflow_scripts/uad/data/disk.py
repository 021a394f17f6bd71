"""Room on disks, locks of paths and temporary folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from uad.core.errors import DataError
from uad.core.files import TEMPORARY
from uad.data.progress_lines import mb, say

#: What some cluster file systems answer to a request for a lock.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def require_room(needs: Mapping[Path, int], what: str) -> None:
    """Check that the disks have room for the bytes needed below each folder (added up by disk).

    Raises:
        DataError: they have not; ``what`` they are needed for is in the message.
    """
    disks, places = Counter(), {}
    for folder, count in needs.items():
        place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
        disk = place.stat().st_dev
        disks[disk] += count
        places.setdefault(disk, place)
    for disk, place in places.items():
        if disks[disk] > shutil.disk_usage(place).free:
            raise _full(place, f"{what} needs {mb(disks[disk])}")


def cannot_use(path: Path, error: OSError, what: str) -> DataError:
    """The message for a path where ``what`` cannot be read or written; the disk may be full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path.parent, f"{what} does not fit")
    return DataError(
        f"{path}: cannot be used ({error.strerror or error}). Mend this, then run the same command "
        "again; what is there is kept."
    )


def _full(folder: Path, why: str) -> DataError:
    return DataError(
        f"{folder.resolve()}: the disk is full: {why}, but only "
        f"{mb(shutil.disk_usage(folder).free)} are free. Free some space, or name a folder on a "
        "larger disk; then run the same command again."
    )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a path, ``.<name>.lock`` beside it, which stays there as an empty file.

    The kernel frees it when the process ends, however it ends.
    """
    with open(path.with_name(f".{path.name}.lock"), "a") as handle:
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{path.name}: waiting for another process")
                fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder in ``parent``; gone afterwards, and so are those of dead processes.

    It must be used by one process at a time (:func:`lock`) on each host.
    """
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{TEMPORARY}{platform.node()}-"
    for stale in parent.glob(f"{prefix}*-{name}"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = parent / f"{prefix}{os.getpid()}-{name}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
