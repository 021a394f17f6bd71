"""Errors that a user can act on.

Scripts print the message of a :class:`UadError` without a traceback; any other
exception is a bug of ours and keeps its traceback.
"""

import difflib
import re
from collections.abc import Iterable

#: How torch, cuBLAS and cuDNN say that a device has no memory left.
NO_MEMORY = re.compile(
    "CUDA out of memory|CUDA error: out of memory|_ALLOC_FAILED|_ALLOCATION_FAILED"
)


class UadError(Exception):
    """Base class: the message names what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """The message, in which an error of the system says its reason but not the path again."""
        text = super().__str__()
        for whole, reason, path in re.findall(r"(\[Errno \d+\] ([^:\n]+): '([^'\n]+)')", text):
            if path in text.partition(whole)[0]:
                text = text.replace(whole, reason)
        return text


class DataError(UadError):
    """An input file or data set is not usable as it is."""


class ConfigError(UadError):
    """The configuration is not valid."""


def cause(error: Exception, path: object) -> str:
    """What an error says of a file, in one line, without the path that a message names already."""
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    text = re.sub(rf"(:| of)? *['\"]?{re.escape(str(path))}['\"]?", "", text)
    return text.strip()[:120] or type(error).__name__


def first_of(items: Iterable[str], most: int = 5) -> str:
    """The first few of some items for a message, with an ellipsis where there are more."""
    items = list(items)
    return ", ".join(items[:most]) + (" ..." if len(items) > most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint in brackets for a misspelt name of very many; empty where none is like it."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def near(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, and all of them."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{match[0]}'?" if match else ";"
    return f"{hint} known: {', '.join(known) or 'none'}"


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """A sentence for an unknown name in a call of the library."""
    match = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    hint = f" Did you mean {match[0]!r}?" if match else ""
    return f"unknown {kind} {name!r}.{hint} Known are: {', '.join(sorted(known))}."


def out_of_memory(error: BaseException, sharing: int = 1) -> str | None:
    """What to do about an error that a GPU has no memory left; None: it is another error.

    ``sharing``: how many jobs may be on the GPU at once.
    """
    text = str(error)
    if not NO_MEMORY.search(text):
        return None
    shared = (
        f"If others of your jobs are on it (run.jobs_per_gpu: {sharing}), lower that, or set "
        "share_gpu: false for this model; that changes no result. "
    )
    return (
        f"The GPU has no memory left ({text.splitlines()[0]}). {shared if sharing > 1 else ''}"
        "nvidia-smi tells what else is on it. A smaller train.inference_batch needs less for a "
        "reconstruction, a smaller train.batch_size for a training; both may change results."
    )
