"""A comparison for people: a screen of text, and a page with everything."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from uad.audit.compare import ALIKE, STATES
from uad.report.html import render_page

#: Columns of a terminal, and how many cells it is shown.
WIDTH, MOST = 100, 20
PHANTOM = "phantom results: they show that the workflow runs, and cannot rank methods"
HEAD = ("table", "row", "column", "metric", "here", "there", "difference")


def summary(comparison: dict[str, Any]) -> str:
    """What fits a screen: the verdict, the first difference and why, stages, touched cells."""
    counts, cells = comparison["counts"], comparison["cells"]
    parted = {stage: found for stage, found in counts.items() if set(found) - ALIKE}
    stages = pd.DataFrame.from_dict(parted, orient="index").reindex(columns=STATES)
    stages = stages.dropna(axis="columns", how="all")
    rows = [[cut(text, 20) for text in cell_row(cell)] for cell in cells[:MOST]]
    text = render_page(
        "compare.txt",
        **comparison,
        warning=PHANTOM,
        count=count_sentence,
        wrapped=lambda text: textwrap.wrap(text, WIDTH - 9),
        stages=stages.to_string(na_rep="-", float_format="{:.0f}".format) if parted else "",
        alike=len(counts) - len(parted),
        rows=pd.DataFrame(rows, columns=HEAD).to_string(index=False).splitlines(),
        more=len(cells) - MOST,
    )
    return "\n".join(map(cut, text.rstrip().splitlines()))


def page(comparison: dict[str, Any]) -> str:
    """One self-contained HTML page, without scripts or outside resources."""
    by_stage: dict[str, list[Any]] = {stage: [] for stage in comparison["counts"]}
    for file in comparison["findings"]:
        if not file["about_run"]:
            by_stage[file["stage"]].append(file)
    return render_page(
        "compare.html",
        **comparison,
        warning=PHANTOM.capitalize(),
        count=count_sentence,
        rows=[(*cell_row(cell), "; ".join(cell["also"])) for cell in comparison["cells"]],
        head=(*HEAD, "beside it"),
        by_stage=by_stage,
        alike=ALIKE,
        ordered=lambda files: sorted(files, key=lambda f: (-STATES.index(f["state"]), f["key"])),
    )


def count_sentence(files: Iterable[dict[str, Any]]) -> str:
    """``203 artifacts: 200 identical, 3 different``."""
    counts = Counter(file["state"] for file in files)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counts.total()} artifacts: {parts or 'none'}"


def cell_row(cell: dict[str, Any]) -> tuple[str, ...]:
    """A cell as seven texts: table, row, column, metric, here, there, difference."""
    difference = "" if cell["difference"] is None else f"{cell['difference']:+.4f}"
    if cell["here"] == cell["there"]:
        difference = "beside it"  # the mean is the same, another column of the line is not
    values = ("none" if value is None else value for value in (cell["here"], cell["there"]))
    name = PurePosixPath(cell["table"]).stem
    return (name, cell["row"], cell["column"], cell["metric"], *values, difference)


def cut(text: str, width: int = WIDTH) -> str:
    """A text without its middle, where it is too long: both ends of a path tell something."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
