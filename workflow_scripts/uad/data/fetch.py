"""Large files from public homes: resumed, verified, unpacked safely, whole or absent.

Built on ``requests`` (the transport of pooch) and ``tqdm``. Pooch itself starts every
transfer anew (it opens its temporary file with ``w+b``), hashes a finished file at each
call and retries whatever the error; with a downloader of our own inside it, only its
temporary name and its rename would be left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import lzma
import os
import platform
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO
from urllib.parse import urlsplit

from uad import __version__
from uad.core.errors import DataError
from uad.core.files import read_json, sha256, write_json
from uad.data.sources import File

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
#: File systems that know no locks (some cluster ones).
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
#: Lines of progress in a log: seconds to the first and between two, the share of the whole that
#: must have come since the last one, and after how many seconds there is one all the same.
FIRST_LINE, BETWEEN_LINES, SHARE, PATIENCE_OF_A_READER = 5.0, 30.0, 0.05, 600.0

#: Where progress is shown. False: nowhere. True: on standard error, a bar if that is a terminal,
#: else a line now and then. A stream: a bar on this terminal, and the lines on standard error.
Show = bool | TextIO


@dataclass(frozen=True)
class Patience:
    """How long to insist on a transfer.

    Attributes:
        attempts: failures in a row after which to give up; one that brought the transfer at
            least ``worth`` bytes further than it ever was starts the count anew.
        first_wait: seconds before the second attempt, doubled each time.
        longest_wait: seconds, at most.
        connect: seconds to wait for a connection.
        read: seconds to wait for the next byte.
        worth: see ``attempts``.
        sleep: how to wait.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    connect: float = 15.0
    read: float = 60.0
    worth: int = 8 * CHUNK
    sleep: Callable[[float], Any] = time.sleep


@dataclass(frozen=True)
class Fetched:
    """A finished file.

    Attributes:
        path: the file.
        checksum: ``<algorithm>:<digits>`` of its bytes.
        verified: whether the registry knows this checksum; otherwise it is only recorded.
        transferred: bytes that this call got over the network.
        url: where it was downloaded from, now or earlier; None: somebody put it there.
    """

    path: Path
    checksum: str
    verified: bool
    transferred: int = 0
    url: str | None = None


class _Again(Exception):
    """This attempt failed; another may not."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class _Refused(Exception):
    """This address will not give the file, however often it is asked."""


# --- fetch


def fetch(
    file: File,
    folder: str | os.PathLike[str],
    *,
    progress: Show = True,
    unpack_to: str | os.PathLike[str] | None = None,
    patience: Patience | None = None,
) -> Fetched:
    """Get a file into a folder, unless it is already there and as it should be.

    A transfer goes into ``<name>.part`` and is taken up where it broke off, also by a
    later call; a finished file that was verified once is not read again until its size
    or date changes (``<name>.checksum.json``). Two processes wait for one another.

    Args:
        file: its entry in the registry.
        folder: where to put it.
        progress: see :data:`Show`.
        unpack_to: where it will be unpacked; the room for that is checked as well.
        patience: default: the usual one.

    Raises:
        DataError: no address gives the file, its checksum is wrong, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    patience = patience or Patience()
    with lock(path, progress) as alone:
        if (there := finished(file, folder, progress=progress)) is not None:
            return there
        own = "" if alone else f".{platform.node()}-{os.getpid()}"
        part = path.with_name(f"{path.name}{own}.part")
        problems = []
        for url in file.urls:
            try:
                transferred = _get(url, part, file, progress, unpack_to, patience)
                return _finish(file, part, path, transferred, url)
            except _Refused as error:
                problems.append(str(error))
            finally:
                if not alone:
                    _discard(part)
        raise DataError(_nothing_came(file, folder, part, problems))


