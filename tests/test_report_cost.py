"""What a method costs: measured for every family, counted rightly, and put into a table."""

import json

import pytest
import torch
from torch import nn

from test_methods import CASES, make
from test_report_tables import compile_tex
from uad.cost import measure
from uad.methods import families, load
from uad.methods.base import Setup
from uad.report.cost_table import COST_COLUMNS, cost_table, write_cost_table

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
        loss = "ssim" if load(family).losses is None else "l2"  # a pixelwise one has no overhead
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
    assert record["t_test"] == min(750, getattr(method.options, "timesteps", 750))
    json.dumps(record)


def test_stages_of_a_training_are_measured_apart(records):
    _, record = records["adversarial"]
    # the GAN takes five steps of its critic, with a gradient of a gradient
    assert record["gflops_per_slice_training"] > 2 * record["gflops_per_slice_training_late"]


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


# --- the table


def cost(method, **changes):
    record = {
        "method": method,
        "label": method.upper(),
        "parameters": 14_912_345,
        "gflops_per_slice_inference": 12.3456,
        "gflops_per_slice_training": 37.1,
        "seconds_per_step": 0.0125,
        "seconds_per_step_l1": 0.01,
        "seconds_per_volume": 3.2,
        "peak_memory_mb": 1532,
        "batch_size": 32,
        "image_size": [96, 80],
        "device": "NVIDIA A10",
        "threads": 4,
        "precision": "32-true",
    }
    return record | changes


UNTRAINED = dict.fromkeys([*TRAINING[:4], "seconds_per_step_l1"])


def texts_of(folder, records, phantom=False):
    paths = [folder / f"cost.{suffix}" for suffix in ("csv", "md", "html", "tex")]
    write_cost_table(cost_table(records), paths, phantom=phantom, seed="0")
    return {path.suffix[1:]: path.read_text() for path in paths}


def test_costs_are_in_every_format_with_what_does_not_apply_as_a_dash(tmp_path):
    assert list(cost_table([cost("b")])) == COST_COLUMNS
    texts = texts_of(tmp_path, [cost("b"), cost("a", **UNTRAINED)])
    first, second = texts["csv"].splitlines()[1:]
    assert first == (
        "b,B,14912345,12.3456,37.1,nan,0.0125,nan,0.01,25,3.2,1532,32,nan,nan,96x80,NVIDIA A10,4,"
        "32-true,nan"
    )
    assert second.startswith("a,A" + 8 * ",nan" + ",3.2,1532,32,")
    assert "| B | 14.9 M | 12.3 | 37.1 | 0.0125 | 0.0100 | +25 % | 3.20 | 1532 |" in texts["md"]
    assert "| A | – | – | – | – | – | – | 3.20 | 1532 |" in texts["md"]
    for suffix in ("md", "html"):
        assert "measured in this run" in texts[suffix] and "phantom" not in texts[suffix]
        said = "device NVIDIA A10, threads 4, precision 32-true, batch size 32"
        assert said in texts[suffix]
    phantom = texts_of(tmp_path, [cost("a")], phantom=True)
    assert "need not be the sizes of the paper" in phantom["html"]


def test_conditions_that_differ_are_named_together(tmp_path):
    records = [cost("a", machine="host"), cost("b", batch_size=4, device="CPU", machine="host")]
    text = texts_of(tmp_path, records)["md"]
    assert "Measured on: machine host, device NVIDIA A10 or CPU, threads 4, precision" in text
    assert "batch size 32 or 4, image size 96x80." in text


@pytest.mark.parametrize(
    ("number", "changes", "shown"),
    [(25.4, {}, "+25 %"), (-3.2, {}, "−3 %"), (-0.2, {}, "+0 %"), (25, {"loss": "l1"}, "–")],
)
def test_the_overhead_is_that_over_l1_where_the_loss_is_another(tmp_path, number, changes, shown):
    record = cost("a", seconds_per_step=0.01 * (1 + number / 100), **changes)
    assert f"| {shown} | 3.20 |" in texts_of(tmp_path, [record])["md"]


def test_the_cost_table_fits_the_line(tmp_path):
    texts_of(tmp_path, [cost("plain_&_simple"), cost("b", label="B " * 30)])
    assert "Overfull" not in compile_tex([tmp_path / "cost.tex"])


def test_every_measured_family_is_a_row(records, tmp_path):
    rows = [
        {"method": family, "label": family, "loss": method.setup.loss, **record}
        for family, (method, record) in records.items()
    ]
    table = cost_table(rows)
    without = {"adversarial", "control", "thresholding"}
    assert set(table["method"][table["overhead_percent"].isna()]) == without
    text = texts_of(tmp_path, rows)["md"]
    assert next(x for x in text.splitlines() if x.startswith("| adversarial")).count(" / ") == 2
    assert "a / b: at the start / at the end" in text
