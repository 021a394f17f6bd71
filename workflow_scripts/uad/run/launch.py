"""Starting a run on a cluster: from a copy of the code, after the remains of the last run."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from uad.core.errors import UadError
from uad.core.files import atomic_path, read_json, write_json
from uad.core.provenance import IDENTITY, git_state

#: What a run reads of the repository.
CODE = (
    "Snakefile rules workflow_scripts profiles resources report notebooks envs uv.lock "
    "config.yaml config.demo.yaml config.fast.yaml config.phantom.yaml"
).split()
#: Names of our jobs begin so (``slurm-jobname-prefix`` of the profile).
JOB_PREFIX = "uad"


class LaunchError(UadError):
    """A run could not be started."""


def snapshot(root: Path, into: Path) -> Path:
    """Copy the code that a run consists of; returns the copy's Snakefile.

    Jobs on a cluster read Snakefile, scripts and library when they start, hours after the run
    began: edits must not reach them. Modification times are kept, because Snakemake takes a newer
    script for a changed one. An older copy is replaced.
    """
    if not (root / "Snakefile").is_file():
        raise LaunchError(f"{root}: no Snakefile there; start from the repository's folder.")
    fresh = into.with_name(into.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints")
    for source in (root / name for name in CODE):
        if source.is_dir():
            shutil.copytree(source, fresh / source.name, ignore=skipped)
        elif source.exists():
            shutil.copy2(source, fresh)
    write_json(fresh / "workflow_scripts" / "uad" / IDENTITY, git_state())
    shutil.rmtree(into, ignore_errors=True)
    fresh.rename(into)
    return into / "Snakefile"


def copy_overlays(arguments: Sequence[str], folder: Path) -> list[str]:
    """Snakemake's arguments with copies of the config files: jobs read these when they start.

    Raises:
        LaunchError: one of them is not there.
    """
    copied, taking = list(arguments), False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, argument in enumerate(arguments):
        if argument.startswith("-"):
            taking = argument in ("--configfile", "--configfiles")
        elif taking:
            if not Path(argument).is_file():
                raise LaunchError(f"{argument}: there is no such config file.")
            copy = folder / f"{number}-{Path(argument).name}"
            copied[number] = str(shutil.copy2(argument, copy))
    return copied


def register_run(directory: Path, record: Path) -> None:
    """Write down where this run's Snakemake works; refuse beside a run on another login node,
    which the lock of ``make`` need not reach: the jobs of a live run are not to be ended.

    Raises:
        LaunchError: jobs of a run that was started on another host are in the queue.
    """
    if record.is_file() and not os.environ.get("UAD_TAKE_OVER"):
        last = read_json(record)
        if last["host"] != platform.node() and unattended_jobs(directory):
            raise LaunchError(
                f"A run in {directory} was started on {last['host']} (process {last['pid']}) and "
                "has jobs in the queue. Give the command there; or, if that process is gone: "
                "UAD_TAKE_OVER=1 and the same command here."
            )
    write_json(record, {"host": platform.node(), "pid": os.getpid()})


def unattended_jobs(directory: Path) -> list[str]:
    """SLURM's numbers of the jobs that an earlier run of a directory left in the queue.

    A job is ours if its name begins with :data:`JOB_PREFIX` and it works in ``directory``.
    """
    here = os.path.realpath(directory)
    listed = _slurm("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%Z")
    jobs = [line.split("|", 2) for line in listed.splitlines() if line.count("|") >= 2]
    return [
        number
        for number, name, folder in jobs
        if name.startswith(f"{JOB_PREFIX}_") and os.path.realpath(folder) == here
    ]


def cancel_unattended(directory: Path, patience: float = 180.0) -> list[str]:
    """End the jobs that a killed run left behind, wait until they are gone; their numbers.

    The new run would write the same files beside them. A training saves what it has.

    Raises:
        LaunchError: SLURM does not answer, or the jobs are there after ``patience`` seconds.
    """
    found = unattended_jobs(directory)
    if not found:
        return []
    with contextlib.suppress(LaunchError):  # some may have ended by now; what counts is below
        _slurm("scancel", *found)
    end = time.monotonic() + patience
    while unattended_jobs(directory):
        if time.monotonic() > end:
            raise LaunchError(
                f"Jobs {' '.join(found)} of an earlier run in {directory} do not end; "
                "run the same command again when `squeue --me` no longer lists them."
            )
        time.sleep(1)
    return found


def readable_sacct(folder: Path) -> str:
    """A search path on which ``sacct`` gives states that the executor plugin knows.

    SLURM writes ``CANCELLED by 1000``; version 2.8 of the plugin compares with ``CANCELLED`` and
    would wait for ever for a job that somebody has cancelled.
    """
    folder = folder.resolve()
    path = os.environ.get("PATH", os.defpath)
    others = os.pathsep.join(part for part in path.split(os.pathsep) if Path(part) != folder)
    sacct = shutil.which("sacct", path=others)
    if sacct is None:
        return others
    script = (
        "#!/usr/bin/env bash\n# of uad.run.launch: the executor plugin knows no 'by <user>'\n"
        f"set -o pipefail\n{shlex.quote(sacct)} \"$@\" | sed 's/CANCELLED by [0-9]*/CANCELLED/'\n"
    )
    with atomic_path(folder / "sacct") as temporary:
        temporary.write_text(script, encoding="utf-8")
        temporary.chmod(0o755)
    return os.pathsep.join([str(folder), others])


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise LaunchError(
            f"{command[0]}: not found. The slurm profile is for a login node of a cluster; "
            "elsewhere leave PROFILE out."
        ) from None
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or "no answer within a minute"
        raise LaunchError(f"{command[0]}: {said.strip()} (is SLURM up? scontrol ping)") from None
    return done.stdout
