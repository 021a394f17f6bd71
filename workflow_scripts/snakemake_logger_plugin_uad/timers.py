"""Snakemake's scheduler without its ever more timers (snakemake/snakemake#3744)."""

import threading


def limit_timers() -> str | None:
    """Let a scheduler have at most one pending timer, and none that it has no use for.

    With a limit on jobs per timespan, which is always set, each pass of the scheduler starts a
    timer that causes another pass a second later. Each finished job so adds a chain of them that
    never ends. A pass is needed only when the limit held jobs back, or for inputs from a queue.

    Returns:
        Why it could not be done; None if it was.
    """
    try:
        from snakemake.scheduling.job_scheduler import JobScheduler
    except ImportError:
        JobScheduler = None
    # the name is misspelt there
    if not hasattr(JobScheduler, "_schedule_reevalutation"):
        return (
            "this version of Snakemake has another scheduler than the one whose timers are limited "
            "(snakemake/snakemake#3744): a long run may take more and more of a core."
        )
    JobScheduler._schedule_reevalutation = _schedule
    return None


def _schedule(self, delay):
    """Replace ``JobScheduler._schedule_reevalutation``."""
    limiter = self.job_rate_limiter
    queued = self.workflow.dag.has_unfinished_queue_input_jobs()
    # what the limiter counted when jobs were selected, and the selected ones
    if not queued and limiter is not None and len(limiter._jobs) < limiter.max_jobs:
        return  # the next pass comes with the next job that ends
    if getattr(self, "_uad_timer", None) is not None:
        return

    def wake():
        self._uad_timer = None  # first, or the pass that is woken could take it for pending
        self._open_jobs.release()

    self._uad_timer = threading.Timer(delay, wake)
    self._uad_timer.daemon = True
    self._uad_timer.start()
