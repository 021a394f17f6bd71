"""How far a long task is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TextIO

#: Where progress is shown. False: nowhere. True: on standard error, a bar if that is a terminal,
#: else lines. A stream: a bar on this terminal, and the lines on standard error.
Show = bool | TextIO
#: Seconds to the first line and between two.
FIRST_LINE, BETWEEN_LINES = 5.0, 60.0


def mb(count: float) -> str:
    """A number of bytes for a person."""
    if count >= 1e6:
        return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.0f} kB"


def say(message: str, progress: Show = True) -> None:
    """Say something where progress is shown."""
    if progress is False:
        return
    print(message, file=sys.stderr, flush=True)
    if not isinstance(progress, bool):
        with contextlib.suppress(OSError):  # a terminal may be closed while a transfer goes on
            print(message, file=progress, flush=True)


class Progress(contextlib.AbstractContextManager):
    """The progress of one task of ``total`` bytes (if known), of which some are done already."""

    def __init__(self, name: str, total: int | None, shown: Show, done: int = 0) -> None:
        from tqdm import tqdm

        self.name, self.of, self.done = name, f" of {mb(total)}" if total else "", done
        stream = sys.stderr if isinstance(shown, bool) else shown
        bar = bool(shown) and stream.isatty()
        self.bar = tqdm(
            desc=name, total=total, initial=done, unit="B", unit_scale=True, leave=False,
            file=stream, dynamic_ncols=True, mininterval=0.5, disable=not bar,
        )  # fmt: skip
        lines = shown and not (bar and stream is sys.stderr)
        self.next_line = time.monotonic() + FIRST_LINE if lines else float("inf")

    def add(self, count: int) -> None:
        """Count some more bytes."""
        self.done += count
        self.bar.update(count)
        if time.monotonic() >= self.next_line:
            print(f"{self.name}: {mb(self.done)}{self.of}", file=sys.stderr, flush=True)
            self.next_line = time.monotonic() + BETWEEN_LINES

    def __exit__(self, *_: object) -> None:
        self.bar.close()
