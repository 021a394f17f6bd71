"""Large files over HTTP: resumed where they broke off, verified, whole or absent.

Built on ``requests``. Pooch, which is made for this, starts every transfer anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from uad import __version__
from uad.core.errors import DataError
from uad.core.files import read_json, write_json
from uad.data.disk import cannot_use, lock, require_room, size_of
from uad.data.progress_lines import Progress, mb, say
from uad.data.sources import File

CHUNK = 1 << 20
#: Failures in a row, none of which brought anything, after which to give up.
ATTEMPTS = 6
#: Seconds before the second attempt (doubled each time), and to wait for the server.
FIRST_WAIT, PATIENCE = 1.0, 60.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
WEB_PAGE = (
    "the server sent a web page instead of the file (a login, terms to accept, or a moved file); "
    "open the address in a browser"
)


class Fetched(NamedTuple):
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
    """This attempt failed; another may not."""


def fetch(file: File, folder: Path) -> Fetched:
    """Get a file of the registry into a folder, unless it is already there and as it should be.

    A transfer goes into ``<name>.part`` and is taken up where it broke off, also by a later call.

    Raises:
        DataError: no address gives the file, its checksum is wrong, or the disk is full.
    """
    path = Path(folder, file.name)
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    with lock(path):
        if there := finished(file, folder):
            return there
        for url in file.urls:
            try:
                checksum = _download(url, part, file)
            except _Refused as problem:
                problems.append(f"  {url}: {problem}")
            else:
                os.replace(part, path)
                return _recorded(file, path, checksum, url)
    if not file.urls:
        raise DataError(
            f"{file.name}: has no public address; get it by hand and put it into {folder}."
        )
    again = f": it goes on after {mb(size_of(part))}. Or" if part.exists() else " later, or"
    refused = "\n".join([f"{file.name} could not be downloaded:", *problems])
    raise DataError(
        f"{refused}\nRun the same command again{again} get the file\nwith a browser and put it "
        f"into {folder}."
    )


def finished(file: File, folder: Path) -> Fetched | None:
    """The file in ``folder`` if it is there and as it should be; None if there is none.

    It is not read again until its size or date changes (``<name>.checksum.json``).

    Raises:
        DataError: there is another file of this name, or it changed since it was recorded.
    """
    path = Path(folder, file.name)
    if not path.is_file():
        return None
    record = _record_of(path)
    known = read_json(record) if record.exists() else {}
    if known == known | _stamp(path) and file.checksum in (None, known["checksum"]):
        return Fetched(path, known["checksum"], file.checksum is not None, known["url"])
    checksum = digest(path, file)
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


def digest(path: Path, file: File) -> str:
    """``<algorithm>:<digits>`` of what is at ``path``; the algorithm is the registry's."""
    algorithm = (file.checksum or "sha256").partition(":")[0]
    result = hashlib.new(algorithm, usedforsecurity=False)
    progress = Progress(f"checking {file.name}", path.stat().st_size)
    with open(path, "rb") as handle:
        while block := handle.read(4 * CHUNK):
            result.update(block)
            progress.add(len(block))
    return f"{algorithm}:{result.hexdigest()}"


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum.json")


def _stamp(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def _recorded(file: File, path: Path, checksum: str, url: str | None) -> Fetched:
    got = Fetched(path, checksum, file.checksum is not None, url)
    content = {"checksum": checksum, "verified": got.verified, "url": url}
    write_json(_record_of(path), content | _stamp(path))
    return got


def _download(url: str, part: Path, file: File) -> str:
    """Bring the part to its full length, in as many attempts as it takes; its checksum."""
    failures, furthest, resumed = 0, size_of(part), size_of(part) > 0
    while True:
        try:
            _attempt(url, part)
        except _Failed as problem:
            failures = 1 if size_of(part) > furthest else failures + 1
            furthest, resumed = max(furthest, size_of(part)), True
            if failures == ATTEMPTS:
                raise _Refused(f"{problem} ({failures} attempts)") from problem
            wait = FIRST_WAIT * 2 ** (failures - 1)
            say(f"{file.name}: {problem}; again in {wait:.0f} s")
            time.sleep(wait)
            continue
        found = digest(part, file)
        if file.checksum in (None, found):
            return found
        part.unlink()
        if not resumed:
            raise _Refused(
                f"what came has another checksum than the published file ({found} instead of "
                f"{file.checksum}) and was removed"
            )
        resumed = False  # its beginning may be of an older file: once more, in one piece


def _attempt(url: str, part: Path) -> None:
    """One request for what the part lacks."""
    import requests

    done, host = size_of(part), urlsplit(url).hostname
    headers = {"Accept-Encoding": "identity", "User-Agent": f"uad/{__version__}"}
    headers |= {"Range": f"bytes={done}-"} if done else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
            _receive(answer, part, done)
    except requests.exceptions.SSLError:
        raise _Refused(f"the certificate of {host} is not accepted") from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise _Failed(f"no connection to {host}") from None
    except requests.exceptions.RequestException as error:
        raise _Refused(str(error)) from None


def _receive(answer: Any, part: Path, done: int) -> None:
    """Append the body of an answer, as it comes, to a part of ``done`` bytes."""
    import urllib3

    code, span = answer.status_code, answer.headers.get("Content-Range", "")
    if code == 416 and span == f"bytes */{done}":
        return
    if done and (code == 416 or (code == 206 and not span.startswith(f"bytes {done}-"))):
        part.unlink()
        raise _Failed("the server cannot go on where the transfer broke off")
    if code not in (200, 206):
        problem = _Failed if code in BUSY else _Refused
        raise problem(f"the server answered {code} {answer.reason}")
    if code == 200:  # from the beginning
        part.unlink(missing_ok=True)
        done, span = 0, answer.headers.get("Content-Length", "")
    total = span.rpartition("/")[2]
    total = int(total) if total.isdigit() else 0
    name, whole = part.name.removesuffix(".part"), False
    require_room({part.parent: max(total - done, 0)}, name)
    progress = Progress(name, total, done)
    try:
        with open(part, "ab") as handle:
            while block := answer.raw.read1(CHUNK):
                if done == 0 and block.lstrip().startswith(b"<"):
                    part.unlink()
                    raise _Refused(WEB_PAGE)
                handle.write(block)
                handle.flush()
                done += len(block)
                progress.add(len(block))
        whole = total in (0, done)
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError):
        pass
    except OSError as error:
        part.unlink()
        raise cannot_use(part, error, name) from error
    if not whole:
        of = f" of {mb(total)}" if total else ""
        raise _Failed(f"the connection broke off at {mb(done)}{of}")
