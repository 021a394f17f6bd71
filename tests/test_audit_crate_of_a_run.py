"""The crate of the end-to-end run: valid, verified from itself alone, without images."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tools.result_trees import Forge
from uad.audit.crate import about_run, pack
from uad.audit.crate_contents import Choice

pytestmark = pytest.mark.slow

CONTEXT = Path(__file__).parent / "tools" / "ro-crate-1.1-context.jsonld"
#: Its public address, and who may use it: everybody (CC0).
CONTEXT_URL = "https://w3id.org/ro/crate/1.1/context"
#: Nothing else is in a crate unless it is asked for. ``.mat``: twelve numbers of a transform.
SUFFIXES = {".json", ".tsv", ".csv", ".md", ".tex", ".yaml", ".txt", ".mat", ".rst"}
PICTURES = {".png", ".webp", ".html", ".svg", ".ipynb", ".js", ".css"}


@pytest.fixture(scope="module")
def crate(root, finished, tmp_path_factory):
    """The run's crate, packed as the workflow does."""
    out = tmp_path_factory.mktemp("crate") / "crate.zip"
    choice = Choice(phantom=True)
    pack(finished / "results", out, choice, about_run({}, choice), root)
    return out


@pytest.fixture
def unpacked(crate, tmp_path):
    """A copy to be spoilt."""
    with zipfile.ZipFile(crate) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def verify(root, crate, folder):
    """Run the command in a folder that holds no results."""
    command = [sys.executable, "-m", "uad", "verify", crate]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture
def cache(tmp_path):
    """A cache of the validator that holds the one file it would fetch."""
    from requests.adapters import HTTPAdapter
    from requests_cache import CachedSession
    from urllib3 import HTTPResponse

    class Local(HTTPAdapter):
        def send(self, request, **_):
            kind = {"Content-Type": "application/ld+json"}
            body = io.BytesIO(CONTEXT.read_bytes())
            whole = HTTPResponse(body=body, status=200, headers=kind, preload_content=False)
            return self.build_response(request, whole)

    session = CachedSession(str(tmp_path / "http"), backend="sqlite", expire_after=-1)
    session.mount("https://", Local())
    session.get(CONTEXT_URL)
    session.close()
    return tmp_path / "http"


def issues(crate, cache):
    """What the validator finds, without network."""
    from rocrate_validator import models, services

    result = services.validate(
        services.ValidationSettings(
            rocrate_uri=str(crate),
            profile_identifier="provenance-run-crate",
            requirement_severity=models.Severity.REQUIRED,
            offline=True,
            cache_path=cache,
        )
    )
    found = [issue.message for issue in result.get_issues()]
    assert result.passed() == (not found)
    return found


def test_the_crate_is_a_valid_provenance_run_crate(crate, cache):
    assert issues(crate, cache) == []


def test_the_validator_would_notice_a_crate_without_its_workflow(unpacked, cache):
    Forge(unpacked).replace("ro-crate-metadata.json", '"mainEntity"', '"mentions2"')
    assert issues(unpacked, cache)


def test_it_opens_with_the_library_and_the_workflow_is_its_main_entity(crate):
    from rocrate.rocrate import ROCrate

    opened = ROCrate(crate)
    assert opened.mainEntity.id == "code/Snakefile"
    assert "ComputationalWorkflow" in opened.mainEntity.type
    assert opened.name.startswith("PHANTOM")


def test_it_holds_neither_volumes_nor_weights(crate):
    with zipfile.ZipFile(crate) as archive:
        places = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
    of_results = {place.suffix for place in places if place.parts[0] == "results"}
    assert of_results <= SUFFIXES | PICTURES
    assert not {place for place in places if place.suffix in {".gz", ".nii", ".safetensors"}}


def test_every_record_and_every_table_is_in_it(crate, finished):
    with zipfile.ZipFile(crate) as archive:
        names = set(archive.namelist())
    results = finished / "results"
    wanted = [*results.rglob("*.prov.json"), *(results / "tables").iterdir()]
    own = {"results/crate.zip.prov.json"}
    assert {f"results/{path.relative_to(results).as_posix()}" for path in wanted} - own <= names


def test_it_is_verified_from_an_empty_folder(root, crate, tmp_path):
    done = verify(root, crate, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: the crate is as it was packed" in done.stdout


def test_a_changed_cell_is_named(root, unpacked, tmp_path):
    Forge(unpacked).replace("results/tables/table3.csv", *_other_mean(unpacked))
    done = verify(root, unpacked, tmp_path)
    assert done.returncode == 1
    assert "FAIL results/tables/table3.csv: was changed" in done.stdout
    assert "Cell thresh/intra_FLAIR/brats21/dice: mean is 12.3456" in done.stdout


def test_a_cell_that_was_forged_with_all_its_hashes_is_named(root, unpacked, tmp_path):
    Forge(unpacked / "results").replace("tables/table3.csv", *_other_mean(unpacked))
    Forge(unpacked / "results").rehash("tables/table3.csv")
    done = verify(root, unpacked, tmp_path)
    assert done.returncode == 1
    assert "Cell thresh/intra_FLAIR/brats21/dice: mean is 12.3456" in done.stdout


def _other_mean(unpacked):
    """A mean of the table as it stands there, and another one."""
    lines = (unpacked / "results/tables/table3.csv").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("thresh,intra_FLAIR,brats21,dice,"))
    parts = line.split(",")
    return line, ",".join([*parts[:4], "12.3456", *parts[5:]])


def test_packed_twice_it_is_the_same(root, crate, finished, tmp_path):
    choice = Choice(phantom=True)
    pack(finished / "results", tmp_path / "b.zip", choice, about_run({}, choice), root)
    assert (tmp_path / "b.zip").read_bytes() == crate.read_bytes()
