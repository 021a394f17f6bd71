"""Validation: clean trees pass, and every planted fault is found and named."""

import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tools import real_tree
from uad.core.errors import DataError
from uad.core.files import read_tsv, write_tsv
from uad.data.layouts import index_dataset
from uad.phantom import write_dataset
from uad.qc.validation import (
    VERDICTS,
    inspect_subjects,
    judge,
    match_masks,
    refuse_unreadable,
    report,
    stray_files,
    validate_tree,
    write_report,
)

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("UAD_REAL_DATA", ROOT / "../shared/data")).resolve()

MODALITIES = {"ixi": ["T1", "T2"], "brats21": ["T2", "FLAIR"], "mslub": ["T1", "T2", "FLAIR"]}
SUBJECTS = {"ixi": 5, "brats21": 5, "mslub": 4}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Phantom trees in the three public layouts, never written to."""
    root = tmp_path_factory.mktemp("clean")
    for layout, count in SUBJECTS.items():
        write_dataset(root / layout, layout, count, MODALITIES[layout], 4.0, 1)
    return root


@pytest.fixture
def tree(clean, tmp_path):
    """A copy of a clean tree, to plant a fault in."""

    def copy(layout):
        return Path(shutil.copytree(clean / layout, tmp_path / layout))

    return copy


def check(layout, root, modalities=None):
    """Findings of a tree by public name: verdict and why."""
    table = index_dataset(layout, root, modalities or MODALITIES[layout])
    checked = validate_tree(layout, table)
    found = report(layout, checked, strays=stray_files(layout, root))
    return {row.name: (row.verdict, row.why) for row in found.subjects.itertuples(index=False)}


def only(found, *names):
    """The verdict and reason of the named subjects; all others must be in order."""
    others = {n: v for n, v in found.items() if n not in names and v != ("used", "")}
    assert not others, others
    return found[names[0]] if len(names) == 1 else [found[n] for n in names]


def edit(path, change=None, affine=None, qform=None):
    """Rewrite a volume with changed voxels or header."""
    image = nib.load(path)
    data, matrix = np.asanyarray(image.dataobj).copy(), image.affine.copy()
    data = data if change is None else change(data)
    matrix = matrix if affine is None else affine(matrix)
    new = nib.Nifti1Image(data, matrix)
    if qform is not None:
        new.set_sform(matrix, 1)
        new.set_qform(qform(matrix), 1)
    nib.save(new, path)


def swap(first, second):
    """Exchange the bytes of two files."""
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def scan(root, layout, number, what):
    """One file of a tree: ``what`` is T1, T2, FLAIR or lesion."""
    table = index_dataset(layout, root, MODALITIES[layout])
    name = sorted(table["name"].unique())[number]
    rows = table[(table["name"] == name) & (what == "lesion" or table["modality"] == what)]
    return name, Path(rows.iloc[0]["lesion" if what == "lesion" else "image"])


# --- clean trees


@pytest.mark.parametrize("layout", MODALITIES)
def test_a_clean_tree_is_used_without_a_word(clean, layout):
    found = check(layout, clean / layout)
    assert len(found) == SUBJECTS[layout]
    only(found, next(iter(found)))
    assert set(found.values()) == {("used", "")}


def test_full_size_stand_ins_are_validated_by_name_in_seconds(tmp_path):
    rng = np.random.default_rng(0)
    sites = rng.choice(["Guys", "HH", "IOP"], 577)
    trees = {
        "ixi": [
            f"IXI-{m}/IXI{i:03d}-{s}-{i:04d}-{m}" for i, s in enumerate(sites) for m in ("T1", "T2")
        ],
        "brats21": [
            f"BraTS2021_{i:05d}/BraTS2021_{i:05d}_{m}"
            for i in range(1251)
            for m in ("t1", "t1ce", "t2", "flair", "seg")
        ],
        "mslub": [
            f"patient{i:02d}/patient{i:02d}_{m}"
            for i in range(1, 31)
            for m in ("T1W", "T2W", "FLAIR", "consensus_gt")
        ],
    }
    for layout, stems in trees.items():
        for stem in stems:
            path = tmp_path / layout / f"{stem}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    start = time.monotonic()
    for layout, count in (("ixi", 577), ("brats21", 1251), ("mslub", 30)):
        table = index_dataset(layout, tmp_path / layout, MODALITIES[layout])
        checked = validate_tree(layout, table, content=False)
        result = report(layout, checked, expected=count)
        assert result.counts["used"] == count and result.notes == []
        assert len(checked) == count * len(MODALITIES[layout])
        assert stray_files(layout, tmp_path / layout) == []
    assert time.monotonic() - start < 20


# --- images


@pytest.mark.parametrize("layout", MODALITIES)
def test_a_flipped_affine_is_found(tree, layout):
    root = tree(layout)
    name, path = scan(root, layout, 1, "T2")
    edit(path, affine=lambda a: a @ np.diag([-1, 1, 1, 1]))
    verdict, why = only(check(layout, root), name)
    assert "T2 image: its axes point to" in why and "flipped affine" in why
    if layout != "ixi":
        assert verdict == "should be excluded" and "lesion mask and T2 image" in why
    else:
        assert verdict == "used with warning"


@pytest.mark.parametrize("layout", MODALITIES)
def test_a_wrong_voxel_size_is_found(tree, layout):
    root = tree(layout)
    name, path = scan(root, layout, 0, "T2")
    edit(path, affine=lambda a: a @ np.diag([2, 2, 2, 1]))
    verdict, why = only(check(layout, root), name)
    assert verdict == "should be excluded"
    assert "T2 image: has voxels of 8x8x8 mm, most others voxels of 4x4x4 mm" in why
    assert "ml (" in why and "not plausible" in why


@pytest.mark.parametrize("layout", MODALITIES)
def test_an_image_under_the_name_of_another_subject_is_found(tree, layout):
    root = tree(layout)
    (theirs, path), (name, wrong) = (scan(root, layout, n, "T2") for n in (0, 2))
    shutil.copy(path, wrong)
    (_, original), (verdict, why) = only(check(layout, root), theirs, name)
    assert verdict == "should be excluded"
    assert f"T2 image: duplicate, the same voxels as {theirs} T2; one carries a wrong name" in why
    assert f"the same voxels as {name} T2" in original


def test_an_image_of_another_patient_is_found_by_its_outline_without_any_copy(tree):
    root = tree("brats21")
    (first, a), (second, b) = (scan(root, "brats21", n, "T2") for n in (0, 2))
    swap(a, b)
    for _, why in only(check("brats21", root), first, second):
        assert "T2 image: its brain has another outline" in why


def test_a_copied_subject_is_found_even_if_compressed_otherwise(tree):
    root = tree("ixi")
    for modality in ("T1", "T2"):
        name, path = scan(root, "ixi", 0, modality)
        image = nib.load(path)
        copy = nib.Nifti1Image(image.get_fdata(dtype=np.float64), image.affine)
        nib.save(copy, path.with_name(f"IXI777-HH-7777-{modality}.nii.gz"))
    found = only(check("ixi", root), name, "IXI777-HH-7777")
    assert "T1 image: duplicate, the same voxels as IXI777-HH-7777 T1" in found[0][1]
    assert f"T2 image: duplicate, the same voxels as {name} T2" in found[1][1]


def test_a_modality_copied_over_another_is_found(tree):
    root = tree("ixi")
    name, path = scan(root, "ixi", 1, "T1")
    shutil.copy(path, scan(root, "ixi", 1, "T2")[1])
    assert f"T2 image: duplicate, the same voxels as {name} T1" in only(check("ixi", root), name)[1]


def nearly_empty(data):
    small = np.zeros_like(data)
    small[20:24, 20:24, 20:24] = data.max()
    return small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nearly_empty, r"T2 image: near-empty (0."),
        (
            lambda d: np.where(np.arange(d.size).reshape(d.shape) == 5, np.nan, d),
            "1 voxels are NaN",
        ),
        (lambda d: np.full_like(d, 7), "T2 image: constant (7)"),
        (lambda d: d - d.mean(), "of its voxels are negative"),
        (lambda d: d * (np.arange(d.shape[2]) > d.shape[2] * 0.5), "is a part of it missing?"),
    ],
)
def test_spoilt_intensities_are_found(tree, change, message):
    root = tree("ixi")
    name, path = scan(root, "ixi", 3, "T2")
    edit(path, lambda d: change(d.astype(np.float32)))
    assert message in only(check("ixi", root), name)[1]


def test_sheared_axes_and_headers_at_odds_are_found(tree):
    root = tree("mslub")
    name, path = scan(root, "mslub", 0, "T1")
    shear = np.eye(4)
    shear[0, 1] = 0.05
    edit(path, affine=lambda a: a @ shear)
    other, second = scan(root, "mslub", 1, "T1")
    edit(second, qform=lambda a: a + np.outer([9, 0, 0, 0], [0, 0, 0, 1]))
    found = only(check("mslub", root), name, other)
    assert "T1 image: its axes are not orthogonal (cosine 0.050)" in found[0][1]
    assert found[1] == (
        "used with warning",
        "T1 image: qform and sform disagree by 9.0 mm; sform is used",
    )


# --- lesion masks


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_exchanged_masks_are_found_and_traced(tree, layout):
    root = tree(layout)
    (first, a), (second, b) = (scan(root, layout, n, "lesion") for n in (0, 1))
    swap(a, b)
    found = only(check(layout, root), first, second)
    for (verdict, why), other in zip(found, (second, first), strict=True):
        assert verdict == "should be excluded"
        assert f"but those of {other}; masks exchanged?" in why


def test_a_mask_copied_from_another_subject_is_found(tree):
    root = tree("mslub")
    (theirs, a), (name, b) = (scan(root, "mslub", n, "lesion") for n in (0, 1))
    shutil.copy(a, b)
    _, (verdict, why) = only(check("mslub", root), theirs, name)
    assert verdict == "should be excluded"
    assert f"lesion mask: duplicate, the same voxels as {theirs}" in why


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_a_shifted_mask_is_found_with_its_displacement(tree, layout):
    root = tree(layout)
    name, path = scan(root, layout, 2, "lesion")
    right = nib.load(path).affine[0, 0] > 0
    edit(path, lambda d: np.roll(d, 4 if right else -4, axis=0))
    verdict, why = only(check(layout, root), name)
    assert verdict == "should be excluded"
    assert "lesion mask: would fit the FLAIR image better 16 mm left" in why


def test_a_mask_outside_the_brain_is_found(tree):
    root = tree("brats21")
    name, path = scan(root, "brats21", 2, "lesion")
    edit(path, lambda d: np.roll(d, d.shape[0] // 2, axis=0))
    assert "of it is inside the brain" in only(check("brats21", root), name)[1]


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_float_noise_in_a_mask_is_found(tree, layout):
    root = tree(layout)
    rng = np.random.default_rng(0)
    (name, path), (mild, other) = (scan(root, layout, n, "lesion") for n in (0, 1))
    edit(path, lambda d: d + rng.uniform(0, 1e-6, d.shape))
    edit(other, lambda d: d * 0.9999)
    found = only(check(layout, root), name, mild)
    assert found[0][0] == "should be excluded"
    assert "float noise" in found[0][1] and "would count as lesion" in found[0][1]
    assert found[1][0] == "used with warning" and "are no whole numbers" in found[1][1]


def test_unknown_labels_empty_masks_and_masks_on_other_grids_are_found(tree):
    root = tree("brats21")
    names, paths = zip(*(scan(root, "brats21", n, "lesion") for n in range(4)), strict=True)
    edit(paths[0], lambda d: np.where(d == 4, 3, d))
    edit(paths[1], np.zeros_like)
    edit(paths[2], lambda d: d[:-2])
    shutil.copy(scan(root, "brats21", 3, "FLAIR")[1], paths[3])
    found = only(check("brats21", root), *names)
    assert found[0] == (
        "used with warning",
        "lesion mask: has the value(s) 3, expected are 0, 1, 2, 4",
    )
    assert found[1] == ("used with warning", "lesion mask: empty")
    assert "lesion mask and T2 image: has 58x60x39 voxels, its image 60x60x39" in found[2][1]
    assert found[3][0] == "should be excluded" and "has the value(s)" in found[3][1]


# --- files and names


def test_files_that_cannot_be_read_are_named_and_stop_the_work(tree):
    root = tree("mslub")
    (name, cut), (_, no_image), (_, lesion) = (
        scan(root, "mslub", n, what) for n, what in ((0, "T1"), (1, "FLAIR"), (2, "lesion"))
    )
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    no_image.write_text("<html>not found</html>")
    lesion.write_bytes(b"")
    checked = validate_tree("mslub", index_dataset("mslub", root, MODALITIES["mslub"]))
    with pytest.raises(DataError) as error:
        refuse_unreadable("mslub", checked)
    message = str(error.value)
    assert "3 file(s) cannot be used" in message and "datasets.mslub.exclude" in message
    for path in (cut, no_image, lesion):
        assert str(path) in message
    verdict, why = only(check("mslub", root), name, "patient02", "patient03")[0]
    assert verdict == "should be excluded"
    assert why.startswith("T1 image: cannot be read, probably truncated or damaged")


def test_a_series_is_no_volume_and_a_lost_file_is_missed(tree):
    root = tree("ixi")
    name, path = scan(root, "ixi", 0, "T1")
    edit(path, lambda d: np.stack([d, d], axis=-1))
    table = index_dataset("ixi", root, ["T1"])
    other = table.iloc[1]
    Path(other["image"]).unlink()
    for content in (True, False):
        checked = validate_tree("ixi", table, content=content).set_index("name")
        assert "T1 image: no such file" in checked.loc[other["name"], "faults"]
        assert ("is not a 3D volume but 48x60x51x2" in checked.loc[name, "faults"]) is content


def test_names_that_do_not_fit_are_found(tree):
    root = tree("ixi")
    paths = {modality: scan(root, "ixi", 0, modality)[1] for modality in ("T1", "T2")}
    other, _ = scan(root, "ixi", 1, "T1")
    wrong = f"{other[:6]}-XYZ-0815"
    for modality, path in paths.items():
        path.rename(path.with_name(f"{wrong}-{modality}.nii.gz"))
    (root / "IXI-T1" / "IXI012-HH-1211-T1 (copy).nii.gz").touch()
    table = index_dataset("ixi", root, ["T1", "T2"])
    checked = validate_tree("ixi", table, content=False)
    result = report("ixi", checked, expected=6, strays=stray_files("ixi", root))
    why = dict(zip(result.subjects["name"], result.subjects["why"], strict=True))
    assert f"'{wrong}' is no public name" in why[wrong]
    both = f"subject {other[:6]} is there as {other} and {wrong}"
    assert both in why[wrong] and both in why[other]
    assert result.notes == [
        "5 subjects, fewer than the expected 6.",
        "1 file(s) with a name that belongs to nobody: IXI-T1/IXI012-HH-1211-T1 (copy).nii.gz.",
    ]


# --- batches and reports


def test_batches_written_and_read_give_the_same_verdicts(tree, tmp_path):
    root = tree("brats21")
    (_, first), (_, second) = (scan(root, "brats21", n, "T2") for n in (0, 1))
    shutil.copy(first, second)
    table = index_dataset("brats21", root, MODALITIES["brats21"])
    whole = validate_tree("brats21", table, threads=2)
    batches = []
    for k, subjects in enumerate(np.array_split(table["subject"].unique(), 2)):
        part = inspect_subjects("brats21", table[table["subject"].isin(subjects)])
        write_tsv(tmp_path / f"{k}.tsv", part)
        batches.append(read_tsv(tmp_path / f"{k}.tsv"))
    again = judge("brats21", match_masks(pd.concat(batches, ignore_index=True)))
    for column in ("name", "modality", "digest", "faults", "warnings"):
        assert again[column].tolist() == whole[column].tolist(), column


def test_the_report_has_one_verdict_per_subject_and_keeps_exclusion_to_the_config(tree, tmp_path):
    root = tree("brats21")
    edit(scan(root, "brats21", 0, "lesion")[1], np.zeros_like)
    edit(scan(root, "brats21", 1, "T2")[1], np.zeros_like)
    table = index_dataset("brats21", root, MODALITIES["brats21"])
    checked = validate_tree("brats21", table)
    exclude = {"BraTS2021_00002": "motion", "BraTS2021_00099": "withdrew & <left>"}
    result = report("brats21", checked, expected=6, exclude=exclude)
    assert result.subjects["verdict"].tolist() == [
        "used with warning",
        "should be excluded",
        "excluded",
        "used",
        "used",
        "excluded",
    ]
    assert result.counts == dict(zip(VERDICTS, (2, 1, 1, 2), strict=True))
    assert result.advice == {"BraTS2021_00001": "T2 image: constant (0)"}
    write_report(result, tmp_path / "v.tsv", tmp_path / "v.html")
    pd.testing.assert_frame_equal(read_tsv(tmp_path / "v.tsv"), result.subjects)
    page = (tmp_path / "v.html").read_text()
    assert "withdrew &amp; &lt;left&gt;" in page and "2 used, 1 used with warning" in page
    assert 'datasets.brats21.exclude: {BraTS2021_00001: "T2 image: constant (0)"}' in page.replace(
        "&quot;", '"'
    )
    assert "http" not in page and "src=" not in page
    assert page.index("BraTS2021_00001") < page.index("BraTS2021_00000")
    assert "phantom" not in page
    phantom = report("brats21", checked, phantom=True)
    write_report(phantom, tmp_path / "v.tsv", tmp_path / "v.html")
    assert "Validation of brats21 (phantom data)" in (tmp_path / "v.html").read_text()


# --- real scans


real = pytest.mark.skipif(
    not (DATA / "mslub" / "mni").is_dir(),
    reason=f"no real scans at {DATA}; set UAD_REAL_DATA (see the project's documentation)",
)


@pytest.fixture
def patients(tmp_path):
    """Two MSLUB patients, copied so that faults can be planted."""
    for folder in sorted((DATA / "mslub/mni").glob("patient*")):
        for name in ("T1W", "T2W", "FLAIR", "consensus_gt"):
            path = tmp_path / "mslub" / folder.name / f"{folder.name}_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((folder / path.name).read_bytes())
    return tmp_path / "mslub"


def glioma(root):
    """One glioma in the layout of BraTS, by links."""
    case, name = DATA / "tcga/TCGA-DU-7294", "BraTS2021_00000"
    for modality in ("t1", "t1ce", "t2", "flair", "seg"):
        path = root / "brats21" / name / f"{name}_{modality}.nii.gz"
        real_tree.link(path, case / f"{case.name}_{modality}.nii.gz")
    return root / "brats21"


@pytest.mark.real
@real
def test_real_scans_are_used_without_a_word(patients, tmp_path):
    real_tree.make(DATA, tmp_path / "trees")
    found = check("mslub", patients) | check("brats21", glioma(tmp_path))
    table = index_dataset("ixi", tmp_path / "trees/ixi", ["T1"], limit=20)
    found |= dict.fromkeys(report("ixi", validate_tree("ixi", table)).advice, "bad")
    assert found == dict.fromkeys(("patient07", "patient19", "BraTS2021_00000"), ("used", ""))


@pytest.mark.real
@real
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("flipped affine", "lesion mask and T2 image: its axes point to LAS, those of its image"),
        ("swapped mask", "lesion mask: does not fit its images (FLAIR contrast"),
        ("copied mask", "lesion mask: duplicate, the same voxels as patient19"),
        ("shifted mask", "lesion mask: would fit the FLAIR image better 8 mm"),
        ("renamed image", "FLAIR image: duplicate, the same voxels as patient19 FLAIR"),
        ("exchanged image", "FLAIR image: its brain has another outline"),
        ("float noise", "lesion mask: float noise"),
        ("near-empty", "T2 image: near-empty"),
        ("NaN", "T2 image: 1 voxels are NaN or infinite"),
        ("voxel size", "T2 image: has voxels of 2x2x2 mm, most others voxels of 1x1x1 mm"),
        ("truncated", "T2 image: cannot be read"),
    ],
)
def test_faults_planted_in_real_scans_are_named(patients, fault, message):
    def path(name, number="07"):
        return patients / f"patient{number}/patient{number}_{name}.nii.gz"

    def noise(data):
        return data + np.random.default_rng(0).uniform(0, 1e-6, data.shape).astype(np.float32)

    def nan(data):
        data[90, 100, 90] = np.nan
        return data

    plant = {
        "flipped affine": lambda: edit(path("T2W"), affine=lambda a: a @ np.diag([-1, 1, 1, 1])),
        "swapped mask": lambda: swap(path("consensus_gt"), path("consensus_gt", "19")),
        "copied mask": lambda: shutil.copy(path("consensus_gt", "19"), path("consensus_gt")),
        "shifted mask": lambda: edit(path("consensus_gt"), lambda d: np.roll(d, 8, axis=0)),
        "renamed image": lambda: shutil.copy(path("FLAIR", "19"), path("FLAIR")),
        "exchanged image": lambda: swap(path("FLAIR", "19"), path("FLAIR")),
        "float noise": lambda: edit(path("consensus_gt"), noise),
        "near-empty": lambda: edit(path("T2W"), lambda d: d * (np.arange(d.shape[2]) == 90)),
        "NaN": lambda: edit(path("T2W"), nan),
        "voxel size": lambda: edit(path("T2W"), affine=lambda a: a @ np.diag([2, 2, 2, 1])),
        "truncated": lambda: path("T2W").write_bytes(path("T2W").read_bytes()[:100_000]),
    }
    plant[fault]()
    found = check("mslub", patients, ["T2", "FLAIR"])
    verdict, why = found["patient07"]
    assert message in why, why
    if fault != "exchanged image":
        assert verdict == "should be excluded"
    if fault == "swapped mask":
        assert "those of patient19; masks exchanged?" in why
    if fault not in ("swapped mask", "copied mask", "renamed image", "exchanged image"):
        assert found["patient19"] == ("used", "")
