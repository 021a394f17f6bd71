"""The benchmarks: the reference path does our work, and every figure can be measured."""

import json
import math
import sys

import numpy as np
import opensimplex
import pytest
import torch

from conftest import ROOT
from uad import noise
from uad.diffusion import alphas_cumprod
from uad.evaluate import evaluate_volume, postprocess, search_threshold
from uad.evaluate.reconstruct import reconstruct_volume, to_slices
from uad.evaluate.score import score_volume
from uad.iqa import quality_map

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measure_speed  # noqa: E402
import summarise_run  # noqa: E402
from speed import cpu, gpu, limits, material, reference, tables, timing  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cases():
    """Two small phantom scans with tumours, and what a model might have made of them."""
    return material.make_cases(material.TINY)


def awake(network):
    """The same network with an output: its last convolution starts at zero."""
    cpu._wake(network)
    return network


class TestTheReferenceDoesOurWork:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
    def test_quality_maps(self, dtype, tolerance):
        generator = torch.Generator().manual_seed(1)
        x, y = (torch.rand(3, 1, 20, 24, generator=generator, dtype=dtype) for _ in range(2))
        own = quality_map("fusion", x, y, **material.QUALITY)
        torch.testing.assert_close(reference.fusion_map(x, y), own, atol=tolerance, rtol=0)

    def test_noise(self, monkeypatch):
        source = opensimplex.OpenSimplex(7)
        order = torch.empty(1, 256)  # sorting it gives the permutation of the package
        order[0, torch.from_numpy(source._perm)] = torch.arange(256.0)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: order)
        expected = reference.simplex_field(source, 12, 16)
        np.testing.assert_allclose(noise.simplex((12, 16)), expected, atol=5e-6)

    def test_one_noise_field_in_half_precision_for_a_batch(self):
        batch = reference.batch_noise((3, 1, 8, 6), seed=2)
        assert batch.shape == (3, 1, 8, 6)
        assert batch.dtype == torch.float16
        assert torch.equal(batch[0], batch[2])
        assert not torch.equal(batch, reference.batch_noise((3, 1, 8, 6), seed=3))

    def test_schedule(self):
        torch.testing.assert_close(reference.signal(), alphas_cumprod())

    @pytest.mark.parametrize("by_value", [False, True])
    def test_one_random_slice_of_every_volume(self, by_value):
        images = np.random.default_rng(0).random((6, 5, 4, 3), dtype=np.float32)
        volumes = reference.SharedVolumes(images, images > 0.5, by_value=by_value)
        try:
            drawn = [
                (image[0, ..., 0].numpy(), mask[0, ..., 0].numpy(), int(number))
                for _ in range(4)
                for batch in reference.loader(volumes, 2)
                for image, mask, number in zip(
                    batch["image"], batch["mask"], batch["slice"], strict=True
                )
            ]
        finally:
            volumes.close()
        owners = []
        for image, mask, number in drawn:
            owners += [n for n in range(6) if np.array_equal(images[n, ..., number], image)]
            assert np.array_equal(mask, image > 0.5)
        assert [sorted(owners[n : n + 6]) for n in (0, 6, 12, 18)] == [list(range(6))] * 4
        assert {number for *_, number in drawn} == {0, 1, 2}

    @pytest.mark.parametrize("batch", [1, 5, 12])
    def test_reconstruction(self, cases, batch):
        sizes, case = material.TINY, cases[0]
        method = material.make_method(sizes)
        torch.manual_seed(0)
        network = awake(method.build().eval())
        own = reconstruct_volume(
            method, network, case.volume, case.mask, t_test=400, batch=12, seed=5
        )
        slices = to_slices(case.volume).unsqueeze(1)
        field = method.noise(slices, torch.Generator().manual_seed(5), "simplex")
        found = reference.reconstruct(network, slices, field, 400, reference.signal(), batch)
        np.testing.assert_allclose(to_slices(own), found.squeeze(1), atol=2e-5)

    def test_training_step_is_a_step_down_the_same_loss(self, cases):
        method = material.make_method(material.TINY)
        torch.manual_seed(0)
        network = awake(method.build())
        images = to_slices(cases[0].volume)[3:7].unsqueeze(1)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        field = reference.batch_noise(images.shape, 1).float()
        losses = []
        for _ in range(12):
            torch.manual_seed(4)  # of levels and patches
            losses.append(
                reference.training_step(network, optimizer, images, field, reference.signal())
            )
        assert losses[-1] < losses[0]
        with torch.no_grad():
            scaled = images * 2 - 1
            level = torch.zeros(len(images), dtype=torch.long)
            box = reference.boxes(*images.shape[-2:])[2]
            restored = reference.restore(
                network, scaled, level, field, [box] * len(images), reference.signal()
            )
            own = method.quality_loss(scaled, restored)
            torch.testing.assert_close(reference.fusion_map(scaled, restored).mean(), own)
            outside = torch.ones_like(scaled, dtype=torch.bool)
            outside[..., box[0], box[1]] = False
            assert torch.equal(restored[outside], scaled[outside])

    def test_checkpointing_changes_no_gradient(self):
        method = material.make_method(material.TINY)
        inputs = torch.rand(2, 1, 24, 24), torch.tensor([3, 700])
        gradients = []
        for change in (lambda network: network, reference.checkpointed):
            torch.manual_seed(0)
            network = change(awake(method.build()))
            network(*inputs).square().mean().backward()
            gradients.append([p.grad for p in network.parameters()])
        wrapped = [m for m in network.modules() if "forward" in vars(m)]
        assert len(wrapped) > 5
        for first, second in zip(*gradients, strict=True):
            torch.testing.assert_close(first, second)

    def test_evaluation(self, cases):
        maps, threshold = [], None
        for case in cases:
            scores = score_volume("fusion", case.volume, case.reconstruction, **material.QUALITY)
            theirs = reference.score_volume(case.volume, case.reconstruction)
            np.testing.assert_allclose(scores, theirs, atol=1e-4)
            clean = postprocess(scores, case.mask, erosion=3, median=5)
            assert np.array_equal(clean, reference.postprocess(scores, case.mask))
            assert clean.any()
            maps.append(clean)
        lesions = [case.lesion for case in cases]
        own = search_threshold(maps, lesions)
        threshold, dice = reference.search_threshold(maps, lesions)
        assert own.threshold == pytest.approx(threshold, abs=1e-12)
        assert own.dice == pytest.approx(dice, abs=1e-12)
        for case, scores in zip(cases, maps, strict=True):
            row = evaluate_volume(scores, case.lesion, case.mask, threshold, 7)
            prediction = reference.drop_small_components(scores > threshold)
            assert row["dice"] == pytest.approx(reference.dice(prediction, case.lesion), abs=1e-12)
            expected = reference.average_precision(scores, case.lesion)
            assert row["auprc"] == pytest.approx(expected, abs=1e-12)
            assert 0 < row["dice"] < 1

    def test_components_are_dropped_by_their_filled_size(self):
        prediction = np.zeros((9, 9, 9), dtype=bool)
        prediction[0, 0, :7] = True
        prediction[2, 2, :8] = True
        kept = reference.drop_small_components(prediction)
        assert not kept[0].any()
        assert kept[2, 2].sum() == 8
        assert math.isnan(reference.dice(prediction & False, prediction & False))


