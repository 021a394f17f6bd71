"""Plan before you spend: Snakemake's jobs, known costs, and nothing touched or locked."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

import uad.cost
from tools.workflow import SMALL_SPLITS, forked, job_counts, snakemake
from uad import methods as method_registry
from uad.config import load, load_files
from uad.core.errors import DataError
from uad.core.files import write_json
from uad.methods.base import Setup
from uad.run.dry_run import Job, parse, refusal, scheduler_of
from uad.run.estimates import Estimator, finished_jobs, load_costs
from uad.run.plan import make_plan, render

DRY_RUN = """\
Building DAG of jobs...
Job stats:
job                count
---------------  -------
skullstrip_scan        1
index_dataset          1
paper                  1
total                  3


[Sun Nov 22 08:19:57 2026]
localcheckpoint index_dataset:
    input: results/raw/ixi.manifest.tsv
    output: results/participants/ixi.tsv
    jobid: 851
    reason: Missing output files: results/participants/ixi.tsv
    wildcards: dataset=ixi
    resources: tmpdir=/tmp
DAG of jobs will be updated after completion.

[Sun Nov 22 08:19:57 2026]
rule skullstrip_scan:
    input: raw/a.nii.gz, results/atlas/head.nii.gz
    output: results/preprocessed/ixi/sub-A/anat/sub-A_space-orig_label-brain_desc-mask_T2w.nii.gz
    wildcards: dataset=ixi, subject=A, suffix=T2w
    threads: 3
    resources: tmpdir=/tmp, gpu=1, mem_mb=6000
[Sun Nov 22 08:19:57 2026]
rule paper:
    input: results/tables/table1.csv
    jobid: 0
    resources: tmpdir=/tmp
