"""A cell's lineage as a picture: raw data on the left, the cell on the right.

Files of one stage, data set and fold are one box. An arrow is left out where others say as much:
of weights, AIR decision and store only ``store → AIR decision → weights`` is drawn.
"""

from __future__ import annotations

import io
import os
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uad.core.files import atomic_path
from uad.lineage import NOT_KEPT
from uad.report.style import BLUE, GREEN, GREY, ORANGE, style

if TYPE_CHECKING:
    from uad.lineage import Lineage, Node

PathLike = str | os.PathLike[str]

#: Size of a box and of the gaps, in inches; characters that fit into a line of a box.
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _CHARACTERS = 1.22, 0.5, 0.26, 0.17, 21
_HEAD, _FOOT, _EDGE = 0.5, 0.5, 0.15
_DPI, _PALETTE = 200, 64
#: More folds than this are drawn as the first two and one box for the others.
_MOST_FOLDS, _FIRST_FOLDS = 6, 2
#: Stages that have a box for each fold, with column and row in the lane of their fold.
_OF_FOLD = {
    "split": (4, 1),
    "air": (4, 0),
    "weights": (5, 0),
    "reconstructions": (6, 0),
    "maps": (7, 0),
    "threshold": (7, 1),
    "metrics": (8, 0),
}
#: Stages that have a box for each data set, likewise.
_OF_DATASET = {
    "source": (0, 1),
    "raw": (1, 0),
    "registered": (2, 0),
    "brain mask": (2, 1),
    "participants": (2, 2),
    "store": (3, 0),
}
#: The others, below the data sets.
_BELOW = {"atlas": (1, 0), "list": (3, 0), "other": (0, 0)}
_ROWS_OF_FOLD, _ROWS_OF_DATASET = 2, 3
_COLUMNS = 10
#: Colours of kinds of stages (Okabe and Ito), which are also named in every box.
_KINDS = {
    "data": ("#56B4E9", ("source", "raw", "atlas", "participants", "list", "other")),
    "preprocessing": (BLUE, ("registered", "brain mask", "store")),
    "decision": ("#E69F00", ("split", "air", "threshold")),
    "model": ("#CC79A7", ("weights", "reconstructions", "maps")),
    "result": (GREEN, ("metrics", "cell", "published")),
}
_COLOUR = {stage: colour for colour, stages in _KINDS.values() for stage in stages}
_TITLES = {"air": "AIR decision", "maps": "anomaly maps", "raw": "raw files"}


@dataclass
class Box:
    """Files that are drawn as one.

    Attributes:
        stage: of the files.
        lane: fold, data set or nothing.
        nodes: the files.
        x: left edge in inches.
        y: upper edge in inches, from the top of the picture.
        inputs: the boxes that it was made from.
    """

    stage: str
    lane: str
    nodes: list[Node]
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
        title = _TITLES.get(self.stage, self.stage)
        known = _hash(self.nodes)
        if self.stage in _OF_FOLD:
            known = f"{self.lane}: {known}" if " " in self.lane else f"fold {self.lane}: {known}"
        elif self.stage in ("source", "store"):
            title = f"{title} {self.lane}"
        return [_fitted(line) for line in (title, known, _told(self)) if line]


def draw(lineage: Lineage, path: PathLike) -> None:
    """Draw a lineage.

    Args:
        lineage: from :func:`uad.lineage.trace`.
        path: of the picture, a PNG.
    """
    from PIL import Image

    with style(), atomic_path(path) as temporary:
        content = io.BytesIO()
        figure_of(lineage).savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
        # few colours: a third of the bytes, and nothing that an eye would miss
        Image.open(content).convert("RGB").quantize(_PALETTE).save(temporary, optimize=True)


