"""From the archives and folders that users have to the raw trees."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path

import pytest
import yaml

from tools.datasets import (
    bare,
    content_of,
    folder_of,
    image,
    names,
    tar_of,
    tree,
    zip_of,
)
from uad.__main__ import main
from uad.core.errors import DataError
from uad.data import disk, place
from uad.data.layouts import index_dataset
from uad.data.place import describe, find_archives, import_all, import_sources

MODALITIES = {
    "ixi": ["T1", "T2"],
    "brats21": ["T1", "T1CE", "T2", "FLAIR"],
    "mslub": ["T1", "T2", "FLAIR"],
}

SAME = {name: name for name in MODALITIES}


def bring(layout, source, raw):
    """Import an archive or a folder into a raw tree."""
    if source.is_dir():
        return import_all({layout: (layout, raw)}, source)[0][layout]
    return import_sources(layout, [source], raw)


def subjects(layout, root, modalities=None):
    """The workflow's own reading of a raw tree."""
    return index_dataset(layout, root, modalities or MODALITIES[layout]).table["name"].nunique()


# --- every public form


def test_ixi_from_its_two_tars(tmp_path):
    t1 = tar_of(tmp_path / "IXI-T1.tar", bare(names("ixi", range(1, 8), ["T1"])))
    t2 = tar_of(
        tmp_path / "IXI-T2.tar", [f"./{n}" for n in bare(names("ixi", range(3, 10), ["T2"]))]
    )
    done = bring("ixi", t1, tmp_path / "ixi")
    assert (done.placed, done.subjects, len(done.incomplete)) == (7, 0, 7)
    assert "7 subject(s) lack T2: IXI001-HH-0001, " in describe("ixi", done)
    done = bring("ixi", t2, tmp_path / "ixi")
    assert (done.placed, done.subjects, subjects("ixi", tmp_path / "ixi")) == (7, 5, 5)
    path = "IXI-T1/IXI001-HH-0001-T1.nii.gz"
    assert (tmp_path / "ixi" / path).read_bytes() == content_of(path)


BRATS = {
    "synapse.zip": "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021/",
    "kaggle.tar": "",
    "other.tar.gz": "some/where/",
}


@pytest.mark.parametrize("name", BRATS)
def test_brats_from_its_archives(tmp_path, name):
    top = BRATS[name]
    junk = ["__MACOSX/BraTS2021_00000/._BraTS2021_00000_t1.nii.gz", f"{top}readme.txt"]
    files = names("brats21", range(3))
    make = zip_of if name.endswith("zip") else tar_of
    archive = make(tmp_path / name, [*junk, *(top + n for n in files)])
    done = bring("brats21", archive, tmp_path / "raw")
    assert (done.placed, done.subjects, done.incomplete) == (15, 3, {})
    assert subjects("brats21", tmp_path / "raw") == 3
    assert tree(tmp_path / "raw") == sorted(files)


def test_brats_from_the_zip_of_kaggles_button(tmp_path):
    inner = tar_of(tmp_path / "inner", names("brats21", range(2))).read_bytes()
    single = tar_of(tmp_path / "single", names("brats21", range(1))).read_bytes()
    parts = {"BraTS2021_Training_Data.tar": inner, "BraTS2021_00495.tar": single}
    archive = zip_of(tmp_path / "archive.zip", parts, parts.__getitem__)
    assert find_archives(tmp_path, SAME)[0] == {"brats21": [archive]}
    assert bring("brats21", archive, tmp_path / "raw").subjects == 2


