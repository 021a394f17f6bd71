"""A comparison for people: a screen of text, and a page with everything."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

import pandas as pd

from uad.audit.compare import ALIKE, STATES, ComparedCell, ComparedFile, Comparison
from uad.report.html import render_page

#: Columns of a terminal, and how many lines of a kind it is shown.
WIDTH, MOST, MOST_ORIGINS, MOST_FILES = 100, 20, 5, 3
PHANTOM = "phantom results: they show that the workflow runs, and cannot rank methods"
HEAD = ("table", "row", "column", "metric", "here", "there", "difference")


def summary(comparison: Comparison) -> str:
    """What fits a screen: the verdict, the first difference and why, stages, touched cells."""
    head = [
        f"Verdict: {comparison.verdict}",
        _cut(f"  here   {comparison.here}"),
        _cut(f"  there  {comparison.there}"),
        f"  {count_sentence(comparison.results)}",
    ]
    if about := comparison.about_the_run:
        head.append(f"  {len(about)} files describe a run and not a result; not counted")
    if comparison.phantom:
        head.append(f"  {PHANTOM}")
    notes = [_cut(f"Note: {note}") for note in comparison.notes]
    sections = [head, _origins(comparison), _stages(comparison), _cells(comparison), notes]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def page(comparison: Comparison) -> str:
    """One self-contained HTML page, without scripts or outside resources."""
    by_stage: dict[str, list[ComparedFile]] = {}
    for file in comparison.results:
        by_stage.setdefault(file.stage, []).append(file)
    return render_page(
        "compare.html",
        comparison=comparison,
        phantom=PHANTOM.capitalize(),
        count=count_sentence,
        cells=[(*cell_row(cell), "; ".join(cell.also)) for cell in comparison.cells],
        head=(*HEAD, "beside it"),
        by_stage=by_stage,
        ordered=lambda files: sorted(files, key=lambda f: (-STATES.index(f.state), f.key)),
    )


def count_sentence(files: Iterable[ComparedFile]) -> str:
    """``203 artifacts: 200 identical, 3 different``."""
    counts = Counter(file.state for file in files)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counts.total()} artifacts: {parts or 'none'}"


def _origins(comparison: Comparison) -> list[str]:
    """Where the runs part, and why."""
    lines, origins = [], comparison.origins
    for place, origin in enumerate(origins[:MOST_ORIGINS]):
        lines.append(f"{'Also, by itself' if place else 'First difference'}: {origin.stage}")
        lines += [_cut(f"  {key}") for key in origin.keys[:MOST_FILES]]
        if len(origin.keys) > MOST_FILES:
            lines.append(f"  ... and {len(origin.keys) - MOST_FILES} more")
        for reason in origin.reasons:
            indent = {"initial_indent": "    why: ", "subsequent_indent": " " * 9}
            lines += textwrap.wrap(reason, WIDTH, **indent)
    if len(origins) > MOST_ORIGINS:
        lines.append(f"... and {len(origins) - MOST_ORIGINS} more places of their own")
    return lines


def _stages(comparison: Comparison) -> list[str]:
    """Files by state, of the stages in which any differs."""
    counts = comparison.counts()
    parted = {stage: found for stage, found in counts.items() if set(found) - set(ALIKE)}
    if not parted:
        return []
    table = pd.DataFrame.from_dict(parted, orient="index").reindex(columns=STATES)
    lines = table.dropna(axis="columns", how="all").to_string(
        na_rep="-", float_format="{:.0f}".format
    ).splitlines()  # fmt: skip
    if rest := len(counts) - len(parted):
        lines.append(f"and {rest} stages in which nothing differs")
    return lines


def _cells(comparison: Comparison) -> list[str]:
    """The cells that are touched, as a table."""
    cells = comparison.cells
    if not cells:
        return []
    differing = sum(cell.differs for cell in cells)
    title = f"Touched cells: {differing} differ"
    if differing < len(cells):
        title += f", {len(cells) - differing} rest on files that do and are the same"
    rows = [[_cut(text, 20) for text in cell_row(cell)] for cell in cells[:MOST]]
    table = pd.DataFrame(rows, columns=HEAD).to_string(index=False)
    lines = [title, *(_cut(f"  {line}") for line in table.splitlines())]
    if len(cells) > MOST:
        lines.append(f"  ... and {len(cells) - MOST} more")
    return lines


def cell_row(cell: ComparedCell) -> tuple[str, ...]:
    """A cell as seven texts: table, row, column, metric, here, there, difference."""
    difference = "" if cell.difference is None else f"{cell.difference:+.4f}"
    if not cell.differs:
        difference = "same"
    elif cell.here == cell.there:
        difference = "beside it"  # the mean is the same, another column of the line is not
    values = ("none" if value is None else value for value in (cell.here, cell.there))
    name = PurePosixPath(cell.table).stem
    return (name, cell.row, cell.column, cell.metric, *values, difference)


def _cut(text: str, width: int = WIDTH) -> str:
    """A text without its middle, where it is too long: both ends of a path tell something."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
