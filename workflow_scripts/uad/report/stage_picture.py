"""A picture of the workflow by stage: what each consists of, how many jobs, what flows where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import networkx as nx

from uad.core.errors import DataError
from uad.core.files import write_text
from uad.core.records import Record, Records
from uad.report.html import render_page
from uad.report.render import PathLike, titled
from uad.report.style import BLUE, GREY

#: Sizes in units of the picture: a box, a line of it, the gaps, the margin, the title.
_WIDTH, _LINE, _GAP, _BETWEEN, _EDGE, _TITLE = 165, 14, 42, 24, 14, 44


class Stages(NamedTuple):
    """The workflow, coarsely."""

    #: stage -> its rules, as files pass through them -> their jobs
    rules: dict[str, dict[str, int]]
    #: (from, to) of a stage that is read, where it follows from no other
    links: list[tuple[str, str]]
    #: stage -> its column in the picture
    layers: dict[str, int]


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


def draw_workflow(path: PathLike, stages: Stages, *, phantom: bool) -> None:
    """Draw stages as boxes with their rules and numbers of jobs, from left to right (SVG)."""
    boxes, used = {}, Counter()
    for stage, layer in stages.layers.items():
        rules = stages.rules[stage]
        x, high = _EDGE + layer * (_WIDTH + _GAP), 37 + _LINE * len(rules)
        boxes[stage] = {"stage": stage, "rules": rules, "x": x, "y": used[layer], "height": high}
        used[layer] += high + _BETWEEN
    tall = max(used.values())
    for stage, box in boxes.items():  # each column stands in the middle
        box["y"] += _TITLE + (tall - used[stages.layers[stage]]) / 2
    links = [
        {
            "x": boxes[first]["x"] + _WIDTH,
            "y": boxes[first]["y"] + boxes[first]["height"] / 2,
            "to_x": boxes[second]["x"],
            "to_y": boxes[second]["y"] + boxes[second]["height"] / 2,
            "bend": 0 if stages.layers[second] - stages.layers[first] == 1 else 45,
        }
        for first, second in stages.links
    ]
    jobs = sum(sum(rules.values()) for rules in stages.rules.values())
    picture = render_page(
        "stages.svg",
        title=titled(f"Stages of this run: {jobs} jobs", phantom),
        boxes=boxes.values(),
        links=links,
        width=2 * _EDGE + len(used) * (_WIDTH + _GAP) - _GAP,
        height=_TITLE + tall,
        edge=_EDGE,
        box_width=_WIDTH,
        line=_LINE,
        grey=GREY,
        blue=BLUE,
    )
    write_text(path, picture)
