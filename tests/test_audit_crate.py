"""Crates: what is packed, what is left out, what a reader can verify. No run needed."""

import json
import runpy
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from rocrate.rocrate import ROCrate

from tools.result_trees import Forge, ResultTree, uad
from uad.audit.crate import pack
from uad.audit.crate_contents import Choice, code_files
from uad.audit.crate_verify import unpack, verify
from uad.core.errors import DataError
from uad.core.provenance import SCRIPTS
from uad.core.records import Records

REAL, PHANTOM = Choice(phantom=False), Choice(phantom=True)


@pytest.fixture
def tree(tmp_path):
    """A tree of two scans: volumes, a picture, weights, metrics, a curve and a table.

    Its rules have names of their own: the audit computes nothing again.
    """
    tree = ResultTree(tmp_path / "results", tmp_path / "code")
    tree.write("repository:Snakefile", "rule all:\n")
    tree.write("repository:LICENSE", "MIT\n")
    tree.write("repository:results/README.md", "what each file is\n")
    tree.write("repository:workflow_scripts/write_table.py", "# writes a table\n")
    tree.write("repository:private/notes.txt", "not for others\n")
    tree.write("source.json", '{"source": "real"}\n')
    tree.write("raw/d/a.nii.gz", b"a raw")
    tree.write("raw/d/b.nii.gz", b"b raw")
    people = "subject\tmodality\timage\n" + "".join(
        f"{subject}\tT2\tresults/raw/d/{subject}.nii.gz\n" for subject in "ab"
    )
    tree.job("index_dataset", {"participants/d.tsv": people}, wildcards={"dataset": "d"})
    tree.job("save_config", {"config.resolved.yaml": "seed: 1\n"})
    scans = []
    for subject in "ab":
        stem = f"preprocessed/d/sub-{subject}/anat/sub-{subject}"
        outputs = {
            f"{stem}.nii.gz": subject.encode(),
            f"{stem}.json": "{}\n",
            f"preprocessed/d/sub-{subject}/figures/sub-{subject}.png": b"picture " + stem.encode(),
        }
        names = {"dataset": "d", "subject": subject, "suffix": "T2w"}
        tree.job("prepare_scan", outputs, [f"raw/d/{subject}.nii.gz"], wildcards=names)
        scans.append(f"{stem}.nii.gz")
    store = "slices/d_T2.safetensors"
    tree.job("pack_scans", {store: b"all"}, scans, wildcards={"dataset": "d", "modality": "T2"})
    weights = {"models/e/m/fold-0/model.safetensors": b"w", "models/e/m/fold-0/history.csv": "1\n"}
    tree.job("train", weights, [store], wildcards={"fold": "0"})
    metrics = "metrics/e/m/fold-0/d.tsv"
    tree.job("measure", {metrics: "subject\tdice\n"}, [store])
    tree.job("make_maps_figure", {"figures/brains.png": b"brains"}, [store])
    tree.job("make_curves_figure", {"figures/curve.png": b"a curve"}, [metrics])
    tree.job("make_report", {"report.html": "<p>page</p>"}, ["figures/brains.png"])
    page = '<img src="data:image/png;base64,AAAA">'
    tree.job("run_notebook", {"notebooks/results.html": page}, [metrics])
    tree.job("write_table", {"tables/t.csv": "row\n1\n"}, [metrics], wildcards={"table": "t"})
    return tree


def packed(tree, choice=REAL, name="crate.zip"):
    """Pack a tree; returns the zip file and the files by place."""
    out = tree.root / name
    files = pack(tree.root, out, choice, tree.repository, {})
    return out, {file.place: file for file in files}


def names(crate):
    """Places of the files in a crate."""
    with zipfile.ZipFile(crate) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def entities(crate):
    """The description's entities by id."""
    with zipfile.ZipFile(crate) as archive:
        graph = json.loads(archive.read("ro-crate-metadata.json"))["@graph"]
    return {entity["@id"]: entity for entity in graph}


