"""Who is trained on, validated on and tested on.

Two kinds of split. ``clean`` is ours: by patient, disjoint, stratified by site and age.
``reference`` are the lists published with pDDPM, read as they are: subjects listed twice,
some in two sets; what is done about either is the caller's choice and is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import ConfigError, DataError, unknown
from uad.core.files import sha256
from uad.core.seeds import derive_seed

#: The roles of a split, in the order in which a file lists them.
ROLES = ("train", "val_healthy", "test_healthy", "val_unhealthy", "test")
#: ``weight``: how often the subject is listed in its set, and hence drawn in an epoch.
#: ``also_in``: the other sets that the subject is in (empty unless a leak was kept).
COLUMNS = ["dataset", "subject", "name", "role", "weight", "also_in"]
#: Limits (years) of the age groups, those of the column ``Agegroup`` of the published lists.
AGE_LIMITS = (40, 60)
#: File name stem of each layout's published lists.
LISTS = {"ixi": "IXI", "brats21": "Brats21", "mslub": "MSLUB"}
#: What can be done with a subject that a published list names twice, or two lists name.
DUPLICATES = ("keep", "drop")
LEAKS = ("keep", "drop_from_train")

_REGISTRY = Path(__file__).resolve().parents[2] / "resources" / "reference_splits.yaml"


def count_of(size: int | float, total: int) -> int:
    """A set size as a count: integers are counts, numbers below 1 are fractions (rounded)."""
    return size if isinstance(size, int) else round(size * total)


def _rows(dataset: str, table: pd.DataFrame, chosen: Sequence[int], role: str) -> pd.DataFrame:
    part = table.iloc[list(chosen)]
    return pd.DataFrame(
        {"dataset": dataset, "subject": part["subject"], "name": part["name"], "role": role}
    )


def _subjects(participants: pd.DataFrame) -> pd.DataFrame:
    """One row per subject, sorted by name: subject, name, stratum."""
    table = participants.drop_duplicates(["subject", "name"]).sort_values("name")
    table = table.reset_index(drop=True)
    return table[["subject", "name"]].assign(stratum=strata(table))


def strata(participants: pd.DataFrame) -> pd.Series:
    """What a split is balanced by: the site and, where ages are known, the age group.

    Args:
        participants: a participants table; ``site`` and ``age`` (years) may be missing.

    Returns:
        One text per row, for example ``Guys, 40-60``; an age that is no number is a group
        of its own (``age unknown``), so that it is spread over the sets as well.
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
    """What a split of this table is balanced by, for the record.

    Args:
        participants: a participants table, see :func:`strata`.

    Returns:
        ``by``: ``site`` where there are several, ``age`` where any is known; ``groups``: the
        number of subjects of each stratum.
    """
    subjects = participants.drop_duplicates(["subject", "name"])
    several = "site" in subjects and subjects["site"].nunique() > 1
    by = [*(["site"] if several else []), *(["age"] if _ages(subjects).notna().any() else [])]
    return {"by": by, "groups": strata(subjects).value_counts().sort_index().to_dict()}


