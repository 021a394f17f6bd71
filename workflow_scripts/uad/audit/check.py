"""Files against records, and records against each other and the config of the run."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uad.audit.tree import CONFIG, MARKER, AuditedTree, is_free, is_outside, modality_of
from uad.config.model import Config
from uad.config.params import PARAMS
from uad.core.files import sha256
from uad.core.provenance import LOCK, SCRIPTS, SUFFIX
from uad.core.records import REPOSITORY, Record, is_temporary
from uad.qc.gallery import sheets_of
from uad.report.render import counted

#: Where results lie: what they were made from is never left over. The report lies at the top.
RESULTS = tuple(
    "tables/ figures/ notebooks/ studies/ significance/ healthy/ cost/ qc/gallery".split()
)
#: Sections of the config by the wildcard that names an entry of theirs.
SECTIONS = {
    "dataset": "datasets",
    "test": "datasets",
    "experiment": "experiments",
    "method": "methods",
    "table": "tables",
    "figure": "figures",
    "study": "studies",
}
#: Wildcards in which jobs of one kind may differ without differing in their params.
SCANS = ("subject", "fold", "batch")
#: What an index depends on of its data set's config.
INDEXED = ("layout", "source", "modalities", "exclude", "limit")
LOCKED = f"{REPOSITORY}{LOCK.name}"
#: Stands for what the config does not have at all.
UNKNOWN = "not in the config"
#: Params that name scans or describe a raw tree, and hence differ from job to job.
OWN = ("subjects", "listing")


def leftovers(tree: AuditedTree) -> None:
    """Find what an earlier config or selection of scans left, and no result was made from.

    Such a record names something in its wildcards that this run does not have. Of its files only
    the hashes are compared; a note for each cause says how many there are.
    """
    causes = {record.key: cause for record in tree.sound if (cause := _cause(tree, record))}
    finals = [
        entry.key
        for record in tree.sound
        if record.key not in causes
        for entry in record.outputs
        if entry.key.startswith(RESULTS) or "/" not in entry.key
    ]
    used = tree.records.ancestors(finals) if causes else set()
    files: dict[str, list[str]] = defaultdict(list)
    for key, cause in causes.items():
        outputs = [entry.key for entry in tree.records.all[key].outputs]
        if used.isdisjoint(outputs):
            tree.leftovers[key] = cause
            files[cause] += [name for name in outputs if tree.digest(name) is not None]
    for cause, here in files.items():
        if here:
            tree.notes.add(
                f"left over: {cause}, not part of this run ({counted(len(here), 'file')}, such as "
                f"{min(here)}); delete them together with their records if you do not want them."
            )


def _cause(tree: AuditedTree, record: Record) -> str | None:
    """What a job's wildcards name that this run does not have; None if it has all."""
    cfg, names = tree.cfg, record.wildcards
    for kind, section in SECTIONS.items() if cfg else ():
        if kind in names and names[kind] not in getattr(cfg, section):
            return f"{kind} {names[kind]}"
    if cfg and {"experiment", "fold"} <= set(names):
        name, tests = names["experiment"], cfg.experiments[names["experiment"]].test
        if names.get("test", tests[0]) not in tests:
            return f"{names['test']} as a test set of {name}"
        if int(names["fold"]) not in cfg.folds_of(name):
            return f"fold {names['fold']} of {name}"
    dataset = names.get("dataset", "")
    if dataset not in tree.people:
        return None
    modality = modality_of(names)
    subjects = tree.subjects(dataset, modality)
    if {"subject", "suffix"} <= set(names) and names["subject"] not in subjects:
        return f"scans of {dataset} that its participants table does not list"
    if "modality" in names and not subjects:
        return f"{modality} of {dataset}"
    if "sheet" in names and int(names["sheet"]) > len(sheets_of(subjects)):
        return f"sheets of pictures of {dataset} {modality}"
    return None


# Hashes -----------------------------------------------------------------------------------


def records(tree: AuditedTree) -> None:
    """Records that are damaged, edited, of another version, or not beside their file."""
    tree.checks["records"] += len(tree.records.all)
    for name, why in tree.records.broken.items():
        why = f"The record {why}; nothing that it says is used."
        tree.fail(name, "record", why, "Restore it, or delete it and its files and run again.")


