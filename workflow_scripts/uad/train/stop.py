"""How a training that gets a signal ends: with the epoch saved, where there is time for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from uad.core.errors import UadError

#: Signals that mean: stop soon (SLURM before a time limit, at preemption and at scancel).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: Seconds after such a signal within which an epoch must end to be finished and saved. In a SLURM
#: job the signal comes two minutes before the time limit (profiles/slurm); a job that is cancelled
#: or preempted is killed after 30 s (KillWait), and then has what it would have had by leaving.
GRACE = 110.0 if "SLURM_JOB_ID" in os.environ else 20.0


class StoppedError(UadError):
    """A signal has ended the training; the same command goes on."""


class StopRequest:
    """Whether a training was asked to stop, by one of :data:`SIGNALS` while this is entered.

    After a signal the epoch is finished and saved if it ends within :data:`GRACE` at the pace of
    its batches so far (a validation batch counts as one); else the training stops at the next
    batch, and what the last checkpoint holds stands. In the last epoch it goes on to the results.
    """

    def __init__(self) -> None:
        self.deadline: float | None = None  # of the monotonic clock, once a signal has come
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + GRACE
            # not through logging: the signal may have come in the middle of a line of it
            os.write(2, f"\n{signal.Signals(number).name}: stopping the training\n".encode())

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self.deadline is not None

    def start_epoch(self, batches: int) -> None:
        """An epoch of so many batches begins."""
        self._batches, self._done, self._started = batches, 0, time.monotonic()

    def too_late(self) -> bool:
        """After each batch: whether the rest of the epoch would end after the deadline."""
        self._done += 1
        if self.deadline is None:
            return False
        now = time.monotonic()
        rest = (now - self._started) / self._done * (self._batches - self._done)
        return now + rest > self.deadline
