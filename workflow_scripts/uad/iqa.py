"""Image quality as a training loss and as an anomaly score (Eqs. 6 to 11 of the paper).

A quality map takes two batches of floating-point images ``(B, C, H, W)``, normally in [0, 1], and
gives a value per pixel, 0 where they agree: its mean is the training loss, the map itself the
anomaly score. Half precision is computed in float32; gradients are finite everywhere.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uad.air import average_intensity_ratio
from uad.core.errors import ConfigError, unknown

__all__ = ["average_intensity_ratio", "fusion_quality", "quality_map", "ssim_map"]

#: Constants of SSIM for images in [0, 1], and standard deviation of its Gaussian window in pixels:
#: those of torchgeometry 0.1.2 (``losses/ssim.py``), which the authors' code calls.
C1, C2, SIGMA = 0.01**2, 0.03**2, 1.5

#: Weights of the scales of MS-SSIM, the finest first (Wang et al. 2003, Sec. 3.2): the first three
#: of five, with which a 5x5 window spans 20 of the 96 pixels of a slice (40 mm).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001)

#: Constant of GMS for 8-bit images, brought to [0, 1] (Xue et al. 2014, Sec. II).
GMS_CONSTANT = 170 / 255**2

#: Below it a term of MS-SSIM has no gradient: that of its power is infinite at zero.
_LEAST_TERM = 1e-3


def ssim_map(x: Tensor, y: Tensor, window_size: int = 5, *, window: str = "gaussian") -> Tensor:
    r"""Structural similarity around every pixel, in [-1, 1] (Eqs. 6 to 8), zero-padded.

    .. math::
        \mathrm{SSIM}(x, y) =
        \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
             {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}

    with population moments inside a window of ``window_size`` pixels (odd): ``gaussian`` as in
    torchgeometry 0.1.2 (sigma 1.5), or ``uniform``, the plain window of the paper's text.

    Raises:
        ValueError: the shapes differ or are not 4D, the dtype is not floating point, or an
            argument is out of its range. So do all maps below.
    """
    x, y = _pair(x, y)
    means, mean_gap, variances, variance_gap = _moments(x, y, _taps(window, window_size))
    numerator = (means - mean_gap + 2 * C1) * (variances - variance_gap + 2 * C2)
    denominator = (means + mean_gap + 2 * C1) * (variances + variance_gap + 2 * C2)
    return numerator / denominator


def _moments(x: Tensor, y: Tensor, taps: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared window means of x + y and of x - y, and their variances in the window.

    That takes four filtered maps, not five, and E[z^2] - E[z]^2 loses digits only where it cannot
    matter (the difference of two like images is small, so its variance is accurate).
    """
    total, difference = x + y, x - y
    stacked = torch.stack((total, difference, total * total, difference * difference))
    mean_total, mean_difference, square_total, square_difference = _blur(stacked, taps).unbind(0)
    mean_total, mean_difference = mean_total.square(), mean_difference.square()
    # Rounding can make a variance of zero slightly negative. Its gradient is zero there, too.
    var_total = (square_total - mean_total).clamp(min=0)
    var_difference = (square_difference - mean_difference).clamp(min=0)
    return mean_total, mean_difference, var_total, var_difference


def ssim_loss_map(x: Tensor, y: Tensor, *, window: str = "gaussian", clamp: bool = False) -> Tensor:
    """Structural dissimilarity per pixel, ``(1 - SSIM) / 2`` in [0, 1] (Eqs. 9 and 10).

    ``clamp`` is ``clamp(1 - SSIM, 0, 1) / 2`` as in torchgeometry 0.1.2: the map ends at 0.5, and a
    pixel with negative SSIM has no gradient.
    """
    dissimilarity = 1 - ssim_map(x, y, window=window)
    return (dissimilarity.clamp(0, 1) if clamp else dissimilarity) / 2


def fusion_quality(
    x: Tensor, y: Tensor, alpha: float = 0.84, *, window: str = "gaussian", clamp: bool = False
) -> Tensor:
    """Fusion quality per pixel, ``alpha * DSSIM + (1 - alpha) * |x - y|`` (Eq. 11).

    ``alpha``, in [0, 1], is the weight of the structural part; 0.84 is the paper's. The authors'
    code clamps (see :func:`ssim_loss_map`).
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    dissimilarity = ssim_loss_map(x, y, window=window, clamp=clamp)
    return alpha * dissimilarity + (1 - alpha) * _absolute_error(x, y)


def ms_ssim_loss_map(x: Tensor, y: Tensor, *, window: str = "gaussian") -> Tensor:
    r"""Multi-scale structural dissimilarity per pixel, ``(1 - MS-SSIM) / 2`` in [0, 0.5].

    .. math::
        \mathrm{MS\text{-}SSIM} = l_M^{w_M} \prod_{j=1}^{M} (cs_j)^{w_j}, \quad
        l = \frac{2 \mu_x \mu_y + C_1}{\mu_x^2 + \mu_y^2 + C_1}, \quad
        cs = \frac{2 \sigma_{xy} + C_2}{\sigma_x^2 + \sigma_y^2 + C_2}

    after Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality
    assessment", Asilomar 2003. Each scale halves the last by 2x2 means, over the pixels that
    exist at an odd border. Two things differ from the publication, because an anomaly score
    needs a value per pixel: the terms are not averaged over the image but brought back to its
    size bilinearly, and the product is taken there; and the weights of the three scales that are
    used are divided by their sum. Negative terms count as 0, for their power is not real; a term
    below 0.001 passes no gradient.
    """
    x, y = _pair(x, y)
    taps = _taps(window, 5)
    weights = [weight / sum(SCALE_WEIGHTS) for weight in SCALE_WEIGHTS]
    height, width = x.shape[-2:]

    def term(gap: Tensor, total: Tensor, level: int) -> Tensor:
        """(total - gap) / (total + gap) at full size, to the power of the level's weight."""
        loss = 2 * gap / (total + gap)  # 1 - term: zeros stay exactly zero when enlarged
        if level:
            size = (loss.shape[-2] << level, loss.shape[-1] << level)
            loss = F.interpolate(loss, size, mode="bilinear")[..., :height, :width]
        return _power(1 - loss, weights[level])

    similarity = torch.ones_like(x)
    for level in range(len(SCALE_WEIGHTS)):
        if level:
            x, y = (F.avg_pool2d(z, 2, ceil_mode=True) for z in (x, y))
        means, mean_gap, variances, variance_gap = _moments(x, y, taps)
        similarity = similarity * term(variance_gap, variances + 2 * C2, level)
    return (1 - similarity * term(mean_gap, means + 2 * C1, level)) / 2


