"""Files against records: changed, missing, undeclared, stale; records that cannot be trusted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from uad.audit.lost import attribute
from uad.audit.tree import AUDIT, MAKE_AGAIN, MARKER, Audited, is_free, is_in_place, is_repository
from uad.core.provenance import SCRIPTS, SUFFIX
from uad.records import EXTERNAL, Artifact, Record, is_temporary

#: A file below the results folder that no job declares, beside the marker.
README = "README.md"
_RUN_AGAIN = "Run the workflow again: Snakemake makes what is older than its inputs."


def check_records(tree: Audited) -> None:
    """Records that are damaged, edited, or of another version."""
    tree.checks["records"] += len(tree.records.all)
    for name, why in tree.records.broken.items():
        tree.findings.add(
            name,
            "record",
            f"The record {why}; nothing that it says is used.",
            "Restore the record from a copy, or delete it and its files and run again.",
        )
    for name, record in tree.records.all.items():
        if name not in tree.records.broken and not is_in_place(record):
            tree.findings.add(
                name,
                "record",
                f"It is the record of {record.outputs[0].key} and does not lie beside that file; "
                "nothing that it says is used.",
                "Delete it, or put it back to its file.",
            )


def check_outputs(tree: Audited) -> None:
    """Every declared output has the bytes that its record says."""
    for name, entry in tree.records.outputs.items():
        if tree.made_by(name) is None:
            continue  # its record fails, so there is nothing to compare it with
        if tree.digest(name) is None and (tree.is_omitted(name) or is_temporary(name)):
            continue
        tree.checks["output hashes"] += 1
        tree.compared.add(name)
        _compare(tree, entry)


def _compare(tree: Audited, entry: Artifact) -> None:
    found = tree.digests.get(entry.key)
    if found is None and entry.sha256 is not None:
        tree.findings.add(
            entry.key,
            "missing",
            "Its record says that it was written, and it is not there.",
            "Restore it from a copy, or run the workflow again.",
        )
    elif found and found[1] != entry.sha256:
        size = "" if found[0] == entry.bytes else f" ({found[0]} bytes, {entry.bytes} recorded)"
        tree.findings.add(
            entry.key,
            "changed",
            f"Its content is not what the job wrote{size}: SHA-256 {found[1][:12]}..., recorded "
            f"{(entry.sha256 or 'none')[:12]}... .",
            MAKE_AGAIN,
        )


def check_raw(tree: Audited) -> None:
    """Registered raw files are those of the manifest, or those that all their readers saw."""
    for name, expected in sorted(tree.raw.items()):
        actual = tree.digest(name)
        readers = _readers(tree, name)
        if actual is None and tree.is_omitted(name):
            continue
        tree.checks["raw files"] += 1
        tree.compared.add(name)
        seen = Counter(entry.sha256 for _, entry in readers)
        known = expected or (seen.most_common(1)[0][0] if seen else None)
        if actual is None:
            tree.findings.add(
                name,
                "raw file missing",
                f"{_listed(expected)}, and it is not at {tree.path(name)}.",
                "Put the raw file back where the config says that it is.",
            )
        elif known not in (None, actual) and actual not in (seen if not expected else ()):
            tree.findings.add(
                name,
                "raw file changed",
                f"{_listed(expected)} with SHA-256 {known[:12]}...; now it has {actual[:12]}... .",
                "Restore the raw file, or run the workflow again from it.",
            )
        if name not in tree.findings:
            _stale_readers(tree, name, actual)


def _listed(expected: str | None) -> str:
    return "The manifest of the raw tree lists it" if expected else "The jobs that read it saw it"


def _readers(tree: Audited, name: str) -> list[tuple[Record, Artifact]]:
    """Current records that have a file among their inputs, with what they say of it."""
    return tree.readers.get(name, [])


def _stale_readers(tree: Audited, name: str, actual: str) -> None:
    for record, entry in _readers(tree, name):
        if entry.sha256 != actual:
            tree.findings.add(
                record.outputs[0].key,
                "stale",
                f"It was made from another version of {name} (SHA-256 {entry.sha256[:12]}..., now "
                f"{actual[:12]}...).",
                _RUN_AGAIN,
            )


def check_inputs(tree: Audited) -> None:
    """Every input of a record is what another record wrote, a raw file, or a file outside."""
    inputs = {entry.key for record in tree.current for entry in record.inputs}
    for name in sorted(inputs - set(tree.raw)):
        tree.checks["inputs"] += len(_readers(tree, name))
        if name in tree.records.producers:
            if tree.made_by(name):
                _check_link(tree, name)
        elif is_repository(name) or name.startswith(EXTERNAL):
            _check_outside(tree, name)


def _check_link(tree: Audited, name: str) -> None:
    """What the readers of a file saw is what its own record says."""
    maker, entry = tree.made_by(name), tree.records.outputs[name]
    for record, seen in _readers(tree, name):
        if seen.sha256 == entry.sha256 or record is maker:
            continue
        # a record's time is that of the job's start
        if record.content["started"] < maker.content["started"]:
            tree.findings.add(
                record.outputs[0].key,
                "stale",
                f"It was made from an older version of {name} (SHA-256 {seen.sha256[:12]}..., "
                f"now {(entry.sha256 or 'none')[:12]}...).",
                _RUN_AGAIN,
            )
        else:
            tree.findings.add(
                name,
                "replaced",
                f"{record.outputs[0].key} was made from other bytes of it (SHA-256 "
                f"{seen.sha256[:12]}...), after the job that its record names had ended: it was "
                "changed afterwards, and its record with it.",
                MAKE_AGAIN,
            )


def _check_outside(tree: Audited, name: str) -> None:
    """A file of the repository, or another one outside of the tree."""
    actual, readers = tree.digest(name), _readers(tree, name)
    if actual is None and tree.is_omitted(name):
        return
    tree.compared.add(name)
    seen = {entry.sha256 for _, entry in readers}
    used = ", ".join(sorted({record.outputs[0].key for record, _ in readers})[:3])
    if actual is None and readers:
        tree.findings.add(
            name,
            "input missing",
            f"{used} was made from it, and it is not at {tree.path(name)}.",
            "Put it back, or audit with the repository of the run.",
        )
    elif readers and actual not in seen:
        tree.findings.add(
            name,
            "input changed",
            f"It is not the version (SHA-256 {min(seen)[:12]}...) that {used} was made from.",
            "Run the workflow again with it, or check out the version that was used.",
        )
    elif readers:
        _stale_readers(tree, name, actual)


def check_files(tree: Audited) -> None:
    """Nothing lies in the tree that no job declares; records that are gone are named."""
    rules = _rules(tree)
    files = (name for name in tree.files if not name.endswith(SUFFIX))
    undeclared = {name for name in files if not _allowed(tree, name, rules)}
    # inputs that nobody wrote: their record is gone, and maybe they as well
    inputs = {entry.key for record in tree.current for entry in record.inputs}
    unwritten = {
        name
        for name in inputs - set(tree.raw)
        if name not in tree.records.producers
        and not is_repository(name)
        and not name.startswith(EXTERNAL)
    }
    outputs = {name for name in undeclared if not name.startswith(("logs/", "benchmarks/"))}
    for record, lost in attribute(tree, outputs | unwritten).items():
        if record is None:
            continue
        names = ", ".join(sorted(lost))
        if record in tree.records.broken:
            tree.findings.add(record, "record", f"Its files: {names}.", "")
        else:
            tree.findings.add(
                record,
                "record missing",
                f"There is no record of the job that wrote {names}.",
                "Restore the record from a copy, or delete these files and run again.",
            )
        tree.lost |= lost & undeclared
        undeclared -= lost
    for name in sorted(undeclared):
        tree.findings.add(
            name,
            "undeclared",
            "No record, manifest or rule knows this file.",
            "Remove it from the results folder, or find out which job wrote it.",
        )
    tree.checks["files"] += sum(not is_free(name) for name in tree.files)
    _check_marker(tree)


def _allowed(tree: Audited, name: str, rules: set[str]) -> bool:
    """Whether a file is declared, or is one that jobs leave beside their outputs."""
    if name in tree.records.outputs or name in tree.raw or name in (MARKER, README):
        return True
    parts = Path(name).parts
    if parts[0] == AUDIT or any(name.startswith(f"{f}/") for f in tree.own_raw):
        return True
    if parts[0] in ("logs", "benchmarks") and len(parts) > 2:
        return parts[1] in rules
    if parts[0] == "models" and "checkpoint" in parts[1:-1]:
        place = "/".join(parts[: parts.index("checkpoint")])
        tree.notes.add(f"{place}: a training is in progress there, or was given up.")
        return True
    if parts[0] == "validation" and name.endswith((".refused.html", ".refused.tsv")):
        tree.notes.add(f"{name}: a validation refused a data set.")
        return True
    return False


def _rules(tree: Audited) -> set[str]:
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    return scripts | {record.rule for record in tree.records.all.values()} | {AUDIT}


def _check_marker(tree: Audited) -> None:
    """The marker says the same kind of data as the config."""
    if MARKER not in tree.files or tree.cfg is None:
        return
    said = "phantom" if tree.cfg.phantom else "real"
    if tree.marked != said:
        tree.findings.add(
            MARKER,
            "kind of data",
            f"It says {tree.marked}, the config of the run says {said} data.",
            "Keep phantom and real results apart: run again in another folder.",
        )
