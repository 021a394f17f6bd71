"""How a training that gets a signal ends: with the epoch saved, where there is time for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from uad.core.errors import UadError

#: Signals that mean: stop soon (SLURM before a time limit, at preemption and at scancel).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: Seconds after such a signal within which an epoch must end to be finished and saved. In a SLURM
#: job it comes two minutes before the time limit (profiles/slurm); one that is cancelled or
#: preempted is killed after 30 s (KillWait), and then has what it would have had by leaving.
GRACE = 110.0 if "SLURM_JOB_ID" in os.environ else 20.0


class StoppedError(UadError):
    """A signal has ended the training; the same command goes on."""


class StopRequest:
    """Whether a training was asked to stop.

    After a signal the epoch is finished and saved if it ends within :data:`GRACE` at the pace of
    its batches so far (a validation batch counts as one); else the training stops at the next
    batch, and what the last checkpoint holds stands. In the last epoch it goes on to the results.
    """

    def __init__(self) -> None:
        self.deadline: float | None = None  # of the monotonic clock, once a signal has come

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Receive :data:`SIGNALS`, in the main thread."""
        main = threading.current_thread() is threading.main_thread()
        before = {n: signal.signal(n, self._receive) for n in SIGNALS} if main else {}
        try:
            yield self
        finally:
            for number, handler in before.items():
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

    def start_epoch(self, batches: int, message: str) -> None:
        """An epoch of so many batches begins; where it is left, StoppedError says ``message``."""
        self._batches, self._done, self._started = batches, 0, time.monotonic()
        self._message = message
        if self.received:
            raise StoppedError(message)

    def count_batch(self) -> None:
        """After each batch: leave the epoch if its rest would end after the deadline."""
        self._done += 1
        now = time.monotonic()
        rest = (now - self._started) / self._done * (self._batches - self._done)
        if self.deadline is not None and now + rest > self.deadline:
            raise StoppedError(self._message)
