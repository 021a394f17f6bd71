"""Who is trained on, validated on and tested on.

The splits of kind ``clean``: by patient, disjoint, stratified by site and age. Those of kind
``reference`` are in :mod:`uad.published_splits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError
from uad.core.seeds import derive_seed

#: The roles of a split, in the order in which a file lists them.
ROLES = ("train", "val_healthy", "test_healthy", "val_unhealthy", "test")
#: ``weight``: how often the subject is listed in its set, and hence drawn in an epoch.
#: ``also_in``: the other sets that the subject is in (empty unless a leak was kept).
COLUMNS = ["dataset", "subject", "name", "role", "weight", "also_in"]
#: Limits (years) of the age groups, those of the column ``Agegroup`` of the published lists.
AGE_LIMITS = (40, 60)


def count_of(size: int | float, total: int) -> int:
    """A set size as a count: integers are counts, numbers below 1 are fractions (rounded)."""
    return size if isinstance(size, int) else round(size * total)


def _rows(dataset: str, table: pd.DataFrame, chosen: Sequence[int], role: str) -> pd.DataFrame:
    part = table.iloc[list(chosen)]
    return pd.DataFrame(
        {"dataset": dataset, "subject": part["subject"], "name": part["name"], "role": role}
    )


def subjects(participants: pd.DataFrame) -> pd.DataFrame:
    """One row per subject, sorted by name: subject, name, stratum."""
    table = participants.drop_duplicates(["subject", "name"]).sort_values("name")
    table = table.reset_index(drop=True)
    return table[["subject", "name"]].assign(stratum=strata(table))


def strata(participants: pd.DataFrame) -> pd.Series:
    """What a split is balanced by, for each row of a participants table: the site and, where ages
    are known, the age group (``Guys, 40-60``); unknown ages are a group of their own.
    """
    missing = pd.Series("", index=participants.index)
    site = participants.get("site", missing).fillna("").astype(str)
    age = _ages(participants)
    if not age.notna().any():
        return site
    low, high = AGE_LIMITS
    names = [f"below {low}", f"{low}-{high}", f"{high} and over"]
    group = pd.cut(age, [-np.inf, low, high, np.inf], right=False, labels=names)
    return site + ", " + group.astype(object).where(age.notna(), "age unknown").astype(str)


def _ages(participants: pd.DataFrame) -> pd.Series:
    missing = pd.Series("", index=participants.index)
    return pd.to_numeric(participants.get("age", missing), errors="coerce")


def stratification(participants: pd.DataFrame) -> dict[str, Any]:
    """What a split of this table is balanced ``by`` (several sites, known ages), for the record,
    with the number of subjects of each stratum (``groups``).
    """
    subjects = participants.drop_duplicates(["subject", "name"])
    several = "site" in subjects and subjects["site"].nunique() > 1
    by = [*(["site"] if several else []), *(["age"] if _ages(subjects).notna().any() else [])]
    return {"by": by, "groups": strata(subjects).value_counts().sort_index().to_dict()}


def stratified_order(groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Indices (N,) in a random order in which all neighbours have about the same mix of groups.

    The members of a group, shuffled, are spaced evenly over the order from a random start,
    so that a set of any size can be cut out of it: each group takes its share up to one or
    two subjects. A single group gives a plain permutation.
    """
    order = rng.permutation(len(groups))
    labels = np.asarray(groups, dtype=object)[order]
    place = np.empty(len(groups))
    for label in sorted(set(labels)):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return order[np.argsort(place, kind="stable")]


def cross_dataset(
    train: tuple[str, pd.DataFrame],
    tests: dict[str, pd.DataFrame],
    fold: int,
    folds: int,
    *,
    seed: int,
    rotate_unhealthy: bool = False,
    **sizes: Any,
) -> pd.DataFrame:
    """Train on one healthy data set, test on others (the paper's T2 setting).

    A fixed healthy test set is put aside; of the rest each fold, from 0, validates on its own
    disjoint subjects. Unhealthy validation and test sets are the same in all folds, as in the
    published files of pDDPM, or validation goes round (``rotate_unhealthy``), for test sets so
    small that everybody should be tested once. All sets have the mix of sites and ages of their
    data set (:func:`strata`).

    Data sets come as participants tables, with their names. ``sizes`` are ``healthy_validation``
    (of a fold), ``healthy_test`` and ``unhealthy_validation`` (by test set, default 10 %) of
    ``splits`` in the config.

    Raises:
        DataError: the sets do not fit into the data.
    """
    name, table = train[0], subjects(train[1])
    order = _order(table, seed, name, "healthy")
    aside = count_of(sizes["healthy_test"], len(table))
    size = max(1, count_of(sizes["healthy_validation"], len(table)))
    rest = order[aside:]
    if folds * size >= len(rest):
        raise DataError(
            f"{name}: {len(table)} subjects are too few for {folds} folds with {size} healthy "
            f"validation subjects each and {aside} put aside; make splits.healthy_validation or "
            "splits.healthy_test smaller."
        )
    validation = rest[fold * size : (fold + 1) * size]
    parts = [
        _rows(name, table, np.setdiff1d(rest, validation), "train"),
        _rows(name, table, np.sort(validation), "val_healthy"),
        _rows(name, table, np.sort(order[:aside]), "test_healthy"),
    ]
    for test, participants in tests.items():
        table = subjects(participants)
        order = _order(table, seed, test, "unhealthy")
        size = max(1, count_of(sizes["unhealthy_validation"].get(test, 0.1), len(table)))
        if size >= len(table):
            raise DataError(
                f"{test}: {len(table)} subjects leave none to test on after {size} for "
                "validation; make splits.unhealthy_validation smaller."
            )
        order = np.roll(order, -fold * size) if rotate_unhealthy else order
        parts.append(_rows(test, table, np.sort(order[:size]), "val_unhealthy"))
        parts.append(_rows(test, table, np.sort(order[size:]), "test"))
    return check(pd.concat(parts, ignore_index=True))