def finished(
    file: File, folder: str | os.PathLike[str], *, progress: Show = False
) -> Fetched | None:
    """The file in ``folder`` if it is there and as it should be; None if there is none.

    Raises:
        DataError: there is another file of this name, or it changed since it was recorded.
    """
    path = Path(folder) / file.name
    if not path.is_file():
        return None
    known = _record(path)
    facts = path.stat()
    same = known.get("bytes") == facts.st_size and known.get("mtime_ns") == facts.st_mtime_ns
    if same and (file.checksum is None or known.get("checksum") == file.checksum):
        return Fetched(path, known["checksum"], file.checksum is not None, url=known.get("url"))
    algorithm = (file.checksum or "sha256").partition(":")[0]
    checksum = digest(path, algorithm, progress=progress)
    if file.checksum is not None and checksum != file.checksum:
        raise DataError(
            f"{path}: this file is not the published one ({checksum} instead of {file.checksum}); "
            "it is probably incomplete or damaged. Remove it and run the same command again."
        )
    if file.checksum is None and known.get("checksum", checksum) != checksum:
        raise DataError(
            f"{path}: the file changed since it was first used ({checksum}, recorded was "
            f"{known['checksum']}). If that is intended, remove {_record_path(path).name}."
        )
    url = known.get("url") if known.get("checksum") == checksum else None
    return _recorded(Fetched(path, checksum, file.checksum is not None, url=url))


def digest(path: str | os.PathLike[str], algorithm: str, *, progress: Show = False) -> str:
    """``<algorithm>:<digits>`` of a file's bytes."""
    total = os.path.getsize(path)
    result = hashlib.new(algorithm, usedforsecurity=False)
    with (
        open(path, "rb") as handle,
        Progress(f"checking {Path(path).name}", total, progress) as bar,
    ):
        while block := handle.read(4 * CHUNK):
            result.update(block)
            bar.add(len(block))
    return f"{algorithm}:{result.hexdigest()}"


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum.json")


def _record(path: Path) -> dict[str, Any]:
    return _read_small(_record_path(path))


def _recorded(fetched: Fetched) -> Fetched:
    facts = fetched.path.stat()
    write_json(
        _record_path(fetched.path),
        {
            "checksum": fetched.checksum,
            "verified": fetched.verified,
            "url": fetched.url,
            "bytes": facts.st_size,
            "mtime_ns": facts.st_mtime_ns,
        },
    )
    return fetched


