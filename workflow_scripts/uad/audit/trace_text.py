"""A cell's lineage as a tree for the terminal, 100 columns wide.

Words on the left, on the right the first 12 characters of a file's SHA-256 and the rule that made
it. A file that is needed in several places is shown once, nearest to the cell; elsewhere it is
named. What all folds share, the slice stores and their scans, follows below the tree.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from uad.audit.lineage import CHANGED, MISSING, NOT_KEPT, SAME, Lineage, Node
from uad.report.render import counted

WIDTH, LEFT = 100, 64
#: More siblings of one kind than this are cut to the first ones.
MOST, FIRST = 4, 2
#: Before the hash: as recorded, not as recorded, deleted after use, not looked at.
MARKS = {SAME: "=", CHANGED: "×", MISSING: "×", NOT_KEPT: "–"}
#: What the roles of a split are for.
ROLES = {
    "train": "trained on",
    "val_healthy": "validated on while training",
    "val_unhealthy": "for the threshold or AIR",
    "test": "tested on",
}
NAMES = {"maps": "anomaly maps", "air": "AIR decision", "list": "published split list"}
#: A file that several read is shown below the first of these.
NEAREST = ("metrics", "maps", "reconstructions", "threshold", "weights", "air", "split")
#: What is below a slice store, or stands by itself at the end.
BELOW = ("store", "participants", "source")


def text_of(lineage: Lineage, full: bool = False) -> str:
    """The tree as text.

    Args:
        lineage: from :func:`uad.audit.trace.trace`.
        full: all siblings of a kind, however many.
    """
    tree = _Tree(lineage, full)
    lines = [*_head(lineage), ""]
    for block in (tree.cell(), *map(tree.store, lineage.of("store")), *tree.others()):
        lines += [*_drawn(block, "", ""), ""]
    lines[-1:] = ["-" * WIDTH, *_foot(lineage)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


@dataclass
class _Item:
    """An entry of the tree: a title, a file or none, sentences, and what is below."""

    title: str
    node: Node | None = None
    more: list[str] = field(default_factory=list)
    items: list[_Item] = field(default_factory=list)
    path: bool = True


def _drawn(item: _Item, prefix: str, rest: str) -> Iterator[str]:
    """Lines of an item; the first begins with ``prefix``, the others with ``rest``."""
    node = item.node
    room = (LEFT if node else WIDTH) - max(len(prefix), len(rest))
    first, *others = textwrap.wrap(item.title, room, break_on_hyphens=False) or [""]
    if node:
        mark = "×" if node.problems else MARKS.get(node.status, " ")
        first = f"{first:{LEFT - len(prefix)}} {mark} {node.short:<12}  {(node.rule or '')[:20]}"
    yield prefix + first
    yield from (rest + line for line in others)
    for text in [*([node.key] if node and item.path else []), *item.more]:
        yield from _wrapped(text, rest, rest)
    for problem in node.problems if node else ():
        yield from _wrapped(problem, f"{rest}× ", f"{rest}  ")
    for i, child in enumerate(item.items):
        corner, below = ("└─ ", "   ") if i == len(item.items) - 1 else ("├─ ", "│  ")
        yield from _drawn(child, rest + corner, rest + below)


def _wrapped(text: str, prefix: str, rest: str) -> list[str]:
    options = {"initial_indent": prefix, "subsequent_indent": rest, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, **options) if text.strip() else [prefix]


def _head(lineage: Lineage) -> Iterator[str]:
    """Which cell, its value, the published one."""
    cell, value = lineage.cell, lineage.value
    title = f"{cell.table}, {cell.label} ({cell.row}), {cell.column}, {cell.metric}"
    yield from _wrapped(title + ("   PHANTOM DATA" if value.phantom else ""), "", "")
    yield "=" * WIDTH
    volumes = counted(value.n_volumes, "test volume")
    yield f"{value}: {counted(value.n_folds, 'fold')}, {volumes}"
    against = "; a phantom is not comparable with it" if value.phantom else ""
    yield from _wrapped(f"published: {value.published}{against}", "", "")


def _foot(lineage: Lineage) -> Iterator[str]:
    """Code, how many files are as recorded, and all problems."""
    for state in lineage.code:
        diff, lock = state["diff_sha256"], state["lock_sha256"]
        dirty = f" with uncommitted changes ({diff[:12]})" if diff else ""
        pins = f"; pinned environment {lock[:12]}" if lock else ""
        commit, jobs = (state["commit"] or "unknown")[:12], counted(state["jobs"], "job")
        yield from _wrapped(f"commit {commit}{dirty}{pins}; {jobs}", "code: ", "      ")
    counts, number = Counter(node.status for node in lineage.nodes), len(lineage.nodes)
    if lineage.checked:
        text = f"{counts[SAME]} of {number} files are as recorded (=)"
        if counts[NOT_KEPT]:
            text += f"; {counts[NOT_KEPT]} were not kept, hash from their records (–)"
    else:
        text = f"{number} files; their hashes are from the records and were not checked"
    yield f"{text}."
    if lineage.problems:
        yield f"× {counted(len(lineage.problems), 'problem')}:"
    for problem in lineage.problems:
        yield from _wrapped(problem, "  ", "    ")


class _Tree:
    """Gathers the items; a file is shown once, where it is met first."""

    def __init__(self, lineage: Lineage, full: bool) -> None:
        self.lineage, self.full = lineage, full
        self.nodes = {node.key: node for node in lineage.nodes}
        self.stores = {node.key: f"[{i}]" for i, node in enumerate(lineage.of("store"), 1)}
        self.shown: set[str] = set()
        self.shown_below: dict[str, str] = {}
        for node in (node for stage in NEAREST for node in lineage.of(stage)):
            for key in node.inputs:
                self.shown_below.setdefault(key, node.key)

    def item(self, title: str, node: Node, path: bool = True) -> _Item:
        self.shown.add(node.key)
        return _Item(title, node, _facts(node.facts, self.full) if path else [], path=path)

    def few(self, things: Sequence[Any]) -> Sequence[Any]:
        """The siblings to show."""
        return things if self.full or len(things) <= MOST else things[:FIRST]

    def cell(self) -> _Item:
        """The cell, and its folds down to the slice stores."""
        (cell,) = self.lineage.of("cell")
        item, folds = self.item("cell", cell), self.lineage.folds
        bad = {node.place.get("fold") for node in self.lineage.nodes if node.problems}
        shown = [f for f in folds if f in self.few(folds) or str(f.fold) in bad]
        for fold in shown:
            item.items.append(self.branch(self.nodes[fold.metrics], f"fold {fold.fold}: "))
        if hidden := [fold for fold in folds if fold not in shown]:
            values = ", ".join(f"{f.value:.2f}" if f.value is not None else "?" for f in hidden)
            item.items.append(_Item(f"... and {counted(len(hidden), 'more fold')}: {values}"))
        item.items += [self.item("published value", n) for n in self.lineage.of("published")]
        return item

    def branch(self, node: Node, before: str = "") -> _Item:
        """A node and, below it, what is shown here of its inputs."""
        item = self.item(f"{before}{self.name(node)}", node)
        own = [
            self.nodes[key]
            for key in node.inputs
            if key not in self.shown
            and self.shown_below.get(key, node.key) == node.key
            and (self.nodes[key].stage not in BELOW or node.stage in ("participants", "atlas"))
        ]
        own.sort(key=lambda child: child.stage == "threshold")
        others = [self.nodes[k] for k in node.inputs if k not in {child.key for child in own}]
        if others:
            item.more.append(f"reads: {', '.join(dict.fromkeys(map(self.name, others)))}")
        item.items = [self.branch(child) for child in own if child.key not in self.shown]
        return item

    def name(self, node: Node) -> str:
        """What a file is."""
        name = NAMES.get(node.stage, node.stage)
        if node.stage == "store":
            return f"slice store {self.stores[node.key]}"
        return f"{name} of {node.place['dataset']}" if node.stage == "participants" else name

    def store(self, store: Node) -> _Item:
        """A slice store, its scans that matter by role, and where they are from."""
        dataset, modality = store.place.get("dataset", "?"), store.place.get("modality", "?")
        item = self.item(f"{self.name(store)} of {dataset} {modality}", store)
        roles = self.lineage.subjects.get(store.key, {})
        for role in sorted(roles, key=[*ROLES, *roles].index):
            item.items.append(self.role(dataset, role, roles[role]))
        people = [n for n in self.lineage.of("participants") if n.place.get("dataset") == dataset]
        item.items += [self.branch(node) for node in people if node.key not in self.shown]
        return item

    def role(self, dataset: str, role: str, folds: dict[str, list[int]]) -> _Item:
        """The scans of one role; those that are cut are shown where they do not match."""
        counts = Counter(number for numbers in folds.values() for number in numbers)
        each = ", ".join(f"{n} in fold {fold}" for fold, n in sorted(counts.items()))
        item = _Item(f"{role} ({ROLES.get(role, 'for validation')}): {each}")
        few = self.few(list(folds))
        for subject in few:
            new = [node for node in self.parts(dataset, subject) if node.key not in self.shown]
            where = f"fold{'s' * (len(folds[subject]) > 1)} {', '.join(map(str, folds[subject]))}"
            title = f"{subject} ({where}){'' if new else ', see above'}"
            parts = [self.item(_part(node, subject), node, path=False) for node in new]
            item.items.append(_Item(title, items=parts))
        if hidden := [subject for subject in folds if subject not in few]:
            item.items.append(_Item(f"... and {len(hidden)} more"))
        for subject in hidden:
            for node in self.parts(dataset, subject):
                if node.problems and node.key not in self.shown:
                    title = f"{subject}: {_part(node, subject)}"
                    item.items[-1].items.append(self.item(title, node, path=False))
        return item

    def parts(self, dataset: str, subject: str) -> list[Node]:
        """The files of a subject's scan, from the registered volume to the raw ones."""
        wanted = {"dataset": dataset, "subject": subject}
        own = [node for node in self.lineage.nodes if wanted.items() <= node.place.items()]
        above = dict.fromkeys(key for node in own for key in node.inputs)
        batches = [self.nodes[key] for key in above if "batch" in self.nodes[key].place]
        order = ("registered", "transform", "brain mask", "raw")
        return sorted([*own, *batches], key=lambda node: order.index(node.stage))

    def others(self) -> Iterator[_Item]:
        """What is below no store: the atlas, published lists, files of unknown rules."""
        for stage in ("participants", "atlas", "list", "source", "other"):
            left = [node for node in self.lineage.of(stage) if node.key not in self.shown]
            few = self.few(left)
            yield from (self.branch(node) for node in few if node.key not in self.shown)
            if len(few) < len(left):
                yield _Item(f"... and {len(left) - len(few)} more: {NAMES.get(stage, stage)}")


def _part(node: Node, subject: str) -> str:
    """What a file of a scan is."""
    return f"{node.stage}: {node.key.rsplit('/', 1)[-1].removeprefix(f'sub-{subject}_')}"


def _facts(facts: dict[str, Any], full: bool) -> list[str]:
    """``seed 4711, epochs 9, ...``; an entry of a list of files is a line of its own."""
    plain = {name: value for name, value in facts.items() if name != "files"}
    lines = [text] if (text := _words(plain, full)) else []
    files = facts.get("files", [])
    for file in files if full or len(files) <= MOST else files[:FIRST]:
        known = "as published" if file.get("verified") else "recorded, not published"
        algorithm, _, digits = (file.get("checksum") or "no checksum").partition(":")
        lines += [
            f"{file.get('url') or file.get('name')}",
            f"  {algorithm}:{digits[:12]} ({known})",
        ]
    return lines


def _words(value: Any, full: bool) -> str:
    """Plain data as words."""
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
