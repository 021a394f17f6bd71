"""A cell's lineage as a tree for the terminal, 100 columns wide.

Words on the left, on the right the first 12 characters of a file's SHA-256 and the rule that made
it. A file that is needed in several places is shown once, nearest to the cell; elsewhere it is
named. What all folds share, the slice stores and their scans, follows below the tree.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from uad.lineage import CHANGED, MISSING, NOT_KEPT, SAME

if TYPE_CHECKING:
    from uad.lineage import Lineage, Node

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
#: Names of the parts of a scan, by what its file name ends in.
_PARTS = (
    ("desc-preproc_", "registered volume"),
    ("desc-xfm_", "transform to the atlas"),
    ("space-SRI24_label-brain_", "brain mask in the atlas"),
    ("space-SRI24_label-lesion_", "lesion mask in the atlas"),
    ("space-orig_label-brain_", "brain mask of the raw scan"),
)
_NAMES = {
    "maps": "anomaly maps",
    "air": "AIR decision",
    "store": "slice store",
    "list": "published split list",
}


def render(lineage: Lineage, full: bool = False) -> str:
    """The tree as text.

    Args:
        lineage: from :func:`uad.lineage.trace`.
        full: all siblings of a kind, however many.
    """
    return _Text(lineage, full).text()


class _Text:
    def __init__(self, lineage: Lineage, full: bool) -> None:
        self.lineage, self.full = lineage, full
        self.nodes = {node.key: node for node in lineage.nodes}
        self.stores = {node.key: f"[{i}]" for i, node in enumerate(lineage.of("store"), 1)}
        self.lines: list[str] = []
        self.shown: set[str] = set()
        self.scans: dict[tuple[str, str], list[Node]] = {}
        for node in lineage.nodes:
            if "subject" in node.place:
                place = node.place["dataset"], node.place["subject"]
                self.scans.setdefault(place, []).append(node)

    def text(self) -> str:
        """Everything."""
        self._head()
        self._tree()
        for store in self.lineage.of("store"):
            self._store(store)
        self._atlas()
        self._others()
        self._foot()
        return "\n".join(line.rstrip() for line in self.lines) + "\n"

    # lines

    def _write(self, prefix: str, text: str, node: Node | None = None, rest: str = "") -> None:
        """Words, wrapped; the hash and the rule of a node beside their first line."""
        room = (LEFT if node else WIDTH) - max(len(prefix), len(rest))
        lines = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        right = ""
        if node:
            mark = "×" if node.problems else MARKS.get(node.status, " ")
            right = f" {mark} {node.short:<12}  {(node.rule or '')[:20]}"
            lines[0] = lines[0].ljust(LEFT - len(prefix))
        self.lines.append(f"{prefix}{lines[0]}{right}")
        self.lines += [f"{rest or prefix}{line}" for line in lines[1:]]

    def _node(self, prefix: str, rest: str, title: str, node: Node, more: Sequence[str]) -> None:
        """A node: title, path, and what is worth telling, each on lines of its own."""
        self.shown.add(node.key)
        self._write(prefix, title, node, rest)
        self.lines.append(f"{rest}{_path(node.key, WIDTH - len(rest))}")
        for text in more:
            self._write(rest, text)
        self._problems(rest, node)

    def _problems(self, rest: str, node: Node) -> None:
        for problem in node.problems:
            self._write(f"{rest}× ", problem, rest=f"{rest}  ")

    def _few(self, things: Sequence[Any]) -> Sequence[Any]:
        """The siblings to show."""
        return things if self.full or len(things) <= MOST else things[:FIRST]

    # head and foot

    def _head(self) -> None:
        it = self.lineage
        phantom = "   PHANTOM DATA" if it.value.phantom else ""
        self._write("", f"{it.table}, {it.label} ({it.row}), {it.column}, {it.metric}{phantom}")
        self.lines.append("=" * WIDTH)
        folds = _counted(it.value.n_folds, "fold")
        self._write("", f"{it.value}: {folds}, {_counted(it.value.n_volumes, 'test volume')}")
        against = "; a phantom is not comparable with it" if it.value.phantom else ""
        self._write("", f"published: {it.value.published}{against}")
        self.lines.append("")

    def _foot(self) -> None:
        it = self.lineage
        self.lines.append("-" * WIDTH)
        for state in it.code:
            commit = (state["commit"] or "unknown")[:12]
            diff = state["diff_sha256"]
            dirty = f" with uncommitted changes ({diff[:12]})" if diff else ""
            lock = state["lock_sha256"]
            pins = f"; pinned environment {lock[:12]}" if lock else ""
            jobs = _counted(state["jobs"], "job")
            self._write("code: ", f"commit {commit}{dirty}{pins}; {jobs}", rest="      ")
        if it.checked:
            counts = {s: sum(n.status == s for n in it.nodes) for s in (SAME, NOT_KEPT)}
            text = f"{counts[SAME]} of {len(it.nodes)} files are as recorded (=)"
            if counts[NOT_KEPT]:
                text += f"; {counts[NOT_KEPT]} were not kept, hash from their records (–)"
        else:
            text = f"{len(it.nodes)} files; their hashes are from the records and were not checked"
        self._write("", f"{text}.")
        if it.problems:
            self._write("", f"× {_counted(len(it.problems), 'problem')}:")
            for problem in it.problems:
                self._write("  ", problem, rest="    ")

    # from the cell to the stores

    def _tree(self) -> None:
        (cell,) = self.lineage.of("cell")
        self.shown.add(cell.key)
        mean, std = cell.facts.get("recomputed_mean"), cell.facts.get("recomputed_std")
        again = "cannot be computed again"
        if mean is not None:
            again = f"recomputed from the metrics: {mean:.4f}"
            again += f" ± {std:.4f}" if std is not None else ""
        said = f"{self.lineage.value.mean:.4f}"
        if (spread := self.lineage.value.std) == spread:
            said += f" ± {spread:.4f}"
        self._node("", "", f"cell {said}", cell, [again])
        few = self._few(self.lineage.folds)
        bad = {node.place.get("fold") for node in self.lineage.nodes if node.problems}
        folds = [f for f in self.lineage.folds if f in few or str(f.fold) in bad]
        hidden = [fold for fold in self.lineage.folds if fold not in folds]
        published = self.lineage.of("published")
        for i, fold in enumerate(folds):
            last = i == len(folds) - 1 and not hidden and not published
            self._branch(self.nodes[fold.metrics], "", last, f"fold {fold.fold}: ")
        if hidden:
            values = ", ".join(f"{f.value:.2f}" if f.value is not None else "?" for f in hidden)
            self._write(
                "└─ " if not published else "├─ ",
                f"... and {_counted(len(hidden), 'more fold')}: {values}",
            )
        for node in published:
            self._node("└─ ", "   ", "published value", node, [])

    def _branch(self, node: Node, prefix: str, last: bool, before: str = "") -> None:
        """A node and, below it, what is shown here of its inputs."""
        own = [
            self.nodes[key]
            for key in node.inputs
            if key in self.nodes and self._belongs(key, node.key)
        ]
        own.sort(key=lambda child: child.stage == "threshold")
        others = [self.nodes[k] for k in node.inputs if k not in {child.key for child in own}]
        rest = prefix + ("   " if last else "│  ")
        more = _facts(node)
        if others:
            more.append(f"reads: {', '.join(dict.fromkeys(map(self._name, others)))}")
        title = f"{before}{_title(node)}"
        self._node(prefix + ("└─ " if last else "├─ "), rest, title, node, more)
        for i, child in enumerate(own):
            self._branch(child, rest, i == len(own) - 1)

    def _belongs(self, key: str, parent: str) -> bool:
        """Whether a file is shown below this one: the first that reads it, and no store."""
        if key in self.shown or self.nodes[key].stage in ("store", "participants", "source"):
            return False
        readers = (node.key for node in self._nearest() if key in node.inputs)
        return next(readers, parent) == parent

    def _nearest(self) -> Iterator[Node]:
        order = ("metrics", "maps", "reconstructions", "threshold", "weights", "air", "split")
        for stage in order:
            yield from self.lineage.of(stage)

    def _name(self, node: Node) -> str:
        """How a file is called where it is only named."""
        if node.stage == "store":
            return f"slice store {self.stores[node.key]}"
        if node.stage == "participants":
            return f"participants of {node.place['dataset']}"
        return _NAMES.get(node.stage, node.stage)

    # from a store to the raw files

    def _store(self, store: Node) -> None:
        dataset, modality = store.place.get("dataset", "?"), store.place.get("modality", "?")
        roles = self.lineage.subjects.get(store.key, {})
        used, packed = store.facts.get("used"), store.facts.get("packed")
        self.lines.append("")
        title = f"{self.stores[store.key]} slice store of {dataset} {modality}"
        more = [f"{used} of its {packed} scans matter to this cell"]
        if used is None:
            more = ["its scans cannot be followed"]
        self._node("", "", title, store, more)
        ordered = [role for role in ROLES if role in roles]
        ordered += [role for role in roles if role not in ROLES]
        for role in ordered:
            self._role(store, role, roles[role])
        self._origin(dataset)

    def _role(self, store: Node, role: str, folds: dict[str, list[int]]) -> None:
        use = ROLES.get(role) or self._use(folds)
        self._write("├─ ", f"{role} ({use}): {_per_fold(folds)}", rest="│  ")
        few = list(self._few(list(folds)))
        hidden = len(folds) - len(few)
        for i, subject in enumerate(few):
            last = i == len(few) - 1 and not hidden
            self._scan(store, subject, folds[subject], last)
        if hidden:
            self._write("│  └─ ", f"... and {hidden} more")
        self._marked(store, [s for s in folds if s not in few])

    def _use(self, subjects: Iterable[str]) -> str:
        """What is decided with some validation subjects."""
        used = {
            name: any(set(subjects) & set(n.facts.get("subjects", ())) for n in it)
            for name, it in (
                ("the threshold", self.lineage.of("threshold")),
                ("AIR", self.lineage.of("air")),
            )
        }
        return f"for {' and '.join(name for name, yes in used.items() if yes) or 'validation'}"

    def _marked(self, store: Node, subjects: Iterable[str]) -> None:
        """Scans that are cut are shown all the same where they do not match."""
        for subject in subjects:
            for node in self._parts(store, subject):
                if node.problems and node.key not in self.shown:
                    self.shown.add(node.key)
                    self._write("│     ", f"{subject}: {_part(node)}", node)
                    self._problems("│       ", node)

    def _scan(self, store: Node, subject: str, folds: list[int], last: bool) -> None:
        prefix, rest = ("│  └─ ", "│     ") if last else ("│  ├─ ", "│  │  ")
        where = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
        if len(folds) == len(self.lineage.folds) > 1:
            where = "all folds"
        parts = self._parts(store, subject)
        new = [node for node in parts if node.key not in self.shown]
        above = ", see above" if parts and not new else ""
        self._write(prefix, f"{subject} ({where}){above}", rest=rest)
        for i, node in enumerate(new):
            self.shown.add(node.key)
            corner, below = ("└─ ", "   ") if i == len(new) - 1 else ("├─ ", "│  ")
            self._write(rest + corner, _part(node), node)
            self._problems(rest + below, node)

    def _parts(self, store: Node, subject: str) -> list[Node]:
        """The files of a subject's scan, from the registered volume to the raw ones."""
        own = self.scans.get((store.place.get("dataset", ""), subject), [])
        above = dict.fromkeys(key for node in own for key in node.inputs)
        batches = [self.nodes[key] for key in above if "batch" in self.nodes[key].place]
        order = ("registered", "transform", "brain mask", "raw")
        return sorted([*own, *batches], key=lambda node: order.index(node.stage))

    def _origin(self, dataset: str) -> None:
        """Where the raw files of a data set are from."""
        for node in self.lineage.of("participants"):
            if node.place.get("dataset") != dataset:
                continue
            if node.key in self.shown:
                self._write("└─ ", f"participants and source of {dataset}: see above")
                return
            sources = [self.nodes[key] for key in node.inputs if key in self.nodes]
            self._node("└─ ", "   ", f"participants of {dataset}", node, _facts(node))
            if not sources:
                others = ", preprocessed by others" * (node.facts.get("source") == "preprocessed")
                folder = node.facts.get("folder")
                self._write("   └─ ", f"source: the folder {folder}{others}", rest="      ")
            for source in sources:
                self._node("   └─ ", "      ", _title(source), source, self._files(source))

    def _files(self, source: Node) -> list[str]:
        """Downloaded archives: where from, and their checksums."""
        files = source.facts.get("files", [])
        texts = []
        for file in self._few(files):
            known = "as published" if file.get("verified") else "recorded, not published"
            texts.append(f"{file.get('url') or file.get('name')}")
            texts.append(f"  {_checksum(file.get('checksum'))} ({known})")
        if len(files) > len(self._few(files)):
            texts.append(f"... and {len(files) - FIRST} more")
        return texts

    def _atlas(self) -> None:
        files = self.lineage.of("atlas")
        if not files:
            return
        facts = files[0].facts
        self.lines.append("")
        self._write("", f"atlas {facts.get('name', '')}, from {facts.get('source', '?')}")
        for i, node in enumerate(files):
            self.shown.add(node.key)
            self._write("└─ " if i == len(files) - 1 else "├─ ", node.key, node)
            self._problems("   ", node)
        above = {key for node in files for key in node.inputs}
        for node in (self.nodes[key] for key in sorted(above)):
            self._node("   └─ ", "      ", _title(node), node, self._files(node))

    def _others(self) -> None:
        """What is below no store: data sets that only the split read, and unknown rules' files."""
        for node in self.lineage.of("participants"):
            if node.key not in self.shown:
                self.lines.append("")
                self._write("", f"{node.place.get('dataset')}, which only the split read")
                self._origin(node.place.get("dataset", ""))
        stages = ("list", "source", "other")
        left = [n for stage in stages for n in self.lineage.of(stage) if n.key not in self.shown]
        if not left:
            return
        self.lines += ["", "other files"]
        for node in self._few(left):
            self._node("├─ ", "│  ", _title(node), node, _facts(node))
        if hidden := len(left) - len(self._few(left)):
            self._write("└─ ", f"... and {hidden} more")


