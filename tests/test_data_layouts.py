"""File names as patterns, and the subjects of a raw tree that are found by them."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tools.datasets import edit_header, folder_of, image, names
from uad.config import load
from uad.core.errors import ConfigError, DataError
from uad.core.patterns import LESION, Layout, known_layouts, layout_of
from uad.data.layouts import index_dataset, missing_data

# --- patterns

BRATS = "BraTS2021_00000/BraTS2021_00000"
#: Paths in archives and folders, and where such a file belongs; None: not of the data set.
NAMES = {
    "ixi": {
        "./IXI002-Guys-0828-T2.nii.gz": "IXI-T2/IXI002-Guys-0828-T2.nii.gz",
        "IXI-T1/IXI002-Guys-0828-T1.nii": "IXI-T1/IXI002-Guys-0828-T1.nii",
        "IXI002-Guys-0828-PD.nii.gz": None,
        "IXI002-Guys-0828-T1-labels.nii.gz": None,
    },
    "brats21": {
        f"Top/{BRATS}_t1ce.nii.gz": f"{BRATS}_t1ce.nii.gz",
        f"{BRATS}_seg.nii": f"{BRATS}_seg.nii",
        "BraTS2021_00000_t1.nii.gz": f"{BRATS}_t1.nii.gz",
        "__MACOSX/BraTS2021_00000/._BraTS2021_00000_t1.nii.gz": None,
        f"BraTS2021_ValidationData/{BRATS}_t1.nii.gz": None,
    },
    "mslub": {
        "patient01/patient01_T2W.nii.gz": "patient01/patient01_T2W.nii.gz",
        "x/coregistered/patient01/T2W.nii.gz": "patient01/patient01_T2W.nii.gz",
        "x/coregistered/patient01/T1WKS.nii.gz": "patient01/patient01_T1WKS.nii.gz",
        "patient13/patient13_consensus_gt.nii": "patient13/patient13_consensus_gt.nii",
        "patient13/brainmask.nii.gz": "patient13/patient13_brainmask.nii.gz",
        "patient01/raw/patient01_T2W.nii.gz": None,
        "x/raw/patient01/T2W.nii.gz": None,
        "raw/patient01/T2W.nii.gz": None,
        "patient01/patient02_T2W.nii.gz": None,
        "x/MNI/patient07/T1_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz": None,
        "longitudinal/coregistered/patient01/study1_T2W.nii.gz": None,
        "longitudinal/coregistered/patient01/brainmask.nii.gz": None,
        "x/cross_sectional/coregistered_resampled/patient01/T1W.nii.gz": None,
        "MNI/patient01/T1W.nii.gz": None,
    },
}


@pytest.mark.parametrize("layout", NAMES)
def test_files_are_known_by_their_public_names(layout):
    patterns = layout_of(layout)
    found = {name: patterns.find(name) for name in NAMES[layout]}
    assert {n: m and m.place for n, m in found.items()} == NAMES[layout]


def test_what_is_written_by_a_pattern_is_found_by_it():
    subjects = {"ixi": "IXI002-Guys-0828", "brats21": "BraTS2021_00007", "mslub": "patient07"}
    for name, subject in subjects.items():
        patterns = known_layouts()[name]
        for role in patterns.needs():
            member = patterns.find(patterns.path(subject, role))
            assert (member.subject, member.role) == (subject, role)


#: Files of a raw tree that are no image of the index, and whether they belong there all the same.
BESIDE = {
    ("ixi", "IXI-PD/IXI002-Guys-0828-PD.nii.gz"): True,
    ("ixi", "IXI002-Guys-0828-DTI-03.nii.gz"): True,
    ("ixi", "IXI-T1/IXI002-Guys-0828-T3.nii.gz"): False,
    ("mslub", "patient01/raw/anything.nii.gz"): True,
    ("mslub", "patient01/brainmask.nii"): True,
    ("brats21", "BraTS2021_00001/BraTS2021_00001_T2.nii.gz"): False,
}


def test_a_file_that_belongs_to_nobody_is_told_from_one_that_is_not_used():
    assert {case: layout_of(case[0]).is_known(case[1]) for case in BESIDE} == BESIDE
    names = ("IXI002-Guys-0828", "IXI002-Gyus-0828", "patient01")
    assert [layout_of("ixi").is_public(name) for name in names] == [True, False, False]


def test_a_layout_of_ones_own_is_a_handful_of_patterns(tmp_path):
    mine = Layout(
        image="sub-{subject}/anat/sub-{subject}_*{modality}.nii.gz",
        lesion="derivatives/masks/sub-{subject}_label-lesion_mask.nii.gz",
        modalities={"T2": "T2w", "FLAIR": "FLAIR"},
        site="([A-Z]+)",
    )
    touch(
        tmp_path,
        "sub-A1/anat/sub-A1_acq-3d_T2w.nii.gz",
        "sub-A1/anat/sub-A1_FLAIR.nii",
        "sub-A1/anat/sub-A2_T2w.nii.gz",
        "derivatives/masks/sub-A1_label-lesion_mask.nii.gz",
    )
    found = mine.scan(tmp_path)
    assert list(found) == ["A1"] and set(found["A1"]) == {"T2", "FLAIR", LESION}
    assert mine.site_of("A1") == "A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": "{subject}.nii.gz", "modalities": {"T1": "a", "T2": "b"}},
            r"'image' must have \{modality\} and \{subject\}",
        ),
        ({"image": "{subject}_{modality}_{side}.nii.gz"}, "not modality, side, subject"),
        ({"image": "{subject}_{modality}.mgz"}, "'image' must end with .nii.gz"),
        ({"lesion": None}, "either 'healthy: true' or the pattern 'lesion'"),
        ({"healthy": True}, "either 'healthy: true' or the pattern 'lesion'"),
        ({"subject": "("}, "not a regular expression"),
        ({"image": "[{subject}_{modality}.nii.gz"}, "'image' is no pattern .*: \\[.subject"),
        ({"imge": "x"}, "unknown key 'imge'; did you mean 'image'"),
    ],
)
def test_a_fault_in_a_layout_is_named(change, message):
    good = {
        "image": "{subject}_{modality}.nii.gz",
        "lesion": "{subject}_seg.nii.gz",
        "modalities": {"T1": "t1", "T2": "t2"},
    }
    assert Layout(**good)
    with pytest.raises(ValueError, match=message):
        Layout(**{**good, **change})


# --- the index


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def brats(root, n, suffixes=("flair", "t1", "t1ce", "t2", "seg")):
    for i in range(n):
        name = f"BraTS2021_{i:05d}"
        touch(root, *(f"{name}/{name}_{s}.nii.gz" for s in suffixes))
    return root


def test_ixi_is_indexed_by_the_subjects_that_have_all_modalities(tmp_path):
    touch(
        tmp_path,
        "IXI-T1/IXI002-Guys-0828-T1.nii.gz",
        "IXI-T1/IXI012-HH-1211-T1.nii.gz",
        "IXI-T2/IXI012-HH-1211-T2.nii.gz",
        "IXI-T2/IXI035-IOP-0873-T2.nii.gz",
        "IXI-T2/readme.txt",
    )
    table = index_dataset("ixi", tmp_path, ["T1", "T2"]).table
    assert table["name"].unique().tolist() == ["IXI012-HH-1211"]
    assert table["subject"].unique().tolist() == ["IXI012HH1211"]
    assert table["site"].unique().tolist() == ["HH"]
    assert table["lesion"].unique().tolist() == [""]
    assert len(index_dataset("ixi", tmp_path, ["T2"]).table) == 2


def test_brats_and_mslub_are_indexed_with_their_lesion_masks(tmp_path):
    table = index_dataset("brats21", brats(tmp_path / "b", 2), ["T1CE", "FLAIR"]).table
    assert len(table) == 4
    assert table.iloc[0]["image"].endswith("BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz")
    assert table.iloc[0]["lesion"].endswith("BraTS2021_00000_seg.nii.gz")
    for stem in ("patient07/patient07_T2W", "patient07/patient07_consensus_gt"):
        touch(tmp_path / "m", f"{stem}.nii.gz")
    touch(tmp_path / "m", "patient08/T2W.nii.gz", "patient08/consensus_gt.nii.gz")
    table = index_dataset("mslub", tmp_path / "m", ["T2"]).table
    assert table["subject"].tolist() == ["patient07", "patient08"]
    assert all(table["lesion"].str.endswith("consensus_gt.nii.gz"))


def test_the_full_name_goes_before_the_short_one(tmp_path):
    files = [f"patient07/{prefix}{kind}.nii.gz" for prefix in ("patient07_", "")
             for kind in ("T2W", "consensus_gt")]  # fmt: skip
    folder_of(tmp_path, files, lambda _: image())
    table = index_dataset("mslub", tmp_path, ["T2"]).table
    assert table["image"].item() == str(tmp_path / "patient07/patient07_T2W.nii.gz")


def test_an_unknown_exclusion_and_an_empty_tree_are_refused(tmp_path):
    brats(tmp_path, 2)
    with pytest.raises(DataError, match="'BraTS2021_9' is not there"):
        index_dataset("brats21", tmp_path, ["T2"], exclude={"BraTS2021_9": "typo"})
    with pytest.raises(DataError, match="no subject in the ixi layout.*brain-development"):
        index_dataset("ixi", tmp_path, ["T2"])
    with pytest.raises(DataError, match="the ixi data set has no FLAIR images"):
        index_dataset("ixi", tmp_path, ["FLAIR"])


# --- subjects with a file that is missing or cannot be used


def header_with(**fields):
    return lambda path: edit_header(path, **fields)


def cut(part):
    """Only a part of the bytes."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def plain_and_cut(path):
    """Not compressed, and the last voxels are gone."""
    path.write_bytes(gzip.decompress(path.read_bytes())[:-100])


