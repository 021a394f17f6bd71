"""Runs of the workflow that are killed, and what they leave."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def start(root, folder, configs, targets):
    """Begin a run in a session of its own; its output goes to ``run.log`` of its folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", root / "Snakefile"]
    command += ["--directory", folder, "--cores", "2", "--nolock", *targets]
    command = [str(part) for part in [*command, "--configfile", *configs]]
    folder.mkdir(exist_ok=True)
    with open(folder / "run.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def job_of(run, script):
    """Process id of a running job of a script below a Snakemake process, if there is one."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == run.pid:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"python" in words[0] and words[1].endswith(script.encode()):
                    return int(entry.name)
    return None


def kill_when(run, condition, target, timeout=600):
    """``kill -9`` what ``target()`` names as soon as ``condition()`` holds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert run.poll() is None, "the run ended before the kill"
        if condition() and (victim := target()):
            os.kill(victim, signal.SIGKILL)
            return
        time.sleep(0.01)
    raise AssertionError("nothing to kill within the time")


def kill_in_training(run, folder):
    """``kill -9`` a run and its jobs in the middle of a training, after its first checkpoint."""
    saved = "results/models/*/*/*/checkpoint/last.safetensors"
    kill_when(run, lambda: any(folder.glob(saved)), lambda: run.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def leftovers(folder):
    """Unfinished files of a run."""
    return [str(path) for path in (folder / "results").rglob(".tmp-*")]