# Words ---------------------------------------------------------------------------------------


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _title(node: Node) -> str:
    facts = node.facts
    if node.stage == "metrics":
        if facts.get("value") is None:
            return "metrics, without a value"
        number = _counted(len(facts["subjects"]), "test volume")
        return f"{facts['value']:.4f}, mean over {number}"
    if node.stage == "threshold":
        return f"threshold {facts['threshold']:.4f}" if "threshold" in facts else "threshold"
    if node.stage == "air" and "invert" in facts:
        done = "inverted" if facts["invert"] else "not inverted"
        return f"AIR decision: {done}, AIR {facts['air_before']:.2f} → {facts['air_after']:.2f}"
    if node.stage == "source":
        if facts.get("kind") == "phantom":
            return f"source: phantom generator, seed {facts.get('seed')}"
        return "source: download"
    if node.stage in ("maps", "reconstructions") and node.status == NOT_KEPT:
        return f"{_NAMES.get(node.stage, node.stage)}, not kept; hash from its record"
    if node.stage == "other":
        return node.rule or "file"
    return _NAMES.get(node.stage, node.stage)


def _facts(node: Node) -> list[str]:
    """Sentences about a node, besides its title."""
    facts = node.facts
    if node.stage == "threshold" and "subjects" in facts:
        who = _names(facts["subjects"])
        number = _counted(len(facts["subjects"]), "validation subject")
        return [f"{facts['method']} search on {number}: {who}"]
    if node.stage == "air" and "subjects" in facts:
        number = _counted(len(facts["subjects"]), "validation subject")
        return [
            f"{facts['rule']} rule on {facts['reference_dataset']}, {number}: "
            f"{_names(facts['subjects'])}"
        ]
    if node.stage == "weights":
        text = (
            f"seed {facts.get('seed')}, weights of epoch {facts.get('weights_of_epoch')} of "
            f"{facts.get('epochs')}, on {facts.get('device')}, {_duration(facts.get('seconds'))}"
        )
        return [text + (", resumed" if facts.get("resumed") else "")]
    if node.stage == "reconstructions":
        noise = f", t_test {facts['t_test']}" if "t_test" in facts else ""
        return [f"{_counted(facts.get('volumes', 0), 'volume')} on {facts.get('device')}{noise}"]
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
        return [str(facts.get("url")), _checksum(facts.get("checksum"))]
    return []


def _names(subjects: Sequence[str]) -> str:
    shown = list(subjects) if len(subjects) <= MOST else list(subjects[:FIRST])
    hidden = len(subjects) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


def _per_fold(folds: dict[str, list[int]]) -> str:
    """``4 subjects in fold 0, 3 in fold 1``."""
    counts: dict[int, int] = {}
    for numbers in folds.values():
        for number in numbers:
            counts[number] = counts.get(number, 0) + 1
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
    return next((text for part, text in _PARTS if part in name), name)


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
    head, tail = path[: room // 3], path[-(room - room // 3 - 1) :]
    return f"{head}…{tail}"
