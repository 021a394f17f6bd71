"""Transfers from a server that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from uad.core.errors import DataError
from uad.data import disk, fetch, progress_lines
from uad.data.fetch import finished
from uad.data.sources import File

BODY = hashlib.sha256(b"seed").digest() * 8192  # 256 KiB
OTHER = hashlib.sha256(b"other").digest() * 8192
NAME = "scans.tar"
FINISHED = [f".{NAME}.lock", NAME, f"{NAME}.checksum.json"]
NOTHING = [f".{NAME}.lock"]


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
        headers |= {} if length is None else {"Content_Length": str(length)}
        for key, value in {**headers, "Connection": "close"}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.guard = threading.Lock()
        self.asked, self.script = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"
        self.mirror = self.url.replace(NAME, f"mirror/{NAME}")

    def offsets(self):
        return [request.get("range") for request in self.asked]


@pytest.fixture(scope="module")
def running():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def waits(monkeypatch):
    """Nobody waits; how long it would have been."""
    waits = []
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    monkeypatch.setattr(fetch, "ATTEMPTS", 4)
    monkeypatch.setattr(fetch, "PATIENCE", 5.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return waits


@pytest.fixture
def server(running, waits):
    running.asked, running.script = [], []
    return running


def whole(body=BODY, *, count=None, hold=None):
    """A good server, which honours Range; or one that gives ``count`` bytes, holds them for
    ``hold`` seconds or until an event, and breaks off."""

    def behave(handler):
        start, code, extra = 0, 200, {}
        if wanted := handler.headers.get("Range"):
            start, code = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            extra["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.head(code, len(body) - start, **extra)
        handler.wfile.write(body[start : None if count is None else start + count])
        handler.wfile.flush()
        if isinstance(hold, float):
            threading.Event().wait(hold)
        elif hold:
            hold.wait(60)
            handler.wfile.write(body[start + count :])
        if count is not None and not isinstance(hold, threading.Event):
            handler.connection.shutdown(socket.SHUT_RDWR)

    return behave


def answer(code, text=b"no", **headers):
    def behave(handler):
        handler.head(code, len(text), **headers)
        handler.wfile.write(text)

    return behave


def checksum(body, algorithm="md5"):
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def entry(server, *, known="md5", urls=None):
    return File(name=NAME, urls=urls or [server.url], checksum=known and checksum(BODY, known))


def ask(server, folder, file=None):
    return fetch.fetch(file or entry(server), folder)


def left(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


# --- a file that comes


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_fetched_verified_and_never_asked_for_again(
    server, tmp_path, monkeypatch, algorithm
):
    server.script = [whole()]
    file = entry(server, known=algorithm)
    got = ask(server, tmp_path, file)
    assert got.path.read_bytes() == BODY
    assert (got.verified, got.checksum, got.url) == (True, file.checksum, server.url)
    assert left(tmp_path) == FINISHED
    # nor hashed again, until its date changes
    hashed, real = [], fetch.digest
    monkeypatch.setattr(fetch, "digest", lambda *a: hashed.append(1) or real(*a))
    assert ask(server, tmp_path, file) == got and not hashed
    os.utime(tmp_path / NAME, (1, 1))
    for _ in range(2):
        assert ask(server, tmp_path, file) == got
    assert hashed == [1] and len(server.asked) == 1


def test_a_file_that_the_user_put_there_is_verified_and_used(server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY)
    got = ask(server, tmp_path)
    assert (got.verified, got.url, server.asked) == (True, None, [])
    assert ask(server, tmp_path) == got


def test_another_file_of_this_name_is_not_touched(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"my own")
    with pytest.raises(DataError, match="not the published one .* Remove it"):
        ask(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"my own"


def test_without_a_published_checksum_it_is_recorded_and_unverified(server, tmp_path):
    server.script = [whole()]
    file = entry(server, known=None)
    got = ask(server, tmp_path, file)
    assert (got.verified, got.checksum) == (False, checksum(BODY, "sha256"))
    record = json.loads((tmp_path / f"{NAME}.checksum.json").read_text())
    assert (record["checksum"], record["verified"]) == (got.checksum, False)
    assert finished(file, tmp_path) == got
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(DataError, match="changed since it was first used"):
        finished(file, tmp_path)


def test_a_long_transfer_says_now_and_then_how_far_it_is(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress_lines, "FIRST_LINE", 0.0)
    server.script = [answer(503), whole()]
    ask(server, tmp_path)
    said = capsys.readouterr().err
    assert "the server answered 503 Service Unavailable; again in 1 s" in said
    assert re.search(rf"^{NAME}: \d+ kB of 262 kB$", said, re.M) and "\r" not in said
    now = [0.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    progress = progress_lines.Progress("big.tar", 1000_000)
    for _ in range(1000):
        now[0] += 3.0
        progress.add(1000)
    assert 90 <= len(capsys.readouterr().err.splitlines()) <= 110


# --- a transfer that breaks off


@pytest.mark.parametrize("hold", [None, 1.0])
def test_a_cut_or_stalled_transfer_goes_on_where_it_broke_off(server, tmp_path, monkeypatch, hold):
    monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    server.script = [whole(count=100_000, hold=hold), whole(count=50_000, hold=hold), whole()]
    assert ask(server, tmp_path, entry(server, known=None)).path.read_bytes() == BODY
    assert [bool(offset) for offset in server.offsets()] == [False, True, True]
    assert left(tmp_path) == FINISHED


def test_a_later_call_goes_on_with_the_part(server, tmp_path):
    server.script = [whole(count=40_000), answer(503)]
    with pytest.raises(DataError, match=r"503 Service Unavailable \(4 attempts\)") as error:
        ask(server, tmp_path)
    assert "it goes on after 40 kB" in str(error.value)
    assert not (tmp_path / NAME).exists()
    server.script, server.asked = [whole()], []
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets() == ["bytes=40000-"]
    assert left(tmp_path) == FINISHED


def test_whatever_comes_starts_the_count_of_failures_anew_a_repetition_does_not(server, tmp_path):
    server.script = [whole(count=40_000)]
    assert ask(server, tmp_path).verified
    assert len(server.asked) == -(-len(BODY) // 40_000)
    server.script, server.asked = [no_range(100_000)], []
    with pytest.raises(DataError, match=r"broke off at 100 kB of 262 kB \(4 attempts\)"):
        ask(server, tmp_path / "other")


def no_range(count=None):
    """A server that always gives the file from its beginning."""

    def behave(handler):
        handler.head(200, len(BODY))
        handler.wfile.write(BODY[:count])

    return behave


def rest(**fault):
    """An answer to a request for the rest that is not the rest."""

    def behave(handler):
        span = fault.get("span", f"bytes 100000-{len(BODY) - 1}/{len(BODY)}")
        handler.head(206, len(BODY) - 100_000, **({"Content_Range": span} if span else {}))
        handler.wfile.write(OTHER[100_000:])

    return behave


#: What follows on a cut transfer of 100 kB, and cannot be joined to it.
NOT_JOINED = {
    "a server without range": [no_range()],
    "a refused range": [answer(416)],
    "another place": [rest(span=f"bytes 100001-{len(BODY) - 1}/{len(BODY)}")],
    "another file": [rest()],  # the checksum tells
}


@pytest.mark.parametrize("case", NOT_JOINED)
def test_what_cannot_be_joined_is_fetched_anew(server, tmp_path, case):
    server.script = [whole(count=100_000), *NOT_JOINED[case], whole()]
    assert ask(server, tmp_path).path.read_bytes() == BODY
    assert server.offsets()[:2] == [None, "bytes=100000-"]


# --- a server that refuses


def test_500_then_fine_with_growing_waits(server, tmp_path, waits):
    server.script = [answer(500), answer(502), answer(503), whole()]
    assert ask(server, tmp_path).verified
    assert waits == [1.0, 2.0, 4.0]


REFUSALS = {
    "404": ([answer(404)], 1, "the server answered 404 Not Found"),
    "403": ([answer(403)], 1, "the server answered 403 Forbidden"),
    "500": ([answer(500)], 4, r"500 Internal Server Error \(4 attempts\)"),
    "429": ([answer(429)], 4, r"429 Too Many Requests \(4 attempts\)"),
    "page": ([answer(200, b"\n<!DOCTYPE html><p>log in")], 1, "a web page"),
    "redirect in a circle": ([answer(302, Location=f"/{NAME}")], None, "Exceeded 30 redirects"),
    "checksum": ([whole(OTHER)], 1, "another checksum .* and was removed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_message_and_leaves_nothing(server, tmp_path, case):
    server.script, requests, message = list(REFUSALS[case][0]), *REFUSALS[case][1:]
    with pytest.raises(DataError, match=message) as error:
        ask(server, tmp_path)
    assert str(error.value).startswith(f"{NAME} could not be downloaded:\n")
    assert f"put it into {tmp_path}" in str(error.value)
    assert left(tmp_path) == NOTHING
    assert requests is None or len(server.asked) == requests


def test_a_dead_host_is_one_message(tmp_path, waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    with pytest.raises(DataError, match=r"no connection to 127.0.0.1 \(4 attempts\)"):
        fetch.fetch(File(name=NAME, urls=[url]), tmp_path)
    assert waits == [1.0, 2.0, 4.0]
    assert left(tmp_path) == NOTHING


def test_the_second_address_is_asked_when_the_first_refuses(server, tmp_path):
    both = entry(server, urls=[server.url, server.mirror])
    server.script = [answer(403), whole()]
    assert ask(server, tmp_path, both).url == server.mirror
    server.script = [answer(404)]
    with pytest.raises(DataError) as error:
        ask(server, tmp_path / "other", both)
    assert str(error.value).count("404") == 2


def test_a_file_without_an_address_says_so(tmp_path):
    with pytest.raises(DataError, match="no public address; get it by hand"):
        fetch.fetch(File(name=NAME), tmp_path)


# --- a disk that is full


def free(monkeypatch, count):
    usage = disk.shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=count))


def test_the_room_is_checked_before_the_first_byte(server, tmp_path, monkeypatch):
    server.script = [whole()]
    free(monkeypatch, 200_000)
    with pytest.raises(DataError, match="needs 262 kB, but only 200 kB are free"):
        ask(server, tmp_path)
    assert left(tmp_path) == NOTHING


def test_a_disk_that_fills_up_leaves_nothing(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(fetch, "open", Full, raising=False)
    server.script = [lambda h: (h.head(200), h.wfile.write(BODY))]  # no length: no check before
    with pytest.raises(DataError, match="the disk is full"):
        ask(server, tmp_path, entry(server, known=None))
    assert left(tmp_path) == NOTHING


# --- two at once


def test_two_processes_fetch_once(server, tmp_path, capsys):
    """Two threads: the kernel keeps apart whoever opens the lock's file."""
    go_on, got = threading.Event(), []
    server.script = [whole(count=1000, hold=go_on)]
    work = [threading.Thread(target=lambda: got.append(ask(server, tmp_path)))
            for _ in range(2)]  # fmt: skip
    work[0].start()
    until(lambda: server.asked)
    work[1].start()
    said = []
    until(lambda: said.append(capsys.readouterr().err) or "waiting for ano" in "".join(said))
    go_on.set()
    for thread in work:
        thread.join(60)
    assert len(got) == 2 and got[0] == got[1] and len(server.asked) == 1
    assert left(tmp_path) == FINISHED


def test_where_there_are_no_locks_a_file_comes_all_the_same(server, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(disk.fcntl, "flock", none)
    server.script = [whole(count=100_000), whole()]
    assert ask(server, tmp_path).verified
