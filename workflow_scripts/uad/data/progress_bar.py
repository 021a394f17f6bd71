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
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def say(message: str, progress: Show = True) -> None:
    """Say something where progress is shown."""
    if progress is False:
        return
    print(message, file=sys.stderr, flush=True)
    if not isinstance(progress, bool):
        with contextlib.suppress(OSError):  # a terminal may be closed while a transfer goes on
            print(message, file=progress, flush=True)


class Progress:
    """The progress of one task.

    Args:
        name: what is shown.
        total: bytes in all, if known.
        shown: see :data:`Show`.
        done: bytes that an earlier attempt brought.
    """

    def __init__(self, name: str, total: int | None, shown: Show, done: int = 0) -> None:
        self.name, self.total, self.done, self.bar = name, total, done, None
        stream = sys.stderr if isinstance(shown, bool) else shown
        if shown and stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                desc=name, total=total, initial=done, unit="B", unit_scale=True, leave=False,
                file=stream, dynamic_ncols=True, mininterval=0.5,
            )  # fmt: skip
        lines = shown and (self.bar is None or stream is not sys.stderr)
        self.next_line = time.monotonic() + FIRST_LINE if lines else float("inf")

    def __enter__(self) -> Progress:
        return self

    def add(self, count: int) -> None:
        """Count some more bytes."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        if time.monotonic() >= self.next_line:
            of = f" of {mb(self.total)}" if self.total else ""
            print(f"{self.name}: {mb(self.done)}{of}", file=sys.stderr, flush=True)
            self.next_line = time.monotonic() + BETWEEN_LINES

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
