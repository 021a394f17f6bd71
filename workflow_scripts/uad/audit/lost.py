"""Which record is missing, from the files that it left.

A record is named by its job's first output. Where it is gone, that name follows from what is
there: other jobs of the rule, the jobs that read its files, the log that every job leaves.
"""

from __future__ import annotations

import itertools
import re
from pathlib import PurePosixPath

from uad.audit.tree import AUDIT, CONFIG, KEYS, Audited, key
from uad.core.provenance import SUFFIX
from uad.records import Record

#: Which of a job's files of one name is its first output, by ending.
_FIRST = "safetensors nii.gz csv ipynb png svg tsv json md tex html zip".split()
#: How many files are looked at for those of one job.
_PAIRED = 1000
#: Outputs of the rules that run once in a tree, which no other job of theirs tells.
_ONCE = {
    rule: [key(path) for path in outputs]
    for rule, outputs in {
        "check_disk_space": ["./preflight.json"],
        "download_atlas": [KEYS.atlas("download.json")],
        "prepare_atlas": [
            *(KEYS.atlas(f"{name}.nii.gz") for name in ("head", "brain", "brain_mask")),
            KEYS.atlas("atlas.json"),
        ],
        "save_config": [f"./{CONFIG}"],
        "make_air_table": [
            *(KEYS.table(ending, "air") for ending in ("csv", "md", "html")),
            KEYS.figure("png", "air"),
        ],
        "make_cost_table": [KEYS.table(ending, "cost") for ending in ("csv", "md", "tex", "html")],
        "make_gallery": [KEYS.gallery(), *map(KEYS.quality_summary, ("json", "html"))],
        "describe_run": [
            KEYS.figure("svg", "workflow"),
            *map(KEYS.page, ("data", "config")),
            KEYS.runtime(),
        ],
        "make_report": ["./report.html"],
        "pack_crate": [KEYS.crate()],
    }.items()
}


def attribute(tree: Audited, unexplained: set[str]) -> dict[str | None, set[str]]:
    """Share out files without a record among the records that must have been there.

    Args:
        tree: the tree.
        unexplained: keys of files that no record has among its outputs, and of inputs that no
            record wrote.

    Returns:
        For each missing (or unreadable) record its files; under None those without any sign that
        a job of the workflow wrote them.
    """
    if not unexplained:
        return {}
    proven = {n for n in unexplained if n in tree.records.consumers}
    logs = _unclaimed_logs(tree)
    logged = any(name.startswith("logs/") for name in tree.files)
    found: dict[str | None, set[str]] = {}
    left = set(unexplained)
    for family in _families(tree):
        for name in sorted(left):
            outputs = family.outputs_with(name)
            if name not in left or not outputs or outputs[0] + SUFFIX in tree.records.all:
                continue
            group, record = set(outputs) & left, outputs[0] + SUFFIX
            # a reader proves that somebody wrote it, the log that it was this rule
            seen = family.log(name) in logs if logged else bool(group & proven)
            if seen or record in tree.records.broken:
                found.setdefault(record, set()).update(group)
                left -= group
                logs.discard(family.log(name))
    for rule, outputs in _ONCE.items():
        log, record, group = key(KEYS.log(rule)), outputs[0] + SUFFIX, set(outputs) & left
        if group and (record in tree.records.broken or log in logs or group & proven):
            found.setdefault(record, set()).update(group)
            left -= group
            logs.discard(log)
    # pairs of files are compared: a tree that lost thousands of records has them named singly
    for group in _groups(tree, left) if len(left) <= _PAIRED else ():
        record = _first(tree, group) + SUFFIX
        broken = [n + SUFFIX for n in sorted(group) if n + SUFFIX in tree.records.broken]
        log = next((log for log in sorted(logs) if _belongs(log, group)), None)
        if broken or group & proven or log:
            found.setdefault(broken[0] if broken else record, set()).update(group)
            logs.discard(log)
            left -= group
    if left:
        found[None] = left
    return found


def _unclaimed_logs(tree: Audited) -> set[str]:
    """Logs of jobs that have no record."""
    claimed = {log_key(record) for record in tree.records.all.values()}
    logs = {name for name in tree.files if name.startswith("logs/")}
    return logs - claimed - {key(KEYS.log(AUDIT))}


def log_key(record: Record) -> str | None:
    """Key of a job's log."""
    log, root = record.content.get("log"), record.content["roots"]["results"]
    if not log or not PurePosixPath(log).is_relative_to(root):
        return None
    return str(PurePosixPath(log).relative_to(root))