def stratified_order(groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """A random order in which every run of neighbours has about the same mix of groups.

    The members of a group, shuffled, are spaced evenly over the order from a random start,
    so that a set of any size can be cut out of it: each group takes its share up to one or
    two subjects. A single group gives a plain permutation.

    Args:
        groups: the group of each item.
        rng: source of the shuffle.

    Returns:
        The indices of all items, ``(N,)``.
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
    healthy_validation: int | float,
    healthy_test: int | float,
    unhealthy_validation: dict[str, int | float],
    seed: int,
    rotate_unhealthy: bool = False,
) -> pd.DataFrame:
    """Train on one healthy data set, test on others (the paper's T2 setting).

    A fixed healthy test set is put aside; of the rest each fold validates on its
    own disjoint subjects. Unhealthy validation and test sets are the same in all
    folds, as in the published files of pDDPM. All sets have the mix of sites and
    ages of their data set (:func:`strata`).

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
    order = _order(table, seed, name, "healthy")
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
        order = _order(table, seed, test, "unhealthy")
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
    unhealthy validation set. The script takes these three in the order of the names, and
    BraTS numbers its patients by site; ``clean`` shuffles them first, by site and age.

    Args:
        name: the data set.
        participants: its participants table.
        fold: which fold, from 0.
        folds: number of folds.
        seed: of the shuffles.
        kind: ``clean``, or ``reference`` for the order of the authors' script.

    Raises:
        ConfigError: an unknown kind.
        DataError: too few patients for a patient in every set.
    """
    from sklearn.model_selection import KFold

    if kind not in ("clean", "reference"):
        raise ConfigError(unknown("kind of split", kind, ("clean", "reference")))
    table = _subjects(participants)
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


def read_registry(path: str | Path | None = None) -> dict[str, Any]:
    """The published lists as facts: repository, commit, ``url`` with ``{file}``, ``files``.

    Args:
        path: the registry; default: ``resources/reference_splits.yaml``.
    """
    import yaml

    return yaml.safe_load(Path(path or _REGISTRY).read_text(encoding="utf-8"))


def reference_files(layouts: Sequence[str], modality: str, fold: int | None = None) -> list[str]:
    """The lists that a split needs, for whoever fetches them.

    Args:
        layouts: layout of the training set, then those of the test sets.
        modality: our modality name; T2 needs the list of available T2 scans.
        fold: one fold, or None for all.
    """
    folds = range(read_registry()["folds"]) if fold is None else [fold]
    needed = [f"IXI_{part}_fold{k}.csv" for k in folds for part in ("train", "val")]
    needed.append("IXI_test.csv")
    if modality == "T2":
        needed.append("avail_t2.csv")
    for layout in dict.fromkeys(layouts[1:]):
        needed += [f"{LISTS[layout]}_val.csv", f"{LISTS[layout]}_test.csv"]
    return needed


def reference_split(
    folder: str | Path,
    train: tuple[str, pd.DataFrame],
    tests: Mapping[str, pd.DataFrame],
    fold: int,
    *,
    layouts: Mapping[str, str],
    modality: str,
    duplicates: str = "keep",
    leaks: str = "drop_from_train",
    verify: bool = True,
    registry: Mapping[str, Any] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The cross-dataset split that pDDPM published, which the paper's T2 setting follows.

    For T2 the authors keep the IXI subjects whose T2 scan their list ``avail_t2.csv`` has:
    385 or 386 training rows, 43 or 44 for validation, 158 for testing; 387, 44 and 160
    otherwise. Names that the data set does not have are left out, counted and listed.

    Args:
        folder: where the lists lie, under their published names.
        train: name and participants table of the healthy data set (layout ``ixi``).
        tests: participants tables of the test sets, by name.
        fold: which of the five published folds, from 0.
        layouts: layout of each data set, by name.
        modality: our modality name (``T1``, ``T2``, ...).
        duplicates: ``keep``: who is listed twice has weight 2 and is drawn twice in an epoch,
            as published; ``drop``: weight 1.
        leaks: ``keep``: a subject may be in two sets, as published, and the column ``also_in``
            says so; ``drop_from_train``: it stays in the later of train, val_healthy and
            test_healthy only.
        verify: check the SHA-256 of each list against the registry.
        registry: content of :func:`read_registry`; default: the project's.

    Returns:
        The split, and a report for the record: source, per list its rows, subjects, rows
        without T2 and names that are missing in the data; per set its subjects and its weight;
        duplicates, leaks, what was done with them; subjects of the data that no list names.

    Raises:
        ConfigError: an unknown option, a fold or a layout without published lists.
        DataError: a list is missing or has other bytes than the published one, or a set
            would be empty.
    """
    for what, value, known in (("duplicates", duplicates, DUPLICATES), ("leaks", leaks, LEAKS)):
        if value not in known:
            raise ConfigError(unknown(f"way with {what}", value, known))
    registry = registry or read_registry()
    if layouts[train[0]] != "ixi":
        raise ConfigError(
            f"the published splits train on IXI; {train[0]} has the layout {layouts[train[0]]}. "
            "Use splits.kind: clean."
        )
    if not 0 <= fold < registry["folds"]:
        raise ConfigError(f"fold {fold}: the published splits have {registry['folds']} folds.")
    folder, digests = Path(folder), {}

    def read(file: str) -> list[str]:
        rows, digests[file] = _published(folder / file, registry, verify)
        return rows

    with_t2 = {subject_of(row) for row in read("avail_t2.csv")} if modality == "T2" else None
    wanted = {
        ("train", train[0]): f"IXI_train_fold{fold}.csv",
        ("val_healthy", train[0]): f"IXI_val_fold{fold}.csv",
        ("test_healthy", train[0]): "IXI_test.csv",
    }
    for test in tests:
        stem = LISTS[layouts[test]]
        wanted |= {
            ("val_unhealthy", test): f"{stem}_val.csv",
            ("test", test): f"{stem}_test.csv",
        }
    tables = {name: _subjects(table) for name, table in {train[0]: train[1], **tests}.items()}
    labels = {name: dict(zip(t["name"], t["subject"], strict=True)) for name, t in tables.items()}
    lists, parts, named = {}, [], {name: set() for name in tables}
    for (role, dataset), file in wanted.items():
        rows = [subject_of(row) for row in read(file)]
        kept = [n for n in rows if dataset != train[0] or with_t2 is None or n in with_t2]
        counts = Counter(n for n in kept if n in labels[dataset])
        named[dataset] |= set(rows)
        lists[file] = {
            "rows": len(rows),
            "subjects": len(set(rows)),
            "rows_without_t2": len(rows) - len(kept),
            "rows_used": sum(counts.values()),
            "missing": sorted(set(kept) - set(counts)),
        }
        if not counts:
            raise DataError(
                f"{folder / file}: none of its {len(set(kept))} subjects (such as "
                f"{kept[0] if kept else 'none'}) is in the data set {dataset}. "
                "Use splits.kind: clean for other data."
            )
        names = sorted(counts)
        parts.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "subject": [labels[dataset][n] for n in names],
                    "name": names,
                    "role": role,
                    "weight": [counts[n] if duplicates == "keep" else 1 for n in names],
                    "listed": [counts[n] for n in names],
                }
            )
        )
    split = pd.concat(parts, ignore_index=True)
    twice = split[split["listed"] > 1]
    leaked = _leaked(split)
    if leaks == "drop_from_train":
        rank = split["role"].map(ROLES.index)
        last = rank.groupby([split["dataset"], split["subject"]]).transform("max")
        split = split[rank == last]
    split = check(split, leaks="keep" if leaks == "keep" else "refuse")
    missing = {name: set() for name in tables}
    for (_, dataset), file in wanted.items():
        missing[dataset] |= set(lists[file]["missing"])
    listed = {
        role: {row.name: int(row.listed) for row in part.itertuples(index=False)}
        for role, part in twice.groupby("role", sort=False)
    }
    sizes = split.groupby("role", sort=False)["weight"].agg(["size", "sum"])
    report = {
        "kind": "reference",
        "repository": registry["repository"],
        "commit": registry["commit"],
        "verified": bool(verify),
        "sha256": digests,
        "fold": int(fold),
        "modality": modality,
        "lists": lists,
        "missing": {name: sorted(names) for name, names in missing.items()},
        "not_listed": {name: sorted(set(labels[name]) - named[name]) for name in tables},
        "duplicates": {"handled": duplicates, "subjects": listed},
        "leaks": {"handled": leaks, "subjects": leaked},
        "subjects": {role: int(n) for role, n in sizes["size"].items()},
        "rows": {role: int(n) for role, n in sizes["sum"].items()},
    }
    return split, report