@pytest.mark.slow
class TestFiguresOfACpu:
    @pytest.fixture(scope="class")
    def figures(self, tmp_path_factory):
        """Every figure at a tiny size; of the scripts only one."""
        root = tmp_path_factory.mktemp("repository")
        (root / "workflow_scripts").mkdir()
        script = "import json\n\nwith open(__file__):\n    from fractions import Fraction\n"
        (root / "workflow_scripts" / "make_table.py").write_text(script)
        said = []
        found = cpu.measure(cpu.FIGURES, root, material.TINY, material.TINY, say=said.append)
        assert len(said) == len(cpu.FIGURES)
        return found

    def test_all_are_measured(self, figures):
        assert tuple(figures) == cpu.FIGURES
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures

    def test_both_sides_take_time(self, figures):
        for name in ("data_and_noise", "evaluation", "inference"):
            assert figures[name]["ratio"]["median"] > 0
        data = figures["data_and_noise"]
        assert data["reference_s"]["together"]["median"] > data["ours_s"]["noise"]["median"] > 0
        assert data["noise_compiled"] is reference.NUMBA

    def test_metrics_agree(self, figures):
        evaluation = figures["evaluation"]
        assert evaluation["largest_difference"] < 1e-12
        assert max(evaluation["map_rounding"].values()) < 1e-4
        assert set(evaluation["stages_s"]) == set(cpu.STAGES)
        assert 0 < evaluation["mean_dice"] < 1

    def test_every_step_of_the_loop_is_between_two_bare_ones(self, figures):
        loop = figures["training_loop"]
        steps = material.TINY.epochs * material.TINY.steps
        assert loop["bare_step_s"]["runs"] == steps
        assert loop["step_s"]["runs"] == material.TINY.epochs * (material.TINY.steps - 1)
        assert loop["reference_step_s"]["runs"] == math.ceil(steps / 4)
        parts = loop["parts_s"]
        beyond = sum(parts.values()) / loop["bare_step_s"]["median"]
        assert loop["overhead"] == pytest.approx(beyond)

    def test_watching_a_training_does_not_change_it(self, cases, tmp_path):
        sizes, weights = material.TINY, []
        training = material.make_training_set(cases, sizes.batch * sizes.steps)
        width, height, _ = sizes.shape
        for watched in (False, True):
            method = material.make_method(sizes)
            if watched:
                build = method.build
                watch = cpu.Alternation(method, (sizes.batch, 1, height, width), 1).watch
                method.build = lambda build=build, watch=watch: watch(build())
            folder = tmp_path / str(watched)
            cpu._train(method, training, str(folder), sizes)
            weights.append((folder / "model.safetensors").read_bytes())
        assert weights[0] == weights[1]

    def test_imports(self, figures):
        program = cpu.import_program(ROOT / "workflow_scripts" / "make_table.py")
        assert "from uad.core.provenance import job" in program
        assert figures["imports"]["make_table_s"]["runs"] == 5
        assert figures["imports"]["scripts"]["make_table"]["loaded"] == []

    def test_imports_anywhere_in_a_script_count(self, tmp_path):
        path = tmp_path / "script.py"
        path.write_text("with open('x'):\n    import scipy\n")
        assert cpu._import_once(cpu.import_program(path), ROOT)[1] == ["scipy"]

    def test_limits_and_tables(self, figures):
        found = limits.check(figures, "cpu")
        unmeasured = [row["text"] for row in found if row["holds"] is None]
        assert unmeasured == ["the same with compiled reference noise"]  # no numba was named
        results = {**timing.conditions("cpu"), "figures": figures, "limits": found}
        text = tables.render_cpu(results)
        assert "**scoring and metrics of a volume, per core**" in text
        assert text.count("\n| ") > 30
        assert "nan" not in text


