"""Three cells of the finished run, traced and then followed by hand to the same raw files."""

import csv
import hashlib
import json
import statistics
import subprocess
import sys

import pytest

from uad.audit.trace import trace
from uad.core.files import read_json
from uad.core.records import load_records

pytestmark = pytest.mark.slow

#: A method with AIR, one without, and one without a network.
CELLS = [("pddpm-iqa", "dice"), ("ddpm", "auprc"), ("thresh", "dice")]


def traced(folder, row, metric="dice", **options):
    return trace(
        load_records(folder / "results"), table="table3", row=row, metric=metric, **options
    )


class ByHand:
    """Follows a cell with nothing of the library: records, tables and hashes are read here."""

    def __init__(self, folder):
        self.folder = folder
        self.found = {}  # path: SHA-256

    def record(self, path):
        return json.loads((self.folder / f"{path}.prov.json").read_text(encoding="utf-8"))

    def rows(self, path, delimiter="\t"):
        with (self.folder / path).open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle, delimiter=delimiter))

    def inputs(self, path):
        """What a job read, by path; the hashes are kept, and those of files that are there made."""
        entries = {e["path"]: e["sha256"] for e in self.record(path)["inputs"]}
        for name, digest in entries.items():
            assert self.found.setdefault(name, digest) == digest, name
            file = self.folder / name
            if file.is_file():
                assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, name
            else:
                assert name.startswith(("results/maps/", "results/reconstructions/")), name
        return list(entries)

    def one(self, paths, start):
        (path,) = [path for path in paths if path.startswith(f"results/{start}")]
        return path

    def cell(self, row, metric):
        """Follow a cell; returns its mean and standard deviation in percent."""
        table = self.inputs("results/tables/table3.csv")
        values = []
        for fold in (0, 1):
            metrics = self.one(table, f"metrics/intra_FLAIR/{row}/fold-{fold}/brats21.tsv")
            lines = self.rows(metrics)
            values.append(100 * statistics.mean(float(line[metric]) for line in lines))
            self.fold(metrics)
        return statistics.mean(values), statistics.stdev(values)

    def fold(self, metrics):
        read = self.inputs(metrics)
        maps, store = self.one(read, "maps/"), self.one(read, "slices/")
        self.inputs(self.one(read, "thresholds/"))
        scored = self.inputs(maps)
        rebuilt = self.inputs(self.one(scored, "reconstructions/"))
        split = self.one(rebuilt, "splits/")
        self.inputs(split)
        for weights in (path for path in rebuilt if path.startswith("results/models/")):
            self.inputs(weights)
        for air in (path for path in rebuilt if path.startswith("results/air/")):
            self.inputs(air)
        # the thresholding method trains on nobody
        trained = any(path.startswith("results/models/") for path in rebuilt)
        roles = {"val_unhealthy", "test"} | ({"train", "val_healthy"} if trained else set())
        wanted = {line["subject"] for line in self.rows(split) if line["role"] in roles}
        self.scans(store, wanted)

    def scans(self, store, wanted):
        packed = {e["path"]: e["sha256"] for e in self.record(store)["inputs"]}
        for path in packed:
            folder = path.split("/")
            if folder[1] == "participants":
                self.inputs(path)
            elif folder[3].removeprefix("sub-") in wanted and path.endswith("_FLAIR.nii.gz"):
                self.found[path] = packed[path]
                if "desc-preproc" in path:
                    for name in self.inputs(path):
                        if "space-orig_label-brain" in name:
                            self.inputs(name)

    def raw(self):
        return {k: v for k, v in self.found.items() if "/raw/" in k and k.endswith(".nii.gz")}


@pytest.fixture(params=CELLS, ids=lambda cell: "-".join(cell))
def both(request, finished):
    row, metric = request.param
    hand = ByHand(finished)
    return traced(finished, row, metric), hand, hand.cell(row, metric)


def test_the_number_is_the_one_that_a_hand_computes(both):
    lineage, _, (mean, std) = both
    assert lineage.problems == [] and lineage.value.phantom
    assert (lineage.value.mean, lineage.value.std) == pytest.approx((mean, std), abs=1e-4)


def test_a_hand_arrives_at_the_same_raw_files_with_the_same_hashes(both):
    lineage, hand, _ = both
    found = {f"results/{node.key}": node.sha256 for node in lineage.of("raw")}
    assert found == hand.raw() and found
    manifest = {
        f"results/raw/brats21/{row['path']}": row["sha256"]
        for row in hand.rows("results/raw/brats21.manifest.tsv")
    }
    assert found.items() <= manifest.items()


def test_a_hand_passes_the_same_files_on_the_way(both):
    lineage, hand, _ = both
    ours = {f"results/{n.key}": n.sha256 for n in lineage.nodes if ":" not in n.key}
    # what the table read for other rows, and its significance, is not of this cell
    passed = {
        path: digest
        for path, digest in hand.found.items()
        if path.startswith("results/")
        and not path.startswith("results/significance/")
        and ("results/metrics/" not in path or f"/{lineage.cell.row}/" in path)
    }
    # a hand does not meet the table itself, nor outputs that nothing reads
    more = {path for path in ours if path.endswith((".mat", "tables/table3.csv"))}
    assert {k: v for k, v in ours.items() if k not in more} == passed


def test_the_thresholding_method_depends_on_nobody_that_others_train_on(finished):
    some, everybody = traced(finished, "thresh"), traced(finished, "ddpm")
    assert len(some.of("weights")) == 0 and len(everybody.of("weights")) == 2
    assert {n.key for n in some.of("raw")} < {n.key for n in everybody.of("raw")}


def command(root, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "uad", "trace"]
        + ["--results", folder / "results", "--table", "table3", "--row", "ddpm", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "key",
    [
        "models/intra_FLAIR/ddpm/fold-0/model.safetensors",
        "raw/brats21/BraTS2021_00004/BraTS2021_00004_flair.nii.gz",
    ],
)
def test_a_changed_byte_is_marked_and_ends_the_command_with_1(root, copy_of, key):
    assert command(root, copy_of).returncode == 0
    path = copy_of / "results" / key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = command(root, copy_of)
    assert done.returncode == 1 and "1 problem:" in done.stdout
    written = copy_of / "results/audit/trace/table3_ddpm_intra_FLAIR_brats21_dice.json"
    (problem,) = read_json(written)["problems"]
    assert problem.startswith(f"{key}: the file's SHA-256 is")
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    # another row does not know of these weights, and all know the raw scan
    other = traced(copy_of, "pddpm-iqa").problems
    assert bool(other) == key.startswith("raw/")


def test_the_records_alone_are_compared_where_nothing_is_to_be_hashed(root, copy_of):
    (copy_of / "results/models/intra_FLAIR/ddpm/fold-0/model.safetensors").write_bytes(b"")
    assert command(root, copy_of, "--no-check").returncode == 0
