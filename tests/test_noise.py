"""Noise: the reference implementation, reproducibility, and statistics."""

import itertools
import math

import numpy as np
import opensimplex
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uad import noise
from uad.core.errors import ConfigError

torch.set_num_threads(1)

KINDS = ("simplex", "coarse", "gaussian")


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
            (48, 48, 6, 0.8, 64),  # the paper's
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
    def test_statistics_of_the_papers_setting(self):
        fields = noise.simplex((600, 96, 96), generator=seeded())
        assert fields.mean() == pytest.approx(0, abs=0.03)
        assert fields.std((1, 2)).mean() == pytest.approx(0.55, abs=0.03)
        assert fields.mean((1, 2)).std() == pytest.approx(0.21, abs=0.03)
        assert fields.abs().max() < sum(0.8**i for i in range(6))

    def test_every_leading_index_has_its_own_field(self):
        fields = noise.simplex((3, 2, 24, 24), generator=seeded()).flatten(0, 1).flatten(1)
        correlation = torch.corrcoef(fields)
        assert (correlation - torch.eye(6)).abs().max() < 0.9
        assert len({tuple(field.tolist()) for field in fields}) == 6

    def test_the_first_pixel_sits_on_a_lattice_point(self):
        # all octaves start there, in the authors' code too
        assert (noise.simplex((5, 8, 8), generator=seeded())[:, 0, 0] == 0).all()

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


PAPERS = {"octaves": 6, "persistence": 0.8, "frequency": 64}
SIDE = 48
#: A mean of ours may be so many standard errors away from that of the package. There are 32
#: statistics: by chance alone one comparison in some thousands would go past it.
TOLERANCE = 4.5


def statistics_of(fields):
    """Names, and values per field: moments, correlation in space, power over the frequency.

    Raw moments and products rather than normalised ones: as means over a field they can be
    averaged over fields, and the scatter between fields gives the standard error.
    """
    fields = np.asarray(fields, dtype=np.float64)
    mean = fields.mean((1, 2))
    found = {f"moment {k}": (fields**k).mean((1, 2)) for k in (1, 2, 3, 4)}
    found |= {f"moment {k} of the field's mean": mean**k for k in (2, 3, 4)}
    for lag in (1, 2, 4, 8, 16, 32):
        down, across = fields[:, lag:] * fields[:, :-lag], fields[..., lag:] * fields[..., :-lag]
        found[f"correlation down, {lag} pixels"] = down.mean((1, 2))
        found[f"correlation across, {lag} pixels"] = across.mean((1, 2))
    window = np.hanning(SIDE)[:, None] * np.hanning(SIDE)  # the fields are not periodic
    power = np.abs(np.fft.fft2((fields - mean[:, None, None]) * window)) ** 2
    cycles = np.fft.fftfreq(SIDE) * SIDE
    ring = np.hypot(cycles[:, None], cycles).round()
    for low, high in itertools.pairwise((1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25)):
        inside = power[:, (ring >= low) & (ring < high)].mean(1)
        found[f"log power, {low} to {high} cycles"] = np.log(inside)
    return list(found), np.stack(list(found.values()), axis=1)


def largest_deviation(fields, others):
    """The statistic in which two samples of fields differ most, in standard errors."""
    (names, first), (_, second) = statistics_of(fields), statistics_of(others)
    error = np.sqrt(sum(part.var(axis=0, ddof=1) / len(part) for part in (first, second)))
    deviation = np.abs(first.mean(axis=0) - second.mean(axis=0)) / error
    return float(deviation.max()), names[int(deviation.argmax())]


@pytest.fixture(scope="module")
def package_sources():
    """Generators of the package with seeds from all over their range."""
    seeds = np.random.default_rng(8).integers(-(2**62), 2**62, 400)
    return [opensimplex.OpenSimplex(int(seed)) for seed in seeds]


@pytest.fixture(scope="module")
def package_fields(package_sources):
    """The package's fields, value for value: slow, so few of them."""
    return np.stack([reference(s, SIDE, SIDE, *PAPERS.values()) for s in package_sources[:24]])


@pytest.fixture(scope="module")
def permuted_fields(package_sources):
    """Fields of the package's permutations by our arithmetic, which gives the package's values
    (TestSimplexIsOpenSimplex) at once: what is compared is how permutations are drawn."""
    tables = torch.from_numpy(np.stack([source._perm for source in package_sources]))
    return own(tables, SIDE, SIDE, *PAPERS.values()).numpy()


