"""Who is in which set: nobody in two, and every number from the set that it should be from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from uad.audit.evidence import Evidence
from uad.audit.tree import KEYS, MAKE_AGAIN, Audited, is_as_recorded, key
from uad.core.errors import DataError
from uad.core.files import read_json, read_tsv
from uad.preprocess.slices import subjects_in
from uad.records import Record

#: Roles of subjects that a method learns from, and of those that it is judged by.
LEARNING, JUDGED = ("train", "val_healthy"), ("val_unhealthy", "test")
_SPLIT_AGAIN = "Delete the split and run again; results that were made from it are not valid."


def check_splits(tree: Audited) -> None:
    """A subject has one role in a fold."""
    for record in tree.of_rule("make_splits"):
        name = record.outputs[0].key
        if not is_as_recorded(tree, name):
            continue
        tree.checks["splits"] += 1
        published = record.params["splits"]["kind"] == "reference"
        _check_roles_of_one(tree, name, read_tsv(tree.path(name)), published)


def check_folds(tree: Audited) -> None:
    """Who is tested in one fold of an intra-dataset experiment is tested in no other."""
    tested: dict[str, dict[str, str]] = defaultdict(dict)
    for record in sorted(tree.of_rule("make_splits"), key=lambda r: int(r.wildcards["fold"])):
        name = record.outputs[0].key
        if record.params["experiment"]["setting"] != "intra":
            continue  # one test set for all folds, or one that is rotated
        if not tree.ready(f"leaks of {name}", name):
            continue
        split, seen = read_tsv(tree.path(name)), tested[record.wildcards["experiment"]]
        subjects = split.loc[split["role"] == "test", "subject"]
        if twice := [subject for subject in subjects if subject in seen]:
            tree.findings.add(
                name,
                "leak",
                f"Subject {twice[0]} is tested in {seen[twice[0]]} as well ({len(twice)} such "
                "subjects); the test sets of an intra-dataset experiment are disjoint.",
                _SPLIT_AGAIN,
            )
        seen |= dict.fromkeys(subjects, name)


def _check_roles_of_one(tree: Audited, name: str, split: Any, published: bool) -> None:
    """No subject is in two sets; in published lists it may be, where the column also_in says so."""
    for (dataset, subject), part in split.groupby(["dataset", "subject"], sort=False):
        roles = list(part["role"])
        if len(roles) == 1:
            continue
        said = all(str(text).strip() not in ("", "nan") for text in part["also_in"])
        crossing = set(roles) & set(LEARNING) and set(roles) & set(JUDGED)
        if published and said and not crossing:
            tree.notes.add(
                f"{name}: {subject} of {dataset} is in {', '.join(roles)}, as in the published "
                "lists (splits.reference.leaks: keep)."
            )
            continue
        tree.findings.add(
            name,
            "leak",
            f"Subject {subject} of {dataset} is in {' and in '.join(roles)}.",
            _SPLIT_AGAIN,
        )


def check_stores(tree: Audited) -> None:
    """A slice store has each participant once, in the order of the participants table."""
    for record in tree.of_rule("pack_slices"):
        store, dataset = record.outputs[0].key, record.wildcards["dataset"]
        table = key(KEYS.participants(dataset))
        if not tree.ready(f"order of {store}", store, table):
            continue
        tree.checks["order of slice stores"] += 1
        rows = tree.participants.get(dataset, [])
        wanted = [row["subject"] for row in rows if row["modality"] == record.wildcards["modality"]]
        try:
            there = subjects_in(tree.path(store))
        except (DataError, KeyError, ValueError) as error:
            tree.findings.add(store, "unreadable", f"{error}", MAKE_AGAIN)
            continue
        if there != wanted:
            place = next(
                (i for i, pair in enumerate(zip(there, wanted, strict=False)) if len({*pair}) > 1),
                min(len(there), len(wanted)),
            )
            tree.findings.add(
                store,
                "order of subjects",
                f"Its volumes are not those of {table}, in that order: volume {place} is of "
                f"{there[place] if place < len(there) else 'nobody'}, listed is "
                f"{wanted[place] if place < len(wanted) else 'nobody'}.",
                MAKE_AGAIN,
            )


def check_roles(tree: Audited, evidence: Evidence) -> None:
    """Thresholds and AIR come from validation subjects only, metrics from test subjects."""
    for record in [*tree.of_rule("compute_air"), *tree.of_rule("search_threshold")]:
        name = record.outputs[0].key
        split = _split_of(record)
        if not tree.ready(f"subjects of {name}", name, split):
            continue
        content = read_json(tree.path(name))
        if record.rule == "compute_air":
            sets = {test: part["subjects"] for test, part in content["sets"].items()}
        else:
            sets = {record.wildcards["test"]: content["subjects"]}
        for test, subjects in sets.items():
            _compare_roles(tree, evidence, (split, name), test, subjects, "val_unhealthy")
    for record in tree.of_rule("evaluate_volumes"):
        name, split = record.outputs[0].key, _split_of(record)
        if not tree.ready(f"subjects of {name}", name, split):
            continue
        subjects = read_tsv(tree.path(name))["subject"].tolist()
        test = record.wildcards["test"]
        _compare_roles(tree, evidence, (split, name), test, subjects, "test")


def _split_of(record: Record) -> str:
    names = record.wildcards
    return key(KEYS.split(names["experiment"], names["fold"]))


def _compare_roles(
    tree: Audited,
    evidence: Evidence,
    pair: tuple[str, str],
    dataset: str,
    subjects: Iterable[str],
    role: str,
) -> None:
    """Subjects of a file against those of a role of its split."""
    split, name = pair
    table = read_tsv(tree.path(split))
    table = table[table["dataset"] == dataset]
    roles = table.groupby("subject")["role"].agg(", ".join).to_dict()
    wanted = set(table.loc[table["role"] == role, "subject"])
    used = Counter(subjects)
    for subject in sorted({*used, *wanted}):
        place = roles.get(subject, "no set")
        if subject in used and subject not in wanted:
            why = f"{name} used {subject}, which {split} has in {place}, not in {role}."
        elif subject not in used:
            why = f"{name} lacks {subject}, which {split} has in {role}."
        else:
            why = f"{name} has {subject} {used[subject]} times."
        agrees = used[subject] == 1 and subject in wanted
        evidence.weigh(split, name, subject, agrees, why)
