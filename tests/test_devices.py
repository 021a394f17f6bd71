"""GPUs: one job, one device, also on a machine where nobody but Snakemake hands them out."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from uad import devices
from uad.devices import VISIBLE, DeviceError, claim, visible

UUIDS = ["GPU-aaaa1111", "GPU-bbbb2222", "GPU-bbcc3333"]

#: A job: claims one of the pretend devices, says which, and holds it until it is killed.
JOB = """
import json, os, sys, time
from pathlib import Path
from uad import devices
devices.installed = lambda: {uuids!r}
devices.PAUSE = 0.05
facts = devices.claim({wanted}, {device!r}, locks=Path({locks!r}))
print(json.dumps({{**facts, "environment": os.environ.get("CUDA_VISIBLE_DEVICES"),
                   "torch": "torch" in sys.modules}}), flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path, root):
    """Starts jobs; what is still running at the end is ended."""
    running = []

    def start(wanted=1, device="auto", uuids=UUIDS[:2], locks=tmp_path / "locks", **environment):
        script = JOB.format(wanted=wanted, device=device, uuids=list(uuids), locks=str(locks))
        log = tmp_path / f"job-{len(running)}.log"
        clean = {k: v for k, v in os.environ.items() if k not in (VISIBLE, "SLURM_JOB_ID")}
        with log.open("w") as stream:
            job = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script)],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**clean, "PYTHONPATH": str(root / "workflow_scripts"), **environment},
            )
        job.log = log
        running.append(job)
        return job

    yield start
    for job in running:
        job.kill()
        job.communicate()


@pytest.fixture
def here(monkeypatch, tmp_path):
    """This process as a job of a machine with three pretend devices."""
    monkeypatch.setattr(devices, "installed", lambda: UUIDS)
    monkeypatch.setattr(devices, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(devices, "_held", held := [])
    monkeypatch.setattr(devices, "_claimed", {})
    for name in (VISIBLE, "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # so that it is put back whatever the call does
        monkeypatch.delenv(name)
    yield monkeypatch
    for descriptor in held:
        os.close(descriptor)


def claimed(job):
    """What a job says that it has claimed."""
    line = job.stdout.readline()
    assert line, job.log.read_text()
    return json.loads(line)


def test_two_jobs_get_two_devices_and_a_third_the_one_that_a_killed_job_held(start):
    jobs = [start(), start()]
    facts = [claimed(job) for job in jobs]
    assert {fact["uuid"] for fact in facts} == {fact["environment"] for fact in facts}
    assert {fact["uuid"] for fact in facts} == set(UUIDS[:2])
    assert {fact["assigned_by"] for fact in facts} == {"lock"}
    third = start()
    deadline = time.monotonic() + 20
    while "waiting for a GPU" not in third.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    jobs[1].send_signal(signal.SIGKILL)
    freed = claimed(third)
    assert freed["uuid"] == facts[1]["uuid"] and freed["waited_s"] > 0
    assert third.log.read_text().count("\n") == 1  # said once, however long it lasts


def test_many_jobs_at_once_never_share_a_device(start):
    jobs = [start(uuids=UUIDS) for _ in range(3)]
    assert sorted(claimed(job)["index"] for job in jobs) == [0, 1, 2]


def test_claiming_does_not_load_torch(start):
    assert not claimed(start())["torch"]


def test_a_list_of_visible_devices_is_respected(start):
    jobs = [start(uuids=UUIDS, **{VISIBLE: "2,1"}) for _ in range(2)]
    facts = sorted((claimed(job) for job in jobs), key=lambda fact: fact["index"])
    assert [fact["environment"] for fact in facts] == ["1", "2"]
    assert [fact["uuid"] for fact in facts] == UUIDS[1:]
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
        ("1,1", []),
        ("0,GPU-aaaa", []),
        ("", []),
        ("NoDevFiles", []),
        ("MIG-12/1/0", ["MIG-12/1/0"]),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(listed, names):
    assert [device.name for device in visible(listed, UUIDS)] == names


def test_without_a_driver_nothing_is_visible_and_nothing_happens(here, tmp_path):
    here.setattr(devices, "installed", lambda: [])
    facts = claim(1)
    assert facts["assigned_by"] == "none" and facts["cuda_visible_devices"] is None
    assert VISIBLE not in os.environ and not (tmp_path / "locks").exists()
    assert visible("0,1", []) == visible("MIG-12", []) == []


def test_a_job_that_wants_no_gpu_takes_none(here, tmp_path):
    assert claim(0)["assigned_by"] == "none"
    assert VISIBLE not in os.environ and not (tmp_path / "locks").exists()


def test_what_slurm_assigned_is_used_as_it_is(here, tmp_path):
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, "1")
    facts = claim(1)
    assert facts["assigned_by"] == "slurm" and facts["cuda_visible_devices"] == "1"
    assert facts["index"] == 1 and facts["uuid"] == UUIDS[1]
    assert os.environ[VISIBLE] == "1" and not (tmp_path / "locks").exists()


def test_a_pretend_gpu_of_slurm_without_a_driver_is_left_alone(here):
    here.setattr(devices, "installed", lambda: [])
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, "0")
    facts = claim(1)
    assert facts["assigned_by"] == "slurm" and facts["uuid"] is None
    assert os.environ[VISIBLE] == "0"


def test_of_several_gpus_from_slurm_one_is_used_and_jobs_within_never_share(here, start, caplog):
    """A local run inside an allocation of several GPUs has several jobs in one SLURM job."""
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, "0,2")
    assert claim(1)["index"] == 0 and os.environ[VISIBLE] == "0"
    assert "SLURM gave this job 2 GPUs (0,2); it uses one" in caplog.text
    beside = start(uuids=UUIDS, **{VISIBLE: "0,2", "SLURM_JOB_ID": "7"})
    assert claimed(beside)["index"] == 2


def test_of_several_gpus_from_slurm_without_a_driver_the_first_is_used(here):
    here.setattr(devices, "installed", lambda: [])
    here.setenv("SLURM_JOB_ID", "7")
    here.setenv(VISIBLE, "0,1")
    assert claim(1)["assigned_by"] == "slurm" and os.environ[VISIBLE] == "0"


def test_a_slurm_job_without_an_assigned_gpu_locks_one(here):
    here.setenv("SLURM_JOB_ID", "7")
    assert claim(1)["assigned_by"] == "lock"


def test_a_numbered_device_is_locked_and_keeps_its_number(here, start):
    assert claim(1, "cuda:1")["uuid"] == UUIDS[1]
    assert VISIBLE not in os.environ
    assert claimed(start(uuids=UUIDS[1:]))["uuid"] == UUIDS[2]


def test_a_numbered_device_that_is_not_there_is_a_clear_error(here):
    with pytest.raises(DeviceError, match=r"cuda:3: only 3 GPU\(s\) are visible"):
        claim(1, "cuda:3")


def test_a_second_claim_of_a_job_gives_the_first_again(here):
    assert claim(1) == claim(1)


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
    with pytest.raises(DeviceError, match="locks: (must belong to you alone|not a folder)"):
        claim(1)


def test_a_lock_file_that_is_a_link_is_refused(here, tmp_path):
    (tmp_path / "locks").mkdir(mode=0o700)
    (tmp_path / "locks" / f"{UUIDS[0]}.lock").symlink_to(tmp_path / "target")
    with pytest.raises(DeviceError, match=r"lock: cannot be opened"):
        claim(1)
    assert not (tmp_path / "target").exists()


def test_a_device_is_claimed_before_cuda_starts(here):
    import torch

    here.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="before CUDA is initialised"):
        claim(1)