def _read_small(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _get(
    url: str,
    part: Path,
    file: File,
    progress: Show,
    unpack_to: str | os.PathLike[str] | None,
    patience: Patience,
) -> int:
    """Bring ``part`` to its full length, in as many attempts as it takes; then verify it."""
    failures, transferred, started_over = 0, 0, False
    furthest = _offset(part, url, file)
    while True:
        before = _offset(part, url, file)
        try:
            transferred += _attempt(url, part, before, file, progress, unpack_to, patience)
            wrong = _wrong_checksum(part, file, progress)
            if wrong is None:
                return transferred
            _discard(part)
            if before and not started_over:
                # its beginning came from an earlier attempt: perhaps from an older file
                started_over = True
                continue
            raise _Refused(
                f"{url}: what came has another checksum than the published file ({wrong} instead "
                f"of {file.checksum}) and was removed"
            )
        except _Again as problem:
            size = _size(part)
            transferred += max(0, size - before)
            # what is fetched anew each time, for nothing can be joined, is no progress
            failures = 1 if size - furthest >= patience.worth else failures + 1
            furthest = max(furthest, size)
            if failures >= patience.attempts:
                raise _Refused(f"{url}: {problem} ({failures} attempts)") from problem
            usual = min(patience.first_wait * 2 ** (failures - 1), patience.longest_wait)
            wait = usual if problem.wait is None else min(problem.wait, patience.longest_wait)
            say(f"{file.name}: {problem}; again in {wait:.0f} s", progress)
            patience.sleep(wait)


def _offset(part: Path, url: str, file: File) -> int:
    """How much of ``part`` is the beginning of the file at ``url``; what is not is removed."""
    state, size = _read_small(_state_path(part)), _size(part)
    total = state.get("total")
    # with neither a version of the server's nor a checksum nothing would find a mixture
    known = state.get("url") == url and (state.get("validator") or file.checksum)
    if size and known and (total is None or size <= total):
        return size
    _discard(part)
    return 0


def _attempt(
    url: str,
    part: Path,
    offset: int,
    file: File,
    progress: Show,
    unpack_to: str | os.PathLike[str] | None,
    patience: Patience,
) -> int:
    """One request; returns the bytes that it brought if ``part`` is complete then."""
    import requests

    state = _read_small(_state_path(part))
    if offset and offset == state.get("total"):
        return 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"uad/{__version__}"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if state.get("validator"):
            headers["If-Range"] = state["validator"]
    host = urlsplit(url).hostname
    try:
        with requests.get(
            url, headers=headers, stream=True, timeout=(patience.connect, patience.read)
        ) as response:
            offset, total = _judge(response, url, part, state, offset)
            _require_transfer_room(part, file, offset, total, unpack_to)
            if offset == 0:
                write_json(
                    _state_path(part),
                    {"url": url, "validator": _validator(response), "total": total},
                )
            received = _receive(response, url, part, offset, total, progress)
    except requests.exceptions.TooManyRedirects:
        raise _Refused(f"{url}: the server redirects in a circle") from None
    except requests.exceptions.SSLError as error:
        raise _Refused(f"{url}: the certificate of {host} is not accepted ({error})") from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise _Again(f"no connection to {host}") from None
    except requests.exceptions.ChunkedEncodingError:
        raise _Again("the connection broke off") from None
    except requests.exceptions.RequestException as error:
        raise _Refused(f"{url}: {error}") from None
    if total is not None and offset + received != total:
        raise _Again(f"the connection broke off at {mb(offset + received)} of {mb(total)}")
    return received


def _judge(
    response: requests.Response, url: str, part: Path, state: dict[str, Any], offset: int
) -> tuple[int, int | None]:
    """From which byte this answer goes on, and how long the file is in all."""
    code = response.status_code
    if code in (408, 425, 429) or code >= 500:
        raise _Again(f"the server answered {code} {response.reason}", _retry_after(response))
    if code == 416:
        _discard(part)
        raise _Again("the server cannot go on where the transfer broke off; starting over", 0.0)
    if code == 206 and offset:
        given = re.fullmatch(
            r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "")
        )
        total = int(given[3]) if given and given[3] != "*" else state.get("total")
        now, before = _validator(response), state.get("validator")
        if (
            given is None
            or int(given[1]) != offset
            or (state.get("total") is not None and total != state["total"])
            or (now and before and now != before)
        ):
            _discard(part)
            raise _Again("the file on the server changed; starting over", 0.0)
        return offset, total
    if code != 200:
        hints = {
            401: "it asks for a login",
            403: "it refuses; some hosts refuse whole networks",
            404: "there is no such file any more",
            410: "there is no such file any more",
        }
        hint = f": {hints[code]}" if code in hints else ""
        raise _Refused(f"{url}: the server answered {code} {response.reason}{hint}")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xh")):
        raise _Refused(_web_page(url))
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _receive(
    response: requests.Response,
    url: str,
    part: Path,
    offset: int,
    total: int | None,
    progress: Show,
) -> int:
    """Append the body of an answer to ``part``."""
    received = 0
    name = part.name.removesuffix(".part")
    try:
        with (
            open(part, "ab" if offset else "wb") as handle,
            Progress(name, total, progress, offset) as bar,
        ):
            for block in _blocks(response):
                if offset + received == 0 and _begins_as_page(block):
                    raise _Refused(_web_page(url))
                handle.write(block)
                handle.flush()
                received += len(block)
                bar.add(len(block))
            os.fsync(handle.fileno())
    except _Refused:
        _discard(part)
        raise
    except _Again as problem:
        of = "" if total is None else f" of {mb(total)}"
        raise _Again(f"{problem} at {mb(offset + received)}{of}") from None
    except OSError as error:
        if error.errno not in FULL:
            raise DataError(f"{part}: cannot be written ({error.strerror or error}).") from error
        _discard(part)
        raise _full(part.parent, None if total is None else total - offset, name) from error
    return received


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes, undecoded; what came before a fault has been given."""
    import urllib3

    while True:
        try:
            block = response.raw.read1(CHUNK)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            stalled = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
            raise _Again("no more data came" if stalled else "the connection broke off") from None
        if not block:
            return
        yield block


def _finish(file: File, part: Path, path: Path, transferred: int, url: str) -> Fetched:
    algorithm = (file.checksum or "sha256").partition(":")[0]
    checksum = file.checksum or digest(part, algorithm)
    os.replace(part, path)
    _state_path(part).unlink(missing_ok=True)
    return _recorded(Fetched(path, checksum, file.checksum is not None, transferred, url))


def _wrong_checksum(part: Path, file: File, progress: Show) -> str | None:
    if file.checksum is None:
        return None
    checksum = digest(part, file.checksum.partition(":")[0], progress=progress)
    return None if checksum == file.checksum else checksum


def _nothing_came(file: File, folder: Path, part: Path, problems: list[str]) -> str:
    if not file.urls:
        return f"{file.name}: has no public address; get it by hand and put it into {folder}."
    kept = _size(part)
    lines = [f"{file.name} could not be downloaded:", *(f"  {problem}" for problem in problems)]
    if kept:
        lines.append(f"Run the same command again: it goes on after {mb(kept)}. Or get the file")
    else:
        lines.append("Run the same command again later, or get the file")
    lines.append(f"with a browser and put it into {folder}.")
    return "\n".join(lines)


def _validator(response: requests.Response) -> str | None:
    """What identifies this version of the file (a strong one, as If-Range needs)."""
    tag = response.headers.get("ETag", "")
    return (tag if tag.startswith('"') else None) or response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _web_page(url: str) -> str:
    return (
        f"{url}: the server sent a web page instead of the file (a login, terms to accept, or a "
        "moved file); open the address in a browser"
    )


def _begins_as_page(block: bytes) -> bool:
    return block.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], progress: Show = True) -> Iterator[bool]:
    """Hold the lock of a path; False where the file system has no locks.

    The kernel frees it when the process ends, however it ends.

    Args:
        path: what to lock.
        progress: where to say that another process has it; always on standard error.
    """
    path = Path(path)
    name = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{path.name}: waiting for another process", progress or True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            name.unlink(missing_ok=True)
            yield False
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(name.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)  # the one before us removed it when it was done
    try:
        yield True
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def say(message: str, progress: Show = True) -> None:
    """Say something where progress is shown (see :data:`Show`)."""
    if progress is False:
        return
    print(message, file=sys.stderr, flush=True)
    if not isinstance(progress, bool):
        with contextlib.suppress(OSError):  # a terminal may be closed while a transfer goes on
            print(message, file=progress, flush=True)


class Progress:
    """How far a long task is: a bar on a terminal, a line now and then in a log.

    Args:
        name: what is shown.
        total: bytes in all, if known.
        shown: see :data:`Show`.
        done: bytes that an earlier attempt brought.
    """

    def __init__(self, name: str, total: int | None, shown: Show, done: int = 0) -> None:
        self.name, self.total, self.done = name, total, done
        self.told = done
        self.bar = None
        stream = sys.stderr if isinstance(shown, bool) else shown
        if shown and stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                desc=name, total=total, initial=done, unit="B", unit_scale=True, leave=False,
                file=stream, dynamic_ncols=True, mininterval=0.5,
            )  # fmt: skip
        lines = shown and (self.bar is None or stream is not sys.stderr)
        self.next_line = time.monotonic() + FIRST_LINE if lines else float("inf")

    def __enter__(self) -> Progress:
        return self

    def add(self, count: int) -> None:
        """Count some more bytes."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        now = time.monotonic()
        if now < self.next_line:
            return
        enough = not self.total or self.done - self.told >= SHARE * self.total
        if enough or now >= self.next_line + PATIENCE_OF_A_READER:
            of = f" of {mb(self.total)}" if self.total else ""
            print(f"{self.name}: {mb(self.done)}{of}", file=sys.stderr, flush=True)
            self.told, self.next_line = self.done, now + BETWEEN_LINES

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


