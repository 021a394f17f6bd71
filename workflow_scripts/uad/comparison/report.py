"""A comparison for people: a screen of text, a page with everything, and the same as JSON."""

from __future__ import annotations

import html
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from uad.comparison import ALIKE, STATES, Cell, Comparison, Finding, Origin
from uad.core.files import write_json, write_text

#: Version of the layout of the JSON.
FORMAT = 1
#: Columns of a terminal, and how many lines of a kind it is shown.
WIDTH, MOST, MOST_ORIGINS, MOST_FILES = 100, 20, 5, 3
PHANTOM = "phantom results: they show that the workflow runs, and cannot rank methods"


# ---- text ----


def summary(comparison: Comparison) -> str:
    """What fits a screen: the verdict, the first difference and why, stages, touched cells."""
    sections = [
        _head(comparison),
        _first_difference(comparison.origins),
        _stage_lines(comparison),
        _cell_lines(comparison.cells),
        [_cut(f"Note: {note}") for note in comparison.notes],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _head(comparison: Comparison) -> list[str]:
    lines = [
        f"Verdict: {comparison.verdict}",
        _cut(f"  here   {comparison.here}"),
        _cut(f"  there  {comparison.there}"),
        f"  {count_sentence(comparison.results)}",
    ]
    if about := comparison.about_the_run:
        lines.append(f"  {len(about)} files describe a run and not a result; not counted")
    if comparison.phantom:
        lines.append(f"  {PHANTOM}")
    return lines


def count_sentence(findings: Iterable[Finding]) -> str:
    """``203 artifacts: 200 identical, 3 different``."""
    counts = Counter(finding.state for finding in findings)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{sum(counts.values())} artifacts: {parts or 'none'}"


def _first_difference(origins: Sequence[Origin]) -> list[str]:
    if not origins:
        return []
    lines = [f"First difference: {origins[0].stage}"]
    for place, origin in enumerate(origins[:MOST_ORIGINS]):
        if place:
            lines.append(f"Also, by itself: {origin.stage}")
        lines += [_cut(f"  {key}") for key in origin.keys[:MOST_FILES]]
        if len(origin.keys) > MOST_FILES:
            lines.append(f"  ... and {len(origin.keys) - MOST_FILES} more")
        for reason in origin.reasons:
            lines += _wrapped(reason.text, "    why: ")
    if len(origins) > MOST_ORIGINS:
        lines.append(f"... and {len(origins) - MOST_ORIGINS} more places of their own")
    return lines


def _stage_lines(comparison: Comparison) -> list[str]:
    counts = comparison.counts()
    parted = {stage: found for stage, found in counts.items() if set(found) - set(ALIKE)}
    if not parted:
        return []
    shown = [state for state in STATES if any(found[state] for found in counts.values())]
    wide = max(len(stage) for stage in [*parted, "Stage"])
    lines = ["  ".join([f"{'Stage':{wide}}", *shown])]
    for stage, found in parted.items():
        cells = (f"{found[state] or '-':>{len(state)}}" for state in shown)
        lines.append("  ".join([f"{stage:{wide}}", *cells]))
    if rest := len(counts) - len(parted):
        lines.append(f"and {rest} stages in which nothing differs")
    return lines


def _cell_lines(cells: Sequence[Cell]) -> list[str]:
    if not cells:
        return []
    differing = sum(cell.differs for cell in cells)
    title = f"Touched cells: {differing} differ"
    if differing < len(cells):
        title += f", {len(cells) - differing} rest on files that do and are the same"
    head = ("table", "row", "column", "metric", "here", "there", "difference")
    rows = [head, *(cell_row(cell) for cell in cells[:MOST])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    while sum(widths) + len(head) + 1 > WIDTH:  # two before the first, one between
        widths[widths.index(max(widths))] -= 1
    lines = [title]
    for row in rows:
        texts = [
            f"{_cut(text, width):{'>' if i > 3 else '<'}{width}}"
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {' '.join(texts)}".rstrip())
    if len(cells) > MOST:
        lines.append(f"  ... and {len(cells) - MOST} more")
    return lines


def cell_row(cell: Cell) -> tuple[str, ...]:
    """A cell as seven texts: table, row, column, metric, here, there, difference."""
    name = PurePosixPath(cell.table).stem
    difference = "" if cell.difference is None else f"{cell.difference:+.4f}"
    if not cell.differs:
        difference = "same"
    elif cell.here == cell.there:
        difference = "beside it"  # the mean is the same, another column of the line is not
    values = ("none" if value is None else value for value in (cell.here, cell.there))
    return (name, cell.row, cell.column, cell.metric, *values, difference)


def _wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=True,
    )


def _cut(text: str, width: int = WIDTH) -> str:
    """A text without its middle, where it is too long: both ends of a path tell something."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:] if tail else ''}"


# ---- JSON ----


def write_json_report(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Write everything; ``findings`` holds every file, those that describe a run marked."""
    write_json(path, content_of(comparison))


def content_of(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it."""
    return {
        "format": FORMAT,
        "verdict": comparison.verdict,
        "here": comparison.here,
        "there": comparison.there,
        "phantom": comparison.phantom,
        "counts": {stage: dict(found) for stage, found in comparison.counts().items()},
        "origins": [asdict(origin) for origin in comparison.origins],
        "cells": [
            {**asdict(cell), "difference": cell.difference, "differs": cell.differs}
            for cell in comparison.cells
        ],
        "setup": comparison.setup,
        "notes": list(comparison.notes),
        "findings": [asdict(finding) for finding in comparison.findings],
    }


# ---- page ----

_STYLE = """\
:root { color-scheme: light; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.25rem; background: #fff; color: #1c1e21;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
.verdict { padding: .5rem .8rem; border-left: 4px solid #2e7d32; background: #eef6ee; }
.verdict.different { border-color: #b3261e; background: #fbeceb; }
p.warning { padding: .5rem .8rem; background: #fff4e0; border-left: 4px solid #c77700; }
div.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #eceef1; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.path, code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .92em;
  overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .25rem 0; }
small { color: #5d646d; }
"""


def write_html(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Write one self-contained page, without scripts or outside resources."""
    write_text(path, _page(comparison))


def _page(comparison: Comparison) -> str:
    escape = html.escape
    title = f"Two runs compared: {comparison.verdict}"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    if comparison.phantom:
        lines.append(f'<p class="warning">{escape(PHANTOM.capitalize())}.</p>')
    kind = "verdict" if comparison.same else "verdict different"
    lines += [
        f'<p class="{kind}">{escape(count_sentence(comparison.results))}.<br>',
        f"Here: <code>{escape(comparison.here)}</code><br>",
        f"There: <code>{escape(comparison.there)}</code></p>",
        *(f"<p>Note: {escape(note)}.</p>" for note in comparison.notes),
        *_origin_section(comparison.origins),
        *_cell_section(comparison.cells),
        *_setup_section(comparison.setup),
        *_file_section("Artifacts by stage", comparison.results),
        *_about_section(comparison.about_the_run),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _origin_section(origins: Sequence[Origin]) -> list[str]:
    if not origins:
        return []
    lines = ["<h2>Where the runs part</h2>"]
    lines.append("<p>Files that differ although all that they were made from does not.</p>")
    for origin in origins:
        reasons = "".join(f"<li>{html.escape(reason.text)}</li>" for reason in origin.reasons)
        files = "".join(f"<li><code>{html.escape(key)}</code></li>" for key in origin.keys)
        lines += [
            f"<h3>{html.escape(origin.stage)}</h3>",
            f"<ul>{files}</ul>",
            f"<p>Why, as far as the records know (here → there):</p><ul>{reasons}</ul>",
        ]
    return lines


def _cell_section(cells: Sequence[Cell]) -> list[str]:
    if not cells:
        return []
    rows = ((*cell_row(cell), "; ".join(cell.also)) for cell in cells)
    head = ("table", "row", "column", "metric", "here", "there", "difference", "beside it")
    return ["<h2>Touched cells</h2>", *_table(head, rows, numbers={4, 5, 6})]


def _setup_section(setup: dict[str, list[str]]) -> list[str]:
    if not setup:
        return []
    rows = ((where, text) for where, texts in setup.items() for text in texts)
    lines = ["<h2>What the runs were asked for and made with</h2>"]
    lines.append("<p>Whether it changed a result or not; here → there.</p>")
    return lines + _table(("where", "difference"), rows)


def _file_section(title: str, findings: Sequence[Finding]) -> list[str]:
    lines = [f"<h2>{title}</h2>"]
    by_stage: dict[str, list[Finding]] = {}
    for finding in findings:
        by_stage.setdefault(finding.stage, []).append(finding)
    for stage, found in by_stage.items():
        is_open = " open" if any(finding.differs for finding in found) else ""
        sentence = f"{html.escape(stage)} <small>{html.escape(count_sentence(found))}</small>"
        lines += [f"<details{is_open}><summary>{sentence}</summary>", *_files(found), "</details>"]
    return lines


def _about_section(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    sentence = f"<small>{html.escape(count_sentence(findings))}</small>"
    return [
        "<h2>About the run</h2>",
        "<p>Times, logs and places of a run: no part of the verdict.</p>",
        f"<details><summary>{sentence}</summary>",
        *_files(findings),
        "</details>",
    ]


def _files(findings: Iterable[Finding]) -> list[str]:
    # what differs first
    ordered = sorted(findings, key=lambda finding: (-STATES.index(finding.state), finding.key))
    rows = (
        (
            finding.key,
            finding.state + (" (by the records)" if finding.by_record else ""),
            *((digest or "")[:12] for digest in (finding.here, finding.there)),
            finding.detail,
        )
        for finding in ordered
    )
    return _table(("file", "state", "SHA-256 here", "there", "difference"), rows, paths={0, 2, 3})


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Iterable[int] = (),
    paths: Iterable[int] = (),
) -> list[str]:
    kinds = {**dict.fromkeys(numbers, ' class="number"'), **dict.fromkeys(paths, ' class="path"')}
    cells = "".join(f"<th{kinds.get(i, '')}>{html.escape(t)}</th>" for i, t in enumerate(head))
    lines = ['<div class="scroll"><table>', f"<thead><tr>{cells}</tr></thead><tbody>"]
    for row in rows:
        cells = "".join(f"<td{kinds.get(i, '')}>{html.escape(t)}</td>" for i, t in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return [*lines, "</tbody></table></div>"]
