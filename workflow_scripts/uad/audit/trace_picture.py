"""A cell's lineage as a picture: raw data on the left, the cell on the right.

Files of one stage, data set and fold are one box. An arrow that follows from others is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import networkx

from uad.audit.lineage import NOT_KEPT, Lineage, Node
from uad.core.files import atomic_path
from uad.report.render import counted
from uad.report.style import BLUE, GREEN, GREY, ORANGE, style

#: Stages by column, with the colour of their boxes (Okabe and Ito).
COLUMNS = (
    ("#56B4E9", ("source",)),
    ("#56B4E9", ("raw", "atlas", "list", "other")),
    (BLUE, ("registered", "brain mask", "participants")),
    (BLUE, ("store",)),
    ("#E69F00", ("split", "air")),
    ("#CC79A7", ("weights",)),
    ("#CC79A7", ("reconstructions",)),
    ("#CC79A7", ("maps", "threshold")),
    (GREEN, ("metrics",)),
    (GREEN, ("cell", "published")),
)
COLUMN_OF = {stage: i for i, (_, stages) in enumerate(COLUMNS) for stage in stages}
#: The fact that is told about a box of one file.
TOLD = {"cell": "mean", "metrics": "value", "weights": "weights_of_epoch", "split": "kind",
        "threshold": "threshold", "air": "invert", "atlas": "name", "store": "used"}  # fmt: skip
#: Distance of boxes in inches, characters of a line, and how many folds have boxes of their own.
STEP_X, STEP_Y, CHARACTERS, FOLDS = 1.55, 0.66, 24, 4
NOTE = "Dashed: not kept, hash from its record. × and a thick border: does not match."


def draw(lineage: Lineage, path: str | os.PathLike[str]) -> None:
    """Draw a lineage as a PNG."""
    with style(), atomic_path(path) as temporary:
        figure_of(lineage).savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def graph_of(lineage: Lineage) -> networkx.DiGraph:
    """The boxes, by stage and lane; their ``files`` are nodes of the lineage."""
    folds = [str(fold.fold) for fold in lineage.folds][:FOLDS]

    def box_of(node: Node) -> tuple[str, str]:
        stage = "registered" if node.stage == "transform" else node.stage
        fold = node.place.get("fold")
        if fold is not None:
            return stage, f"fold {fold}" if fold in folds else "other folds"
        return stage, "" if stage in ("cell", "atlas") else node.place.get("dataset", "")

    graph, boxes = networkx.DiGraph(), {node.key: box_of(node) for node in lineage.nodes}
    graph.add_nodes_from(boxes.values())
    for node in lineage.nodes:
        graph.nodes[boxes[node.key]].setdefault("files", []).append(node)
        above = (boxes[key] for key in node.inputs if key in boxes)
        graph.add_edges_from((box, boxes[node.key]) for box in above if box != boxes[node.key])
    if networkx.is_directed_acyclic_graph(graph):  # a circle: only broken records have one
        reduced = networkx.transitive_reduction(graph)
        graph.remove_edges_from(set(graph.edges) - set(reduced.edges))
    return graph


def figure_of(lineage: Lineage) -> Any:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure

    graph, places = graph_of(lineage), {}
    rows = Counter(COLUMN_OF[stage] for stage, _ in graph)
    seen: Counter[int] = Counter()
    for stage, lane in sorted(graph, key=lambda box: (box[1], COLUMNS[COLUMN_OF[box[0]]][1])):
        column = COLUMN_OF[stage]
        places[stage, lane] = STEP_X * column, STEP_Y * (rows[column] / 2 - seen[column] - 0.5)
        seen[column] += 1
    high = STEP_Y * max(rows.values())
    figure = Figure(figsize=(STEP_X * len(COLUMNS), high + 0.9), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(
        xlim=(-STEP_X / 2, STEP_X * (len(COLUMNS) - 0.5)), ylim=(-high / 2 - 0.4, high / 2 + 0.5)
    )
    for start, end in graph.edges:
        ends = {"shrinkA": 14, "shrinkB": 16} if COLUMN_OF[start[0]] == COLUMN_OF[end[0]] else {}
        look = {"arrowstyle": "-|>", "color": GREY, "linewidth": 0.8}
        look |= ends or {"shrinkA": 24, "shrinkB": 40}
        axes.annotate("", places[end], places[start], arrowprops=look, zorder=1)
    for box, files in graph.nodes(data="files"):
        bad = any(node.problems for node in files)
        gone = all(node.status == NOT_KEPT for node in files)
        look = {"facecolor": "white", "boxstyle": "round", "linewidth": 2.2 if bad else 0.9}
        look |= {"edgecolor": ORANGE if bad else COLUMNS[COLUMN_OF[box[0]]][0]}
        look |= {"linestyle": "--" if gone else "-"}
        text = ("× " if bad else "") + _label(*box, files)
        axes.text(*places[box], text, size=6.5, ha="center", va="center", bbox=look, zorder=2)
    cell = lineage.cell
    title = f"{cell.table}, {cell.label}, {cell.column}, {cell.metric}: {lineage.value}"
    state = "all as recorded" if lineage.checked else "not hashed"
    if lineage.problems:
        state = f"{counted(len(lineage.problems), 'problem')}, in the boxes with ×"
    left, top = 0.1 - STEP_X / 2, high / 2 + 0.3
    axes.text(left, top, title.replace("(phantom)", "(phantom data)"), size=10, weight="bold")
    axes.text(left, top - 0.2, f"{len(lineage.nodes)} files, {state}", size=7.5, color=GREY)
    axes.text(left, -high / 2 - 0.25, NOTE, size=7, color=GREY)
    return figure


def _label(stage: str, lane: str, files: list[Node]) -> str:
    """What it is, whose, and its hash or the number of its files, with one fact."""
    known = files[0].short if len(files) == 1 else f"{len(files)} files"
    name = TOLD.get(stage, "")
    value = files[0].facts.get(name)
    fact = f"{value:.4f}" if isinstance(value, float) else str(value)
    fact = "" if value is None else f"{name.replace('_', ' ')} {fact}"
    lines = [f"{stage}, {lane}" if lane else stage, known, fact]
    return "\n".join(t if len(t) <= CHARACTERS else f"{t[: CHARACTERS - 1]}…" for t in lines if t)
