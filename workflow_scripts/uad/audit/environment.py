"""The Python and the packages that jobs ran with, against the lock whose hash they recorded."""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

from uad.audit.tree import AuditedTree
from uad.core.files import sha256
from uad.core.provenance import LOCK
from uad.core.records import REPOSITORY
from uad.report.render import counted

KEY = f"{REPOSITORY}{LOCK.name}"


def locked_versions(tree: AuditedTree) -> None:
    """Every recorded version is one that the lock has for this package."""
    path = tree.path(KEY)
    digest = sha256(path) if path.is_file() else None
    recorded = {record.content["environment"].get("lock_sha256") for record in tree.current}
    locked = _read(path) if digest in recorded - {None} else {}
    others: Counter[str] = Counter()
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in tree.current:
        versions = dict(record.content["environment"])
        lock = versions.pop("lock_sha256", None)
        if lock is None or lock != digest:
            others[lock[:12] if lock else "no lock"] += 1
            continue
        tree.checks["versions against the lock"] += len(versions)
        for name, version in versions.items():
            if not _is_locked(name, version, locked):
                wrong[name, version].append(f"{record.rule} ({record.outputs[0].key})")
    for (name, version), jobs in sorted(wrong.items()):
        asked = " or ".join(locked.get(name, ["no such package"]))
        more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
        tree.fail(
            KEY,
            "other packages",
            f"It has {name} {asked}; {counted(len(jobs), 'job')} ran with {version}: "
            f"{', '.join(sorted(jobs)[:3])}{more}.",
            "Run 'make env', unset PYTHONPATH, leave conda, and run these jobs again.",
        )
    for lock, number in sorted(others.items()):
        jobs, here = counted(number, "job"), digest[:12] if digest else "not here"
        tree.skipped.add(f"versions of packages of {jobs}: made with {lock}, {KEY} is {here}.")


def _read(path: Path) -> dict[str, list[str]]:
    """Versions by package; of Python the bounds."""
    content, found = tomllib.loads(path.read_text(encoding="utf-8")), defaultdict(list)
    for package in content.get("package", []):
        found[package["name"]].append(package.get("version", ""))
    return {**found, "python": [content.get("requires-python", "")]}


def _is_locked(name: str, version: str, locked: dict[str, list[str]]) -> bool:
    if name != "python":  # the build for a device is behind the plus
        return version.partition("+")[0] in [v.partition("+")[0] for v in locked.get(name, [])]
    mine = _numbers(version)
    for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", locked[name][0]):
        if (mine >= _numbers(bound)) != (sign == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
