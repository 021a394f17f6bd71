"""How far a run is, in words: what its jobs do, how many are done, what is left, what failed."""

from __future__ import annotations

import functools
import itertools
import os
import string
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from uad.core.provenance import ERROR_IN_RULE

#: Rule -> what its jobs do, with the values of its wildcards.
WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
#: Rules whose log says in its last line how far a job is.
TELLING = {"download_atlas", "download_dataset", "fetch_split_list", "train_model"}


@dataclass
class Run:
    """What the Snakefile tells about the run; as it is for one that tells nothing."""

    #: how the methods are called in print
    labels: Mapping[str, str] = field(default_factory=dict)
    #: gives the jobs of this run by rule, and how many all jobs of the targets are
    counts: Callable[[], tuple[Counter[str], int]] | None = None

    def watch(self, workflow: Any, labels: Mapping[str, str]) -> None:
        """Count the jobs of Snakemake's workflow, again only when there are others."""

        @functools.lru_cache(maxsize=1)
        def count(of_run: int, of_targets: int) -> tuple[Counter[str], int]:
            jobs = itertools.chain(workflow.dag.needrun_jobs(), workflow.dag.finished_jobs)
            return Counter(job.rule.name for job in jobs), of_targets

        self.labels = labels
        self.counts = lambda: count(len(workflow.dag), len(workflow.dag.jobs))


#: The run of this process.
RUN = Run()


def in_words(rule: str, wildcards: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """What a job does, for a person."""
    values = defaultdict(lambda: "?", wildcards)
    if "method" in values:
        values["method"] = labels.get(values["method"], values["method"])
    words = WORDS.get(rule)
    if words is None:
        return f"{rule.replace('_', ' ')} {', '.join(wildcards.values())}".strip()
    return string.Formatter().vformat(words, (), values)


def span(seconds: float) -> str:
    """A time span for a person, in two units at most."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def last_line(path: str | os.PathLike[str]) -> str:
    """Last line of a log that has text; empty without a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def message_in(logs: Iterable[str], since: float = 0) -> str | None:
    """The message of a UadError, which ends the log of a job; None if it failed otherwise.

    Logs from before ``since`` (seconds since 1970) are of an earlier run.
    """
    for path in logs:
        try:
            if Path(path).stat().st_mtime < since:
                continue
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        _, found, message = f"\n{text}".rpartition(f"\n{ERROR_IN_RULE}")
        if found:
            return message.partition(": ")[2].strip()
    return None


@dataclass
class Job:
    """A job that was started."""

    rule: str
    words: str
    logs: list[str]
    started: float


class Progress:
    """Counts of a run: ``total`` jobs of its targets, of which some were done ``before``.

    ``running`` are the jobs at work (on a cluster also those that wait), the last started last.
    """

    def __init__(self, started: float | None = None) -> None:
        self.started = time.time() if started is None else started
        self.finished = self.before = self.total = 0
        self.running: dict[int, Job] = {}
        self._needed: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()  # of the finished jobs, by rule

    @property
    def done(self) -> int:
        """Jobs that are done, with those of earlier runs."""
        return self.before + self.finished

    def plan(self, needed: Mapping[str, int], all_jobs: int | None = None) -> None:
        """Take over the jobs of this run by rule, finished ones included, and of all runs."""
        self._needed = Counter(needed)
        here = self._needed.total()
        self.total = max(here, all_jobs or 0)
        self.before = self.total - here

    def start(self, number: int, job: Job) -> None:
        """A job begins."""
        self.running.pop(number, None)
        self.running[number] = job

    def finish(self, number: int, now: float) -> None:
        """A job has done its work."""
        job = self.running.pop(number, None)
        self.finished += 1
        if job:
            self._finished[job.rule] += 1
            self._seconds[job.rule] += now - job.started

    def end(self, number: int) -> None:
        """A job has failed."""
        self.running.pop(number, None)

    def left(self, now: float) -> str:
        """Remaining time, from the finished jobs; a lower bound while a kind has none of them."""
        if not self._finished or now <= self.started:
            return ""
        left, unknown = 0.0, False
        for rule, count in self._needed.items():
            to_do = max(0, count - self._finished[rule])
            if done := self._finished[rule]:
                left += to_do * self._seconds[rule] / done
            else:
                unknown |= to_do > 0
        for job in self.running.values():
            if done := self._finished[job.rule]:
                left -= min(now - job.started, self._seconds[job.rule] / done)
        at_once = max(1.0, self._seconds.total() / (now - self.started))
        seconds = max(0.0, left) / at_once
        if unknown and seconds < 10:
            return ""
        return f"{'more than' if unknown else 'about'} {span(seconds)} left"

    def stage(self) -> str:
        """What is being done, in words."""
        if not self.running:
            return ""
        job = next(reversed(self.running.values()))
        more = f" and {len(self.running) - 1} more" if len(self.running) > 1 else ""
        told = last_line(job.logs[0]) if job.rule in TELLING and job.logs else ""
        return f"{job.words}{more}{f' ({told})' if told else ''}"
