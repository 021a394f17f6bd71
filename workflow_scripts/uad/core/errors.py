"""Errors that a user can act on.

Scripts print the message of a :class:`UadError` without a traceback; any other
exception is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UadError(Exception):
    """Base class: the message names what is wrong, where, and what to do."""


class DataError(UadError):
    """An input file or data set is not usable as it is."""


class ConfigError(UadError):
    """The configuration is not valid."""


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
