"""Large files over HTTP: resumed where they broke off, verified, whole or absent.

Built on ``requests``. Pooch, which is made for this, starts every transfer anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uad import __version__
from uad.core.errors import DataError
from uad.core.files import read_json, write_json
from uad.data.disk import FULL, full, lock, require_room, size_of
from uad.data.progress_bar import Progress, Show, mb, say
from uad.data.sources import File

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 20
#: Failures in a row after which to give up; one that brought the transfer at least WORTH bytes
#: further than it ever was starts the count anew.
ATTEMPTS, WORTH = 6, 8 * CHUNK
#: Seconds: before the second attempt (doubled each time), at most, and to wait for the server.
FIRST_WAIT, LONGEST_WAIT, PATIENCE = 1.0, 60.0, 60.0
REFUSALS = {
    401: "it asks for a login",
    403: "it refuses; some hosts refuse whole networks",
    404: "there is no such file any more",
    410: "there is no such file any more",
}


@dataclass(frozen=True)
class Fetched:
    """A finished file.

    Attributes:
        path: the file.
        checksum: ``<algorithm>:<digits>`` of its bytes.
        verified: whether the registry knows this checksum; otherwise it is only recorded.
        url: where it was downloaded from, now or earlier; None: somebody put it there.
    """

    path: Path
    checksum: str
    verified: bool
    url: str | None = None


class _Again(Exception):
    """This attempt failed; another may not, after this many seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class _Refused(Exception):
    """This address will not give the file, however often it is asked."""


def fetch(
    file: File,
    folder: str | os.PathLike[str],
    progress: Show = True,
    *,
    attempts: int | None = None,
) -> Fetched:
    """Get a file into a folder, unless it is already there and as it should be.

    A transfer goes into ``<name>.part`` and is taken up where it broke off, also by a later call.

    Args:
        file: its entry in the registry.
        folder: where to put it.
        progress: see :data:`uad.data.progress_bar.Show`.
        attempts: failures in a row after which to give up; default: several.

    Raises:
        DataError: no address gives the file, its checksum is wrong, or the disk is full.
    """
    path = Path(folder) / file.name
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path, progress):
        if (there := finished(file, folder, progress)) is not None:
            return there
        problems = []
        for url in file.urls:
            try:
                _get(url, part, file, progress, attempts or ATTEMPTS)
            except _Refused as problem:
                problems.append(f"{url}: {problem}")
                continue
            os.replace(part, path)
            _discard(part)
            return _recorded(file, path, url, progress)
    if not file.urls:
        raise DataError(
            f"{file.name}: has no public address; get it by hand and put it into {folder}."
        )
    kept = size_of(part)
    again = f": it goes on after {mb(kept)}. Or" if kept else " later, or"
    lines = [f"{file.name} could not be downloaded:", *(f"  {problem}" for problem in problems)]
    lines += [f"Run the same command again{again} get the file", "with a browser and put it into "]
    raise DataError("\n".join(lines) + f"{folder}.")


def finished(file: File, folder: str | os.PathLike[str], progress: Show = False) -> Fetched | None:
    """The file in ``folder`` if it is there and as it should be; None if there is none.

    It is not read again until its size or date changes (``<name>.checksum.json``).

    Raises:
        DataError: there is another file of this name, or it changed since it was recorded.
    """
    path = Path(folder) / file.name
    if not path.is_file():
        return None
    record, state = _record_path(path), path.stat()
    known = _read(record)
    same = (known.get("bytes"), known.get("mtime_ns")) == (state.st_size, state.st_mtime_ns)
    if same and file.checksum in (None, known.get("checksum")):
        return Fetched(path, known["checksum"], file.checksum is not None, known.get("url"))
    checksum = digest(path, file, progress)
    if file.checksum not in (None, checksum):
        raise DataError(
            f"{path}: this file is not the published one ({checksum} instead of {file.checksum}); "
            "it is probably incomplete or damaged. Remove it and run the same command again."
        )
    if file.checksum is None and known.get("checksum", checksum) != checksum:
        raise DataError(
            f"{path}: the file changed since it was first used ({checksum}, recorded was "
            f"{known['checksum']}). If that is intended, remove {record.name}."
        )
    url = known.get("url") if known.get("checksum") == checksum else None
    return _recorded(file, path, url, progress, checksum)


def digest(path: Path, file: File, progress: Show = False) -> str:
    """``<algorithm>:<digits>`` of what is at ``path``; the algorithm is the registry's."""
    algorithm = (file.checksum or "sha256").partition(":")[0]
    result = hashlib.new(algorithm, usedforsecurity=False)
    bar = Progress(f"checking {file.name}", path.stat().st_size, progress)
    with open(path, "rb") as handle, bar:
        while block := handle.read(4 * CHUNK):
            result.update(block)
            bar.add(len(block))
    return f"{algorithm}:{result.hexdigest()}"


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum.json")


