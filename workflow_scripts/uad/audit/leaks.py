"""Who is in which set: nobody in two, and every number from the set that it should be from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pandas as pd

from uad.audit.tree import (
    RAW,
    AuditedTree,
    modality_of,
    participants_key,
    split_key,
)
from uad.core.errors import DataError
from uad.core.files import read_json
from uad.core.records import EXTERNAL
from uad.preprocess.slices import subjects_in

#: Roles of subjects that a method learns from, and of those that it is judged by.
LEARNING, JUDGED = {"train", "val_healthy"}, {"val_unhealthy", "test"}
#: Rules that read raw scans by the participants table.
READ_SCANS = ("predict_brain_masks", "skullstrip_scan", "register_scan", "pack_slices")
SPLIT_AGAIN = "Delete the split and run again; results that were made from it are not valid."
#: Name and advice of a contradiction between a file and one that it was made from.
CONTRADICTION = "contradicts its source"
BOTH_AGAIN = (
    "One of the two is not what it was. Restore it from a copy, or delete both together with "
    "their records and run the workflow again."
)


def raw_of_own_subject(tree: AuditedTree) -> None:
    """The raw files that a job read are those of its scans in the participants table."""
    for record in tree.of_rule(*READ_SCANS):
        names, output = record.wildcards, record.outputs[0].key
        dataset, modality = names["dataset"], modality_of(names)
        keys = (e.key for e in record.inputs if e.key not in tree.records.producers)
        read, table = [k for k in keys if k.startswith((EXTERNAL, RAW))], participants_key(dataset)
        if not read or not tree.ready(f"whose raw files {output} was made from", table):
            continue
        owners = tree.owners[dataset]
        anybody = [names.get("subject")] * len(read)
        for name, subject in zip(read, record.params.get("subjects") or anybody, strict=False):
            if "batch" in names and subject not in tree.subjects(dataset, modality):
                continue  # excluded since
            tree.checks["raw files of the own subject"] += 1
            if not any(kind == modality and subject in (None, who) for who, kind in owners[name]):
                whose = subject or f"{dataset} {modality}"
                why = f"It was made from {name}, which {table} does not list for {whose}."
                tree.fail(output, CONTRADICTION, why, BOTH_AGAIN)


def sets_of_a_fold(tree: AuditedTree) -> None:
    """No subject is in two sets; in published lists it may be, where the column also_in says so."""
    for record in tree.of_rule("make_splits"):
        name = record.outputs[0].key
        if not tree.is_as_recorded(name):
            continue
        tree.checks["splits"] += 1
        published = record.params["splits"]["kind"] == "reference"
        split, place = tree.table(name), ["dataset", "subject"]
        several = split[split.duplicated(place, keep=False)]
        for (dataset, subject), part in several.groupby(place, sort=False):
            roles = list(part["role"])
            said = all(str(text).strip() not in ("", "nan") for text in part["also_in"])
            if published and said and not (set(roles) & LEARNING and set(roles) & JUDGED):
                tree.notes.add(
                    f"{name}: {subject} of {dataset} is in {', '.join(roles)}, as in the published "
                    "lists (splits.reference.leaks: keep)."
                )
            else:
                why = f"Subject {subject} of {dataset} is in {' and in '.join(roles)}."
                tree.fail(name, "leak", why, SPLIT_AGAIN)


def tests_of_all_folds(tree: AuditedTree) -> None:
    """Who is tested in one fold of an intra-dataset experiment is tested in no other."""
    tested: dict[str, dict[str, str]] = defaultdict(dict)
    for record in sorted(tree.of_rule("make_splits"), key=lambda r: int(r.wildcards["fold"])):
        name = record.outputs[0].key
        # else: one test set for all folds, or one that is rotated
        intra = record.params["experiment"]["setting"] == "intra"
        if not intra or not tree.ready(f"leaks of {name}", name):
            continue
        split, seen = tree.table(name), tested[record.wildcards["experiment"]]
        subjects = split.loc[split["role"] == "test", "subject"]
        if twice := [subject for subject in subjects if subject in seen]:
            others = f" and {len(twice) - 1} more are" if len(twice) > 1 else " is"
            why = f"Subject {twice[0]}{others} tested in {seen[twice[0]]} as well."
            tree.fail(name, "leak", why, SPLIT_AGAIN)
        seen |= dict.fromkeys(subjects, name)


def order_of_stores(tree: AuditedTree) -> None:
    """A slice store has each participant once, in the order of the participants table."""
    for record in tree.of_rule("pack_slices"):
        store, dataset = record.outputs[0].key, record.wildcards["dataset"]
        table = participants_key(dataset)
        if not tree.ready(f"order of {store}", store, table):
            continue
        tree.checks["order of slice stores"] += 1
        wanted = tree.subjects(dataset, record.wildcards["modality"])
        try:
            there = subjects_in(tree.path(store))
        except (DataError, KeyError, ValueError) as error:
            tree.fail(store, "unreadable", f"{error}")
            continue
        if there != wanted:
            pairs = zip([*there, "nobody"], [*wanted, "nobody"], strict=False)
            place, (is_of, listed) = next(p for p in enumerate(pairs) if p[1][0] != p[1][1])
            why = f"volume {place} is of {is_of}, listed is {listed}"
            why = f"Its volumes are not those of {table}, in that order: {why}."
            tree.fail(store, "order of subjects", why)


def subjects_used(tree: AuditedTree) -> None:
    """Thresholds and AIR come from validation subjects only, metrics from test subjects."""
    rules = ("compute_air", "search_threshold", "evaluate_volumes", "evaluate_healthy")
    for record in tree.of_rule(*rules):
        name, split = record.outputs[0].key, split_key(record.wildcards)
        if not tree.ready(f"subjects of {name}", name, split):
            continue
        role, test, table = "val_unhealthy", record.wildcards.get("test", ""), tree.table(split)
        if record.rule == "compute_air":
            sets = read_json(tree.path(name))["sets"]
            used = {dataset: part["subjects"] for dataset, part in sets.items()}
        elif record.rule == "search_threshold":
            used = {test: read_json(tree.path(name))["subjects"]}
        else:
            role, scans = "test", tree.table(name)
            if record.rule == "evaluate_healthy":
                healthy = table.loc[table["role"] == "test_healthy", "dataset"]
                role, test = "test_healthy", healthy.iloc[0] if len(healthy) else test
                scans = scans[scans["healthy"].astype(bool)]
            used = {test: scans["subject"].tolist()}
        for dataset, subjects in used.items():
            tree.checks["subjects against the split"] += len(subjects)
            for what in wrong_subjects(table, dataset, role, subjects):
                tree.fail(name, CONTRADICTION, f"By {split} it {what}.", BOTH_AGAIN)


def wrong_subjects(
    split: pd.DataFrame, dataset: str, role: str, used: Iterable[str]
) -> Iterator[str]:
    """What is wrong with the subjects that a file has of a data set, each of a role once."""
    roles: dict[str, list[str]] = defaultdict(list)
    for row in split[split["dataset"] == dataset].itertuples():
        roles[row.subject].append(row.role)
    counts = Counter(used)
    for subject in sorted({*roles, *counts}):
        is_wanted = role in roles[subject]
        if subject in counts and not is_wanted:
            place = ", ".join(roles[subject]) or "no set"
            yield f"used {subject}, whom the split has in {place}, not in {role}"
        elif is_wanted and counts[subject] != 1:
            yield f"has {subject} of {role} {counts[subject]} times"
