"""Snakemake's ``--logger uad``: one live line for a run, plain lines where there is no terminal.

The full log is in Snakemake's file. Dry runs, and all that is no run, print as usual.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from logging import ERROR, WARNING, LogRecord
from pathlib import Path

import psutil
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter, logger
from snakemake.shell import shell
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm

from snakemake_logger_plugin_uad.failures import Failures, told
from snakemake_logger_plugin_uad.timers import limit_timers
from uad.core.provenance import QUIET_JOBS
from uad.run.progress import Job, Progress, in_words, span

#: Seconds between plain lines: at first, and as a share of the time that has passed.
BETWEEN_LINES, SHARE = 20, 1 / 30
#: Seconds to the line about a stage that has begun, and to that about a failed job.
SOON, SETTLED = 5, 1.5
TICK = 1.0
#: Seconds that jobs have to end after Ctrl-C: a training saves, if its epoch ends by then.
GRACE = 25
#: Rules whose log is for the user.
TOLD = {"pack_crate", "validate_dataset"}
#: Messages of Snakemake that say nothing to the user, by their beginnings.
NOISE = ("Assuming unrestricted shared filesystem usage",)
#: Messages that end a run before its jobs are through.
STOPPED = ("Terminating processes on user request", "Cancelling snakemake on user request")
#: What is said of them.
SAID = {
    "Nothing to be done": "{message}",
    "Will exit after finishing": "Asked to stop: waiting for the jobs at work.",
}


class LogHandler(LogHandlerBase):
    """Shows a run; lets Snakemake's own handler print all else."""

    def __post_init__(self) -> None:
        make_cache_usable()
        settings = self.common_settings
        self.stream = sys.stdout if settings.stdout else sys.stderr
        self.plain = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=self.stream,
            formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
            filter=DefaultFilter(
                settings.quiet,
                settings.debug_dag,
                settings.verbose,
                settings.dryrun,
                settings.printshellcmds,
            ),
        )
        self.verbatim = settings.dryrun or settings.verbose or settings.debug_dag
        self.terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.progress: Progress | None = None  # from the start of a run on
        self.bar: tqdm | None = None
        self.failures = Failures()
        self.log_file = ""
        self.stopped = False
        self.rules: set[str] = set()
        self.said: set[str] = set()
        self.next_line = self.last_line = 0.0
        self.closing = threading.Event()
        self.ticker: threading.Thread | None = None
        self.counted: tuple[int, int] | None = None
        if not settings.dryrun:
            if complaint := limit_timers():
                self.plain.stream.write(f"WARNING: {complaint}\n")
            logger.addFilter(self.count)

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def count(self, record: LogRecord) -> bool:
        """Add the numbers of jobs to a record; runs in the thread that changes the graph."""
        event = getattr(record, "event", None)
        if event in (LogEvent.RUN_INFO, LogEvent.PROGRESS) and told().counts:
            record.jobs_known = told().counts()
        return True

    # --- events

    def emit(self, record: LogRecord) -> None:
        """Take in one record."""
        try:
            if self.progress is None and getattr(record, "event", "") == LogEvent.WORKFLOW_STARTED:
                self.begin(record)
            elif self.progress is None or self.verbatim:
                if self.plain.filter(record) and not str(record.msg).startswith(NOISE):
                    self.plain.emit(record)
            else:
                self.take(record)
        except Exception:
            self.handleError(record)

    def begin(self, record: LogRecord) -> None:
        """A run begins: its jobs are not known yet."""
        if self.verbatim:
            self.plain.emit(record)
            return
        self.progress = Progress(record.created)
        # else Ctrl-C reaches the jobs, too, and each prints where it was; see end_jobs
        shell.prefix("set -euo pipefail; trap '' INT; ")
        os.environ[QUIET_JOBS] = "1"
        self.say("Planning the run ...")

    def take(self, record: LogRecord) -> None:
        """An event of a run."""
        event = getattr(record, "event", None)
        message = str(record.msg)
        if event in (LogEvent.RUN_INFO, LogEvent.PROGRESS):
            self.replan(record)
        elif event == LogEvent.JOB_INFO:
            self.job_starts(record)
        elif event == LogEvent.JOB_FINISHED:
            self.job_ends(record)
        elif event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR):
            for number in self.failures.add(event, record, self.progress.running):
                self.progress.end(number)
        elif message.startswith(STOPPED):
            self.stopped = True
            threading.Thread(target=end_jobs, daemon=True).start()
        elif event == LogEvent.ERROR:
            self.failures.add_message(record.exception, message)
        elif message.startswith("Complete log(s): "):
            self.log_file = os.path.relpath(message.partition(": ")[2])
        elif record.levelno >= WARNING:
            if not (record.levelno >= ERROR and self.failures.is_echo(message)):
                self.say(message)
        else:
            for beginning, said in SAID.items():
                if message.startswith(beginning) and beginning not in self.said:
                    self.said.add(beginning)  # the scheduler repeats itself
                    self.say(said.format(message=message))

    def replan(self, record: LogRecord) -> None:
        """The jobs are known, or others than before."""
        known = getattr(record, "jobs_known", None)
        if known is not None:
            self.progress.plan(*known)
        elif record.event == LogEvent.RUN_INFO:
            self.progress.plan({k: v for k, v in record.stats.items() if k != "total"})
        if record.event == LogEvent.RUN_INFO and self.ticker is None:
            before, total = self.progress.before, self.progress.total
            earlier = f", {before} of them done before" if before else ""
            self.say(f"{total} jobs{earlier}.")
            if self.terminal:
                tqdm.monitor_interval = 0
                self.bar = tqdm(
                    total=total,
                    initial=before,
                    file=self.stream,
                    leave=False,
                    dynamic_ncols=True,
                    bar_format="{bar:20} {n_fmt}/{total_fmt}  {elapsed}{desc}",
                )
            self.last_line = time.monotonic()
            self.next_line = self.last_line + BETWEEN_LINES
            self.ticker = threading.Thread(target=self.tick, daemon=True)
            self.ticker.start()
        self.show()

    def job_starts(self, record: LogRecord) -> None:
        """A job begins, or is sent to the cluster."""
        self.failures.again(record.jobid)
        words = in_words(record.rule_name, record.wildcards or {}, told().labels)
        logs = list(record.log or [])
        self.progress.start(record.jobid, Job(record.rule_name, words, logs, record.created))
        if record.rule_name not in self.rules:
            self.rules.add(record.rule_name)
            self.next_line = min(self.next_line, max(time.monotonic(), self.last_line + SOON))
        self.show()

    def job_ends(self, record: LogRecord) -> None:
        """A job has done its work."""
        job = self.progress.running.get(record.job_id)
        self.progress.finish(record.job_id, record.created)
        if job and job.rule in TOLD:
            with contextlib.suppress(OSError), open(job.logs[0], encoding="utf-8") as file:
                if said := file.read().strip():
                    self.say(said)
        self.show()

    # --- what is seen

    def say(self, text: str) -> None:
        """Print above the live line."""
        if self.bar is not None:
            self.bar.clear()
        self.stream.write(f"{text}\n")
        self.stream.flush()
        if self.bar is not None:
            self.bar.refresh()

    def show(self) -> None:
        """Bring the live line up to date; without a terminal a plain one if it is time for one."""
        now, run = time.time(), self.progress
        stage, left = run.stage(), run.left(now)
        if self.bar is not None:
            self.bar.n, self.bar.total = run.done, run.total
            parts = [part for part in (left, stage) if part]
            self.bar.set_description_str("".join(f"  {part}" for part in parts), refresh=False)
            self.bar.refresh()
        elif self.ticker is not None and time.monotonic() >= self.next_line and stage:
            parts = [f"{run.done} of {run.total} jobs", span(now - run.started), left, stage]
            self.say("; ".join(part for part in parts if part))
            self.last_line = time.monotonic()
            self.next_line = self.last_line + max(BETWEEN_LINES, SHARE * (now - run.started))

    def tick(self) -> None:
        """Go on telling the time while no job begins or ends."""
        while not self.closing.wait(TICK):
            with self.lock, contextlib.suppress(OSError, ValueError):  # a terminal may be closed
                if self.closing.is_set():
                    return
                for words in self.failures.settled(time.time() - SETTLED):
                    if not self.stopped:
                        self.say(f"FAILED: {words}")
                self.show()

    def close(self) -> None:
        """The end of a run: what failed, how much was done, where the log is."""
        self.closing.set()
        logger.removeFilter(self.count)
        os.environ.pop(QUIET_JOBS, None)
        with self.lock, contextlib.suppress(OSError, ValueError):
            if self.bar is not None:
                self.bar.close()
                self.bar = None
            if self.progress is not None:
                self.conclude()
                self.progress = None
        super().close()

    def conclude(self) -> None:
        """The last lines of a run."""
        run = self.progress
        took = span(time.time() - run.started)
        log = f" Log: {self.log_file}" if self.log_file else ""
        if self.stopped:
            self.say(f"Stopped after {took}; the same command goes on from here.{log}")
            return
        text = self.failures.summary()
        done = run.done if text else run.total  # not every target comes as a job that ends
        counted = f"{done} of {run.total} jobs are done, after {took}.{log}"
        if text:
            self.say(f"\n{text}")
        if run.finished or (text and run.total):
            self.say(counted)


def make_cache_usable() -> None:
    """Where HOME cannot be written, let Snakemake have its cache below the working directory."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        os.environ["XDG_CACHE_HOME"] = str(Path(".snakemake/cache").absolute())


def end_jobs() -> None:
    """End the jobs of this machine, which do not see Ctrl-C."""
    jobs = psutil.Process().children(recursive=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for job in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.send_signal(number)
        _, jobs = psutil.wait_procs(jobs, timeout=GRACE)