def _recorded(
    file: File, path: Path, url: str | None, progress: Show, checksum: str | None = None
) -> Fetched:
    checksum = checksum or file.checksum or digest(path, file, progress)
    got, state = Fetched(path, checksum, file.checksum is not None, url), path.stat()
    content = {"checksum": checksum, "verified": got.verified, "url": url}
    content |= {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
    write_json(_record_path(path), content)
    return got


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- one transfer: <part>.json says of which file, in which version, the part is


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def _get(url: str, part: Path, file: File, progress: Show, attempts: int) -> None:
    """Bring the part to its full length, in as many attempts as it takes; then verify it."""
    failures, resumed, furthest = 0, False, size_of(part)
    while True:
        resumed |= size_of(part) > 0
        try:
            _attempt(url, part, file, progress)
        except _Again as problem:
            failures = 1 if size_of(part) - furthest >= WORTH else failures + 1
            furthest = max(furthest, size_of(part))
            if failures >= attempts:
                raise _Refused(f"{problem} ({failures} attempts)") from problem
            wait = min(problem.wait or FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
            say(f"{file.name}: {problem}; again in {wait:.0f} s", progress)
            time.sleep(wait)
            continue
        if file.checksum is None or (found := digest(part, file, progress)) == file.checksum:
            return
        _discard(part)
        if not resumed:
            raise _Refused(
                f"what came has another checksum than the published file ({found} instead of "
                f"{file.checksum}) and was removed"
            )
        resumed = False  # its beginning may be of an older file: once more, in one piece


def _attempt(url: str, part: Path, file: File, progress: Show) -> None:
    """One request; returns if the part is complete then."""
    import requests

    state = _read(_state_path(part))
    # with neither a version of the server's nor a checksum nothing would find a mixture
    if state.get("url") != url or not (state.get("version") or file.checksum):
        _discard(part)
    offset = size_of(part)
    if offset and offset == state.get("total"):
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": f"uad/{__version__}"}
    if offset:
        headers |= {"Range": f"bytes={offset}-"}
        headers |= {"If-Range": state["version"]} if state.get("version") else {}
    host = urlsplit(url).hostname
    try:
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as response:
            offset, state = _judge(response, part, state, offset)
            if offset == 0:
                require_room({part.parent: state["total"] or 0}, file.name)
                _discard(part)
                write_json(_state_path(part), {"url": url, **state})
            _receive(response, part, state["total"], progress)
    except requests.exceptions.TooManyRedirects:
        raise _Refused("the server redirects in a circle") from None
    except requests.exceptions.SSLError:
        raise _Refused(f"the certificate of {host} is not accepted") from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise _Again(f"no connection to {host}") from None
    except requests.exceptions.RequestException as error:
        raise _Refused(str(error)) from None


def _judge(
    response: requests.Response, part: Path, state: dict[str, Any], offset: int
) -> tuple[int, dict[str, Any]]:
    """From which byte an answer goes on; version and length (``total``) of the whole file."""
    code, headers = response.status_code, response.headers
    if code in (408, 425, 429) or code >= 500:
        wait = headers.get("Retry-After", "")
        reason = f"the server answered {code} {response.reason}"
        raise _Again(reason, float(wait) if wait.isdigit() else None)
    tag = headers.get("ETag", "")
    version = tag if tag.startswith('"') else headers.get("Last-Modified")
    if offset and code in (206, 416):
        span = re.match(rf"bytes {offset}-\d+/(\d+)$", headers.get("Content-Range", ""))
        now = {**state, "version": version, "total": span and int(span[1])}
        if code == 206 and now == {**state, "total": state["total"] or now["total"]}:
            return offset, now
        _discard(part)
        raise _Again("the server cannot go on where the transfer broke off; starting over")
    if code != 200:
        hint = f": {REFUSALS[code]}" if code in REFUSALS else ""
        raise _Refused(f"the server answered {code} {response.reason}{hint}")
    length = headers.get("Content-Length", "")
    return 0, {"version": version, "total": int(length) if length.isdigit() else None}


def _receive(response: requests.Response, part: Path, total: int | None, progress: Show) -> None:
    """Append the body of an answer to the part."""
    name, done = part.name.removesuffix(".part"), size_of(part)
    try:
        with open(part, "ab") as handle, Progress(name, total, progress, done) as bar:
            for block in _blocks(response):
                if done == 0 and is_page(block):
                    raise _Refused(
                        "the server sent a web page instead of the file (a login, terms to "
                        "accept, or a moved file); open the address in a browser"
                    )
                handle.write(block)
                handle.flush()
                done += len(block)
                bar.add(len(block))
            os.fsync(handle.fileno())
        if total is not None and done != total:
            raise _Again("the connection broke off")
    except _Refused:
        _discard(part)
        raise
    except _Again as problem:
        of = "" if total is None else f" of {mb(total)}"
        raise _Again(f"{problem} at {mb(done)}{of}") from None
    except OSError as error:
        if error.errno not in FULL:
            raise DataError(f"{part}: cannot be written ({error.strerror}).") from error
        _discard(part)
        raise full(part.parent, total, name) from error


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


def is_page(beginning: bytes) -> bool:
    """Whether a file begins as web pages do, and no archive, table or list does."""
    return beginning.lstrip()[:1] == b"<"
