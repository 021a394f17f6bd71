"""The workflow on a real SLURM: what was submitted, what each job held, what survives.

Judged by SLURM's own accounting, not by our logs. Needs root (it starts SLURM's daemons).
"""

import contextlib
import filecmp
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from uad.core.files import read_json, sha256
from uad.run.launch import snapshot

pytestmark = pytest.mark.slurm

CLUSTER = Path(__file__).parent / "slurm" / "cluster.sh"
#: What two runs must agree on, byte by byte.
COMPARED = "tables splits air thresholds metrics curves significance models slices".split()
GROUPS = ("skullstrip", "register", "evaluate")
ACCOUNT = os.environ.get("UAD_SLURM_ACCOUNT", "uad")
FIELDS = "JobIDRaw JobName State Start End AllocTRES ReqMem TimelimitRaw WorkDir Comment".split()
#: Sizes that fit a node of 12 GB: a cluster user changes a profile just so.
SMALL = {"mem_mb": "1400 * attempt", "runtime": "10 * attempt"}


@dataclass
class Job:
    """A job as the accounting has it."""

    number: str
    name: str
    state: str
    start: float
    end: float
    tres: dict
    memory: str
    minutes: int
    rule: str

    @property
    def gpus(self):
        return int(self.tres.get("gres/gpu", 0))


def stamp(text):
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) if text[:1].isdigit() else 0.0


