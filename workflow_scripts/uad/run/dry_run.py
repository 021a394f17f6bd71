"""The jobs of a target, from a dry run of Snakemake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from uad.core.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
#: Names the folder of tables that stand for indexes of data sets (rules/data_inputs.smk).
PLANNED_TABLES = "UAD_PLANNED_TABLES"

#: A job in the text; those of a group stand further to the right, below a line of the group.
_JOB = re.compile(r"^( *)(?:local)?(?:rule|checkpoint) (\w+):\n((?:\1    \w+: .*\n)*)", re.M)
_GROUP = re.compile(r"\bgroup job \S+ \(jobs in .*\):", re.I)


class Job(NamedTuple):
    """A job, with the cores and GPUs that it holds."""

    rule: str
    wildcards: dict[str, str] = {}
    inputs: tuple[str, ...] = ()
    threads: int = 1
    gpus: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from all other jobs."""
        return (self.rule, *sorted(f"{k}={v}" for k, v in self.wildcards.items()))


def dry_run(
    targets: Sequence[str], overlays: Sequence[Path], profile: Path | None, tables: Path
) -> tuple[list[Job], int]:
    """The jobs that are to do for the targets in the current directory, and their submissions.

    ``tables`` is a folder with a participants table for each data set whose index is not there.

    Raises:
        DataError: Snakemake refuses; its own message.
    """
    # threads are cut to the cores, and a plan is not for this machine only
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--cores", "4096"]
    command += ["--snakefile", str(ROOT / "Snakefile")]
    if profile:  # as --profile it would add to profiles/default
        command += ["--workflow-profile", str(profile.resolve())]
    if overlays:
        command += ["--configfile", *map(str, overlays)]
    environment = os.environ | {PLANNED_TABLES: str(tables)}
    whole = [*command, "--", *targets]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode:
        raise DataError(refusal(output))
    return parse(output)


def parse(output: str) -> tuple[list[Job], int]:
    """The jobs with outputs in the text of a dry run, and how many submissions they are."""
    found, local, jobs = _JOB.findall(f"{output}\n"), local_rules(), []
    total = re.findall(r"^total +(\d+)$", output, re.M)
    if len(found) != (int(total[-1]) if total else 0):
        raise ValueError(f"{len(found)} jobs read, but Snakemake counts {total[-1:] or 'none'}")
    submissions = len(_GROUP.findall(output))
    for indent, rule, body in found:
        fields = dict(re.findall(r"^ +(\w+): (.*)$", body, re.M))
        if "output" not in fields:  # a target
            continue
        submissions += not indent and rule not in local
        inputs = tuple(fields["input"].split(", ")) if "input" in fields else ()
        gpus = _pairs(fields.get("resources", "")).get("gpu", "0")
        wildcards, threads = _pairs(fields.get("wildcards", "")), int(fields.get("threads", 1))
        jobs.append(Job(rule, wildcards, inputs, threads, int(gpus) if gpus.isdigit() else 0))
    return jobs, submissions


def _pairs(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(", ") if "=" in part)


def local_rules() -> set[str]:
    """Rules that run where Snakemake runs; a dry run does not tell."""
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("rules/*.smk"))
    rules = re.findall(r"^(?:rule|checkpoint) (\w+):\n((?:[ \t].*\n|\n)*)", text, re.M)
    return {name for name, body in rules if "localrule: True" in body}


def scheduler_of(profile: Path | None) -> str | None:
    """The scheduler that a profile sends jobs to; None: they run where Snakemake runs.

    Raises:
        DataError: there is no such profile.
    """
    if profile is None:
        return None
    path = profile / "profile.yaml"
    if not path.is_file():
        raise DataError(f"{profile.name}: there is no {path}")
    name = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("executor", "local")
    return None if name == "local" else name


def refusal(output: str) -> str:
    """Why Snakemake refused, without what it prints on its way there, at most 24 lines."""
    noise = ("Using ", "Config file ", "Assuming ", "Building DAG")
    lines = [s for s in output.splitlines() if s.strip() and not s.startswith(noise)]
    starts = [i for i, s in enumerate(lines) if re.match(r"\w*(Exception|Error)\b|Raw data", s)]
    return "\n".join(lines[starts[0] :][:24] if starts else lines[-12:])
