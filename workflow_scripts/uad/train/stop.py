"""A training that gets a signal ends with its epoch saved, if it has the time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from uad.core.errors import UadError

#: Signals that mean: stop soon (SLURM before a time limit, at preemption and at scancel).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedError(UadError):
    """A signal has ended the training; the same command goes on."""


class StopRequest:
    """Whether a training was asked to stop: it does so at the end of its epoch, which it saves.

    Who sends the signal may kill it before: then what the last checkpoint holds stands.
    """

    def __init__(self) -> None:
        self.received = False

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
        if not self.received:
            # not through logging: the signal may have come in the middle of a line of it
            os.write(2, f"\n{signal.Signals(number).name}: stopping the training\n".encode())
        self.received = True
