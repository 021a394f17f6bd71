"""Data sets from their homes into raw trees."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from test_data_people import write_xls
from tools.datasets import bare, folder_of, names, registry_at, served, tar_of, tree, zip_of
from uad.core.errors import DataError
from uad.data import disk, download, fetch
from uad.data.download import fetch_synapse
from uad.data.layouts import demographics_file, index_dataset
from uad.data.people import add_ages
from uad.data.sources import load_registry

NOWHERE = "http://127.0.0.1:9"  # nobody answers there


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A server that answers, the folder that it serves, and a registry that points to it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    folder = tmp_path / "home"
    folder.mkdir()
    with served(folder) as url:
        at(monkeypatch, tmp_path, url)
        yield folder


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A registry whose homes are all dead."""
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    at(monkeypatch, tmp_path, NOWHERE, sizes=True)


def at(monkeypatch, folder, url, **options):
    count = len(list(folder.glob("registry-*.yaml")))
    path = registry_at(folder / f"registry-{count}.yaml", url, **options)
    monkeypatch.setenv("UAD_DATASETS", str(path))


@pytest.fixture
def get(tmp_path):
    """Download a data set into tmp_path / <layout>."""

    def get(layout, modalities=None):
        return download.download(layout, tmp_path / "archives", tmp_path / layout, modalities)

    return get


def ixi_at(home, numbers=range(1, 5), kinds=("T1", "T2")):
    for kind in kinds:
        tar_of(home / f"IXI-{kind}.tar", bare(names("ixi", numbers, [kind])))


def test_only_the_files_of_the_wanted_modalities_are_fetched(home, get):
    ixi_at(home, kinds=["T2"])
    imported, files = get("ixi", ["T2"])
    assert (imported.subjects, imported.expected, imported.incomplete) == (4, 578, {})
    assert [f.path.name for f in files] == ["IXI-T2.tar"]


def test_a_download_ends_in_the_raw_tree_and_is_not_repeated(home, get, tmp_path, monkeypatch):
    ixi_at(home)
    imported, files = get("ixi")
    assert (imported.subjects, imported.placed, [f.verified for f in files]) == (4, 8, [False] * 2)
    at(monkeypatch, tmp_path, NOWHERE)  # the server is gone: nothing is asked for
    imported, again = get("ixi")
    assert (imported.placed, imported.kept, imported.subjects) == (0, 8, 4)
    assert again == files
    with pytest.raises(DataError, match="no connection to 127.0.0.1"):
        get("mslub")


@pytest.mark.parametrize(("layout", "count"), [("ixi", 577), ("mslub", 30)])
def test_a_complete_raw_tree_of_another_origin_is_not_downloaded_again(
    nobody, get, tmp_path, capsys, layout, count
):
    raw = folder_of(tmp_path / layout, names(layout, range(1, count + 1)), lambda _: b"")
    before = tree(raw)
    imported, files = get(layout)
    assert (imported.subjects, imported.placed, files) == (count, 0, [])
    assert imported.kept == len(before) and tree(raw) == before
    said = capsys.readouterr().err
    assert f"{raw}: complete, {count} of {count} subjects" in said and "nothing is downlo" in said
    assert not (tmp_path / "archives").exists()


def test_what_a_raw_tree_lacks_is_downloaded_and_no_more(home, get, tmp_path, capsys):
    for first in (6, 26):
        archive = f"3D-MR-MS_patient{first:02d}-{first + 4:02d}.zip"
        zip_of(home / archive, names("mslub", range(first, first + 5)))
    raw = folder_of(tmp_path / "mslub", names("mslub", [*range(1, 7), *range(11, 27)]))
    imported, got = get("mslub")
    assert [f.path.name for f in got] == [path.name for path in sorted(home.iterdir())]
    # patients 6 and 26 were there: six files of each stay
    assert (imported.subjects, imported.placed) == (30, 48)
    assert f"{raw}: 22 of 30 subjects" in capsys.readouterr().err


def test_a_part_of_a_data_set_whose_home_is_dead_can_be_gone_on_with(nobody, get, tmp_path):
    raw = folder_of(tmp_path / "ixi", names("ixi", range(1, 101)))
    with pytest.raises(DataError, match="no connection") as error:
        get("ixi")
    assert f"{raw} holds 100 complete subjects of 577; to go on with these" in str(error.value)
    assert "'source: folder'" in str(error.value)


# --- room


def little_room(monkeypatch, free):
    usage = disk.shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=free))


