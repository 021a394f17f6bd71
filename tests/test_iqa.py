"""Image quality: SSIM, fusion quality, average intensity ratio (Eqs. 6 to 19)."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import structural_similarity

from uad import air, iqa
from uad.errors import ConfigError

torch.set_num_threads(1)
examples = settings(deadline=None, max_examples=60)


def pair(seed=0, shape=(2, 1, 20, 24), dtype=torch.float32):
    """Two correlated images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    y = (x + 0.3 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)
    return x, y


def naive_ssim(x, y, weights, c1=1e-4, c2=9e-4):
    """Eq. 8 word by word: one zero-padded window after the other, two-pass variances."""
    radius = len(weights) // 2
    weights = np.outer(weights, weights)
    x, y = (np.pad(image.astype(np.float64), radius) for image in (x, y))
    rows, columns = x.shape[0] - 2 * radius, x.shape[1] - 2 * radius
    result = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            a, b = (z[i : i + 2 * radius + 1, j : j + 2 * radius + 1] for z in (x, y))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
            result[i, j] = luminance * (2 * cov + c2) / (va + vb + c2)
    return result


def gaussian_weights(size=5, sigma=1.5):
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


images = arrays(np.float64, (1, 1, 7, 8), elements=st.floats(0, 1, width=32))


