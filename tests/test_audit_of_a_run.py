"""The finished run: audited, its cells followed by hand, two runs side by side, its crate."""

import csv
import hashlib
import json
import statistics
import zipfile

import pytest

from tools.result_trees import Forge, uad
from tools.workflow import snakemake
from uad.audit.compare import compare
from uad.audit.crate import pack
from uad.audit.crate_contents import Choice
from uad.audit.trace import trace
from uad.audit.verdict import audit
from uad.core.records import load_records

pytestmark = pytest.mark.slow

METRICS = "results/metrics/intra_FLAIR/thresh/fold-0/brats21.tsv"


# Audit


@pytest.fixture
def results(copy_of):
    """Of a run that a test may spoil."""
    return copy_of / "results"


@pytest.fixture(scope="module")
def before(finished):
    """What fails in the run as it is: nothing, if repository and run belong together."""
    return failing(finished / "results")


def failing(results):
    return {finding.artifact for finding in audit(results).findings}


def test_an_untouched_run_passes_and_every_artifact_is_covered(finished):
    results = finished / "results"
    verdict = audit(results)
    assert not verdict.findings and not verdict.skipped and verdict.phantom
    assert verdict.coverage == 100 and verdict.count("total") == verdict.count("checked") > 200
    assert verdict.count("temporary") == 12
    # every file that is there is an artifact, a record, a log, a benchmark or the marker
    free = {"logs", "benchmarks", "audit", "source.json"}
    files = [p.relative_to(results) for p in results.rglob("*") if p.is_file()]
    files = [p for p in files if p.parts[0] not in free]
    repository = next(s for s in verdict.stages if s["name"] == "repository")["total"]
    assert verdict.count("total") == len(files) + repository


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_an_output_of_every_rule_that_is_changed_or_deleted_is_named(results, before, how):
    outputs = {r.rule: r.outputs for r in load_records(results).all.values()}
    keys = {files[-1 if how == "changed" else 0].key for files in outputs.values()}
    there = {key for key in keys if (results / key).exists()}  # others: deleted after use
    assert len(there) > 20
    for key in there:
        Forge(results).flip(key) if how == "changed" else (results / key).unlink()
    assert failing(results) - before == there


def test_the_files_of_a_deleted_record_of_every_rule_are_named(results, before):
    # in rounds of jobs that read nothing of each other: some files are known by their readers only
    rounds = []
    for record in {record.rule: record for record in load_records(results).all.values()}.values():
        read, made = ({entry.key for entry in side} for side in (record.inputs, record.outputs))
        fitting = [r for r in rounds if r["read"].isdisjoint(made) and r["made"].isdisjoint(read)]
        jobs = fitting[0] if fitting else {"read": set(), "made": set(), "records": []}
        rounds += [] if fitting else [jobs]
        jobs["read"] |= read
        jobs["made"] |= made
        jobs["records"].append(record.key)
    for jobs in rounds:
        # the first output, if it was deleted after use, is known by what was made from it
        wanted = {key for key in jobs["made"] if (results / key).exists()}
        wanted |= {key.removesuffix(".prov.json") for key in jobs["records"]}
        content = {key: (results / key).read_bytes() for key in jobs["records"]}
        for key in content:
            (results / key).unlink()
        assert failing(results) - before == wanted - before
        for key, text in content.items():
            (results / key).write_bytes(text)


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


#: A method with AIR, one without, and one without a network.
@pytest.mark.parametrize(
    ("row", "metric"), [("pddpm-iqa", "dice"), ("ddpm", "auprc"), ("thresh", "dice")]
)
def test_a_hand_arrives_at_the_same_number_and_files_with_the_same_hashes(finished, row, metric):
    lineage = trace(load_records(finished / "results"), table="table3", row=row, metric=metric)
    hand = ByHand(finished)
    computed = hand.cell(row, metric)
    assert lineage.problems == [] and lineage.value["phantom"]
    assert (lineage.value["mean"], lineage.value["std"]) == pytest.approx(computed, abs=1e-4)
    # what the table read for other rows, its significance and its footnotes, is not of this cell
    passed = {
        path: digest
        for path, digest in hand.found.items()
        if path.startswith("results/")
        and not path.startswith(("results/significance/", "results/readiness/"))
        and ("results/metrics/" not in path or f"/{row}/" in path)
    }
    # a hand does not meet the table itself
    ours = {f"results/{n.key}": n.sha256 for n in lineage.nodes if ":" not in n.key}
    del ours["results/tables/table3.csv"]
    assert ours == passed
    rules = {node.rule for node in lineage.nodes}
    assert None in rules and ("train_model" in rules) == (row != "thresh")


# Compare


def test_a_changed_config_value_is_named_where_it_is_read_first(root, finished, copy_of, config):
    snakemake(
        root, copy_of, "--configfile", config, "--rerun-triggers", "params", "mtime",
        "--config", "protocol={erosion: 2}", "--", METRICS, "results/config.resolved.yaml",
    )  # fmt: skip
    comparison = compare(finished / "results", copy_of / "results")
    (origin,) = comparison["origins"]
    assert origin["stage"] == "score_volumes" and comparison["phantom"]
    assert origin["keys"] == ["maps/intra_FLAIR/thresh/fold-0/brats21.safetensors"]
    assert origin["reason"] == "other params: postprocessing.erosion 1 → 2"
    assert "protocol.erosion 1 → 2" in comparison["config"]
    assert not comparison["cells"]  # the metrics were made anew, the tables were not


# Crate


@pytest.mark.parametrize("tampered", ["no", "a cell", "a cell, with all hashes made to fit"])
def test_a_crate_is_verified_from_an_empty_folder(root, finished, tmp_path, monkeypatch, tampered):
    """Down to the cell that its metrics do not give."""
    crate, choice = tmp_path / "crate.zip", Choice(phantom=True)
    pack(finished / "results", crate, choice, root, {})
    if tampered != "no":
        with zipfile.ZipFile(crate) as archive:
            archive.extractall(tmp_path / "unpacked")
        crate = tmp_path / "unpacked"
        lines = (crate / "results/tables/table3.csv").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("thresh,intra_FLAIR,brats21,dice,"))
        other = ",".join([*line.split(",")[:4], "12.3456", *line.split(",")[5:]])
        forge = Forge(crate / "results")
        forge.replace("tables/table3.csv", line, other)
        if "hashes" in tampered:
            forge.rehash("tables/table3.csv")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = uad("verify", crate)
    if tampered == "no":
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PASSED: the crate is as it was packed" in done.stdout
    else:
        assert done.returncode == 1
        assert "FAIL results/tables/table3.csv: was changed" in done.stdout
        assert "Cell thresh/intra_FLAIR/brats21/dice: mean is 12.3456" in done.stdout
