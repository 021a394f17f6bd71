"""A cell's lineage as a tree for the terminal, 100 columns wide.

A file that is needed in several places is shown once, nearest to the cell; elsewhere it is named.
The slice stores and their scans, which all folds share, follow below the tree.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import networkx

from uad.audit.cells import plus_minus, published
from uad.audit.trace import CHANGED, MISSING, NOT_KEPT, SAME, Lineage, Node, short
from uad.report.render import counted

WIDTH, LEFT = 100, 64
#: More siblings of one kind than this are cut to the first ones, and those that do not match.
MOST, FIRST = 4, 2
#: Before the hash: as recorded, not as recorded, deleted after use, not looked at.
MARKS = {SAME: "=", CHANGED: "×", MISSING: "×", NOT_KEPT: "–"}
NAMES = {"maps": "anomaly maps", "air": "AIR decision", "list": "published split list"}
NAMES |= {"store": "slice store", "published": "published value"}


def text_of(lineage: Lineage, full: bool = False) -> str:
    """The tree as text; ``full``: with all siblings of a kind, however many."""
    return "\n".join(line.rstrip() for line in _Text(lineage, full).lines()) + "\n"


class _Text:
    def __init__(self, lineage: Lineage, full: bool) -> None:
        self.lineage, self.full = lineage, full
        self.nodes = {node.key: node for node in lineage.nodes}

    def lines(self) -> Iterator[str]:
        yield from _head(self.lineage)
        graph = networkx.DiGraph()
        graph.add_nodes_from(self.nodes)
        for node in self.lineage.nodes:
            below = [key for key in node.inputs if self.nodes[key].stage != "store"]
            graph.add_edges_from((node.key, key) for key in below)
        # what a lost record separates from the cell comes last
        for root in [*self.lineage.of("cell"), *self.lineage.of("store"), *self.lineage.nodes]:
            if root.key in graph:
                tree = networkx.bfs_tree(graph, root.key)
                yield ""
                yield from self.drawn(root, tree, "", "")
                graph.remove_nodes_from(list(tree))
        yield "-" * WIDTH
        yield from _foot(self.lineage)

    def drawn(self, node: Node, tree: Any, prefix: str, rest: str) -> Iterator[str]:
        """Lines of a node; the first begins with ``prefix``, those below it with ``rest``."""
        mark = "×" if node.problems else MARKS.get(node.status, " ")
        room = LEFT - len(prefix)
        title, *more = textwrap.wrap(self.title(node), room, break_on_hyphens=False)
        yield f"{prefix}{title:{room}} {mark} {short(node.sha256):<12}  {(node.rule or '')[:20]}"
        others = [self.title(self.nodes[k]) for k in node.inputs if not tree.has_edge(node.key, k)]
        texts = [*more, node.key, *_facts(node, self.lineage, self.full)]
        texts += [f"reads: {', '.join(dict.fromkeys(others))}"] if others else []
        for text in texts:
            yield from _wrapped(text, rest, rest)
        for problem in node.problems:
            yield from _wrapped(problem, f"{rest}× ", f"{rest}  ")
        items = self.below(node, tree)
        for i, item in enumerate(items):
            corner, below = ("└─ ", "   ") if i == len(items) - 1 else ("├─ ", "│  ")
            if isinstance(item, str):
                yield from _wrapped(item, rest + corner, rest + below)
            else:
                yield from self.drawn(item, tree, rest + corner, rest + below)

    def below(self, node: Node, tree: Any) -> list[Node | str]:
        """What is shown below a node: of many of one kind some, and those that do not match."""
        kinds: dict[str, list[Node]] = {}
        for key in tree[node.key]:
            kinds.setdefault(self.nodes[key].stage, []).append(self.nodes[key])
        items: list[Node | str] = []
        for stage, found in kinds.items():
            shown = found
            if not self.full and len(found) > MOST:
                shown = [n for n in found if n in found[:FIRST] or self.fails(n, tree)]
            items += shown
            if hidden := [n for n in found if n not in shown]:
                values = [n.facts.get("value") for n in hidden if stage == "metrics"]
                texts = ", ".join("?" if value is None else f"{value:.2f}" for value in values)
                kind = "fold" if stage == "metrics" else f"{NAMES.get(stage, stage)} file"
                more = f"... and {counted(len(hidden), f'more {kind}')}"
                items.append(f"{more}: {texts}" if texts else more)
        return items

    def fails(self, node: Node, tree: Any) -> bool:
        keys = networkx.descendants(tree, node.key) | {node.key}
        return any(self.nodes[key].problems for key in keys)

    def title(self, node: Node) -> str:
        name, place = NAMES.get(node.stage, node.stage), node.place
        if node.stage == "store":
            number = self.lineage.of("store").index(node) + 1
            return f"{name} [{number}] of {place.get('dataset', '?')} {place.get('modality', '?')}"
        if "subject" in place:
            return f"{place['subject']}: {name}"
        if node.stage == "metrics":
            return f"fold {place['fold']}: {name}"
        is_table = node.stage == "participants" and "dataset" in place
        return f"{name} of {place['dataset']}" if is_table else name


def _wrapped(text: str, prefix: str, rest: str) -> list[str]:
    options = {"initial_indent": prefix, "subsequent_indent": rest, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, **options) if text.strip() else [prefix]


def _head(lineage: Lineage) -> Iterator[str]:
    cell, value = lineage.cell, lineage.value
    title = f"{cell['table']}, {cell['label']} ({cell['row']}), {cell['column']}, {cell['metric']}"
    yield from _wrapped(title + ("   PHANTOM DATA" if value["phantom"] else ""), "", "")
    yield "=" * WIDTH
    unit, digits = (" %", ".2f") if value["percent"] else ("", ".4g")
    phantom = " (phantom)" if value["phantom"] else ""
    counts = f"{counted(value['n_folds'], 'fold')}, {counted(value['n_volumes'], 'test volume')}"
    yield f"{plus_minus(value['mean'], value['std'], digits)}{unit}{phantom}: {counts}"
    against = "; a phantom is not comparable with it" if value["phantom"] else ""
    yield from _wrapped(f"published: {published(value)}{against}", "", "")


def _foot(lineage: Lineage) -> Iterator[str]:
    """Code, how many files are as recorded, and all problems."""
    for state in lineage.code:
        diff, lock = state["diff_sha256"], state["lock_sha256"]
        dirty = f" with uncommitted changes ({diff[:12]})" if diff else ""
        pins = f"; pinned environment {lock[:12]}" if lock else ""
        commit, jobs = (state["commit"] or "unknown")[:12], counted(state["jobs"], "job")
        yield from _wrapped(f"code: commit {commit}{dirty}{pins}; {jobs}", "", "      ")
    counts, number = Counter(node.status for node in lineage.nodes), len(lineage.nodes)
    text = f"{number} files; their hashes are from the records and were not checked"
    if lineage.checked:
        text = f"{counts[SAME]} of {number} files are as recorded (=)"
        if counts[NOT_KEPT]:
            text += f"; {counts[NOT_KEPT]} were not kept, hash from their records (–)"
    yield f"{text}."
    if lineage.problems:
        yield f"× {counted(len(lineage.problems), 'problem')}:"
    for problem in lineage.problems:
        yield from _wrapped(problem, "  ", "    ")


def _facts(node: Node, lineage: Lineage, full: bool) -> Iterator[str]:
    """``seed 4711, epochs 9, ...``; a file of a download and a role are a line each."""
    plain = {name: value for name, value in node.facts.items() if name != "files"}
    yield from filter(None, [_words(plain, full)])
    files = node.facts.get("files", [])
    for file in files if full or len(files) <= MOST else files[:FIRST]:
        known = "as published" if file.get("verified") else "recorded, not published"
        algorithm, _, digits = (file.get("checksum") or "no checksum").partition(":")
        yield f"{file.get('url') or file.get('name')} {algorithm}:{digits[:12]} ({known})"
    for role, subjects in lineage.subjects.get(node.key, {}).items():
        counts = Counter(number for numbers in subjects.values() for number in numbers)
        each = ", ".join(f"{n} in fold {fold}" for fold, n in sorted(counts.items()))
        yield f"{role}: {each}; {_words(list(subjects), full)}"


def _words(value: Any, full: bool) -> str:
    if isinstance(value, dict):
        pairs = {k: v for k, v in value.items() if v is not None and v != [] and v != {}}
        colon = {k: ":" if isinstance(v, dict | list) else "" for k, v in pairs.items()}
        texts = [f"{k.replace('_', ' ')}{colon[k]} {_words(v, full)}" for k, v in pairs.items()]
        return ("; " if any(colon.values()) else ", ").join(texts)
    if isinstance(value, list):
        shown = value if full or len(value) <= MOST else value[:FIRST]
        more = f" and {len(value) - len(shown)} more" if len(shown) < len(value) else ""
        return ", ".join(map(str, shown)) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
