"""A cell's lineage as a picture: raw data on the left, the cell on the right.

Files of one stage, data set and fold are one box. An arrow is left out where others say as much:
of weights, AIR decision and store only ``store → AIR decision → weights`` is drawn.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from typing import Any

from uad.audit.lineage import NOT_KEPT, Lineage, Node
from uad.core.files import atomic_path
from uad.report.render import counted
from uad.report.style import BLUE, GREEN, GREY, ORANGE, style

#: Size of a box and of the gaps, in inches; characters that fit into a line of a box.
WIDTH, HEIGHT, GAP_X, GAP_Y, CHARACTERS = 1.22, 0.5, 0.26, 0.17, 21
HEAD, FOOT, EDGE = 0.5, 0.5, 0.15
DPI, PALETTE = 200, 64
#: More folds than this are drawn as the first two and one box for the others.
MOST_FOLDS, FIRST_FOLDS = 6, 2
#: Column and row, in the lane of their fold, of stages that have a box for each fold.
OF_FOLD = {
    "split": (4, 1),
    "air": (4, 0),
    "weights": (5, 0),
    "reconstructions": (6, 0),
    "maps": (7, 0),
    "threshold": (7, 1),
    "metrics": (8, 0),
}
#: Likewise of stages that have a box for each data set.
OF_DATASET = {
    "source": (0, 1),
    "raw": (1, 0),
    "registered": (2, 0),
    "brain mask": (2, 1),
    "participants": (2, 2),
    "store": (3, 0),
}
#: Columns of the others, below the data sets; the cell is in the last column.
BELOW = {"atlas": 1, "list": 3, "other": 0}
ROWS_OF_FOLD, ROWS_OF_DATASET, COLUMNS = 2, 3, 10
#: Colours of kinds of stages (Okabe and Ito), which are also named in every box.
KINDS = {
    "data": ("#56B4E9", ("source", "raw", "atlas", "participants", "list", "other")),
    "preprocessing": (BLUE, ("registered", "brain mask", "store")),
    "decision": ("#E69F00", ("split", "air", "threshold")),
    "model": ("#CC79A7", ("weights", "reconstructions", "maps")),
    "result": (GREEN, ("metrics", "cell", "published")),
}
COLOURS = {stage: colour for colour, stages in KINDS.values() for stage in stages}
TITLES = {"air": "AIR decision", "maps": "anomaly maps", "raw": "raw files"}
NOTE = (
    "Dashed: not kept, hash from its record. Arrows that follow from others are left out. "
    "Of several files the box gives the number."
)


@dataclass
class Box:
    """Files that are drawn as one.

    Attributes:
        lane: fold, data set or nothing.
        x: left edge in inches.
        inputs: the boxes that it was made from, by stage and lane.
    """

    stage: str
    lane: str
    nodes: list[Node] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    inputs: set[tuple[str, str]] = field(default_factory=set)

    @property
    def bad(self) -> bool:
        """Whether any of its files does not match."""
        return any(node.problems for node in self.nodes)

    @property
    def lines(self) -> list[str]:
        """Its title, then what is told about it."""
        title, number = TITLES.get(self.stage, self.stage), len(self.nodes)
        known = self.nodes[0].short if number == 1 else f"{number} files"
        if self.stage in OF_FOLD:
            known = f"{'' if ' ' in self.lane else 'fold '}{self.lane}: {known}"
        elif self.stage in ("source", "store"):
            title = f"{title} {self.lane}"
        lines = [line for line in (title, known, _told(self)) if line]
        return [t if len(t) <= CHARACTERS else f"{t[: CHARACTERS - 1]}…" for t in lines]


def draw(lineage: Lineage, path: str | os.PathLike[str]) -> None:
    """Draw a lineage as a PNG."""
    from PIL import Image

    with style(), atomic_path(path) as temporary:
        content = io.BytesIO()
        figure_of(lineage).savefig(content, format="png", dpi=DPI, metadata={"Software": None})
        # few colours: a third of the bytes, and nothing that an eye would miss
        Image.open(content).convert("RGB").quantize(PALETTE).save(temporary, optimize=True)


def figure_of(lineage: Lineage) -> Any:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure

    boxes, width, height = lay_out(lineage)
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    lanes = list(dict.fromkeys(lane for stage, lane in boxes if stage in OF_DATASET))
    for box in boxes.values():
        for other in sorted(box.inputs):
            _arrow(axes, boxes[other], box, lanes.index(other[1]) if other[1] in lanes else 0)
    for box in boxes.values():
        _draw_box(axes, box)
    _words(axes, lineage, boxes, height)
    return figure


# Where the boxes are -------------------------------------------------------------------------


def lay_out(lineage: Lineage) -> tuple[dict[tuple[str, str], Box], float, float]:
    """The boxes by stage and lane, and the picture's width and height in inches."""
    folds = [str(fold.fold) for fold in lineage.folds]
    few = folds if len(folds) <= MOST_FOLDS else folds[:FIRST_FOLDS]
    lanes = [*few, *([f"{len(folds) - len(few)} folds"] if len(few) < len(folds) else [])]
    of_node = {node.key: _box_of(node, few, lanes) for node in lineage.nodes}
    boxes: dict[tuple[str, str], Box] = {}
    for node in lineage.nodes:
        box = boxes.setdefault(of_node[node.key], Box(*of_node[node.key]))
        box.nodes.append(node)
        box.inputs |= {of_node[key] for key in node.inputs if key in of_node}
    _reduce(boxes)
    width, height = _place(boxes, lanes)
    return boxes, width, height


