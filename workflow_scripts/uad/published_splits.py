"""The splits of kind ``reference``: the lists published with pDDPM, read as they are.

They name subjects twice, and some in two sets; what is done about either is the caller's choice
and is reported.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from uad.core.errors import DataError
from uad.core.files import sha256
from uad.splits import ROLES, check, subjects

#: The list of T2 scans that there are.
AVAILABLE = "avail_t2.csv"

_REGISTRY = Path(__file__).resolve().parents[2] / "resources" / "reference_splits.yaml"


def read_registry() -> dict[str, Any]:
    """The published lists as facts: repository, commit, ``url`` with ``{file}``, ``files``; the
    ``stems`` of their names by layout, the first of which is the training set's.
    """
    import yaml

    return yaml.safe_load(_REGISTRY.read_text(encoding="utf-8"))


def reference_files(layouts: Sequence[str], modality: str, fold: int | None = None) -> list[str]:
    """The lists that a split (default: the splits of all folds) needs, for whoever fetches them:
    those of the layout of the training set, then of the test sets; for T2 the available T2 scans.
    """
    folds = range(read_registry()["folds"]) if fold is None else [fold]
    names = list(dict.fromkeys(layouts))
    lists = [file for k in folds for file in _files(names, {n: n for n in names}, k).values()]
    return list(dict.fromkeys([*lists, *([AVAILABLE] if modality == "T2" else [])]))


def reference_split(
    folder: str | Path,
    tables: Mapping[str, pd.DataFrame],
    fold: int,
    *,
    layouts: Mapping[str, str],
    modality: str,
    duplicates: Literal["keep", "drop"] = "keep",
    leaks: Literal["keep", "drop_from_train"] = "drop_from_train",
    verify: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The cross-dataset split that pDDPM published, which the paper's T2 setting follows.

    For T2 the authors keep the subjects whose T2 scan their list ``avail_t2.csv`` has:
    385 or 386 training rows, 43 or 44 for validation, 158 for testing; 387, 44 and 160
    otherwise. Names that the data set does not have are left out, and reported.

    The lists lie in ``folder`` under their published names; ``tables`` are participants tables by
    data set, the healthy one first, ``layouts`` those of the data sets. Who is listed twice has
    weight 2, as published, or 1 if ``duplicates`` drops. ``leaks``: a subject may be in two sets,
    as published (column ``also_in``), or stays in the later of train, val_healthy, test_healthy.
    ``verify`` checks the SHA-256 of each list.

    Returns:
        The split, and a report for the record.

    Raises:
        DataError: a list is missing or another than the published one, or a set would be empty.
    """
    registry = read_registry()
    tables = {name: subjects(table) for name, table in tables.items()}
    files = _files(list(tables), layouts, fold)
    lists, digests = {}, {}
    for file in [*([AVAILABLE] if modality == "T2" else []), *files.values()]:
        lists[file], digests[file] = _read_list(Path(folder, file), registry, verify)
    listed, found, missing, named = _listed(Path(folder), tables, files, lists)
    split = listed.assign(weight=1) if duplicates == "drop" else listed
    if leaks == "drop_from_train":
        rank = split["role"].map(ROLES.index)
        last = rank.groupby([split["dataset"], split["subject"]]).transform("max")
        split = split[rank == last]
    split = check(split, leaks="keep" if leaks == "keep" else "refuse")
    sizes = split.groupby("role", sort=False)["weight"].agg(["size", "sum"])
    return split, {
        "kind": "reference",
        "repository": registry["repository"],
        "commit": registry["commit"],
        "verified": bool(verify),
        "sha256": digests,
        "fold": int(fold),
        "modality": modality,
        "lists": found,
        "missing": {name: sorted(missing[name]) for name in tables},
        "not_listed": {n: sorted(set(t["name"]) - named[n]) for n, t in tables.items()},
        "duplicates": {"handled": duplicates, "subjects": _duplicated(listed)},
        "leaks": {"handled": leaks, "subjects": _leaked(listed)},
        "subjects": {role: int(n) for role, n in sizes["size"].items()},
        "rows": {role: int(n) for role, n in sizes["sum"].items()},
    }


