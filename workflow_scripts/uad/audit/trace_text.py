"""A cell's lineage as a tree for the terminal.

A file that is needed in several places is shown once, nearest to the cell; elsewhere it is named.
The slice stores and their scans, which all folds share, follow below the tree.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import networkx

from uad.audit.cells import plus_minus, published
from uad.audit.trace import CHANGED, MISSING, NOT_KEPT, SAME, Lineage, Node
from uad.audit.tree import short
from uad.report.render import counted

WIDTH = 100
#: More siblings of one rule than this are cut to the first ones, and those that do not match.
MOST, FIRST = 4, 2
#: Before the hash: as recorded, not as recorded, deleted after use, not looked at.
MARKS = {SAME: "=", CHANGED: "×", MISSING: "×", NOT_KEPT: "–"}


def text_of(lineage: Lineage, full: bool = False) -> str:
    """The tree as text; ``full``: with all siblings of a rule, however many."""
    return "\n".join([*_head(lineage), *_trees(lineage, full), "-" * WIDTH, *_foot(lineage), ""])


def _trees(lineage: Lineage, full: bool) -> Iterator[str]:
    nodes = {node.key: node for node in lineage.nodes}
    graph = networkx.DiGraph()
    graph.add_nodes_from(nodes)
    for node in lineage.nodes:
        below = [key for key in node.inputs if not nodes[key].is_store]
        graph.add_edges_from((node.key, key) for key in below)
    # the first node is the cell; what a lost record separates from it comes last
    stores = [key for key, node in nodes.items() if node.is_store]
    for root in [lineage.nodes[0].key, *stores, *nodes]:
        if root in graph:
            tree = networkx.bfs_tree(graph, root)
            graph.remove_nodes_from(list(tree))
            yield ""
            yield from _drawn(root, tree, nodes, full)


def _drawn(root: str, tree: Any, nodes: dict[str, Node], full: bool) -> Iterator[str]:
    labels = {key: "\n".join(_texts(nodes[key], tree, full)) for key in tree}
    for key in list(tree):
        if not full and key in tree:
            labels |= _cut_siblings(key, tree, nodes)
    networkx.set_node_attributes(tree, labels, "label")
    for text in networkx.generate_network_text(tree.to_undirected(), sources=[root]):
        # of a tree alone, which networkx begins with the corner of a forest
        first, *more = text[4:].splitlines()
        yield first
        indent = re.match("[│├└─ ]*", first)[0].translate(str.maketrans("├└─", "│  "))
        yield from (indent + line for line in more)


def _cut_siblings(parent: str, tree: Any, nodes: dict[str, Node]) -> dict[str, str]:
    """Take siblings of one rule that are many out of a tree; returns what stands in their place."""
    labels, by_rule = {}, {}
    for key in tree[parent]:
        by_rule.setdefault(nodes[key].rule if key in nodes else None, []).append(key)
    for rule, keys in by_rule.items():
        below = {key: networkx.descendants(tree, key) | {key} for key in keys}
        failing = [k for k in keys if any(nodes[n].problems for n in below[k] if n in nodes)]
        hidden = [key for key in keys[FIRST:] if key not in failing] if len(keys) > MOST else []
        for key in hidden:
            tree.remove_nodes_from(below[key])
        if hidden:
            place = f"{parent} {rule}"
            tree.add_edge(parent, place)
            labels[place] = f"... and {counted(len(hidden), 'more file')} of {rule or 'raw data'}"
    return labels


def _texts(node: Node, tree: Any, full: bool) -> Iterator[str]:
    """Lines of a file: its key, its hash and rule, what is worth telling, what does not match."""
    mark = "×" if node.problems else MARKS.get(node.status, " ")
    yield node.key
    yield f"{mark} {short(node.sha256):<12}  {node.rule or ''}".rstrip()
    yield from textwrap.wrap(_words(node.facts, full), WIDTH - 20)
    others = [key for key in node.inputs if not tree.has_edge(node.key, key)]
    shown = others if full or len(others) <= MOST else others[:FIRST]
    yield from (f"also from: {key}" for key in shown)
    if len(others) > len(shown):
        yield f"also from: {len(others) - len(shown)} more files"
    for problem in node.problems:
        yield f"× {problem}"


def _head(lineage: Lineage) -> Iterator[str]:
    cell, value = lineage.cell, lineage.value
    phantom = "   PHANTOM DATA" if value["phantom"] else ""
    yield (
        f"{cell['table']}, {cell['label']} ({cell['row']}), {cell['column']}, "
        f"{cell['metric']}{phantom}"
    )
    yield "=" * WIDTH
    unit, digits = (" %", ".2f") if value["percent"] else ("", ".4g")
    counts = f"{counted(value['n_folds'], 'fold')}, {counted(value['n_volumes'], 'test volume')}"
    yield f"{plus_minus(value['mean'], value['std'], digits)}{unit}: {counts}"
    folds = [fold["value"] for fold in lineage.folds]
    yield f"by fold: {', '.join('?' if v is None else f'{v:{digits}}' for v in folds)}"
    against = "; a phantom is not comparable with it" if value["phantom"] else ""
    yield f"published: {published(value)}{against}"


def _foot(lineage: Lineage) -> Iterator[str]:
    """Code, how many files are as recorded, and all problems."""
    for commit, jobs in lineage.code.items():
        yield f"code: commit {commit}; {counted(jobs, 'job')}"
    counts, number = Counter(node.status for node in lineage.nodes), len(lineage.nodes)
    text = f"{number} files; their hashes are from the records and were not checked"
    if lineage.checked:
        text = f"{counts[SAME]} of {number} files are as recorded (=)"
        if counts[NOT_KEPT]:
            text += f"; {counts[NOT_KEPT]} were not kept, hash from their records (–)"
    yield f"{text}."
    if lineage.problems:
        yield f"× {counted(len(lineage.problems), 'problem')}:"
        yield from (f"  {problem}" for problem in lineage.problems)


def _words(value: Any, full: bool) -> str:
    """``seed 4711, epochs 9``; of a long list the first entries."""
    if isinstance(value, dict):
        known = {k: v for k, v in value.items() if v is not None and v != [] and v != {}}
        texts = (f"{k.replace('_', ' ')} {_words(v, full)}" for k, v in known.items())
        return ("; " if any(isinstance(v, list | dict) for v in known.values()) else ", ").join(
            texts
        )
    if isinstance(value, list):
        shown = value if full or len(value) <= MOST else value[:FIRST]
        more = f" and {len(value) - len(shown)} more" if len(shown) < len(value) else ""
        return ", ".join(_words(entry, full) for entry in shown) + more
    return f"{value:.4f}" if isinstance(value, float) else str(value)
