"""``source: download`` through the workflow, from a server that goes away."""

import functools
import hashlib
import http.server
import shutil
import tarfile
import threading

import pandas as pd
import pytest
import yaml

from test_workflow import snakemake


@pytest.fixture
def home(tmp_path, monkeypatch, root):
    """A server with both IXI archives (zero-byte scans) and a registry that points to it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    registry = yaml.safe_load((root / "resources/datasets.yaml").read_text(encoding="utf-8"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shelf))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    for file in registry["datasets"]["ixi"]["files"]:
        scans = tmp_path / file["kind"]
        scans.mkdir()
        with tarfile.open(shelf / file["name"], "w") as archive:
            for i in range(6):
                name = f"IXI{i:03d}-Guys-{i:04d}-{file['kind']}.nii.gz"
                (scans / name).touch()
                archive.add(scans / name, name)
        body = (shelf / file["name"]).read_bytes()
        file["urls"] = [f"http://127.0.0.1:{server.server_port}/{file['name']}"]
        file |= {"bytes": len(body), "checksum": f"sha256:{hashlib.sha256(body).hexdigest()}"}
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(registry), encoding="utf-8")
    monkeypatch.setenv("UAD_DATASETS", str(path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_ends_in_an_indexed_raw_tree_and_outlives_its_host(root, home, tmp_path):
    overlay = tmp_path / "download.yaml"
    overlay.write_text(yaml.safe_dump({"datasets": {"ixi": {"source": "download"}}}))
    table = "results/participants/ixi.tsv"
    arguments = (table, "--configfile", overlay)
    snakemake(root, tmp_path, *arguments)
    assert len(pd.read_csv(tmp_path / table, sep="\t")) == 6 * 2
    home.shutdown()
    # a finished run does not ask
    assert "Nothing to be done" in snakemake(root, tmp_path, *arguments)
    # nor does one whose results were removed: the raw tree is whole
    shutil.rmtree(tmp_path / "results")
    snakemake(root, tmp_path, *arguments)
    assert len(pd.read_csv(tmp_path / table, sep="\t")) == 6 * 2
