"""Whose raw scan a job read: that of its own subject and modality."""

from __future__ import annotations

from collections.abc import Iterator

from uad.audit.evidence import Evidence
from uad.audit.tree import KEYS, RAW, Audited, key
from uad.core.paths import MODALITY
from uad.records import EXTERNAL, Record, key_of

#: Columns of a participants table that name files.
FILES = ("image", "mask", "lesion")
#: Rules that read raw scans by it.
RULES = ("predict_brain_masks", "skullstrip_scan", "register_scan", "pack_slices")


def check_sources(tree: Audited, evidence: Evidence) -> None:
    """The raw files that a job read are those of its scans in the participants table."""
    listed: dict[str, dict[tuple[str, str], set[str]]] = {}
    for record in (record for rule in RULES for record in tree.of_rule(rule)):
        dataset, output = record.wildcards["dataset"], record.outputs[0].key
        read = [e.key for e in record.inputs if _is_raw(tree, e.key)]
        table = key(KEYS.participants(dataset))
        if not read or not tree.ready(f"whose raw files {output} was made from", table):
            continue
        if dataset not in listed:
            listed[dataset] = _listed(tree, dataset, table)
        for name, subject, own in _pairs(record, read, listed[dataset]):
            tree.checks["raw files of the own subject"] += 1
            why = f"{output} was made from {name}, which {table} does not list for {subject}."
            evidence.weigh(table, output, subject, name in own, why)


def _is_raw(tree: Audited, name: str) -> bool:
    return name.startswith((EXTERNAL, RAW)) and name not in tree.records.producers


def _listed(tree: Audited, dataset: str, table: str) -> dict[tuple[str, str], set[str]]:
    """Keys of the files of each scan, by subject and modality."""
    roots = tree.records.producers[table].content["roots"]
    found: dict[tuple[str, str], set[str]] = {}
    for row in tree.participants[dataset]:
        files = {key_of(row[column], roots) for column in FILES if row.get(column)}
        found.setdefault((row["subject"], row["modality"]), set()).update(files)
    return found


def _pairs(
    record: Record, read: list[str], listed: dict[tuple[str, str], set[str]]
) -> Iterator[tuple[str, str, set[str]]]:
    """Each raw file that a job read, whose it should be, and the files that are theirs."""
    names = record.wildcards
    modality = names.get("modality") or MODALITY.get(names.get("suffix", ""), "")
    if "subject" in names:
        own = listed.get((names["subject"], modality), set())
        yield from ((name, names["subject"], own) for name in read)
    elif subjects := record.params.get("subjects"):  # one image each; some may be excluded since
        for name, subject in zip(read, subjects, strict=False):
            if (subject, modality) in listed:
                yield name, subject, listed[subject, modality]
    else:
        every = set().union(*(files for scan, files in listed.items() if scan[1] == modality))
        yield from ((name, f"{names['dataset']} {modality}", every) for name in read)
