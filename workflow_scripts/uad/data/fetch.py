"""Large files over HTTP: resumed where they broke off, verified, whole or absent.

Built on ``requests``. Pooch, which is made for this, starts every transfer anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from uad import __version__
from uad.core.errors import DataError
from uad.core.files import read_json, write_json
from uad.data.disk import FULL, full, lock, require_room, size_of
from uad.data.progress_bar import Progress, mb, say
from uad.data.sources import File

CHUNK = 1 << 20
#: Failures in a row after which to give up; one that brought at least WORTH bytes starts anew.
ATTEMPTS, WORTH = 6, 8 << 20
#: Seconds: before the second attempt (doubled each time), at most, and to wait for the server.
FIRST_WAIT, LONGEST_WAIT, PATIENCE = 1.0, 60.0, 60.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
REFUSALS = {
    401: ": it asks for a login",
    403: ": it refuses; some hosts refuse whole networks",
    404: ": there is no such file any more",
    410: ": there is no such file any more",
}
WEB_PAGE = (
    "the server sent a web page instead of the file (a login, terms to accept, or a moved file); "
    "open the address in a browser"
)


@dataclass(frozen=True)
class Fetched:
    """A finished file: ``<algorithm>:<digits>`` of its bytes, whether the registry knows these, and
    where it was downloaded from, now or earlier (None: somebody put it there).
    """

    path: Path
    checksum: str
    verified: bool
    url: str | None = None


class _Refused(Exception):
    """This address will not give the file, however often it is asked."""


class _Failed(Exception):
    """This attempt failed; another may not, after some seconds (None: our choice)."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def fetch(file: File, folder: Path, progress: bool = True, attempts: int | None = None) -> Fetched:
    """Get a file of the registry into a folder, unless it is already there and as it should be.

    A transfer goes into ``<name>.part`` and is taken up where it broke off, also by a later call;
    ``attempts`` failures in a row (default: several) end it.

    Raises:
        DataError: no address gives the file, its checksum is wrong, or the disk is full.
    """
    path = Path(folder, file.name)
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    with lock(path, progress):
        if there := finished(file, folder, progress):
            return there
        for url in file.urls:
            try:
                _download(url, part, file, progress, attempts or ATTEMPTS)
            except _Refused as problem:
                problems.append(f"  {url}: {problem}")
            else:
                os.replace(part, path)
                return _recorded(file, path, file.checksum or digest(path, file, progress), url)
    if not file.urls:
        raise DataError(
            f"{file.name}: has no public address; get it by hand and put it into {folder}."
        )
    kept = size_of(part)
    again = f": it goes on after {mb(kept)}. Or" if kept else " later, or"
    refused = "\n".join([f"{file.name} could not be downloaded:", *problems])
    raise DataError(
        f"{refused}\nRun the same command again{again} get the file\nwith a browser and put it "
        f"into {folder}."
    )


def finished(file: File, folder: Path, progress: bool = False) -> Fetched | None:
    """The file in ``folder`` if it is there and as it should be; None if there is none.

    It is not read again until its size or date changes (``<name>.checksum.json``).

    Raises:
        DataError: there is another file of this name, or it changed since it was recorded.
    """
    path = Path(folder, file.name)
    if not path.is_file():
        return None
    record = _record_of(path)
    try:
        known = dict(read_json(record))
    except (OSError, ValueError, TypeError):
        known = {}
    same = {**known, **_stamp(path)} == known
    if same and file.checksum in (None, known["checksum"]):
        return Fetched(path, known["checksum"], file.checksum is not None, known["url"])
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
    return _recorded(file, path, checksum, known.get("url"))


def digest(path: Path, file: File, progress: bool = False) -> str:
    """``<algorithm>:<digits>`` of what is at ``path``; the algorithm is the registry's."""
    algorithm = (file.checksum or "sha256").partition(":")[0]
    result = hashlib.new(algorithm, usedforsecurity=False)
    bar = Progress(f"checking {file.name}", path.stat().st_size, progress)
    with open(path, "rb") as handle, bar:
        while block := handle.read(4 << 20):
            result.update(block)
            bar.add(len(block))
    return f"{algorithm}:{result.hexdigest()}"


