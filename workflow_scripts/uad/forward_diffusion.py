"""The forward diffusion process and the fixed grid of patches (Eqs. 3 and 5)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


@cache
@torch.inference_mode(False)  # what is kept outlives the caller's mode
def alphas_cumprod(
    timesteps: int = 1000, schedule: str = "cosine", device: torch.device | str = "cpu"
) -> Tensor:
    """Cumulative signal fraction of each time step, ``(timesteps,)`` float32.

    ``cosine`` is that of Nichol and Dhariwal 2021 (s = 0.008, beta capped at 0.999; what pDDPM
    runs), ``linear`` that of Ho et al. 2020 (1e-4 to 0.02 at T = 1000). It is kept on the device,
    so that no step of a training waits for a copy.
    """
    if schedule == "cosine":
        steps = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        signal = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    else:
        scale = 1000 / timesteps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0).float().to(device)


def q_sample(x0: Tensor, levels: Tensor, noise: Tensor, schedule: Tensor) -> Tensor:
    """The noised image x_t (Eq. 3) of clean images ``(B, 1, H, W)`` in [-1, 1].

    ``levels``: time step of each image, 0 to T - 1; ``schedule``: of :func:`alphas_cumprod`.
    """
    signal = schedule[levels].view(-1, 1, 1, 1)
    return (signal.sqrt() * x0 + (1 - signal).sqrt() * noise).to(x0.dtype)


@cache
@torch.inference_mode(False)
def patch_masks(
    image_size: tuple[int, int], grid: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """The patches of a grid (down, across), which divides the image: bool ``(patches, H, W)``, one
    true at each pixel.
    """
    (height, width), (down, across) = image_size, grid
    rows = torch.arange(height) // (height // down)
    columns = torch.arange(width) // (width // across)
    index = rows[:, None] * across + columns[None, :]
    return (index[None] == torch.arange(down * across)[:, None, None]).to(device)
