"""Files out of tar and zip archives, none of them outside of the folder; never a link."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from uad.core.errors import DataError
from uad.data.disk import FULL, full
from uad.data.fetch import CHUNK, is_page
from uad.data.progress_bar import Progress, Show

#: Name of a file in an archive, its size, and how to open it.
_Member = tuple[str, int, Callable[[], BinaryIO]]
#: In place of the size of a member that is a link.
LINK = -1
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError,
    EOFError, NotImplementedError, UnicodeDecodeError,
)  # fmt: skip


def extract(
    archive: Path,
    folder: Path,
    select: Callable[[str], str | None],
    nested: str | None = None,
    progress: Show = False,
) -> dict[str, Path]:
    """Write selected files of an archive below a folder.

    Every member is checked, also those that are not selected: a name or a link that points out
    of the folder, or a device, condemns the whole archive. After an error the folder holds files
    that the caller has to remove (see :func:`uad.data.disk.staging`).

    Args:
        archive: tar, compressed or not, or zip.
        folder: made if absent.
        select: name in the archive -> path below the folder, or None: not wanted.
        nested: regular expression; a tar archive inside a zip that is opened as well.
        progress: see :data:`uad.data.progress_bar.Show`.

    Returns:
        Where each file is, by its path below the folder.

    Raises:
        DataError: the archive is unsafe, damaged or truncated, or does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: dict[str, str] = {}
    with _readable(archive), Progress(f"unpacking {archive.name}", None, progress) as bar:
        for name, size, stream in _members(archive, nested):
            if (relative := select(name)) is None:
                continue
            if size == LINK:
                raise DataError(
                    f"{archive}: '{name}' is a link, not a file. Pack the archive again with: tar "
                    "--dereference --hard-dereference"
                )
            if (other := taken.setdefault(relative, name)) != name:
                raise DataError(f"{archive}: '{other}' and '{name}' are both {relative}.")
            path = folder / relative
            if size > shutil.disk_usage(folder).free:
                raise full(folder, size, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream() as source:
                _write(source, path, size, bar)
            if path.stat().st_size != size:
                raise tarfile.ReadError(f"{name} has {path.stat().st_size} of {size} bytes")
    return {relative: folder / relative for relative in taken}


def names_in(archive: Path, limit: int) -> list[str]:
    """Names of the first ``limit`` files in an archive; nothing is unpacked.

    Raises:
        DataError: it is no archive, or it is unsafe or damaged.
    """
    with _readable(archive):
        return [name for name, _, _ in itertools.islice(_members(archive), limit)]


def _write(source: BinaryIO, path: Path, size: int, bar: Progress) -> None:
    with open(path, "wb", buffering=0) as target:
        while block := source.read(CHUNK):
            try:
                target.write(block)
            except OSError as error:
                if error.errno in FULL:
                    raise full(path.parent, size, path.name) from error
                raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
            bar.add(len(block))


def _members(archive: Path, nested: str | None = None) -> Iterator[_Member]:
    """The files of an archive, each after its checks."""
    if not _head(archive).startswith(b"PK"):
        with tarfile.open(archive, tarinfo=_Info) as tar:
            yield from _members_of_tar(archive, tar)
        return
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            _check_name(archive, info.orig_filename)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a link" if kind == stat.S_IFLNK else "a device or a pipe"
                raise _unsafe(archive, info.filename, f"is {what}")
            if info.is_dir():
                continue
            yield info.filename, info.file_size, lambda info=info: zipped.open(info)
            if nested and re.fullmatch(nested, info.filename):
                with (
                    zipped.open(info) as stream,
                    tarfile.open(mode="r|*", fileobj=stream, tarinfo=_Info) as tar,
                ):
                    yield from _members_of_tar(archive, tar)


def _members_of_tar(archive: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in tar:
        _check_name(archive, member.name)
        try:
            tarfile.data_filter(member, "/nowhere")
        except tarfile.SpecialFileError:
            raise _unsafe(archive, member.name, "is a device or a pipe") from None
        except tarfile.FilterError:
            why = f"is a link out of the folder (to '{member.linkname}')"
            raise _unsafe(archive, member.name, why) from None
        if not member.isdir():
            size = member.size if member.isfile() else LINK
            yield member.name, size, lambda member=member: tar.extractfile(member)
    if not hasattr(tar, "end_was_read"):
        raise tarfile.ReadError("it ends before its end mark")
    # the rest is padding; a compressed stream has its own checksum behind it
    while tar.fileobj.read(CHUNK):
        pass


class _Info(tarfile.TarInfo):
    """A member; notes when the mark of the end was read.

    Without it tarfile takes a file that was cut between two members for a shorter archive.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            tar.end_was_read = True
            raise


def _check_name(archive: Path, name: str) -> None:
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise _unsafe(archive, name, "has an absolute path")
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise _unsafe(archive, name, "points out of the folder ('..')")
    if "\0" in name:
        raise _unsafe(archive, name, "has a zero byte in its name")


def _unsafe(archive: Path, name: str, why: str) -> DataError:
    return DataError(
        f"{archive}: unsafe archive: member '{name}' {why}. Nothing of it was kept; do not unpack "
        "it by hand. Get the file from its home again."
    )


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Turn what the archive modules raise into one message."""
    try:
        yield
    except _DAMAGED as error:
        details = " ".join(str(error).split()) or "no details"
        raise DataError(
            f"{archive}: {_what_it_is(_head(archive))} ({details}). Nothing of it was kept. Remove "
            "the file and get it again."
        ) from error
    except RuntimeError as error:  # zipfile: a password is needed
        raise DataError(f"{archive}: cannot be unpacked ({error}).") from error
    except OSError as error:
        raise DataError(f"{archive}: cannot be read ({error.strerror or error}).") from error


def _head(archive: Path) -> bytes:
    with open(archive, "rb") as handle:
        return handle.read(512)


def _what_it_is(head: bytes) -> str:
    if not head:
        return "is empty"
    if is_page(head):
        return "is a web page, not an archive"
    known = head.startswith((b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar"
    return "the archive is truncated or damaged" if known else "is no tar or zip archive"
