"""Files against records, and records against each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from uad.audit.tree import MARKER, AuditedTree, is_free, is_outside, modality_of, short
from uad.core.provenance import SCRIPTS, SUFFIX
from uad.core.records import Record, is_temporary
from uad.qc.gallery import sheets_of
from uad.report.render import counted

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


def leftovers(tree: AuditedTree) -> None:
    """Find what an earlier config or selection of scans left, and no job of this run read.

    Such a record names something in its wildcards that this run does not have. Of its files only
    the hashes are compared; a note for each cause says how many there are.
    """
    causes = {record.key: cause for record in tree.sound if (cause := _cause(tree, record))}
    read = {e.key for record in tree.sound if record.key not in causes for e in record.inputs}
    files: dict[str, list[str]] = defaultdict(list)
    for key, cause in causes.items():
        outputs = [entry.key for entry in tree.records.all[key].outputs]
        if read.isdisjoint(outputs):
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
            hashes = f"SHA-256 {short(found[1])}, recorded {short(entry.sha256)}"
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
        known = short(expected or seen.most_common(1)[0][0])
        why = f"{source} with SHA-256 {known}; now it has {short(actual)}."
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
                f"{short(seen.sha256)}): it was changed afterwards, and its record with it."
            )
            tree.fail(name, "replaced", why)


def _fail_stale(tree: AuditedTree, record: Record, which: str, name: str, seen: str | None) -> None:
    why = f"It was made from {which} version of {name} (SHA-256 {short(seen)})."
    advice = "Run the workflow again: Snakemake makes what is older than its inputs."
    tree.fail(record.outputs[0].key, "stale", why, advice)


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