@pytest.mark.slow
class TestFiguresOfAGpu:
    """The code runs on a CPU, too; what a GPU alone has is its name and its speed."""

    @pytest.fixture(scope="class")
    def figures(self):
        with pytest.MonkeyPatch.context() as patch:
            # on a busy machine the longer of two such short trainings need not take longer
            patch.setattr(gpu, "per_epoch", lambda times, epochs: max(times) / max(epochs))
            return gpu.measure(gpu.FIGURES, material.TINY, gpu.TINY, "cpu", say=lambda _: None)

    def test_all_are_measured(self, figures):
        assert tuple(figures) == gpu.FIGURES
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures
        assert len(limits.check(figures, "gpu")) == len(limits.LIMITS["gpu"])

    def test_the_step_is_held_against_the_ceiling(self, figures):
        step, ceiling = figures["training_step"], figures["matmul"]["tflops"]["median"]
        rate = step["tflop_per_step"] / step["step_s"]
        assert step["fraction_of_ceiling"] == pytest.approx(rate / ceiling)
        assert step["minutes_of_steps"] == pytest.approx(step["step_s"] * 19_200 / 60)
        assert step["compile"] in gpu.TINY.modes

    def test_tables(self, figures):
        results = {
            **timing.conditions("cpu"),
            "figures": figures,
            "limits": limits.check(figures, "gpu"),
        }
        text = tables.render_gpu(results)
        assert "bf16 matmul ceiling" in text
        assert "reconstruction of 3 volumes" in text

    def test_an_epoch_is_a_difference_of_two_trainings(self):
        assert gpu.per_epoch((3.0, 23.0), (5, 45)) == pytest.approx(0.5)
        with pytest.raises(SystemExit, match="too busy"):
            gpu.per_epoch((3.0, 2.9), (5, 45))

    def test_operations_of_the_papers_network(self):
        with torch.device("meta"):
            network = material.make_method(material.PAPER_GPU).build()
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(37.51e6, rel=1e-3)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    def test_without_a_gpu_the_command_says_so(self, monkeypatch, tmp_path):
        output = tmp_path / "speed_gpu.json"
        monkeypatch.setattr(
            sys, "argv", ["measure_speed.py", "--device", "cuda", "--output", str(output)]
        )
        with pytest.raises(SystemExit, match="sees no GPU"):
            measure_speed.main()
        assert not output.exists()


class TestTiming:
    def test_both_sides_take_turns(self):
        calls, clock = [], iter(range(100))
        first, second = timing.alternate(
            lambda: calls.append("a"), lambda: calls.append("b"), 3, lambda: next(clock)
        )
        assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
        assert first == second == [1, 1, 1]

    def test_spread_and_ratio(self):
        assert timing.spread([4, 1, 2, 3, 5]) == {"median": 3, "low": 2, "high": 4, "runs": 5}
        assert timing.ratio([10, 20, 60], [1, 2, 3])["median"] == 10

    def test_conditions_name_machine_and_versions(self):
        found = timing.conditions("cpu")
        assert found["machine"]["cores"] >= 1
        assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


