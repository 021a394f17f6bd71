"""What failed in a run: each message once, with the jobs that it is about."""

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import LogRecord

from snakemake_interface_logger_plugins.common import LogEvent

from uad.run.progress import Job, Run, in_words, last_line, message_in

#: What Snakemake says besides, of a failed job that it has reported.
ECHOES = (
    "CalledProcessError in ",
    "Exiting because a job execution failed",
    "At least one job did not complete successfully",
)


def told() -> Run:
    """What the Snakefile told about the run; its library may lie in another copy than this one."""
    return sys.modules["uad.run.progress"].RUN


@dataclass
class Failure:
    """A job that failed, or a message about none."""

    words: str
    message: str
    logs: list[str]
    time: float
    told: bool = False


class Failures:
    """The failed jobs of a run, apart from those that are tried again."""

    def __init__(self) -> None:
        self.found: dict[int | str, Failure] = {}

    def add(self, event: str, record: LogRecord, running: Mapping[int, Job]) -> list[int]:
        """Take in a failed job or group; returns the numbers of the jobs that have ended."""
        if event == LogEvent.JOB_ERROR:
            if getattr(record, "indent", False):
                return []  # of a group that was reported as a whole
            self._add(vars(record), running, [])
            return [record.jobid]
        members = record.job_error_info
        failed = [info for info in members if _message(info, running)]
        for info in failed or members[:1]:
            self._add(info, running, list(record.aux_logs))
        return [info["jobid"] for info in members]

    def _add(self, info: Mapping, running: Mapping[int, Job], more_logs: list[str]) -> None:
        logs = [*info["log"], *more_logs]
        message = _message(info, running)
        if message is None:
            said = last_line(info["log"][0]) if info["log"] else ""
            parts = [str(info["rule_msg"] or ""), said]
            message = "\n".join(part for part in parts if part) or "It left no message."
        job = running.get(info["jobid"])
        words = job.words if job else in_words(info["rule_name"], {}, told().labels)
        words = f"{words} (rule {info['rule_name']})"
        self.found[info["jobid"]] = Failure(words, message, logs, time.time())

    def add_message(self, kind: str, message: str) -> None:
        """Take in an error that Snakemake reports; what repeats a failed job is left out."""
        if not self.is_echo(message):
            message = message.removeprefix(f"{kind}:").strip()
            self.found[message] = Failure("", message, [], time.time(), told=True)

    def is_echo(self, message: str) -> bool:
        """Whether Snakemake repeats what it said of a job."""
        return any(echo in message for echo in ECHOES)

    def again(self, number: int) -> None:
        """A job is tried again."""
        self.found.pop(number, None)

    def settled(self, until: float) -> Iterable[str]:
        """The jobs that failed before then and were not told about yet, in words."""
        for failure in self.found.values():
            if not failure.told and failure.time <= until:
                failure.told = True
                yield failure.words

    def summary(self) -> str:
        """All messages, each with its jobs and their logs; empty if nothing failed."""
        by_message: dict[str, list[Failure]] = {}
        messages = [failure.message for failure in self.found.values()]
        for failure in self.found.values():
            # of a file that another message names among others, the validation's for example
            path = _subject(failure.message)
            others = (m for m in messages if "/" in path and path in m and _subject(m) != path)
            by_message.setdefault(next(others, failure.message), []).append(failure)
        blocks = []
        for message, failures in by_message.items():
            lines = [f"FAILED: {failure.words}" for failure in failures if failure.words]
            lines += [f"  {line}" for line in message.splitlines()]
            logs = dict.fromkeys(log for failure in failures for log in failure.logs)
            lines += [f"  log: {log}" for log in logs]
            blocks.append("\n".join(lines) + "\n")
        return "\n".join(blocks)


def _subject(message: str) -> str:
    return message.partition(": ")[0]


def _message(info: Mapping, running: Mapping[int, Job]) -> str | None:
    """What the job's script said in this run."""
    job = running.get(info["jobid"])
    return message_in(info["log"], job.started - 2 if job else 0)