def test_no_volume_no_weights_and_no_picture_of_a_scan_is_packed(tree):
    crate, files = packed(tree)
    left_out = {place: file.left_out for place, file in files.items() if file.left_out}
    assert left_out == {
        "results/raw/d/a.nii.gz": "medical image",
        "results/raw/d/b.nii.gz": "medical image",
        "results/preprocessed/d/sub-a/anat/sub-a.nii.gz": "medical image",
        "results/preprocessed/d/sub-b/anat/sub-b.nii.gz": "medical image",
        "results/preprocessed/d/sub-a/figures/sub-a.png": "shows medical images",
        "results/preprocessed/d/sub-b/figures/sub-b.png": "shows medical images",
        "results/slices/d_T2.safetensors": "medical image",
        "results/models/e/m/fold-0/model.safetensors": "weights of a model",
        "results/figures/brains.png": "shows medical images",
        "results/report.html": "shows medical images",
        "results/notebooks/results.html": "shows medical images",  # a bitmap, from wherever
    }
    assert not names(crate) & set(left_out)
    assert not [name for name in names(crate) if "/logs/" in name or "private" in name]
    # each is in the list all the same, with size and hash
    with zipfile.ZipFile(crate) as archive:
        rows = [line.split("\t") for line in archive.read("manifest.tsv").decode().splitlines()]
    place = "results/slices/d_T2.safetensors"
    assert [place, "3", files[place].sha256, "no", "medical image"] in rows
    described = entities(crate)["#results/report.html"]["description"]
    assert described == "Not included: shows medical images."
    tree.job("new_rule", {"new/thing.xyz": b"?"})  # of an unknown kind
    crate, files = packed(tree, PHANTOM)
    assert files["results/new/thing.xyz"].left_out == "medical image"
    assert files["results/slices/d_T2.safetensors"].left_out == "medical image"
    assert "results/figures/brains.png" in names(crate)  # a picture of nobody


def test_words_numbers_records_and_code_are_packed(tree):
    crate, _ = packed(tree)
    assert names(crate) >= {
        "ro-crate-metadata.json",
        "README.md",
        "manifest.tsv",
        "manifest.sha256",
        "code/Snakefile",
        "code/workflow_scripts/write_table.py",
        "results/README.md",
        "results/source.json",
        "results/config.resolved.yaml",
        "results/tables/t.csv",
        "results/tables/t.csv.prov.json",
        "results/metrics/e/m/fold-0/d.tsv",
        "results/figures/curve.png",
        "results/preprocessed/d/sub-a/anat/sub-a.json",
        "results/preprocessed/d/sub-a/anat/sub-a.nii.gz.prov.json",
    }


def git(tree, *arguments):
    """Run git in the repository of a tree."""
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tree.repository, *name, *arguments], check=True)


@pytest.fixture
def versioned(tree):
    """The tree, its code under version control."""
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "code")
    return tree


SCAN = b"\x1f\x8b\x08\x00 voxels"
DRAWN = '{"cells": [{"outputs": [{"data": {"image/png": "iVBORw0KGgo"}}]}]}'


@pytest.mark.parametrize("choice", [REAL, PHANTOM, Choice(phantom=False, images=True)])
def test_files_that_lie_untracked_beside_the_code_stay_out(versioned, choice):
    versioned.write("repository:tests/patient01.nii.gz", SCAN)
    versioned.write("repository:docs/patients.tsv", "name\nAda\n")
    versioned.write("repository:.gitignore", "secret*\n")
    versioned.write("repository:docs/secret.md", "x")
    crate, files = packed(versioned, choice)
    for place in ("docs/secret.md", "docs/patients.tsv", "tests/patient01.nii.gz"):
        assert f"code/{place}" not in {*files, *names(crate)}  # not even named
    assert {"code/Snakefile", "code/workflow_scripts/write_table.py"} <= names(crate)


def test_code_that_a_job_ran_is_packed_before_it_is_committed(versioned):
    versioned.write("repository:workflow_scripts/new_rule.py", "# new\n")
    versioned.write("repository:workflow_scripts/uad/core/files.py", "# of LIBRARY\n")
    versioned.write("repository:Snakefile", "rule all: # changed\n")
    versioned.job("new_rule", {"tables/new.csv": "1\n"})
    crate, _ = packed(versioned)
    assert {
        "code/workflow_scripts/new_rule.py",
        "code/workflow_scripts/uad/core/files.py",
    } <= names(crate)
    with zipfile.ZipFile(crate) as archive:
        assert b"changed" in archive.read("code/Snakefile")