Job stats:
job                count
---------------  -------
skullstrip_scan        1
index_dataset          1
paper                  1
total                  3
"""


def table(names, modalities):
    """A participants table of these subjects."""
    rows = [
        {"subject": n, "name": n, "site": "", "modality": m, "image": f"{n}_{m}", "lesion": ""}
        for n in names
        for m in modalities
    ]
    return pd.DataFrame(rows)


#: Participants tables as large as the public data sets.
FULL = {
    "ixi": table([f"i{i:04d}" for i in range(577)], ["T1", "T2"]),
    "brats21": table([f"b{i:04d}" for i in range(1251)], ["T1", "T1CE", "T2", "FLAIR"]),
    "mslub": table([f"m{i:04d}" for i in range(30)], ["T1", "T2", "FLAIR"]),
}


@pytest.fixture
def estimate(content):
    """An estimator for the full data sets; what a test changes in ``content`` counts."""
    return lambda finished=(), tflops=None: Estimator(load(content), FULL, finished, tflops)


def training(method, experiment="cross_T2", gpus=1):
    wildcards = {"experiment": experiment, "method": method, "fold": "0"}
    return Job("train_model", wildcards, gpus=gpus)


def reconstruction(method, test="mslub", gpus=1):
    wildcards = {"experiment": "cross_T2", "method": method, "fold": "0", "test": test}
    return Job("reconstruct_volumes", wildcards, gpus=gpus)


class TestADryRun:
    def test_is_read_job_by_job_without_the_targets(self):
        (index, strip), submissions = parse(DRY_RUN)
        assert (index.rule, index.wildcards, index.gpus) == ("index_dataset", {"dataset": "ixi"}, 0)
        assert (strip.threads, strip.gpus, len(strip.inputs)) == (3, 1, 2)
        assert strip.wildcards == {"dataset": "ixi", "subject": "A", "suffix": "T2w"}
        assert submissions == 1  # the index is local
        assert parse("Building DAG of jobs...\nNothing to be done.\n") == ([], 0)

    def test_counts_a_group_as_one_submission(self):
        start = DRY_RUN.index("rule skullstrip_scan:")
        end = DRY_RUN.index("[Sun", start)
        member = "".join(f"    {line}\n" for line in DRY_RUN[start:end].splitlines())
        header = "[Sun Nov 22 08:19:57 2026] Group job skullstrip (jobs in lexicogr. order):\n\n"
        output = DRY_RUN[:start] + header + member + "\n" + member + DRY_RUN[end:]
        jobs, submissions = parse(re.sub("(total +)3", r"\g<1>4", output))
        assert jobs == [*parse(DRY_RUN)[0], jobs[-1]] and submissions == 1

    def test_that_is_not_understood_is_no_plan(self):
        with pytest.raises(ValueError, match="2 jobs read, but Snakemake counts"):
            parse(DRY_RUN.replace("rule skullstrip_scan:", "RULE skullstrip_scan:"))

    def test_that_snakemake_refuses_is_its_own_message_and_short(self):
        output = "Using profile x\nBuilding DAG\nMissingRuleException:\nNo rule to produce tabel1\n"
        output += "Using workflow specific profile y\n"
        assert refusal(output) == "MissingRuleException:\nNo rule to produce tabel1"
        assert len(refusal("x\n" * 100).splitlines()) <= 24


class TestStoredCosts:
    def test_every_rule_has_one_that_says_what_was_measured_where_and_when(self, root):
        text = "".join(path.read_text() for path in root.glob("rules/*.smk"))
        head = r"(?:rule|checkpoint|use rule \w+ as) (\w+)(?: with)?:"
        rules = re.findall(rf"^{head}\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
        with_work = {name for name, body in rules if "output:" in body}
        costs = load_costs()
        assert {cost["rule"] for cost in costs["costs"]} == with_work
        known = set("rule kind job unit seconds tflop measured how machine date".split())
        for cost in costs["costs"]:
            assert cost["how"] and cost["job"] >= 0 and set(cost) <= known
            assert ("unit" in cost) == ("seconds" in cost or "tflop" in cost)
            if cost["measured"]:
                assert cost["machine"] in costs["machines"] and "tflop" not in cost
                assert re.fullmatch(r"\d{4}-\d\d-\d\d", cost["date"])
        assert costs["rates"]["gpu"]["how"].startswith("assumed")  # none was measured

    def test_every_model_of_the_paper_is_known(self, estimate):
        estimator = estimate()
        found = {name: estimator.seconds(training(name)) for name in estimator.cfg.methods}
        assert {source for _, source in found.values()} == {"derived"}
        assert found["pddpm"][0] == pytest.approx(found["ddpm"][0], rel=0.01)
        assert found["pddpm"][0] > 30 * found["ae"][0]
        # four patches, each in a pass of its own
        one, four = (estimator.seconds(reconstruction(name))[0] for name in ("ddpm", "pddpm"))
        assert 3 < four / one < 4

    @pytest.mark.parametrize(
        "number", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4))]
    )
    def test_operations_are_those_that_are_counted(self, number, monkeypatch):
        monkeypatch.setattr(uad.cost, "RUNS", 1)
        network = load_costs()["networks"][number]
        family = method_registry.load(network["family"])
        loss = next(iter(family.losses or ()), "l1")
        method = family(network["options"], Setup(loss=loss, image_size=(96, 96)))
        found = uad.cost.measure(
            method, (96, 96, 1), batch_size=1, inference_batch=1, t_test=1, precision="32-true",
            device="cpu",
        )  # fmt: skip
        counted = found["gflops_per_slice_training"] * method.sequence
        assert counted == pytest.approx(network["training"], rel=1e-4)
        inference = found["gflops_per_slice_inference"] / method.sequence
        assert inference == pytest.approx(network["inference"], rel=1e-4)


class TestWork:
    def test_the_paper_trains_as_many_steps_as_published(self, estimate):
        # FACTS: 23 steps per epoch on BraTS, 36.8 thousand in all
        units = estimate().units
        assert units(training("pddpm", "intra_FLAIR")) == {"step": 23 * 1600}
        assert units(training("pddpm")) == {"step": (577 - 44 - 158) // 32 * 1600}
        # mDDPM sees every subject six times an epoch
        assert units(training("mddpm")) == {"step": (577 - 44 - 158) * 6 // 32 * 1600}

    def test_volumes_are_those_of_the_splits(self, estimate):
        volumes = estimate().volumes
        assert volumes("cross_T2", ["val_unhealthy", "test"], "brats21") == 1251
        assert volumes("cross_T2", ["test"], "mslub") == 20
        assert volumes("intra_FLAIR", ["val_unhealthy", "test"]) == 125 + 251

    def test_a_job_of_several_scans_costs_as_many(self, estimate):
        job = Job("predict_brain_masks", {"dataset": "ixi"}, ("a.nii.gz", "b.nii.gz"), gpus=1)
        units = estimate().units(job)
        assert units["scan"] == 2 and units["pass"] == 2 * 40  # five networks, eight orientations

    def test_a_network_costs_where_it_runs(self, content, estimate):
        """In the job of a scan only where masks are not predicted in batches."""
        job = Job("skullstrip_scan", {"dataset": "ixi", "subject": "A", "suffix": "T2w"})
        assert estimate().seconds(job)[0] < 10
        content["preprocessing"]["skullstrip"]["device"] = "cpu"
        seconds, source = estimate().seconds(job)
        assert source == "measured" and seconds > 40 * 20

    def test_reconstructions_are_temporary_unless_they_are_kept(self, content, estimate):
        size = 30 * 96 * 96 * 50 * 2
        assert estimate().bytes(reconstruction("ae")) == (0, size)
        content["run"]["keep_reconstructions"] = True
        assert estimate().bytes(reconstruction("ae")) == (size, 0)


class TestSeconds:
    def test_of_a_gpu_are_derived_and_scale_with_its_rate(self, estimate):
        slow, source = estimate(tflops=5).seconds(training("pddpm"))
        fast = estimate(tflops=50).seconds(training("pddpm"))[0]
        assert source == "derived" and 5 < slow / fast < 10
        assert slow == pytest.approx(17600 * 32 * 0.447353 / 5, rel=0.02)

    def test_without_a_gpu_are_those_of_the_cpu_and_threads_help(self, estimate):
        one = estimate().seconds(training("ddpm", gpus=0))[0]
        assert one > 10 * 24 * 3600
        assert estimate().seconds(training("ddpm", gpus=0)._replace(threads=8))[0] < one / 4

    def test_of_an_unknown_rule_or_network_are_none(self, content, estimate):
        content["models"]["ae"]["options"] = {"channels": [16, 32, 32], "latent": 32}
        assert estimate().seconds(Job("new_rule")) == (0, "unknown")
        assert estimate().seconds(training("ae")) == (0, "unknown")
        assert estimate().seconds(training("vae"))[1] == "derived"  # the same family
        finished = [(training("ae"), 600.0)]
        assert estimate(finished).seconds(training("ae")) == (600, "finished jobs")

    def test_are_the_mean_of_finished_jobs_of_a_kind_scaled_by_the_work(self, estimate):
        other = training("ae", "an_experiment_of_another_config")
        finished = [(training("pddpm"), 7200.0), (training("pddpm-iqa"), 3600.0), (other, 1.0)]
        estimator, plain = estimate(finished), estimate()
        assert estimator.seconds(training("pddpm")) == (pytest.approx(5400), "finished jobs")
        longer = estimator.seconds(training("pddpm", "intra_FLAIR"))[0]
        assert longer == pytest.approx(5400 * 23 / 11, rel=0.01)
        assert estimator.seconds(training("ddpm")) == plain.seconds(training("ddpm"))
        assert estimator.seconds(training("ae")) == plain.seconds(training("ae"))

    @pytest.mark.parametrize(
        "change", [{"facts": {"resumed": True}}, {"facts": None}, {"seconds": None}]
    )
    def test_of_resumed_trainings_and_damaged_records_are_left_out(self, tmp_path, change):
        record = {"rule": "r", "wildcards": {"a": "b"}, "inputs": [{"path": "in"}]}
        record |= {"facts": {"resumed": False}, "seconds": 7}
        write_json(tmp_path / "a.prov.json", record)
        write_json(tmp_path / "b.prov.json", record | change)
        (tmp_path / "c.prov.json").write_text("[")
        assert finished_jobs(tmp_path) == [(Job("r", {"a": "b"}, ("in",)), 7.0)]


def row(rule, to_do, done, core_hours, gpu_hours, sources):
    hours = {"core_hours": core_hours, "gpu_hours": gpu_hours}
    return {"rule": rule, "to_do": to_do, "done": done, **hours, "sources": sources}


def printed(*rows, **changes):
    sums = {name: sum(r[name] for r in rows) for name in rows[0] if name not in ("rule", "sources")}
    sums["sources"] = sum((Counter(r["sources"]) for r in rows), Counter())
    plan = {
        "targets": ["paper"], "rows": list(rows), "totals": sums, "tflops": 10, "bytes_kept": 5e9,
        "bytes_peak": 6e9, "bytes_free": 1e12, "bytes_raw": {}, "scheduler": None,
        "submissions": 0, "notes": [],
    }  # fmt: skip
    return render(plan | changes)


class TestInPrint:
    def test_each_rule_says_where_its_hours_are_from(self):
        rows = (
            row("train_model", 5, 2, 10, 10, {"derived": 5}),
            row("score_volumes", 1, 0, 3, 0, {"measured": 1}),
        )
        text = printed(*rows, notes=["ixi is not there."])
        assert re.search(r"^train_model +5 +2 +10\.0 +10\.0 +derived$", text, re.M)
        assert re.search(r"^total +6 +2 +13\.0 +10\.0 *$", text, re.M)
        assert "derived: not measured" in text and "10 TFLOP/s" in text
        assert "ixi is not there." in text and "5.0 GB kept, at most 6.0 GB at peak" in text
        assert "raw data" not in text and "Submissions" not in text and "Not in the" not in text

    def test_what_is_not_in_the_figures_is_said(self):
        raw = {"ixi": 8_700_000_000, "mslub": None}
        unknown = row("train_model", 5, 0, 0, 0, {"unknown": 5})
        text = printed(unknown, bytes_raw=raw, scheduler="slurm", submissions=7)
        assert "Not in the hours: 5 jobs" in text and re.search(r"^  unknown: no cost", text, re.M)
        assert "not there yet: ixi 8.7 GB, mslub unknown, not included." in text
        assert "Submissions to slurm: 7." in text

    def test_a_finished_target_says_so(self):
        text = printed(row("make_table", 0, 1, 0, 0, {}))
        assert "Nothing is to do." in text and "derived" not in text


@pytest.fixture(scope="module")
def plan(root):
    """Plans a target; dry runs start with Snakemake loaded."""

    def run(command, env, **_):
        assert command[:3] == [sys.executable, "-m", "snakemake"]
        return forked(command[3:], environment=env)

    def plan(overlay, directory, target="table3", profile=None):
        cfg = load_files([root / "config.yaml", overlay])
        with contextlib.chdir(directory):
            return make_plan(cfg, [target], [overlay], profile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uad.run.dry_run.subprocess", SimpleNamespace(run=run))
        yield plan


def to_do(plan):
    """Jobs that are to do, by rule."""
    return {row["rule"]: row["to_do"] for row in plan["rows"] if row["to_do"]}


def files_of(folder):
    """All files of a folder with their times and sizes, but for what Snakemake keeps for itself."""
    files = [p for p in Path(folder).rglob("*") if ".snakemake" not in p.parts]
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in files}


@pytest.fixture
def overlay(tmp_path_factory):
    """Data sets of a few subjects that nobody has."""
    sizes = {"ixi": 12, "brats21": 10, "mslub": 4}
    content = {"datasets": {name: {"expected": size} for name, size in sizes.items()}}
    path = tmp_path_factory.mktemp("overlay") / "small.yaml"
    path.write_text(yaml.safe_dump(content | SMALL_SPLITS))
    return path


def test_data_that_are_not_there_are_stood_in_for(plan, tmp_path, overlay):
    content = yaml.safe_load(overlay.read_text())
    content["datasets"]["brats21"]["path"] = str(tmp_path / "nowhere/brats")
    content["datasets"]["ixi"]["source"] = "download"
    content["results"] = str(tmp_path / "results")
    overlay.write_text(yaml.safe_dump(content))
    found = plan(overlay, tmp_path, "table1")
    counts, rows = to_do(found), {row["rule"]: row for row in found["rows"]}
    assert counts["register_scan"] == 12 + 10 + 4 and counts["train_model"] == 9 * 5
    assert counts["index_dataset"] == counts["validate_dataset"] == 3
    assert counts["pack_slices"] == 3 and counts["download_dataset"] == 1
    assert any("brats21 is not there: planned with the 10 subjects" in n for n in found["notes"])
    assert rows["train_model"]["sources"] == {"derived": 9 * 5}
    assert rows["train_model"]["gpu_hours"] > 0
    # archives and images; what a person has to get
    raw = {"ixi": 2 * (4840816640 + 3853445120), "brats21": 13e9, "mslub": None}
    assert found["bytes_raw"] == raw and found["bytes_peak"] > found["bytes_kept"] > 17e9 + 13e9
    assert not files_of(tmp_path)  # nothing was left behind


@pytest.fixture(scope="module")
def reviewed(plan, root, indexed, tmp_path_factory):
    """The plan for a cluster of indexed data, after a review of the scans."""
    folder = tmp_path_factory.mktemp("reviewed")
    shutil.copytree(indexed, folder, dirs_exist_ok=True)
    head = "dataset\tsubject\tmodality\tverdict\treason\n"
    whole = "brats21\tBraTS2021_00003\t\texclude\tmotion\n"
    single = "brats21\tBraTS202100004\tFLAIR\texclude\tcut\n"
    (folder / "qc_decisions.tsv").write_text(head + whole + single)
    before = files_of(folder)
    found = plan(folder / "small.yaml", folder, profile=root / "profiles/slurm")
    assert files_of(folder) == before
    return found


def test_data_that_are_there_are_counted_without_whom_a_reviewer_excluded(reviewed):
    jobs = to_do(reviewed)
    assert (jobs["skullstrip_scan"], jobs["pack_slices"]) == (8, 1) and not reviewed["notes"]


def test_on_a_cluster_the_submissions_are_counted(reviewed, root):
    jobs, submissions = to_do(reviewed), reviewed["submissions"]
    assert reviewed["scheduler"] == "slurm" and scheduler_of(root / "profiles/default") is None
    # scans come in groups, and score, threshold and metrics of a cell are one
    assert jobs["train_model"] + jobs["score_volumes"] < submissions
    assert submissions < sum(jobs.values()) - 2 * jobs["score_volumes"]
    with pytest.raises(DataError, match=r"sulrm: there is no .*profile\.yaml"):
        scheduler_of(root / "profiles/sulrm")


def test_data_of_unknown_size_are_asked_for(plan, tmp_path, overlay):
    content = yaml.safe_load(overlay.read_text())
    own = {"image": "{subject}_{modality}.nii.gz", "modalities": {"T1": "t1", "T2": "t2"}}
    own["healthy"] = True
    content["datasets"]["ixi"] = {"layout": own, "path": "data/mine", "expected": None}
    overlay.write_text(yaml.safe_dump(content))
    message = r"ixi: no folder 'data/mine'.*set datasets\.ixi\.expected"
    with pytest.raises(DataError, match=message):
        plan(overlay, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{}/out", "../out"], ids=["absolute", "relative"])
def test_results_outside_the_directory_are_seen_and_left_as_they_are(root, plan, stand_ins, place):
    work = stand_ins / "work"
    work.mkdir()
    (stand_ins / "data").rename(work / "data")
    overlay = stand_ins / "small.yaml"
    overlay.write_text(yaml.safe_dump(SMALL_SPLITS | {"results": place.format(stand_ins)}))
    snakemake(root, work, "index", "--configfile", overlay)
    before = files_of(stand_ins)
    found = plan(overlay, work)
    assert files_of(stand_ins) == before
    counts = job_counts(snakemake(root, work, "-n", "table3", "--configfile", overlay))
    assert found["totals"]["to_do"] == counts["total"] - counts["table3"]


def show_plan(folder, *arguments):
    command = [sys.executable, "-m", "uad", "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_an_unknown_target_is_snakemakes_own_message(stand_ins):
    done = show_plan(stand_ins, "tabel3", "--overlay", stand_ins / "small.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("ERROR: ") and "tabel3" in done.stderr
    assert len(done.stderr.splitlines()) < 10


@pytest.mark.slow
def test_the_smallest_run_is_planned_in_print_and_as_json(config, tmp_path):
    done = show_plan(tmp_path, "paper", "--overlay", config, "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "p.json").read_text())
    counts = {row["rule"]: row["to_do"] for row in content["rows"]}
    assert counts["make_phantom"] == counts["index_dataset"] == 1
    assert (counts["skullstrip_scan"], counts["train_model"]) == (8, 4)
    assert content["totals"]["gpu_hours"] == 0 < content["totals"]["core_hours"] < 1
    assert re.search(r"^total +\d+ +0 ", done.stdout, re.M)


@pytest.mark.slow
def test_what_is_done_is_counted_and_times_the_rest(root, plan, config, tmp_path):
    first = "results/slices/brats21_FLAIR.safetensors"
    snakemake(root, tmp_path, first, "--configfile", config)
    before = files_of(tmp_path)
    rows = {row["rule"]: (row["to_do"], row["done"]) for row in plan(config, tmp_path)["rows"]}
    assert rows["register_scan"] == rows["skullstrip_scan"] == (0, 8)
    assert rows["pack_slices"] == (0, 1) and rows["train_model"] == (4, 0)
    counts = job_counts(snakemake(root, tmp_path, "-n", "table3", "--configfile", config))
    assert sum(row[0] for row in rows.values()) == counts["total"] - counts["table3"]
    # one derivative is lost: its job comes back, and the others say how long it takes
    lost = next((tmp_path / "results/preprocessed").rglob("*space-SRI24*preproc*.nii.gz"))
    lost.unlink()
    (tmp_path / first).unlink()
    found = plan(config, tmp_path, first)
    row = next(row for row in found["rows"] if row["rule"] == "register_scan")
    assert (row["to_do"], row["done"], row["sources"]) == (1, 7, {"finished jobs": 1})
    rest = {p: v for p, v in before.items() if p.is_file()}
    assert rest == {p: v for p, v in files_of(tmp_path).items() if p in rest}
