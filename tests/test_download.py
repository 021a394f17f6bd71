"""Downloads from a server that misbehaves on purpose, and archives that do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uad.core.errors import DataError
from uad.data import download
from uad.data.fetch import (
    Compare,
    Patience,
    extract,
    fetch,
    finished,
    names_in,
    staging,
    unpack,
    unpacked_from,
)
from uad.data.sources import File

BODY = hashlib.sha256(b"seed").digest() * 8192  # 256 KiB, nothing in it repeats by blocks
OTHER = hashlib.sha256(b"other").digest() * 8192
NAME = "scans.tar"


def checksum(body: bytes, algorithm: str = "md5") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


# --- the server


class Handler(BaseHTTPRequestHandler):
    """Answers with the next behaviour of its server, the last one for ever."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        with server.guard:
            server.asked.append(
                {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
            )
            behave = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        with contextlib.suppress(ConnectionError):
            behave(self)

    def log_message(self, *_):
        pass

    def head(self, code, length=None, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def cut(self):
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.guard = threading.Lock()
        self.asked, self.script = [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/{NAME}"

    def offsets(self):
        return [request.get("range") for request in self.asked]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def whole(body=BODY, *, tag='"v1"', kind="application/x-tar", pause=0.0, blocks=1):
    """A good server: honours Range, and If-Range by the entity tag."""

    def behave(handler):
        start, code, extra = 0, 200, {}
        wanted = handler.headers.get("Range")
        if wanted and handler.headers.get("If-Range", tag) == tag:
            start, code = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            extra["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if tag:
            extra["ETag"] = tag
        handler.head(code, len(body) - start, Content_Type=kind, **extra)
        rest = body[start:]
        step = -(-len(rest) // blocks) or 1
        for i in range(0, len(rest), step):
            handler.wfile.write(rest[i : i + step])
            handler.wfile.flush()
            time.sleep(pause)

    return behave


def cut_after(count, body=BODY, *, tag='"v1"', stall=0.0):
    """Sends the head of the whole file, then ``count`` more bytes, then nothing."""

    def behave(handler):
        wanted = handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        extra = {"ETag": tag} if tag else {}
        if start:
            extra["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.head(206 if start else 200, len(body) - start, **extra)
        handler.wfile.write(body[start : start + count])
        handler.wfile.flush()
        time.sleep(stall)
        handler.cut()

    return behave


def without_range(body=BODY, **headers):
    """Sends the whole file whatever is asked for."""

    def behave(handler):
        handler.head(200, len(body), **headers)
        handler.wfile.write(body)

    return behave


def answer(code, text=b"no", **headers):
    def behave(handler):
        handler.head(code, len(text), **headers)
        handler.wfile.write(text)

    return behave


def entry(server, body=BODY, *, known=True, urls=None, algorithm="md5"):
    return File(
        name=NAME,
        urls=urls or [server.url],
        checksum=checksum(body, algorithm) if known else None,
    )


def patience(waits=None, **options):
    waits = [] if waits is None else waits
    return Patience(**{"attempts": 4, "connect": 2.0, "read": 5.0, **options}, sleep=waits.append)


def until(condition):
    """Wait for what another process or thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def left(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def ask(server, folder, file=None, **options):
    return fetch(file or entry(server), folder, progress=False, patience=patience(), **options)


FINISHED = [NAME, f"{NAME}.checksum.json"]


# --- a file that comes


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_fetched_verified_and_never_asked_for_again(server, tmp_path, algorithm):
    server.script = [whole()]
    file = entry(server, algorithm=algorithm)
    got = ask(server, tmp_path, file)
    assert got.path.read_bytes() == BODY
    assert (got.verified, got.checksum, got.transferred) == (True, file.checksum, len(BODY))
    assert left(tmp_path) == FINISHED
    again = ask(server, tmp_path, file)
    assert (again.path, again.transferred) == (got.path, 0)
    assert len(server.asked) == 1


def test_a_finished_file_is_hashed_once_only(server, tmp_path, monkeypatch):
    server.script = [whole()]
    ask(server, tmp_path)
    hashed = []
    real = download.digest
    monkeypatch.setattr(download, "digest", lambda *a, **k: hashed.append(1) or real(*a, **k))
    ask(server, tmp_path)
    assert hashed == []
    os.utime(tmp_path / NAME, (1, 1))  # another date: perhaps another content
    ask(server, tmp_path)
    ask(server, tmp_path)
    assert hashed == [1]
    assert len(server.asked) == 1


def test_a_file_that_the_user_put_there_is_verified_and_used(server, tmp_path):
    server.script = [answer(500)]
    (tmp_path / NAME).write_bytes(BODY)
    got = ask(server, tmp_path)
    assert (got.verified, got.url) == (True, None)
    assert ask(server, tmp_path).url is None
    assert server.asked == []


def test_another_file_of_this_name_is_not_touched(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"my own")
    with pytest.raises(DataError, match="not the published one .* Remove it"):
        ask(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"my own"


def test_without_a_published_checksum_it_is_recorded_and_unverified(server, tmp_path):
    server.script = [whole()]
    file = entry(server, known=False)
    got = ask(server, tmp_path, file)
    assert (got.verified, got.checksum) == (False, checksum(BODY, "sha256"))
    record = json.loads((tmp_path / f"{NAME}.checksum.json").read_text())
    assert record["checksum"] == got.checksum and record["verified"] is False
    assert finished(file, tmp_path).url == server.url
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(DataError, match="changed since it was first used"):
        finished(file, tmp_path)


def test_a_slow_server(server, tmp_path):
    server.script = [whole(pause=0.02, blocks=12)]
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert len(server.asked) == 1


def test_the_progress_goes_to_standard_error(server, tmp_path, capsys, monkeypatch):
    server.script = [answer(503), whole()]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fetch(entry(server), tmp_path, patience=patience())
    shown = capsys.readouterr()
    assert shown.out == "" and "503" in shown.err and f"checking {NAME}" in shown.err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_the_bar_and_the_messages_the_log_gets_lines(
    server, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(download, "FIRST_LINE", 0.0)
    monkeypatch.setattr(download, "BETWEEN_LINES", 0.0)
    server.script = [answer(503), whole(pause=0.01, blocks=4)]
    terminal = Terminal()
    fetch(entry(server), tmp_path, progress=terminal, patience=patience())
    shown, log = terminal.getvalue(), capsys.readouterr().err
    assert f"{NAME}:   0%|" in shown and f"checking {NAME}" in shown
    assert f"{NAME}: the server answered 503" in shown and f"{NAME}: the server answered" in log
    assert f"{NAME}: 262 kB of 262 kB" in log
    assert "%|" not in log and "\r" not in log


def test_a_terminal_that_was_closed_does_not_end_a_transfer(server, tmp_path):
    class Gone(Terminal):
        def write(self, _):
            raise OSError(errno.EIO, "gone")

    server.script = [answer(503), whole()]
    assert fetch(entry(server), tmp_path, progress=Gone(), patience=patience()).verified


def test_a_log_is_not_flooded(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])
    with download.Progress("big.tar", 1000_000, True) as bar:
        for _ in range(1000):  # an hour and a half for all of it
            now[0] += 5.0
            bar.add(1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 20 and lines[0] == "big.tar: 50 kB of 1.0 MB"
    with download.Progress("stuck.tar", 10**9, True) as bar:
        for _ in range(1000):
            now[0] += 5.0
            bar.add(1)
    assert 7 <= len(capsys.readouterr().err.splitlines()) <= 9  # a sign of life all the same


# --- a transfer that breaks off


def test_a_cut_transfer_goes_on_where_it_broke_off(server, tmp_path):
    server.script = [cut_after(100_000), cut_after(50_000), whole()]
    got = ask(server, tmp_path)
    assert got.path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-", "bytes=150000-"]
    assert [r.get("if-range") for r in server.asked] == [None, '"v1"', '"v1"']
    assert got.transferred == len(BODY)
    assert left(tmp_path) == FINISHED


def test_a_stalled_transfer_goes_on(server, tmp_path):
    server.script = [cut_after(100_000, stall=1.0), whole()]
    fetch(entry(server), tmp_path, progress=False, patience=patience(read=0.2))
    assert server.offsets() == [None, "bytes=100000-"]


def test_a_later_call_goes_on_with_the_part(server, tmp_path):
    server.script = [cut_after(10_000)]
    with pytest.raises(DataError) as error:
        ask(server, tmp_path)
    assert "broke off at 40 kB of 262 kB (4 attempts)" in str(error.value)
    assert "it goes on after 40 kB" in str(error.value)
    assert not (tmp_path / NAME).exists()
    server.script, server.asked = [whole()], []
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets() == ["bytes=40000-"]
    assert left(tmp_path) == FINISHED


def test_a_part_that_is_complete_needs_no_server(server, tmp_path):
    server.script = [cut_after(10_000)]
    with pytest.raises(DataError):
        ask(server, tmp_path)
    (tmp_path / f"{NAME}.part").write_bytes(BODY)
    server.asked = []
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.asked == []


def test_progress_starts_the_count_of_failures_anew(server, tmp_path):
    server.script = [cut_after(40_000)]
    got = fetch(entry(server), tmp_path, progress=False, patience=patience(worth=40_000))
    assert got.path.read_bytes() == BODY
    assert len(server.asked) == -(-len(BODY) // 40_000)


def test_a_server_without_range_starts_over(server, tmp_path):
    server.script = [cut_after(100_000), without_range()]
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-"]


def test_without_a_version_and_a_checksum_nothing_is_joined(server, tmp_path):
    server.script = [cut_after(100_000, tag=None), whole(tag=None)]
    assert ask(server, tmp_path, entry(server, known=False)).path.read_bytes() == BODY
    assert server.offsets() == [None, None]


def test_what_comes_anew_each_time_is_no_progress(server, tmp_path):
    """Neither a version nor a checksum: every attempt is from the beginning."""
    server.script = [cut_after(100_000, tag=None)]
    with pytest.raises(DataError, match=r"broke off at 100 kB of 262 kB \(4 attempts\)"):
        fetch(entry(server, known=False), tmp_path, progress=False, patience=patience(worth=50_000))
    assert server.offsets() == [None] * 4


def test_a_file_that_changed_meanwhile_starts_over(server, tmp_path):
    server.script = [cut_after(100_000, tag='"old"', body=OTHER), whole()]
    assert ask(server, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("fault", ["tag", "total", "start", "none"])
def test_an_answer_for_another_file_or_place_is_not_joined(server, tmp_path, fault):
    """A server that ignores If-Range, or gives another part than the one asked for."""

    def wrong(handler):
        start, total = 100_000 + (fault == "start"), len(BODY) + (fault == "total")
        headers = {"Content_Range": f"bytes {start}-{total - 1}/{total}", "ETag": '"v1"'}
        if fault == "tag":
            headers["ETag"] = '"v2"'
        if fault == "none":
            del headers["Content_Range"]
        handler.head(206, len(BODY) - start, **headers)
        handler.wfile.write(OTHER[start:])

    server.script = [cut_after(100_000), wrong, whole()]
    # no checksum is known: nothing else would find the mixture
    assert ask(server, tmp_path, entry(server, known=False)).path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-", None]


def test_a_server_that_gives_less_than_asked_for_is_asked_for_the_rest(server, tmp_path):
    def piece(handler):
        end = 180_000
        span = f"bytes 100000-{end - 1}/{len(BODY)}"
        handler.head(206, end - 100_000, Content_Range=span, ETag='"v1"')
        handler.wfile.write(BODY[100_000:end])

    server.script = [cut_after(100_000), piece, whole()]
    assert ask(server, tmp_path, entry(server, known=False)).path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-", "bytes=180000-"]


def test_a_mixture_of_two_files_is_found_by_its_checksum(server, tmp_path):
    """No version from the server: the first part is of an older file."""
    server.script = [cut_after(100_000, body=OTHER, tag=None), whole(tag=None)]
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-", None]


def test_a_refused_range_starts_over(server, tmp_path):
    server.script = [cut_after(100_000), answer(416), whole()]
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-", None]


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    server.script = [cut_after(100_000), cut_after(0), answer(404), whole()]
    mirror = server.url.replace(NAME, "mirror/" + NAME)
    file = entry(server, urls=[server.url, mirror])
    assert ask(server, tmp_path, file).path.read_bytes() == BODY
    assert server.offsets()[-1] is None and server.asked[-1]["path"].startswith("/mirror")


def test_a_killed_process_leaves_a_part_that_the_next_one_uses(server, tmp_path):
    server.script = [cut_after(100_000, stall=60.0), whole()]
    with process(server, tmp_path) as child:
        part = tmp_path / f"{NAME}.part"
        until(lambda: part.exists() and part.stat().st_size == 100_000)
        child.kill()
    assert not (tmp_path / NAME).exists()
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets() == [None, "bytes=100000-"]
    assert left(tmp_path) == FINISHED


# --- a server that refuses


def test_500_then_fine_with_growing_waits(server, tmp_path):
    waits = []
    server.script = [answer(500), answer(502), answer(503, Retry_After="7"), whole()]
    fetch(entry(server), tmp_path, progress=False, patience=patience(waits))
    assert waits == [1.0, 2.0, 7.0]
    assert left(tmp_path) == FINISHED


REFUSALS = {
    "404": ([answer(404)], 1, "404 Not Found: there is no such file any more"),
    "403": ([answer(403)], 1, "403 Forbidden: it refuses; some hosts refuse whole networks"),
    "500": ([answer(500)], 4, r"500 Internal Server Error \(4 attempts\)"),
    "429": ([answer(429)], 4, r"429 Too Many Requests \(4 attempts\)"),
    "page": ([answer(200, b"<p>log in", Content_Type="text/html; charset=utf-8")], 1, "a web page"),
    "page as tar": ([answer(200, b"\n<!DOCTYPE html><p>log in")], 1, "a web page"),
    "redirect in a circle": ([answer(302, Location=f"/{NAME}")], None, "redirects in a circle"),
    "checksum": ([whole(OTHER)], 1, "another checksum .* and was removed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_message_and_leaves_nothing(server, tmp_path, case):
    server.script, requests, message = list(REFUSALS[case][0]), *REFUSALS[case][1:]
    with pytest.raises(DataError, match=message) as error:
        ask(server, tmp_path)
    assert str(error.value).startswith(f"{NAME} could not be downloaded:\n")
    assert f"put it into {tmp_path}" in str(error.value)
    assert left(tmp_path) == []
    assert requests is None or len(server.asked) == requests


def test_a_dead_host_is_one_message(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    waits = []
    with pytest.raises(DataError, match=r"no connection to 127.0.0.1 \(4 attempts\)"):
        fetch(
            File(name=NAME, urls=[url], checksum=checksum(BODY)),
            tmp_path,
            progress=False,
            patience=patience(waits),
        )
    assert waits == [1.0, 2.0, 4.0]
    assert left(tmp_path) == []


def test_redirects_are_followed_also_when_resuming(server, tmp_path):
    server.script = [
        answer(301, Location="/moved"),
        cut_after(100_000),
        answer(302, Location="/moved"),
        whole(),
    ]
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert [r["path"] for r in server.asked] == [f"/{NAME}", "/moved", f"/{NAME}", "/moved"]
    assert server.offsets()[-1] == "bytes=100000-"


def test_the_second_address_is_asked_when_the_first_refuses(server, tmp_path):
    server.script = [answer(403), whole()]
    mirror = server.url.replace(NAME, "mirror/" + NAME)
    assert ask(server, tmp_path, entry(server, urls=[server.url, mirror])).verified
    server.script = [answer(404)]
    with pytest.raises(DataError) as error:
        ask(server, tmp_path / "other", entry(server, urls=[server.url, mirror]))
    assert str(error.value).count("404") == 2


def test_a_file_without_an_address_says_so(tmp_path):
    with pytest.raises(DataError, match="no public address; get it by hand"):
        fetch(File(name=NAME), tmp_path)


# --- room


def free(monkeypatch, count):
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=count))


def test_the_room_is_checked_before_the_first_byte(server, tmp_path, monkeypatch):
    server.script = [whole()]
    free(monkeypatch, len(BODY) * 3 // 2)
    with pytest.raises(DataError, match=r"needs 524 kB, but only 393 kB are free"):
        ask(server, tmp_path, unpack_to=tmp_path / "raw")
    assert left(tmp_path) == []
    assert ask(server, tmp_path).verified  # without unpacking it fits


def full_disk(monkeypatch, after):
    """Let writes fail as on a full disk once ``after`` bytes were written."""
    real = open

    class Full(io.FileIO):
        written = 0

        def write(self, data):
            Full.written += len(data)
            if Full.written > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def opened(path, mode="r", *args, **kwargs):
        if mode in ("wb", "ab"):
            return Full(path, mode)
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(download, "open", opened, raising=False)


def test_a_disk_that_fills_up_leaves_nothing(server, tmp_path, monkeypatch):
    server.script = [whole(blocks=4, pause=0.01)]
    full_disk(monkeypatch, 100_000)
    with pytest.raises(DataError, match="the disk is full"):
        ask(server, tmp_path)
    assert left(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 128 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("a small file system cannot be mounted here (not root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(server, small_disk):
    # no Content-Length: the room cannot be checked before
    def endless(handler):
        handler.head(200)
        handler.wfile.write(BODY)

    server.script = [endless]
    with pytest.raises(DataError, match="the disk is full"):
        ask(server, small_disk)
    assert left(small_disk) == []
    server.script = [whole()]
    with pytest.raises(DataError, match="needs 262 kB, but only 131 kB are free"):
        ask(server, small_disk)
    archive = packed(small_disk.parent / "a.tar.gz", {"a.nii": bytes(1 << 20)})
    with pytest.raises(DataError, match="the disk is full"):
        unpack(archive, small_disk / "new")
    assert left(small_disk) == []


# --- two at once


@contextlib.contextmanager
def process(server, folder):
    code = (
        "import sys; from uad.data.fetch import fetch;"
        "from uad.data.sources import File;"
        f"fetch(File(name={NAME!r}, urls=[{server.url!r}], checksum={checksum(BODY)!r}),"
        f" {str(folder)!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(download.__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_two_processes_fetch_once(server, tmp_path):
    go_on = threading.Event()

    def held(handler):
        handler.head(200, len(BODY), ETag='"v1"')
        handler.wfile.write(BODY[:1000])
        handler.wfile.flush()
        go_on.wait(60)
        handler.wfile.write(BODY[1000:])

    server.script = [held]
    with process(server, tmp_path) as one:
        until(lambda: server.asked)
        with process(server, tmp_path) as two:
            assert two.stderr.readline() == f"{NAME}: waiting for another process\n"
            go_on.set()
            errors = [child.communicate(timeout=60)[1] for child in (one, two)]
            assert (one.returncode, two.returncode) == (0, 0), errors
    assert len(server.asked) == 1
    assert (tmp_path / NAME).read_bytes() == BODY
    assert left(tmp_path) == FINISHED


def test_where_there_are_no_locks_each_has_its_own_part(server, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(download.fcntl, "flock", none)
    server.script = [cut_after(100_000), whole()]
    assert ask(server, tmp_path).verified
    assert left(tmp_path) == FINISHED
    server.script = [cut_after(0)]
    with pytest.raises(DataError, match="broke off"):
        ask(server, tmp_path / "other")
    assert left(tmp_path / "other") == []


# --- archives


def packed(path, files, mode=None):
    """Write a tar archive (compressed by its suffix); values are bytes or TarInfo."""
    mode = mode or ("w:gz" if path.name.endswith("gz") else "w")
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def special(kind, target=""):
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, target
    return info


FILES = {"top/a.nii.gz": BODY[:70_000], "top/sub/b.nii.gz": b"b" * 100, "top/readme.txt": b"hello"}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_archives_are_unpacked_once(tmp_path, name):
    archive = (zipped if name.endswith("zip") else packed)(tmp_path / name, FILES)
    target = unpack(archive, tmp_path / "raw", r".*\.nii\.gz")
    found = {p.relative_to(target).as_posix() for p in target.rglob("*.*") if p.is_file()}
    assert found == {"top/a.nii.gz", "top/sub/b.nii.gz", ".unpacked.json"}
    assert (target / "top/a.nii.gz").read_bytes() == FILES["top/a.nii.gz"]
    before = (target / "top/a.nii.gz").stat().st_ino
    unpack(archive, target, r".*\.nii\.gz")
    assert (target / "top/a.nii.gz").stat().st_ino == before
    (target / "top/a.nii.gz").write_bytes(b"damaged")
    unpack(archive, target, r".*\.nii\.gz")
    assert (target / "top/a.nii.gz").read_bytes() == FILES["top/a.nii.gz"]
    assert left(tmp_path) == sorted([name, "raw"])
    assert names_in(archive, 2) == list(FILES)[:2]


def test_a_check_is_made_before_the_folder_appears(tmp_path):
    archive = packed(tmp_path / "a.tar", {"a.nii": b"a"})

    def refuse(folder):
        raise DataError(f"{folder / 'a.nii'}: is odd")

    with pytest.raises(DataError, match=rf"^{archive}: a.nii: is odd$"):
        unpack(archive, tmp_path / "raw", check=refuse)
    assert left(tmp_path) == ["a.tar"]


def test_what_was_unpacked_knows_its_archive(tmp_path):
    archive = packed(tmp_path / "a.tar", {"top/a.nii": b"a"})
    path = unpack(archive, tmp_path / "raw", facts={"url": "http://x"}) / "top" / "a.nii"
    known = unpacked_from(path)
    assert (known["archive"], known["url"]) == ("a.tar", "http://x")
    assert known["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    path.write_bytes(b"something else")
    assert unpacked_from(path) is None and unpacked_from(archive) is None


def test_a_folder_of_the_user_is_not_replaced(tmp_path):
    archive = packed(tmp_path / "a.tar", FILES)
    (tmp_path / "raw").mkdir()
    unpack(archive, tmp_path / "raw")  # an empty one is
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.nii").touch()
    with pytest.raises(DataError, match="is there already, but not from this archive"):
        unpack(archive, tmp_path / "mine")
    assert left(tmp_path / "mine") == ["scan.nii"]
    with pytest.raises(DataError, match="no such file"):
        unpack(tmp_path / "none.tar", tmp_path / "new")
    with pytest.raises(DataError, match=r"has no file like .*\\.img"):
        unpack(archive, tmp_path / "new", r".*\.img")


def spoiled(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))
    return path


def flipped(content, place):
    content[place] ^= 0xFF
    return content


def zip_link(path):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


def boundary(path):
    """A tar archive that ends between two members, where tarfile itself sees no fault."""
    packed(path, {"a.nii": b"a" * 512, "b.nii": b"b" * 512})
    return spoiled(path, lambda content: content[:1024])


BAD = {
    "dots": (
        lambda p: packed(p / "x.tar", {"a.nii": b"a", "../out.nii": b"x"}),
        r"unsafe archive: member '../out.nii' points out of the folder",
    ),
    "dots inside": (
        lambda p: packed(p / "x.tar", {"a/../../out.nii": b"x"}),
        "points out of the folder",
    ),
    "absolute": (
        lambda p: packed(p / "x.tar", {"/tmp/out.nii": b"x"}),
        "has an absolute path",
    ),
    "symlink": (
        lambda p: packed(p / "x.tar", {"a": special(tarfile.SYMTYPE, "../.."), "a/b.nii": b"x"}),
        r"is a link out of the folder \(to '../..'\)",
    ),
    "absolute symlink": (
        lambda p: packed(p / "x.tar", {"a": special(tarfile.SYMTYPE, "/etc/passwd")}),
        "is a link out of the folder",
    ),
    "hard link": (
        lambda p: packed(p / "x.tar", {"a": special(tarfile.LNKTYPE, "../../secret")}),
        "is a link out of the folder",
    ),
    "link inside": (
        lambda p: packed(p / "x.tar", {"a.nii": b"a", "b.nii": special(tarfile.SYMTYPE, "a.nii")}),
        "is a link, not a file",
    ),
    "device": (
        lambda p: packed(p / "x.tar", {"a": special(tarfile.CHRTYPE)}),
        "is a device or a pipe",
    ),
    "pipe": (
        lambda p: packed(p / "x.tar", {"a": special(tarfile.FIFOTYPE)}),
        "is a device or a pipe",
    ),
    "zip dots": (lambda p: zipped(p / "x.zip", {"../out.nii": b"x"}), "points out of the folder"),
    "zip absolute": (lambda p: zipped(p / "x.zip", {"/out.nii": b"x"}), "an absolute path"),
    "zip drive": (lambda p: zipped(p / "x.zip", {"C:/out.nii": b"x"}), "an absolute path"),
    "zip backslash": (lambda p: zipped(p / "x.zip", {"..\\out.nii": b"x"}), "out of the folder"),
    "zip link": (lambda p: zip_link(p / "x.zip"), "is a link"),
    "cut tar": (
        lambda p: spoiled(packed(p / "x.tar", FILES), lambda c: c[:40_000]),
        "truncated or damaged",
    ),
    "cut between members": (lambda p: boundary(p / "x.tar"), "truncated or damaged"),
    "damaged header": (
        lambda p: spoiled(packed(p / "x.tar", FILES), lambda c: flipped(c, 512 + 70_144 + 10)),
        "truncated or damaged",
    ),
    "cut tar.gz": (
        lambda p: spoiled(packed(p / "x.tar.gz", FILES), lambda c: c[: len(c) // 2]),
        "truncated or damaged",
    ),
    "cut tail of tar.gz": (
        lambda p: spoiled(packed(p / "x.tar.gz", FILES), lambda c: c[:-6]),
        "truncated or damaged",
    ),
    "wrong sum in tar.gz": (
        lambda p: spoiled(packed(p / "x.tar.gz", FILES), lambda c: flipped(c, -5)),
        "truncated or damaged",
    ),
    "cut zip": (
        lambda p: spoiled(zipped(p / "x.zip", FILES), lambda c: c[:-30]),
        "truncated or damaged",
    ),
    "damaged zip": (
        lambda p: spoiled(zipped(p / "x.zip", FILES), lambda c: flipped(c, 60)),
        "truncated or damaged",
    ),
    "page": (
        lambda p: spoiled(packed(p / "x.tar", {}), lambda _: b"<!DOCTYPE html><p>log in"),
        "is a web page, not an archive",
    ),
    "empty": (lambda p: spoiled(packed(p / "x.tar", {}), lambda _: b""), "is empty"),
    "picture": (
        lambda p: spoiled(packed(p / "x.tar", {}), lambda _: b"\x89PNG" * 300),
        "is no tar or zip archive",
    ),
    "two of one name": (
        lambda p: packed(p / "x.tar", {"a.nii": b"a", "./a.nii": b"b"}),
        "are both a.nii",
    ),
    "two of one name in a zip": (
        lambda p: zipped(p / "x.zip", {"a.nii": b"a", "./a.nii": b"b"}),
        "'a.nii' and './a.nii' are both a.nii",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_is_one_message_and_leaves_nothing(tmp_path, case):
    folder = tmp_path / "inner"
    folder.mkdir()
    make, message = BAD[case]
    archive = make(folder)
    with pytest.raises(DataError, match=message) as error:
        unpack(archive, folder / "raw")
    assert str(archive) in str(error.value)
    assert left(folder) == [archive.name]
    assert left(tmp_path) == ["inner"]


def test_unselected_members_are_checked_too(tmp_path):
    archive = packed(tmp_path / "x.tar", {"a.nii": b"a", "../readme.txt": b"x"})
    with pytest.raises(DataError, match="unsafe"):
        unpack(archive, tmp_path / "raw", r".*\.nii")


def test_a_member_written_twice_counts_once(tmp_path):
    archive = packed(tmp_path / "x.tar", {"a.nii": b"old"})
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo("a.nii")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    assert (unpack(archive, tmp_path / "raw") / "a.nii").read_bytes() == b"new"


def test_unpacking_checks_the_room_and_survives_a_full_disk(tmp_path, monkeypatch):
    two = {"a.nii": BODY[:40_000], "b.nii": BODY[:40_000]}
    archives = [packed(tmp_path / "a.tar.gz", FILES), zipped(tmp_path / "a.zip", two)]
    with monkeypatch.context() as patch:
        free(patch, 50_000)
        for archive in archives:
            with pytest.raises(DataError, match="but only 50 kB are free"):
                unpack(archive, tmp_path / "raw")
    full_disk(monkeypatch, 50_000)
    for archive in archives:
        with pytest.raises(DataError, match="the disk is full"):
            unpack(archive, tmp_path / "raw")
    assert left(tmp_path) == ["a.tar.gz", "a.zip"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = download.platform.node()
    dead = tmp_path / f".tmp-{host}-{child.pid}-raw"
    alive = tmp_path / f".tmp-{host}-{os.getppid()}-raw"
    for folder in (dead, alive):
        (folder / "new").mkdir(parents=True)
    with staging(tmp_path, "raw") as folder:
        assert folder.is_dir()
    assert left(tmp_path) == [alive.name]


def test_an_archive_in_an_archive(tmp_path):
    inner = packed(tmp_path / "inner.tar", FILES)
    archive = zipped(
        tmp_path / "archive.zip", {"data/inner.tar": inner.read_bytes(), "other.tar": b"not a tar"}
    )
    select = lambda name, size: name if name.endswith(".nii.gz") else None  # noqa: E731
    got = extract(archive, tmp_path / "raw", select, nested=r".*inner\.tar")
    assert {f.relative: f.bytes for f in got} == {"top/a.nii.gz": 70_000, "top/sub/b.nii.gz": 100}
    assert (tmp_path / "raw/top/a.nii.gz").read_bytes() == FILES["top/a.nii.gz"]
    cut = zipped(tmp_path / "cut.zip", {"inner.tar": inner.read_bytes()[:40_000]})
    with pytest.raises(DataError, match="truncated or damaged"):
        extract(cut, tmp_path / "other", select, nested=r".*inner\.tar")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_member_can_be_hashed_in_place_of_being_written(tmp_path, name, monkeypatch):
    archive = (zipped if name.endswith("zip") else packed)(tmp_path / name, FILES)
    free(monkeypatch, 1000)  # it needs no room
    known = "top/a.nii.gz"
    got = extract(archive, tmp_path / "raw", lambda n, _: Compare(n) if n == known else None)
    assert [(f.relative, f.bytes) for f in got] == [(known, 70_000)]
    assert got[0].sha256 == hashlib.sha256(FILES[known]).hexdigest()
    assert left(tmp_path / "raw") == []


PARTS = st.lists(
    st.sampled_from(["..", ".", "a", "b", "", "~", "c:", "\\.."]), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, absolute=st.booleans(), link=st.sampled_from([None, "..", "a", "/tmp"]))
def test_nothing_is_ever_written_outside(tmp_path_factory, parts, absolute, link):
    folder = tmp_path_factory.mktemp("x") / "in"
    folder.mkdir()
    name = ("/" if absolute else "") + "/".join([*parts, "f.nii"])
    files = {"a": special(tarfile.SYMTYPE, link)} if link else {}
    archive = packed(folder / "x.tar", {**files, name: b"x"})
    with contextlib.suppress(DataError):
        unpack(archive, folder / "raw", r".*\.nii")
    assert left(folder.parent) == ["in"]
    assert set(left(folder)) <= {"x.tar", "raw"}
    outside = Path(os.path.normpath(folder / "raw" / name))
    if (folder / "raw").exists():
        assert outside.is_file() and (folder / "raw") in outside.parents
