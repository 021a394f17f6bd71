"""The finished run: its cells followed by hand, two runs side by side, its crate."""

import csv
import hashlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pytest

from tools.result_trees import Forge
from tools.workflow import snakemake
from uad.audit.compare import compare
from uad.audit.crate import about_run, pack
from uad.audit.crate_contents import Choice
from uad.audit.trace import trace
from uad.core.files import read_json, read_tsv
from uad.core.records import load_records

pytestmark = pytest.mark.slow

METRICS = "results/metrics/intra_FLAIR/thresh/fold-0/brats21.tsv"
SCAN = "raw/brats21/BraTS2021_00004/BraTS2021_00004_flair.nii.gz"
WEIGHTS = "models/intra_FLAIR/ddpm/fold-0/model.safetensors"


def uad(*arguments, **options):
    """Run ``uad``."""
    command = [sys.executable, "-m", "uad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


# Trace


class ByHand:
    """Follows a cell with nothing of the library: records, tables and hashes are read here."""

    def __init__(self, folder):
        self.folder, self.found = folder, {}  # SHA-256 by path

    def rows(self, path):
        delimiter = "," if path.endswith(".csv") else "\t"
        with (self.folder / path).open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle, delimiter=delimiter))

    def inputs(self, path):
        """What a job read, by path; the hashes are kept, and those of files that are there made."""
        record = json.loads((self.folder / f"{path}.prov.json").read_text(encoding="utf-8"))
        entries = {e["path"]: e["sha256"] for e in record["inputs"]}
        for name, digest in entries.items():
            assert self.found.setdefault(name, digest) == digest, name
            if (self.folder / name).is_file():
                content = (self.folder / name).read_bytes()
                assert hashlib.sha256(content).hexdigest() == digest, name
            else:
                assert name.startswith(("results/maps/", "results/reconstructions/")), name
        return entries

    @staticmethod
    def one(paths, start):
        (path,) = [path for path in paths if path.startswith(f"results/{start}")]
        return path

    def cell(self, row, metric):
        """Follow a cell; returns its mean and standard deviation in percent."""
        table, values = self.inputs("results/tables/table3.csv"), []
        for fold in (0, 1):
            metrics = self.one(table, f"metrics/intra_FLAIR/{row}/fold-{fold}/brats21.tsv")
            lines = self.rows(metrics)
            values.append(100 * statistics.mean(float(line[metric]) for line in lines))
            self.fold(metrics)
        return statistics.mean(values), statistics.stdev(values)

    def fold(self, metrics):
        read = self.inputs(metrics)
        self.inputs(self.one(read, "thresholds/"))
        rebuilt = self.inputs(self.one(self.inputs(self.one(read, "maps/")), "reconstructions/"))
        split = self.one(rebuilt, "splits/")
        trained = [path for path in rebuilt if path.startswith("results/models/")]
        for path in (split, *trained, *(p for p in rebuilt if p.startswith("results/air/"))):
            self.inputs(path)
        # the thresholding method trains on nobody
        roles = {"val_unhealthy", "test"} | ({"train", "val_healthy"} if trained else set())
        wanted = {line["subject"] for line in self.rows(split) if line["role"] in roles}
        store = self.one(read, "slices/")
        packed = json.loads((self.folder / f"{store}.prov.json").read_text())["inputs"]
        for path, digest in ((entry["path"], entry["sha256"]) for entry in packed):
            parts = path.split("/")
            if parts[1] == "participants":
                self.inputs(path)
            elif parts[3].removeprefix("sub-") in wanted and path.endswith("_FLAIR.nii.gz"):
                self.found[path] = digest
                for name in self.inputs(path) if "desc-preproc" in path else ():
                    if "space-orig_label-brain" in name:
                        self.inputs(name)


def traced(folder, row, metric="dice"):
    return trace(load_records(folder / "results"), table="table3", row=row, metric=metric)


