"""Files out of tar and zip archives, none of them outside of the folder; never a link."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from uad.core.errors import DataError
from uad.data.disk import cannot_use, require_room
from uad.data.progress_lines import Progress

CHUNK = 1 << 20
#: What the modules of the standard library raise at an archive that is none, or not whole.
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError,
    EOFError, NotImplementedError, UnicodeDecodeError,
)  # fmt: skip

#: A file or link of an archive (those of a zip as of a tar), and what opens its content.
Member = tuple[tarfile.TarInfo, Callable[[], BinaryIO]]


def extract(
    archive: Path,
    folder: Path,
    select: Callable[[str, int], str | None],
    nested: str | None = None,
) -> dict[str, Path]:
    """Write selected files of an archive below a folder; the result has them by their paths there.

    ``select`` gives the path below the folder for the name and the bytes of a member, None for
    those that are not wanted; a tar archive inside a zip whose name matches ``nested`` is opened
    as well. Every member is checked, also those that are not selected: a name or a link that
    points out of the folder, or a device, condemns the whole archive. After an error the folder
    holds files that the caller has to remove (:func:`uad.data.disk.staging`).

    Raises:
        DataError: the archive is unsafe, damaged or truncated, or does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: dict[str, str] = {}
    progress = Progress(f"unpacking {archive.name}")
    with _readable(archive):
        for member, opened in _members(archive, nested):
            name, size = member.name, member.size
            if (relative := select(name, size)) is None:
                continue
            if not member.isfile():
                raise DataError(
                    f"{archive}: '{name}' is a link, not a file. Pack the archive again with: tar "
                    "--dereference --hard-dereference"
                )
            if (other := taken.setdefault(relative, name)) != name:
                raise DataError(f"{archive}: '{other}' and '{name}' are both {relative}.")
            require_room({folder: size}, name)
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            if path.stat().st_size != size:
                raise tarfile.ReadError(f"{name} has {path.stat().st_size} of {size} bytes")
            progress.add(size)
    return {relative: folder / relative for relative in taken}


def names_in(archive: Path, limit: int) -> list[str]:
    """Names of the first ``limit`` files in an archive; nothing is unpacked.

    Raises:
        DataError: it is no archive, or it is unsafe or damaged.
    """
    with _readable(archive):
        return [member.name for member, _ in itertools.islice(_members(archive), limit)]


def _members(archive: Path, nested: str | None = None) -> Iterator[Member]:
    """The files and links of an archive, each after its checks."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive, tarinfo=_Info) as tar:
            yield from _members_of_tar(archive, tar)
        return
    kinds = {0: tarfile.REGTYPE, stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            member = tarfile.TarInfo(info.orig_filename)
            member.size = info.file_size
            member.type = kinds.get(stat.S_IFMT(info.external_attr >> 16), tarfile.FIFOTYPE)
            if info.is_dir():
                member.type = tarfile.DIRTYPE
            if _is_wanted(archive, member):
                yield member, lambda info=info: zipped.open(info)
            if nested and re.fullmatch(nested, info.filename):
                with (
                    zipped.open(info) as stream,
                    tarfile.open(mode="r|*", fileobj=stream, tarinfo=_Info) as tar,
                ):
                    yield from _members_of_tar(archive, tar)


def _members_of_tar(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for member in tar:
        if _is_wanted(archive, member):
            yield member, lambda member=member: tar.extractfile(member)
    if not hasattr(tar, "end_was_read"):
        raise tarfile.ReadError("it ends before its end mark")
    # the rest is padding; a compressed stream has its own checksum behind it
    while tar.fileobj.read(CHUNK):
        pass


class _Info(tarfile.TarInfo):
    """A member; notes that the mark of the end was read, without which an archive was cut."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            tar.end_was_read = True
            raise


def _is_wanted(archive: Path, member: tarfile.TarInfo) -> bool:
    """Whether a member is no folder; one that is unsafe condemns the archive."""
    why = ""
    if re.match(r"[/\\]|[A-Za-z]:", member.name):
        why = "has an absolute path"
    elif ".." in re.split(r"[/\\]", member.name):
        why = "points out of the folder ('..')"
    elif "\0" in member.name:
        why = "has a zero byte in its name"
    elif member.issym() or member.islnk():
        # a symbolic link counts from its own folder, a hard link from the top; the filters of
        # tarfile would do, but 3.11.2 has none
        start = posixpath.dirname(member.name) if member.issym() else ""
        target = posixpath.normpath(posixpath.join(start, member.linkname))
        if target.startswith(("/", "../")) or target == "..":
            why = f"is a link out of the folder (to '{member.linkname}')"
    elif not (member.isfile() or member.isdir()):
        why = "is a device or a pipe"
    if why:
        raise DataError(
            f"{archive}: unsafe archive: member '{member.name}' {why}. Nothing of it was kept; do "
            "not unpack it by hand. Get the file from its home again."
        )
    return not member.isdir()


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Turn what the archive modules raise into one message."""
    try:
        yield
    except (*DAMAGED, RuntimeError) as error:  # the latter: a zip that asks for a password
        details = " ".join(str(error).split()) or "it breaks off"
        raise DataError(
            f"{archive}: cannot be unpacked: it is truncated or damaged, or no tar or zip archive "
            f"({details}). Nothing of it was kept. Remove the file and get it again."
        ) from error
    except OSError as error:
        raise cannot_use(archive, error, f"what is in {archive.name}") from error
