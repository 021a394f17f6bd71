"""Splits: ours, by patient and leak-free; and the published lists, read as they are."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uad import published_splits
from uad.core.errors import DataError
from uad.published_splits import read_registry, reference_files, reference_split, subject_of
from uad.splits import (
    check,
    cross_dataset,
    intra_dataset,
    stratified_order,
    subjects_of,
)

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("UAD_REAL_DATA", ROOT / "../shared/data")).resolve()
LISTS = DATA / "reference_splits"


# --- ours


def people(n, stem="s"):
    names = [f"{stem}{i:04d}" for i in range(n)]
    return pd.DataFrame({"subject": names, "name": names})


def cross(n_train, n_test, fold=0, folds=5, **sizes):
    options = {
        "healthy_validation": 0.1,
        "healthy_test": 0.2,
        "unhealthy_validation": {"brats21": 0.1},
        "seed": 42,
    } | sizes
    train, tests = ("ixi", people(n_train)), {"brats21": people(n_test, "b")}
    return cross_dataset(train, tests, fold, folds, **options)


def sizes(split):
    return split.groupby(["dataset", "role"]).size().to_dict()


def test_cross_dataset_sizes_of_the_paper_come_out():
    options = {
        "healthy_validation": 44,
        "healthy_test": 158,
        "unhealthy_validation": {"brats21": 100},
    }
    assert sizes(cross(560, 1251, **options)) == {
        ("ixi", "train"): 358,
        ("ixi", "val_healthy"): 44,
        ("ixi", "test_healthy"): 158,
        ("brats21", "val_unhealthy"): 100,
        ("brats21", "test"): 1151,
    }


def test_cross_dataset_folds_validate_on_different_people_and_test_on_the_same():
    folds = [cross(60, 30, fold) for fold in range(5)]
    validation = [set(subjects_of(f, "ixi", "val_healthy")) for f in folds]
    assert len(set.union(*validation)) == sum(map(len, validation))
    for role in ("test", "val_unhealthy"):
        assert len({tuple(subjects_of(f, "brats21", role)) for f in folds}) == 1


def test_with_rotation_every_patient_of_a_small_test_set_is_tested():
    options = {"unhealthy_validation": {"brats21": 1}, "rotate_unhealthy": True}
    folds = [cross(60, 2, fold, **options) for fold in range(2)]
    tested = [subjects_of(f, "brats21", "test") for f in folds]
    assert sorted(s for fold in tested for s in fold) == ["b0000", "b0001"]
    assert [subjects_of(f, "brats21", "val_unhealthy") for f in folds] == tested[::-1]


def test_intra_dataset_is_60_10_10_20_and_the_test_sets_partition_the_patients():
    splits = [intra_dataset("brats21", people(1251), k, 5, seed=42) for k in range(5)]
    for split in splits:
        counts = split["role"].value_counts()
        assert counts["train"] == 750 and counts["val_healthy"] == 125
        assert counts["val_unhealthy"] in (125, 126) and counts["test"] in (250, 251)
    tests = [s for split in splits for s in subjects_of(split, "brats21", "test")]
    assert len(tests) == len(set(tests)) == 1251


@given(n=st.integers(12, 80), fold=st.integers(0, 4), seed=st.integers(0, 99))
def test_no_split_has_a_patient_in_two_sets(n, fold, seed):
    for split in (cross(n, n, fold, seed=seed), intra_dataset("b", people(n), fold, 5, seed=seed)):
        assert not split.duplicated(["dataset", "subject"]).any()


def test_a_subject_in_two_sets_is_refused_by_name():
    split = cross(60, 30)
    leaked = pd.concat([split, split.iloc[[0]].assign(role="test_healthy")])
    with pytest.raises(
        DataError, match=r"subject 's\d+' of ixi is in 2 sets \(train, test_healthy\)"
    ):
        check(leaked)


def test_too_few_subjects_are_refused():
    with pytest.raises(DataError, match="too few for 5 folds"):
        cross(5, 30)
    with pytest.raises(DataError, match="leave none to test on"):
        cross(60, 5, unhealthy_validation={"brats21": 5})
    with pytest.raises(DataError, match="too few for an intra-dataset split"):
        intra_dataset("b", people(7), 0, 5, seed=1)


# --- ours: the mix of sites and ages


def ixi_people(n=560, ages=True, seed=0):
    """A table with the sites of IXI in their rough proportions, and ages."""
    rng = np.random.default_rng(seed)
    sites = rng.choice(["Guys", "HH", "IOP"], n, p=[0.56, 0.31, 0.13])
    names = [f"IXI{i:03d}-{site}-{i:04d}" for i, site in enumerate(sites)]
    table = pd.DataFrame({"subject": [x.replace("-", "") for x in names], "name": names})
    table["site"] = sites
    if ages:
        table["age"] = [f"{a:.2f}" if a > 22 else None for a in rng.uniform(20, 86, n)]
    return table


def paper_split(train, fold=0, n_test=1251):
    tests = {"brats21": people(n_test, "b")}
    sizes = {"healthy_validation": 44, "healthy_test": 158}
    unhealthy = {"unhealthy_validation": {"brats21": 100}}
    return cross_dataset(("ixi", train), tests, fold, 5, seed=42, **sizes, **unhealthy)


@pytest.mark.parametrize("ages", [True, False])
def test_every_set_of_every_fold_has_the_mix_of_sites_and_ages(ages):
    table = ixi_people(ages=ages)
    old = pd.to_numeric(table["age"]) >= 60 if ages else table["site"] == "HH"
    groups = {site: table["site"] == site for site in ("Guys", "HH", "IOP")} | {"old": old}
    for fold in (0, 4):
        split = paper_split(table, fold)
        for role, size in (("train", 358), ("val_healthy", 44), ("test_healthy", 158)):
            chosen = set(subjects_of(split, "ixi", role))
            assert len(chosen) == size
            for name, member in groups.items():
                expected = member.mean() * size
                found = table[member]["subject"].isin(chosen).sum()
                assert abs(found - expected) <= 3, (fold, role, name, found, expected)


@given(groups=st.lists(st.sampled_from("abc"), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_a_stratified_order_is_a_permutation_with_the_mix_in_every_run(groups, seed):
    order = stratified_order(groups, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(groups)))
    size = max(1, len(groups) // 3)
    for start in range(0, len(groups) - size + 1, size):
        run = Counter(groups[i] for i in order[start : start + size])
        for group, count in Counter(groups).items():
            assert abs(run[group] - count * size / len(groups)) <= 3


# --- within one data set


def test_intra_dataset_test_sets_are_those_of_the_authors_kfold():
    from sklearn.model_selection import KFold

    names = sorted(f"BraTS2021_{i:05d}" for i in range(1251))
    table = pd.DataFrame({"subject": names, "name": names}).sample(frac=1, random_state=1)
    folds = list(KFold(n_splits=5, shuffle=True, random_state=42).split(names))
    digest = hashlib.sha256()
    for k, (_, expected) in enumerate(folds):
        kind = "reference" if k % 2 else "clean"
        split = intra_dataset("brats21", table, k, 5, seed=42, kind=kind)
        assert subjects_of(split, "brats21", "test") == [names[i] for i in expected]
        digest.update(" ".join(subjects_of(split, "brats21", "test")).encode())
    # the shuffle of another version of scikit-learn would change the paper's test sets
    assert digest.hexdigest()[:16] == "ec92f33cf5b5636a"


def test_intra_reference_takes_the_rest_in_the_order_of_the_names():
    names = [f"BraTS2021_{i:05d}" for i in range(1251)]
    table = pd.DataFrame({"subject": names, "name": names})
    split = intra_dataset("brats21", table, 0, 5, seed=42, kind="reference")
    rest = [subjects_of(split, "brats21", r) for r in ("train", "val_healthy", "val_unhealthy")]
    assert [len(part) for part in rest] == [750, 125, 125]
    together = [name for part in rest for name in part]
    assert together == sorted(together)


# --- what a split table may say


def test_a_kept_leak_is_recorded_in_both_rows():
    split = cross(60, 30)
    first = split.iloc[[0]]
    leaked = pd.concat([split, first.assign(role="test_healthy")])
    kept = check(leaked, leaks="keep")
    rows = kept[kept["subject"] == first["subject"].iloc[0]]
    assert dict(zip(rows["role"], rows["also_in"], strict=True)) == {
        "train": "test_healthy",
        "test_healthy": "train",
    }
    assert (kept["also_in"] != "").sum() == 2
    with pytest.raises(DataError, match="is in 2 sets"):
        check(pd.concat([split, first]), leaks="keep")


def test_a_weight_repeats_a_subject_in_training():
    split = cross(60, 30)
    split.loc[0, "weight"] = 2
    labels = subjects_of(check(split), "ixi", "train")
    assert labels[0] == labels[1] and len(labels) == (split["role"] == "train").sum() + 1


# --- the published lists


def write_lists(folder, rows):
    """Lists in the published form: numbered rows, img_name among other columns."""
    folder.mkdir(exist_ok=True)
    files = {}
    for file, names in rows.items():
        table = pd.DataFrame({"0" if file == "avail_t2.csv" else "img_name": names})
        if file != "avail_t2.csv":
            table = table.assign(age=40.0, label=0)
        table.index += 7
        table.to_csv(folder / file)
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        files[file] = {"sha256": digest}
    return read_registry() | {"files": files}


def t1(*numbers):
    return [f"IXI{n:03d}-HH-{n:04d}_t1.nii.gz" for n in numbers]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Small lists with the faults of the published ones, and the data sets they name."""
    rows = {
        # 2 is listed twice; 3 is in the test set, 4 in validation; 9 has no T2; 8 no data
        "IXI_train_fold0.csv": t1(1, 2, 2, 3, 4, 8, 9),
        "IXI_val_fold0.csv": t1(4, 5),
        "IXI_test.csv": t1(3, 6, 6),
        "avail_t2.csv": [n.replace("_t1", "_t2") for n in t1(1, 2, 2, 3, 4, 5, 6, 8)],
        "Brats21_val.csv": ["BraTS2021_00001"],
        "Brats21_test.csv": ["BraTS2021_00002", "BraTS2021_00003"],
    }
    registry = write_lists(tmp_path / "lists", rows)
    monkeypatch.setattr(published_splits, "read_registry", lambda: registry)
    names = [f"IXI{n:03d}-HH-{n:04d}" for n in (1, 2, 3, 4, 5, 6, 7, 9)]
    ixi = pd.DataFrame({"subject": [n.replace("-", "") for n in names], "name": names})
    brats = [f"BraTS2021_0000{i}" for i in (1, 2, 3)]
    brats = pd.DataFrame({"subject": [n.replace("_", "") for n in brats], "name": brats})

    def split(modality="T2", fold=0, **options):
        return reference_split(
            tmp_path / "lists",
            {"ixi": ixi, "brats21": brats},
            fold,
            layouts={"ixi": "ixi", "brats21": "brats21"},
            modality=modality,
            **options,
        )

    return split


