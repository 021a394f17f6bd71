"""Image quality as a training loss and as an anomaly score (Eqs. 6 to 13 of the paper).

Each quality map takes two batches of images and returns one value per pixel: its
mean over the pixels is the training loss, the map itself is the anomaly score.

The functions of :mod:`uad.air` (average intensity ratio) are part of this interface.
Import them from there where torch is not needed otherwise.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uad.air import (
    air_transform,
    average_intensity_ratio,
    invert_foreground,
    maximising_rule,
    paper_rule,
    violated_priors,
)
from uad.errors import ConfigError
from uad.strict import unknown

__all__ = [
    "QUALITY_MAPS",
    "air_transform",
    "average_intensity_ratio",
    "fusion_quality",
    "invert_foreground",
    "maximising_rule",
    "paper_rule",
    "quality_map",
    "ssim_loss_map",
    "ssim_map",
    "violated_priors",
]


def ssim_map(
    x: Tensor,
    y: Tensor,
    window_size: int = 5,
    *,
    window: str = "gaussian",
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    r"""Structural similarity around every pixel (Eqs. 6 to 8), zero-padded at the border.

    .. math::
        \mathrm{SSIM}(x, y) =
        \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
             {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
        \quad C_i = (k_i \cdot \text{data range})^2

    with population moments inside the window. The defaults are those of torchgeometry
    0.1.2 (``losses/ssim.py``), which the authors' code calls: Gaussian, 5x5, sigma 1.5,
    C1 = 1e-4, C2 = 9e-4. ``window="uniform"`` is the plain W x W window of the paper's text.

    Args:
        x: images ``(B, C, H, W)``, floating point, normally in [0, 1].
        y: images of the same shape.
        window_size: side of the window in pixels; odd.
        window: ``gaussian`` or ``uniform`` weights.
        sigma: standard deviation of the Gaussian window in pixels.
        data_range: the range of intensities that C1 and C2 refer to.
        k1: constant of C1, positive.
        k2: constant of C2, positive.

    Returns:
        SSIM in [-1, 1], same shape as ``x``; exactly 1 where the windows are equal. Half
        precision is computed, and returned, in float32. Gradients are finite everywhere.

    Raises:
        ValueError: the shapes differ or are not 4D, the dtype is not floating point, or
            an argument is out of its range.
    """
    _check_pair(x, y)
    taps = _taps(window, window_size, sigma)
    if not (data_range > 0 and k1 > 0 and k2 > 0):
        raise ValueError(f"data_range, k1 and k2 must be positive, got {data_range}, {k1} and {k2}")
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2

    # Moments of the sum and of the difference of the images in place of those of the images:
    # four filtered maps, not five, and E[z^2] - E[z]^2 loses digits only where it cannot matter
    # (the difference of two like images is small, so its variance is accurate).
    x, y = _at_least_float32(x), _at_least_float32(y)
    total, difference = x + y, x - y
    stacked = torch.stack((total, difference, total * total, difference * difference))
    mean_total, mean_difference, square_total, square_difference = _blur(stacked, taps).unbind(0)
    mean_total, mean_difference = mean_total.square(), mean_difference.square()
    # Rounding can make a variance of zero slightly negative. Clamping there also zeroes the
    # gradient, which is the right one: a variance of zero is at its minimum.
    var_total = (square_total - mean_total).clamp(min=0)
    var_difference = (square_difference - mean_difference).clamp(min=0)
    numerator = (mean_total - mean_difference + 2 * c1) * (var_total - var_difference + 2 * c2)
    denominator = (mean_total + mean_difference + 2 * c1) * (var_total + var_difference + 2 * c2)
    return numerator / denominator


def ssim_loss_map(
    x: Tensor,
    y: Tensor,
    window_size: int = 5,
    *,
    clamp: bool = False,
    window: str = "gaussian",
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Structural dissimilarity per pixel, ``(1 - SSIM) / 2`` (Eqs. 9 and 10).

    Args:
        x: images ``(B, C, H, W)``.
        y: images of the same shape.
        window_size: side of the window in pixels; odd.
        clamp: ``clamp(1 - SSIM, 0, 1) / 2`` as in torchgeometry 0.1.2. Then the map ends
            at 0.5, and a pixel with negative SSIM has no gradient.
        window: as in :func:`ssim_map`, like all that follow.
        sigma: standard deviation of the Gaussian window in pixels.
        data_range: the range of intensities that the constants refer to.
        k1: constant of C1, positive.
        k2: constant of C2, positive.

    Returns:
        Same shape as ``x``, in [0, 1], or in [0, 0.5] with ``clamp``.

    Raises:
        ValueError: as :func:`ssim_map`.
    """
    similarity = ssim_map(
        x, y, window_size, window=window, sigma=sigma, data_range=data_range, k1=k1, k2=k2
    )
    dissimilarity = 1 - similarity
    return (dissimilarity.clamp(0, 1) if clamp else dissimilarity) / 2


def fusion_quality(
    x: Tensor,
    y: Tensor,
    alpha: float = 0.84,
    *,
    window_size: int = 5,
    window: str = "gaussian",
    clamp: bool = False,
    data_range: float = 1.0,
) -> Tensor:
    """Fusion quality per pixel, ``alpha * DSSIM + (1 - alpha) * |x - y|`` (Eq. 11).

    Args:
        x: images ``(B, C, H, W)``.
        y: images of the same shape.
        alpha: weight of the structural part, in [0, 1]; 0.84 is the paper's.
        window_size: side of the window in pixels; odd.
        window: ``gaussian`` or ``uniform``, as in :func:`ssim_map`.
        clamp: as in :func:`ssim_loss_map`; the authors' code clamps.
        data_range: the range of intensities that the constants of SSIM refer to.

    Returns:
        Same shape as ``x``, non-negative; at most 1 for images in [0, 1].

    Raises:
        ValueError: ``alpha`` is outside [0, 1], or as :func:`ssim_map`.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    dissimilarity = ssim_loss_map(
        x, y, window_size, clamp=clamp, window=window, data_range=data_range
    )
    return alpha * dissimilarity + (1 - alpha) * _absolute_error(x, y)


def _absolute_error(x: Tensor, y: Tensor) -> Tensor:
    _check_pair(x, y)
    return (_at_least_float32(x) - _at_least_float32(y)).abs()


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    _check_pair(x, y)
    return (_at_least_float32(x) - _at_least_float32(y)).square()


#: Name of a quality map in the configuration -> function.
QUALITY_MAPS: dict[str, Callable[..., Tensor]] = {
    "l1": _absolute_error,
    "l2": _squared_error,
    "ssim": ssim_loss_map,
    "fusion": fusion_quality,
}


def quality_map(name: str, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """The quality map called ``name`` (``l1``, ``l2``, ``ssim`` or ``fusion``) of two batches.

    Args:
        name: a key of :data:`QUALITY_MAPS`.
        x: images ``(B, C, H, W)``.
        y: images of the same shape.
        **options: options of the map. One set of options may serve several maps: those
            that only another map takes (``alpha`` for ``l1``) are left out.

    Returns:
        Same shape as ``x``, zero where the images agree.

    Raises:
        ConfigError: there is no such map, or no map takes an option of that name.
        ValueError: as the map itself.
    """
    if name not in QUALITY_MAPS:
        raise ConfigError(unknown("quality map", name, QUALITY_MAPS))
    accepted = {key: _options(function) for key, function in QUALITY_MAPS.items()}
    known = set().union(*accepted.values())
    for option in options:
        if option not in known:
            raise ConfigError(unknown("option of the quality maps", option, known))
    own = {key: value for key, value in options.items() if key in accepted[name]}
    return QUALITY_MAPS[name](x, y, **own)


@functools.cache
def _options(function: Callable[..., Tensor]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters) - {"x", "y"}


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(
            "expected two batches of one shape (B, C, H, W), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"expected floating-point images, got {x.dtype} and {y.dtype}")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _taps(window: str, size: int, sigma: float) -> list[float]:
    """Weights of the window along one axis; both windows are separable."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"window_size must be odd and positive, got {size}")
    if window == "uniform":
        return [1 / size] * size
    if window != "gaussian":
        raise ValueError(f"window must be 'gaussian' or 'uniform', got {window!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    weights = [math.exp(-((k - size // 2) ** 2) / (2 * sigma**2)) for k in range(size)]
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
