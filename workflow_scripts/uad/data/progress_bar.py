"""How far a long task is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time

#: Seconds to the first line in a log and between two.
FIRST_LINE, BETWEEN_LINES = 5.0, 60.0


def mb(count: float) -> str:
    """A number of bytes for a person."""
    if count >= 1e6:
        return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.0f} kB"


def say(message: str, progress: bool = True) -> None:
    """Say something where progress is shown, on standard error."""
    if progress:
        print(message, file=sys.stderr, flush=True)


class Progress(contextlib.AbstractContextManager):
    """The progress of one task of ``total`` bytes (if known), of which some are done already."""

    def __init__(self, name: str, total: int | None, shown: bool, done: int = 0) -> None:
        from tqdm import tqdm

        self.name, self.of, self.done = name, f" of {mb(total)}" if total else "", done
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            desc=name, total=total, initial=done, unit="B", unit_scale=True, leave=False,
            dynamic_ncols=True, mininterval=0.5, disable=not (shown and terminal),
        )  # fmt: skip
        lines = shown and not terminal
        self.next_line = time.monotonic() + FIRST_LINE if lines else float("inf")

    def add(self, count: int) -> None:
        """Count some more bytes."""
        self.done += count
        self.bar.update(count)
        if time.monotonic() >= self.next_line:
            say(f"{self.name}: {mb(self.done)}{self.of}")
            self.next_line = time.monotonic() + BETWEEN_LINES

    def __exit__(self, *_: object) -> None:
        self.bar.close()