def test_duplicates_are_drawn_twice_as_published_or_once(published):
    split, report = published()
    assert subjects_of(split, "ixi", "train") == ["IXI001HH0001", *["IXI002HH0002"] * 2]
    assert report["duplicates"]["subjects"] == {
        "train": {"IXI002-HH-0002": 2},
        "test_healthy": {"IXI006-HH-0006": 2},
    }
    assert report["subjects"]["train"] == 2 and report["rows"]["train"] == 3
    split, report = published(duplicates="drop")
    assert (split["weight"] == 1).all() and report["rows"]["train"] == 2


def test_leaks_leave_training_or_stay_and_are_reported_either_way(published):
    split, report = published()
    assert not split.duplicated(["dataset", "subject"]).any()
    found = {leak["name"]: leak["sets"] for leak in report["leaks"]["subjects"]}
    assert found == {
        "IXI003-HH-0003": ["train", "test_healthy"],
        "IXI004-HH-0004": ["train", "val_healthy"],
    }
    assert subjects_of(split, "ixi", "val_healthy") == ["IXI004HH0004", "IXI005HH0005"]
    kept, report = published(leaks="keep")
    assert set(subjects_of(kept, "ixi", "train")) == {f"IXI00{i}HH000{i}" for i in (1, 2, 3, 4)}
    assert (kept["also_in"] != "").sum() == 4 and report["leaks"]["handled"] == "keep"