def _power(base: Tensor, exponent: float) -> Tensor:
    """``max(base, 0) ** exponent`` for an exponent up to 1, with a finite gradient."""
    safe = base.clamp(min=_LEAST_TERM)
    flat = base.detach().clamp(min=0) ** exponent
    return torch.where(base > _LEAST_TERM, safe**exponent, flat)


def gms_loss_map(x: Tensor, y: Tensor) -> Tensor:
    r"""One minus the gradient magnitude similarity per pixel, in [0, 1).

    .. math::
        1 - \mathrm{GMS} = 1 - \frac{2 m_x m_y + c}{m_x^2 + m_y^2 + c}
                         = \frac{(m_x - m_y)^2}{m_x^2 + m_y^2 + c}

    with ``m`` the length of the Prewitt gradient (each 3x3 kernel over 3, zeros outside), after
    Xue, Zhang, Mou and Bovik, "Gradient magnitude similarity deviation", IEEE TIP 23 (2014). The
    publication halves the images first and pools the map to its standard deviation; here it is
    the map itself, at full size. It is blind to a difference that is constant over 3x3 pixels.
    """
    first, second = (_gradient_length(z) for z in _pair(x, y))
    scale = first.square() + second.square() + GMS_CONSTANT
    return (first - second).square() / scale


def _gradient_length(z: Tensor) -> Tensor:
    padded = F.pad(z, (1, 1, 1, 1))
    height, width = z.shape[-2:]

    def difference(axis: int, across: int) -> Tensor:
        length, side = (height, width) if axis == -2 else (width, height)
        steps = padded.narrow(axis, 2, length) - padded.narrow(axis, 0, length)
        return sum(steps.narrow(across, k, side) for k in range(3)) / 3

    squared = difference(-2, -1).square() + difference(-1, -2).square()
    # The root has no gradient at zero; a length of zero is at its minimum there.
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _absolute_error(x: Tensor, y: Tensor) -> Tensor:
    x, y = _pair(x, y)
    return (x - y).abs()


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    x, y = _pair(x, y)
    return (x - y).square()


#: Name of a quality map in the configuration -> function.
QUALITY_MAPS: dict[str, Callable[..., Tensor]] = {
    "l1": _absolute_error,
    "l2": _squared_error,
    "ssim": ssim_loss_map,
    "fusion": fusion_quality,
    "ms-ssim": ms_ssim_loss_map,
    "gms": gms_loss_map,
}


def quality_map(name: str, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """The quality map called ``name``; of ``options`` those that it takes (:func:`options_of`)."""
    own = options_of(name, options)
    return QUALITY_MAPS[name](x, y, **own)


def options_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that the quality map called ``name`` takes.

    Raises:
        ConfigError: there is no such map, or no map takes an option of that name.
    """
    if name not in QUALITY_MAPS:
        raise ConfigError(unknown("quality map", name, QUALITY_MAPS))
    known = set().union(*map(_options, QUALITY_MAPS))
    for option in options:
        if option not in known:
            raise ConfigError(unknown("option of the quality maps", option, known))
    return {key: value for key, value in options.items() if key in _options(name)}


@functools.cache
def _options(name: str) -> frozenset[str]:
    """Names of the options of a map."""
    return frozenset(inspect.signature(QUALITY_MAPS[name]).parameters) - {"x", "y"}


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both images, checked, in float32 at least."""
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(
            "expected two batches of one shape (B, C, H, W), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"expected floating-point images, got {x.dtype} and {y.dtype}")
    half = (torch.float16, torch.bfloat16)
    return tuple(z.float() if z.dtype in half else z for z in (x, y))


def _taps(window: str, size: int) -> list[float]:
    """Weights of the window along one axis; both windows are separable."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"window_size must be odd and positive, got {size}")
    if window == "uniform":
        return [1 / size] * size
    if window != "gaussian":
        raise ValueError(f"window must be 'gaussian' or 'uniform', got {window!r}")
    weights = [math.exp(-((k - size // 2) ** 2) / (2 * SIGMA**2)) for k in range(size)]
    return [weight / sum(weights) for weight in weights]


def _blur(z: Tensor, taps: list[float]) -> Tensor:
    """Weighted window sums along the last two axes, zeros outside.

    Shifted additions, no convolution: they are several times faster for one channel on a
    CPU, and stay in full float32 under autocast and under TF32, where a convolution would
    lose the digits that the variances need.
    """
    radius = len(taps) // 2
    for dim, padding in ((-2, (0, 0, radius, radius)), (-1, (radius, radius))):
        length = z.shape[dim]
        padded = F.pad(z, padding)
        z = taps[radius] * z
        for k in range(radius):
            left = padded.narrow(dim, k, length)
            right = padded.narrow(dim, len(taps) - 1 - k, length)
            z = torch.add(z, left + right, alpha=taps[k])
    return z
