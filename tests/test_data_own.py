"""Data of one's own: layouts in the config, ready layouts, and the page that leads to a table."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from tools.datasets import folder_of, image, names
from tools.workflow import snakemake
from uad.config import load, load_files
from uad.config.params import PARAMS
from uad.core.errors import DataError
from uad.core.nifti import read_scan, read_scan_mask
from uad.core.patterns import LESION, Layout, layout_of
from uad.data.fit import fits
from uad.data.layouts import index_dataset
from uad.data.people import add_ages
from uad.data.place import describe, import_all
from uad.data.status import status, table
from uad.qc.verdicts import stray_files, validate_tree

DATA = Path(os.environ.get("UAD_REAL_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
KINDS = ("flair", "t1", "t1ce", "t2", "seg")
NEW_KINDS = ("t2f", "t1n", "t1c", "t2w", "seg")


SMALL = image()


def touch(root, paths):
    return folder_of(root, paths, lambda _: SMALL)


def brats20(n):
    patients = [f"BraTS20_Training_{i:03d}" for i in range(1, n + 1)]
    return [f"{p}/{p}_{kind}.nii" for p in patients for kind in KINDS]


def brats23(n, visits):
    cases = [f"BraTS-GLI-{i:05d}-{v}" for i in range(n) for v in visits]
    return [f"{case}/{case}-{kind}.nii.gz" for case in cases for kind in NEW_KINDS]


def mslesseg(n):
    visits = [(f"P{i}", f"T{v}") for i in range(1, n + 1) for v in (1, 2)]
    kinds = ("T1", "T2", "FLAIR", "MASK")
    return [f"{p}/{v}/{p}_{v}_{kind}.nii.gz" for p, v in visits for kind in kinds]


def isbi15():
    visits = [(f"training{i:02d}", f"{v:02d}") for i in range(1, 6) for v in range(1, 5)]
    images = [f"{p}/preprocessed/{p}_{v}_{kind}_pp.nii" for p, v in visits
              for kind in ("flair", "mprage", "pd", "t2")]  # fmt: skip
    return images + [f"{p}/masks/{p}_{v}_mask{rater}.nii" for p, v in visits for rater in (1, 2)]


def atlas2(n):
    people = [(f"R{i % 3:03d}", f"sub-r{i % 3:03d}s{i:03d}") for i in range(n)]
    stem = "{0}/{1}/ses-1/anat/{1}_ses-1_space-MNI152NLin2009aSym_"
    kinds = ("T1w.nii.gz", "label-L_desc-T1lesion_mask.nii.gz")
    return [stem.format(*person) + kind for person in people for kind in kinds]


def wmh():
    folders = [f"Utrecht/{i}" for i in range(4)] + [f"Singapore/{i}" for i in range(50, 53)]
    folders += [f"Amsterdam/GE3T/{i}" for i in range(100, 105)]
    kinds = ("pre/FLAIR.nii.gz", "pre/T1.nii.gz", "orig/FLAIR.nii.gz", "wmh.nii.gz")
    return [f"{folder}/{kind}" for folder in folders for kind in kinds]


def isles22(n):
    people = [f"sub-strokecase{i:04d}" for i in range(1, n + 1)]
    files = [f"{p}/ses-0001/anat/{p}_ses-0001_FLAIR.nii.gz" for p in people]
    files += [f"{p}/ses-0001/dwi/{p}_ses-0001_{k}.nii.gz" for p in people for k in ("dwi", "adc")]
    return files + [f"derivatives/{p}/ses-0001/{p}_ses-0001_msk.nii.gz" for p in people]


def bids(n):
    files = []
    for i in range(1, n + 1):
        stem = f"sub-{i:02d}/ses-{{0}}/anat/sub-{i:02d}_ses-{{0}}"
        kinds = ("acq-thick_run-2_FLAIR", "run-1_FLAIR", "FLAIR", "T1w", "ce-gad_T1w", "T2w")
        files += [f"{stem}_{kind}.nii.gz".format(v) for v in ("a", "b") for kind in kinds]
        files.append(f"derivatives/manual/{stem}_label-lesion_mask.nii.gz".format("b"))
        files.append(f"derivatives/bet/{stem}_desc-brain_mask.nii.gz".format("a"))
    return files


#: Files as documented; modalities; subjects; and the image of the first subject that is taken.
READY = {
    "brats20": (brats20(9), ["T1CE", "FLAIR"], 9, "BraTS20_Training_001_t1ce.nii"),
    "brats23": (brats23(9, ["000", "001"]), ["T2"], 9, "BraTS-GLI-00000-000-t2w.nii.gz"),
    "brats24": (brats23(9, ["101", "100"]), ["T2"], 9, "BraTS-GLI-00000-100-t2w.nii.gz"),
    "mslesseg": (mslesseg(9), ["T2", "FLAIR"], 9, "P1_T1_T2.nii.gz"),
    "isbi15": (isbi15(), ["T1"], 5, "training01_01_mprage_pp.nii"),
    "atlas2": (atlas2(12), ["T1"], 12, "sub-r000s000_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz"),
    "wmh": (wmh(), ["FLAIR"], 12, "FLAIR.nii.gz"),
    "isles22": (isles22(9), ["FLAIR"], 9, "sub-strokecase0001_ses-0001_FLAIR.nii.gz"),
    "bids": (bids(4), ["FLAIR"], 4, "sub-01_ses-b_FLAIR.nii.gz"),
    "bids-healthy": (bids(4), ["T1CE"], 4, "sub-01_ses-a_ce-gad_T1w.nii.gz"),
}


#: What validation names as belonging to nobody.
STRAYS = {
    "isbi15": lambda files: [name for name in files if "_mask2" in name],
    "bids": lambda files: [name for name in files if "desc-brain" in name],
    "bids-healthy": lambda files: [name for name in files if "mask" in name],
}


@pytest.mark.parametrize("layout", READY)
def test_a_ready_layout_finds_the_subjects_of_a_tree_as_it_is_documented(tmp_path, layout):
    files, modalities, count, first = READY[layout]
    touch(tmp_path, files)
    table = index_dataset(layout, tmp_path, modalities).table
    assert table["name"].nunique() == count and len(table) == count * len(modalities)
    assert Path(table["image"].iloc[0]).name == first
    assert stray_files(layout, tmp_path) == sorted(STRAYS.get(layout, lambda _: [])(files))
    healthy = layout == "bids-healthy"
    assert (table["lesion"] == "").all() == healthy
    assert any(re.match(rf"{layout}: {count} subject\(s\): ", line) for line in fits(tmp_path))


def test_sites_are_read_from_paths_and_from_participants(tmp_path):
    touch(tmp_path / "wmh", wmh())
    table = index_dataset("wmh", tmp_path / "wmh", ["FLAIR"]).table
    assert table["site"].value_counts().to_dict() == {"Amsterdam": 5, "Utrecht": 4, "Singapore": 3}
    touch(tmp_path / "bids", bids(3))
    told = "participant_id\tage\tsite\nsub-01\t40\tA\nsub-02\t50\tB\nsub-03\tn/a\tn/a\n"
    (tmp_path / "bids/participants.tsv").write_text(told)
    table = index_dataset("bids", tmp_path / "bids", ["T2"]).table
    table, facts = add_ages(table, "bids", tmp_path / "bids")
    assert table["site"].tolist() == ["A", "B", "bids"] and facts["known"] == 2


def test_the_session_is_the_first_that_has_what_is_asked_for(tmp_path):
    layout = {
        "image": "{subject}/{session}/{modality}.nii.gz",
        "modalities": {"T1": "t1", "T2": "t2"},
        "healthy": True,
    }
    touch(tmp_path, ["a/1/t1.nii.gz", "a/2/t1.nii.gz", "a/2/t2.nii.gz", "a/3/t2.nii.gz"])
    found = {m: index_dataset(layout, tmp_path, m.split()).table for m in ("T1", "T2", "T1 T2")}
    taken = {m: [Path(p).parent.name for p in table["image"]] for m, table in found.items()}
    assert taken == {"T1": ["1"], "T2": ["2"], "T1 T2": ["2", "2"]}


def test_only_the_labels_that_are_lesions_count(tmp_path, content):
    spec = {"layout": "wmh", "path": str(tmp_path), "modalities": ["FLAIR"]}
    labels = PARAMS["register_scan"]["lesion_labels"]
    content["datasets"]["wmh"] = spec
    assert labels(load(content), {"dataset": "wmh"}) == [1]
    assert labels(load(content), {"dataset": "brats21"}) is None
    voxels = np.zeros((4, 4, 4), np.uint8)
    voxels[0], voxels[1] = 1, 2
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "wmh.nii.gz")
    scan = read_scan(tmp_path / "wmh.nii.gz")
    assert [read_scan_mask(scan.path, scan, ask)[0].sum() for ask in (None, [1])] == [32, 16]


def test_a_layout_that_names_no_labels_takes_any_few(tmp_path):
    layout = {"image": "{subject}.nii.gz", "lesion": "{subject}_seg.nii.gz"}
    layout["modalities"] = {"T2": ""}
    grid = np.indices((20, 20, 20)) - 9.5
    head = ((grid**2).sum(0) < 80) * 100.0
    lesion = (((grid - 2) ** 2).sum(0) < 8).astype(np.uint8)
    nib.save(nib.Nifti1Image(head + 200.0 * lesion, np.diag([8.0, 8, 8, 1])), tmp_path / "a.nii.gz")
    for values, said in (([1], False), ([2, 7], False), ([1, 2, 3, 4, 5], True)):
        mask = lesion * np.resize(values, lesion.shape).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, np.diag([8.0, 8, 8, 1])), tmp_path / "a_seg.nii.gz")
        checked = validate_tree(layout, index_dataset(layout, tmp_path, ["T2"]).table)
        assert checked.to_csv().count("has the value(s)") == said


# --- what fits a folder, and what does not


def test_a_wrong_guess_is_explained_by_the_part_that_failed(tmp_path):
    touch(tmp_path, ["p01/p01_FLAIR.nii.gz", "p01/p01_mask.nii.gz"])
    mine = Layout(
        image="{subject}/{subject}_{modality}.nii.gz",
        lesion="{subject}/{subject}_seg.nii.gz",
        modalities={"FLAIR": "flair"},
    )
    first, *_, last = fits(tmp_path, {"mine": mine})
    assert first == (
        "mine: no subject. Nearest: '{modality}' (flair) of "
        "'{subject}/{subject}_{modality}.nii.gz' does not fit p01/p01_FLAIR.nii.gz."
    )
    assert "docs/your-own-data.md" in last
    found = fits(tmp_path, {"mine": mine.model_copy(update={"modalities": {"FLAIR": "FLAIR"}})})
    assert found[0].startswith("mine: 1 subject(s): FLAIR 1; no lesion mask. Nearest: '_seg' of ")
    with pytest.raises(DataError, match=r"no subject in the own layout. What fits it: uad layouts"):
        index_dataset(mine.model_dump(), tmp_path, ["FLAIR"])


def test_names_of_other_years_are_recognised_by_an_import(tmp_path):
    touch(tmp_path / "mine", brats23(2, ["000"]))
    with pytest.raises(DataError, match=r"What is in it .*:\nbrats23: 2 subject\(s\): "):
        import_all({"b": ("brats21", tmp_path / "raw")}, tmp_path / "mine")
    done, _ = import_all({"b": ("brats23", tmp_path / "raw")}, tmp_path / "mine")
    assert done["b"].subjects == len(index_dataset("brats23", tmp_path / "raw", ["T2"]).table) == 2


def test_any_layout_is_imported_into_places_where_it_is_found(tmp_path):
    files = bids(2)
    folder_of(tmp_path / "mine/export", files, lambda name: name.encode())
    import_all({"b": ("bids", tmp_path / "raw")}, tmp_path / "mine")
    assert index_dataset("bids", tmp_path / "raw", ["FLAIR"]).table["name"].tolist() == ["01", "02"]


def test_a_single_modality_needs_no_name(tmp_path):
    layout = {
        "image": "{subject}.nii.gz",
        "lesion": "{subject}_seg.nii.gz",
        "modalities": {"T2": ""},
    }
    touch(tmp_path, ["a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_seg.nii.gz"])
    assert index_dataset(layout, tmp_path, ["T2"]).table["name"].tolist() == ["a", "b"]
    assert fits(tmp_path, {"mine": layout})[0] == "mine: 2 subject(s): T2 2, lesion mask 2"


def test_a_folder_of_ones_own_may_hold_other_things_and_its_state_is_told(tmp_path):
    layout = {
        "image": "{subject}/{modality}.nii.gz",
        "lesion": "{subject}/mask.nii.gz",
        "modalities": {"T1": "t1"},
    }
    touch(tmp_path, ["a/t1.nii.gz", "a/mask.nii.gz", "notes/readme.txt", "old/t3.nii.gz"])
    assert index_dataset(layout, tmp_path, ["T1"]).table["name"].tolist() == ["a"]
    found = status("mine", layout, tmp_path)
    assert (found.state, found.found, "1  " in table([found])) == ("present", 1, True)
    touch(tmp_path, ["b/t1.nii.gz"])
    found = status("mine", layout, tmp_path)
    assert (
        found.state == "partial"
        and "1 subject(s) lack files (b: lesion mask) and are left out" in found.next_step
    )


# --- faults of files


def test_a_folder_that_is_named_like_a_file_is_looked_into(tmp_path):
    files = [f"{n.removesuffix('.gz')}/0057_x.nii" for n in names("brats21", range(2))]
    touch(tmp_path, files)
    assert index_dataset("brats21", tmp_path, ["T1CE"]).table["name"].nunique() == 2


def test_upper_case_endings_are_taken(tmp_path):
    touch(tmp_path, [n.replace(".nii.gz", ".NII.GZ") for n in names("brats21", range(2))])
    assert index_dataset("brats21", tmp_path, ["T2"]).table["name"].nunique() == 2


@pytest.mark.parametrize("kind", ["t2", "seg"])
def test_one_name_with_two_endings_must_be_one_image(tmp_path, kind):
    folder_of(tmp_path, names("brats21", range(2)), lambda _: image())
    path = tmp_path / f"BraTS2021_00000/BraTS2021_00000_{kind}.nii.gz"
    plain = path.with_suffix("")
    stored = nib.load(path)
    voxels = np.asanyarray(stored.dataobj)
    nib.save(nib.Nifti1Image(voxels, stored.affine), plain)
    assert index_dataset("brats21", tmp_path, ["T2"]).table["name"].nunique() == 2
    nib.save(nib.Nifti1Image(voxels + np.uint8(1), stored.affine), plain)
    with pytest.raises(DataError, match=f"{path} and {plain} are the same image .* and differ"):
        index_dataset("brats21", tmp_path, ["T2"])
    if kind == "t2":  # what is not used does no harm
        assert len(index_dataset("brats21", tmp_path, ["T1"]).table) == 2


def test_links_whose_target_moved_are_named_with_the_way_out(tmp_path):
    store = folder_of(tmp_path / "store", names("brats21", range(2)))
    import_all({"b": ("brats21", tmp_path / "raw")}, store)
    store.rename(tmp_path / "moved")
    with pytest.raises(
        DataError, match=rf"10 link\(s\) lead nowhere, such as .*, to {store}.*import"
    ):
        index_dataset("brats21", tmp_path / "raw", ["T2"])
    raw = {"b": ("brats21", tmp_path / "raw")}
    # a folder of links is imported: all lead nowhere, then a part
    links = tmp_path / "links"
    shutil.copytree(tmp_path / "raw", links, symlinks=True)
    with pytest.raises(DataError, match=rf"Not used: links: 10 link\(s\) lead nowhere.*to {store}"):
        import_all(raw, links)
    folder_of(links, names("brats21", range(2, 3)))
    done, unused = import_all(raw, links)
    assert (done["b"].placed, "10 link(s) lead nowhere" in unused[links]) == (5, True)
    done, unused = import_all(raw, tmp_path / "moved")
    assert (done["b"].subjects, unused) == (3, {})


def test_subjects_without_a_mask_are_left_out_of_an_import_counted_and_named(tmp_path):
    folder_of(tmp_path / "mine", names("brats21", range(2)))
    folder_of(tmp_path / "mine", names("brats21", range(2, 5), ["t1", "t1ce", "t2", "flair"]))
    done, _ = import_all({"b": ("brats21", tmp_path / "raw")}, tmp_path / "mine")
    assert (done["b"].subjects, done["b"].placed) == (2, 10)
    said = describe("b", done["b"])
    assert "3 subject(s) without a lesion mask left out: BraTS2021_00002, " in said
    assert len(index_dataset("brats21", tmp_path / "raw", ["T2"]).table) == 2


def test_names_that_would_be_one_label_are_refused(tmp_path):
    layout = {"image": "{subject}_{modality}.nii.gz", "modalities": {"T1": "t1"}, "healthy": True}
    touch(tmp_path, ["a-1_t1.nii.gz", "a1_t1.nii.gz"])
    with pytest.raises(DataError, match="a-1, a1: names that differ only in signs"):
        index_dataset(layout, tmp_path, ["T1"])


# --- the page


def blocks(root):
    """(language, title, text) of the code blocks of the page, in order."""
    text = (root / "docs/your-own-data.md").read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def user(root, tmp_path_factory):
    """A folder of a user: scans of all sections of the page, and the overlays that it shows."""
    folder = tmp_path_factory.mktemp("user")
    stems = [f"p{i:02d}/p{i:02d}" for i in range(1, 11)]
    touch(folder / "my-scans", [f"{s}_{k}.nii.gz" for s in stems for k in ("flair", "mask")])
    people = [f"sub-{i:02d}/anat/sub-{i:02d}" for i in range(1, 31)]
    touch(folder / "my-controls", [f"{p}_FLAIR.nii.gz" for p in people])
    kinds = ("FLAIR", "label-lesion_mask")
    touch(folder / "my-patients", [f"{p}_{k}.nii.gz" for p in people[:9] for k in kinds])
    shutil.copy(root / "config.yaml", folder)
    for _, title, text in blocks(root):
        if title:
            (folder / title).write_text(text, encoding="utf-8")
            assert len([line for line in text.splitlines() if line.strip()]) <= 15
    return folder


@pytest.mark.parametrize("section", [0, 1, 2])
def test_the_page_is_followed_word_by_word(root, user, section):
    consoles = [text for kind, _, text in blocks(root) if kind == "console"]
    said = []
    for line in consoles[section].splitlines():
        program, *words = shlex.split(line.removeprefix("$ "))
        if program == "snakemake":
            words = [str(user / word) if word.endswith(".yaml") else word for word in words]
            said.append(snakemake(root, user, *words))
            continue
        done = subprocess.run([sys.executable, "-m", program, *words], cwd=user,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    expected = [
        ["No layout fits."],
        ["mine: 10 subject(s): FLAIR 10, lesion mask 10", "mine", "train_model"],
        ["bids-healthy: 30 subject(s): FLAIR 30", "bids: 9 subject(s)", "train_model"],
    ][section]
    for text, output in zip(expected, said, strict=True):
        assert text in output


@pytest.mark.parametrize(
    ("overlay", "sets"), [("mine", {"mine": 10}), ("two", {"controls": 30, "patients": 9})]
)
def test_its_data_sets_are_indexed_and_split(root, user, overlay, sets):
    config = load_files([user / "config.yaml", user / f"{overlay}.yaml"])
    assert config.datasets_of_run() == list(sets)
    split = f"results-{overlay}/splits/{overlay}/fold-0.tsv"
    snakemake(root, user, split, "--configfile", user / f"{overlay}.yaml")
    for name, count in sets.items():
        table = pd.read_csv(user / f"results-{overlay}/participants/{name}.tsv", sep="\t")
        assert table["name"].nunique() == count
    roles = pd.read_csv(user / split, sep="\t")["role"].value_counts()
    assert {"train", "val_healthy", "val_unhealthy", "test"} <= set(roles.index)


@pytest.mark.real
@pytest.mark.skipif(
    not (DATA / "tcga_lgg").is_dir(), reason=f"no scans at {DATA}; set UAD_REAL_DATA"
)
def test_the_77_patients_are_indexed_by_a_few_lines(root, tmp_path):
    overlay = {"datasets": {"lgg": {"layout": "bids", "path": str(DATA / "tcga_lgg"),
                                    "modalities": ["FLAIR"]}}}  # fmt: skip
    (tmp_path / "lgg.yaml").write_text(yaml.safe_dump(overlay))
    spec = load_files([root / "config.yaml", tmp_path / "lgg.yaml"]).datasets["lgg"]
    table, _ = add_ages(
        index_dataset(spec.layout, spec.path, spec.modalities).table, spec.layout, spec.path
    )
    assert table["name"].nunique() == 77 and table["site"].nunique() > 1
    assert layout_of("bids").scan(spec.path)[table["name"].iloc[0]].keys() == {"FLAIR", LESION}
