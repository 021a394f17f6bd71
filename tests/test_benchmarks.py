"""The benchmarks: the reference path does our work, and every figure can be measured."""

import json
import shutil
import sys

import numpy as np
import opensimplex
import pytest
import torch
import yaml

from conftest import ROOT
from uad import noise
from uad.evaluate.reconstruct import Reconstructor
from uad.iqa import quality_map
from uad.networks.execution import to_slices

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measure_speed  # noqa: E402
import reference_path as reference  # noqa: E402
import speed_figures  # noqa: E402
import speed_material  # noqa: E402
import speed_tables  # noqa: E402
import speed_training  # noqa: E402
from speed_material import TINY  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cases():
    """Two small phantom scans with tumours, and what a model might have made of them."""
    return speed_material.make_cases(TINY)


@pytest.fixture
def network():
    """pDDPM's network with an output: its last convolution starts at zero."""
    torch.manual_seed(0)
    return speed_figures.awake(speed_material.make_method(TINY).build())


class TestTheReferenceDoesOurWork:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
    def test_quality_maps(self, dtype, tolerance):
        generator = torch.Generator().manual_seed(1)
        x, y = (torch.rand(3, 1, 20, 24, generator=generator, dtype=dtype) for _ in range(2))
        own = quality_map("fusion", x, y, **speed_material.QUALITY)
        torch.testing.assert_close(reference.fusion_map(x, y), own, atol=tolerance, rtol=0)

    def test_noise(self, monkeypatch):
        source = opensimplex.OpenSimplex(7)
        order = torch.empty(1, 256)  # sorting it gives the permutation of the package
        order[0, torch.from_numpy(source._perm)] = torch.arange(256.0)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: order)
        expected = reference.simplex_field(source, 12, 16)
        np.testing.assert_allclose(noise.simplex((12, 16)), expected, atol=5e-6)

    def test_reconstruction(self, cases, network):
        method, case = speed_material.make_method(TINY), cases[0]
        reconstructor = Reconstructor(method, network.eval(), t_test=400, batch=12)
        own = reconstructor.volume(case.volume, case.mask, seed=5)
        slices = to_slices(case.volume).unsqueeze(1)
        field = method.noise(slices, torch.Generator().manual_seed(5), "simplex")
        found = reference.reconstruct(network, slices, field, 400, reference.signal())
        np.testing.assert_allclose(to_slices(own), found.squeeze(1), atol=2e-5)

    def test_training_step_is_a_step_down_the_same_loss(self, cases, network):
        method, signal = speed_material.make_method(TINY), reference.signal()
        images = to_slices(cases[0].volume)[3:7].unsqueeze(1)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        field = reference.batch_noise(images.shape, 1).float()
        losses = []
        for _ in range(12):
            torch.manual_seed(4)  # of levels and patches
            losses.append(reference.training_step(network, optimizer, images, field, signal))
        assert losses[-1] < losses[0]
        scaled, box = images * 2 - 1, reference.boxes(*images.shape[-2:])[2]
        with torch.no_grad():
            level = torch.zeros(len(images), dtype=torch.long)
            restored = reference.restore(network, scaled, level, field, [box] * 4, signal)
        own = method.quality_loss(scaled, restored)
        torch.testing.assert_close(reference.fusion_map(scaled, restored).mean(), own)
        outside = torch.ones_like(scaled, dtype=torch.bool)
        outside[..., box[0], box[1]] = False
        assert torch.equal(restored[outside], scaled[outside])

    def test_evaluation(self, cases):
        _, ours = speed_figures.OURS.stages(cases)
        _, theirs = speed_figures.REFERENCE.stages(cases)
        np.testing.assert_allclose(ours["maps"], theirs["maps"], atol=1e-4)
        _, same = speed_figures.REFERENCE.stages(cases, ours["maps"])
        for key in ("threshold", "judged"):
            np.testing.assert_allclose(ours[key], same[key], atol=1e-12)
        assert 0 < np.min(ours["judged"]) <= np.max(ours["judged"]) < 1


