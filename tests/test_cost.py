"""What a method costs: measured for every family, counted rightly, and put into a table."""

import json

import pytest
import torch
from torch import nn

from test_methods import CASES, CODE, make
from uad import cost
from uad.cost import measure
from uad.methods import families, load
from uad.methods.base import Setup
from uad.report.cost import cost_table, write_cost_table

SIZE, DEPTH, BATCH = 24, 8, 4
TRAINING = (
    "parameters",
    "gflops_per_slice_inference",
    "gflops_per_slice_training",
    "seconds_per_step",
    "slices_per_step",
)
LATE = "gflops_per_slice_training_late", "seconds_per_step_late"


def measured(method, **changes):
    """A measurement that takes a fraction of a second."""
    options = {"inference_batch": 3, "t_test": 750, "precision": "32-true", "device": "cpu"}
    return measure(method, (SIZE, SIZE, DEPTH), batch_size=BATCH, **(options | changes))


@pytest.fixture(scope="module")
def records():
    """One measurement per family, with a structural loss where it takes one."""
    found = {}
    for family in families():
        options = CASES[family][next(iter(CASES[family]))][0]
        loss = "ssim" if load(family).losses is None else "l2"
        method = load(family)(options, Setup(loss=loss, image_size=(SIZE, SIZE)))
        found[family] = method, measured(method)
    return found


@pytest.mark.parametrize("family", families())
def test_every_family_is_measured(records, family):
    method, record = records[family]
    expected = {"seconds_per_volume", "peak_memory_mb"}
    if method.trained:
        expected |= {*TRAINING}
        assert record["parameters"] == sum(p.numel() for p in method.build().parameters())
        assert record["slices_per_step"] == BATCH * method.sequence
        passes = 4 if family == "diffusion" else 1  # it restores patch by patch
        inference = record["gflops_per_slice_inference"] / passes
        for key in ("gflops_per_slice_training", LATE[0]):
            assert record[key] is None or record[key] > 1.5 * inference
    expected |= {*LATE} if not method.automatic else set()
    expected |= {"seconds_per_step_l1"} if method.losses is None else set()
    names = {*TRAINING, *LATE, "seconds_per_step_l1", "seconds_per_volume", "peak_memory_mb"}
    assert {key for key in names if record[key] is not None} == expected
    assert all(record[key] > 0 for key in expected)
    assert record["machine"] and record["threads"] == torch.get_num_threads()
    json.dumps(record)


def test_stages_of_a_training_are_measured_apart(records):
    _, record = records["adversarial"]
    # the GAN takes five steps of its critic, with a gradient of a gradient
    assert record["gflops_per_slice_training"] > 2 * record["gflops_per_slice_training_late"]


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_pixelwise_losses_have_no_overhead(loss):
    method = load("autoencoder")(CODE, Setup(loss=loss, image_size=(SIZE, SIZE)))
    assert measured(method)["seconds_per_step_l1"] is None


def test_operations_are_those_of_the_layers(records):
    method, record = records["autoencoder"]
    network, total = method.build().eval(), []

    def count(module, given, result):
        each = given[0] if isinstance(module, nn.ConvTranspose2d) else result
        spread = module.weight.shape[1:] if each.dim() == 4 else module.weight.shape[1:2]
        total.append(2 * each.numel() * spread.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(count)
    network(torch.zeros(1, 1, SIZE, SIZE))
    assert record["gflops_per_slice_inference"] == pytest.approx(sum(total) / 1e9)
    # twice that backwards, but no gradient of the image
    assert 2.5 < record["gflops_per_slice_training"] / (sum(total) / 1e9) < 3


def test_fused_layers_are_counted():
    """PyTorch fuses the transformer of this family at test time."""
    options = CASES["sequential"]["svae"][0]
    one, three = (measured(make("sequential", layers=n)) for n in (1, 3))
    assert one["gflops_per_slice_inference"] < three["gflops_per_slice_inference"]
    gained = three["gflops_per_slice_inference"] - one["gflops_per_slice_inference"]
    width = options["latent"]
    # queries, keys, values, output, twice-wide feed-forward: 8 squares; attention: 2 products
    products = 8 * width**2 + 2 * options["sequence"] * width
    assert gained * 1e9 == pytest.approx(2 * 2 * products)


def test_volumes_are_restored_as_in_the_workflow(monkeypatch):
    seen = {}

    def restore(method, network, volume, mask, **options):
        half = torch.is_autocast_enabled("cpu")
        seen.update(options, half=half, training=network.training)

    monkeypatch.setattr(cost, "reconstruct_volume", restore)
    method = make("diffusion", timesteps=500)
    record = measured(method, precision="bf16-mixed", seed=3)
    assert seen == {
        "t_test": 500,
        "batch": 3,
        "seed": 3,
        "device": "cpu",
        "precision": "bf16-mixed",
        "half": False,  # it is the restoring that knows its precision
        "training": False,
    }
    assert (record["t_test"], record["seed"], record["precision"]) == (500, 3, "bf16-mixed")


@pytest.mark.parametrize(("seconds", "runs"), [(0, 0), (1e9, cost.RUNS)])
def test_slow_steps_are_timed_less_often(monkeypatch, seconds, runs):
    monkeypatch.setattr(cost, "SECONDS", seconds)
    calls = []
    operations, median = cost._observe(lambda: calls.append(0), "cpu")
    assert (len(calls), operations) == (1 + runs, 0)
    assert median > 0


def test_table_of_the_records(records, tmp_path):
    table = cost_table(
        [
            {"method": family, "label": family, "loss": method.setup.loss, **record}
            for family, (method, record) in records.items()
        ]
    )
    without = {"adversarial", "thresholding"}
    assert set(table["method"][table["overhead_percent"].isna()]) == without
    paths = [tmp_path / f"cost.{ending}" for ending in ("csv", "md", "html", "tex")]
    facts = {"data_source": "random images", "seed": 0, "notes": []}
    write_cost_table(table, paths, phantom=False, caption_facts=facts)
    text = paths[1].read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| adversarial"))
    assert row.count(" / ") == 2
    shown = records["adversarial"][1]["machine"].split("@")[0].strip()
    for words in (shown, "threads", "Seed 0", "without the optimiser", "slices per step", "a / b"):
        assert words in text.replace("\\", "")
    assert f"| {BATCH * 4} |" in next(x for x in text.splitlines() if x.startswith("| sequential"))
