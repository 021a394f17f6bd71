"""Imports of large packages without the parts that are not used here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType


def import_lightly(
    name: str, *, absent: Iterable[str] = (), empty: Iterable[str] = ()
) -> ModuleType:
    """Import a module as if other packages were not installed, or parts of its own were empty.

    Importing MONAI or ANTsPy takes longer than much of the work that they are imported for. What
    is hidden is so during the import alone; what is loaded already is left as it is. ``absent``
    are packages that it takes as optional, ``empty`` parts of its own that it imports for their
    names alone.
    """
    if name in sys.modules:
        return sys.modules[name]
    hidden: dict[str, ModuleType | None] = dict.fromkeys(absent)
    hidden |= {part: ModuleType(part) for part in empty}
    hidden = {key: value for key, value in hidden.items() if key not in sys.modules}
    sys.modules.update(hidden)
    try:
        return importlib.import_module(name)
    finally:
        for key in hidden:
            sys.modules.pop(key, None)
