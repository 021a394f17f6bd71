"""GPUs: one job, one device, also on a machine where nobody but Snakemake hands them out.

And several jobs on a device where the config says that it has room for them.
"""

import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

from tools.workflow import SMALL_SPLITS, job_counts, make_stand_ins, snakemake, touch
from uad.config import load
from uad.core.errors import out_of_memory
from uad.core.files import read_json, write_json
from uad.run import devices
from uad.run.devices import VISIBLE, DeviceError, claim, visible
from uad.run.launch import snapshot

UUIDS = ["GPU-aaaa1111", "GPU-bbbb2222", "GPU-bbcc3333"]

#: Processes that begin as copies of this one: jobs that start at once.
FORK = multiprocessing.get_context("fork")


class Job(NamedTuple):
    """A process that claims one of the pretend devices and holds it until it is killed."""

    process: FORK.Process
    said: Path  # what it has claimed
    log: Path


def claim_in_job(log, locks, uuids, environment, *arguments):
    """What a job does first, with nothing of its own of what this process has claimed."""
    for name in (VISIBLE, "SLURM_JOB_ID"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    logging.basicConfig(filename=log, force=True)
    devices.installed, devices.PAUSE = lambda: list(uuids), 0.1
    devices._held = []
    return devices.claim(*arguments, locks=locks)


def hold(said, *arguments):
    facts = claim_in_job(*arguments)
    write_json(said, {**facts, "environment": os.environ.get(VISIBLE)})
    time.sleep(60)


@pytest.fixture
def start(tmp_path):
    """Starts jobs; what is still running at the end is ended."""
    jobs = []

    def start(wanted=1, device="auto", sharing=1, uuids=UUIDS[:2], **environment):
        said, log = (tmp_path / f"job-{len(jobs)}.{ending}" for ending in ("json", "log"))
        arguments = (said, log, tmp_path / "locks", uuids, environment, wanted, device, sharing)
        jobs.append(Job(FORK.Process(target=hold, args=arguments), said, log))
        jobs[-1].process.start()
        return jobs[-1]

    yield start
    for job in jobs:
        end(job)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """This process as a job of a machine with three pretend devices."""
    monkeypatch.setattr(devices, "installed", lambda: UUIDS)
    monkeypatch.setattr(devices, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(devices, "_held", held := [])
    for name in (VISIBLE, "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # so that it is put back whatever the call does
        monkeypatch.delenv(name)
    yield monkeypatch
    for file in held:
        file.close()


def claimed(job):
    """What a job says that it has claimed."""
    wait_until(job.said.exists)
    return read_json(job.said)


def wait_until(happened):
    """Look again and again, for half a minute at most."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_the_device(job):
    """Wait until a job has said that it waits."""
    wait_until(lambda: job.log.exists() and "waiting for a GPU" in job.log.read_text())


def end(job):
    """Kill a job as the kernel or a user would; its device is free when this returns."""
    job.process.kill()
    job.process.join()


def test_two_jobs_get_two_devices_and_a_third_the_one_that_a_killed_job_held(start):
    jobs = [start(), start()]
    facts = [claimed(job) for job in jobs]
    assert {fact["uuid"] for fact in facts} == {fact["environment"] for fact in facts}
    assert {fact["uuid"] for fact in facts} == set(UUIDS[:2])
    assert {fact["assigned_by"] for fact in facts} == {"lock"}
    third = start()
    wait_for_the_device(third)
    end(jobs[1])
    freed = claimed(third)
    assert freed["uuid"] == facts[1]["uuid"] and freed["waited_s"] > 0
    assert third.log.read_text().count("\n") == 1  # said once, however long it lasts


def test_a_list_of_visible_devices_is_respected(start):
    jobs = [start(uuids=UUIDS, **{VISIBLE: "2,1"}) for _ in range(2)]
    facts = {fact["environment"]: fact["uuid"] for fact in map(claimed, jobs)}
    assert facts == {"1": UUIDS[1], "2": UUIDS[2]}
    other = claimed(start(uuids=UUIDS))  # without a list, and meets them on the same machine
    assert other["uuid"] == UUIDS[0]


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (None, UUIDS),
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("GPU-aaaa,GPU-bbc", ["GPU-aaaa", "GPU-bbc"]),
        ("GPU-bb,0", []),  # two devices begin so
        ("0,7,1", ["0"]),  # CUDA reads no further than a device that is not there
        ("0,-1,1", ["0"]),
        ("", []),
        ("NoDevFiles", []),
        ("MIG-12/1/0", ["MIG-12/1/0"]),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(listed, names):
    assert list(visible(listed, UUIDS).values()) == names


@pytest.mark.parametrize(("wanted", "uuids"), [(1, []), (0, UUIDS)])
def test_without_a_driver_or_a_wish_nothing_happens(here, tmp_path, wanted, uuids):
    here.setattr(devices, "installed", lambda: uuids)
    facts = claim(wanted)
    assert facts["assigned_by"] == "none" and facts["cuda_visible_devices"] is None
    assert VISIBLE not in os.environ and not (tmp_path / "locks").exists()
    assert visible("0,1", []) == visible("MIG-12", []) == {}


def test_what_slurm_assigned_is_used_as_it_is(here, tmp_path):
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, "1")
    facts = claim(1)
    assert facts["assigned_by"] == "slurm" and facts["cuda_visible_devices"] == "1"
    assert facts["uuid"] == UUIDS[1]
    assert os.environ[VISIBLE] == "1" and not (tmp_path / "locks").exists()


def test_of_several_gpus_from_slurm_one_is_used_and_jobs_within_never_share(here, start, caplog):
    """A local run inside an allocation of several GPUs has several jobs in one SLURM job."""
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, "0,2")
    assert claim(1)["uuid"] == UUIDS[0] and os.environ[VISIBLE] == "0"
    assert "SLURM gave this job 2 GPUs (0,2); it uses one" in caplog.text
    beside = start(uuids=UUIDS, **{VISIBLE: "0,2", "SLURM_JOB_ID": "7"})
    assert claimed(beside)["uuid"] == UUIDS[2]


@pytest.mark.parametrize("listed", ["0", "0,1"])
def test_of_pretend_gpus_of_slurm_without_a_driver_the_first_is_used(here, listed):
    here.setattr(devices, "installed", lambda: [])
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, listed)
    facts = claim(1)
    assert facts["assigned_by"] == "slurm" and facts["uuid"] is None
    assert os.environ[VISIBLE] == "0"


def test_a_numbered_device_is_locked_once_and_keeps_its_number_or_is_a_clear_error(here, start):
    here.setenv("SLURM_JOB_ID", "7")  # which has assigned none
    with pytest.raises(DeviceError, match=r"cuda:3: only 3 GPU\(s\) are visible"):
        claim(1, "cuda:3")
    facts = claim(1, "cuda:1")
    assert facts["uuid"] == UUIDS[1] and facts["assigned_by"] == "lock"
    assert VISIBLE not in os.environ
    assert claimed(start(uuids=UUIDS[1:]))["uuid"] == UUIDS[2]


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_lock_folder_that_others_may_write_is_refused(here, tmp_path, kind):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if kind == "link":
        (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    elif kind == "open":
        (tmp_path / "locks").mkdir()
        (tmp_path / "locks").chmod(0o777)
    else:
        (tmp_path / "locks").touch()
    with pytest.raises(DeviceError, match="locks: must be a folder that belongs to you alone"):
        claim(1)


def test_a_device_is_claimed_before_cuda_starts(here):
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    here.setitem(sys.modules, "torch", torch)
    with pytest.raises(RuntimeError, match="before CUDA is initialised"):
        claim(1)


# --- several jobs on a device


def test_jobs_that_share_spread_over_the_devices_before_they_double_up(start):
    jobs = [start(sharing=2) for _ in range(4)]
    facts = [claimed(job) for job in jobs]
    assert Counter(fact["uuid"] for fact in facts) == {UUIDS[0]: 2, UUIDS[1]: 2}
    assert {fact["sharing"] for fact in facts} == {2}
    fifth = start(sharing=2)
    wait_for_the_device(fifth)
    end(jobs[2])
    assert claimed(fifth)["uuid"] == facts[2]["uuid"]


def test_small_jobs_that_come_later_do_not_keep_a_large_one_waiting(start):
    running = [start(sharing=3, uuids=UUIDS[:1]) for _ in range(2)]
    for job in running:
        claimed(job)
    large = start(uuids=UUIDS[:1])
    wait_for_the_device(large)
    later = start(sharing=3, uuids=UUIDS[:1])  # there is room for it beside the two
    wait_for_the_device(later)
    end(running[0])
    end(running[1])
    claimed(large)
    end(large)
    claimed(later)


def test_a_job_that_is_killed_while_it_waits_leaves_the_queue(start):
    small = start(sharing=2, uuids=UUIDS[:1])
    claimed(small)
    large = start(uuids=UUIDS[:1])
    wait_for_the_device(large)
    end(large)
    assert claimed(start(sharing=2, uuids=UUIDS[:1]))["waited_s"] < 1


def pass_by(number, events, *arguments):
    """Hold a device for a moment; half of the jobs end so that only the kernel cleans up."""
    chance = random.Random(number)
    time.sleep(chance.random() / 2)
    sharing = chance.choice([1, 2, 3, 3])
    uuid = claim_in_job(*arguments, 1, "auto", sharing)["uuid"]
    for change in (1, -1):
        os.write(events, (json.dumps([uuid, sharing, change]) + "\n").encode())
        time.sleep(chance.random() / 10 if change > 0 else 0)
    if chance.random() < 0.5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_crowd_of_jobs_all_get_a_device_and_none_more_than_it_has_room_for(tmp_path):
    events = os.open(tmp_path / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    arguments = (events, tmp_path / "log", tmp_path / "locks", UUIDS[:2], {})
    crowd = [FORK.Process(target=pass_by, args=(number, *arguments)) for number in range(40)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    os.close(events)
    lines = (tmp_path / "events").read_text().splitlines()
    assert len(lines) == 2 * len(crowd)
    used, most = Counter(), Counter()
    for uuid, sharing, change in map(json.loads, lines):
        used[uuid] += Fraction(change, sharing)
        most[uuid] = max(most[uuid], used[uuid])
        assert used[uuid] <= 1
    assert set(most.values()) == {1}  # and there was a crowd


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_a_gpu_without_memory_left_is_explained(here, text):
    alone = out_of_memory(RuntimeError(text))
    assert text.splitlines()[0] in alone and "jobs_per_gpu" not in alone
    shared = out_of_memory(RuntimeError(text), claim(1, sharing=4)["sharing"])
    assert "(run.jobs_per_gpu: 4), lower that, or set share_gpu: false" in shared


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("can't allocate memory")])
def test_another_error_is_not_taken_for_it(error):
    assert out_of_memory(error) is None


# --- the workflow


def test_the_config_says_which_models_share_a_gpu(content):
    assert load(content).jobs_per_gpu_of("ae") == 1  # unless it is asked for
    content["run"]["jobs_per_gpu"] = 4
    cfg = load(content)
    assert cfg.jobs_per_gpu_of("ae") == 4
    assert cfg.jobs_per_gpu_of("pddpm") == 1


def test_every_rule_that_asks_for_a_gpu_asks_for_slots_of_it(root):
    rules = "".join(path.read_text() for path in root.glob("rules/*.smk"))
    asking = re.findall(r"^    resources:\n((?: {8}.*\n)+)", rules, re.M)
    asking = [text for text in asking if re.search(r"^ +gpu=", text, re.M)]
    assert len(asking) >= 4
    assert all("gpu_slots=" in text for text in asking)


#: In place of train_model.py: holds its GPU, the pretend one of this machine, until a second job
#: is on it, too, where that is to be.
TRAINING = """
import json, os, time
from pathlib import Path
from uad import config
from uad.run import devices
devices.installed = lambda: ["GPU-aaaa1111"]
devices.LOCKS = Path("locks").absolute()
sharing = config.load(snakemake.config).jobs_per_gpu_of(snakemake.wildcards.method)
facts = devices.claim(snakemake.resources.gpu, sharing=sharing)
own = Path(f"on_the_gpu-{os.getpid()}")
own.touch()
began, seen, now = time.monotonic(), 0, 0
while now < sharing and time.monotonic() < began + 20 or time.monotonic() < began + 0.5:
    now = len(list(Path().glob("on_the_gpu-*")))
    seen = max(seen, now)
    time.sleep(0.05)
own.unlink()
for path in snakemake.output:
    Path(path).write_text(json.dumps({"seen": seen, "waited": facts["waited_s"]}))
"""
METHODS = {"ae": 2, "pddpm": 1}


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Two folds of a small and of a large method, trained on one GPU with room for two small jobs.

    Returns the folder, the copy of the repository that it was made with, and what is asked for.
    """
    folder = tmp_path_factory.mktemp("shared")
    snapshot(root, folder / "code")
    (folder / "code/workflow_scripts/train_model.py").write_text(TRAINING)
    make_stand_ins(folder, ixi=12, brats21=10, mslub=4)
    overlay = folder / "two.yaml"
    overlay.write_text(yaml.safe_dump({**SMALL_SPLITS, "run": {"jobs_per_gpu": 2}}))
    cells = [f"{method}/fold-{fold}" for method in METHODS for fold in (0, 1)]
    models = [f"results/models/cross_T2/{cell}/model.safetensors" for cell in cells]
    run = ("--cores", 4, "--configfile", overlay, "--")
    snakemake(folder / "code", folder, *run, "results/participants/ixi.tsv")
    splits = [f"results/splits/cross_T2/fold-{fold}.tsv" for fold in (0, 1)]
    touch(folder, "results/slices/ixi_T2.safetensors", *splits)
    snakemake(folder / "code", folder, *run, *models)
    return folder, folder / "code", models


def planned(trained, changes, *arguments):
    """The output of a dry run with another overlay."""
    folder, code, models = trained
    overlay = folder / "other.yaml"
    overlay.write_text(yaml.safe_dump({**SMALL_SPLITS, **changes}))
    return snakemake(code, folder, "-n", *arguments, "--configfile", overlay, "--", *models)


@pytest.mark.slow
def test_snakemake_starts_as_many_jobs_as_the_gpu_has_room_for_and_none_that_waits(trained):
    folder, _, models = trained
    for path in models:
        told = json.loads((folder / path).read_text())
        assert told["seen"] == METHODS[path.split("/")[3]]
        assert told["waited"] < 0.9 * devices.PAUSE


@pytest.mark.slow
def test_how_many_jobs_share_a_gpu_changes_no_result(trained):
    alone = {"run": {"jobs_per_gpu": 1}, "models": {"ae": {"share_gpu": False}}}
    assert "Nothing to be done" in planned(trained, alone)


@pytest.mark.slow
def test_a_scheduler_is_asked_for_one_gpu_for_each_job_whoever_shares(trained):
    changes = {"run": {"jobs_per_gpu": 2}, "train": {"epochs": 7}}
    output = planned(trained, changes, "--workflow-profile", trained[1] / "profiles/slurm")
    assert job_counts(output)["train_model"] == 4
    asked = re.findall(r"^rule train_model:\n(?:.+\n)*? *resources: (.+)", output, re.M)
    assert {re.search(r"\bgpu=(\d+)", text)[1] for text in asked} == {"1"}