def outputs(tree: AuditedTree) -> None:
    """Every declared output has the bytes that its record says."""
    for name, entry in tree.records.outputs.items():
        found = tree.digests.get(name)
        if tree.made_by(name) is None:
            continue  # its record fails, so there is nothing to compare it with
        if found is None and (tree.omitted(name) or is_temporary(name)):
            continue
        tree.checks["output hashes"] += 1
        tree.compared.add(name)
        if found is None and entry.sha256 is not None:
            why = "Its record says that it was written, and it is not there."
            tree.fail(name, "missing", why, "Restore it from a copy, or run the workflow again.")
        elif found and found[1] != entry.sha256:
            size = "" if found[0] == entry.bytes else f" ({found[0]} bytes, {entry.bytes} recorded)"
            hashes = f"SHA-256 {_short(found[1])}, recorded {_short(entry.sha256)}"
            tree.fail(name, "changed", f"Its content is not what the job wrote{size}: {hashes}.")


def inputs(tree: AuditedTree) -> None:
    """Every input is what another job wrote, a raw file, or a file outside, as it is now."""
    for name in sorted({*tree.raw, *tree.readers}):
        if name not in tree.raw:
            tree.checks["inputs"] += len(tree.readers[name])
        if name in tree.raw or (is_outside(name) and name not in tree.records.producers):
            _compare_unmade(tree, name)
        elif tree.made_by(name):
            _compare_made(tree, name)


def _compare_unmade(tree: AuditedTree, name: str) -> None:
    """A file that no job made: as its manifest lists it, else as the jobs that read it saw it."""
    actual, readers, expected = tree.digest(name), tree.readers.get(name, []), tree.raw.get(name)
    kind = "raw file" if name in tree.raw else "input"
    if actual is None and tree.omitted(name):
        return
    tree.checks["raw files"] += kind == "raw file"
    tree.compared.add(name)
    seen = Counter(entry.sha256 for _, entry in readers)
    used = ", ".join(sorted({record.outputs[0].key for record, _ in readers})[:3])
    source = "The manifest of its raw tree lists it" if expected else f"{used} was made from it"
    if actual is None:
        why = f"{source}, and it is not at {tree.path(name)}."
        advice = "Put it back where the config has it, or audit with the repository of the run."
        tree.fail(name, f"{kind} missing", why, advice)
    elif expected not in (None, actual) or (not expected and seen and actual not in seen):
        known = _short(expected or seen.most_common(1)[0][0])
        why = f"{source} with SHA-256 {known}; now it has {_short(actual)}."
        tree.fail(name, f"{kind} changed", why, "Restore it, or run the workflow again from it.")
    else:
        for record, entry in readers:
            if entry.sha256 != actual:
                _fail_stale(tree, record, "another", name, entry.sha256)


def _compare_made(tree: AuditedTree, name: str) -> None:
    maker, entry = tree.made_by(name), tree.records.outputs[name]
    for record, seen in tree.readers[name]:
        if seen.sha256 == entry.sha256 or record is maker:
            continue
        # a record's time is that of the job's start
        if record.content["started"] < maker.content["started"]:
            _fail_stale(tree, record, "an older", name, seen.sha256)
        else:
            why = (
                f"{record.outputs[0].key} was made later from other bytes of it (SHA-256 "
                f"{_short(seen.sha256)}): it was changed afterwards, and its record with it."
            )
            tree.fail(name, "replaced", why)


def _fail_stale(tree: AuditedTree, record: Record, which: str, name: str, seen: str | None) -> None:
    why = f"It was made from {which} version of {name} (SHA-256 {_short(seen)})."
    advice = "Run the workflow again: Snakemake makes what is older than its inputs."
    tree.fail(record.outputs[0].key, "stale", why, advice)


def _short(digest: str | None) -> str:
    return f"{digest[:12]}..." if digest else "none"


def files(tree: AuditedTree) -> None:
    """Nothing lies in the tree, and nothing was read, of which no record says how it was made."""
    rules = {path.stem for path in SCRIPTS.glob("*.py")} | {"audit"}
    rules |= {record.rule for record in tree.records.all.values()}
    beside = {name.removesuffix(SUFFIX) for name in tree.records.broken}
    made = set(tree.records.producers) | set(tree.raw) | beside
    tree.checks["files"] += sum(not is_free(name) for name in tree.files)
    tree.unrecorded = {name for name in tree.readers if name not in made and not is_outside(name)}
    tree.unrecorded |= {
        name
        for name in tree.files - made
        if not name.endswith(SUFFIX) and not _is_declared(tree, name, rules)
    }
    for name in sorted(tree.unrecorded):
        readers = [record.outputs[0].key for record, _ in tree.readers.get(name, [])]
        read = f" {readers[0]} was made from it." if readers else ""
        why = f"No record, manifest or rule says how this file was made.{read}"
        tree.fail(name, "no record", why, f"Restore its record (*{SUFFIX}), or delete the file.")
    if MARKER in tree.files and tree.cfg is not None:
        said = "phantom" if tree.cfg.phantom else "real"
        if tree.marked != said:
            why = f"It says {tree.marked}, the config of the run says {said} data."
            advice = "Keep phantom and real results apart: run again in another folder."
            tree.fail(MARKER, "kind of data", why, advice)


