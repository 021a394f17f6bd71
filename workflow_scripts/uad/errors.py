"""Errors that a user can act on.

Scripts print the message of a :class:`UadError` without a traceback; any other
exception is a bug of ours and keeps its traceback.
"""


class UadError(Exception):
    """Base class: the message names what is wrong, where, and what to do."""


class DataError(UadError):
    """An input file or data set is not usable as it is."""


class ConfigError(UadError):
    """The configuration is not valid."""