@pytest.mark.parametrize("kind", ["tree", "versioned"])
def test_images_stay_out_of_the_code_too(request, kind):
    tree = request.getfixturevalue(kind)
    tree.write("repository:tests/patient01.nii.gz", SCAN)
    tree.write("repository:tests/patient02.nrrd", "NRRD0004\n1 2 3\n")
    tree.write("repository:docs/brain.png", b"\x89PNG\x00")
    tree.write("repository:docs/page.md", f"![](data:image/png;base64,{'A' * 60})")
    tree.write("repository:docs/plain.md", "how `data:image/` begins\n")
    tree.write("repository:notebooks/drawn.ipynb", DRAWN)
    tree.write("repository:notebooks/read.ipynb", DRAWN)
    tree.job("run_notebook", {"notebooks/read.tsv": "1\n"}, ["repository:notebooks/read.ipynb"])
    if kind == "versioned":
        git(tree, "add", ".")
    crate, files = packed(tree)
    left_out = {p: f.left_out for p, f in files.items() if p.startswith("code/") and f.left_out}
    assert left_out == {
        "code/tests/patient01.nii.gz": "medical image",
        "code/tests/patient02.nrrd": "medical image",
        "code/docs/brain.png": "shows medical images",
        "code/docs/page.md": "shows medical images",
        "code/notebooks/drawn.ipynb": "shows medical images",
        "code/notebooks/read.ipynb": "shows medical images",
    }
    assert not names(crate) & set(left_out) and "code/docs/plain.md" in names(crate)
    assert "code/docs/brain.png" in names(packed(tree, PHANTOM)[0])


def test_a_tree_that_lacks_a_file_is_refused(tree):
    tree.path("tables/t.csv").unlink()
    with pytest.raises(DataError, match=r"1 files are missing \(.*tables/t.csv\)"):
        packed(tree)
    assert not (tree.root / "crate.zip").exists()


def test_a_repository_that_git_cannot_read_is_refused(versioned):
    (versioned.repository / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(DataError, match="git does not say which files"):
        packed(versioned)


def test_the_code_of_this_repository_holds_no_image(root):
    records = Records(root, root, {}, {})
    assert not [file.place for file in code_files(records, REAL) if file.left_out]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tree: None, None),
        (lambda tree: tree.write("tables/t.csv", "row\n2\n"), "changed: Its content is not"),
        (lambda tree: Forge(tree.root).replace("tables/t.csv.prov.json", '"t"', '"u"'), "edited"),
    ],
)
def test_a_tree_that_is_not_as_recorded_fails_the_job(tree, monkeypatch, capfd, spoil, said):
    spoil(tree)
    params = dict(phantom=True, images=False, models=False, agent="", datasets={})
    job = SimpleNamespace(
        params=SimpleNamespace(**params, items=params.items),
        input=SimpleNamespace(config=str(tree.root / "config.resolved.yaml"), __iter__=iter),
        output=[str(tree.root / "crate.zip")],
        log=[],
        rule="pack_crate",
    )
    monkeypatch.setenv("UAD_REPOSITORY", str(tree.repository))
    monkeypatch.setattr("uad.core.provenance._record", lambda context: {})
    if said is None:
        runpy.run_path(str(SCRIPTS / "pack_crate.py"), {"snakemake": job})
        assert "crate.zip: packed and verified" in capfd.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / "pack_crate.py"), {"snakemake": job})
    assert ended.value.code == 1
    text = capfd.readouterr().err
    assert "ERROR in rule pack_crate" in text and "does not pass its own verification: " in text
    assert "results/tables/t.csv" in text and said in text


def test_images_and_weights_are_packed_if_asked_for_but_no_raw_data(tree):
    crate, files = packed(tree, Choice(phantom=False, images=True, models=True))
    left_out = {place: file.left_out for place, file in files.items() if file.left_out}
    assert left_out == {
        "results/raw/d/a.nii.gz": "raw data of their provider",
        "results/raw/d/b.nii.gz": "raw data of their provider",
    }
    assert "results/slices/d_T2.safetensors" in names(crate)


def test_the_same_tree_gives_the_same_bytes(tree):
    first = packed(tree)[0].read_bytes()
    tree.job("pack_crate", {"crate.zip": None}, ["config.resolved.yaml"])  # as the workflow does
    assert packed(tree)[0].read_bytes() == first


def test_workflow_steps_and_actions_are_described_by_rule(tree):
    crate, _ = packed(tree)
    found = entities(crate)
    workflow, action = found["code/Snakefile"], found["#jobs/write_table"]
    assert ROCrate(crate).mainEntity.id == "code/Snakefile"
    assert workflow["programmingLanguage"]["@id"].endswith("#snakemake")
    assert {"@id": "#step/write_table"} in workflow["step"]
    assert action["instrument"] == {"@id": "code/workflow_scripts/write_table.py"}
    assert action["object"] == {"@id": "#files/measure"}
    assert action["result"] == {"@id": "#files/write_table"}
    assert action["startTime"].endswith("+00:00") and action["endTime"] > action["startTime"]
    assert found["#jobs/prepare_scan"]["name"] == "prepare_scan: 2 jobs"
    assert {"@id": "results/tables/t.csv"} in found["#run"]["result"]