def link_to_nowhere(path):
    path.unlink()
    path.symlink_to("/gone.nii.gz")


#: What can happen to a file, and what is said of it.
FAULTS = {
    "missing": (Path.unlink, "no {what}"),
    "link": (link_to_nowhere, "{what}: a link to nowhere: {path}"),
    "data type": (header_with(datatype=26996), "header is not valid (data code 26996 not rec"),
    "intercept": (header_with(scl_slope=1, scl_inter=np.nan), "header is not valid (Valid slope"),
    "no voxels": (header_with(dim=[3, 8, 0, 8, 1, 1, 1, 1]), "is not a 3D volume"),
    "affine": (header_with(srow_x=[np.nan] * 4), "has a singular affine"),
    "cut at the end": (cut(0.98), "probably truncated or damaged"),
    "cut at the start": (cut(0.02), "probably truncated or damaged"),
    "cut, not compressed": (plain_and_cut, "probably truncated or damaged"),
    "empty": (cut(0), "probably truncated or damaged"),
    "web page": (lambda path: path.write_text("<html>not found"), "probably truncated or damaged"),
}


@pytest.fixture
def three(tmp_path):
    """Three subjects with images of noise, and the paths of a file of the second one."""
    voxels = np.random.default_rng(0).integers(0, 99, (8, 8, 8), np.int16)
    content = gzip.compress(nib.Nifti1Image(voxels, np.diag([-1, -1, 1, 1])).to_bytes())
    folder_of(tmp_path, names("brats21", range(3)), lambda _: content)
    return lambda kind: tmp_path / f"BraTS2021_00001/BraTS2021_00001_{kind}.nii.gz"


