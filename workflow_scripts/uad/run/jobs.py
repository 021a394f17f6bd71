"""The jobs of a target, from dry runs of Snakemake."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from uad.core.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
#: Rules before the index of a data set: what follows it is unknown to Snakemake until it is there.
UPSTREAM = ("make_phantom", "download_dataset", "index_dataset")


@dataclass(frozen=True)
class Job:
    """A job, with the cores and GPUs that it holds; targets have no outputs.

    ``group`` is the number of its group in the dry run, if the profile puts it into one.
    """

    rule: str
    wildcards: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    threads: int = 1
    gpus: int = 0
    group: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from all other jobs."""
        return (self.rule, *sorted(f"{k}={v}" for k, v in self.wildcards.items()))


# jobs of a group stand below it, further to the right
_GROUP = re.compile(r".*\bgroup job \S+ \(jobs in .*\):", re.I)
_HEADER = re.compile(r"( *)(?:local)?(?:rule|checkpoint) (\w+):")
_FIELD = re.compile(r"( *)    (\w+): (.*)")


def parse_jobs(output: str) -> list[Job]:
    """The jobs of a dry run (``snakemake -n``), in the order of the text.

    Raises:
        ValueError: they are not as many as its own table of jobs says.
    """
    blocks: list[tuple[str, int | None, dict[str, str]]] = []
    current: dict[str, str] | None = None
    indent, groups = "", 0
    for line in output.splitlines():
        if header := _HEADER.fullmatch(line):
            current, indent = {}, header[1]
            blocks.append((header[2], groups if indent else None, current))
        elif current is not None and (found := _FIELD.fullmatch(line)) and found[1] == indent:
            current[found[2]] = found[3]
        else:
            current = None
            groups += bool(_GROUP.fullmatch(line))
    jobs = [_job(*block) for block in blocks]
    total = re.findall(r"^total +(\d+)$", output, re.M)
    if len(jobs) != (int(total[-1]) if total else 0):
        raise ValueError(f"{len(jobs)} jobs read, but Snakemake counts {total[-1:] or 'none'}")
    return jobs


def _job(rule: str, group: int | None, fields: Mapping[str, str]) -> Job:
    def listed(name: str) -> tuple[str, ...]:
        return tuple(fields[name].split(", ")) if name in fields else ()

    def pairs(name: str) -> dict[str, str]:
        return dict(part.split("=", 1) for part in listed(name) if "=" in part)

    threads, gpus = int(fields.get("threads", "1")), pairs("resources").get("gpu", "0")
    gpus = int(gpus) if gpus.isdigit() else 0
    return Job(rule, pairs("wildcards"), listed("input"), listed("output"), threads, gpus, group)


@dataclass(frozen=True)
class Command:
    """How Snakemake is called: config files beyond its own, and the folder of a profile."""

    overlays: tuple[Path, ...] = ()
    profile: Path | None = None

    def executor(self) -> str | None:
        """The scheduler that the profile sends jobs to; None: they run where Snakemake runs."""
        if self.profile is None:
            return None
        path = self.profile / "profile.yaml"
        if not path.is_file():
            raise DataError(f"{self.profile.name}: there is no {path}")
        name = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("executor", "local")
        return None if name == "local" else name

    def dry_run(
        self, directory: Path, targets: Sequence[str], *, overlay: Path | None = None
    ) -> list[Job]:
        """The jobs that are to do for the targets in a working directory; nothing is locked.

        Raises:
            DataError: Snakemake refuses; its own message.
        """
        # threads are cut to the cores, and a plan is not for this machine only
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--cores", "4096"]
        command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(directory)]
        if self.profile:  # as --profile it would add to profiles/default
            command += ["--workflow-profile", str(self.profile.resolve())]
        if overlays := [*self.overlays, *([overlay] if overlay else [])]:
            command += ["--configfile", *(str(path.resolve()) for path in overlays)]
        done = subprocess.run([*command, "--", *targets], capture_output=True, text=True)
        output = done.stdout + done.stderr
        if done.returncode:
            raise DataError(refusal(output))
        return parse_jobs(output)


def submissions(jobs: Iterable[Job]) -> tuple[int, int]:
    """How many groups, and how many jobs alone, go to a scheduler."""
    jobs, local = list(jobs), local_rules()
    alone = sum(job.group is None and job.rule not in local for job in jobs)
    return len({job.group for job in jobs} - {None}), alone


def local_rules() -> set[str]:
    """Rules that run where Snakemake runs; a dry run does not tell."""
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("rules/*.smk"))
    rules = re.findall(r"^(?:rule|checkpoint) (\w+):\n((?:[ \t].*\n|\n)*)", text, re.M)
    return {name for name, body in rules if "localrule: True" in body}


def refusal(output: str) -> str:
    """Why Snakemake refused, without what it prints on its way there, at most 24 lines."""
    noise = ("Using ", "Config file ", "Assuming ", "Building DAG")
    lines = [s for s in output.splitlines() if s.strip() and not s.startswith(noise)]
    starts = [i for i, s in enumerate(lines) if re.match(r"\w*(Exception|Error)\b|Raw data", s)]
    return "\n".join(lines[starts[0] :][:24] if starts else lines[-12:])