def test_the_room_for_all_files_is_checked_before_the_first_byte(
    nobody, get, tmp_path, monkeypatch
):
    little_room(monkeypatch, 12 * 10**9)  # enough for either archive and its content
    with pytest.raises(DataError, match=r"IXI-T1.tar and IXI-T2.tar .* needs 17.4 GB"):
        get("ixi")
    assert not (tmp_path / "archives").exists()


# --- tables about the subjects


def test_ages_come_along_with_the_scans(home, get, tmp_path):
    ixi_at(home)
    write_xls(home / "IXI.xls", [(1, 1, 30.5), (2, 2, 61)])
    files = get("ixi")[1]
    assert [f.path.name for f in files] == ["IXI-T1.tar", "IXI-T2.tar", "IXI.xls"]
    table = index_dataset("ixi", tmp_path / "ixi", ["T1"]).table
    assert add_ages(table, "ixi", tmp_path / "ixi")[1]["known"] == 2


ODD_TABLES = {
    "absent": (lambda path: None, "404"),
    "broken": (lambda p: p.write_bytes(b"no workbook"), "cannot be read as an Excel 97 workbook"),
    "of others": (lambda p: write_xls(p, [(77, 1, 30)]), "none of its 1 subjects"),
}


@pytest.mark.parametrize("case", ODD_TABLES)
def test_without_a_table_that_fits_the_scans_are_there_all_the_same(
    home, get, tmp_path, capsys, case
):
    make, message = ODD_TABLES[case]
    ixi_at(home)
    make(home / "IXI.xls")
    imported, files = get("ixi")
    assert (imported.subjects, len(files)) == (4, 2)
    assert demographics_file("ixi", tmp_path / "ixi") is None
    said = capsys.readouterr().err
    assert message in said and "the ages are unknown" in said and "/tmp/tmp" not in said


def test_a_table_of_the_users_stays(home, get, tmp_path):
    ixi_at(home)
    write_xls(home / "IXI.xls", [(1, 1, 50)])
    folder_of(tmp_path / "ixi", ["IXI.csv"], lambda _: b"IXI_ID,AGE\n1,30\n")
    get("ixi")
    assert not (tmp_path / "ixi" / "IXI.xls").exists()
    assert not (tmp_path / "archives" / "IXI.xls").exists()


# --- Synapse

SECRET = "not-for-any-log"
BRATS_FILE = "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021.zip"


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
            place = calls.gives and Path(downloadLocation) / calls.gives
            return types.SimpleNamespace(path=place and zip_of(place, names("brats21", range(2))))

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SYNAPSE_AUTH_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "synapseclient", types.SimpleNamespace(Synapse=Session))
    return calls


def test_brats_is_fetched_with_the_users_own_token(get, tmp_path, monkeypatch, synapse, capfd):
    monkeypatch.setenv("SYNAPSE_AUTH_TOKEN", SECRET)
    synapse.gives = "renamed.zip"
    imported, (file,) = get("brats21")
    assert (imported.subjects, file.path.name, file.verified) == (2, BRATS_FILE, False)
    assert synapse.asked == [{"silent": True}, "syn25956772"]
    get("brats21")
    assert len(synapse.asked) == 2
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err and SECRET.encode() not in written
    assert "no published checksum; recorded sha256:" in shown.err


def test_any_archive_of_brats_that_is_there_is_taken(get, tmp_path, synapse):
    tar_of(tmp_path / "archives" / "BraTS2021_Training_Data.tar", names("brats21", range(3)))
    imported, (file,) = get("brats21")
    assert (imported.subjects, file.path.name) == (3, "BraTS2021_Training_Data.tar")
    assert synapse.asked == []


@pytest.mark.parametrize("problem", ["no client", "no token", "refused", "no file"])
def test_without_access_the_message_says_what_to_sign_and_both_ways(
    tmp_path, monkeypatch, synapse, problem
):
    if problem != "no token":
        folder_of(tmp_path / "home", [".synapseConfig"], lambda _: f"authtoken = {SECRET}".encode())
    if problem == "no client":
        monkeypatch.setitem(sys.modules, "synapseclient", None)
    synapse.fails = PermissionError(f"token {SECRET} refused") if problem == "refused" else None
    with pytest.raises(DataError) as error:
        fetch_synapse(load_registry().of_layout("brats21"), tmp_path / "archives")
    text = str(error.value)
    for part in ("syn25829067", "accept", "make import ARCHIVES=", "pip install synapseclient"):
        assert part in text
    assert SECRET not in text and SECRET not in str(error.value.__cause__)
    said = {"no token": "no Synapse token", "refused": "PermissionError", "no file": "did not give"}
    assert said.get(problem, "without registration") in text
