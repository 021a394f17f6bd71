"""Noise: the reference implementation, reproducibility, and statistics."""

import math

import numpy as np
import opensimplex
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uad import noise

torch.set_num_threads(1)

KINDS = (noise.simplex, noise.coarse, noise.gaussian)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def reference(source, height, width, octaves, persistence, frequency):
    """AnoDDPM's octave sum over the PyPI package, one pixel after the other."""
    field = np.zeros((height, width))
    for i in range(octaves):
        scale = frequency / 2**i
        field += persistence**i * source.noise2array(
            np.arange(width) / scale, np.arange(height) / scale
        )
    return field


def own(permutation, height, width, octaves, persistence, frequency):
    geometry = noise._geometry(height, width, octaves, persistence, float(frequency), "cpu")
    return noise._evaluate(permutation, *geometry).reshape(-1, height, width)


class TestSimplexIsOpenSimplex:
    @pytest.mark.parametrize(
        ("height", "width", "octaves", "persistence", "frequency"),
        [
            (24, 30, 6, 0.8, 64),  # the paper's
            (20, 33, 1, 0.8, 5.3),
            (17, 9, 3, 0.5, 2),
            (5, 40, 2, 0.9, 0.05),  # past 256 lattice units: the table repeats
        ],
    )
    def test_same_values_as_the_package_for_the_same_permutation(
        self, height, width, octaves, persistence, frequency
    ):
        sources = [opensimplex.OpenSimplex(seed) for seed in (3, 1234)]
        tables = torch.from_numpy(np.stack([source._perm for source in sources]))
        found = own(tables, height, width, octaves, persistence, frequency)
        for field, source in zip(found, sources, strict=True):
            expected = reference(source, height, width, octaves, persistence, frequency)
            np.testing.assert_allclose(field, expected, atol=5e-6)

    @given(st.integers(0, 2**31), st.floats(0.3, 80), st.integers(1, 4))
    def test_for_any_seed_and_scale(self, seed, frequency, octaves):
        source = opensimplex.OpenSimplex(seed)
        found = own(torch.from_numpy(source._perm)[None], 6, 7, octaves, 0.8, frequency)
        expected = reference(source, 6, 7, octaves, 0.8, frequency)
        np.testing.assert_allclose(found[0], expected, atol=5e-6)

    def test_no_point_of_the_plane_has_more_than_four_lattice_points_in_reach(self):
        step = torch.linspace(0, 1, 201, dtype=torch.float64)
        u, v = torch.meshgrid(step, step, indexing="ij")  # one cell, in lattice coordinates
        position = torch.stack((u, v), -1) + ((u + v) * noise._SQUISH)[..., None]
        reach = range(-3, 5)
        lattice = torch.tensor([(i, j) for i in reach for j in reach], dtype=torch.float64)
        points = lattice + lattice.sum(-1, keepdim=True) * noise._SQUISH
        near = torch.cdist(position.reshape(-1, 2), points) < math.sqrt(2) - 1e-9
        assert near.sum(1).max() == 4
        touched = {tuple(int(v) for v in lattice[k]) for k in near.any(0).nonzero()[:, 0]}
        assert touched == set(noise._NEIGHBOURS)


class TestSimplex:
    def test_fields_are_distributed_as_those_of_the_package(self):
        """Values are the package's (above): what is left is how permutations are drawn."""
        seeds = np.random.default_rng(8).integers(-(2**62), 2**62, 300)
        tables = torch.from_numpy(np.stack([opensimplex.OpenSimplex(int(s))._perm for s in seeds]))
        both = (
            noise.simplex((300, 48, 48), generator=seeded()),
            own(tables, 48, 48, octaves=6, persistence=0.8, frequency=64),
        )
        lags = (1, 4, 16)
        statistics = [
            torch.stack(
                [
                    *(fields.pow(k).mean((1, 2)) for k in (1, 2, 3, 4)),
                    fields.mean((1, 2)).square(),
                    *((fields[:, lag:] * fields[:, :-lag]).mean((1, 2)) for lag in lags),
                    *((fields[..., lag:] * fields[..., :-lag]).mean((1, 2)) for lag in lags),
                ]
            )
            for fields in both
        ]
        error = sum(part.var(1) / 300 for part in statistics).sqrt()
        assert ((statistics[0].mean(1) - statistics[1].mean(1)).abs() / error).max() < 4.5
        assert len({tuple(field.flatten().tolist()) for field in both[0]}) == 300

    def test_octaves_add_up(self):
        one, two = (noise.simplex((4, 16, 16), n, 0.5, 16, seeded()) for n in (1, 2))
        second = noise.simplex((4, 16, 16), 1, 0.5, 8, seeded())
        torch.testing.assert_close(two, one + 0.5 * second)

    def test_a_cache_filled_under_inference_mode_serves_training(self):
        noise._geometry.cache_clear()
        with torch.inference_mode():
            noise.simplex((1, 1, 10, 10), generator=seeded())
        assert not any(part.is_inference() for part in noise._geometry(10, 10, 6, 0.8, 64.0, "cpu"))
        weight = torch.ones(1, requires_grad=True)
        (weight * noise.simplex((1, 1, 10, 10), generator=seeded())).sum().backward()
        assert weight.grad is not None


class TestCoarse:
    def test_is_smooth_and_smaller_than_its_grid_values(self):
        field = noise.coarse((400, 1, 96, 96), generator=seeded())
        assert field.mean() == pytest.approx(0, abs=0.01)
        assert field.std() == pytest.approx(0.2 * 2 / 3, rel=0.05)
        step = (field[..., 1:] - field[..., :-1]).abs()
        assert step.median() < 0.03

    def test_is_an_enlarged_grid_rolled_by_one_offset(self):
        offsets = []
        for seed in range(6):
            field = noise.coarse((2, 3, 24, 18), 4, 1.0, seeded(seed))
            grid = torch.randn(6, 1, 4, 4, generator=seeded(seed))
            large = torch.nn.functional.interpolate(
                grid, size=(24, 18), mode="bilinear", align_corners=True
            ).reshape(2, 3, 24, 18)
            matches = [
                (i, j)
                for i in range(24)
                for j in range(18)
                if torch.equal(torch.roll(large, (i, j), (-2, -1)), field)
            ]
            assert len(matches) == 1
            offsets += matches
        assert len({i for i, _ in offsets}) > 2
        assert len({j for _, j in offsets}) > 2
        assert len({round(i / 24 - j / 18, 1) for i, j in offsets}) > 2  # not one for both axes


class TestAllKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_generator_alone_decides(self, kind):
        shape = (2, 1, 16, 12)
        first = kind(shape, generator=seeded(1))
        torch.manual_seed(99)
        assert torch.equal(kind(shape, generator=seeded(1)), first)
        assert not torch.equal(kind(shape, generator=seeded(2)), first)
        generator = seeded(1)
        kind(shape, generator=generator)
        assert not torch.equal(kind(shape, generator=generator), first)
        torch.manual_seed(1)  # without a generator the global one
        assert torch.equal(kind(shape), first)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(9, 7), (2, 1, 3, 9, 7)])
    def test_shape_device_and_dtype(self, kind, shape):
        field = kind(torch.Size(shape), generator=seeded(), device="cpu")
        assert (field.shape, field.device.type, field.dtype) == (shape, "cpu", torch.float32)
        assert field.isfinite().all()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_cpu_generator_gives_the_same_noise_on_a_gpu(self, kind):
        on_cpu = kind((2, 1, 32, 32), generator=seeded())
        on_gpu = kind((2, 1, 32, 32), generator=seeded(), device="cuda")
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-5, rtol=0)
