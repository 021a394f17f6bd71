"""What only a GPU can show, in some minutes: ``pytest -m gpu``. Skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from uad.config import Train
from uad.core.errors import out_of_memory
from uad.evaluate.reconstruct import Reconstructor
from uad.methods import load
from uad.methods.base import Setup
from uad.networks.execution import numerics, ready
from uad.train.batches import TrainingSet
from uad.train.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

SIZE = 96
NETWORK = {"channels": [32, 64], "num_res_blocks": 1, "num_head_channels": 32}
SETUP = Setup(loss="fusion", quality={"clamp": True}, image_size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def data():
    volumes = np.random.default_rng(0).random((16, SIZE, SIZE, 8), dtype=np.float32)
    return TrainingSet.from_volumes(volumes, volumes > 0, [np.arange(8)] * 16)


def run(data, folder, **loop):
    method = load("diffusion")({"network": NETWORK, "patch_grid": [2, 2]}, SETUP)
    options = {"epochs": 4, "batch_size": 8, "samples_per_volume": 2, "accelerator": "gpu"}
    facts = train(
        method, (data, data), folder, Train(**options | loop), keep="last", fixed_validation=True,
        seed=1, identity={},
    )  # fmt: skip
    return facts, pd.read_csv(folder / "history.csv"), (folder / "model.safetensors").read_bytes()


def test_a_deterministic_training_gives_the_same_bytes_twice(data, tmp_path):
    first, second = (run(data, tmp_path / name) for name in "ab")
    assert first[0]["device"].startswith("cuda")
    assert first[2] == second[2]


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "32-true"},
        {"precision": "bf16-mixed", "deterministic": False},
        {"precision": "bf16-mixed", "compile": "default"},
        {"layout": "channels_last"},
    ],
    ids=str,
)
def test_every_setting_learns_about_the_same(options, data, tmp_path):
    usual, other = (
        run(data, tmp_path / name, **settings)[1]["val_loss"].dropna()
        for name, settings in (("usual", {}), ("other", options))
    )
    assert np.abs(usual - other).max() < 0.05 * usual.iloc[0]


def test_a_step_does_not_wait_for_the_gpu(data):
    method = load("diffusion")({"network": NETWORK, "patch_grid": [2, 2]}, SETUP)
    network = method.build().cuda()
    (optimizer,) = method.optimizers(network, 1e-4)
    images = torch.rand(8, 1, SIZE, SIZE, device="cuda")

    def update(loss, number=0):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    generator = torch.Generator("cuda")
    with numerics("tf32"):
        method.training_step(network, images, images > 0, generator, update, 0.0)  # sets up
        torch.cuda.set_sync_debug_mode("error")
        try:
            method.training_step(network, images, images > 0, generator, update, 0.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", ["off", "default"])
def test_volumes_that_share_a_pass_are_what_they_are_alone(compile):
    method = load("diffusion")({"network": NETWORK, "patch_grid": [2, 2]}, SETUP)
    network = ready(method.build(), "cuda")
    how = {"t_test": 500, "batch": 16, "device": "cuda"}
    alone, together = (
        Reconstructor(method, network, **how, compile=mode) for mode in ("off", compile)
    )
    assert together.volumes_per_pass(8) == 2
    scans = np.random.default_rng(0).random((3, SIZE, SIZE, 8), dtype=np.float32)
    read = {str(n): (scan, scan > 0, n) for n, scan in enumerate(scans)}.__getitem__
    found = {}
    together.run(["0", "1", "2"], 8, read, found.__setitem__)
    for name, volume in found.items():
        np.testing.assert_allclose(volume, alone.volume(*read(name)), atol=1e-3)


def test_memory_that_runs_out_is_explained():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert out_of_memory(caught.value)


def test_a_job_claims_one_device_and_its_record_names_it():
    code = (
        "import json; from uad.run.devices import claim; facts = claim(1); import torch; "
        "print(json.dumps(facts | {'seen': torch.cuda.device_count()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["seen"] == 1 and facts["uuid"]
    assert Path("/proc/driver/nvidia/version").exists()  # what records take the driver from


def test_hd_bet_finds_the_same_brain_on_gpu_and_cpu():
    from uad.core.nifti import Scan
    from uad.preprocess.hdbet import HdBet

    distance = np.linalg.norm(np.mgrid[-40:40, -48:48, -40:40], axis=0)
    head = (distance < 38) * 300.0 + ((distance >= 38) & (distance < 40)) * 900.0
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    scan = Scan(head.astype(np.float32), affine, None, affine, Path("head.nii.gz"))
    on_gpu, on_cpu = (HdBet(device=device).predict(scan) for device in ("cuda", "cpu"))
    assert 2 * (on_gpu & on_cpu).sum() >= 0.99 * (on_gpu.sum() + on_cpu.sum())
