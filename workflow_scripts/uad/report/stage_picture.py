"""A picture of the workflow by stage: what each consists of, how many jobs, what flows where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import networkx as nx

from uad.core.errors import DataError
from uad.core.files import write_text
from uad.core.records import Record
from uad.report.html import render_page
from uad.report.render import PathLike, titled
from uad.report.style import BLUE, GREY

#: Sizes in units of the picture: a box, a line of it, the gaps, the margin, the title.
_WIDTH, _LINE, _GAP, _BETWEEN, _EDGE, _TITLE = 165, 14, 42, 24, 14, 44


def stages_of(jobs: Sequence[Record], stages: Mapping[str, Sequence[str]]) -> nx.DiGraph:
    """What a stage reads of those before it, where that follows from no other; jobs by rule.

    ``stages`` has their rules, both in the order of the workflow. The nodes have ``rules``, the
    number of jobs of each.

    Raises:
        DataError: a rule has no stage.
    """
    counts = Counter(job.rule for job in jobs)
    stage_of = {rule: stage for stage, rules in stages.items() for rule in rules}
    if missing := sorted(set(counts) - set(stage_of)):
        raise DataError(
            f"the records name rules that the workflow does not have: {', '.join(missing)}. Were "
            "these results made by another version?"
        )
    made_by = {output.key: stage_of[job.rule] for job in jobs for output in job.outputs}
    reads = nx.DiGraph()
    for stage, rules in stages.items():
        if own := {rule: counts[rule] for rule in rules if rule in counts}:
            reads.add_node(stage, rules=own)
    order = list(reads)
    links = {(made_by.get(e.key), stage_of[job.rule]) for job in jobs for e in job.inputs}
    reads.add_edges_from(
        (first, second)
        for first, second in sorted(links, key=str)
        if first and order.index(first) < order.index(second)
    )
    reduced = nx.transitive_reduction(reads)
    reduced.add_nodes_from(reads.nodes(data=True))
    return reduced


def draw_workflow(path: PathLike, stages: nx.DiGraph, *, phantom: bool) -> None:
    """Draw the stages as boxes with their rules and numbers of jobs, from left to right (SVG)."""
    columns = [
        sorted(layer, key=list(stages).index) for layer in nx.topological_generations(stages)
    ]
    heights = {stage: 37 + _LINE * len(rules) for stage, rules in stages.nodes(data="rules")}
    tall = max(sum(heights[stage] + _BETWEEN for stage in column) for column in columns)
    boxes = {}
    for number, column in enumerate(columns):
        used = sum(heights[stage] + _BETWEEN for stage in column)
        y = _TITLE + (tall - used) / 2  # each column stands in the middle
        for stage in column:
            place = {"x": _EDGE + number * (_WIDTH + _GAP), "y": y, "height": heights[stage]}
            boxes[stage] = {"stage": stage, "rules": stages.nodes[stage]["rules"], **place}
            y += heights[stage] + _BETWEEN
    jobs = sum(sum(rules.values()) for _, rules in stages.nodes(data="rules"))
    picture = render_page(
        "stages.svg",
        title=titled(f"Stages of this run: {jobs} jobs", phantom),
        boxes=boxes.values(),
        links=[(boxes[first], boxes[second]) for first, second in stages.edges],
        width=2 * _EDGE + len(columns) * (_WIDTH + _GAP) - _GAP,
        height=_TITLE + tall,
        edge=_EDGE,
        box_width=_WIDTH,
        gap=_GAP,
        line=_LINE,
        grey=GREY,
        blue=BLUE,
    )
    write_text(path, picture)
