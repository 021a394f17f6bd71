"""A cell's lineage as a tree for the terminal, 100 columns wide.

Words on the left, on the right the first 12 characters of a file's SHA-256 and the rule that made
it. A file that is needed in several places is shown once, nearest to the cell; elsewhere it is
named. What all folds share, the slice stores and their scans, follows below the tree.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from uad.audit.lineage import CHANGED, MISSING, NOT_KEPT, SAME, Lineage, Node
from uad.report.render import counted

WIDTH, LEFT = 100, 64
#: More siblings of one kind than this are cut to the first ones.
MOST, FIRST = 4, 2
#: Before the hash: as recorded, not as recorded, deleted after use, not looked at.
MARKS = {SAME: "=", CHANGED: "×", MISSING: "×", NOT_KEPT: "–"}
#: What the roles of a split are for; val_unhealthy is for the threshold, for AIR, or for both.
ROLES = {
    "train": "trained on",
    "val_healthy": "validated on while training",
    "val_unhealthy": "",
    "test": "tested on",
}
#: Names of the parts of a scan, by what its file name holds.
PARTS = {
    "desc-preproc_": "registered volume",
    "desc-xfm_": "transform to the atlas",
    "space-SRI24_label-brain_": "brain mask in the atlas",
    "space-SRI24_label-lesion_": "lesion mask in the atlas",
    "space-orig_label-brain_": "brain mask of the raw scan",
}
NAMES = {
    "maps": "anomaly maps",
    "air": "AIR decision",
    "store": "slice store",
    "list": "published split list",
}
#: A file that several read is shown below the first of these.
NEAREST = ("metrics", "maps", "reconstructions", "threshold", "weights", "air", "split")


def text_of(lineage: Lineage, full: bool = False) -> str:
    """The tree as text.

    Args:
        lineage: from :func:`uad.audit.trace.trace`.
        full: all siblings of a kind, however many.
    """
    tree = _Tree(lineage, full)
    blocks = [tree.cell(), *map(tree.store, lineage.of("store")), *tree.atlas(), *tree.others()]
    lines = [*_head(lineage), ""]
    for block in blocks:
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
    if node and item.path:
        yield rest + _path(node.key, WIDTH - len(rest))
    for text in item.more:
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

    def item(self, title: str, node: Node, *more: str, **rest: Any) -> _Item:
        self.shown.add(node.key)
        return _Item(title, node, list(more), **rest)

    def few(self, things: Sequence[Any]) -> Sequence[Any]:
        """The siblings to show."""
        return things if self.full or len(things) <= MOST else things[:FIRST]

    # From the cell to the stores

    def cell(self) -> _Item:
        (cell,) = self.lineage.of("cell")
        facts, again = cell.facts, "cannot be computed again"
        if (mean := facts.get("recomputed_mean")) is not None:
            again = f"recomputed from the metrics: {_spread(mean, facts['recomputed_std'])}"
        item = self.item(f"cell {_spread(facts['mean'], facts['std'])}", cell, again)
        folds = self.lineage.folds
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
        own = [
            self.nodes[key]
            for key in node.inputs
            if key not in self.shown
            and self.shown_below.get(key, node.key) == node.key
            and self.nodes[key].stage not in ("store", "participants", "source")
        ]
        own.sort(key=lambda child: child.stage == "threshold")
        others = [self.nodes[k] for k in node.inputs if k not in {child.key for child in own}]
        item = self.item(f"{before}{_title(node)}", node, *_facts(node))
        if others:
            item.more.append(f"reads: {', '.join(dict.fromkeys(map(self.name, others)))}")
        item.items = [self.branch(child) for child in own]
        return item

    def name(self, node: Node) -> str:
        """How a file is called where it is only named."""
        if node.stage == "store":
            return f"slice store {self.stores[node.key]}"
        if node.stage == "participants":
            return f"participants of {node.place['dataset']}"
        return NAMES.get(node.stage, node.stage)

    # From a store to the raw files

    def store(self, store: Node) -> _Item:
        """A slice store, its scans that matter by role, and where they are from."""
        dataset, modality = store.place.get("dataset", "?"), store.place.get("modality", "?")
        roles, more = self.lineage.subjects.get(store.key, {}), "its scans cannot be followed"
        if "used" in store.facts:
            used, packed = store.facts["used"], store.facts["packed"]
            more = f"{used} of its {packed} scans matter to this cell"
        item = self.item(
            f"{self.stores[store.key]} slice store of {dataset} {modality}", store, more
        )
        ordered = dict.fromkeys([*(role for role in ROLES if role in roles), *roles])
        item.items = [self.role(dataset, role, roles[role]) for role in ordered]
        item.items += self.origin(dataset)
        return item

    def role(self, dataset: str, role: str, folds: dict[str, list[int]]) -> _Item:
        """The scans of one role; those that are cut are shown where they do not match."""
        item = _Item(f"{role} ({ROLES.get(role) or self.use(folds)}): {_per_fold(folds)}")
        few = self.few(list(folds))
        item.items = [self.scan(dataset, subject, folds[subject]) for subject in few]
        if hidden := [subject for subject in folds if subject not in few]:
            item.items.append(_Item(f"... and {len(hidden)} more"))
        for subject in hidden:
            for node in self.parts(dataset, subject):
                if node.problems and node.key not in self.shown:
                    title = f"{subject}: {_part(node)}"
                    item.items[-1].items.append(self.item(title, node, path=False))
        return item

    def use(self, subjects: Iterable[str]) -> str:
        """What is decided with some validation subjects."""
        names = {"threshold": "the threshold", "air": "AIR"}
        used = [
            name
            for stage, name in names.items()
            if any(set(subjects) & set(n.facts.get("subjects", ())) for n in self.lineage.of(stage))
        ]
        return f"for {' and '.join(used) or 'validation'}"

    def scan(self, dataset: str, subject: str, folds: list[int]) -> _Item:
        """A subject, and the files of its scan that are not shown yet."""
        where = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
        if len(folds) == len(self.lineage.folds) > 1:
            where = "all folds"
        parts = self.parts(dataset, subject)
        new = [node for node in parts if node.key not in self.shown]
        item = _Item(f"{subject} ({where}){', see above' if parts and not new else ''}")
        item.items = [self.item(_part(node), node, path=False) for node in new]
        return item

    def parts(self, dataset: str, subject: str) -> list[Node]:
        """The files of a subject's scan, from the registered volume to the raw ones."""
        wanted = {"dataset": dataset, "subject": subject}
        own = [node for node in self.lineage.nodes if wanted.items() <= node.place.items()]
        above = dict.fromkeys(key for node in own for key in node.inputs)
        batches = [self.nodes[key] for key in above if "batch" in self.nodes[key].place]
        order = ("registered", "transform", "brain mask", "raw")
        return sorted([*own, *batches], key=lambda node: order.index(node.stage))

    def origin(self, dataset: str) -> Iterator[_Item]:
        """Where the raw files of a data set are from."""
        for node in self.lineage.of("participants"):
            if node.place.get("dataset") == dataset and node.key in self.shown:
                yield _Item(f"participants and source of {dataset}: see above")
            elif node.place.get("dataset") == dataset:
                item = self.item(f"participants of {dataset}", node, *_facts(node))
                item.items = list(self.sources(node.inputs))
                if not item.items:
                    others = ", preprocessed by others"
                    others *= node.facts.get("source") == "preprocessed"
                    item.items = [_Item(f"source: the folder {node.facts.get('folder')}{others}")]
                yield item

    def sources(self, keys: Iterable[str]) -> Iterator[_Item]:
        """Downloads and generators, with addresses and checksums."""
        for source in (self.nodes[key] for key in keys if key in self.nodes):
            files, texts = source.facts.get("files", []), []
            for file in self.few(files):
                known = "as published" if file.get("verified") else "recorded, not published"
                texts.append(f"{file.get('url') or file.get('name')}")
                texts.append(f"  {_checksum(file.get('checksum'))} ({known})")
            if len(files) > len(self.few(files)):
                texts.append(f"... and {len(files) - FIRST} more")
            yield self.item(_title(source), source, *texts)

    def atlas(self) -> Iterator[_Item]:
        """The atlas and where it is from."""
        if files := self.lineage.of("atlas"):
            facts = files[0].facts
            items = [self.item(node.key, node, path=False) for node in files]
            items += self.sources(sorted({key for node in files for key in node.inputs}))
            title = f"atlas {facts.get('name', '')}, from {facts.get('source', '?')}"
            yield _Item(title, items=items)

    def others(self) -> Iterator[_Item]:
        """What is below no store: data sets that only the split read, and unknown rules' files."""
        for node in self.lineage.of("participants"):
            if node.key not in self.shown:
                dataset = node.place.get("dataset", "")
                yield _Item(f"{dataset}, which only the split read", items=[*self.origin(dataset)])
        stages = ("list", "source", "other")
        left = [n for stage in stages for n in self.lineage.of(stage) if n.key not in self.shown]
        if left:
            few = [self.item(_title(node), node, *_facts(node)) for node in self.few(left)]
            hidden = [_Item(f"... and {len(left) - len(few)} more")] * (len(left) > len(few))
            yield _Item("other files", items=[*few, *hidden])


