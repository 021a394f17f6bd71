"""The Python and the packages that jobs ran with, against the lock whose hash they recorded."""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict

from uad.audit.tree import AuditedTree
from uad.core.files import sha256
from uad.core.provenance import LOCK
from uad.core.records import REPOSITORY
from uad.report.render import counted

KEY = f"{REPOSITORY}{LOCK.name}"


def locked_versions(tree: AuditedTree) -> None:
    """Every recorded version is one that the lock has for this package."""
    path = tree.path(KEY)
    digest = sha256(path) if path.is_file() else "not here"
    others: Counter[str] = Counter()
    jobs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in tree.current:
        versions = dict(record.content["environment"])
        lock = versions.pop("lock_sha256", None) or "no lock"
        if lock != digest:
            others[lock[:12]] += 1
            continue
        tree.checks["versions against the lock"] += len(versions)
        for package in versions.items():
            jobs[package].append(f"{record.rule} ({record.outputs[0].key})")
    # versions by package; of Python the bounds
    lock = tomllib.loads(path.read_text(encoding="utf-8")) if jobs else {}
    locked = defaultdict(list, python=[lock.get("requires-python", "")])
    for package in lock.get("package", []):
        locked[package["name"]].append(package.get("version", ""))
    for (name, version), ran in sorted(jobs.items()):
        # the build for a device is behind the plus
        known = version.partition("+")[0] in [v.partition("+")[0] for v in locked[name]]
        if known or (name == "python" and _is_within(version, locked[name][0])):
            continue
        more = f" and {len(ran) - 3} more" if len(ran) > 3 else ""
        why = (
            f"It has {name} {' or '.join(locked[name]) or 'no such package'}; "
            f"{counted(len(ran), 'job')} ran with {version}: {', '.join(sorted(ran)[:3])}{more}."
        )
        advice = "Run 'make env', unset PYTHONPATH, leave conda, and run these jobs again."
        tree.fail(KEY, "other packages", why, advice)
    for name, number in sorted(others.items()):
        ran = counted(number, "job")
        tree.skipped.add(
            f"versions of packages of {ran}: made with {name}, {KEY} is {digest[:12]}."
        )


def _is_within(version: str, bounds: str) -> bool:
    """Whether a version of Python satisfies ``>=3.11, <3.14``."""

    def numbers(text: str) -> list[int]:
        return list(map(int, re.findall(r"\d+", text)[:3]))

    found = re.findall(r"(>=|<)\s*([\d.]+)", bounds)
    return all((numbers(version) >= numbers(end)) == (sign == ">=") for sign, end in found)