def figure_of(lineage: Lineage) -> Any:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    boxes, width, height = lay_out(lineage)
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    lanes = list(dict.fromkeys(lane for stage, lane in boxes if stage in _OF_DATASET))
    for box in boxes.values():
        for other in sorted(box.inputs):
            _arrow(axes, boxes[other], box, lanes.index(other[1]) if other[1] in lanes else 0)
    for box in boxes.values():
        colour = _COLOUR[box.stage]
        axes.add_patch(
            FancyBboxPatch(
                (box.x, box.y),
                _WIDTH,
                _HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor=_tint(colour),
                edgecolor=ORANGE if box.bad else colour,
                linewidth=2.2 if box.bad else 0.9,
                linestyle=(0, (2, 1.5)) if _gone(box) else "-",
                zorder=2,
            )
        )
        lines = box.lines
        step = _HEIGHT / (len(lines) + 0.4)
        for i, text in enumerate(lines):
            mark = "× " if box.bad and i == 0 else ""
            axes.text(
                box.x + _WIDTH / 2,
                box.y + step * (i + 0.7),
                mark + text,
                ha="center",
                va="center",
                size=6.4,
                weight="bold" if i == 0 else "normal",
                family="DejaVu Sans",
                zorder=3,
            )
    _words(axes, lineage, boxes, width, height)
    return figure


# Where the boxes are -------------------------------------------------------------------------


def lay_out(lineage: Lineage) -> tuple[dict[tuple[str, str], Box], float, float]:
    """The boxes by stage and lane, and the picture's width and height in inches."""
    folds = [str(fold.fold) for fold in lineage.folds]
    few = folds if len(folds) <= _MOST_FOLDS else folds[:_FIRST_FOLDS]
    lanes = [*few, *([f"{len(folds) - len(few)} folds"] if len(few) < len(folds) else [])]
    boxes: dict[tuple[str, str], Box] = {}
    of_node: dict[str, tuple[str, str]] = {}
    for node in lineage.nodes:
        key = _key(node, few, lanes)
        boxes.setdefault(key, Box(*key, [])).nodes.append(node)
        of_node[node.key] = key
    for node in lineage.nodes:
        key = of_node[node.key]
        boxes[key].inputs |= {of_node[k] for k in node.inputs if of_node.get(k, key) != key}
    _reduce(boxes)
    return boxes, *_place(boxes, lanes)


def _key(node: Node, few: list[str], lanes: list[str]) -> tuple[str, str]:
    stage = "registered" if node.stage == "transform" else node.stage
    if stage in _OF_FOLD:
        fold = node.place.get("fold", "")
        return stage, fold if fold in few else lanes[-1]
    if stage in _OF_DATASET and (dataset := node.place.get("dataset")):
        return stage, dataset
    if stage in ("cell", "published"):
        return stage, ""
    return (stage, "") if stage in _BELOW else ("other", "")


def _reduce(boxes: dict[tuple[str, str], Box]) -> None:
    """Leave out the arrows that follow from others."""
    above: dict[tuple[str, str], set[tuple[str, str]]] = {}

    def ancestors(key: tuple[str, str]) -> set[tuple[str, str]]:
        if key not in above:
            above[key] = set()  # also ends a circle, which only broken records have
            above[key] = boxes[key].inputs.union(*(ancestors(k) for k in boxes[key].inputs))
        return above[key]

    for key in boxes:
        ancestors(key)
    for box in boxes.values():
        box.inputs -= set().union(*(above[key] for key in box.inputs))