def accounting(folder):
    """All jobs that ran in a folder, in the order of their numbers."""
    command = ["sacct", "-X", "-n", "-P", "--starttime=now-1days", f"--format={','.join(FIELDS)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    jobs = []
    for line in done.stdout.splitlines():
        row = dict(zip(FIELDS, line.split("|"), strict=True))
        if Path(row["WorkDir"]) == folder and row["JobName"].startswith("uad_"):
            tres = dict(part.split("=") for part in row["AllocTRES"].split(",") if part)
            rule = row["Comment"].removeprefix("rule_").split("_wildcards_")[0]
            # a group's comment goes on with the names of its rules
            rule = next((group for group in GROUPS if rule.startswith(f"{group}_")), rule)
            times = stamp(row["Start"]), stamp(row["End"])
            minutes = int(row["TimelimitRaw"] or 0)
            job = row["JobIDRaw"], row["JobName"], row["State"].split()[0], *times, tres
            jobs.append(Job(*job, row["ReqMem"], minutes, rule))
    return sorted(jobs, key=lambda job: int(job.number))


def end_strays(folder):
    """Processes that still work in a folder: without control groups SLURM loses some of a job's."""
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if folder in (entry.readlink() / "x").parents:
                os.kill(int(entry.parent.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """SLURM, for these tests only; UAD_SLURM_RUNNING takes the one that is up."""
    if os.environ.get("UAD_SLURM_RUNNING"):
        yield
        return
    for step in ("install", "stop", "start"):
        done = subprocess.run([CLUSTER, step], capture_output=True, text=True, timeout=600)
        if done.returncode == 3:
            pytest.exit(done.stderr.strip(), returncode=3)
        assert done.returncode == 0, done.stdout + done.stderr
    yield
    subprocess.run([CLUSTER, "stop"], check=True, timeout=120)
    end_strays(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def code(root, tmp_path_factory):
    """A copy of the repository with a profile for the test cluster, made from ours."""
    folder = tmp_path_factory.mktemp("code") / "repository"
    snapshot(root, folder)
    profile = yaml.safe_load((folder / "profiles/slurm/profile.yaml").read_text())
    profile["default-resources"] |= {"slurm_account": ACCOUNT, "slurm_partition": "main", **SMALL}
    for rule in rules_with(root, "mem_mb="):
        profile["set-resources"].setdefault(rule, {}).update(SMALL)
    profile |= {"latency-wait": 5, "slurm-init-seconds-before-status-checks": 1}
    (folder / "profiles/test").mkdir()
    (folder / "profiles/test/profile.yaml").write_text(yaml.safe_dump(profile))
    shutil.copy(CLUSTER.parent / "config.yaml", folder / "overlay.yaml")
    # Python imports it when it starts
    shutil.copy(CLUSTER.parent / "polls.py", folder / "workflow_scripts" / "sitecustomize.py")
    return folder


def rules_with(root, text):
    """Names of the rules that have a line with a text."""
    names = []
    for path in sorted((root / "rules").glob("*.smk")):
        for part in path.read_text().split("\n\n\n"):
            if text in part and (name := re.search(r"^(?:rule|checkpoint) (\w+):", part, re.M)):
                names.append(name[1])
    return names


def command(code, *arguments, profile="test"):
    return [
        sys.executable,
        "-m",
        "uad",
        "launch",
        profile,
        "--nolock",
        "--configfile",
        str(code / "overlay.yaml"),
        *map(str, arguments),
    ]


def start(code, folder, *arguments):
    """Begin a run; its output goes to ``run.log``."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(code / "workflow_scripts")}
    with open(folder / "run.log", "a") as log:
        return subprocess.Popen(
            command(code, *arguments), cwd=folder, stdout=log, stderr=log, env=environment
        )


def finish(process, folder, minutes=8, expected=0):
    """Wait for a run's end; returns what it said."""
    try:
        code = process.wait(timeout=minutes * 60)
    finally:
        process.kill()
    said = (folder / "run.log").read_text()
    assert code == expected, said[-6000:]
    return said


def run(code, folder, *arguments, **options):
    return finish(start(code, folder, *arguments), folder, **options)


def compared(folder):
    return {
        path.relative_to(folder): path
        for stage in COMPARED
        for path in sorted((folder / "results" / stage).rglob("*"))
        if path.is_file() and not path.name.endswith(".prov.json")
    }


def assert_same_results(one, other):
    ours, theirs = compared(one), compared(other)
    assert list(ours) == list(theirs)
    assert len(ours) > 20
    assert not [str(k) for k in ours if not filecmp.cmp(ours[k], theirs[k], shallow=False)]


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def finished(cluster, code, tmp_path_factory):
    """An uninterrupted run, beside the run of another directory on the same cluster."""
    folder = tmp_path_factory.mktemp("cluster") / "run"
    beside = folder.parent / "beside"
    other = start(code, beside, "--config", "seed=7", "--", "results/splits/intra_FLAIR/fold-0.tsv")
    wait_for(lambda: accounting(beside))  # has jobs when the second run looks for left ones
    run(code, folder, "--", "table3")
    finish(other, beside)
    return folder


@pytest.fixture
def untrained(finished, tmp_path):
    """A copy of the finished run before anything was trained."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, symlinks=True)
    for stage in "models thresholds metrics curves significance tables air".split():
        shutil.rmtree(folder / "results" / stage)
    (folder / "run.log").unlink()
    return folder


def running(folder, rule):
    """Numbers of the running jobs of a rule."""
    command = ["squeue", "--noheader", "--states=R", "--format=%i|%Z|%k"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    rows = [line.split("|") for line in listed.splitlines()]
    return [n for n, place, comment in rows if Path(place) == folder and rule in comment]


def training_begun(folder):
    """Number of a job whose training has saved something."""
    saved = list((folder / "results").rglob("last.safetensors"))
    return saved and next(iter(running(folder, "train_model")), None)


@pytest.mark.slurm_smoke
def test_a_cell_is_computed_through_the_profile(cluster, code, tmp_path):
    """The short one: every resource class once, from scans to the metrics of a fold."""
    metrics = "results/metrics/intra_FLAIR/pddpm-iqa/fold-0/brats21.tsv"
    run(code, tmp_path / "run", "--", metrics, minutes=30)  # two on an idle machine
    jobs = accounting(tmp_path / "run")
    assert {job.state for job in jobs} == {"COMPLETED"}
    held = {job.rule: job.gpus for job in jobs}
    assert held.pop("train_model") == held.pop("reconstruct_volumes") == 1
    assert not any(held.values())
    assert set(held) >= {"skullstrip", "register", "pack_slices", "compute_air", "evaluate"}
    records = {path: read_json(path) for path in (tmp_path / "run/results").rglob("*.prov.json")}
    local = set(rules_with(code, "localrule: True"))
    sent = {r["host"]["slurm_job"] for r in records.values() if r["rule"] not in local}
    assert sent == {job.number for job in jobs}
    assert (tmp_path / "run" / metrics).is_file()


def test_every_job_went_through_sbatch_with_what_the_profile_says(finished, code):
    jobs = accounting(finished)
    local = set(rules_with(code, "localrule: True"))
    made = {read_json(path)["rule"] for path in (finished / "results").rglob("*.prov.json")} - local
    profile = yaml.safe_load((code / "profiles/test/profile.yaml").read_text())
    groups = dict(entry.split("=") for entry in profile["groups"])
    groups |= {"skullstrip_scan": "skullstrip", "register_scan": "register"}
    submitted = {job.rule for job in jobs}
    assert {groups.get(rule, rule) for rule in made} == submitted
    assert {job.state for job in jobs} == {"COMPLETED"}
    # in a group one works after the other: the memory of one, the time of all
    assert {job.memory for job in jobs} == {"1400M"}
    members = {"skullstrip": 4, "register": 4, "evaluate": 3}
    for job in jobs:
        assert job.minutes == 10 * members.get(job.rule, 1)
    assert len([job for job in jobs if job.rule == "register"]) == 2  # of 8 scans


def test_gpu_jobs_hold_one_gpu_each_and_never_share_it(finished):
    jobs = [job for job in accounting(finished) if job.gpus]
    assert {job.rule for job in jobs} >= {"train_model", "reconstruct_volumes"}
    assert {job.gpus for job in jobs} == {1}
    times = sorted([(job.start, 1) for job in jobs] + [(job.end, -1) for job in jobs])
    held = 0
    for _, change in sorted(times, key=lambda pair: (pair[0], pair[1])):
        held += change
        assert held <= 2
    # which of the two it was is not in the accounting: each job's own record has it
    spans = defaultdict(set)
    by_number = {job.number: job for job in jobs}
    for path in (finished / "results").rglob("*.prov.json"):
        record = read_json(path)
        job = by_number.get(record["host"]["slurm_job"])
        if job and job.gpus:
            device = record["facts"]["gpu"]
            assert device["assigned_by"] == "slurm"
            spans[device["cuda_visible_devices"]].add((job.start, job.end))
    assert set(spans) == {"0", "1"}
    for uses in spans.values():
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(uses)))


def test_two_runs_in_two_directories_do_not_meet(finished):
    beside = finished.parent / "beside"
    ours, theirs = accounting(finished), accounting(beside)
    assert ours and theirs
    assert {job.state for job in ours + theirs} == {"COMPLETED"}  # none ended the other's
    assert min(job.start for job in ours) < max(job.end for job in theirs) + 60
    scans = "results/raw/brats21.manifest.tsv"
    assert sha256(finished / scans) != sha256(beside / scans)  # another seed


def test_cancelled_killed_requeued_without_controller_and_edited(untrained, finished, code):
    """All in one run, and its results are those of the undisturbed one.

    A training is cancelled, the step of another killed, the next one is requeued as after a
    preemption, the controller is restarted, and a script is broken by an edit. SLURM notices only
    at the time limit that a step's daemon is gone, so that is made short.
    """
    limit = ["--set-resources", "train_model:runtime=2", "train_model:mem_mb=1400 * attempt"]
    script = code / "workflow_scripts" / "evaluate_volumes.py"
    kept = script.read_bytes(), script.stat()

    def another(*known):
        return wait_for(lambda: [n for n in running(untrained, "train_model") if n not in known])

    process = start(code, untrained, *limit, "--", "table3")
    try:
        cancelled = wait_for(lambda: training_begun(untrained))
        script.write_text("this is no Python\n")
        subprocess.run(["scancel", cancelled], check=True)
        struck = another(cancelled)[0]
        for pid in wait_for(lambda: daemons_of_step(struck)):
            os.kill(pid, signal.SIGKILL)
        requeued = another(cancelled, struck)[0]
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        subprocess.run([CLUSTER, "restart"], check=True, timeout=60)
        said = finish(process, untrained)
    finally:
        process.kill()
        script.write_bytes(kept[0])
        os.utime(script, ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
    states = {job.number: job.state for job in accounting(untrained)}
    assert states[cancelled] == "CANCELLED"
    assert states[struck] in ("FAILED", "NODE_FAIL", "TIMEOUT")
    assert states[requeued] == "COMPLETED", said
    assert_same_results(untrained, finished)


def daemons_of_step(number):
    """Process numbers of slurmd's daemon of a job's first step."""
    found = subprocess.run(
        ["pgrep", "-f", rf"slurmstepd: \[{number}\.0\]"], capture_output=True, text=True
    )
    return [int(line) for line in found.stdout.split()]


def test_the_same_command_goes_on_after_snakemake_was_killed(untrained, finished, code):
    process = start(code, untrained, "--", "table3")
    wait_for(lambda: training_begun(untrained))
    process.kill()
    process.wait()
    said = run(code, untrained, "--", "table3")
    assert "of an earlier run that nobody watched" in said
    assert_same_results(untrained, finished)
    # of no rule did two jobs of one scan or fold run at the same time
    names = {job.name for job in accounting(untrained) if job.start}
    first, second = (
        [job for job in accounting(untrained) if job.start and job.name == name]
        for name in sorted(
            names,
            key=lambda n: min(int(job.number) for job in accounting(untrained) if job.name == n),
        )
    )
    assert max(job.end for job in first) <= min(job.start for job in second)


def test_a_training_stopped_by_its_time_limit_goes_on(untrained, code):
    weights = "results/models/intra_FLAIR/pddpm-iqa/fold-0/model.safetensors"
    # nothing is saved but at the signal; minutes, on a fast machine, too
    long = ["--config", "train={epochs: 1000, checkpoint_every: 2000}"]
    whole = untrained.parent / "whole"
    shutil.copytree(untrained, whole, symlinks=True)
    uninterrupted = start(code, whole, *long, "--", weights)
    # SLURM sends the signal up to a minute early
    limited = ["--set-resources", "train_model:runtime=2"]
    limited += ["train_model:slurm_extra='--signal=TERM@30'", "train_model:mem_mb=1400"]
    said = run(code, untrained, *long, *limited, "--retries", "9", "--", weights)
    finish(uninterrupted, whole)
    attempts = [job for job in accounting(untrained) if job.rule == "train_model"]
    assert len(attempts) >= 2, said
    assert attempts[-1].state == "COMPLETED"
    assert read_json(untrained / f"{weights}.prov.json")["facts"]["resumed"]
    assert sha256(untrained / weights) == sha256(whole / weights)


def test_a_job_that_exceeds_its_memory_is_sent_again_with_more(untrained, code):
    target = "results/air/intra_FLAIR/fold-0.json"
    before = len(accounting(untrained))
    little = ["--set-resources", "compute_air:mem_mb=60 * attempt * attempt * attempt"]
    said = run(code, untrained, *little, "--", target)
    first, *others = [job for job in accounting(untrained)[before:] if job.rule == "compute_air"]
    assert others, said
    assert (first.memory, others[0].memory) == ("60M", "480M")
    assert first.state in ("FAILED", "OUT_OF_MEMORY", "CANCELLED")
    assert others[-1].state == "COMPLETED"


def test_an_impossible_request_fails_at_once_and_says_what_was_asked(untrained, code):
    target = "results/models/intra_FLAIR/pddpm-iqa/fold-0/model.safetensors"
    begun = time.monotonic()
    said = run(code, untrained, "--set-resources", "train_model:gpu=9", "--", target, expected=1)
    assert time.monotonic() - begun < 30
    assert "(rule train_model)" in said
    assert "--gpus=9" in said
    assert "Requested node configuration is not available" in said


def test_a_failed_job_names_its_log_and_the_log_of_slurm(untrained, code):
    overlay = untrained / "bad.yaml"
    overlay.write_text("train: {accelerator: gpu}\n")  # the node only pretends to have one
    target = "results/models/intra_FLAIR/pddpm-iqa/fold-0/model.safetensors"
    said = run(code, untrained, overlay, "--retries", "0", "--", target, expected=1)
    assert "torch sees no CUDA device" in said
    assert "results/logs/train_model/intra_FLAIR/pddpm-iqa/fold-0.log" in said
    assert ".snakemake/slurm_logs/rule_train_model" in said
