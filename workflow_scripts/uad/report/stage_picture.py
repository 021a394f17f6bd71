"""A picture of the workflow by stage: what each consists of, how many jobs, what flows where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from uad.core.errors import DataError
from uad.core.records import Record, Records
from uad.report.render import titled
from uad.report.style import BLUE, GREY, PathLike, save, style

#: Sizes in inches: a box, its heading and a line of it, the gaps, the margin, the title.
_WIDTH, _HEAD, _LINE, _GAP, _BETWEEN, _EDGE, _TITLE = 1.75, 0.3, 0.15, 0.45, 0.25, 0.15, 0.45


@dataclass(frozen=True)
class Stages:
    """The workflow, coarsely."""

    rules: dict[str, dict[str, int]]  # stage -> its rules, as files pass through them -> their jobs
    links: list[
        tuple[str, str]
    ]  # (from, to) of a stage that is read, where it follows from no other
    layers: dict[str, int]  # stage -> its column in the picture


def stages_of(records: Records, jobs: Sequence[Record], stage_of: Mapping[str, str]) -> Stages:
    """Group jobs (of the records of a run) by the stages of their rules.

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
    heights = {stage: _HEAD + _LINE * len(rules) + 0.1 for stage, rules in stages.rules.items()}
    tall = {layer: -_BETWEEN for layer in stages.layers.values()}
    for stage, layer in stages.layers.items():
        tall[layer] += heights[stage] + _BETWEEN
    width = 2 * _EDGE + len(tall) * (_WIDTH + _GAP) - _GAP
    height = _TITLE + max(tall.values()) + _EDGE
    jobs = sum(sum(rules.values()) for rules in stages.rules.values())
    with style():
        from matplotlib.figure import Figure
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        title = titled(f"Stages of this run: {jobs} jobs", phantom)
        axes.text(_EDGE, 0.25, title, size=9, weight="bold", va="center")
        middles = {}
        free = {layer: _TITLE + (max(tall.values()) - high) / 2 for layer, high in tall.items()}
        for stage, layer in sorted(stages.layers.items(), key=lambda item: item[1]):
            x, y, high = _EDGE + layer * (_WIDTH + _GAP), free[layer], heights[stage]
            free[layer] += high + _BETWEEN
            middles[stage] = (x, y + high / 2)
            look = {"facecolor": "#f5f6f8", "edgecolor": BLUE, "linewidth": 0.9}
            corners = "round,pad=0,rounding_size=0.06"
            axes.add_patch(FancyBboxPatch((x, y), _WIDTH, high, boxstyle=corners, **look))
            axes.text(x + 0.08, y + 0.15, stage, size=8, weight="bold", va="center")
            for number, (rule, count) in enumerate(stages.rules[stage].items()):
                line = {"y": y + _HEAD + _LINE * (number + 0.5), "size": 6.5, "va": "center"}
                axes.text(x + 0.08, s=rule, **line)
                axes.text(x + _WIDTH - 0.08, s=str(count), ha="right", color=GREY, **line)
        for first, second in stages.links:
            (x, y), end = middles[first], middles[second]
            far = stages.layers[second] - stages.layers[first] > 1
            look = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
            look |= {"color": GREY, "linewidth": 0.9, "zorder": 0}
            bend = f"arc3,rad={0.12 if far else 0}"
            axes.add_patch(FancyArrowPatch((x + _WIDTH, y), end, connectionstyle=bend, **look))
        save(figure, path)
