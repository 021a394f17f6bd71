"""Plan before you spend: Snakemake's jobs, stored costs, and nothing touched or locked."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from test_workflow import (  # noqa: F401
    SMALL_SPLITS,
    indexed,
    job_counts,
    small_splits,
    snakemake,
    stand_ins,
)
from tools.workflow import forked
from uad import methods as method_registry
from uad.config import Train, load, load_files
from uad.core.errors import ConfigError, DataError
from uad.core.files import write_json
from uad.core.paths import Tree
from uad.methods.base import Setup
from uad.run.estimates import Amounts, Estimator, _recorded, steps_per_epoch
from uad.run.jobs import Command, Job, local_rules, parse_jobs, refusal, submissions
from uad.run.mirror import Mirror
from uad.run.plan import Plan, Row, make_plan, render
from uad.run.unit_costs import load_costs

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


@pytest.fixture
def cfg(content):
    return load(content)


@pytest.fixture(scope="module")
def costs():
    return load_costs()


def table(names, modalities):
    """A participants table of these subjects."""
    rows = [
        {"subject": n, "name": n, "site": "", "modality": m, "image": f"{n}_{m}", "lesion": ""}
        for n in names
        for m in modalities
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def full():
    """Participants tables as large as the public data sets."""
    return {
        "ixi": table([f"i{i:04d}" for i in range(577)], ["T1", "T2"]),
        "brats21": table([f"b{i:04d}" for i in range(1251)], ["T1", "T1CE", "T2", "FLAIR"]),
        "mslub": table([f"m{i:04d}" for i in range(30)], ["T1", "T2", "FLAIR"]),
    }


def training(method, experiment="cross_T2", gpus=1):
    wildcards = {"experiment": experiment, "method": method, "fold": "0"}
    outputs = (f"results/models/{experiment}/{method}/fold-0/model.safetensors",)
    return Job("train_model", wildcards, (), outputs, 1, gpus)


# --- the dry run


def test_jobs_are_read_from_a_dry_run():
    index, strip, paper = parse_jobs(DRY_RUN)
    assert (index.rule, index.wildcards, index.gpus) == ("index_dataset", {"dataset": "ixi"}, 0)
    assert (strip.threads, strip.gpus, len(strip.inputs)) == (3, 1, 2)
    assert strip.wildcards == {"dataset": "ixi", "subject": "A", "suffix": "T2w"}
    assert not paper.outputs


def test_jobs_of_a_group_are_read_too():
    start = DRY_RUN.index("rule skullstrip_scan:")
    end = DRY_RUN.index("[Sun", start)
    grouped = "".join(f"    {line}\n" for line in DRY_RUN[start:end].splitlines())
    header = "[Sun Nov 22 08:19:57 2026] Group job skullstrip (jobs in lexicogr. order):\n\n"
    jobs = parse_jobs(DRY_RUN[:start] + header + grouped + DRY_RUN[end:])
    assert [job.group for job in jobs] == [None, 1, None]
    assert [replace(job, group=None) for job in jobs] == parse_jobs(DRY_RUN)


def test_a_submission_is_a_group_or_a_job_that_is_not_local():
    assert {"index_dataset", "check_disk_space"} <= local_rules()
    assert not {"train_model", "skullstrip_scan"} & local_rules()
    jobs = [Job("index_dataset"), *[Job("register_scan", group=1)] * 2, Job("train_model")]
    assert submissions(jobs) == (1, 1)


def test_a_dry_run_that_is_not_understood_is_no_plan():
    with pytest.raises(ValueError, match="2 jobs read, but Snakemake counts"):
        parse_jobs(DRY_RUN.replace("rule skullstrip_scan:", "RULE skullstrip_scan:"))


def test_nothing_to_be_done_is_no_job():
    assert parse_jobs("Building DAG of jobs...\nNothing to be done.\n") == []


names = st.text("abcXYZ019-", min_size=1, max_size=8)


@given(st.lists(st.tuples(names, names, st.integers(1, 64), st.integers(0, 4)), max_size=8))
def test_every_job_that_is_printed_is_read(found):
    blocks = [
        f"[Mon]\nrule r{i}:\n    output: {out}/{i}\n    wildcards: a={a}, n={i}\n"
        + (f"    threads: {threads}\n" if threads > 1 else "")
        + f"    resources: tmpdir=/tmp, gpu={gpus}, runtime=3\n"
        for i, (out, a, threads, gpus) in enumerate(found)
    ]
    stats = f"total  {len(found)}\n" if found else ""
    jobs = parse_jobs(stats + "".join(blocks) + stats)
    assert [(j.outputs, j.wildcards["a"], j.threads, j.gpus) for j in jobs] == [
        ((f"{out}/{i}",), a, threads, gpus) for i, (out, a, threads, gpus) in enumerate(found)
    ]
    assert len({job.key for job in jobs}) == len(jobs)


def test_a_refusal_is_snakemakes_message_and_short():
    output = "Using profile x\nBuilding DAG\nMissingRuleException:\nNo rule to produce tabel1\n"
    output += "Using workflow specific profile y\n"
    assert refusal(output) == "MissingRuleException:\nNo rule to produce tabel1"
    assert len(refusal("x\n" * 100).splitlines()) <= 24


# --- unit costs


def test_every_rule_of_the_workflow_has_a_cost(root, costs):
    text = "".join(path.read_text() for path in root.glob("rules/*.smk"))
    rules = re.findall(r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    with_work = {name for name, body in rules if "output:" in body}
    known = {cost.rule for cost in costs.costs} - {"*"}
    assert known == with_work


def test_measured_costs_say_where_and_when(costs):
    for entry in [*costs.costs, *costs.rates.values()]:
        assert entry.how
        if entry.measured:
            assert entry.machine in costs.machines and re.fullmatch(r"\d{4}-\d\d-\d\d", entry.date)


def test_a_gpu_was_never_measured_here(costs):
    assert not costs.rates["gpu"].measured
    assert not any(cost.measured for cost in costs.costs if "gpu" in cost.when)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per": "fortnight"}, "costs.0.per"),
        ({"measured": True}, "needs 'machine' and 'date'"),
        ({"secnods": 1}, "did you mean 'seconds'?"),
        ({"measured": True, "machine": "moon", "date": "2026-01-01"}, "unknown machine 'moon'"),
    ],
)
def test_a_mistake_in_the_unit_costs_is_one_message(tmp_path, change, message):
    cost = {"rule": "*", "per": "job", "seconds": 1, "measured": False, "how": "assumed"} | change
    rate = {"tflops": 1, "measured": False, "how": "assumed"}
    content = {"machines": {}, "rates": {"gpu": rate, "cpu": rate}, "operations": []}
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(content | {"costs": [cost]}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_costs(path)


def test_operations_of_every_model_of_the_paper_are_stored(cfg, costs, full):
    amounts = Amounts(cfg, full, costs)
    counted = {name: amounts.operations(name) for name in cfg.methods}
    assert counted["thresh"] == (0, 0)
    assert counted["pddpm"][0] == counted["mddpm"][0] > 100 * counted["ae"][0]
    # four patches, each in a pass of its own
    assert counted["pddpm"][1] == pytest.approx(4 * counted["ddpm"][1], rel=0.01)


@pytest.mark.parametrize("family", ["autoencoder", "sequential", "denoising", "adversarial"])
def test_stored_operations_are_those_that_are_counted(costs, family):
    from uad.cost import measure

    entry = next(entry for entry in costs.operations if entry.family == family)
    loaded = method_registry.load(family)
    loss = next(iter(loaded.losses or ()), "l1")
    method = loaded(entry.options, Setup(loss=loss, image_size=entry.image_size))
    found = measure(
        method, (*entry.image_size[::-1], 1), batch_size=1, inference_batch=1, t_test=1,
        precision="32-true", device="cpu",
    )  # fmt: skip
    assert found["gflops_per_slice_training"] == pytest.approx(entry.training, rel=1e-4)
    assert (found["gflops_per_slice_training_late"] or 0) == pytest.approx(entry.late or 0, 1e-4)
    inference = found["gflops_per_slice_inference"] / method.sequence
    assert inference == pytest.approx(entry.inference, rel=1e-4)


def test_the_cost_of_another_network_is_unknown_until_a_job_has_run(content, costs, full, tmp_path):
    content["models"]["ae"]["options"] = {"channels": [16, 32, 32], "latent": 32}
    estimator = Estimator(Amounts(load(content), full, costs), costs)
    assert estimator.amounts.operations("ae") is None
    assert estimator.seconds(training("ae"))[:2] == (0, "unknown")
    finish(tmp_path, training("ae"), 600, resumed=False)
    estimator.calibrate([training("ae")], tmp_path)
    assert estimator.seconds(training("ae"))[:2] == (pytest.approx(600), "1 finished job")
    assert estimator.seconds(training("vae"))[1] == "derived"  # the same family


# --- work


def test_steps_are_those_of_the_training_loop():
    import numpy as np
    import torch

    from uad.train.batches import SliceBatches, TrainingSet

    loop = Train(batch_size=8, samples_per_volume=3)
    volumes = torch.zeros((11, 4, 8, 8))
    data = TrainingSet(volumes, volumes.bool(), [np.arange(4)] * 11)
    assert steps_per_epoch(11, loop) == len(SliceBatches(data, 8, 3, 0, drop_last=True)) == 4


def test_the_paper_trains_as_many_steps_as_published(cfg, costs, full):
    amounts = Amounts(cfg, full, costs)
    # FACTS: 23 steps per epoch on BraTS, 36.8 thousand in all
    assert amounts.of(training("pddpm", "intra_FLAIR")).units["step"] == 23 * 1600
    on_ixi = amounts.of(training("pddpm")).units["step"]
    assert on_ixi == (577 - 44 - 158) // 32 * 1600
    # mDDPM sees every subject six times an epoch
    assert amounts.of(training("mddpm")).units["step"] == (577 - 44 - 158) * 6 // 32 * 1600


def test_volumes_are_those_of_the_splits(cfg, costs, full):
    amounts = Amounts(cfg, full, costs)
    assert amounts.volumes("cross_T2", "val_unhealthy", "test", dataset="brats21") == 1251
    assert amounts.volumes("cross_T2", "test", dataset="mslub") == 20
    assert amounts.volumes("intra_FLAIR", "val_unhealthy", "test") == 125 + 251


def test_a_job_of_several_scans_costs_as_many(cfg, costs, full):
    amounts = Amounts(cfg, full, costs)

    def predict(scans, gpus=1):
        outputs = (Tree().brain_masks("ixi", "T2w", 0),)
        return amounts.of(Job("predict_brain_masks", {"dataset": "ixi"}, scans, outputs, gpus=gpus))

    one, three = predict(("a.nii.gz",)), predict(("a.nii.gz", "b.nii.gz", "c.nii.gz"))
    assert one.units["scan"] == 1 and three.units["scan"] == 3
    # HD-BET: five networks, eight orientations
    assert one.units["pass"] == 40 and {"hdbet", "gpu"} <= one.tags


def test_a_network_costs_where_it_runs(cfg, costs, full):
    """In the job of a batch; in that of a scan only where masks are not predicted in batches."""
    estimator = Estimator(Amounts(cfg, full, costs), costs)
    scan = dict(dataset="ixi", subject="A", suffix="T2w", space="orig", label="brain", desc="mask")
    outputs = tuple(Tree().scan(ending, **scan) for ending in ("nii.gz", "json"))

    def strip(*inputs):
        return estimator.seconds(Job("skullstrip_scan", {"dataset": "ixi"}, inputs, outputs))

    light, source, work = strip("a.nii.gz", Tree().brain_masks("ixi", "T2w", 0))
    assert source == "measured" and "pass" not in work.units and light < 10
    heavy, source, work = strip("a.nii.gz")
    assert source == "measured" and work.units["pass"] == 40 and heavy > 40 * 20


def test_reconstructions_are_temporary_unless_they_are_kept(content, costs, full):
    wildcards = {"experiment": "cross_T2", "method": "ae", "fold": "0", "test": "mslub"}
    job = Job("reconstruct_volumes", wildcards, (), ("r",))
    work = Amounts(load(content), full, costs).of(job)
    assert (work.kept, work.temporary) == (0, 30 * 96 * 96 * 50 * 2)
    content["run"]["keep_reconstructions"] = True
    assert Amounts(load(content), full, costs).of(job).kept == work.temporary


# --- seconds


def test_gpu_hours_are_derived_and_scale_with_the_rate(cfg, costs, full):
    amounts = Amounts(cfg, full, costs)
    job = training("pddpm")
    slow, source, work = Estimator(amounts, costs, tflops=5).seconds(job)
    fast = Estimator(amounts, costs, tflops=50).seconds(job)[0]
    assert source == "derived" and 5 < slow / fast < 10
    assert slow > work.operations / 5
    assert work.operations == pytest.approx(17600 * 32 * 0.447353, rel=0.1)  # and validation


def test_without_a_gpu_the_cpu_does_it_and_threads_help(cfg, costs, full):
    estimator = Estimator(Amounts(cfg, full, costs), costs)
    one, source, work = estimator.seconds(training("ddpm", gpus=0))
    assert source == "measured" and "cpu" in work.tags and one > 10 * 24 * 3600
    assert estimator.seconds(replace(training("ddpm", gpus=0), threads=8))[0] < one / 4


def test_a_rule_without_a_cost_is_said_to_be_unknown(cfg, costs, full):
    seconds, source, _ = Estimator(Amounts(cfg, full, costs), costs).seconds(Job("new_rule"))
    assert (seconds, source) == (0, "unknown")


def finish(folder, job, seconds, **facts):
    record = {"seconds": seconds, "facts": facts}
    write_json_record(folder / f"{job.outputs[0]}.prov.json", record)


def write_json_record(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def test_finished_jobs_of_a_kind_take_precedence(cfg, costs, full, tmp_path):
    amounts = Amounts(cfg, full, costs)
    estimator = Estimator(amounts, costs)
    before = estimator.seconds(training("ae"))[0]
    done = [training("pddpm"), training("ddpm")]
    for job, seconds in zip(done, (7200, 3600), strict=True):
        finish(tmp_path, job, seconds, resumed=False)
    estimator.calibrate(done, tmp_path)
    seconds, source, _ = estimator.seconds(training("pddpm"))
    assert source == "2 finished jobs" and seconds == pytest.approx(5400, rel=0.01)
    # six times the steps, six times the seconds; another family as before
    assert estimator.seconds(training("mddpm"))[0] == pytest.approx(6.4 * 5400, rel=0.05)
    assert estimator.seconds(training("ae"))[:2] == (before, "derived")


def test_the_end_of_a_resumed_training_says_nothing(cfg, costs, full, tmp_path):
    estimator = Estimator(Amounts(cfg, full, costs), costs)
    finish(tmp_path, training("pddpm"), 10, resumed=True)
    estimator.calibrate([training("pddpm")], tmp_path)
    assert estimator.seconds(training("pddpm"))[1] == "derived"


@pytest.mark.parametrize("content", ["", "[]", '{"facts": {}}', '{"facts": {}, "seconds": null}'])
def test_a_damaged_record_is_left_out(tmp_path, content):
    path = tmp_path / f"{training('ae').outputs[0]}.prov.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert _recorded(tmp_path, training("ae")) is None


def test_what_was_timed_on_the_machine_takes_precedence_over_derivations(
    cfg, costs, full, tmp_path
):
    record = {
        "device": "GPU", "batch_size": 32, "image_size": [96, 96], "seconds_per_step": 0.5,
        "seconds_per_step_late": None, "seconds_per_volume": 2.0,
    }  # fmt: skip
    write_json_record(tmp_path / Tree().cost("pddpm"), record)
    estimator = Estimator(Amounts(cfg, full, costs), costs)
    estimator.calibrate([], tmp_path)
    # the same network under another loss
    seconds, source, _ = estimator.seconds(training("pddpm-iqa", "intra_FLAIR"))
    assert source == "results/cost" and seconds == pytest.approx(23 * 1600 * 0.5, rel=0.1)
    wildcards = {"experiment": "cross_T2", "method": "pddpm", "fold": "0", "test": "mslub"}
    job = Job("reconstruct_volumes", wildcards, (), ("r",), gpus=1)
    assert estimator.seconds(job)[0] == pytest.approx(60, rel=0.5)
    assert estimator.seconds(training("pddpm", gpus=0))[1] != "results/cost"  # another device


# --- in print


def test_derived_hours_are_never_printed_as_measured():
    rows = [
        Row("train_model", 5, 2, 10, 10, 10, 10, {"derived": 5}),
        Row("score_volumes", 1, 0, 3, 0, 0, 0, {"measured": 1}),
    ]
    text = render(Plan(["paper"], rows, 10, 5e9, 6e9, 1e12, notes=["ixi is not there."]))
    assert "Not measured but derived: 10.0 of the 10.0 GPU-hours" in text
    assert re.search(r"^train_model +5 +2 +10\.0 +10\.0 +derived$", text, re.M)
    assert "10 TFLOP/s" in text and "ixi is not there." in text
    assert "5.0 GB kept, at most 6.0 GB at peak" in text
    assert "raw data" not in text and "Submissions" not in text and "Not in the hours" not in text


def test_what_is_not_in_the_figures_is_said():
    rows = [Row("train_model", 5, sources={"unknown": 5})]
    raw = {"ixi": 8_700_000_000, "mslub": None}
    text = render(Plan(["paper"], rows, 10, 5e9, 6e9, 1e12, raw, "slurm", (2, 5)))
    assert "Not in the hours: 5 jobs" in text and re.search(r"^  unknown: no cost", text, re.M)
    assert "not there yet: ixi 8.7 GB, mslub unknown, not included." in text
    assert "Submissions to slurm: 7 (2 groups, 5 jobs)" in text


def test_a_finished_target_says_so():
    text = render(Plan(["table3"], [Row("make_table", 0, 1)], 10, 0, 0, 1e9))
    assert "Nothing is to do." in text and "derived" not in text


# --- the working directory


@pytest.fixture
def quick(monkeypatch):
    """Dry runs start with Snakemake loaded; the tests of the script start it as users do."""

    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "snakemake"]
        return forked(command[3:])

    monkeypatch.setattr("uad.run.jobs.subprocess", SimpleNamespace(run=run))


def files_of(folder):
    """All that can change in a folder without leaving a trace in a file's content."""
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in Path(folder).rglob("*")}