def test_names_without_t2_or_without_data_are_left_out_and_listed(published):
    split, report = published()
    train = report["lists"]["IXI_train_fold0.csv"]
    assert (train["rows"], train["rows_without_t2"], train["rows_used"]) == (7, 1, 5)
    assert report["missing"] == {"ixi": ["IXI008-HH-0008"], "brats21": []}
    assert report["not_listed"] == {"ixi": ["IXI007-HH-0007"], "brats21": []}
    with_t1, report = published("T1")
    assert "IXI009HH0009" in subjects_of(with_t1, "ixi", "train")
    assert report["lists"]["IXI_train_fold0.csv"]["rows_without_t2"] == 0
    assert "IXI009HH0009" not in subjects_of(split, "ixi", "train")


def test_an_altered_or_missing_list_is_refused_with_its_url(published, tmp_path):
    path = tmp_path / "lists" / "IXI_test.csv"
    path.write_text(path.read_text() + "99,IXI009-HH-0009_t1.nii.gz,40.0,0\n")
    with pytest.raises(DataError, match=r"IXI_test\.csv: its SHA-256 .*raw\.githubusercontent"):
        published()
    assert published(verify=False)[1]["verified"] is False
    path.unlink()
    with pytest.raises(DataError, match=r"IXI_test\.csv: no such list. Fetch it from https"):
        published()


