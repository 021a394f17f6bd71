"""Who is trained on, validated on and tested on: by patient, leak-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from uad.errors import DataError
from uad.seeds import derive_seed

#: The roles of a split, in the order in which a file lists them.
ROLES = ("train", "val_healthy", "test_healthy", "val_unhealthy", "test")
COLUMNS = ["dataset", "subject", "name", "role"]


def count_of(size: int | float, total: int) -> int:
    """A set size as a count: integers are counts, numbers below 1 are fractions (rounded)."""
    return size if isinstance(size, int) else round(size * total)


def _rows(dataset: str, table: pd.DataFrame, chosen: Sequence[int], role: str) -> pd.DataFrame:
    part = table.iloc[list(chosen)]
    return pd.DataFrame(
        {"dataset": dataset, "subject": part["subject"], "name": part["name"], "role": role}
    )


def _subjects(participants: pd.DataFrame) -> pd.DataFrame:
    return (
        participants[["subject", "name"]]
        .drop_duplicates()
        .sort_values("name")
        .reset_index(drop=True)
    )


def cross_dataset(
    train: tuple[str, pd.DataFrame],
    tests: dict[str, pd.DataFrame],
    fold: int,
    folds: int,
    *,
    healthy_validation: int | float,
    healthy_test: int | float,
    unhealthy_validation: dict[str, int | float],
    seed: int,
    rotate_unhealthy: bool = False,
) -> pd.DataFrame:
    """Train on one healthy data set, test on others (the paper's T2 setting).

    A fixed healthy test set is put aside; of the rest each fold validates on its
    own disjoint subjects. Unhealthy validation and test sets are the same in all
    folds, as in the published files of pDDPM.

    Args:
        train: name and participants table of the healthy data set.
        tests: participants tables of the test sets, by name.
        fold: which fold, from 0.
        folds: number of folds.
        healthy_validation: size of a fold's healthy validation set.
        healthy_test: size of the healthy test set (no table uses it).
        unhealthy_validation: size of the unhealthy validation set by test set
            (default: 10 %).
        seed: of the shuffles.
        rotate_unhealthy: give each fold other unhealthy validation subjects; for test sets so
            small that everybody should be tested once.

    Raises:
        DataError: the sets do not fit into the data.
    """
    name, table = train[0], _subjects(train[1])
    order = np.random.default_rng(derive_seed(seed, name, "healthy")).permutation(len(table))
    aside = count_of(healthy_test, len(table))
    size = max(1, count_of(healthy_validation, len(table)))
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
        table = _subjects(participants)
        order = np.random.default_rng(derive_seed(seed, test, "unhealthy")).permutation(len(table))
        size = max(1, count_of(unhealthy_validation.get(test, 0.1), len(table)))
        if size >= len(table):
            raise DataError(
                f"{test}: {len(table)} subjects leave none to test on after {size} for "
                "validation; make splits.unhealthy_validation smaller."
            )
        order = np.roll(order, -fold * size) if rotate_unhealthy else order
        parts.append(_rows(test, table, np.sort(order[:size]), "val_unhealthy"))
        parts.append(_rows(test, table, np.sort(order[size:]), "test"))
    return check(pd.concat(parts, ignore_index=True))


def intra_dataset(
    name: str, participants: pd.DataFrame, fold: int, folds: int, *, seed: int
) -> pd.DataFrame:
    """Train on the tumour-free slices of some patients, test on others (60/10/10/20).

    ``KFold(folds, shuffle=True, random_state=seed)`` on the sorted names gives the
    test patients, as in the authors' script; three quarters of the others train,
    one eighth validates training, the last eighth is the unhealthy validation set.

    Raises:
        DataError: too few patients for a patient in every set.
    """
    from sklearn.model_selection import KFold

    table = _subjects(participants)
    if len(table) < max(folds, 8):
        raise DataError(f"{name}: {len(table)} patients are too few for an intra-dataset split.")
    splits = KFold(folds, shuffle=True, random_state=seed).split(np.arange(len(table)))
    others, test = list(splits)[fold]
    order = np.random.default_rng(derive_seed(seed, name, "intra", fold)).permutation(others)
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


def check(split: pd.DataFrame) -> pd.DataFrame:
    """Return ``split`` if it is leak-free.

    Raises:
        DataError: a subject in two sets or listed twice, an unknown role, an empty set.
    """
    unknown = set(split["role"]) - set(ROLES)
    if unknown:
        raise DataError(f"split: unknown role(s) {', '.join(sorted(unknown))}.")
    twice = split[split.duplicated(["dataset", "subject"], keep=False)]
    if len(twice):
        first = twice.iloc[0]
        roles = twice[
            (twice["dataset"] == first["dataset"]) & (twice["subject"] == first["subject"])
        ]["role"]
        raise DataError(
            f"split: subject '{first['name']}' of {first['dataset']} is in {len(roles)} sets "
            f"({', '.join(roles)}); a patient may be in one only."
        )
    for role in ("train", "val_healthy", "val_unhealthy", "test"):
        if role not in set(split["role"]):
            raise DataError(f"split: the set '{role}' is empty.")
    return split[COLUMNS].reset_index(drop=True)


def subjects_of(split: pd.DataFrame, dataset: str, role: str) -> list[str]:
    """BIDS labels of one set, in the order of the file."""
    return split.query("dataset == @dataset and role == @role")["subject"].tolist()