def is_page(beginning: bytes) -> bool:
    """Whether a file begins as web pages do, and no archive, table or list does."""
    return beginning.lstrip()[:1] == b"<"


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum.json")


def _stamp(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def _recorded(file: File, path: Path, checksum: str, url: str | None) -> Fetched:
    got = Fetched(path, checksum, file.checksum is not None, url)
    content = {"checksum": checksum, "verified": got.verified, "url": url}
    write_json(_record_of(path), content | _stamp(path))
    return got


def _download(url: str, part: Path, file: File, progress: bool, attempts: int) -> None:
    """Bring the part to its full length, in as many attempts as it takes; then verify it."""
    failures, furthest, resumed = 0, size_of(part), size_of(part) > 0
    while True:
        try:
            _attempt(url, part, progress)
        except _Failed as problem:
            failures = 1 if size_of(part) - furthest >= WORTH else failures + 1
            furthest, resumed = max(furthest, size_of(part)), True
            if failures >= attempts:
                raise _Refused(f"{problem} ({failures} attempts)") from problem
            wait = FIRST_WAIT * 2 ** (failures - 1) if problem.wait is None else problem.wait
            say(f"{file.name}: {problem}; again in {min(wait, LONGEST_WAIT):.0f} s", progress)
            time.sleep(min(wait, LONGEST_WAIT))
            continue
        found = file.checksum and digest(part, file, progress)
        if found == file.checksum:
            return
        part.unlink()
        if not resumed:
            raise _Refused(
                f"what came has another checksum than the published file ({found} instead of "
                f"{file.checksum}) and was removed"
            )
        resumed = False  # its beginning may be of an older file: once more, in one piece


def _attempt(url: str, part: Path, progress: bool) -> None:
    """One request for what the part lacks."""
    import requests

    done, host = size_of(part), urlsplit(url).hostname
    headers = {"Accept-Encoding": "identity", "User-Agent": f"uad/{__version__}"}
    headers |= {"Range": f"bytes={done}-"} if done else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
            code, span = answer.status_code, answer.headers.get("Content-Range", "")
            if code == 416 and span == f"bytes */{done}":
                return
            if done and (code == 416 or (code == 206 and not span.startswith(f"bytes {done}-"))):
                part.unlink()
                raise _Failed("the server cannot go on where the transfer broke off")
            reason = f"the server answered {code} {answer.reason}"
            if code in BUSY:
                wait = answer.headers.get("Retry-After", "")
                raise _Failed(reason, float(wait) if wait.isdigit() else None)
            if code not in (200, 206):
                raise _Refused(f"{reason}{REFUSALS.get(code, '')}")
            if code == 200:
                part.unlink(missing_ok=True)
                span = answer.headers.get("Content-Length", "")
            total = span.rpartition("/")[2]
            _receive(answer, part, int(total) if total.isdigit() else None, progress)
    except requests.exceptions.TooManyRedirects:
        raise _Refused("the server redirects in a circle") from None
    except requests.exceptions.SSLError:
        raise _Refused(f"the certificate of {host} is not accepted") from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise _Failed(f"no connection to {host}") from None
    except requests.exceptions.RequestException as error:
        raise _Refused(str(error)) from None


def _receive(answer: Any, part: Path, total: int | None, progress: bool) -> None:
    """Append the body of an answer, as it comes, to the part."""
    import urllib3

    name, done = part.name.removesuffix(".part"), size_of(part)
    require_room({part.parent: (total or done) - done}, name)
    try:
        with open(part, "ab") as handle, Progress(name, total, progress, done) as bar:
            while block := answer.raw.read1(CHUNK):
                if done == 0 and is_page(block):
                    part.unlink()
                    raise _Refused(WEB_PAGE)
                handle.write(block)
                handle.flush()
                done += len(block)
                bar.add(len(block))
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError):
        total = total or -1
    except OSError as error:
        if error.errno not in FULL:
            raise DataError(f"{part}: cannot be written ({error.strerror}).") from error
        part.unlink()
        raise full(part.parent, total, name) from error
    if total not in (None, done):
        of = f" of {mb(total)}" if total > 0 else ""
        raise _Failed(f"the connection broke off at {mb(done)}{of}")
