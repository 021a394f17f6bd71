"""Snakemake for tests, in processes that have it loaded: importing it takes most of a small run."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tools import forks
from tools.datasets import image

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
    if fresh:
        whole = [sys.executable, "-m", "snakemake", *command]
        done = subprocess.run(whole, capture_output=True, text=True)
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


def job_counts(output):
    """Jobs per rule, from the table of a dry run."""
    table = output.split("Job stats:")[-1]
    return Counter({m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)\s*$", table, re.M)})


def touch(root, *names):
    """Files below a folder, each an image of eight voxels."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image())


def make_stand_ins(folder, ixi, brats21, mslub):
    """Raw trees in the public layouts, of so many subjects, of images with eight voxels."""
    for i in range(ixi):
        for modality in ("T1", "T2"):
            touch(folder, f"data/ixi/IXI-{modality}/IXI{i:03d}-Guys-{i:04d}-{modality}.nii.gz")
    for i in range(brats21):
        name = f"BraTS2021_{i:05d}"
        for suffix in ("flair", "t1", "t1ce", "t2", "seg"):
            touch(folder, f"data/brats21/{name}/{name}_{suffix}.nii.gz")
    for i in range(mslub):
        name = f"patient{i:02d}"
        for suffix in ("T1W", "T2W", "FLAIR", "consensus_gt"):
            touch(folder, f"data/mslub/{name}/{name}_{suffix}.nii.gz")


#: Splits that stand-ins of 12, 10 and 4 subjects are enough for.
SMALL_SPLITS = {
    "splits": {
        "healthy_validation": 1,
        "healthy_test": 2,
        "unhealthy_validation": {"brats21": 2, "mslub": 1},
    }
}