def issues(crate, cache):
    """What the validator finds, without network: the one file that it fetches is in its cache."""
    from requests.adapters import HTTPAdapter
    from requests_cache import CachedSession
    from rocrate_validator import models, services
    from urllib3 import HTTPResponse

    class Local(HTTPAdapter):
        def send(self, request, **_):
            body = (Path(__file__).parent / "tools/ro-crate-1.1-context.jsonld").open("rb")
            kind = {"Content-Type": "application/ld+json"}
            whole = HTTPResponse(body=body, status=200, headers=kind, preload_content=False)
            return self.build_response(request, whole)

    with CachedSession(str(cache), backend="sqlite", expire_after=-1) as session:
        session.mount("https://", Local())
        session.get("https://w3id.org/ro/crate/1.1/context")
    settings = services.ValidationSettings(
        rocrate_uri=str(crate),
        profile_identifier="provenance-run-crate",
        requirement_severity=models.Severity.REQUIRED,
        offline=True,
        cache_path=cache,
    )
    return [issue.message for issue in services.validate(settings).get_issues()]


@pytest.mark.slow
def test_it_is_a_valid_provenance_run_crate(tree, tmp_path):
    crate, _ = packed(tree)
    assert issues(crate, tmp_path / "http") == []
    unpack(crate, tmp_path / "spoilt")
    Forge(tmp_path / "spoilt").replace("ro-crate-metadata.json", '"mainEntity"', '"mentions2"')
    assert issues(tmp_path / "spoilt", tmp_path / "http")  # the validator would notice


def test_the_description_says_phantom_or_names_licences_and_nobody_unless_asked(tree):
    assert "agent" not in entities(packed(tree)[0])["#run"]
    assert "PHANTOM" in entities(packed(tree, PHANTOM)[0])["./"]["name"]
    crate = tree.root / "crate.zip"
    pack(tree.root, crate, REAL, tree.repository, {"d": "ixi"}, "Ada Lovelace")
    found = entities(crate)
    assert found[found["#run"]["agent"]["@id"]]["name"] == "Ada Lovelace"
    assert found["#raw/d"]["license"] == "CC BY-SA 3.0" and "PHANTOM" not in found["./"]["name"]


@pytest.fixture
def unpacked(tree, tmp_path):
    """Folder of an unpacked crate."""
    folder = tmp_path / "unpacked"
    assert unpack(packed(tree)[0], folder) == {}
    return folder


def test_changed_files_are_named_and_no_others(unpacked):
    assert verify(unpacked).failures == {}
    places = {"results/tables/t.csv", "results/metrics/e/m/fold-0/d.tsv", "code/Snakefile"}
    places |= {"README.md", "ro-crate-metadata.json", "manifest.tsv"}
    for place in places:
        Forge(unpacked).flip(place)
    found = verify(unpacked).failures
    assert places == {p for p, why in found.items() if "was changed since" in "; ".join(why)}


def test_missing_and_added_files_and_changed_checksums_are_named(unpacked):
    (unpacked / "results/tables/t.csv").unlink()
    (unpacked / "results/extra.txt").write_text("new")
    found = verify(unpacked).failures
    assert found["results/tables/t.csv"][0] == "is missing"
    assert "was added" in found["results/extra.txt"][0] and len(found) == 2
    Forge(unpacked).flip("manifest.sha256", place=3)
    assert "ro-crate-metadata.json" in verify(unpacked).failures
    Forge(unpacked).flip("manifest.sha256", place=64)
    assert "manifest.sha256" in verify(unpacked).failures


def test_a_damaged_zip_names_the_file(tree):
    crate, _ = packed(tree)
    content = bytearray(crate.read_bytes())
    with zipfile.ZipFile(crate) as archive:
        entry = archive.getinfo("results/metrics/e/m/fold-0/d.tsv")
    content[entry.header_offset + 30 + len(entry.filename) + 2] ^= 1
    crate.write_bytes(content)
    assert "cannot be unpacked" in verify(crate).failures[entry.filename][0]


def test_what_is_no_crate_is_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    for name, entry in {"evil.zip": "../outside.txt", "other.zip": "a.txt"}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(entry, "x")
    for name, said in {
        "none.zip": "no such crate",
        "text.zip": "no zip file",
        "other.zip": "no crate of this workflow",
        "evil.zip": "outside its folder",
    }.items():
        with pytest.raises(DataError, match=said):
            verify(tmp_path / name)
    assert not (tmp_path.parent / "outside.txt").exists()


def test_the_command_ends_with_a_sentence_not_a_traceback(tmp_path):
    done = uad("verify", tmp_path / "none.zip")
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR: ") and "no such crate" in done.stderr