#: A method with AIR, one without, and one without a network.
@pytest.mark.parametrize(
    ("row", "metric"), [("pddpm-iqa", "dice"), ("ddpm", "auprc"), ("thresh", "dice")]
)
def test_a_hand_arrives_at_the_same_number_and_files_with_the_same_hashes(finished, row, metric):
    lineage, hand = traced(finished, row, metric), ByHand(finished)
    computed = hand.cell(row, metric)
    assert lineage.problems == [] and lineage.value.phantom
    assert (lineage.value.mean, lineage.value.std) == pytest.approx(computed, abs=1e-4)
    # what the table read for other rows, and its significance, is not of this cell
    passed = {
        path: digest
        for path, digest in hand.found.items()
        if path.startswith("results/")
        and not path.startswith("results/significance/")
        and ("results/metrics/" not in path or f"/{row}/" in path)
    }
    # a hand does not meet the table itself, nor outputs that nothing reads
    ours = {f"results/{n.key}": n.sha256 for n in lineage.nodes if ":" not in n.key}
    more = {path for path in ours if path.endswith((".mat", "tables/table3.csv"))}
    assert {path: digest for path, digest in ours.items() if path not in more} == passed
    raw = {f"results/{node.key}": node.sha256 for node in lineage.of("raw")}
    manifest = {
        f"results/raw/brats21/{line['path']}": line["sha256"]
        for line in hand.rows("results/raw/brats21.manifest.tsv")
    }
    assert raw and raw.items() <= manifest.items()
    assert bool(lineage.of("weights")) == (row != "thresh")


@pytest.mark.parametrize(
    "key", [WEIGHTS, "raw/brats21/BraTS2021_00004/BraTS2021_00004_flair.nii.gz"]
)
def test_a_changed_byte_is_marked_and_ends_the_command_with_1(copy_of, key):
    command = ("trace", "--results", copy_of / "results", "--table", "table3", "--row", "ddpm")
    Forge(copy_of / "results").flip(key)
    done = uad(*command)
    assert done.returncode == 1 and "1 problem:" in done.stdout
    written = copy_of / "results/audit/trace/table3_ddpm_intra_FLAIR_brats21_dice.json"
    (problem,) = read_json(written)["problems"]
    assert problem.startswith(f"{key}: the file's SHA-256 is")
    # another row does not know of these weights, and all know the raw scan
    assert bool(traced(copy_of, "pddpm-iqa").problems) == key.startswith("raw/")
    assert uad(*command, "--no-check").returncode == 0


# Compare


def again(root, folder, config, *arguments):
    """Run the workflow again in a finished folder, for what is older than its inputs."""
    return snakemake(root, folder, "--configfile", config, *arguments)


def test_a_run_and_its_copy_elsewhere_are_identical(finished, copy_of):
    shutil.rmtree(copy_of / "results" / "logs")
    comparison = compare(finished / "results", copy_of)
    assert comparison.verdict == "identical" and comparison.phantom
    assert len(comparison.results) > 150 and not comparison.cells and not comparison.setup


def test_a_changed_scan_is_named_with_the_cells_that_it_touches(root, finished, copy_of, config):
    split = read_tsv(finished / "results/splits/intra_FLAIR/fold-0.tsv")
    # of a validation subject: AIR is measured on it, and no network has to be trained for that
    subject = split.set_index("role")["subject"].loc[["val_unhealthy"]].iloc[0]
    name = subject.replace("BraTS2021", "BraTS2021_")
    scan = f"raw/brats21/{name}/{name}_flair.nii.gz"
    path = copy_of / "results" / scan
    image = nib.load(path)
    scaled = np.asarray(image.dataobj).copy()
    corner = scaled[24:32, 24:32, 14:20]
    scaled[24:32, 24:32, 14:20] = (corner * 1.2).astype(scaled.dtype)
    nib.save(nib.Nifti1Image(scaled, image.affine, image.header), path)
    again(root, copy_of, config, "--rerun-triggers", "mtime", "--", METRICS, "air")

    comparison = compare(finished / "results", copy_of / "results")
    (origin,) = comparison.origins
    assert comparison.verdict == "different" and origin.keys == (scan,)
    assert [reason.kind for reason in origin.reasons] == ["changed since"]
    # only this subject is another one, and then all that is made from all subjects
    of_scans = {f.key for f in comparison.results if f.differs and f.stage == "register_scan"}
    assert of_scans and all(f"sub-{subject}" in key for key in of_scans)
    assert "slices/brats21_FLAIR.safetensors" in {f.key for f in comparison.results if f.differs}
    air = [cell for cell in comparison.cells if cell.table == "tables/air.csv"]
    assert any(cell.metric == "mean_normal" and cell.difference for cell in air)
    # that table was not made again: its numbers are the same, but they rest on the scan
    cells = [cell for cell in comparison.cells if cell.table == "tables/table3.csv"]
    assert len({(cell.row, cell.metric) for cell in cells}) == 6
    assert not any(cell.differs for cell in cells)


