"""A picture of the workflow by stage: what each consists of, how many jobs, what flows where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx

from uad.core.errors import DataError
from uad.core.records import Record, Records
from uad.report.style import BLUE, GREY, PathLike, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Sizes in inches: a box, its heading and a line of it, the gaps, the margin, the title.
_WIDTH, _HEAD, _LINE, _GAP, _BETWEEN, _EDGE, _TITLE = 1.75, 0.3, 0.15, 0.45, 0.25, 0.15, 0.45


@dataclass(frozen=True)
class Stages:
    """The workflow, coarsely.

    Attributes:
        rules: stage -> its rules in the order in which files pass through them -> their jobs.
        links: (from, to) where a stage reads what an earlier one wrote, without those that
            follow from others.
        layers: stage -> its column in the picture.
    """

    rules: dict[str, dict[str, int]]
    links: list[tuple[str, str]]
    layers: dict[str, int]


def stages_of(records: Records, jobs: Sequence[Record], stage_of: Mapping[str, str]) -> Stages:
    """Group jobs by stage.

    Args:
        records: of the run.
        jobs: those to show.
        stage_of: rule -> stage.

    Raises:
        DataError: a rule has no stage, or there is no job.
    """
    counts = Counter(job.rule for job in jobs)
    if missing := sorted(set(counts) - set(stage_of)):
        raise DataError(
            f"the records name rules that the workflow does not have: {', '.join(missing)}. Were "
            "these results made by another version?"
        )
    if not counts:
        raise DataError("there is no job to draw.")
    rules: dict[str, dict[str, int]] = {}
    for rule in records.rule_order:
        if rule in counts:
            rules.setdefault(stage_of[rule], {})[rule] = counts[rule]
    reads = Counter(
        (stage_of[made_by.rule], stage_of[job.rule])
        for job in jobs
        for entry in job.inputs
        if (made_by := records.producers.get(entry.key)) and made_by.rule in counts
    )
    graph = nx.DiGraph((a, b) for a, b in sorted(reads) if a != b)
    graph.add_nodes_from(rules)
    while not nx.is_directed_acyclic_graph(graph):
        # of stages that read from each other the one that is read more comes first
        graph.remove_edge(*min(nx.find_cycle(graph), key=reads.__getitem__))
    order = list(nx.lexicographical_topological_sort(graph, list(rules).index))
    generations = enumerate(nx.topological_generations(graph))
    layers = {stage: number for number, stages in generations for stage in stages}
    return Stages(
        {stage: rules[stage] for stage in order},
        sorted(nx.transitive_reduction(graph).edges, key=lambda link: list(map(order.index, link))),
        {stage: layers[stage] for stage in order},
    )


def figure_workflow(path: PathLike, stages: Stages, *, phantom: bool) -> None:
    """Draw stages as boxes with their rules and numbers of jobs, from left to right."""
    boxes, width, height = _placed(stages)
    jobs = sum(sum(rules.values()) for rules in stages.rules.values())
    heading = f"Stages of this run: {jobs} jobs" + (" (phantom data)" if phantom else "")
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        axes.text(_EDGE, 0.25, heading, size=9, weight="bold", va="center")
        for stage, box in boxes.items():
            _draw_box(axes, box, stage, stages.rules[stage])
        for first, second in stages.links:
            far = stages.layers[second] - stages.layers[first] > 1
            _draw_arrow(axes, boxes[first], boxes[second], bent=far)
        save(figure, path)


class _Box(NamedTuple):
    """Upper left corner and height, in inches from the upper left corner of the picture."""

    x: float
    y: float
    height: float


def _placed(stages: Stages) -> tuple[dict[str, _Box], float, float]:
    """The boxes of the stages; width and height of the picture."""
    columns: dict[int, list[str]] = {}
    for stage, layer in stages.layers.items():
        columns.setdefault(layer, []).append(stage)
    heights = {stage: _HEAD + _LINE * len(rules) + 0.1 for stage, rules in stages.rules.items()}
    tall = {
        layer: sum(heights[stage] for stage in names) + _BETWEEN * (len(names) - 1)
        for layer, names in columns.items()
    }
    boxes = {}
    for layer, names in columns.items():
        x = _EDGE + layer * (_WIDTH + _GAP)
        y = _TITLE + (max(tall.values()) - tall[layer]) / 2
        for stage in names:
            boxes[stage] = _Box(x, y, heights[stage])
            y += heights[stage] + _BETWEEN
    width = 2 * _EDGE + len(columns) * (_WIDTH + _GAP) - _GAP
    return boxes, width, _TITLE + max(tall.values()) + _EDGE


def _draw_box(axes: Axes, box: _Box, stage: str, rules: Mapping[str, int]) -> None:
    from matplotlib.patches import FancyBboxPatch

    outline = FancyBboxPatch(
        (box.x, box.y), _WIDTH, box.height, boxstyle="round,pad=0,rounding_size=0.06"
    )
    outline.set(facecolor="#f5f6f8", edgecolor=BLUE, linewidth=0.9)
    axes.add_patch(outline)
    left, right = box.x + 0.08, box.x + _WIDTH - 0.08
    axes.text(left, box.y + 0.15, stage, size=8, weight="bold", va="center")
    for number, (rule, count) in enumerate(rules.items()):
        y = box.y + _HEAD + _LINE * (number + 0.5)
        axes.text(left, y, rule, size=6.5, va="center")
        axes.text(right, y, str(count), size=6.5, va="center", ha="right", color=GREY)


def _draw_arrow(axes: Axes, first: _Box, second: _Box, *, bent: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    start = (first.x + _WIDTH, first.y + first.height / 2)
    end = (second.x, second.y + second.height / 2)
    shape = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
    bend = f"arc3,rad={0.12 if bent else 0}"
    arrow = FancyArrowPatch(start, end, connectionstyle=bend, zorder=0, **shape)
    arrow.set(color=GREY, linewidth=0.9)
    axes.add_patch(arrow)
