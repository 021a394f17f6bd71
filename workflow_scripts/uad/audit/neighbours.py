"""Artifacts against their neighbours: the same code, the same settings, those of the config."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from uad.audit.settings import UNKNOWN, expected
from uad.audit.tree import CONFIG, Audited
from uad.core.errors import DataError
from uad.qc.decide import exclusions, read_decisions
from uad.records import Record

#: Wildcards in which jobs of one kind may differ without differing in their params.
SCANS = ("subject", "fold", "batch")
#: Params that name scans or describe a raw tree, and hence differ from job to job.
OWN = ("subjects", "listing")


def check_code(tree: Audited) -> None:
    """No artifact was made by another version of a file of the code than its neighbours."""
    told: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in tree.current:
        for what, version in _versions(record).items():
            told[what][version].append(record)
    different: dict[str, list[str]] = defaultdict(list)
    for what, versions in told.items():
        tree.checks["versions of code and packages"] += sum(map(len, versions.values()))
        if len(versions) < 2:
            continue
        usual = _usual(versions)
        for version, records in versions.items():
            if version != usual:
                for record in records:
                    different[record.outputs[0].key].append(
                        f"{what} ({_shown(version)}, where {len(versions[usual])} other records "
                        f"have {_shown(usual)})"
                    )
    for artifact, lines in different.items():
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        tree.findings.add(
            artifact,
            "other code",
            f"It was made with another version of {'; '.join(sorted(lines)[:3])}{more}.",
            "Delete it and run again, so that all is made by one version; or make all anew.",
        )
    commits = {record.content["code"].get("commit") for record in tree.current}
    states = {record.content["code"].get("diff_sha256") for record in tree.current}
    if len(commits) > 1 or len(states) > 1:
        tree.notes.add(
            f"The jobs ran at {len(commits)} commits of the repository, {len(states)} states of "
            "its files; what counts is whether the files that they loaded are the same."
        )


def _versions(record: Record) -> dict[str, str]:
    """Version of everything that a job ran with."""
    code, environment = record.content["code"], record.content["environment"]
    found = {f"uad/{name}": digest for name, digest in code["library_files"].items()}
    if code.get("script_sha256"):
        found[f"{record.rule}.py"] = code["script_sha256"]
    names = {"lock_sha256": "uv.lock"}
    found |= {names.get(name, name): version for name, version in environment.items() if version}
    return found


def _usual(versions: Mapping[str, list[Record]]) -> str:
    """The version of most records; of two with as many the newer."""
    return max(versions, key=lambda v: (len(versions[v]), _newest(versions[v])))


def _newest(records: list[Record]) -> str:
    return max(record.content["started"] for record in records)


def _shown(version: str) -> str:
    return f"{version[:8]}..." if len(version) == 64 else version


def check_config(tree: Audited) -> None:
    """Params are those that the config asks for.

    Where all jobs contradict it in the same setting, the config is named, once.
    """
    if tree.cfg is None:
        return
    wrong: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    right: Counter[tuple[str, str]] = Counter()
    for record in tree.current:
        for name, value in expected(tree.cfg, record).items():
            tree.checks["settings of the config"] += 1
            if value == UNKNOWN:
                tree.findings.add(
                    record.outputs[0].key,
                    "other settings",
                    f"It belongs to {name}, which the config of the run does not have.",
                    "Delete it if it is left from an earlier run, or restore the config of it.",
                )
                continue
            # a seed or the kind of data is one setting for all rules
            setting = ("", name) if name in ("seed", "phantom") else (record.rule, name)
            said = record.params.get(name)
            if _plain(said) == _plain(value):
                right[setting] += 1
            else:
                wrong[setting][record.outputs[0].key] = _difference(said, value)
    for setting, artifacts in wrong.items():
        if len(artifacts) > 1 and not right[setting]:
            rule, name = setting
            jobs = f"jobs of {rule}" if rule else "jobs"
            tree.findings.add(
                CONFIG,
                "other settings",
                f"All {len(artifacts)} {jobs} were run with another {name} than it says "
                f"({min(artifacts.values())}).",
                "Run the workflow again with this config, or restore the config of the run.",
            )
            continue
        for artifact, difference in artifacts.items():
            tree.findings.add(
                artifact,
                "other settings",
                f"It was made with another {setting[1]} than the config says ({difference}).",
                "Run the workflow again with this config.",
            )


def note_decisions(tree: Audited) -> None:
    """Whether the reviewer's decisions as they are now are those that the data sets were read with.

    A note: a review that goes on after a run is no fault of the run.
    """
    if tree.cfg is None or not (path := tree.start / tree.cfg.qc.decisions).is_file():
        return
    try:
        decisions = read_decisions(path)
    except DataError as error:
        tree.skipped.add(f"decisions of the quality control: {error}")
        return
    for record in tree.of_rule("index_dataset"):
        name = record.wildcards["dataset"]
        if name not in tree.cfg.datasets:
            continue
        tree.checks["decisions of the quality control"] += 1
        wanted = exclusions(decisions, name, tree.cfg.datasets[name].modalities)
        if record.params["dataset"].get("reviewed", []) != wanted:
            tree.notes.add(
                f"{record.outputs[0].key}: the decisions of the quality control were changed "
                "after it was made; run the workflow again to honour them."
            )


def check_params(tree: Audited) -> None:
    """Jobs that differ in nothing but scan or fold have the same params."""
    kinds: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in tree.current:
        if record.outputs[0].key not in tree.findings:
            kept = [f"{k}={v}" for k, v in sorted(record.wildcards.items()) if k not in SCANS]
            kinds[record.rule, *kept].append(record)
    for records in kinds.values():
        names = {name for record in records for name in record.params} - set(OWN)
        for name in sorted(names):
            tree.checks["params of neighbours"] += len(records)
            values: dict[str, list[Record]] = defaultdict(list)
            for record in records:
                values[_plain(record.params.get(name))].append(record)
            if len(values) < 2:
                continue
            usual = _usual(values)
            for value, others in values.items():
                for record in others if value != usual else ():
                    difference = _difference(json.loads(value), json.loads(usual))
                    tree.findings.add(
                        record.outputs[0].key,
                        "other settings",
                        f"It was made with another {name} than {len(values[usual])} other jobs of "
                        f"{record.rule} ({difference}).",
                        "Run the workflow again with one config.",
                    )


def _plain(value: Any) -> str:
    """A value as JSON, by which two are compared."""
    return json.dumps(value, sort_keys=True)


def _difference(said: Any, wanted: Any) -> str:
    """``learning_rate: 0.001, not 0.0001``: only the entries that differ."""
    if isinstance(said, Mapping) and isinstance(wanted, Mapping):
        parts = [
            f"{name}: {_difference(said.get(name), wanted.get(name))}"
            for name in sorted({*said, *wanted})
            if _plain(said.get(name)) != _plain(wanted.get(name))
        ]
        return ", ".join(parts)
    return f"{_plain(said)}, not {_plain(wanted)}"
