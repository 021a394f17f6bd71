"""Processes for tests that start with slow imports done.

A fork server (one per test process) imports what the collected tests ask for, once; each process
is a fork of it, with the caller's directory and environment: what one does reaches no other.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_LOADED = {"pytest"}  # the main program of the caller, which multiprocessing loads again


def preload(*modules):
    """Have the server import these; to be called where a test file is imported."""
    _LOADED.update(modules)
    _SERVER.set_forkserver_preload(sorted(_LOADED))


def run(function, *arguments, cwd=None, environment=None):
    """Run a function of a module in a fork of the server, to its end.

    Args:
        function: its return value is lost; what it raises and its ``sys.exit`` end the process.
        arguments: anything that can be pickled.
        cwd: the directory that it runs in; the caller's by default.
        environment: its environment; the caller's by default.

    Returns:
        A :class:`subprocess.CompletedProcess` with what was written as text.
    """
    environment = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        whole = (function, arguments, str(cwd or Path.cwd()), environment, streams)
        # a daemonic process must not have children, and jobs are such
        process = _SERVER.Process(target=_begin, args=whole, daemon=False)
        process.start()
        process.join()
        status = process.exitcode
        process.close()
        texts = [Path(path).read_text(encoding="utf-8") for path in streams]
    return subprocess.CompletedProcess(function.__name__, status, *texts)


def python(script, **options):
    """Run the text of a script as ``python -c`` does, in a fork; see :func:`run`."""
    return run(_execute, script, **options)


def _execute(script):
    sys.argv = ["-c"]
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})


def _begin(function, arguments, cwd, environment, streams):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    function(*arguments)
