"""Start a run on a cluster; all further arguments are Snakemake's."""

import argparse
import os
import sys
from pathlib import Path

from uad.core.errors import ConfigError
from uad.run.launch import (
    cancel_unattended,
    copy_overlays,
    readable_sacct,
    register_run,
    snapshot,
)
from uad.run.lock import lock_directory

ROOT = Path(__file__).resolve().parents[3]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("profile", help="a folder of profiles/")
    parser.add_argument("snakemake", nargs=argparse.REMAINDER, help="arguments of Snakemake")


def run(options: argparse.Namespace) -> int:
    """Replace this process by Snakemake, at work on a copy of the code."""
    profile, arguments = options.profile, options.snakemake
    if not (ROOT / "profiles" / profile / "profile.yaml").is_file():
        raise ConfigError(f"{profile}: there is no profiles/{profile}/profile.yaml")
    here = Path.cwd()
    state = here / ".uad"
    lock_directory()
    register_run(here, state / "run.json")
    arguments = copy_overlays(arguments, state / "overlays")
    cancelled = cancel_unattended(here)
    if cancelled:
        message = f"Ended {len(cancelled)} job(s) of an earlier run that nobody watched any more."
        print(message, flush=True)  # exec would drop what is buffered
    snakefile = snapshot(ROOT, state / "code")
    os.environ["UAD_REPOSITORY"] = str(ROOT)
    os.environ["PATH"] = readable_sacct(state / "bin")
    library = str(snakefile.parent / "workflow_scripts")
    os.environ["PYTHONPATH"] = library
    settings = snakefile.parent / "profiles" / profile
    command = ["--snakefile", snakefile, "--directory", here, "--workflow-profile", settings]
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *map(str, command), *arguments])