def subject_of(image: str) -> str:
    """The subject in a published image name.

    >>> subject_of("IXI105-HH-1471_t1.nii.gz"), subject_of("BraTS2021_00538")
    ('IXI105-HH-1471', 'BraTS2021_00538')
    """
    return re.sub(r"(_(t1|t2|t1ce|flair|FLAIR))?(\.nii(\.gz)?)?$", "", image.strip())


def _published(path: Path, registry: Mapping[str, Any], verify: bool) -> tuple[list[str], str]:
    """The image names of a published list, and its checksum."""
    url = registry["url"].format(file=path.name)
    if not path.is_file():
        raise DataError(f"{path}: no such list. Fetch it from {url}")
    digest = sha256(path)
    expected = registry["files"][path.name]["sha256"]
    if verify and digest != expected:
        raise DataError(
            f"{path}: its SHA-256 is {digest[:12]}..., the published list has "
            f"{expected[:12]}... . Delete it and fetch it again from {url}"
        )
    # an unnamed first column numbers the rows; avail_t2.csv calls its names "0"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    column = next((c for c in ("img_name", "0") if c in table), None)
    if column is None:
        raise DataError(f"{path}: no column 'img_name'; it is not a published list.")
    return table[column].tolist(), digest


def _leaked(split: pd.DataFrame) -> list[dict[str, Any]]:
    """The subjects that are in more than one set, with these sets."""
    twice = split[split.duplicated(["dataset", "subject"], keep=False)]
    return [
        {"dataset": dataset, "name": name, "sets": sorted(part["role"], key=ROLES.index)}
        for (dataset, name), part in twice.groupby(["dataset", "name"])
    ]


