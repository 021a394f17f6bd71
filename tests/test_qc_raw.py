"""Raw scans: clean trees pass without a word, and every planted fault is named where it is."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tools import real_tree
from tools.datasets import edit_header
from uad.core.errors import DataError
from uad.core.nifti import open_volume
from uad.data.layouts import index_dataset
from uad.phantom import write_dataset
from uad.qc import raw
from uad.qc.verdicts import (
    VERDICTS,
    give_verdicts,
    refuse_unusable,
    stray_files,
    validate_tree,
)
from uad.report.html import render_page

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("UAD_REAL_DATA", ROOT / "../shared/data")).resolve()

MODALITIES = {"ixi": ["T1", "T2"], "brats21": ["T2", "FLAIR"], "mslub": ["T1", "T2", "FLAIR"]}
SUBJECTS = {"ixi": 5, "brats21": 5, "mslub": 4}
BAD, WARN = "should be excluded", "used with warning"


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
    return lambda layout: Path(shutil.copytree(clean / layout, tmp_path / layout))


def check(layout, root, modalities=None):
    """Findings of a tree by public name: verdict and why."""
    table = index_dataset(layout, root, modalities or MODALITIES[layout]).table
    found = give_verdicts(validate_tree(layout, table))
    return {row.name: (row.verdict, row.why) for row in found.subjects.itertuples(index=False)}


def only(found, *names):
    """Verdict and reason of the named subjects; all others must be in order."""
    others = {n: v for n, v in found.items() if n not in names and v != ("used", "")}
    assert not others, others
    return found[names[0]] if len(names) == 1 else [found[n] for n in names]


def edit(path, change=None, affine=None, qform=None):
    """Rewrite a volume with changed voxels or header."""
    image = nib.load(path)
    data, matrix = np.asanyarray(image.dataobj).copy(), image.affine.copy()
    matrix = matrix if affine is None else affine(matrix)
    new = nib.Nifti1Image(data if change is None else change(data), matrix)
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
    """Name of a subject and one of its files: ``what`` is T1, T2, FLAIR or lesion."""
    table = index_dataset(layout, root, MODALITIES[layout]).table
    name = sorted(table["name"].unique())[number]
    rows = table[(table["name"] == name) & (what == "lesion" or table["modality"] == what)]
    return name, Path(rows.iloc[0]["lesion" if what == "lesion" else "image"])


# --- clean trees


@pytest.mark.parametrize("layout", MODALITIES)
def test_a_clean_tree_is_used_without_a_word(clean, layout):
    found = check(layout, clean / layout)
    assert len(found) == SUBJECTS[layout] and set(found.values()) == {("used", "")}


# --- one file


def flip(affine):
    return affine @ np.diag([-1, 1, 1, 1])


def double(affine):
    return affine @ np.diag([2, 2, 2, 1])


def shear(affine):
    return affine @ (np.eye(4) + 0.05 * np.outer([1, 0, 0, 0], [0, 1, 0, 0]))


def shift_by_9_mm(affine):
    return affine + np.outer([9, 0, 0, 0], [0, 0, 0, 1])


def one_spot(data):
    spot = np.zeros_like(data)
    spot[20:24, 20:24, 20:24] = data.max()
    return spot


def one_nan(data):
    data = data.astype(np.float32)
    data.flat[5] = np.nan
    return data


def ball(data, mm):
    """Voxels (4 mm) at most so far from the middle."""
    away = np.indices(data.shape) - np.array(data.shape).reshape(3, 1, 1, 1) / 2
    return np.linalg.norm(4 * away, axis=0) < mm


def without_skull(data):
    return np.where(ball(data, 65), data, 0)


def in_a_skull(data):
    return np.where(ball(data, 85) & (data == 0), 300, data)


def noise(data):
    return data + np.random.default_rng(0).uniform(0, 1e-6, data.shape)


IN_ONE_FILE = [
    # layout, number of the subject, file, change, verdict, what is said
    ("ixi", 1, "T2", {"affine": flip}, WARN, "T2 image: its axes point to"),
    ("brats21", 1, "T2", {"affine": flip}, BAD, "may be exchanged (flipped affine)"),
    ("mslub", 1, "T2", {"affine": flip}, BAD, "lesion mask and T2 image: its axes point to"),
    ("ixi", 0, "T2", {"affine": double}, BAD, "has voxels of 8x8x8 mm, most others voxels of 4x"),
    ("mslub", 0, "T2", {"affine": double}, BAD, "are not plausible (1000 to 7000); is the voxel"),
    ("ixi", 3, "T2", {"change": one_spot}, BAD, "T2 image: near-empty (0."),
    ("ixi", 3, "T2", {"change": one_nan}, BAD, "T2 image: 1 voxels are NaN or infinite"),
    ("ixi", 3, "T2", {"change": lambda d: np.full_like(d, 7)}, BAD, "T2 image: constant (7)"),
    ("ixi", 3, "T2", {"change": lambda d: d - d.mean()}, WARN, "of its voxels are negative"),
    (
        "ixi", 3, "T2", {"change": lambda d: d * (np.arange(d.shape[2]) > d.shape[2] * 0.5)},
        None, "is a part of it missing?",
    ),
    ("ixi", 0, "T1", {"change": lambda d: np.stack([d, d], -1)}, BAD, "not a 3D volume but 48x60x"),
    ("ixi", 0, "T1", {"change": lambda d: d.astype(np.complex64)}, BAD, "values of type complex64"),
    ("ixi", 2, "T1", {"change": without_skull}, BAD, "T1 image: looks like a brain ("),
    ("brats21", 2, "T2", {"change": in_a_skull}, BAD, "those of this data set are brains without"),
    ("mslub", 0, "T1", {"affine": shear}, WARN, "its axes are not orthogonal (cosine 0.050)"),
    ("mslub", 1, "T1", {"qform": shift_by_9_mm}, WARN, "qform and sform disagree by 9.0 mm"),
    ("brats21", 1, "lesion", {"change": np.zeros_like}, WARN, "lesion mask: empty"),
    (
        "brats21", 0, "lesion", {"change": lambda d: np.where(d == 4, 3, d)},
        WARN, "lesion mask: has the value(s) 3, expected are 0, 1, 2, 4",
    ),
    (
        "brats21", 2, "lesion", {"change": lambda d: d[:-2]},
        BAD, "lesion mask and T2 image: has 58x60x39 voxels, its image 60x60x39",
    ),
    ("mslub", 0, "lesion", {"affine": shift_by_9_mm}, WARN, "it is taken voxel for voxel"),
    ("mslub", 0, "lesion", {"change": one_nan}, BAD, "lesion mask: 1 of its voxels are NaN"),
    ("brats21", 0, "lesion", {"change": noise}, BAD, "between 0 and 0.5 would count as lesion"),
    ("mslub", 1, "lesion", {"change": lambda d: d * 0.9999}, WARN, "voxels are no whole numbers"),
    (
        "brats21", 2, "lesion", {"change": lambda d: np.roll(d, d.shape[0] // 2, axis=0)},
        None, "of it is inside the brain of the T2 image",
    ),
    (
        "brats21", 2, "lesion", {"change": lambda d: np.roll(d, -4, axis=0)},
        BAD, "lesion mask: would fit the FLAIR image better 16 mm",
    ),
]  # fmt: skip


@pytest.mark.parametrize("layout, number, what, change, verdict, said", IN_ONE_FILE)
def test_a_fault_in_one_file_is_said_of_its_subject_only(
    tree, layout, number, what, change, verdict, said
):
    root = tree(layout)
    name, path = scan(root, layout, number, what)
    edit(path, **change)
    found, why = only(check(layout, root), name)
    assert said in why and found in (BAD, WARN) and verdict in (None, found), why


@pytest.mark.parametrize(
    "layout, backend, verdicts",
    [
        ("ixi", "", [BAD]),
        ("ixi", "hdbet", [BAD]),
        ("ixi", "auto-hdbet", []),
        ("ixi", "foreground", [WARN] * 4),  # the config says other than the layout
        ("mslub", "ants", [WARN]),  # the layout does not say it
        ("mslub", "foreground", [WARN] * 3),
        ("mslub", "auto-ants", []),
    ],
)
def test_a_scan_that_its_skull_stripping_is_not_for_is_named(tree, layout, backend, verdicts):
    root = tree(layout)
    edit(scan(root, layout, 2, "T1")[1], without_skull)
    table = index_dataset(layout, root, ["T1"]).table
    found = give_verdicts(validate_tree(layout, table, backend=backend)).subjects
    assert [*found[found["why"].str.contains("looks like a ")]["verdict"]] == verdicts


def test_a_head_with_very_bright_fat_is_taken_whole(tree):
    root = tree("ixi")
    name, path = scan(root, "ixi", 2, "T1")
    edit(path, lambda d: np.where(d > np.percentile(d, 95), np.minimum(9.0 * d, 32000), d))
    image = raw.Image(raw.open_volume(path), stripped=False)
    bright = image.data > raw._otsu(image.data)
    assert ndimage.binary_fill_holes(bright).mean() < 0.1 and image.filled.mean() > 0.3
    assert check("ixi", root)[name][0] != BAD


def test_a_cyst_is_darker_than_its_surroundings_and_no_fault(tree):
    root = tree("brats21")
    name, mask = scan(root, "brats21", 2, "lesion")
    cyst = np.asanyarray(nib.load(mask).dataobj) > 0
    for modality in ("T2", "FLAIR"):
        edit(scan(root, "brats21", 2, modality)[1], lambda d: np.where(cyst, d // 10, d))
    verdict, why = only(check("brats21", root), name)
    assert verdict == WARN and "lesion mask: lies on something dark (FLAIR contrast -" in why


def test_subjects_that_the_index_left_out_are_excluded_and_said(tree):
    root = tree("mslub")
    name, path = scan(root, "mslub", 0, "T1")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    table, left_out = index_dataset("mslub", root, MODALITIES["mslub"], opened=True)
    verdicts = give_verdicts(validate_tree("mslub", table), expected=4, unusable=left_out)
    assert verdicts.counts == {"used": 3, "used with warning": 0, BAD: 0, "excluded": 1}
    why = verdicts.subjects.set_index("name")["why"][name]
    assert why.startswith("T1 image: cannot be read as a NIfTI volume, it is probably truncated")
    (note,) = verdicts.notes
    assert note.startswith("1 subject(s) left out, for a file") and f"{name} ({why})" in note


def test_damage_that_only_voxels_show_is_named_and_stops_the_work(tree):
    root = tree("mslub")
    damaged, noise = (scan(root, "mslub", n, what)[1] for n, what in ((0, "T1"), (1, "lesion")))
    content = bytearray(damaged.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = bytes(16)
    damaged.write_bytes(content)
    edit(noise, lambda data: np.where(data > 0, np.nan, data).astype(np.float32))
    table, left_out = index_dataset("mslub", root, MODALITIES["mslub"], opened=True)
    checked = validate_tree("mslub", table)
    with pytest.raises(
        DataError, match=r"2 file\(s\) cannot be used(.|\n)*datasets.mslub.excl"
    ) as e:
        refuse_unusable("mslub", checked)
    assert left_out == {} and all(str(path) in str(e.value) for path in (damaged, noise))


def test_what_nobody_foresaw_in_a_file_costs_only_its_scan(tree, monkeypatch):
    root = tree("mslub")
    name, path = scan(root, "mslub", 0, "T1")
    read = raw.open_volume
    _, mask = scan(root, "mslub", 1, "lesion")

    def surprised(file):
        if file in (str(path), str(mask)):
            raise RuntimeError("who would have thought")
        return read(file)

    monkeypatch.setattr(raw, "open_volume", surprised)
    image, lesion = only(check("mslub", root), name, "patient02")
    assert image == (BAD, f"T1 image: cannot be measured (who would have thought): {path}")
    assert lesion == (BAD, f"lesion mask: cannot be measured (who would have thought): {mask}")


@pytest.mark.parametrize(
    "fields, verdict, said",
    [
        (
            {"quatern_b": 0.70711, "quatern_c": 0.70711, "quatern_d": 0.01},
            WARN, "T2 image: its qform is not valid; sform is used",
        ),
        ({"qform_code": 0, "sform_code": 0}, BAD, "T2 image: has no orientation (qform_code and"),
    ],
)  # fmt: skip
def test_a_fault_in_one_header_costs_its_subject_only(tree, fields, verdict, said):
    root = tree("brats21")
    name, path = scan(root, "brats21", 1, "T2")
    edit_header(path, **fields)
    found, why = only(check("brats21", root), name)
    assert found == verdict and said in why


def test_a_file_is_read_by_what_it_is_whatever_its_name_says(tree):
    root = tree("ixi")
    plain, packed = (scan(root, "ixi", number, "T2")[1] for number in (0, 1))
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    packed.rename(packed.with_suffix(""))
    assert set(check("ixi", root).values()) == {("used", "")}


def without_codes(path):
    edit_header(path, qform_code=0, sform_code=0)


def turned_to_ras(path):
    nib.save(nib.as_closest_canonical(nib.load(path)), path)


@pytest.mark.parametrize(
    "layout, change, verdict, said",
    [
        ("ixi", without_codes, BAD, "image: has no orientation (qform_code and sform_code are 0)"),
        ("ixi", lambda path: edit(path, affine=lambda a: np.eye(4)), BAD, "affine of a bare array"),
        (
            "brats21", lambda path: edit(path, affine=lambda a: np.diag([4, 4, 4, 1])),
            BAD, "image: has the affine of a bare array, without rotation and origin",
        ),
        (
            "brats21", turned_to_ras,
            WARN, "image: its axes point to RAS, those of this data set to LPS",
        ),
        (
            "brats21", lambda path: edit(path, lambda data: data[:, 5:]),
            WARN, "image: its grid covers 240x220x156 mm, that of this data set 240x240x155 mm",
        ),
    ],
)  # fmt: skip
def test_a_fault_that_all_files_share_is_said_of_each_and_of_the_data_set(
    tree, layout, change, verdict, said
):
    root = tree(layout)
    for path in root.rglob("*.nii.gz"):
        change(path)
    checked = validate_tree(layout, index_dataset(layout, root, MODALITIES[layout]).table)
    result = give_verdicts(checked)
    assert (result.subjects["verdict"] == verdict).all()
    assert result.subjects["why"].str.contains(said, regex=False).all()
    assert any(note.startswith("All ") and said in note for note in result.notes)


# --- several files


@pytest.mark.parametrize("layout", MODALITIES)
def test_an_image_under_the_name_of_another_subject_is_found(tree, layout):
    root = tree(layout)
    (theirs, path), (name, wrong) = (scan(root, layout, number, "T2") for number in (0, 2))
    shutil.copy(path, wrong)
    for other, (verdict, why) in zip(
        (name, theirs), only(check(layout, root), theirs, name), strict=True
    ):
        assert f"the same voxels as {other} T2; one carries a wrong name" in why
        assert verdict == BAD


def test_an_image_of_another_patient_is_found_by_its_outline_without_any_copy(tree):
    root = tree("brats21")
    (first, a), (second, b) = (scan(root, "brats21", number, "T2") for number in (0, 2))
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
    for (_, why), other in zip(found, ("IXI777-HH-7777", name), strict=True):
        said = [f"{m} image: duplicate, the same voxels as {other} {m}" for m in MODALITIES["ixi"]]
        assert all(text in why for text in said)


def test_a_modality_copied_over_another_is_found(tree):
    root = tree("ixi")
    name, path = scan(root, "ixi", 1, "T1")
    shutil.copy(path, scan(root, "ixi", 1, "T2")[1])
    assert f"T2 image: duplicate, the same voxels as {name} T1" in only(check("ixi", root), name)[1]


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_exchanged_masks_are_traced_and_a_copied_one_is_found(tree, layout):
    root = tree(layout)
    (first, a), (second, b) = (scan(root, layout, number, "lesion") for number in (0, 1))
    swap(a, b)
    found = only(check(layout, root), first, second)
    for (verdict, why), other in zip(found, (second, first), strict=True):
        assert verdict == BAD and f"but those of {other}; masks exchanged?" in why
    shutil.copy(a, b)
    verdict, why = only(check(layout, root), second, first)[0]
    assert verdict == BAD and f"lesion mask: duplicate, the same voxels as {first}" in why


def test_an_image_in_place_of_a_mask_is_no_mask(tree):
    root = tree("brats21")
    name, mask = scan(root, "brats21", 3, "lesion")
    shutil.copy(scan(root, "brats21", 3, "FLAIR")[1], mask)
    verdict, why = only(check("brats21", root), name)
    assert verdict == BAD and "lesion mask: has the value(s)" in why


def test_names_that_do_not_fit_and_files_of_nobody_are_found(tree):
    root = tree("ixi")
    paths = {modality: scan(root, "ixi", 0, modality)[1] for modality in ("T1", "T2")}
    other, _ = scan(root, "ixi", 1, "T1")
    wrong = f"{other[:6]}-XYZ-0815"
    for modality, path in paths.items():
        path.rename(path.with_name(f"{wrong}-{modality}.nii.gz"))
    (root / "IXI-T1" / "IXI012-HH-1211-T1 (copy).nii.gz").touch()
    checked = validate_tree("ixi", index_dataset("ixi", root, ["T1", "T2"]).table)
    result = give_verdicts(checked, expected=6, strays=stray_files("ixi", root))
    why = dict(zip(result.subjects["name"], result.subjects["why"], strict=True))
    assert f"'{wrong}' is no public name" in why[wrong]
    both = f"subject {other[:6]} is there as {other} and {wrong}"
    assert both in why[wrong] and both in why[other]
    assert result.notes == [
        "5 subjects, fewer than the expected 6.",
        "1 file(s) with a name that belongs to nobody: IXI-T1/IXI012-HH-1211-T1 (copy).nii.gz.",
    ]


# --- verdicts


def test_a_subject_has_one_verdict_and_exclusion_is_left_to_the_config(tree):
    root = tree("brats21")
    edit(scan(root, "brats21", 0, "lesion")[1], np.zeros_like)
    edit(scan(root, "brats21", 1, "T2")[1], np.zeros_like)
    checked = validate_tree("brats21", index_dataset("brats21", root, MODALITIES["brats21"]).table)
    exclude = {"BraTS2021_00002": "motion", "BraTS2021_00099": "withdrew & <left>"}
    result = give_verdicts(checked, expected=6, exclude=exclude)
    verdicts = [WARN, BAD, "excluded", "used", "used", "excluded"]
    assert result.subjects["verdict"].tolist() == verdicts
    assert result.counts == dict(zip(VERDICTS, (2, 1, 1, 2), strict=True))
    assert result.advice == {"BraTS2021_00001": "T2 image: constant (0)"}
    page = render_page(
        "validation.html", title="t", dataset="brats21", notes=["note"], counts=result.counts,
        subjects=result.subjects.to_dict("records"), advice=result.advice,
    )  # fmt: skip
    assert "withdrew &amp; &lt;left&gt;" in page and "1 used with warning" in page
    advice = 'datasets.brats21.exclude: {BraTS2021_00001: "T2 image: constant (0)"}'
    assert advice in page and "http" not in page and "src=" not in page
    assert page.index("BraTS2021_00001") < page.index("BraTS2021_00000")  # the worst first


# --- real scans


real = pytest.mark.skipif(
    not (DATA / "mslub" / "mni").is_dir(),
    reason=f"no real scans at {DATA}; set UAD_REAL_DATA (see the project's documentation)",
)


@pytest.fixture
def patients(tmp_path):
    """Two MSLUB patients, copied so that faults can be planted."""
    for file in (DATA / "mslub/mni").glob("patient*/*_*.nii.gz"):
        if "T1WKS" not in file.name:
            path = tmp_path / "mslub" / file.parent.name / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read_bytes())
    return tmp_path / "mslub"


@pytest.mark.real
@real
def test_real_scans_are_used_without_a_word(patients, tmp_path):
    case, name = DATA / "tcga/TCGA-DU-7294", "BraTS2021_00000"
    for modality in ("t1", "t1ce", "t2", "flair", "seg"):
        path = tmp_path / "brats21" / name / f"{name}_{modality}.nii.gz"
        real_tree.link(path, case / f"{case.name}_{modality}.nii.gz")
    real_tree.make(DATA, tmp_path / "trees")
    found = check("mslub", patients) | check("brats21", tmp_path / "brats21")
    assert found == dict.fromkeys(("patient07", "patient19", name), ("used", ""))
    table = index_dataset("ixi", tmp_path / "trees/ixi", ["T1"], limit=20).table
    assert give_verdicts(validate_tree("ixi", table)).advice == {}


@pytest.mark.real
@real
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("flipped affine", "lesion mask and T2 image: its axes point to LAS, those of its image"),
        ("swapped mask", "but those of patient19; masks exchanged?"),
        ("shifted mask", "lesion mask: would fit the FLAIR image better 8 mm"),
        ("exchanged image", "FLAIR image: its brain has another outline"),
    ],
)
def test_faults_planted_in_real_scans_are_named(patients, fault, said):
    def path(name, number="07"):
        return patients / f"patient{number}/patient{number}_{name}.nii.gz"

    plant = {
        "flipped affine": lambda: edit(path("T2W"), affine=flip),
        "swapped mask": lambda: swap(path("consensus_gt"), path("consensus_gt", "19")),
        "shifted mask": lambda: edit(path("consensus_gt"), lambda d: np.roll(d, 8, axis=0)),
        "exchanged image": lambda: swap(path("FLAIR", "19"), path("FLAIR")),
    }
    plant[fault]()
    found = check("mslub", patients, ["T2", "FLAIR"])
    verdict, why = found["patient07"]
    assert said in why and (verdict == BAD or fault == "exchanged image")
    if fault in ("flipped affine", "shifted mask"):
        assert found["patient19"] == ("used", "")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_that_changed_inside_a_packed_file_are_seen_by_its_checksum(tmp_path, kind):
    path = tmp_path / "scan.nii.gz"
    noise = np.random.default_rng(0).integers(1, 999, (40, 40, 40)).astype(np.int16)
    nib.save(kind(noise, np.eye(4)), path)
    content = path.read_bytes()
    path.write_bytes(content[:30_000] + bytes(100) + content[30_100:])
    with pytest.raises(DataError, match=r"scan\.nii\.gz: cannot be read .* damaged"):
        open_volume(path)
    path.write_bytes(content + b"what a program left behind the end")
    assert (open_volume(path).data == noise).all()
    path.rename(tmp_path / "scan.nii")  # packed, whatever its name says
    assert (open_volume(tmp_path / "scan.nii").data == noise).all()