def _place(boxes: dict[tuple[str, str], Box], lanes: list[str]) -> tuple[float, float]:
    """Give every box its place; return the size of the picture."""
    datasets = list(dict.fromkeys(lane for stage, lane in boxes if stage in _OF_DATASET))
    below = [key for key in boxes if key[0] in _BELOW]
    step = _HEIGHT + _GAP_Y
    left = len(datasets) * _ROWS_OF_DATASET + bool(below)
    right = len(lanes) * _ROWS_OF_FOLD
    rows = max(left, right, 2)
    # whole rows, so that the gaps are in line and arrows can pass between the boxes
    top_left, top_right = (_HEAD + (rows - part) // 2 * step for part in (left, right))

    def at(key: tuple[str, str], column: int, y: float) -> None:
        boxes[key].x, boxes[key].y = _EDGE + column * (_WIDTH + _GAP_X), y + _GAP_Y / 2

    for key in boxes:
        stage, lane = key
        if stage in _OF_FOLD:
            column, row = _OF_FOLD[stage]
            at(key, column, top_right + (lanes.index(lane) * _ROWS_OF_FOLD + row) * step)
        elif stage in _OF_DATASET:
            column, row = _OF_DATASET[stage]
            at(key, column, top_left + (datasets.index(lane) * _ROWS_OF_DATASET + row) * step)
        elif stage in _BELOW:
            at(key, _BELOW[stage][0], top_left + len(datasets) * _ROWS_OF_DATASET * step)
    middle = _HEAD + (rows - 1) / 2 * step
    at(("cell", ""), _COLUMNS - 1, middle)
    if ("published", "") in boxes:
        at(("published", ""), _COLUMNS - 1, middle + step)
    width = 2 * _EDGE + _COLUMNS * _WIDTH + (_COLUMNS - 1) * _GAP_X
    return width, _HEAD + rows * step + _FOOT


# What they look like -------------------------------------------------------------------------


def _tint(colour: str) -> tuple[float, ...]:
    """A light shade that black text is read on."""
    from matplotlib.colors import to_rgb

    return tuple(1 - 0.25 * (1 - part) for part in to_rgb(colour))


def _gone(box: Box) -> bool:
    return all(node.status == NOT_KEPT for node in box.nodes)


def _arrow(axes: Any, start: Box, end: Box, lane: int) -> None:
    """From one box to another; past other columns in the gap above the row that it ends in.

    There the arrows of each data set (``lane``) have a place of their own.
    """
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    columns = round((end.x - start.x) / (_WIDTH + _GAP_X))
    if columns == 0:
        down = end.y > start.y
        x = start.x + _WIDTH / 2
        points = [(x, start.y + _HEIGHT * down), (x, end.y + _HEIGHT * (not down))]
    else:
        points = [(start.x + _WIDTH, start.y + _HEIGHT / 2), (end.x, end.y + _HEIGHT / 2)]
    if columns > 1:
        (left, above), (right, below) = points
        apart = 0.22 * min(lane, 3)
        first, last = left + (0.2 + apart) * _GAP_X, right - 0.5 * _GAP_X
        gap = end.y - (0.2 + apart) * _GAP_Y
        points[1:1] = [(first, above), (first, gap), (last, gap), (last, below)]
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>",
            mutation_scale=6,
            linewidth=0.8,
            color=GREY,
            joinstyle="round",
            zorder=1,
        )
    )


def _words(
    axes: Any, lineage: Lineage, boxes: dict[tuple[str, str], Box], width: float, height: float
) -> None:
    """Title, legend, and what the picture leaves out."""
    from matplotlib.patches import Rectangle

    title = f"{lineage.table}, {lineage.label}, {lineage.column}, {lineage.metric}: {lineage.value}"
    title = title.replace("(phantom)", "(phantom data)")
    axes.text(_EDGE, 0.16, title, size=10, weight="bold", va="center")
    found = sum(len(box.nodes) for box in boxes.values())
    state = "not hashed" if not lineage.checked else "all as recorded"
    if lineage.problems:
        count = len(lineage.problems)
        state = f"{count} problem{'' if count == 1 else 's'}, in the boxes with ×"
    axes.text(_EDGE, 0.36, f"{found} files, {state}", size=7.5, color=GREY, va="center")
    x = _EDGE
    for kind, (colour, stages) in _KINDS.items():
        if not any(stage in stages for stage, _ in boxes):
            continue
        place = (x, height - 0.36)
        axes.add_patch(Rectangle(place, 0.14, 0.12, facecolor=_tint(colour), edgecolor=colour))
        axes.text(x + 0.19, height - 0.3, kind, size=7, va="center")
        x += 0.4 + 0.062 * len(kind)
    note = (
        "Dashed: not kept, hash from its record. Arrows that follow from others are left out. "
        "Of several files the box gives the number."
    )
    axes.text(x + 0.1, height - 0.3, textwrap.shorten(note, 200), size=7, color=GREY, va="center")


def _hash(nodes: list[Node]) -> str:
    return nodes[0].short if len(nodes) == 1 else f"{len(nodes)} files"


def _told(box: Box) -> str:
    """One line about a box."""
    node, facts = box.nodes[0], box.nodes[0].facts
    if len(box.nodes) > 1 and box.stage not in ("raw", "registered", "brain mask", "atlas"):
        return ""
    if box.stage in ("raw", "registered", "brain mask"):
        subjects = {n.place["subject"] for n in box.nodes if "subject" in n.place}
        return f"{len(subjects)} subject{'' if len(subjects) == 1 else 's'}"
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
        "other": lambda: str(node.rule or ""),
    }.get(box.stage)
    try:
        return told() if told else ""
    except (KeyError, TypeError, ValueError):  # a damaged file, which the box's mark says
        return ""


def _fitted(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