# --- room


def mb(count: float) -> str:
    """A number of bytes for a person."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def require_room(needs: dict[Path, int], what: str) -> None:
    """Check that the disks have room.

    Args:
        needs: bytes needed below each folder; folders on one disk are added up.
        what: what they are needed for.

    Raises:
        DataError: they have not.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in needs.items():
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        first, sum_ = disks.get(device, (folder, 0))
        disks[device] = (first, sum_ + count)
    for folder, count in disks.values():
        if count > shutil.disk_usage(folder).free:
            raise _full(folder, count, what)


def _full(folder: Path, needed: int | None, what: str) -> DataError:
    free = shutil.disk_usage(folder).free
    needs = f"needs {mb(needed)}, but only {mb(free)} are free" if needed else "does not fit"
    return DataError(
        f"{folder.resolve()}: the disk is full: {what} {needs}. Free some space, or name a folder "
        "on a larger disk; then run the same command again."
    )


def _require_transfer_room(
    part: Path, file: File, offset: int, total: int | None, unpack_to: str | os.PathLike[str] | None
) -> None:
    size = total or file.bytes or 0
    needs = {part.parent.resolve(): max(0, size - offset)}
    if unpack_to is not None:
        target = Path(unpack_to).resolve()
        needs[target] = needs.get(target, 0) + (file.unpacked_bytes or size)
    require_room(needs, f"{file.name}{'' if unpack_to is None else ' (and its content)'}")


