"""What long work on files tells, on standard error: sentences, and how far it is."""

from __future__ import annotations

import sys
import time

#: Seconds to the first line about a task, and between two.
FIRST_LINE, BETWEEN_LINES = 5.0, 30.0


def mb(count: float) -> str:
    """A number of bytes for a person."""
    if count >= 1e6:
        return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.0f} kB"


def say(message: str) -> None:
    """Print a message to standard error."""
    print(message, file=sys.stderr, flush=True)


class Progress:
    """Says now and then how far a task of ``total`` bytes (0: not known) is."""

    def __init__(self, name: str, total: int = 0, done: int = 0) -> None:
        self.name, self.of, self.done = name, f" of {mb(total)}" if total else "", done
        self.next_line = time.monotonic() + FIRST_LINE

    def add(self, count: int) -> None:
        """Count some more bytes."""
        self.done += count
        if time.monotonic() >= self.next_line:
            say(f"{self.name}: {mb(self.done)}{self.of}")
            self.next_line = time.monotonic() + BETWEEN_LINES