@pytest.fixture
def overlay(tmp_path_factory):
    """Data sets of a few subjects that nobody has."""
    sizes = {"ixi": 12, "brats21": 10, "mslub": 4}
    content = {
        "datasets": {name: {"expected": size} for name, size in sizes.items()},
        "splits": {
            "healthy_validation": 1, "healthy_test": 2,
            "unhealthy_validation": {"brats21": 2, "mslub": 1},
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("overlay") / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.usefixtures("quick")
def test_data_that_are_not_there_are_stood_in_for(root, tmp_path, overlay):
    cfg = load_files([root / "config.yaml", overlay])
    found = make_plan(cfg, Command(overlays=(overlay,)), ["table3"], directory=tmp_path)
    rows = {row.rule: row for row in found.rows}
    assert rows["register_scan"].to_do == 10 and rows["train_model"].to_do == 4 * 5
    assert rows["index_dataset"].to_do == rows["validate_dataset"].to_do == 3
    assert rows["pack_slices"].to_do == 1 and "predict_brain_masks" not in rows
    assert any("brats21 is not there: planned with the 10 subjects" in n for n in found.notes)
    assert rows["train_model"].sources == {"derived": 20}
    assert rows["train_model"].gpu_hours == rows["train_model"].derived_gpu_hours > 0
    assert found.bytes_peak > found.bytes_kept > 8.6e9 + 13e9  # with the raw data
    assert found.bytes_raw["mslub"] is None and found.bytes_raw["brats21"] == 13e9
    assert not list(tmp_path.iterdir())  # nothing was left behind


@pytest.mark.usefixtures("quick")
def test_data_that_are_there_are_counted_and_left_as_they_are(root, stand_ins, small_splits):  # noqa: F811
    before = files_of(stand_ins)
    cfg = load_files([root / "config.yaml", small_splits])
    found = make_plan(cfg, Command(overlays=(small_splits,)), ["table3"], directory=stand_ins)
    rows = {row.rule: row.to_do for row in found.rows}
    assert (rows["skullstrip_scan"], rows["pack_slices"]) == (10, 1) and not found.notes
    assert files_of(stand_ins) == before


@pytest.mark.usefixtures("quick")
def test_whom_a_reviewer_excluded_is_not_planned(root, stand_ins, small_splits, indexed):  # noqa: F811
    shutil.copytree(indexed[0], stand_ins, dirs_exist_ok=True)
    head = "dataset\tsubject\tmodality\tverdict\treason\n"
    whole = "brats21\tBraTS2021_00003\t\texclude\tmotion\n"
    single = "brats21\tBraTS202100004\tFLAIR\texclude\tcut\n"
    (stand_ins / "qc_decisions.tsv").write_text(head + whole + single)
    cfg = load_files([root / "config.yaml", small_splits])
    found = make_plan(cfg, Command(overlays=(small_splits,)), ["table3"], directory=stand_ins)
    assert {row.rule: row.to_do for row in found.rows}["skullstrip_scan"] == 8


@pytest.mark.usefixtures("quick")
def test_absolute_paths_are_stood_in_for_without_being_written(root, tmp_path, overlay):
    nowhere = tmp_path / "nowhere"
    content = yaml.safe_load(overlay.read_text())
    content["datasets"]["brats21"]["path"] = str(nowhere / "brats")
    content["datasets"]["ixi"]["source"] = "download"
    content["results"] = str(tmp_path / "results")
    overlay.write_text(yaml.safe_dump(content))
    cfg = load_files([root / "config.yaml", overlay])
    found = make_plan(cfg, Command(overlays=(overlay,)), ["table3"], directory=tmp_path)
    assert {row.rule: row.to_do for row in found.rows}["register_scan"] == 10
    assert found.bytes_raw["ixi"] == 2 * (4840816640 + 3853445120)  # archives and images
    assert not nowhere.exists() and not (tmp_path / "results").exists()


def test_a_mirror_shows_the_directory_and_protects_it(root, stand_ins, small_splits, indexed):  # noqa: F811
    shutil.copytree(indexed[0], stand_ins, dirs_exist_ok=True)
    path = stand_ins / "results/participants/ixi.tsv"
    cfg = load_files([root / "config.yaml", small_splits])
    before = files_of(stand_ins)
    mirror = Mirror(stand_ins.parent / "mirror", stand_ins, cfg)
    assert mirror.unindexed() == [] and not mirror.has_results
    shown = mirror.root / "results/participants/ixi.tsv"
    assert os.lstat(shown).st_mtime_ns == path.stat().st_mtime_ns
    mirror.index(["ixi"])
    assert not shown.is_symlink() and shown.read_bytes() == path.read_bytes()
    assert files_of(stand_ins) == before


def test_a_preprocessed_tree_cannot_be_stood_in_for(content, tmp_path):
    content["datasets"]["ixi"]["source"] = "preprocessed"
    mirror = Mirror(tmp_path / "mirror", tmp_path, load(content))
    with pytest.raises(DataError, match=r"ixi: no folder 'data/ixi'.*source to folder"):
        mirror.index(["ixi"])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "place", [pytest.param("{}/out", marks=pytest.mark.slow, id="absolute"), "../out"]
)
def test_results_outside_the_directory_are_seen_and_left_as_they_are(root, stand_ins, place):  # noqa: F811
    work = stand_ins / "work"
    work.mkdir()
    (stand_ins / "data").rename(work / "data")
    overlay = stand_ins / "small.yaml"
    overlay.write_text(yaml.safe_dump(SMALL_SPLITS | {"results": place.format(stand_ins)}))
    snakemake(root, work, "index", "--configfile", overlay)
    before = files_of(stand_ins)
    cfg = load_files([root / "config.yaml", overlay])
    rows = make_plan(cfg, Command((overlay,)), ["table3"], directory=work).rows
    assert files_of(stand_ins) == before
    counts = job_counts(snakemake(root, work, "-n", "table3", "--configfile", overlay))
    assert sum(row.to_do for row in rows) == counts["total"] - counts["table3"]


@pytest.mark.usefixtures("quick")
def test_on_a_cluster_grouped_jobs_are_counted_and_so_are_submissions(root, stand_ins):  # noqa: F811
    overlay = stand_ins / "small.yaml"
    overlay.write_text(yaml.safe_dump(SMALL_SPLITS))
    cfg = load_files([root / "config.yaml", overlay])
    found, alone = (
        make_plan(
            cfg, Command((overlay,), root / "profiles" / name), ["table3"], directory=stand_ins
        )
        for name in ("slurm", "default")
    )
    jobs = {row.rule: row.to_do for row in found.rows}
    assert jobs == {row.rule: row.to_do for row in alone.rows}
    groups, single = found.submissions
    grouped = (
        "skullstrip_scan register_scan score_volumes search_threshold evaluate_volumes".split()
    )
    local = "check_disk_space index_dataset make_splits make_table save_config".split()
    assert jobs["score_volumes"] < groups < sum(jobs[rule] for rule in grouped)
    assert single == sum(jobs.values()) - sum(jobs[rule] for rule in [*grouped, *local])
    assert found.scheduler == "slurm" and alone.scheduler is None
    with pytest.raises(DataError, match=r"sulrm: there is no .*config\.yaml"):
        Command((), root / "profiles/sulrm").executor()


def show_plan(root, folder, *arguments):
    command = [sys.executable, "-m", "uad", "plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_an_unknown_target_is_snakemakes_own_message(root, stand_ins, small_splits):  # noqa: F811
    done = show_plan(root, stand_ins, "tabel3", "--overlay", small_splits)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("ERROR: ") and "tabel3" in done.stderr
    assert len(done.stderr.splitlines()) < 10


@pytest.mark.slow
def test_the_smallest_run_is_planned_in_print_and_as_json(root, tmp_path):
    overlay = root / "tests/e2e/config.yaml"
    done = show_plan(root, tmp_path, "paper", "--overlay", overlay, "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "p.json").read_text())
    counts = {row["rule"]: row["to_do"] for row in content["rows"]}
    assert counts["make_phantom"] == counts["index_dataset"] == 1
    assert (counts["skullstrip_scan"], counts["train_model"]) == (8, 4)
    assert content["totals"]["gpu_hours"] == 0 < content["totals"]["core_hours"] < 1
    assert re.search(r"^total +\d+ +0 ", done.stdout, re.M)


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_what_is_done_is_counted_and_times_the_rest(root, tmp_path):
    overlay = root / "tests/e2e/config.yaml"
    first = "results/slices/brats21_FLAIR.safetensors"
    snakemake(root, tmp_path, first, "--configfile", overlay)
    before = files_of(tmp_path)
    cfg = load_files([root / "config.yaml", overlay])
    found = make_plan(cfg, Command(overlays=(overlay,)), ["table3"], directory=tmp_path)
    rows = {row.rule: (row.to_do, row.done) for row in found.rows}
    assert rows["register_scan"] == rows["skullstrip_scan"] == (0, 8)
    assert rows["pack_slices"] == (0, 1) and rows["train_model"] == (4, 0)
    counts = job_counts(snakemake(root, tmp_path, "-n", "table3", "--configfile", overlay))
    assert sum(row[0] for row in rows.values()) == counts["total"] - counts["table3"]
    # one derivative is lost: its job comes back, and the others say how long it takes
    lost = next((tmp_path / "results/preprocessed").rglob("*space-SRI24*preproc*.nii.gz"))
    lost.unlink()
    (tmp_path / first).unlink()
    found = make_plan(cfg, Command(overlays=(overlay,)), [first], directory=tmp_path)
    row = next(row for row in found.rows if row.rule == "register_scan")
    assert (row.to_do, row.done, row.sources) == (1, 7, {"7 finished jobs": 1})
    rest = {p: v for p, v in before.items() if p.is_file()}
    assert rest == {p: v for p, v in files_of(tmp_path).items() if p in rest}