class TestSsimAgainstOthers:
    def test_default_is_the_gaussian_window_of_the_authors_code_borders_included(self):
        x, y = pair()
        for i in range(2):
            expected = naive_ssim(x[i, 0].numpy(), y[i, 0].numpy(), gaussian_weights())
            np.testing.assert_allclose(iqa.ssim_map(x, y)[i, 0], expected, atol=1e-5)

    def test_uniform_window_against_the_definition(self):
        x, y = pair(1)
        expected = naive_ssim(x[0, 0].numpy(), y[0, 0].numpy(), np.full(7, 1 / 7))
        found = iqa.ssim_map(x, y, 7, window="uniform")[0, 0]
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_uniform_window_against_skimage(self):
        x, y = pair(2)
        _, expected = structural_similarity(
            x[0, 0].numpy(),
            y[0, 0].numpy(),
            win_size=5,
            data_range=1.0,
            use_sample_covariance=False,
            full=True,
        )
        found = iqa.ssim_map(x, y, 5, window="uniform")[0, 0].numpy()
        np.testing.assert_allclose(found[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-5)

    @pytest.mark.parametrize(("sigma", "size"), [(0.6, 5), (1.5, 11)])
    def test_gaussian_window_against_skimage(self, sigma, size):
        # skimage cuts its Gaussian at 3.5 sigma, which makes these sizes
        x, y = pair(3, (1, 1, 32, 30))
        _, expected = structural_similarity(
            x[0, 0].numpy(),
            y[0, 0].numpy(),
            gaussian_weights=True,
            sigma=sigma,
            data_range=1.0,
            use_sample_covariance=False,
            full=True,
        )
        found = iqa.ssim_map(x, y, size, sigma=sigma)[0, 0].numpy()
        inner = (slice(size // 2, -(size // 2)),) * 2
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)

    def test_data_range_scales_the_constants(self):
        x, y = pair(4)
        found = iqa.ssim_map(255 * x, 255 * y, data_range=255.0)
        torch.testing.assert_close(found, iqa.ssim_map(x, y), atol=1e-5, rtol=0)

    def test_smooth_bright_images_keep_their_digits_in_float32(self):
        # the worst case of E[z^2] - E[z]^2: the variance is far below the square of the mean
        x, y = pair(5, dtype=torch.float64)
        x, y = 0.95 + 0.01 * x, 0.95 + 0.01 * y
        found = iqa.ssim_map(x.float(), y.float()).double()
        torch.testing.assert_close(found, iqa.ssim_map(x, y), atol=2e-5, rtol=0)

    def test_channels_and_samples_are_independent(self):
        x, y = pair(6, (2, 3, 9, 9))
        together = iqa.ssim_map(x, y)
        assert together.shape == x.shape
        for i in range(2):
            for j in range(3):
                alone = iqa.ssim_map(x[i, j][None, None], y[i, j][None, None])
                torch.testing.assert_close(together[i, j][None, None], alone)


class TestSsimProperties:
    @examples
    @given(images, images, st.sampled_from(["gaussian", "uniform"]))
    def test_range_and_symmetry(self, x, y, window):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        similarity = iqa.ssim_map(x, y, window=window)
        assert similarity.abs().max() <= 1
        torch.testing.assert_close(similarity, iqa.ssim_map(y, x, window=window))
        dissimilarity = iqa.ssim_loss_map(x, y, window=window)
        assert dissimilarity.min() >= 0
        assert dissimilarity.max() <= 1

    @examples
    @given(images, st.sampled_from([torch.float32, torch.float64]))
    def test_equal_images_score_exactly_one(self, x, dtype):
        x = torch.from_numpy(x).to(dtype)
        assert torch.equal(iqa.ssim_map(x, x.clone()), torch.ones_like(x))

    @examples
    @given(images, st.integers(0, 6), st.integers(0, 7), st.floats(0.01, 1))
    def test_one_changed_pixel_lowers_every_window_that_holds_it_and_no_other(self, x, i, j, step):
        x = torch.from_numpy(x)
        y = x.clone()
        y[..., i, j] += step
        lower = (iqa.ssim_map(x, y) < 1)[0, 0]
        reach = torch.zeros(7, 8, dtype=torch.bool)
        reach[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3] = True
        assert torch.equal(lower, reach)

    @pytest.mark.parametrize("level", [1.0, 100.0, 1000.0])
    @pytest.mark.parametrize("window", ["gaussian", "uniform"])
    def test_rounding_in_flat_bright_images_does_not_leave_the_range(self, level, window):
        # float32 makes E[z^2] - E[z]^2 negative here, for unscaled intensities by more than C2
        x, y = pair(16, (1, 1, 30, 30))
        x, y = level * (1 + 1e-6 * x), level * (0.3 + 1e-6 * y)
        similarity = iqa.ssim_map(x, y, window=window)
        assert similarity.abs().max() <= 1

    def test_an_inverted_pattern_has_negative_similarity(self):
        x = (torch.arange(144).reshape(1, 1, 12, 12) % 2).float()
        assert iqa.ssim_map(x, 1 - x)[..., 3:-3, 3:-3].max() < -0.9

    @pytest.mark.parametrize("window", ["gaussian", "uniform"])
    def test_gradients_match_finite_differences(self, window):
        x, y = pair(7, (1, 1, 6, 5), torch.float64)
        x.requires_grad_(), y.requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: iqa.ssim_map(a, b, window=window), (x, y))
        assert torch.autograd.gradcheck(lambda a, b: iqa.fusion_quality(a, b), (x, y))

    @pytest.mark.parametrize("name", ["l1", "l2", "ssim", "fusion"])
    @pytest.mark.parametrize("clamp", [False, True])
    @pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 1), (0.3, 0.3), (0, 1), (1e-20, 0), (-1, 1)])
    def test_gradients_are_finite_for_constant_images(self, name, clamp, a, b):
        x = torch.full((1, 1, 9, 9), float(a), requires_grad=True)
        y = torch.full((1, 1, 9, 9), float(b), requires_grad=True)
        iqa.quality_map(name, x, y, clamp=clamp).mean().backward()
        assert x.grad.isfinite().all()
        assert y.grad.isfinite().all()

    @examples
    @given(images)
    def test_equal_images_are_a_minimum_of_the_loss(self, x):
        x = torch.from_numpy(x).requires_grad_()
        iqa.ssim_loss_map(x, x.detach().clone()).sum().backward()
        assert x.grad.abs().max() < 1e-6


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        x, y = (image.to(dtype) for image in pair(8))
        found = iqa.ssim_map(x, y)
        assert found.dtype == torch.float32
        assert torch.equal(found, iqa.ssim_map(x.float(), y.float()))
        assert iqa.quality_map("l1", x, y).dtype == torch.float32

    def test_autocast_changes_nothing(self):
        x, y = pair(9)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = iqa.fusion_quality(x, y)
        assert torch.equal(inside, iqa.fusion_quality(x, y))

    def test_half_precision_gradients_reach_the_input(self):
        x, y = (image.half() for image in pair(10))
        x.requires_grad_()
        iqa.fusion_quality(x, y).mean().backward()
        assert x.grad.dtype == torch.float16
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0