class TestTheDistributionIsThePackages:
    """Moments, correlation and spectrum of random fields; it is enough to look at one channel."""

    def draw(self, n, seed=1, **options):
        return noise.simplex((n, SIDE, SIDE), generator=seeded(seed), **PAPERS | options).numpy()

    @pytest.mark.slow
    def test_of_its_fields(self, package_fields):
        deviation, statistic = largest_deviation(self.draw(400), package_fields)
        assert deviation < TOLERANCE, statistic

    def test_of_its_permutations(self, permuted_fields):
        deviation, statistic = largest_deviation(self.draw(400, seed=2), permuted_fields)
        assert deviation < TOLERANCE, statistic

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "wrong", [{"persistence": 0.75}, {"frequency": 60}, {"octaves": 5}, {"octaves": 7}]
    )
    def test_a_wrong_parameter_shows(self, package_fields, wrong):
        assert largest_deviation(self.draw(100, **wrong), package_fields)[0] > 2 * TOLERANCE

    def test_a_wrong_amplitude_an_offset_and_a_lost_sign_show(self, permuted_fields):
        fields = self.draw(400, seed=2)
        for changed in (1.03 * fields, fields + 0.2, np.abs(fields)):
            assert largest_deviation(changed, permuted_fields)[0] > 1.5 * TOLERANCE

    @pytest.mark.slow
    def test_permutations_that_are_not_random_show(self, package_fields):
        shifts = torch.randint(256, (100, 1), generator=seeded())
        rotated = (torch.arange(256) + shifts) % 256
        fields = own(rotated, SIDE, SIDE, *PAPERS.values())
        assert largest_deviation(fields, package_fields)[0] > 2 * TOLERANCE

    @pytest.mark.slow
    def test_a_direction_that_differs_shows(self, package_fields):
        stretched = np.repeat(self.draw(100)[:, ::2], 2, axis=1)
        assert largest_deviation(stretched, package_fields)[0] > 2 * TOLERANCE


class TestCoarse:
    def test_is_smooth_and_smaller_than_its_grid_values(self):
        field = noise.coarse((400, 1, 96, 96), generator=seeded())
        assert field.mean() == pytest.approx(0, abs=0.01)
        assert field.std() == pytest.approx(0.2 * 2 / 3, rel=0.05)
        step = (field[..., 1:] - field[..., :-1]).abs()
        assert step.median() < 0.03

    def test_scales_with_std(self):
        small, large = (noise.coarse((2, 1, 20, 20), 5, std, seeded()) for std in (0.1, 0.3))
        torch.testing.assert_close(3 * small, large)
        assert noise.coarse((2, 1, 20, 20), 5, 0.0, seeded()).abs().max() == 0

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
        first = noise.make_noise(kind, shape, seeded(1))
        torch.manual_seed(99)
        assert torch.equal(noise.make_noise(kind, shape, seeded(1)), first)
        assert not torch.equal(noise.make_noise(kind, shape, seeded(2)), first)
        generator = seeded(1)
        noise.make_noise(kind, shape, generator)
        assert not torch.equal(noise.make_noise(kind, shape, generator), first)
        torch.manual_seed(1)  # without a generator the global one
        assert torch.equal(noise.make_noise(kind, shape), first)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(9, 7), (3, 9, 7), (2, 1, 9, 7), (2, 1, 3, 9, 7), (1, 1)])
    def test_shape_device_and_dtype(self, kind, shape):
        field = noise.make_noise(kind, torch.Size(shape), seeded(), "cpu")
        assert (field.shape, field.device.type, field.dtype) == (shape, "cpu", torch.float32)
        assert field.isfinite().all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(5,), (), (0, 1, 4, 4), (1, 1, 4, -4)])
    def test_impossible_shapes(self, kind, shape):
        with pytest.raises(ValueError, match="shape"):
            noise.make_noise(kind, shape)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_cpu_generator_gives_the_same_noise_on_a_gpu(self, kind):
        on_cpu = noise.make_noise(kind, (2, 1, 32, 32), seeded())
        on_gpu = noise.make_noise(kind, (2, 1, 32, 32), seeded(), "cuda")
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-5, rtol=0)

    def test_gaussian_is_standard_normal(self):
        field = noise.gaussian((4, 1, 100, 100), seeded())
        assert field.mean() == pytest.approx(0, abs=0.03)
        assert field.std() == pytest.approx(1, abs=0.03)

    def test_an_unknown_kind_suggests_the_near_one(self):
        with pytest.raises(ConfigError, match=r"'simplx'.*'simplex'"):
            noise.make_noise("simplx", (4, 4))

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("simplex", {"octaves": 0}),
            ("simplex", {"octaves": 1.5}),
            ("simplex", {"persistence": 0}),
            ("simplex", {"frequency": math.inf}),
            ("coarse", {"resolution": 0}),
            ("coarse", {"std": -1}),
            ("coarse", {"std": math.nan}),
        ],
    )
    def test_wrong_arguments(self, kind, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            noise.make_noise(kind, (1, 1, 8, 8), **options)