def _order(table: pd.DataFrame, *seed: object) -> np.ndarray:
    return stratified_order(table["stratum"], np.random.default_rng(derive_seed(*seed)))


def intra_dataset(
    name: str,
    participants: pd.DataFrame,
    fold: int,
    folds: int,
    *,
    seed: int,
    kind: str = "clean",
) -> pd.DataFrame:
    """Train on the tumour-free slices of some patients, test on others (60/10/10/20).

    ``KFold(folds, shuffle=True, random_state=seed)`` on the sorted names gives the
    test patients, as in the authors' script ([IQA] create_splits.py, seed 42). Three
    quarters of the others train, one eighth validates training, the last eighth is the
    unhealthy validation set. The script takes these three in the order of the names
    (``reference``), and BraTS numbers its patients by site; ``clean`` shuffles them first, by site
    and age.

    Raises:
        DataError: too few patients for a patient in every set.
    """
    from sklearn.model_selection import KFold

    table = subjects(participants)
    if len(table) < max(folds, 8):
        raise DataError(f"{name}: {len(table)} patients are too few for an intra-dataset split.")
    splits = KFold(folds, shuffle=True, random_state=seed).split(np.arange(len(table)))
    order, test = list(splits)[fold]
    if kind == "clean":
        order = order[_order(table.iloc[order], seed, name, "intra", fold)]
    healthy = max(1, len(order) // 8)
    unhealthy = max(1, len(order) - len(order) * 3 // 4 - healthy)
    train = len(order) - healthy - unhealthy
    parts = [
        _rows(name, table, np.sort(order[:train]), "train"),
        _rows(name, table, np.sort(order[train : train + healthy]), "val_healthy"),
        _rows(name, table, np.sort(order[train + healthy :]), "val_unhealthy"),
        _rows(name, table, test, "test"),
    ]
    return check(pd.concat(parts, ignore_index=True))


def check(split: pd.DataFrame, *, leaks: str = "refuse") -> pd.DataFrame:
    """Return ``split`` with all :data:`COLUMNS` if it is leak-free.

    With ``leaks="keep"``, for published lists, a subject may be in two sets, and ``also_in`` names
    the others.

    Raises:
        DataError: a subject in two sets or listed twice, or an empty set.
    """
    split = split.assign(weight=split.get("weight", 1))
    person = ["dataset", "subject"]
    twice = split[split.duplicated(person + (["role"] if leaks == "keep" else []), keep=False)]
    if len(twice):
        first = twice.iloc[0]
        same = (split["dataset"] == first["dataset"]) & (split["subject"] == first["subject"])
        roles = split[same]["role"]
        raise DataError(
            f"split: subject '{first['name']}' of {first['dataset']} is in {len(roles)} sets "
            f"({', '.join(roles)}); a patient may be in one only."
        )
    for role in ("train", "val_healthy", "val_unhealthy", "test"):
        if role not in set(split["role"]):
            raise DataError(f"split: the set '{role}' is empty.")
    sets = split.groupby(person)["role"].agg(list)
    others = [
        ", ".join(r for r in sets[(row.dataset, row.subject)] if r != row.role)
        for row in split.itertuples()
    ]
    split = split.assign(weight=split["weight"].astype(int), also_in=others)
    return split[COLUMNS].reset_index(drop=True)


def subjects_of(split: pd.DataFrame, dataset: str, role: str) -> list[str]:
    """BIDS labels of one set, in the order of the file, each as often as its weight."""
    part = split.query("dataset == @dataset and role == @role")
    return part["subject"].repeat(part.get("weight", 1)).tolist()
