"""From weights to reconstructions: what a job needs that does not train."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from uad.core.errors import DataError
from uad.core.seeds import derive_seed
from uad.methods.base import Method
from uad.networks.execution import autocast, from_slices, numerics, ready, to_slices


def load_network(method: Method, weights: str | os.PathLike[str], device: str = "cpu") -> nn.Module:
    """The trained network of a method, ready to restore on a device.

    Raises:
        DataError: the weights do not belong to this network.
    """
    network = method.build()
    try:
        network.load_state_dict(load_file(weights))
    except (RuntimeError, OSError) as error:
        raise DataError(f"{weights}: not the weights of this network ({error}).") from error
    return ready(network, device)


@torch.inference_mode()
def reconstruct_volume(  # noqa: PLR0913
    method: Method,
    network: nn.Module | None,
    volume: np.ndarray,
    mask: np.ndarray,
    *,
    t_test: int,
    batch: int,
    seed: int,
    device: str = "cpu",
    precision: str = "32-true",
) -> np.ndarray:
    """Restore one volume ``(X, Y, Z)``, float32 in [0, 1], slice batch by slice batch.

    Args:
        method: the method.
        network: its trained network, on ``device``; None for a method that is not trained.
        volume: as the method shall see it, inverted if it inverts.
        mask: its brain mask.
        t_test: noise level.
        batch: slices per forward pass; with ``noise_field: per_batch`` all passes over a
            volume share one field, because each starts from the same ``seed``.
        seed: of the noise.
        device: torch device.
        precision: of the network: as ``train.precision``.

    Returns:
        float32 of the volume's shape: the reconstruction, or the anomaly score of a method
        that scores directly.
    """
    images = to_slices(volume).unsqueeze(1).to(device)
    masks = to_slices(mask).unsqueeze(1).to(device)
    batch = len(images) if method.whole_volume else batch
    # on a CPU there is nothing to choose, and setting it imports Inductor, which takes a second
    settings = contextlib.nullcontext() if device == "cpu" else numerics(precision)
    shared = method.setup.noise_field == "per_batch"
    parts = []
    with settings:
        for start in range(0, len(images), batch):
            part_seed = seed if shared else derive_seed(seed, start)
            generator = torch.Generator(device=device).manual_seed(part_seed)
            pair = images[start : start + batch], masks[start : start + batch]
            with autocast(precision, device):
                part = method.reconstruct(network, *pair, t_test, generator)
            parts.append(part.float())
    return from_slices(torch.cat(parts).squeeze(1))
