"""Methods by family: one file each, found by its name.

``uad/methods/diffusion.py`` is the family ``diffusion``; a new file is a new family. Method files
import torch inside functions, so that validating a configuration stays cheap.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from uad.methods.base import Method


@cache
def families() -> tuple[str, ...]:
    """Names of all families: the files of this package except ``base``."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def load(family: str) -> type[Method]:
    """The class of a family.

    Raises:
        KeyError: there is no such file in ``uad/methods/``.
    """
    if family not in families():
        raise KeyError(family)
    return importlib.import_module(f"{__name__}.{family}").METHOD