class _Family:
    """The outputs of a job as patterns of its wildcards, for the other jobs of its rule."""

    def __init__(self, record: Record) -> None:
        self._wildcards = record.wildcards
        self._outputs = [self._template(entry.key) for entry in record.outputs]
        self._log = self._template(log_key(record) or "")
        self._patterns = [_pattern(template) for template in self._outputs]

    def _template(self, path: str) -> str:
        """``sub-01/T1w.json`` -> ``sub-{subject}/{suffix}.json``, longest values first."""
        by_length = sorted(self._wildcards.items(), key=lambda item: -len(item[1]))
        parts = [path]
        for name, value in by_length:
            pattern = rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])"
            parts = [
                piece
                for part in parts
                for piece in (
                    re.split(f"({pattern})", part) if not part.startswith("\0") else [part]
                )
            ]
            parts = [f"\0{name}" if part == value else part for part in parts]
        self_made = "".join(f"{{{p[1:]}}}" if p.startswith("\0") else _escaped(p) for p in parts)
        return self_made

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for jobs of the same rule whose files are named alike."""
        return (*self._outputs, self._log)

    def outputs_with(self, name: str) -> list[str]:
        """All outputs of the job that has ``name`` among them; none if no job of this rule has."""
        values = self._wildcards_of(name)
        try:
            return [other.format(**values) for other in self._outputs] if values else []
        except KeyError:
            return []

    def log(self, name: str) -> str | None:
        """Key of the log of the job that has ``name`` among its outputs."""
        values = self._wildcards_of(name)
        try:
            return self._log.format(**values) if values else None
        except KeyError:
            return None

    def _wildcards_of(self, name: str) -> dict[str, str]:
        """Wildcards of the job that has ``name`` among its outputs; empty if no job has."""
        for pattern in self._patterns:
            if (found := pattern.fullmatch(name)) and found.groupdict():
                return found.groupdict()
        return {}


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _pattern(template: str) -> re.Pattern[str]:
    """What the files of a template are called, a group for each wildcard."""
    seen: set[str] = set()
    pattern = ""
    for piece in re.split(r"(\{[A-Za-z_]+\})", template):
        if piece.startswith("{") and piece.endswith("}") and piece[1:-1].isidentifier():
            wildcard = piece[1:-1]
            pattern += rf"(?P={wildcard})" if wildcard in seen else rf"(?P<{wildcard}>[^/]+?)"
            seen.add(wildcard)
        else:
            pattern += re.escape(piece)
    return re.compile(pattern)


def _families(tree: Audited) -> list[_Family]:
    """One family for each way in which the jobs of a rule name their files."""
    families = {}
    for record in tree.sound:
        if record.wildcards:
            family = _Family(record)
            families.setdefault((record.rule, *family.identity), family)
    return list(families.values())


def _stem(name: str) -> str:
    return PurePosixPath(name).name.split(".")[0]


def _groups(tree: Audited, names: set[str]) -> list[set[str]]:
    """Files of one job, where no other job of the rule is there to compare with.

    They have a name in common, or stand side by side among the inputs of a job.
    """
    groups = [{name} for name in sorted(names)]

    def join(one: str, other: str) -> None:
        first = next(group for group in groups if one in group)
        second = next(group for group in groups if other in group)
        if first is not second:
            first |= second
            groups.remove(second)

    stems: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        join(stems.setdefault((str(PurePosixPath(name).parent), _stem(name)), name), name)
    for record in tree.sound:
        inputs = [entry.key for entry in record.inputs]
        for one, other in itertools.pairwise(inputs):
            if one in names and other in names:
                one_path, other_path = PurePosixPath(one), PurePosixPath(other)
                beside = one_path.parent == other_path.parent
                alike = _stem(one) == _stem(other) and one_path.parts[0] != other_path.parts[0]
                if beside or alike:
                    join(one, other)
    return groups


def _first(tree: Audited, group: set[str]) -> str:
    """Which file of a group is its job's first output."""
    for record in tree.sound:
        inputs = [entry.key for entry in record.inputs if entry.key in group]
        if len(inputs) == len(group):
            return inputs[0]

    def rank(name: str) -> tuple[int, int, str]:
        ending = PurePosixPath(name).name.partition(".")[2]
        known = [place for place, known in enumerate(_FIRST) if ending.endswith(known)]
        return known[0] if known else len(_FIRST), len(ending), name

    return min(group, key=rank)


def _belongs(log: str, group: set[str]) -> bool:
    """Whether a log is of the job that wrote a group: both end with the same wildcard."""
    _, _, *rest = PurePosixPath(log).with_suffix("").parts
    return bool(rest) and rest[-1] in {_stem(name) for name in group}