def _is_declared(tree: AuditedTree, name: str, rules: set[str]) -> bool:
    """Whether a file is one that jobs leave beside their outputs, or raw data."""
    parts = Path(name).parts
    if name in (MARKER, "README.md") or parts[0] == "audit":
        return True
    if parts[0] in ("logs", "benchmarks") and len(parts) > 2:
        return parts[1] in rules
    if parts[0] == "models" and "checkpoint" in parts[1:-1]:
        place = name.partition("/checkpoint/")[0]
        tree.notes.add(f"{place}: a training is in progress there, or was given up.")
        return True
    if parts[0] == "validation" and name.endswith((".refused.html", ".refused.tsv")):
        tree.notes.add(f"{name}: a validation refused a data set.")
        return True
    return any(name.startswith(f"{folder}/") for folder in tree.own_raw)


# Versions and settings ----------------------------------------------------------------------


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
    different: dict[str, list[str]] = defaultdict(list)
    for what, found in by_name.items():
        tree.checks["versions of code and packages"] += sum(map(len, found.values()))
        for record, version, usual in _unusual(found):
            different[record.outputs[0].key].append(
                f"{what} ({version[:8]}, where {len(found[usual])} other records have {usual[:8]})"
            )
    for artifact, lines in different.items():
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        why = f"It was made with another version of {'; '.join(sorted(lines)[:3])}{more}."
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
        more = f" and {len(ran) - 3} more" if len(ran) > 3 else ""
        why = (
            f"It has {name} {' or '.join(locked[name]) or 'no such package'}; "
            f"{counted(len(ran), 'job')} ran with {version}: {', '.join(sorted(ran)[:3])}{more}."
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
    """Params of a job as the config has them; only those that can be told from it."""
    names = record.wildcards
    found = {name: getattr(cfg, name) for name in ("seed", "phantom") if name in record.params}
    try:
        found |= {name: param(cfg, names) for name, param in PARAMS.get(record.rule, {}).items()}
        if record.rule == "index_dataset":
            spec = cfg.datasets[names["dataset"]].model_dump(mode="json")
            found["dataset"] = {key: spec[key] for key in INDEXED}
            if reviewed := record.params.get("dataset", {}).get("reviewed"):
                found["dataset"]["reviewed"] = reviewed  # these decisions are not in the config
    except KeyError as error:
        found[str(error.args[0])] = UNKNOWN
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
        for name, value in expected(tree.cfg, record).items():
            tree.checks["settings of the config"] += 1
            # a seed or the kind of data is one setting for all rules
            setting = ("", name) if name in ("seed", "phantom") else (record.rule, name)
            said = record.params.get(name)
            if value == UNKNOWN:
                why = f"It belongs to {name}, which the config of the run does not have."
                tree.fail(artifact, "other settings", why, advice)
            elif _plain(said) == _plain(value):
                right.add(setting)
            else:
                wrong[setting][artifact] = _difference(said, value)
    for (rule, name), artifacts in wrong.items():
        if len(artifacts) > 1 and (rule, name) not in right:
            why = (
                f"All {len(artifacts)} jobs {f'of {rule} ' if rule else ''}were run with another "
                f"{name} than it says ({min(artifacts.values())})."
            )
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
        for name in sorted({name for record in jobs for name in record.params} - set(OWN)):
            tree.checks["params of neighbours"] += len(jobs)
            found: dict[str, list[Record]] = defaultdict(list)
            for record in jobs:
                found[_plain(record.params.get(name))].append(record)
            for record, value, usual in _unusual(found):
                difference = _difference(json.loads(value), json.loads(usual))
                others = f"{len(found[usual])} other jobs of {record.rule} ({difference})"
                why = f"It was made with another {name} than {others}."
                advice = "Run the workflow again with one config."
                tree.fail(record.outputs[0].key, "other settings", why, advice)


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