def test_the_validation_data_of_brats_are_not_training_data(tmp_path):
    files = [f"BraTS2021_ValidationData/{n}" for n in names("brats21", range(2), ["t2"])]
    archive = zip_of(tmp_path / "validation.zip", files)
    with pytest.raises(DataError, match=r"no image of the brats21 data set is in it \(it begins"):
        bring("brats21", archive, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_mslub_from_the_archives_of_the_laboratory(tmp_path):
    for first in (1, 6):
        files = names("mslub", range(first, first + 5))
        raw = [name.replace("/", "/raw/") for name in files if "T2W" in name]
        zip_of(tmp_path / "a" / f"3D-MR-MS_patient{first:02d}-{first + 4:02d}.zip", files + raw)
    done = bring("mslub", tmp_path / "a", tmp_path / "raw")
    assert (done.placed, done.subjects, subjects("mslub", tmp_path / "raw")) == (60, 10, 10)
    assert not any("raw/" in name for name in tree(tmp_path / "raw"))


def open_ms_data(root):
    """The public collection: the same names on many grids, none prefixed but one."""
    for number, branch in enumerate(("raw", "coregistered", "coregistered_resampled", "MNI")):
        for i in (1, 2):
            for kind in ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt"):
                prefix = "patient02_" if i == 2 and kind == "consensus_gt" else ""
                name = f"cross_sectional/{branch}/patient{i:02d}/{prefix}{kind}.nii.gz"
                folder_of(root, [name], lambda _, shift=number: image(shift=shift))
        others = ["patient01/study1_T2W.nii.gz", "patient01/brainmask.nii.gz"]
        folder_of(root, [f"longitudinal/{branch}/{name}" for name in others])
    return root


@pytest.mark.parametrize("form", ["", "cross_sectional/coregistered", "zip"])
def test_mslub_from_open_ms_data_is_its_coregistered_branch(tmp_path, form):
    clone = open_ms_data(tmp_path / "open_ms_data-master")
    source = clone / form
    if form == "zip":
        files = [f"{clone.name}/{name}" for name in tree(clone)]
        source = zip_of(tmp_path / "m.zip", files, lambda n: (tmp_path / n).read_bytes())
    done = bring("mslub", source, tmp_path / "raw")
    assert (done.placed, done.subjects, subjects("mslub", tmp_path / "raw")) == (10, 2, 2)
    placed = tmp_path / "raw" / "patient01" / "patient01_T2W.nii.gz"
    assert placed.read_bytes() == image(shift=1)
    if form != "zip":
        assert placed.readlink() == clone / "cross_sectional/coregistered/patient01/T2W.nii.gz"


# --- grids


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"size": (2, 2, 3)}, "2x2x3 voxels instead of 2x2x2"),
        ({"shift": 1.0}, "1.0 mm apart"),
        ({"flip": True}, "2.0 mm apart"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_off_the_grid_of_the_lesion_mask_are_refused(tmp_path, fault, message, form):
    files = names("mslub", [1])
    fine = folder_of(tmp_path / "good", files, lambda n: image(shift=0.01 * ("T2W" in n)))
    assert bring("mslub", fine, tmp_path / "fine").subjects == 1
    make = folder_of if form == "folder" else zip_of
    bad = make(tmp_path / "bad", files, lambda n: image(**(fault if "T2W" in n else {})))
    with pytest.raises(DataError, match=f"patient01: T2 is not on the grid .*{message}"):
        bring("mslub", bad, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    folder = folder_of(tmp_path / "bad", names("mslub", [1]))
    (folder / "patient01" / "patient01_T1W.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"T1W.nii.gz: cannot be read as a NIfTI volume"):
        bring("mslub", folder, tmp_path / "raw")


# --- how files get there


def test_files_of_a_folder_are_linked(tmp_path):
    source = folder_of(tmp_path / "mine" / "Training", names("brats21", range(2)))
    done = bring("brats21", tmp_path / "mine", tmp_path / "raw")
    assert (done.placed, done.subjects) == (10, 2)
    name = "BraTS2021_00001/BraTS2021_00001_t2.nii.gz"
    assert (tmp_path / "raw" / name).readlink() == source / name
    again = bring("brats21", tmp_path / "mine", tmp_path / "raw")
    assert describe("brats21", again) == (
        "brats21: 2 of 1251 subjects with T1, T1CE, T2, FLAIR, lesion mask in "
        f"{tmp_path / 'raw'} (0 files new, 10 kept)"
    )


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_where_links_do_not_work_or_over_two_disks_files_are_copied(
    tmp_path, monkeypatch, capsys, form
):
    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    source = (folder_of if form == "folder" else tar_of)(tmp_path / "a", names("brats21", [0, 1]))
    real = os.replace
    monkeypatch.setattr(place.Path, "symlink_to", refuse)
    monkeypatch.setattr(
        place.os, "replace", lambda a, b: refuse() if "-import/" in str(a) else real(a, b)
    )
    assert bring("brats21", source, tmp_path / "raw").placed == 10
    said = capsys.readouterr().err.count("links do not work here; 10 images were copied")
    assert said == (form == "folder")
    assert not any(path.is_symlink() for path in (tmp_path / "raw").rglob("*"))
    again = bring("brats21", source, tmp_path / "raw")
    assert (again.placed, again.kept) == (0, 10)


def test_a_folder_may_be_that_of_a_patient_or_the_raw_tree_but_not_above_it(tmp_path):
    folder_of(tmp_path / "raw", names("mslub", [1, 2]))
    done = bring("mslub", tmp_path / "raw", tmp_path / "raw")
    assert (done.placed, done.kept, done.subjects) == (0, 12, 2)
    assert all(not p.is_symlink() for p in (tmp_path / "raw").rglob("*"))
    assert bring("mslub", tmp_path / "raw/patient01", tmp_path / "tree").subjects == 1
    with pytest.raises(DataError, match="nothing of brats21 is in this folder"):
        raw = folder_of(tmp_path / "data/raw", names("brats21", range(1)))
        bring("brats21", raw.parent, raw)


def test_links_of_the_user_are_resolved_and_circles_end(tmp_path):
    source = folder_of(tmp_path / "disk", names("brats21", range(1)))
    (source / "again").symlink_to(source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(source)
    assert bring("brats21", tmp_path / "mine", tmp_path / "raw").placed == 5
    made = tmp_path / "raw" / names("brats21", range(1))[0]
    assert made.readlink() == source / names("brats21", range(1))[0]


# --- again, interrupted


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_an_interrupted_import_is_taken_up_again(tmp_path, monkeypatch, form):
    files = names("brats21", range(2))
    source = (folder_of if form == "folder" else tar_of)(tmp_path / "mine", files)
    owner, way = (Path, "symlink_to") if form == "folder" else (place.os, "replace")
    placed, real = [], getattr(owner, way)

    def stop(*arguments):
        placed.append(1)
        if len(placed) == 5:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, way, stop)
        bring("brats21", source, tmp_path / "raw")
    assert len(tree(tmp_path / "raw")) == 4
    killed = tmp_path / "raw" / f".tmp-{platform.node()}-1-import/0"  # as kill -9 leaves it
    folder_of(killed, files[:1])
    assert place.state_of("brats21", tmp_path / "raw").kept == 4
    done = bring("brats21", source, tmp_path / "raw")
    assert (done.placed, done.kept, done.subjects) == (6, 4, 2)
    assert tree(tmp_path / "raw") == sorted(files) and not list((tmp_path / "raw").glob(".*"))


# --- two files of one name


CHANGED = "BraTS2021_00000/BraTS2021_00000_t1.nii.gz"
FORMS = {
    "folder": folder_of,
    "tar": lambda root, *rest: tar_of(root.with_suffix(".tar"), *rest),
    "zip": lambda root, *rest: zip_of(root.with_suffix(".zip"), *rest),
}


def longer(name):
    """Another content for one file."""
    return content_of(name) + b"x" * name.endswith(CHANGED)


def reversed_(name):
    """Another content of the same size for one file."""
    return content_of(name)[:: -1 if name.endswith(CHANGED) else 1]


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", ["folder", "tar"])
def test_two_files_of_one_name_must_be_the_same(tmp_path, first, second):
    files, raw = names("brats21", range(2)), tmp_path / "raw"
    bring("brats21", FORMS[first](tmp_path / "one", files), raw)
    done = bring("brats21", FORMS[second](tmp_path / "two", files), raw)
    assert describe("brats21", done).endswith("(0 files new, 10 kept)")
    before = {name: (raw / name).read_bytes() for name in tree(raw)}
    # archives are compared by size, folders by content
    change = reversed_ if second == "folder" else longer
    other = FORMS[second](tmp_path / "three", files, change)
    with pytest.raises(DataError, match="is another file") as error:
        bring("brats21", other, raw)
    source = other / CHANGED if second == "folder" else other
    for part in (f"{CHANGED} is in {source} ", str(raw / CHANGED), "Nothing was imported"):
        assert part in str(error.value)
    assert {name: (raw / name).read_bytes() for name in tree(raw)} == before


def test_a_file_of_another_size_is_not_replaced_and_a_link_to_nowhere_is(tmp_path):
    files = names("brats21", range(1))
    archive, there = tar_of(tmp_path / "a.tar", files), tmp_path / "raw" / files[2]
    folder_of(tmp_path / "raw", [files[2]], lambda _: b"another one")
    with pytest.raises(DataError, match=r"is another file \(11 bytes\).* Remove one of the two"):
        bring("brats21", archive, tmp_path / "raw")
    assert tree(tmp_path / "raw") == [files[2]]
    there.unlink()
    there.symlink_to(tmp_path / "gone")
    assert bring("brats21", archive, tmp_path / "raw").placed == 5


# --- what cannot be done


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_place_that_cannot_be_written_is_one_message(tmp_path, form):
    source, raw = FORMS[form](tmp_path / "one", names("brats21", range(2))), tmp_path / "raw"
    raw.mkdir()
    blocked = raw / "BraTS2021_00001"
    blocked.symlink_to(tmp_path / "gone")  # a folder on a disk that is not there
    with pytest.raises(DataError, match=r"BraTS2021_00001.*: cannot be used .* run the same"):
        bring("brats21", source, raw)
    blocked.unlink()
    assert bring("brats21", source, raw).subjects == 2


@pytest.mark.parametrize("fault", ["cut", "escape", "full"])
def test_a_bad_archive_leaves_no_raw_tree(tmp_path, monkeypatch, fault):
    files = names("brats21", range(3)) + ["../out.nii.gz"] * (fault == "escape")
    archive = tar_of(tmp_path / "a.tar", files)
    if fault == "cut":
        archive.write_bytes(archive.read_bytes()[:9_000])
    if fault == "full":
        usage = disk.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=10))
    message = {"cut": "truncated", "escape": "unsafe archive", "full": "the disk is full"}[fault]
    with pytest.raises(DataError, match=message):
        bring("brats21", archive, tmp_path / "raw")
    assert tree(tmp_path) == ["a.tar"]


# --- one folder, one command


@pytest.fixture
def users_folder(tmp_path):
    folder = tmp_path / "mine"
    for kind in ("T1", "T2"):
        tar_of(folder / f"IXI-{kind}.tar", bare(names("ixi", range(1, 5), [kind])))
    zip_of(folder / "from a friend.zip", [f"top/{n}" for n in names("brats21", range(3))])
    folder_of(folder / "ms" / "patients", names("mslub", [1, 2]))
    zip_of(folder / "holiday.zip", ["beach.jpg"])
    (folder / "broken.tar.gz").write_bytes(b"\x1f\x8b junk")
    (folder / "notes.txt").write_text("x")
    return folder


def test_the_archives_in_a_folder_are_recognised(users_folder):
    sources, unknown = find_archives(users_folder, SAME)
    assert {name: [path.name for path in paths] for name, paths in sources.items()} == {
        "mslub": ["mine"],
        "ixi": ["IXI-T1.tar", "IXI-T2.tar"],
        "brats21": ["from a friend.zip"],
    }
    assert {path.name for path in unknown} == {"holiday.zip", "broken.tar.gz"}
    with pytest.raises(DataError, match="no such folder"):
        find_archives(users_folder / "none", SAME)


def test_a_folder_with_nothing_says_what_is_expected(tmp_path):
    zip_of(tmp_path / "mine" / "holiday.zip", ["beach.jpg"])
    with pytest.raises(DataError) as error:
        import_all({n: (n, tmp_path / n) for n in MODALITIES}, tmp_path / "mine")
    for text in (
        "IXI-T1.tar and",
        "BraTS2021_Training_Data.tar",
        "patient01-05",
        "holiday.zip: no",
    ):
        assert text in str(error.value)


def test_the_command_imports_and_says_so(tmp_path, root, users_folder, monkeypatch, capsys):
    overlay = {"datasets": {n: {"path": str(tmp_path / "raw" / n)} for n in MODALITIES}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(overlay))
    monkeypatch.chdir(tmp_path)
    words = ["import", str(root / "config.yaml"), "mine.yaml"]
    for _ in range(2):
        assert main([*words, str(users_folder)]) == 0
    said = capsys.readouterr().out
    for text in ("brats21: 3 of 1251 subjects", "mslub: 2 of 30 subjects", "not used: holiday.zip"):
        assert text in said
    assert main([*words, str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("ERROR: ")