# Words ---------------------------------------------------------------------------------------


def _title(node: Node) -> str:
    facts, name = node.facts, NAMES.get(node.stage, node.stage)
    if node.stage == "metrics":
        if facts.get("value") is None:
            return "metrics, without a value"
        number = counted(len(facts["subjects"]), "test volume")
        return f"{facts['value']:.4f}, mean over {number}"
    if node.stage == "threshold" and "threshold" in facts:
        return f"threshold {facts['threshold']:.4f}"
    if node.stage == "air" and "invert" in facts:
        done = "inverted" if facts["invert"] else "not inverted"
        return f"{name}: {done}, AIR {facts['air_before']:.2f} → {facts['air_after']:.2f}"
    if node.stage == "source":
        phantom = f"phantom generator, seed {facts.get('seed')}"
        return f"source: {phantom if facts.get('kind') == 'phantom' else 'download'}"
    if node.stage in ("maps", "reconstructions") and node.status == NOT_KEPT:
        return f"{name}, not kept; hash from its record"
    return node.rule or "file" if node.stage == "other" else name


def _facts(node: Node) -> list[str]:
    """Sentences about a node, besides its title."""
    facts = node.facts
    if node.stage in ("threshold", "air") and "subjects" in facts:
        how = f"{facts['method']} search on" if node.stage == "threshold" else (
            f"{facts['rule']} rule on {facts['reference_dataset']},"
        )  # fmt: skip
        number = counted(len(facts["subjects"]), "validation subject")
        return [f"{how} {number}: {_names(facts['subjects'])}"]
    if node.stage == "weights":
        text = (
            f"seed {facts.get('seed')}, weights of epoch {facts.get('weights_of_epoch')} of "
            f"{facts.get('epochs')}, on {facts.get('device')}, {_duration(facts.get('seconds'))}"
        )
        return [text + (", resumed" if facts.get("resumed") else "")]
    if node.stage == "reconstructions":
        noise = f", t_test {facts['t_test']}" if "t_test" in facts else ""
        return [f"{counted(facts.get('volumes', 0), 'volume')} on {facts.get('device')}{noise}"]
    if node.stage == "split" and "sizes" in facts:
        sizes = "; ".join(
            f"{dataset}: {', '.join(f'{role} {number}' for role, number in roles.items())}"
            for dataset, roles in facts["sizes"].items()
        )
        seed = f", seed {facts['seed']}" if facts.get("seed") is not None else ""
        return [f"{facts.get('kind') or 'unknown'} split{seed}; {sizes}"]
    if node.stage == "participants" and facts.get("left_out"):
        return [f"left out by the config or a reviewer: {_names(facts['left_out'])}"]
    if node.stage == "list" and facts.get("url"):
        return [str(facts["url"]), _checksum(facts.get("checksum"))]
    return []


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def _names(subjects: Sequence[str]) -> str:
    shown = list(subjects) if len(subjects) <= MOST else list(subjects[:FIRST])
    hidden = len(subjects) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


def _per_fold(folds: dict[str, list[int]]) -> str:
    """``4 in fold 0, 3 in fold 1``, or how many in each."""
    counts = Counter(number for numbers in folds.values() for number in numbers)
    if len(set(counts.values())) == 1 and len(counts) > 1:
        return f"{next(iter(counts.values()))} in each of {len(counts)} folds, {len(folds)} in all"
    return ", ".join(f"{n} in fold {fold}" for fold, n in sorted(counts.items()))


def _part(node: Node) -> str:
    """What a file of a scan is."""
    name = node.key.rsplit("/", 1)[-1]
    if node.stage == "raw":
        return f"raw: {name}"
    if "batch" in node.place:
        kept = ", not kept" if node.status == NOT_KEPT else ""
        return f"predicted in batch {node.place['batch']}{kept}"
    return next((text for part, text in PARTS.items() if part in name), name)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _checksum(text: str | None) -> str:
    algorithm, _, digits = (text or "no checksum").partition(":")
    return f"{algorithm}:{digits[:12]}" if digits else algorithm


def _path(path: str, room: int) -> str:
    """A path; where it is too long, without some of its middle."""
    if len(path) <= room:
        return path
    return f"{path[: room // 3]}…{path[-(room - room // 3 - 1) :]}"