class TestLossAndFusion:
    def test_loss_is_half_of_one_minus_ssim(self):
        x, y = pair(11)
        torch.testing.assert_close(iqa.ssim_loss_map(x, y), (1 - iqa.ssim_map(x, y)) / 2)

    def test_clamp_ends_at_one_half_and_has_no_gradient_beyond(self):
        x = (torch.arange(144).reshape(1, 1, 12, 12) % 2).float().requires_grad_()
        y = 1 - x.detach()
        clamped = iqa.ssim_loss_map(x, y, clamp=True)
        assert clamped.max() == 0.5
        assert iqa.ssim_loss_map(x, y).max() > 0.9
        clamped[..., 5, 5].sum().backward()
        assert x.grad.abs().max() == 0

    def test_clamp_matters_only_for_negative_similarity(self):
        x, y = pair(12)
        similarity = iqa.ssim_map(x, y)
        same = iqa.ssim_loss_map(x, y) == iqa.ssim_loss_map(x, y, clamp=True)
        assert torch.equal(same, similarity >= 0)

    @examples
    @given(images, images, st.floats(0, 1))
    def test_fusion_lies_between_its_endpoints(self, x, y, alpha):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        dissimilarity, error = iqa.ssim_loss_map(x, y), (x - y).abs()
        torch.testing.assert_close(iqa.fusion_quality(x, y, alpha=0), error)
        torch.testing.assert_close(iqa.fusion_quality(x, y, alpha=1), dissimilarity)
        expected = alpha * dissimilarity + (1 - alpha) * error
        torch.testing.assert_close(iqa.fusion_quality(x, y, alpha=alpha), expected)

    def test_the_papers_weight_is_the_default(self):
        x, y = pair(13)
        assert torch.equal(iqa.fusion_quality(x, y), iqa.fusion_quality(x, y, 0.84))

    @pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan])
    def test_alpha_outside_the_unit_interval_is_refused(self, alpha):
        with pytest.raises(ValueError, match="alpha"):
            iqa.fusion_quality(*pair(), alpha=alpha)


class TestRegistry:
    def test_names(self):
        x, y = pair(14)
        assert torch.equal(iqa.quality_map("l1", x, y), (x - y).abs())
        assert torch.equal(iqa.quality_map("l2", x, y), (x - y) ** 2)
        assert torch.equal(iqa.quality_map("ssim", x, y), iqa.ssim_loss_map(x, y))
        assert torch.equal(iqa.quality_map("fusion", x, y), iqa.fusion_quality(x, y))

    def test_options_reach_the_maps_that_take_them(self):
        x, y = pair(15)
        options = {"alpha": 0.5, "window": "uniform", "window_size": 3, "clamp": True}
        expected = iqa.fusion_quality(x, y, 0.5, window="uniform", window_size=3, clamp=True)
        assert torch.equal(iqa.quality_map("fusion", x, y, **options), expected)
        assert torch.equal(iqa.quality_map("l1", x, y, **options), (x - y).abs())

    def test_an_unknown_name_suggests_the_near_one(self):
        with pytest.raises(
            ConfigError, match=r"'fuson'.*'fusion'.*Known are: fusion, l1, l2, ssim"
        ):
            iqa.quality_map("fuson", *pair())

    def test_an_unknown_option_suggests_the_near_one(self):
        with pytest.raises(ConfigError, match=r"'windowsize'.*'window_size'"):
            iqa.quality_map("ssim", *pair(), windowsize=5)


class TestWrongArguments:
    @pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (1, 1, 5, 5, 5)])
    def test_other_ranks(self, shape):
        with pytest.raises(ValueError, match="shape"):
            iqa.ssim_map(torch.zeros(shape), torch.zeros(shape))

    def test_different_shapes(self):
        with pytest.raises(ValueError, match="shape"):
            iqa.ssim_map(torch.zeros(1, 1, 5, 5), torch.zeros(2, 1, 5, 5))

    def test_integers(self):
        with pytest.raises(ValueError, match="floating"):
            iqa.ssim_map(torch.zeros(1, 1, 5, 5).long(), torch.zeros(1, 1, 5, 5))

    @pytest.mark.parametrize(
        "options",
        [
            {"window_size": 4},
            {"window_size": 0},
            {"window": "triangle"},
            {"sigma": 0.0},
            {"data_range": 0.0},
            {"k1": 0.0},
            {"k2": -1.0},
        ],
    )
    def test_options_out_of_range(self, options):
        with pytest.raises(ValueError, match="must be"):
            iqa.ssim_map(*pair(), **options)


# --- average intensity ratio ---------------------------------------------------------------

