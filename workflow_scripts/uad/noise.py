"""Noise for training and inference: simplex, coarse and Gaussian, in float32.

Random numbers are drawn from a ``torch.Generator``, on its device: a seed gives the same field
again, and a CPU generator the same field for a CPU as for a GPU. The last two axes of a shape are
the image. ``device`` is where the result shall be; that of the generator if left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Device = torch.device | str | None

# 2D OpenSimplex noise by Kurt Spencer (public domain, 2014), the variant that AnoDDPM and the
# PyPI package ``opensimplex`` use. Stretching maps the plane onto a square lattice, squishing
# maps that lattice onto the triangular one whose points carry the gradients.
_STRETCH = (1 / math.sqrt(3) - 1) / 2
_SQUISH = (math.sqrt(3) - 1) / 2
_NORM = 47.0
_GRADIENTS = ((5, 2), (2, 5), (-5, 2), (-2, 5), (5, -2), (2, -5), (-5, -2), (-2, -5))
# Lattice points that can lie within reach (distance below sqrt(2)) of a point of the cell at
# (0, 0). No more than four of them do at a time.
_NEIGHBOURS = ((0, 0), (1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (2, 0), (0, 2))
_IN_REACH = 4


def simplex(
    shape: Sequence[int],
    octaves: int = 6,
    persistence: float = 0.8,
    frequency: float = 64,
    generator: torch.Generator | None = None,
    *,
    device: Device = None,
) -> Tensor:
    """Sum of octaves of 2D OpenSimplex noise, as AnoDDPM and pDDPM draw it.

    Octave ``i`` has amplitude ``persistence ** i`` and ``frequency / 2 ** i`` pixels per
    unit of the lattice (the argument keeps the name that it has in AnoDDPM's
    ``simplex.py``, though it is a length). The sum is not normalised: with the defaults
    its standard deviation is about 0.56 at 96x96, and the mean of a field is not 0 but
    scatters with a standard deviation of about 0.23. As in those codes all octaves share
    one permutation and start at a lattice point, so the first pixel of a field is always 0.
    Every index of the axes before the last two gets an independent field.

    Raises:
        ValueError: an argument is out of its range.
    """
    if octaves < 1 or persistence <= 0 or frequency <= 0:
        raise ValueError(
            "octaves, persistence and frequency must be positive, got "
            f"{octaves}, {persistence} and {frequency}"
        )
    source, device = _devices(generator, device)
    # sorting random numbers shuffles all fields at once
    order = torch.rand((math.prod(shape[:-2]), 256), generator=generator, device=source)
    permutations = order.argsort(dim=1).to(device)
    geometry = _geometry(*shape[-2:], octaves, float(persistence), float(frequency), str(device))
    return _evaluate(permutations, *geometry).reshape(tuple(shape))


def coarse(
    shape: Sequence[int],
    resolution: int = 16,
    std: float = 0.2,
    generator: torch.Generator | None = None,
    *,
    device: Device = None,
) -> Tensor:
    """Gaussian noise of a low resolution, enlarged and shifted, for denoising autoencoders.

    As in Kascenas et al. (``src/denoising.py`` of AntanasKascenas/DenoisingAE): values of
    N(0, std) on a ``resolution`` x ``resolution`` grid, enlarged bilinearly with aligned
    corners, then rolled by a random offset that the whole batch shares. Its standard deviation is
    about two thirds of ``std``, since the interpolation averages. Restricting it to the foreground
    is left to the caller.
    """
    source, device = _devices(generator, device)
    height, width = shape[-2:]
    grid = (math.prod(shape[:-2]), 1, resolution, resolution)
    field = std * torch.randn(grid, generator=generator, device=source).to(device)
    field = F.interpolate(field, size=(height, width), mode="bilinear", align_corners=True)
    shifts = torch.rand(2, generator=generator, device=source).to(device)
    # indices in place of torch.roll: reading the offsets back would wait for the GPU
    rows = (torch.arange(height, device=device) + (shifts[0] * height).long()) % height
    columns = (torch.arange(width, device=device) + (shifts[1] * width).long()) % width
    return field[:, :, rows[:, None], columns].reshape(tuple(shape))


def gaussian(
    shape: Sequence[int], generator: torch.Generator | None = None, *, device: Device = None
) -> Tensor:
    """Independent values of N(0, 1) in every pixel."""
    source, device = _devices(generator, device)
    return torch.randn(tuple(shape), generator=generator, device=source).to(device)


@functools.lru_cache(maxsize=8)
def _geometry(
    height: int, width: int, octaves: int, persistence: float, frequency: float, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What does not depend on the permutation, and so is the same for every field.

    For a fixed grid of pixels the noise is linear in the gradients at the lattice points: a
    sparse matrix of kernel values times a vector of gradients. Returned are the lattice points
    that the image touches, modulo 256 ``(P, 2)``, and of the matrix the columns ``(pixels, K)``
    (point ``p`` has ``2 p`` and ``2 p + 1``) and the values ``(pixels, K)``, amplitudes included.
    """
    with torch.inference_mode(False), torch.no_grad():  # the cache outlives the caller's mode
        scale = frequency / 2.0 ** torch.arange(octaves, dtype=torch.float64)
        amplitude = persistence ** torch.arange(octaves, dtype=torch.float64)
        y = torch.arange(height, dtype=torch.float64)[:, None, None] / scale
        x = torch.arange(width, dtype=torch.float64)[:, None] / scale
        x, y = torch.broadcast_tensors(x, y)  # (height, width, octaves)
        stretch = (x + y) * _STRETCH
        cell = torch.stack((x + stretch, y + stretch), dim=-1).floor()
        lattice = cell[..., None, :] + torch.tensor(_NEIGHBOURS, dtype=torch.float64)
        position = lattice + lattice.sum(-1, keepdim=True) * _SQUISH
        offset = torch.stack((x, y), dim=-1)[..., None, :] - position
        kernel = (2 - offset.square().sum(-1)).clamp(min=0) ** 4
        kernel, nearest = kernel.topk(_IN_REACH, dim=-1)
        nearest = nearest[..., None].expand(*nearest.shape, 2)
        lattice, offset = lattice.gather(-2, nearest), offset.gather(-2, nearest)
        weight = kernel * (amplitude / _NORM)[:, None]

        lattice = lattice.long() & 255  # the permutation has a period of 256
        keys, index = torch.unique(lattice[..., 0] * 256 + lattice[..., 1], return_inverse=True)
        points = torch.stack((keys // 256, keys % 256), dim=-1)
        columns = torch.stack((2 * index, 2 * index + 1), dim=-1)
        values = weight[..., None] * offset
        return (
            points.to(device),
            columns.reshape(height * width, -1).to(device=device, dtype=torch.int32),
            values.reshape(height * width, -1).to(device=device, dtype=torch.float32),
        )


def _evaluate(permutations: Tensor, points: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Noise of every pixel, ``(fields, pixels)``, for permutation tables ``(fields, 256)``."""
    hashed = permutations[:, points[:, 0]] + points[:, 1]
    hashed = permutations.gather(1, hashed & 255)
    gradients = _gradients(str(permutations.device))[(hashed >> 1) & 7]  # (fields, points, 2)
    # a copy and not .contiguous(): for one field that keeps strides (1, points), with which
    # embedding_bag takes a path several times slower
    table = gradients.flatten(1).T.clone(memory_format=torch.contiguous_format)
    # the product with the sparse matrix, without a copy of it for every field
    return F.embedding_bag(columns, table, per_sample_weights=values, mode="sum").T


@functools.lru_cache(maxsize=8)
def _gradients(device: str) -> Tensor:
    """The eight gradients, kept on the device: a copy from the host would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(_GRADIENTS, dtype=torch.float32, device=device)


def _devices(generator: torch.Generator | None, device: Device) -> tuple[torch.device, ...]:
    """Where to draw the random numbers, and where the result shall be."""
    target = torch.device("cpu" if device is None else device)
    if generator is None:
        return target, target
    return generator.device, generator.device if device is None else target
