"""Versions and settings: each job's against those of its neighbours, the lock and the config."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from uad.audit.tree import CONFIG, AuditedTree
from uad.config.model import Config
from uad.config.params import PARAMS
from uad.core.errors import first_of
from uad.core.files import sha256
from uad.core.provenance import LOCK
from uad.core.records import REPOSITORY, Record
from uad.report.render import counted

#: Wildcards in which jobs of one kind may differ without differing in their params.
SCANS = ("subject", "fold", "batch")
#: What an index depends on of its data set's config.
INDEXED = ("layout", "source", "modalities", "exclude", "limit")
LOCKED = f"{REPOSITORY}{LOCK.name}"
#: Params that name scans or describe a raw tree, and hence differ from job to job.
OWN = ("subjects", "listing")


def versions(tree: AuditedTree) -> None:
    """No artifact was made by another version of a file of the code than its neighbours."""
    by_name: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in tree.current:
        code, environment = record.content["code"], dict(record.content["environment"])
        found = {f"uad/{name}": digest for name, digest in code["library_files"].items()}
        found[f"{record.rule}.py"] = code.get("script_sha256")
        found["uv.lock"] = environment.pop("lock_sha256", None)
        for what, version in {**found, **environment}.items():
            if version:
                by_name[what][version].append(record)
                tree.checks["versions of code and packages"] += 1
    different: dict[str, list[str]] = defaultdict(list)
    for what, found in by_name.items():
        for record, version, usual in _unusual(found):
            different[record.outputs[0].key].append(
                f"{what} ({version[:8]}, where {len(found[usual])} other records have {usual[:8]})"
            )
    for artifact, lines in different.items():
        why = f"It was made with another version of {first_of(sorted(lines), 3)}."
        advice = "Delete it and run again, so that all is made by one version; or make all anew."
        tree.fail(artifact, "other code", why, advice)


def _unusual(found: Mapping[str, list[Record]]) -> Iterator[tuple[Record, str, str]]:
    """The records that have another value than most, their value and the usual one.

    Of two values with as many records the newer is the usual one.
    """
    usual = max(found, key=lambda v: (len(found[v]), max(r.content["started"] for r in found[v])))
    for value, records in found.items():
        yield from ((record, value, usual) for record in records if value != usual)


def locked_versions(tree: AuditedTree) -> None:
    """Every recorded version is one that the lock has for this package."""
    path = tree.path(LOCKED)
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
        why = (
            f"It has {name} {' or '.join(locked[name]) or 'no such package'}; "
            f"{counted(len(ran), 'job')} ran with {version}: {first_of(sorted(ran), 3)}."
        )
        advice = "Run 'make env', unset PYTHONPATH, leave conda, and run these jobs again."
        tree.fail(LOCKED, "other packages", why, advice)
    for name, number in sorted(others.items()):
        ran = counted(number, "job")
        tree.skipped.add(
            f"versions of packages of {ran}: made with {name}, {LOCKED} is {digest[:12]}."
        )


def _is_within(version: str, bounds: str) -> bool:
    """Whether a version of Python satisfies ``>=3.11, <3.14``."""

    def numbers(text: str) -> list[int]:
        return list(map(int, re.findall(r"\d+", text)[:3]))

    found = re.findall(r"(>=|<)\s*([\d.]+)", bounds)
    return all((numbers(version) >= numbers(end)) == (sign == ">=") for sign, end in found)


def expected(cfg: Config, record: Record) -> dict[str, Any]:
    """Params of a job as the config has them; only those that can be told from it.

    Raises:
        KeyError: the job is of something that the config does not have.
    """
    names = record.wildcards
    found = {name: getattr(cfg, name) for name in ("seed", "phantom") if name in record.params}
    found |= {name: param(cfg, names) for name, param in PARAMS.get(record.rule, {}).items()}
    if record.rule == "index_dataset":
        spec = cfg.datasets[names["dataset"]].model_dump(mode="json")
        found["dataset"] = {key: spec[key] for key in INDEXED}
        if reviewed := record.params.get("dataset", {}).get("reviewed"):
            found["dataset"]["reviewed"] = reviewed  # these decisions are not in the config
    return found


def config_settings(tree: AuditedTree) -> None:
    """Params are those that the config asks for.

    Where all jobs contradict it in the same setting, the config is named, once.
    """
    if tree.cfg is None:
        return
    wrong: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    right: set[tuple[str, str]] = set()
    advice = "Run the workflow again with this config, or restore the config of the run."
    for record in tree.current:
        artifact = record.outputs[0].key
        try:
            wanted = expected(tree.cfg, record)
        except KeyError as error:
            why = f"It belongs to {error.args[0]}, which the config of the run does not have."
            tree.fail(artifact, "other settings", why, advice)
            continue
        for name, value in wanted.items():
            tree.checks["settings of the config"] += 1
            # a seed or the kind of data is one setting for all rules
            setting = ("", name) if name in ("seed", "phantom") else (record.rule, name)
            if difference := _difference(record.params.get(name), value):
                wrong[setting][artifact] = difference
            else:
                right.add(setting)
    for (rule, name), artifacts in wrong.items():
        if len(artifacts) > 1 and (rule, name) not in right:
            jobs = f"All {len(artifacts)} jobs {f'of {rule} ' if rule else ''}"
            why = f"{jobs}were run with another {name} than it says ({min(artifacts.values())})."
            tree.fail(CONFIG, "other settings", why, advice)
            continue
        for artifact, difference in artifacts.items():
            why = f"It was made with another {name} than the config says ({difference})."
            tree.fail(artifact, "other settings", why, advice)


def neighbours(tree: AuditedTree) -> None:
    """Jobs that differ in nothing but scan or fold have the same params."""
    kinds: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in tree.current:
        if record.outputs[0].key not in tree.findings:
            kept = [f"{k}={v}" for k, v in sorted(record.wildcards.items()) if k not in SCANS]
            kinds[record.rule, *kept].append(record)
    for jobs in kinds.values():
        tree.checks["params of neighbours"] += len(jobs)
        found: dict[str, list[Record]] = defaultdict(list)
        for record in jobs:
            params = {k: v for k, v in record.params.items() if k not in OWN}
            found[json.dumps(params, sort_keys=True)].append(record)
        for record, value, usual in _unusual(found):
            difference = _difference(json.loads(value), json.loads(usual))
            others = f"{len(found[usual])} other jobs of {record.rule} ({difference})"
            why = f"It was made with other params than {others}."
            advice = "Run the workflow again with one config."
            tree.fail(record.outputs[0].key, "other settings", why, advice)


def _difference(said: Any, wanted: Any) -> str:
    """``learning_rate: 0.001, not 0.0001``: only the entries that differ; empty if none does."""
    if isinstance(said, Mapping) and isinstance(wanted, Mapping):
        names = sorted({*said, *wanted})
        parts = {name: _difference(said.get(name), wanted.get(name)) for name in names}
        return ", ".join(f"{name}: {text}" for name, text in parts.items() if text)
    one, other = (json.dumps(value, sort_keys=True) for value in (said, wanted))
    return "" if one == other else f"{one}, not {other}"