@pytest.mark.parametrize("kind, what", [("t2", "T2 image"), ("seg", "lesion mask")])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_used_costs_its_subject_only(three, tmp_path, fault, kind, what):
    change, said = FAULTS[fault]
    change(three(kind))
    table, left_out = index_dataset("brats21", tmp_path, ["T2"], opened=True)
    assert table["name"].tolist() == ["BraTS2021_00000", "BraTS2021_00002"]
    assert list(left_out) == ["BraTS2021_00001"]
    why = left_out["BraTS2021_00001"]
    assert why.startswith((f"no {what}", f"{what}: "))
    assert said.format(what=what, path=three(kind)) in why
    assert fault == "missing" or why.endswith(str(three(kind)))


def test_what_a_file_can_be_without_a_fault(three, tmp_path):
    whole = three("t2").read_bytes()
    plain = gzip.decompress(whole)
    cases = {
        "not compressed": plain,
        "compressed in two parts": gzip.compress(plain[:500]) + gzip.compress(plain[500:]),
        "with more at its end": gzip.compress(plain + b"more"),
        "as a series of one volume": gzip.compress(
            plain[:40] + np.array([4, 8, 8, 8, 1, 1, 1, 1], "<i2").tobytes() + plain[56:]
        ),
    }
    for case, content in cases.items():
        three("t2").write_bytes(content)
        assert index_dataset("brats21", tmp_path, ["T2"], opened=True).left_out == {}, case
    cut(0)(three("t1"))  # what is not asked for does no harm
    assert index_dataset("brats21", tmp_path, ["T2"], opened=True).left_out == {}


def test_the_limit_counts_subjects_that_can_be_used(three, tmp_path):
    cut(0.5)(three("t2"))
    table, left_out = index_dataset("brats21", tmp_path, ["T2"], limit=2, opened=True)
    assert table["name"].tolist() == ["BraTS2021_00000", "BraTS2021_00002"] and len(left_out) == 1
    assert index_dataset("brats21", tmp_path, ["T2"], limit=1, opened=True).left_out == {}


def test_where_most_files_cannot_be_used_it_is_an_error_that_names_them(three, tmp_path):
    for number in (1, 2):
        cut(0.5)(Path(str(three("t2")).replace("00001", f"0000{number}")))
    with pytest.raises(
        DataError, match=r"2 of 3 subjects have a missing file.*(\n.*)*exclude"
    ) as e:
        index_dataset("brats21", tmp_path, ["T2"], opened=True)
    assert str(three("t2")) in str(e.value)
    table, _ = index_dataset("brats21", tmp_path, ["T2"], {"BraTS202100002": "cut"}, opened=True)
    assert table["name"].tolist() == ["BraTS2021_00000"]


def test_a_folder_of_a_subject_without_any_known_file_counts_as_a_subject(tmp_path):
    touch(brats(tmp_path, 2), "BraTS2021_00007/misnamed_t2.nii.gz")
    left_out = index_dataset("brats21", tmp_path, ["T2"]).left_out
    assert left_out == {"BraTS2021_00007": "no T2 image; no lesion mask"}


# --- the config


def test_missing_raw_trees_are_explained_together(content):
    message = missing_data(load(content).datasets)
    homes = ("brain-development.org", "syn25829067", "lit.fe.uni-lj.si")
    for part in ("data/ixi", *homes, "make demo"):
        assert part in message
    assert len(message.splitlines()) < 24


def test_a_misspelt_layout_is_refused(content):
    content["datasets"]["ixi"]["layout"] = "ixl"
    with pytest.raises(ConfigError, match="unknown layout 'ixl'; did you mean 'ixi'"):
        load(content)