def test_a_changed_config_value_is_named_where_it_is_read_first(root, finished, copy_of, config):
    again(
        root, copy_of, config, "--rerun-triggers", "params", "mtime",
        "--config", "protocol={erosion: 2}", "--", METRICS, "results/config.resolved.yaml",
    )  # fmt: skip
    comparison = compare(finished / "results", copy_of / "results")
    (origin,) = comparison.origins
    assert origin.stage == "score_volumes"
    assert origin.keys == ("maps/intra_FLAIR/thresh/fold-0/brats21.safetensors",)
    expected = "other params: postprocessing.erosion 1 → 2"
    assert [reason.text for reason in origin.reasons] == [expected]
    assert "protocol.erosion 1 → 2" in comparison.setup["config"]
    assert {c.row for c in comparison.cells if c.table == "tables/table3.csv"} == {"thresh"}


# Crate


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


@pytest.fixture
def cache(tmp_path):
    """A cache of the validator that holds the one file that it would fetch."""
    from requests.adapters import HTTPAdapter
    from requests_cache import CachedSession
    from urllib3 import HTTPResponse

    context = Path(__file__).parent / "tools" / "ro-crate-1.1-context.jsonld"

    class Local(HTTPAdapter):
        def send(self, request, **_):
            kind = {"Content-Type": "application/ld+json"}
            body = io.BytesIO(context.read_bytes())
            whole = HTTPResponse(body=body, status=200, headers=kind, preload_content=False)
            return self.build_response(request, whole)

    session = CachedSession(str(tmp_path / "http"), backend="sqlite", expire_after=-1)
    session.mount("https://", Local())
    session.get("https://w3id.org/ro/crate/1.1/context")
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


def test_the_crate_is_a_valid_provenance_run_crate(crate, unpacked, cache):
    assert issues(crate, cache) == []
    Forge(unpacked).replace("ro-crate-metadata.json", '"mainEntity"', '"mentions2"')
    assert issues(unpacked, cache)  # the validator would notice


def test_it_opens_with_the_library_and_the_workflow_is_its_main_entity(crate):
    from rocrate.rocrate import ROCrate

    opened = ROCrate(crate)
    assert opened.mainEntity.id == "code/Snakefile" and opened.name.startswith("PHANTOM")
    assert "ComputationalWorkflow" in opened.mainEntity.type


def test_it_holds_every_record_and_table_and_neither_volumes_nor_weights(crate, finished):
    with zipfile.ZipFile(crate) as archive:
        places = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
    allowed = {".json", ".tsv", ".csv", ".md", ".tex", ".yaml", ".txt", ".mat", ".rst"}
    pictures = {".png", ".webp", ".html", ".svg", ".ipynb", ".js", ".css"}
    of_results = {place.suffix for place in places if place.parts[0] == "results"}
    assert of_results <= allowed | pictures
    assert not {place for place in places if place.suffix in {".gz", ".nii", ".safetensors"}}
    results = finished / "results"
    wanted = [*results.rglob("*.prov.json"), *(results / "tables").iterdir()]
    wanted = {PurePosixPath("results", path.relative_to(results)) for path in wanted}
    assert wanted - {PurePosixPath("results/crate.zip.prov.json")} <= set(places)


def test_packed_twice_it_is_the_same(root, crate, finished, tmp_path):
    choice = Choice(phantom=True)
    pack(finished / "results", tmp_path / "b.zip", choice, about_run({}, choice), root)
    assert (tmp_path / "b.zip").read_bytes() == crate.read_bytes()


def test_it_is_verified_from_an_empty_folder(crate, tmp_path):
    done = uad("verify", crate, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: the crate is as it was packed" in done.stdout


@pytest.mark.parametrize("forged", [False, True])
def test_a_changed_cell_is_named(unpacked, tmp_path, forged):
    """Also with all its hashes made to fit."""
    lines = (unpacked / "results/tables/table3.csv").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("thresh,intra_FLAIR,brats21,dice,"))
    parts = line.split(",")
    other = ",".join([*parts[:4], "12.3456", *parts[5:]])
    forge = Forge(unpacked / "results")
    forge.replace("tables/table3.csv", line, other)
    if forged:
        forge.rehash("tables/table3.csv")
    done = uad("verify", unpacked, cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL results/tables/table3.csv: was changed" in done.stdout
    assert "Cell thresh/intra_FLAIR/brats21/dice: mean is 12.3456" in done.stdout
