"""Snakemake for tests, in processes that have it loaded: importing it takes most of a small run."""

import os
import subprocess
import sys
from pathlib import Path

from tools import forks

# besides Snakemake what it loads late and what the rules load; nothing of ours, because a test may
# run a copy of the repository
forks.preload("snakemake.cli", "snakemake.report.html_reporter", "pandas", "pydantic")


def snakemake(root, workdir, *arguments, check=True, fresh=False):
    """Run Snakemake of this environment in ``workdir``; returns its whole output.

    Args:
        root: the repository whose Snakefile is run.
        workdir: directory of the run.
        arguments: more of Snakemake's.
        check: fail if Snakemake does.
        fresh: a new interpreter, a child of this process, for tests that ask what a run used.
    """
    command = ["--snakefile", root / "Snakefile", "--directory", workdir, "--cores", "2"]
    command = [*map(str, command), *map(str, arguments)]
    library = str(Path(root) / "workflow_scripts")
    if fresh or library != os.environ["PYTHONPATH"]:  # another copy runs its own library
        whole = [sys.executable, "-m", "snakemake", *command]
        environment = {**os.environ, "PYTHONPATH": library}
        done = subprocess.run(whole, capture_output=True, text=True, env=environment)
    else:
        done = forked(command)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    return output


def full_log(workdir):
    """Snakemake's own log of the last run in ``workdir``."""
    logs = (Path(workdir) / ".snakemake" / "log").glob("*.log")
    return max(logs).read_text(encoding="utf-8")


def forked(arguments, **options):
    """``snakemake`` with the arguments of a command line; options and result of ``forks.run``."""
    return forks.run(_main, [str(argument) for argument in arguments], **options)


def _main(arguments):
    from snakemake.cli import main

    sys.argv = ["snakemake", *arguments]
    main(arguments)