def check(split: pd.DataFrame, *, leaks: str = "refuse") -> pd.DataFrame:
    """Return ``split`` with all :data:`COLUMNS` if it is leak-free.

    Args:
        split: dataset, subject, name, role; weight where it is not 1.
        leaks: ``refuse``, or ``keep`` for published lists: a subject may then be in two sets,
            and ``also_in`` names the others.

    Raises:
        DataError: a subject in two sets or listed twice, an unknown role, an empty set, a
            weight that is no positive whole number, or another weight than 1 in a set that
            is evaluated (metrics have one row per subject).
    """
    split = split.assign(weight=split.get("weight", 1))
    bad = set(split["role"]) - set(ROLES)
    if bad:
        raise DataError(f"split: unknown role(s) {', '.join(sorted(bad))}.")
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
    weight = pd.to_numeric(split["weight"], errors="coerce")
    evaluated = split["role"].isin(("val_unhealthy", "test"))
    wrong = split[~(weight >= 1) | (weight % 1 != 0) | (evaluated & (weight != 1))]
    if len(wrong):
        first = wrong.iloc[0]
        raise DataError(
            f"split: subject '{first['name']}' of {first['dataset']} has the weight "
            f"{first['weight']} in '{first['role']}'; weights are whole numbers from 1, and 1 in "
            "val_unhealthy and test."
        )
    for role in ("train", "val_healthy", "val_unhealthy", "test"):
        if role not in set(split["role"]):
            raise DataError(f"split: the set '{role}' is empty.")
    sets = split.groupby(person)["role"].agg(list)
    others = [
        ", ".join(r for r in sets[(row.dataset, row.subject)] if r != row.role)
        for row in split.itertuples()
    ]
    split = split.assign(weight=weight.astype(int), also_in=others)
    return split[COLUMNS].reset_index(drop=True)


def subjects_of(split: pd.DataFrame, dataset: str, role: str) -> list[str]:
    """BIDS labels of one set, in the order of the file, each as often as its weight."""
    part = split.query("dataset == @dataset and role == @role")
    return part["subject"].repeat(part.get("weight", 1)).tolist()