class TestLimits:
    def test_a_miss_is_told(self):
        figures = {"training_loop": {"overhead": 0.06}, "evaluation": {"largest_difference": 0.0}}
        found = {row["text"]: row["holds"] for row in limits.check(figures, "cpu")}
        assert list(found.values()) == [False, None, None, None, True, None]
        shown = tables.render_limits({"limits": limits.check(figures, "cpu")})
        assert shown.count("MISSED") == 1
        assert shown.count("ok") == 1
        assert shown.count("not measured") == 4

    def test_only_strict_fails(self, monkeypatch, tmp_path):
        readme = tmp_path / "README.md"
        readme.write_text((BENCHMARKS / "README.md").read_text())
        slow = {"make_table_s": {"median": 9.0}, "scripts": {}}
        monkeypatch.setattr(cpu, "measure", lambda *_: {"imports": slow})
        command = ["measure_speed.py", "--figures", "imports", "--readme", str(readme)]
        command += ["--output", str(tmp_path / "speed.json")]
        monkeypatch.setattr(sys, "argv", command)
        assert measure_speed.main() == 0
        monkeypatch.setattr(sys, "argv", [*command, "--strict"])
        assert measure_speed.main() == 1
        assert "| 9 | MISSED |" in readme.read_text()

    def test_an_unknown_figure(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["measure_speed.py", "--figures", "import"])
        with pytest.raises(SystemExit, match="no figure 'import'"):
            measure_speed.main()


class TestReadme:
    @pytest.mark.parametrize("name", tables.BLOCKS)
    def test_its_tables_are_those_of_the_files(self, name):
        text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
        assert tables.replace(text, name, tables.render(name, BENCHMARKS)) == text, (
            "run python benchmarks/measure_speed.py --table"
        )

    def test_a_block_that_is_not_there(self):
        with pytest.raises(ValueError, match="must stand there once"):
            tables.replace("nothing", "speed", "x")


class TestSummaryOfARun:
    @pytest.fixture
    def results(self, tmp_path):
        """Two trainings of 10 s on 2 threads, one after the other, and a table."""
        records = [
            ("models/a", "train_model", 2, "10:00:00", 10),
            ("models/b", "train_model", 2, "10:00:20", 10),
            ("tables/t", "make_table", 1, "10:00:30", 10),
        ]
        for place, rule, threads, start, seconds in records:
            path = tmp_path / "results" / f"{place}.prov.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {
                "rule": rule,
                "threads": threads,
                "started": f"2026-01-02T{start}Z",
                "seconds": seconds,
                "record_seconds": 0.02,
                "code": {"commit": "abc"},
                "host": {"platform": "Linux"},
            }
            path.write_text(json.dumps(record))
        path = tmp_path / "results" / "benchmarks" / "train_model" / "x" / "a.tsv"
        path.parent.mkdir(parents=True)
        path.write_text("s\th:m:s\tcpu_time\n12.5\t0:00:12\t20\n")
        return tmp_path / "results"

    def test_rules_by_what_they_took(self, results):
        found = summarise_run.summarise(results, cores=2)
        assert [rule["rule"] for rule in found["rules"]] == ["train_model", "make_table"]
        training = found["rules"][0]
        assert training["jobs"] == 2
        assert training["core_seconds"] == 40
        assert training["seconds_a_job"] == 10
        assert training["seconds_with_start"] == 12.5
        assert training["share"] == pytest.approx(0.8)
        assert found["rules"][1]["seconds_with_start"] is None
        assert found["wall_s"] == 40
        assert found["busy"] == pytest.approx(50 / 80)
        assert found["record_seconds"] == pytest.approx(0.06)

    def test_the_command_writes_file_and_table(self, results, monkeypatch, tmp_path, capsys):
        readme = tmp_path / "README.md"
        readme.write_text((BENCHMARKS / "README.md").read_text())
        command = ["summarise_run.py", str(results), "--cores", "2", "--readme", str(readme)]
        monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "demo.json")])
        assert summarise_run.main() == 0
        row = "| `train_model` | 2 | 40 | 10.00 | 12.50 | 80.0% |"
        assert row in capsys.readouterr().out
        assert row in readme.read_text()
        assert "records took 0 core seconds of it: 0.1%" in readme.read_text()

    def test_a_directory_without_records(self, tmp_path):
        with pytest.raises(SystemExit, match="no \\*.prov.json"):
            summarise_run.summarise(tmp_path, 2)
