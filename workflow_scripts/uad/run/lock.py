"""One run at a time in a working directory: a kernel lock, which ends with its process."""

import fcntl
import os
from pathlib import Path

from uad.core.errors import UadError

PATH = Path(".uad/run.lock")
#: Set where the run, or the program that started it, has the lock.
LOCKED = "UAD_LOCKED"

_held: list[int] = []


def lock_directory() -> None:
    """Lock the current directory until this process ends; ``make`` takes the same lock.

    Raises:
        UadError: another run has it.
    """
    if os.environ.get(LOCKED):
        return
    PATH.parent.mkdir(exist_ok=True)
    _held.append(os.open(PATH, os.O_RDWR | os.O_CREAT, 0o644))
    os.set_inheritable(_held[-1], True)  # by a program that replaces this one
    try:
        fcntl.flock(_held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UadError("Another run is at work in this directory.") from None
    except OSError:
        return  # a file system without locks
    os.environ[LOCKED] = "1"