def _box_of(node: Node, few: list[str], lanes: list[str]) -> tuple[str, str]:
    stage = "registered" if node.stage == "transform" else node.stage
    if stage in OF_FOLD:
        fold = node.place.get("fold", "")
        return stage, fold if fold in few else lanes[-1]
    if stage in OF_DATASET and (dataset := node.place.get("dataset")):
        return stage, dataset
    return (stage if stage in ("cell", "published", *BELOW) else "other"), ""


def _reduce(boxes: dict[tuple[str, str], Box]) -> None:
    """Leave out the arrows that follow from others."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(boxes)
    graph.add_edges_from((key, to) for to, box in boxes.items() for key in box.inputs if key != to)
    if networkx.is_directed_acyclic_graph(graph):  # a circle: only broken records have one
        graph = networkx.transitive_reduction(graph)
    for key, box in boxes.items():
        box.inputs = set(graph.predecessors(key))


def _place(boxes: dict[tuple[str, str], Box], lanes: list[str]) -> tuple[float, float]:
    """Give every box its place; return the size of the picture."""
    datasets = list(dict.fromkeys(lane for stage, lane in boxes if stage in OF_DATASET))
    step = HEIGHT + GAP_Y
    left = len(datasets) * ROWS_OF_DATASET + any(stage in BELOW for stage, _ in boxes)
    right = len(lanes) * ROWS_OF_FOLD
    rows = max(left, right, 2)
    for (stage, lane), box in boxes.items():
        # whole rows, so that the gaps are in line and arrows can pass between the boxes
        if stage in OF_FOLD:
            column, row = OF_FOLD[stage]
            row += (rows - right) // 2 + lanes.index(lane) * ROWS_OF_FOLD
        elif stage in OF_DATASET:
            column, row = OF_DATASET[stage]
            row += (rows - left) // 2 + datasets.index(lane) * ROWS_OF_DATASET
        elif stage in BELOW:
            column, row = BELOW[stage], (rows - left) // 2 + len(datasets) * ROWS_OF_DATASET
        else:
            column, row = COLUMNS - 1, (rows - 1) / 2 + (stage == "published")
        box.x, box.y = EDGE + column * (WIDTH + GAP_X), HEAD + row * step + GAP_Y / 2
    return 2 * EDGE + COLUMNS * WIDTH + (COLUMNS - 1) * GAP_X, HEAD + rows * step + FOOT


# What they look like -------------------------------------------------------------------------


def _tint(colour: str) -> tuple[float, ...]:
    """A light shade that black text is read on."""
    from matplotlib.colors import to_rgb

    return tuple(1 - 0.25 * (1 - part) for part in to_rgb(colour))


def _draw_box(axes: Any, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour, gone = COLOURS[box.stage], all(node.status == NOT_KEPT for node in box.nodes)
    look = {"edgecolor": ORANGE if box.bad else colour, "linewidth": 2.2 if box.bad else 0.9}
    look |= {"facecolor": _tint(colour), "linestyle": (0, (2, 1.5)) if gone else "-"}
    corners = "round,pad=0,rounding_size=0.05"
    axes.add_patch(
        FancyBboxPatch((box.x, box.y), WIDTH, HEIGHT, boxstyle=corners, zorder=2, **look)
    )
    step = HEIGHT / (len(box.lines) + 0.4)
    for i, text in enumerate(box.lines):
        mark, weight = "× " if box.bad and i == 0 else "", "normal" if i else "bold"
        look = {"size": 6.4, "weight": weight, "family": "DejaVu Sans", "zorder": 3}
        place = box.x + WIDTH / 2, box.y + step * (i + 0.7)
        axes.text(*place, mark + text, ha="center", va="center", **look)


def _arrow(axes: Any, start: Box, end: Box, lane: int) -> None:
    """From one box to another; past other columns in the gap above the row that it ends in.

    There the arrows of each data set (``lane``) have a place of their own.
    """
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    columns = round((end.x - start.x) / (WIDTH + GAP_X))
    if columns == 0:
        down = end.y > start.y
        x = start.x + WIDTH / 2
        points = [(x, start.y + HEIGHT * down), (x, end.y + HEIGHT * (not down))]
    else:
        points = [(start.x + WIDTH, start.y + HEIGHT / 2), (end.x, end.y + HEIGHT / 2)]
    if columns > 1:
        (left, above), (right, below) = points
        apart = 0.22 * min(lane, 3)
        first, last = left + (0.2 + apart) * GAP_X, right - 0.5 * GAP_X
        gap = end.y - (0.2 + apart) * GAP_Y
        points[1:1] = [(first, above), (first, gap), (last, gap), (last, below)]
    look = {"arrowstyle": "-|>", "mutation_scale": 6, "linewidth": 0.8, "joinstyle": "round"}
    axes.add_patch(FancyArrowPatch(path=Path(points), color=GREY, zorder=1, **look))


def _words(axes: Any, lineage: Lineage, boxes: dict[tuple[str, str], Box], height: float) -> None:
    """Title, legend, and what the picture leaves out."""
    from matplotlib.patches import Rectangle

    cell = lineage.cell
    title = f"{cell.table}, {cell.label}, {cell.column}, {cell.metric}: {lineage.value}"
    title = title.replace("(phantom)", "(phantom data)")
    axes.text(EDGE, 0.16, title, size=10, weight="bold", va="center")
    state = "all as recorded" if lineage.checked else "not hashed"
    if lineage.problems:
        state = f"{counted(len(lineage.problems), 'problem')}, in the boxes with ×"
    files = f"{len(lineage.nodes)} files, {state}"
    axes.text(EDGE, 0.36, files, size=7.5, color=GREY, va="center")
    x = EDGE
    for kind, (colour, stages) in KINDS.items():
        if any(stage in stages for stage, _ in boxes):
            look = {"facecolor": _tint(colour), "edgecolor": colour}
            axes.add_patch(Rectangle((x, height - 0.36), 0.14, 0.12, **look))
            axes.text(x + 0.19, height - 0.3, kind, size=7, va="center")
            x += 0.4 + 0.062 * len(kind)
    axes.text(x + 0.1, height - 0.3, NOTE, size=7, color=GREY, va="center")


def _told(box: Box) -> str:
    """One line about a box."""
    facts = box.nodes[0].facts
    if box.stage in ("raw", "registered", "brain mask"):
        subjects = {n.place["subject"] for n in box.nodes if "subject" in n.place}
        return counted(len(subjects), "subject")
    if len(box.nodes) > 1 and box.stage != "atlas":
        return ""
    told = {
        "cell": lambda: f"{facts['mean']:.4f} %",
        "metrics": lambda: f"{facts['value']:.4f} %",
        "threshold": lambda: f"{facts['threshold']:.4f}",
        "air": lambda: "inverted" if facts["invert"] else "not inverted",
        "weights": lambda: f"epoch {facts['weights_of_epoch']} of {facts['epochs']}",
        "split": lambda: f"{facts['kind']}",
        "store": lambda: f"{facts['used']} of {facts['packed']} scans",
        "source": lambda: (
            f"phantom, seed {facts['seed']}" if facts["kind"] == "phantom" else "download"
        ),
        "participants": lambda: f"{int(facts['scans'])} scans",
        "atlas": lambda: str(facts["name"]),
        "published": lambda: "not from this run",
        "other": lambda: str(box.nodes[0].rule or ""),
    }.get(box.stage)
    try:
        return told() if told else ""
    except (KeyError, TypeError, ValueError):  # a damaged file, which the box's mark says
        return ""