def _listed(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    files: Mapping[tuple[str, str], str],
    lists: Mapping[str, list[str]],
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, set[str]], dict[str, set[str]]]:
    """Rows of all lists, what there is to say of each, and the names that each data set lacks, and
    has in a list. Where :data:`AVAILABLE` is read, healthy subjects without T2 are left out.
    """
    healthy, with_t2 = next(iter(tables)), lists.get(AVAILABLE)
    parts, found = [], {}
    missing, named = defaultdict(set), defaultdict(set)
    for (role, dataset), file in files.items():
        rows = kept = lists[file]
        if with_t2 is not None and dataset == healthy:
            available = set(with_t2)
            kept = [name for name in rows if name in available]
        part, lacking = _rows_of(kept, dataset, role, tables[dataset], folder / file)
        parts.append(part)
        named[dataset] |= set(rows)
        missing[dataset] |= lacking
        found[file] = {
            "rows": len(rows),
            "subjects": len(set(rows)),
            "rows_without_t2": len(rows) - len(kept),
            "rows_used": int(part["listed"].sum()),
            "missing": sorted(lacking),
        }
    return pd.concat(parts, ignore_index=True), found, missing, named


def _files(names: list[str], layouts: Mapping[str, str], fold: int) -> dict[tuple[str, str], str]:
    """The list of each role and data set; the first data set is the healthy one."""
    stem, *tests = (read_registry()["stems"][layouts[name]] for name in names)
    files = {
        ("train", names[0]): f"{stem}_train_fold{fold}.csv",
        ("val_healthy", names[0]): f"{stem}_val_fold{fold}.csv",
        ("test_healthy", names[0]): f"{stem}_test.csv",
    }
    for name, stem in zip(names[1:], tests, strict=True):
        files["val_unhealthy", name] = f"{stem}_val.csv"
        files["test", name] = f"{stem}_test.csv"
    return files


def _read_list(path: Path, registry: Mapping[str, Any], verify: bool) -> tuple[list[str], str]:
    """The subjects that a list names, in its order, and its SHA-256."""
    url = registry["url"].format(file=path.name)
    if not path.is_file():
        raise DataError(f"{path}: no such list. Fetch it from {url}")
    digest, expected = sha256(path), registry["files"][path.name]["sha256"]
    if verify and digest != expected:
        raise DataError(
            f"{path}: its SHA-256 is {digest[:12]}..., the published list has {expected[:12]}... . "
            f"Delete it and fetch it again from {url}"
        )
    # an unnamed first column numbers the rows; avail_t2.csv calls its names "0"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    column = next((c for c in ("img_name", "0") if c in table), None)
    if column is None:
        raise DataError(f"{path}: no column 'img_name'; it is not a published list.")
    return list(map(subject_of, table[column])), digest


def _rows_of(
    names: list[str], dataset: str, role: str, table: pd.DataFrame, path: Path
) -> tuple[pd.DataFrame, set[str]]:
    """The rows of a split for the names of a list, each with how often it is there as weight, and
    the names that the data set does not have.
    """
    labels = dict(zip(table["name"], table["subject"], strict=True))
    counts = Counter(name for name in sorted(names) if name in labels)
    if not counts:
        raise DataError(
            f"{path}: none of its {len(set(names))} subjects (such as {next(iter(names), None)}) "
            f"is in the data set {dataset}. Use splits.kind: clean for other data."
        )
    found = {"subject": [labels[name] for name in counts], "name": list(counts)}
    times = list(counts.values())
    rows = {"dataset": dataset, **found, "role": role, "weight": times, "listed": times}
    return pd.DataFrame(rows), set(names) - set(counts)


def subject_of(image: str) -> str:
    """The subject in a published image name: ``IXI105-HH-1471`` of ``..._t1.nii.gz``."""
    return re.sub(r"(_(t1|t2|t1ce|flair|FLAIR))?(\.nii(\.gz)?)?$", "", image.strip())


def _duplicated(split: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How often the subjects are listed that a list names more than once, by role."""
    twice = split[split["listed"] > 1]
    return {
        role: {row.name: int(row.listed) for row in part.itertuples(index=False)}
        for role, part in twice.groupby("role", sort=False)
    }


def _leaked(split: pd.DataFrame) -> list[dict[str, Any]]:
    """The subjects that are in more than one set, with these sets."""
    twice = split[split.duplicated(["dataset", "subject"], keep=False)]
    return [
        {"dataset": dataset, "name": name, "sets": sorted(part["role"], key=ROLES.index)}
        for (dataset, name), part in twice.groupby(["dataset", "name"])
    ]
