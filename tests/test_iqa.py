"""Quality maps: SSIM and fusion quality (Eqs. 6 to 11), multi-scale SSIM, gradient similarity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.metrics import structural_similarity

from uad import iqa
from uad.core.errors import ConfigError

torch.set_num_threads(1)


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


every_map = pytest.mark.parametrize("name", list(iqa.QUALITY_MAPS))
#: Options of the protocol, all maps take them; and upper ends of the maps' ranges.
OPTIONS = {"alpha": 0.84, "window": "gaussian", "clamp": False}
LARGEST = {"ms-ssim": 0.5}


@every_map
class TestEveryMap:
    @given(x=images, y=images, window=st.sampled_from(["gaussian", "uniform"]))
    def test_range_and_symmetry(self, name, x, y, window):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        options = OPTIONS | {"window": window}
        found = iqa.quality_map(name, x, y, **options)
        assert found.shape == x.shape
        assert found.min() >= 0
        assert found.max() <= LARGEST.get(name, 1)
        torch.testing.assert_close(found, iqa.quality_map(name, y, x, **options))

    @given(x=images, dtype=st.sampled_from([torch.float32, torch.float64]), clamp=st.booleans())
    def test_equal_images_score_exactly_zero_a_minimum(self, name, x, dtype, clamp):
        x = torch.from_numpy(x).to(dtype).requires_grad_()
        found = iqa.quality_map(name, x, x.detach().clone(), **OPTIONS | {"clamp": clamp})
        assert torch.equal(found, torch.zeros_like(x))
        found.sum().backward()
        assert x.grad.abs().max() < 1e-6

    @given(x=images, y=images)
    def test_gradients_are_finite(self, name, x, y):
        x, y = (torch.from_numpy(z).float().requires_grad_() for z in (x, y))
        iqa.quality_map(name, x, y, **OPTIONS).mean().backward()
        assert x.grad.isfinite().all()
        assert y.grad.isfinite().all()

    @pytest.mark.parametrize("clamp", [False, True])
    @pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 1), (0.3, 0.3), (0, 1), (1e-20, 0), (-1, 1)])
    def test_gradients_are_finite_for_constant_images(self, name, clamp, a, b):
        x = torch.full((1, 1, 9, 9), float(a), requires_grad=True)
        y = torch.full((1, 1, 9, 9), float(b), requires_grad=True)
        iqa.quality_map(name, x, y, clamp=clamp).mean().backward()
        assert x.grad.isfinite().all()
        assert y.grad.isfinite().all()

    @pytest.mark.parametrize("window", ["gaussian", "uniform"])
    def test_gradients_match_finite_differences(self, name, window):
        x, y = pair(7, (1, 1, 7, 6), torch.float64)
        y = (x + 0.1 * (y - x)).detach()  # alike, so that no term of MS-SSIM is clamped
        x.requires_grad_(), y.requires_grad_()
        options = OPTIONS | {"window": window}
        found = torch.autograd.gradcheck(
            lambda a, b: iqa.quality_map(name, a, b, **options), (x, y)
        )
        assert found

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        x, y = (image.to(dtype).requires_grad_() for image in pair(8))
        found = iqa.quality_map(name, x, y, **OPTIONS)
        assert found.dtype == torch.float32
        assert torch.equal(found, iqa.quality_map(name, x.float(), y.float(), **OPTIONS))
        found.mean().backward()
        assert x.grad.dtype == dtype
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0

    @pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (1, 1, 5, 5, 5)])
    def test_other_ranks_shapes_and_types_are_refused(self, name, shape):
        x = torch.zeros(1, 1, 5, 5)
        for first, second, word in (
            (torch.zeros(shape), torch.zeros(shape), "shape"),
            (x, torch.zeros(2, 1, 5, 5), "shape"),
            (x, x.long(), "floating"),
        ):
            with pytest.raises(ValueError, match=word):
                iqa.quality_map(name, first, second)


class TestSsim:
    @pytest.mark.parametrize(
        ("size", "window", "weights"),
        [
            (5, "gaussian", gaussian_weights()),  # the default: the authors' code
            (7, "uniform", np.full(7, 1 / 7)),
        ],
    )
    def test_the_definition_borders_included(self, size, window, weights):
        x, y = pair()
        found = iqa.ssim_map(x, y, size, window=window)
        for i in range(2):
            expected = naive_ssim(x[i, 0].numpy(), y[i, 0].numpy(), weights)
            np.testing.assert_allclose(found[i, 0], expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("size", "window", "options"),
        [
            (5, "uniform", {"win_size": 5}),
            (11, "gaussian", {"gaussian_weights": True, "sigma": 1.5}),  # cut at 3.5 sigma there
        ],
    )
    def test_equals_skimage(self, size, window, options):
        x, y = pair(3, (1, 1, 32, 30))
        _, expected = structural_similarity(
            *(z[0, 0].numpy() for z in (x, y)),
            data_range=1.0,
            use_sample_covariance=False,
            full=True,
            **options,
        )
        inner = (slice(size // 2, -(size // 2)),) * 2
        found = iqa.ssim_map(x, y, size, window=window)[0, 0].numpy()
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)

    @given(images, st.integers(0, 6), st.integers(0, 7), st.floats(0.01, 1))
    def test_one_changed_pixel_lowers_every_window_that_holds_it_and_no_other(self, x, i, j, step):
        x = torch.from_numpy(x)
        y = x.clone()
        y[..., i, j] += step
        reach = torch.zeros(7, 8, dtype=torch.bool)
        reach[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3] = True
        assert torch.equal((iqa.ssim_map(x, y) < 1)[0, 0], reach)

    @pytest.mark.parametrize(
        "options", [{"window_size": 4}, {"window_size": 0}, {"window": "triangle"}]
    )
    def test_options_out_of_range(self, options):
        with pytest.raises(ValueError, match="must be"):
            iqa.ssim_map(*pair(), **options)


class TestLossAndFusion:
    def test_loss_is_half_of_one_minus_ssim_clamped_for_negative_similarity_only(self):
        x, y = pair(11)
        similarity = iqa.ssim_map(x, y)
        loss = iqa.ssim_loss_map(x, y)
        torch.testing.assert_close(loss, (1 - similarity) / 2)
        assert torch.equal(loss == iqa.ssim_loss_map(x, y, clamp=True), similarity >= 0)

    def test_an_inverted_pattern_has_negative_similarity_and_clamped_no_gradient(self):
        x = (torch.arange(144).reshape(1, 1, 12, 12) % 2).float().requires_grad_()
        y = 1 - x.detach()
        assert iqa.ssim_map(x, y)[..., 3:-3, 3:-3].max() < -0.9
        assert iqa.ssim_loss_map(x, y).max() > 0.9
        clamped = iqa.ssim_loss_map(x, y, clamp=True)
        assert clamped.max() == 0.5
        clamped[..., 5, 5].sum().backward()
        assert x.grad.abs().max() == 0

    @given(images, images, st.floats(0, 1))
    def test_fusion_lies_between_its_endpoints(self, x, y, alpha):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        expected = alpha * iqa.ssim_loss_map(x, y) + (1 - alpha) * (x - y).abs()
        torch.testing.assert_close(iqa.fusion_quality(x, y, alpha), expected)
        assert torch.equal(iqa.fusion_quality(x, y), iqa.fusion_quality(x, y, 0.84))  # the paper's

    @pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan])
    def test_alpha_outside_the_unit_interval_is_refused(self, alpha):
        with pytest.raises(ValueError, match="alpha"):
            iqa.fusion_quality(*pair(), alpha=alpha)


def naive_ms_ssim(x, y, scales=3, size=5, c1=1e-4, c2=9e-4):
    """Wang et al. 2003 word by word in float64, with maps where it has means."""
    published = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    shares, window = published / published.sum(), np.outer(*[gaussian_weights(size)] * 2)
    rows, columns = x.shape

    def moment(z):
        return ndimage.correlate(z, window, mode="constant")

    def halved(z):
        z = np.pad(z, [(0, n % 2) for n in z.shape], constant_values=np.nan)
        return np.nanmean(z.reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2), axis=(1, 3))

    def full_size(z, level):
        for axis, length in enumerate((rows, columns)):
            # centres of the pixels of the image, in pixels of the level
            where = (np.arange(length) + 0.5) / 2**level - 0.5
            index = np.arange(z.shape[axis])
            z = np.apply_along_axis(lambda line, i=index, w=where: np.interp(w, i, line), axis, z)
        return z

    product = 1.0
    for level in range(scales):
        if level:
            x, y = halved(x), halved(y)
        mx, my = moment(x), moment(y)
        vx, vy = moment(x * x) - mx**2, moment(y * y) - my**2
        cs = (2 * (moment(x * y) - mx * my) + c2) / (vx + vy + c2)
        product = product * np.maximum(full_size(cs, level), 0) ** shares[level]
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    product = product * np.maximum(full_size(luminance, level), 0) ** shares[-1]
    return (1 - product) / 2


class TestMultiScaleSsim:
    @pytest.mark.parametrize("shape", [(32, 48), (21, 30), (13, 11)])
    def test_the_definition_odd_sizes_included(self, shape):
        x, y = pair(20, (2, 1, *shape))
        found = iqa.ms_ssim_loss_map(x, y)
        for i in range(2):
            expected = naive_ms_ssim(*(z[i, 0].double().numpy() for z in (x, y)))
            np.testing.assert_allclose(found[i, 0], expected, atol=2e-4)

    def test_gradients_stay_bounded_where_a_term_is_just_above_zero(self):
        # the slope of c ** 0.07 at zero is infinite; find a contrast that is just not opposite
        signs = (-1.0) ** torch.arange(16) * (-1.0) ** torch.arange(16)[:, None]
        x = (0.5 + 0.1 * signs.double())[None, None].requires_grad_()
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            loss = iqa.ms_ssim_loss_map(x, 0.5 - middle * (x.detach() - 0.5))[0, 0, 8, 8]
            low, high = (middle, high) if loss < 0.5 else (low, middle)
        loss = iqa.ms_ssim_loss_map(x, 0.5 - low * (x.detach() - 0.5))[0, 0, 8, 8]
        assert 0.4 < loss < 0.5
        loss.backward()
        assert x.grad.abs().max() < 100


def naive_gms(x, y, c=170 / 255**2):
    """Xue et al. 2014 word by word, zero-padded."""
    kernel = np.array([[1, 0, -1]] * 3) / 3

    def length(z):
        return np.hypot(*(ndimage.convolve(z, k, mode="constant") for k in (kernel, kernel.T)))

    mx, my = length(x), length(y)
    return 1 - (2 * mx * my + c) / (mx**2 + my**2 + c)


class TestGradientMagnitudeSimilarity:
    def test_the_definition(self):
        x, y = pair(30, dtype=torch.float64)
        for i in range(2):
            expected = naive_gms(x[i, 0].numpy(), y[i, 0].numpy())
            np.testing.assert_allclose(iqa.gms_loss_map(x, y)[i, 0], expected, atol=1e-12)

    @given(images, st.floats(0.01, 0.5))
    def test_blind_to_a_constant_shift_except_at_the_border(self, x, shift):
        x = torch.from_numpy(x)
        inside = iqa.gms_loss_map(x, x + shift)[..., 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.zeros_like(inside), atol=1e-12, rtol=0)


class TestRegistry:
    def test_names(self):
        x, y = pair(14)
        expected = {
            "l1": (x - y).abs(),
            "l2": (x - y) ** 2,
            "ssim": iqa.ssim_loss_map(x, y),
            "fusion": iqa.fusion_quality(x, y),
            "ms-ssim": iqa.ms_ssim_loss_map(x, y),
            "gms": iqa.gms_loss_map(x, y),
        }
        assert list(expected) == list(iqa.QUALITY_MAPS)
        for name, found in expected.items():
            assert torch.equal(iqa.quality_map(name, x, y), found)

    def test_options_reach_the_maps_that_take_them(self):
        options = {"alpha": 0.5, "window": "uniform"}
        assert iqa.options_of("l1", options) == iqa.options_of("gms", options) == {}
        assert iqa.options_of("fusion", options) == options
        assert iqa.options_of("ms-ssim", options) == {"window": "uniform"}
        x, y = pair(15)
        expected = iqa.fusion_quality(x, y, 0.5, window="uniform", clamp=True)
        assert torch.equal(iqa.quality_map("fusion", x, y, clamp=True, **options), expected)

    def test_an_unknown_name_or_option_suggests_the_near_one(self):
        known = r"'fuson'.*'fusion'.*Known are: fusion, gms, l1, l2, ms-ssim, ssim"
        with pytest.raises(ConfigError, match=known):
            iqa.quality_map("fuson", *pair())
        with pytest.raises(ConfigError, match=r"'windo'.*'window'"):
            iqa.quality_map("ssim", *pair(), windo="uniform")


def test_the_config_knows_which_options_each_map_takes(content):
    from uad.config import load

    cfg = load(content)
    for name in iqa.QUALITY_MAPS:
        assert cfg.quality_of("pddpm", name) == iqa.options_of(name, cfg.protocol.quality), name