@pytest.mark.slow
@pytest.mark.parametrize(("device", "limits"), [("cpu", 6), ("cuda", 5)])
def test_all_figures_are_measured_at_a_tiny_size_on_a_cpu(device, limits, monkeypatch):
    # on a busy machine the longer of two such short trainings need not take longer
    longest = lambda times, epochs: max(times) / max(epochs)  # noqa: E731
    monkeypatch.setattr(speed_training, "per_epoch", longest)
    found = {"limits": [], "pairs": [], "values": []}
    for figure in measure_speed.FIGURES[device].values():
        for kind, entry in figure(TINY):
            found[kind].append(entry)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(min(e["reference_s"], e["ours_s"], e["ratio"]) > 0 for e in found["pairs"])
    text = speed_tables.render_speed(speed_material.conditions("cpu") | found)
    assert text.count("\n| ") >= sum(map(len, found.values())) and "nan" not in text
    assert len(found["limits"]) == limits
    holds = {entry["text"].split(":")[0]: entry["holds"] for entry in found["limits"]}
    assert holds.get("threshold, Dice and AUPRC of a map", True)


def test_an_epoch_is_a_difference_of_two_trainings():
    assert speed_training.per_epoch((3.0, 23.0), (5, 45)) == pytest.approx(0.5)
    with pytest.raises(SystemExit, match="too busy"):
        speed_training.per_epoch((3.0, 2.9), (5, 45))


def test_the_plan_takes_the_rate_of_a_measured_gpu(tmp_path):
    costs = tmp_path / "unit_costs.yaml"
    shutil.copy(BENCHMARKS.parent / "resources/unit_costs.yaml", costs)
    rate = {"what": "tf32: reached by a step", "value": 123.4, "unit": "TFLOP/s"}
    facts = {"values": [rate], "machine": {"gpu": "H200"}, "date": "2027-01-02T00:00:00Z"}
    speed_tables.set_gpu_rate(costs, facts)
    before, after = (
        yaml.safe_load(path.read_text())
        for path in (BENCHMARKS.parent / "resources/unit_costs.yaml", costs)
    )
    gpu = after["rates"].pop("gpu")
    assert gpu["tflops"] == 123 and "H200, 2027-01-02" in gpu["how"]
    assert before["rates"].pop("gpu") and after == before


class TestTheCommand:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """A copy of README.md, and one quick figure that misses its limit."""
        shutil.copy(BENCHMARKS / "README.md", tmp_path)
        slow = [speed_tables.limit("quick", 9.0, at_most=5), speed_tables.value("it took", 9, "s")]
        monkeypatch.setitem(measure_speed.FIGURES, "cpu", {"quick": lambda sizes: slow})
        return tmp_path

    def test_writes_file_and_table_and_fails_for_a_miss_only_if_strict(self, folder, capsys):
        assert measure_speed.main(["--folder", str(folder)]) == 0
        assert "| quick | 9 | MISSED |" in (folder / "README.md").read_text()
        assert "| it took | 9 s |" in capsys.readouterr().out
        assert json.loads((folder / "speed.json").read_text())["machine"]["cores"] >= 1
        assert measure_speed.main(["--folder", str(folder), "--strict"]) == 1

    def test_measures_some_figures_without_writing(self, folder, capsys):
        assert measure_speed.main(["--folder", str(folder), "quick"]) == 0
        assert "MISSED" in capsys.readouterr().out and not (folder / "speed.json").exists()
        with pytest.raises(SystemExit, match="no figure 'quack': quick"):
            measure_speed.main(["quack"])


def test_the_tables_of_the_readme_are_those_of_the_files():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert speed_tables.with_tables(text, BENCHMARKS) == text, (
        "run python benchmarks/measure_speed.py --table"
    )