means = st.floats(0.01, 0.99)


class TestAverageIntensityRatio:
    @examples
    @given(means, means)
    def test_at_least_one_symmetric_and_one_only_for_equal_means(self, a, n):
        ratio = iqa.average_intensity_ratio(a, n)
        assert isinstance(ratio, float)
        assert ratio >= 1
        assert ratio == iqa.average_intensity_ratio(n, a)
        assert (ratio == 1) == (a == n)

    @examples
    @given(means, means)
    def test_equals_the_form_of_the_later_version(self, a, n):
        # (sum + |difference|) / (sum - |difference|)
        expected = (a + n + abs(a - n)) / (a + n - abs(a - n))
        assert iqa.average_intensity_ratio(a, n) == pytest.approx(expected)

    def test_arrays_and_tensors(self):
        a, n = [0.8, 0.2], [0.4, 0.4]
        np.testing.assert_allclose(iqa.average_intensity_ratio(np.array(a), np.array(n)), [2, 2])
        found = iqa.average_intensity_ratio(torch.tensor(a), torch.tensor(n))
        torch.testing.assert_close(found, torch.tensor([2.0, 2.0]))
        torch.testing.assert_close(
            iqa.average_intensity_ratio(torch.tensor(a), 0.4), torch.tensor([2.0, 2.0])
        )

    @pytest.mark.parametrize(("a", "n"), [(0.0, 0.5), (0.5, 0.0), (-0.1, 0.5), (math.nan, 0.5)])
    def test_means_that_are_not_positive_are_refused(self, a, n):
        for convert in (float, np.array, torch.tensor):
            with pytest.raises(ValueError, match="positive"):
                iqa.average_intensity_ratio(convert(a), convert(n))


def air_after(rule, a, n):
    return air.average_intensity_ratio(1 - a, 1 - n) if rule else air.average_intensity_ratio(a, n)


class TestTheoremOfThePaper:
    """Eqs. 14 to 19: under the priors the transform never lowers the AIR."""

    @examples
    @given(st.floats(0.5, 0.999, exclude_min=True), st.floats(0.001, 0.999))
    def test_bright_modalities_gain(self, n, fraction):
        a = n + fraction * (1 - n)  # 0.5 < n < a < 1
        assert air.paper_rule(n)
        assert air_after(True, a, n) >= air.average_intensity_ratio(a, n) * (1 - 1e-12)

    @examples
    @given(st.floats(0.001, 0.499), st.floats(0.001, 0.999))
    def test_dark_modalities_stay(self, n, fraction):
        a = n + fraction * (0.5 - n)  # n < a < 0.5
        assert not air.paper_rule(n)
        assert air_after(air.paper_rule(n), a, n) == air.average_intensity_ratio(a, n)

    def test_without_the_priors_the_rule_can_do_harm(self):
        # a lesion darker than the healthy brain, as T1 shows in real scans
        a, n = 0.3, 0.6
        assert air.paper_rule(n)
        assert air_after(True, a, n) < air.average_intensity_ratio(a, n)
        assert not air.maximising_rule(a, n)

    def test_without_the_priors_the_rule_can_miss_a_gain(self):
        # FLAIR with a healthy mean just under one half
        a, n = 0.9, 0.49
        assert not air.paper_rule(n)
        assert air.maximising_rule(a, n)
        assert air_after(True, a, n) > 2 * air.average_intensity_ratio(a, n)

    @examples
    @given(means, means)
    def test_the_maximising_rule_never_lowers_the_ratio(self, a, n):
        best = air_after(air.maximising_rule(a, n), a, n)
        assert best >= air.average_intensity_ratio(a, n)
        assert best >= air_after(air.paper_rule(n), a, n)

    @examples
    @given(st.floats(0.01, 0.98), st.floats(0.01, 0.98))
    def test_where_the_priors_hold_both_rules_agree(self, n, fraction):
        top = 1.0 if n > 0.5 else 0.5
        a = n + fraction * (top - n)
        if abs(a - n) > 1e-6 and abs(n - 0.5) > 1e-6:
            assert air.maximising_rule(a, n) == air.paper_rule(n)

    def test_one_half_itself_is_kept(self):
        assert not air.paper_rule(0.5)  # Eq. 13: strictly above
        assert not air.maximising_rule(0.5, 0.5)

    @pytest.mark.parametrize("mean", [-0.1, 1.1, math.nan])
    def test_means_outside_the_scaled_range_are_refused(self, mean):
        with pytest.raises(ValueError, match="mean"):
            air.paper_rule(mean)
        with pytest.raises(ValueError, match="mean"):
            air.maximising_rule(mean, 0.5)


