"""Crates as zip files: the same content gives the same bytes; a damaged one names what is."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from uad.core.errors import DataError
from uad.core.files import atomic_path

#: The earliest time that a zip file can name: the real ones would differ from run to run.
TIME = (1980, 1, 1, 0, 0, 0)
#: Unix permissions; the low byte marks a folder for MS-DOS.
PLAIN_FILE, FOLDER = 0o100644 << 16, (0o40755 << 16) | 0x10
BLOCK = 1 << 20


def write_zip(
    path: Path,
    texts: dict[str, str],
    files: Iterable[tuple[str, Path]],
    folders: Iterable[str] = (),
) -> None:
    """Write a zip file whose bytes depend on the content only.

    Args:
        path: of the zip file; written under a temporary name and renamed.
        texts: content by place, these first and in this order.
        files: place and source of all others.
        folders: places, with ``/`` at the end, that get an entry of their own.
    """
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for place, text in texts.items():
            archive.writestr(_entry(place), text.encode())
        for place in folders:
            folder = zipfile.ZipInfo(place, TIME)
            folder.create_system, folder.external_attr = 3, FOLDER
            archive.writestr(folder, b"")
        for place, source in sorted(files):
            entry = _entry(place)
            entry.file_size = source.stat().st_size  # decides whether the entry is a large one
            with open(source, "rb") as read, archive.open(entry, "w") as write:
                shutil.copyfileobj(read, write, BLOCK)


def _entry(place: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(place, TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system, entry.external_attr = 3, PLAIN_FILE
    return entry


def unpack(path: Path, folder: Path) -> dict[str, str]:
    """Unpack a zip file, as much of it as can be read.

    Args:
        path: of the zip file.
        folder: an empty one.

    Returns:
        Places that could not be read, and why.

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