def test_lists_of_other_data_are_refused(published, tmp_path):
    with pytest.raises(DataError, match=r"none of its \d subjects \(such as IXI001-HH-0001\)"):
        lists = {"ixi": people(9), "brats21": people(9)}
        layouts = {name: name for name in lists}
        reference_split(tmp_path / "lists", lists, 0, layouts=layouts, modality="T1")


def test_the_registry_names_all_lists_with_their_checksums():
    registry = read_registry()
    needed = set(reference_files(["ixi", "brats21", "mslub"], "T2"))
    assert needed == set(registry["files"]) and len(needed) == 16
    assert all(len(entry["sha256"]) == 64 for entry in registry["files"].values())
    assert "IXI_val_fold2.csv" in reference_files(["ixi", "mslub"], "T1", fold=2)
    assert "avail_t2.csv" not in reference_files(["ixi", "mslub"], "T1", fold=2)


# --- the published lists themselves (their names only, so that no checksum fits)


def everybody():
    """Tables of all subjects that the lists name."""

    def table(*files):
        names = sorted({subject_of(n) for f in files for n in pd.read_csv(LISTS / f)["img_name"]})
        return pd.DataFrame({"subject": [n.replace("-", "") for n in names], "name": names})

    ixi = [f"IXI_{part}_fold{k}.csv" for part in ("train", "val") for k in range(5)]
    return table(*ixi, "IXI_test.csv"), {
        "brats21": table("Brats21_val.csv", "Brats21_test.csv"),
        "mslub": table("MSLUB_val.csv", "MSLUB_test.csv"),
    }


@pytest.mark.real
@pytest.mark.skipif(not LISTS.is_dir(), reason=f"no lists at {LISTS}; set UAD_REAL_DATA")
@pytest.mark.parametrize("modality", ["T1", "T2"])
def test_the_published_lists_have_the_sizes_duplicates_and_leaks_that_are_on_record(modality):
    ixi, tests = everybody()
    layouts = {name: name for name in ("ixi", "brats21", "mslub")}
    for fold in range(5):
        arguments = (LISTS, {"ixi": ixi, **tests}, fold)
        options = {"layouts": layouts, "modality": modality, "verify": False}
        split, report = reference_split(*arguments, leaks="keep", **options)
        rows = report["rows"]
        if modality == "T2":
            assert (rows["train"], rows["val_healthy"]) == ((385, 44) if fold < 3 else (386, 43))
            assert rows["test_healthy"] == 158
        else:
            assert (rows["train"], rows["val_healthy"], rows["test_healthy"]) == (387, 44, 160)
        assert (rows["val_unhealthy"], rows["test"]) == (100 + 10, 1151 + 20)
        assert len(subjects_of(split, "mslub", "val_unhealthy")) == 10
        assert len(subjects_of(split, "ixi", "train")) == rows["train"]
        assert len(report["duplicates"]["subjects"]["train"]) == (13, 13, 11, 10, 10)[fold]
        sets = Counter(tuple(leak["sets"]) for leak in report["leaks"]["subjects"])
        assert sets["train", "test_healthy"] + sets["val_healthy", "test_healthy"] == 9
        assert sets["train", "val_healthy"] == (0, 0, 2, 3, 3)[fold]
        assert not any(report["missing"].values())

        cleaned, _ = reference_split(*arguments, duplicates="drop", **options)
        assert not cleaned.duplicated(["dataset", "subject"]).any()
        assert (cleaned["weight"] == 1).all()
