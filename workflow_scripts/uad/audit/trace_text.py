"""A cell's lineage as a tree for the terminal, 100 columns wide.

Words on the left, on the right the first 12 characters of a file's SHA-256 and the rule that made
it. A file that is needed in several places is shown once, nearest to the cell; elsewhere it is
named. What all folds share, the slice stores and their scans, follows below the tree.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
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
    writer = _Writer(lineage, full)
    writer.head()
    writer.tree()
    for store in lineage.of("store"):
        writer.store(store)
    writer.atlas()
    writer.others()
    writer.foot()
    return "\n".join(line.rstrip() for line in writer.lines) + "\n"


class _Writer:
    def __init__(self, lineage: Lineage, full: bool) -> None:
        self.lineage, self.full = lineage, full
        self.nodes = {node.key: node for node in lineage.nodes}
        self.stores = {node.key: f"[{i}]" for i, node in enumerate(lineage.of("store"), 1)}
        self.lines: list[str] = []
        self.shown: set[str] = set()
        self.shown_below: dict[str, str] = {}
        for stage in NEAREST:
            for node in lineage.of(stage):
                for key in node.inputs:
                    self.shown_below.setdefault(key, node.key)

    def write(self, prefix: str, text: str, node: Node | None = None, rest: str = "") -> None:
        room = (LEFT if node else WIDTH) - max(len(prefix), len(rest))
        lines = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        right = ""
        if node:
            mark = "×" if node.problems else MARKS.get(node.status, " ")
            right = f" {mark} {node.short:<12}  {(node.rule or '')[:20]}"
            lines[0] = lines[0].ljust(LEFT - len(prefix))
        self.lines.append(f"{prefix}{lines[0]}{right}")
        self.lines += [f"{rest or prefix}{line}" for line in lines[1:]]

    def node(self, prefix: str, rest: str, title: str, node: Node, more: Sequence[str]) -> None:
        self.shown.add(node.key)
        self.write(prefix, title, node, rest)
        self.lines.append(f"{rest}{_path(node.key, WIDTH - len(rest))}")
        for text in more:
            self.write(rest, text)
        self.problems(rest, node)

    def problems(self, rest: str, node: Node) -> None:
        for problem in node.problems:
            self.write(f"{rest}× ", problem, rest=f"{rest}  ")

    def few(self, things: Sequence[Any]) -> Sequence[Any]:
        return things if self.full or len(things) <= MOST else things[:FIRST]

    # Head and foot

    def head(self) -> None:
        cell, value = self.lineage.cell, self.lineage.value
        phantom = "   PHANTOM DATA" if value.phantom else ""
        self.write(
            "", f"{cell.table}, {cell.label} ({cell.row}), {cell.column}, {cell.metric}{phantom}"
        )
        self.lines.append("=" * WIDTH)
        volumes = counted(value.n_volumes, "test volume")
        self.write("", f"{value}: {counted(value.n_folds, 'fold')}, {volumes}")
        against = "; a phantom is not comparable with it" if value.phantom else ""
        self.write("", f"published: {value.published}{against}")
        self.lines.append("")

    def foot(self) -> None:
        it = self.lineage
        self.lines.append("-" * WIDTH)
        for state in it.code:
            diff, lock = state["diff_sha256"], state["lock_sha256"]
            dirty = f" with uncommitted changes ({diff[:12]})" if diff else ""
            pins = f"; pinned environment {lock[:12]}" if lock else ""
            commit, jobs = (state["commit"] or "unknown")[:12], counted(state["jobs"], "job")
            self.write("code: ", f"commit {commit}{dirty}{pins}; {jobs}", rest="      ")
        counts = Counter(node.status for node in it.nodes)
        if it.checked:
            text = f"{counts[SAME]} of {len(it.nodes)} files are as recorded (=)"
            if counts[NOT_KEPT]:
                text += f"; {counts[NOT_KEPT]} were not kept, hash from their records (–)"
        else:
            text = f"{len(it.nodes)} files; their hashes are from the records and were not checked"
        self.write("", f"{text}.")
        if it.problems:
            self.write("", f"× {counted(len(it.problems), 'problem')}:")
        for problem in it.problems:
            self.write("  ", problem, rest="    ")

    # From the cell to the stores

    def tree(self) -> None:
        (cell,) = self.lineage.of("cell")
        mean, std = cell.facts.get("recomputed_mean"), cell.facts.get("recomputed_std")
        again = "cannot be computed again"
        if mean is not None:
            spread = f" ± {std:.4f}" if std is not None else ""
            again = f"recomputed from the metrics: {mean:.4f}{spread}"
        spread = f" ± {cell.facts['std']:.4f}" if cell.facts["std"] is not None else ""
        self.node("", "", f"cell {cell.facts['mean']:.4f}{spread}", cell, [again])
        folds, published = self.lineage.folds, self.lineage.of("published")
        bad = {node.place.get("fold") for node in self.lineage.nodes if node.problems}
        shown = [f for f in folds if f in self.few(folds) or str(f.fold) in bad]
        hidden = [fold for fold in folds if fold not in shown]
        for i, fold in enumerate(shown):
            last = i == len(shown) - 1 and not hidden and not published
            self.branch(self.nodes[fold.metrics], "", last, f"fold {fold.fold}: ")
        if hidden:
            values = ", ".join(f"{f.value:.2f}" if f.value is not None else "?" for f in hidden)
            corner = "├─ " if published else "└─ "
            self.write(corner, f"... and {counted(len(hidden), 'more fold')}: {values}")
        for node in published:
            self.node("└─ ", "   ", "published value", node, [])

    def branch(self, node: Node, prefix: str, last: bool, before: str = "") -> None:
        own = [
            self.nodes[key]
            for key in node.inputs
            if key not in self.shown
            and self.shown_below.get(key, node.key) == node.key
            and self.nodes[key].stage not in ("store", "participants", "source")
        ]
        own.sort(key=lambda child: child.stage == "threshold")
        others = [self.nodes[k] for k in node.inputs if k not in {child.key for child in own}]
        rest = prefix + ("   " if last else "│  ")
        more = _facts(node)
        if others:
            more.append(f"reads: {', '.join(dict.fromkeys(map(self.name, others)))}")
        self.node(prefix + ("└─ " if last else "├─ "), rest, f"{before}{_title(node)}", node, more)
        for i, child in enumerate(own):
            self.branch(child, rest, i == len(own) - 1)

    def name(self, node: Node) -> str:
        if node.stage == "store":
            return f"slice store {self.stores[node.key]}"
        if node.stage == "participants":
            return f"participants of {node.place['dataset']}"
        return NAMES.get(node.stage, node.stage)

    # From a store to the raw files

    def store(self, store: Node) -> None:
        dataset, modality = store.place.get("dataset", "?"), store.place.get("modality", "?")
        roles = self.lineage.subjects.get(store.key, {})
        used, packed = store.facts.get("used"), store.facts.get("packed")
        more = [f"{used} of its {packed} scans matter to this cell"]
        if used is None:
            more = ["its scans cannot be followed"]
        self.lines.append("")
        title = f"{self.stores[store.key]} slice store of {dataset} {modality}"
        self.node("", "", title, store, more)
        for role in dict.fromkeys([*(role for role in ROLES if role in roles), *roles]):
            self.role(dataset, role, roles[role])
        self.origin(dataset)

    def role(self, dataset: str, role: str, folds: dict[str, list[int]]) -> None:
        use = ROLES.get(role) or self.use(folds)
        self.write("├─ ", f"{role} ({use}): {_per_fold(folds)}", rest="│  ")
        few = list(self.few(list(folds)))
        hidden = [subject for subject in folds if subject not in few]
        for i, subject in enumerate(few):
            self.scan(dataset, subject, folds[subject], last=i == len(few) - 1 and not hidden)
        if hidden:
            self.write("│  └─ ", f"... and {len(hidden)} more")
        for subject in hidden:
            for node in self.parts(dataset, subject):
                if node.problems and node.key not in self.shown:
                    self.shown.add(node.key)
                    self.write("│     ", f"{subject}: {_part(node)}", node)
                    self.problems("│       ", node)

    def use(self, subjects: Iterable[str]) -> str:
        names = {"threshold": "the threshold", "air": "AIR"}
        used = [
            name
            for stage, name in names.items()
            if any(set(subjects) & set(n.facts.get("subjects", ())) for n in self.lineage.of(stage))
        ]
        return f"for {' and '.join(used) or 'validation'}"

    def scan(self, dataset: str, subject: str, folds: list[int], last: bool) -> None:
        prefix, rest = ("│  └─ ", "│     ") if last else ("│  ├─ ", "│  │  ")
        where = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
        if len(folds) == len(self.lineage.folds) > 1:
            where = "all folds"
        parts = self.parts(dataset, subject)
        new = [node for node in parts if node.key not in self.shown]
        above = ", see above" if parts and not new else ""
        self.write(prefix, f"{subject} ({where}){above}", rest=rest)
        for i, node in enumerate(new):
            self.shown.add(node.key)
            corner, below = ("└─ ", "   ") if i == len(new) - 1 else ("├─ ", "│  ")
            self.write(rest + corner, _part(node), node)
            self.problems(rest + below, node)

    def parts(self, dataset: str, subject: str) -> list[Node]:
        wanted = {"dataset": dataset, "subject": subject}
        own = [node for node in self.lineage.nodes if wanted.items() <= node.place.items()]
        above = dict.fromkeys(key for node in own for key in node.inputs)
        batches = [self.nodes[key] for key in above if "batch" in self.nodes[key].place]
        order = ("registered", "transform", "brain mask", "raw")
        return sorted([*own, *batches], key=lambda node: order.index(node.stage))

    def origin(self, dataset: str) -> None:
        for node in self.lineage.of("participants"):
            if node.place.get("dataset") != dataset:
                continue
            if node.key in self.shown:
                self.write("└─ ", f"participants and source of {dataset}: see above")
                return
            self.node("└─ ", "   ", f"participants of {dataset}", node, _facts(node))
            if not node.inputs:
                others = ", preprocessed by others" * (node.facts.get("source") == "preprocessed")
                folder = node.facts.get("folder")
                self.write("   └─ ", f"source: the folder {folder}{others}", rest="      ")
            self.sources(node.inputs)

    def sources(self, keys: Iterable[str]) -> None:
        for source in (self.nodes[key] for key in keys if key in self.nodes):
            files, texts = source.facts.get("files", []), []
            for file in self.few(files):
                known = "as published" if file.get("verified") else "recorded, not published"
                texts.append(f"{file.get('url') or file.get('name')}")
                texts.append(f"  {_checksum(file.get('checksum'))} ({known})")
            if len(files) > len(self.few(files)):
                texts.append(f"... and {len(files) - FIRST} more")
            self.node("   └─ ", "      ", _title(source), source, texts)

    def atlas(self) -> None:
        files = self.lineage.of("atlas")
        if not files:
            return
        facts = files[0].facts
        self.lines.append("")
        self.write("", f"atlas {facts.get('name', '')}, from {facts.get('source', '?')}")
        for i, node in enumerate(files):
            self.shown.add(node.key)
            self.write("└─ " if i == len(files) - 1 else "├─ ", node.key, node)
            self.problems("   ", node)
        self.sources(sorted({key for node in files for key in node.inputs}))

    def others(self) -> None:
        for node in self.lineage.of("participants"):
            if node.key not in self.shown:
                self.lines.append("")
                self.write("", f"{node.place.get('dataset')}, which only the split read")
                self.origin(node.place.get("dataset", ""))
        stages = ("list", "source", "other")
        left = [n for stage in stages for n in self.lineage.of(stage) if n.key not in self.shown]
        if left:
            self.lines += ["", "other files"]
        for node in self.few(left):
            self.node("├─ ", "│  ", _title(node), node, _facts(node))
        if hidden := len(left) - len(self.few(left)):
            self.write("└─ ", f"... and {hidden} more")


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