# --- unpack


@dataclass(frozen=True)
class Unpacked:
    """A file out of an archive.

    Attributes:
        name: its name in the archive.
        relative: where it is now, below the folder.
        bytes: its size.
        sha256: hexadecimal, of a file that was only read (:class:`Compare`); else None.
    """

    name: str
    relative: str
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Compare:
    """Asks for the checksum of a member in place of the file: another one is there already.

    Attributes:
        relative: where the file would be, below the folder.
    """

    relative: str


#: What :func:`unpack` notes in the folder that it makes.
UNPACKED = ".unpacked.json"

#: Chooses what to unpack: (name in the archive, size) -> path below the folder, or None.
Select = Callable[[str, int], str | Compare | None]


def unpack(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    member_pattern: str | None = None,
    *,
    check: Callable[[Path], Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Unpack an archive (tar, compressed or not, or zip) into a folder of its own.

    The folder appears when it is complete. A second call with the same archive does
    nothing. ``.unpacked.json`` in it says what it is from (:func:`unpacked_from`).

    Args:
        archive: the file.
        target: the folder; must not exist, be empty, or be from an earlier call.
        member_pattern: regular expression for the whole names of the members to unpack.
        check: called with a folder that holds what was unpacked, before it appears; raises
            ``DataError`` if that is not what was expected.
        facts: what else to note of the archive (``url``, ``checksum``).

    Raises:
        DataError: the archive is unsafe, damaged, has no such member, does not fit, or ``check``
            refuses it.
    """
    archive, target = Path(archive), Path(target)
    identity = {**_identity(archive), "pattern": member_pattern}
    record = target / UNPACKED
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target):
        if target.is_dir() and any(target.iterdir()):
            known = _read_small(record)
            if not known:
                raise DataError(
                    f"{target}: is there already, but not from this archive ({archive.name}). "
                    "Remove it, or name another folder."
                )
            files = known.get("files", {})
            same = identity.items() <= known.items()
            if same and all(_size(target / n) == s for n, s in files.items()):
                return target

        def select(name: str, size: int) -> str | None:
            wanted = member_pattern is None or re.fullmatch(member_pattern, name)
            return PurePosixPath(name).as_posix() if wanted else None

        with staging(target.parent, target.name) as folder:
            members = extract(archive, folder / "new", select)
            if not members:
                raise DataError(f"{archive}: has no file like {member_pattern or 'any'}.")
            if check is not None:
                try:
                    check(folder / "new")
                except DataError as error:
                    # these paths are about to go
                    why = str(error).replace(f"{folder / 'new'}/", "")
                    raise DataError(f"{archive}: {why}") from error
            files = {member.relative: member.bytes for member in members}
            noted = {**(facts or {}), "sha256": sha256(archive), "files": files}
            write_json(folder / "new" / record.name, {**identity, **noted})
            if target.exists():
                os.replace(target, folder / "old")
            os.replace(folder / "new", target)
    return target


def unpacked_from(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The archive that a file was unpacked from by :func:`unpack`.

    Args:
        path: the file.

    Returns:
        ``archive`` (its name), ``sha256`` and the facts that were given; None if the file is from
        no archive, or is not as it was unpacked.
    """
    path = Path(path)
    for folder in path.parents:
        if (folder / UNPACKED).is_file():
            known = _read_small(folder / UNPACKED)
            same = known.get("files", {}).get(path.relative_to(folder).as_posix()) == _size(path)
            return known if same and "sha256" in known else None
    return None


def _identity(archive: Path) -> dict[str, Any]:
    if not archive.is_file():
        raise DataError(f"{archive}: no such file.")
    facts = archive.stat()
    return {"archive": archive.name, "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder in ``parent``; gone afterwards, and so are those of dead processes."""
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".tmp-{platform.node()}-"
    for stale in parent.glob(f"{prefix}*-{name}"):
        process = stale.name.removeprefix(prefix).partition("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(stale, ignore_errors=True)
    folder = parent / f"{prefix}{os.getpid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    select: Select,
    *,
    nested: str | None = None,
    progress: Show = False,
) -> list[Unpacked]:
    """Write selected files of an archive below a folder; links are never made.

    Every member is checked, also those that are not selected: a name or a link that
    points out of the folder, or a device, condemns the whole archive. After an error
    the folder holds files that the caller has to remove (see :func:`staging`).

    Args:
        archive: tar, compressed or not, or zip.
        folder: made if absent.
        select: see :data:`Select`.
        nested: regular expression; an archive inside the archive that is opened as well.
        progress: see :data:`Show`.

    Returns:
        What was written, and what was only read.

    Raises:
        DataError: the archive is unsafe, damaged or truncated, or does not fit.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = _identity(archive)["bytes"]
    with readable(archive), Progress(f"unpacking {archive.name}", total, progress) as bar:
        writer = _Writer(archive, folder.resolve(), select, bar)
        if is_zip(archive):
            _extract_zip(archive, writer, nested)
        else:
            with open_tar(archive) as tar:
                _extract_tar(tar, writer)
    return list(writer.done.values())


def names_in(archive: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """Names of the files in an archive, at most the first ``limit``; nothing is unpacked.

    Raises:
        DataError: it is no archive, or it is damaged.
    """
    archive = Path(archive)
    with readable(archive):
        if is_zip(archive):
            with zipfile.ZipFile(archive) as zipped:
                return [i.filename for i in zipped.infolist() if not i.is_dir()][:limit]
        names = []
        with open_tar(archive) as tar:
            for member in tar:
                names += [member.name] if member.isfile() else []
                if len(names) == limit:
                    break
        return names


def is_zip(archive: Path) -> bool:
    """Whether a file begins as zip archives do."""
    with open(archive, "rb") as handle:
        return handle.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


class _Info(tarfile.TarInfo):
    """A member; notes when the mark of the end was read.

    Without it tarfile takes a file that was cut between two members for a shorter archive.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            tar.complete = True
            raise


def open_tar(archive: Path | None, stream: BinaryIO | None = None) -> tarfile.TarFile:
    """Open a tar archive whose end is watched."""
    tar = tarfile.open(  # noqa: SIM115
        archive, "r:*" if stream is None else "r|*", fileobj=stream, tarinfo=_Info
    )
    tar.complete = getattr(tar, "complete", False)
    return tar


@contextlib.contextmanager
def readable(archive: Path) -> Iterator[None]:
    """Turn what the archive modules raise into one message."""
    damaged = (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        gzip.BadGzipFile,
        NotImplementedError,
        UnicodeDecodeError,
    )
    try:
        yield
    except damaged as error:
        raise DataError(
            f"{archive}: {_what_it_is(archive)} ({' '.join(str(error).split()) or 'no details'}). "
            "Nothing of it was kept. Remove the file and get it again."
        ) from error
    except RuntimeError as error:  # zipfile: a password is needed
        raise DataError(f"{archive}: cannot be unpacked ({error}).") from error
    except OSError as error:
        raise DataError(f"{archive}: cannot be read ({error.strerror or error}).") from error


def _what_it_is(archive: Path) -> str:
    with open(archive, "rb") as handle:
        head = handle.read(512)
    if not head:
        return "is empty"
    if _begins_as_page(head):
        return "is a web page, not an archive"
    known = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
    if head.startswith(known) or head[257:262] == b"ustar":
        return "the archive is truncated or damaged"
    return "is no tar or zip archive"


@dataclass
class _Writer:
    """Writes the selected members of an archive, after all checks."""

    archive: Path
    folder: Path
    select: Select
    bar: Progress
    done: dict[str, Unpacked] = field(default_factory=dict)
    #: Places by the member that has them; of a zip all are given before the first is written.
    taken: dict[str, str] = field(default_factory=dict)

    def unsafe(self, name: str, why: str) -> DataError:
        return DataError(
            f"{self.archive}: unsafe archive: member '{name}' {why}. Nothing of it was kept; do "
            "not unpack it by hand. Get the file from its home again."
        )

    def check_name(self, name: str) -> None:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
            raise self.unsafe(name, "has an absolute path")
        if ".." in parts:
            raise self.unsafe(name, "points out of the folder ('..')")
        if "\0" in name:
            raise self.unsafe(name, "has a zero byte in its name")

    def place(self, name: str, size: int) -> str | Compare | None:
        wanted = self.select(name, size)
        if wanted is None:
            return None
        relative = wanted.relative if isinstance(wanted, Compare) else wanted
        self.check_name(relative)
        other = self.taken.setdefault(relative, name)
        if other != name:
            raise DataError(f"{self.archive}: '{other}' and '{name}' are both {relative}.")
        return wanted

    def take(self, name: str, wanted: str | Compare, size: int, stream: BinaryIO) -> None:
        """Write a member, or only hash it."""
        if isinstance(wanted, str):
            self.write(name, wanted, size, stream)
            return
        result, read = hashlib.sha256(), 0
        while block := _read(stream):
            result.update(block)
            read += len(block)
            self.bar.add(len(block))
        self._require_whole(name, read, size)
        self.done[wanted.relative] = Unpacked(name, wanted.relative, size, result.hexdigest())

    def write(self, name: str, relative: str, size: int, stream: BinaryIO) -> None:
        path = self.folder / relative
        written = 0
        try:
            if size > shutil.disk_usage(self.folder).free:
                raise _full(self.folder, size, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as handle:
                while block := _read(stream):
                    handle.write(block)
                    written += len(block)
                    self.bar.add(len(block))
                handle.flush()
                if size:
                    os.fsync(handle.fileno())
        except OSError as error:
            if error.errno in FULL:
                raise _full(self.folder, size, name) from error
            raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error
        self._require_whole(name, written, size)
        self.done[relative] = Unpacked(name, relative, size)

    @staticmethod
    def _require_whole(name: str, came: int, size: int) -> None:
        if came != size:
            raise tarfile.ReadError(f"{name} has {came} of {size} bytes")


class _Unreadable(tarfile.ReadError):
    """The archive's own file failed, not the one that is written."""


def _read(stream: BinaryIO) -> bytes:
    try:
        return stream.read(CHUNK)
    except OSError as error:
        raise _Unreadable(str(error)) from error


def _extract_tar(tar: tarfile.TarFile, writer: _Writer) -> None:
    for member in tar:
        writer.check_name(member.name)
        try:
            tarfile.data_filter(member, str(writer.folder))
        except tarfile.SpecialFileError:
            raise writer.unsafe(member.name, "is a device or a pipe") from None
        except (tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError):
            raise writer.unsafe(
                member.name, f"is a link out of the folder (to '{member.linkname}')"
            ) from None
        except tarfile.FilterError as error:
            raise writer.unsafe(member.name, str(error)) from None
        if member.isdir() or (wanted := writer.place(member.name, member.size)) is None:
            continue
        if not member.isfile():
            raise DataError(
                f"{writer.archive}: '{member.name}' is a link, not a file. Pack the archive again "
                "with: tar --dereference --hard-dereference"
            )
        writer.take(member.name, wanted, member.size, tar.extractfile(member))
    if not tar.complete:
        raise tarfile.ReadError("it ends before its end mark")
    # the rest is padding; a compressed stream has its own checksum behind it
    while tar.fileobj.read(CHUNK):
        pass


def _extract_zip(archive: Path, writer: _Writer, nested: str | None) -> None:
    with zipfile.ZipFile(archive) as zipped:
        inner, chosen = [], []
        for info in zipped.infolist():
            name = info.filename
            writer.check_name(info.orig_filename)
            kind = info.external_attr >> 16
            if stat.S_ISLNK(kind):
                raise writer.unsafe(name, "is a link")
            if stat.S_IFMT(kind) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.unsafe(name, "is a device or a pipe")
            if nested and re.fullmatch(nested, name):
                inner.append(info)
            elif not info.is_dir() and (wanted := writer.place(name, info.file_size)):
                chosen.append((info, name, wanted))
        written = [info for info, _, wanted in chosen if isinstance(wanted, str)]
        size = sum(info.file_size for info in [*written, *inner])
        require_room({writer.folder: size}, f"the content of {archive.name}")
        for info, name, wanted in chosen:
            with zipped.open(info) as stream:
                writer.take(name, wanted, info.file_size, stream)
        for info in inner:
            with zipped.open(info) as stream, open_tar(None, stream) as tar:
                _extract_tar(tar, writer)