class TestAirTransform:
    @examples
    @given(
        arrays(np.float64, (4, 5), elements=st.floats(0, 1)),
        arrays(np.bool_, (4, 5)),
        st.floats(0, 1),
        st.booleans(),
    )
    def test_inverts_the_foreground_above_one_half_and_never_the_background(
        self, x, mask, mean, as_tensor
    ):
        convert = torch.from_numpy if as_tensor else np.asarray
        found = np.asarray(iqa.air_transform(convert(x), convert(mask), mean))
        assert (found[~mask] == x[~mask]).all()
        expected = 1 - x[mask] if mean > 0.5 else x[mask]
        assert (found[mask] == expected).all()

    @examples
    @given(arrays(np.float64, (4, 5), elements=st.floats(0, 1)), arrays(np.bool_, (4, 5)))
    def test_twice_is_the_identity(self, x, mask):
        twice = iqa.air_transform(iqa.air_transform(x, mask, 0.7), mask, 0.7)
        np.testing.assert_allclose(twice, x, atol=1e-15)
        np.testing.assert_array_equal(twice[~mask], x[~mask])

    @pytest.mark.parametrize("mean", [0.2, 0.8])
    def test_the_input_is_never_changed_nor_shared(self, mean):
        for x, mask in (
            (np.full((2, 2), 0.25, np.float32), np.ones((2, 2))),
            (torch.full((2, 2), 0.25), torch.ones(2, 2)),
        ):
            found = iqa.air_transform(x, mask, mean)
            assert found.dtype == x.dtype
            found[:] = 9
            assert float(x.max()) == 0.25

    def test_one_mask_for_several_channels(self):
        x, mask = torch.rand(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
        torch.testing.assert_close(iqa.air_transform(x, mask, 0.9), 1 - x)

    def test_a_mask_of_another_grid_is_refused(self):
        for x, mask in ((np.zeros((3, 3)), np.zeros((3, 4))), (np.zeros(3), np.zeros((3, 3)))):
            with pytest.raises(ValueError, match="mask"):
                iqa.air_transform(x, mask, 0.9)
            with pytest.raises(ValueError, match="mask"):
                iqa.air_transform(torch.from_numpy(x), torch.from_numpy(mask), 0.2)

    def test_integer_intensities_are_refused(self):
        with pytest.raises(ValueError, match="floating"):
            iqa.air_transform(np.zeros((3, 3), np.uint8), np.ones((3, 3)), 0.9)
        with pytest.raises(ValueError, match="floating"):
            iqa.invert_foreground(torch.zeros(3).int(), torch.ones(3))


class TestPriors:
    @pytest.mark.parametrize(
        ("modality", "a", "n"),
        [("T2", 0.45, 0.3), ("FLAIR", 0.9, 0.6), ("T1-CE", 0.7, 0.55), ("t1w", 0.7, 0.6)],
    )
    def test_nothing_to_say_where_they_hold(self, modality, a, n):
        assert iqa.violated_priors(modality, a, n) == []

    @pytest.mark.parametrize(
        ("modality", "a", "n", "words"),
        [
            ("T1", 0.54, 0.58, ["below the lesion mean"]),
            ("T2", 0.51, 0.36, ["lesion mean should be below 0.5"]),
            ("T2w", 0.51, 0.36, ["lesion mean should be below 0.5"]),
            ("FLAIR", 0.92, 0.49, ["healthy mean should be above 0.5"]),
            ("T1-CE", 0.3, 0.4, ["below the lesion mean", "healthy mean should be above 0.5"]),
            ("PD", 0.3, 0.4, ["below the lesion mean"]),
        ],
    )
    def test_each_violated_prior_is_one_sentence_with_the_numbers(self, modality, a, n, words):
        found = iqa.violated_priors(modality, a, n)
        assert len(found) == len(words)
        for sentence, word in zip(found, words, strict=True):
            assert sentence.startswith(modality)
            assert word in sentence
            assert sentence.endswith(".")


def test_air_needs_no_torch():
    code = "import sys, uad.air; uad.air.air_transform(uad.air.np.zeros(3), [1, 1, 0], 0.9); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
