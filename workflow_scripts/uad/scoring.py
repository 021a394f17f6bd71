"""Anomaly maps of whole volumes: the quality map between a scan and its reconstruction."""

from __future__ import annotations

from typing import Any

import numpy as np


def score_volume(
    name: str, volume: np.ndarray, reconstruction: np.ndarray, **quality: Any
) -> np.ndarray:
    """Per-voxel anomaly score (Eq. 2), computed per axial slice on the [0, 1] scale.

    Args:
        name: quality map: ``l1``, ``l2``, ``ssim`` or ``fusion``.
        volume: the scan ``(X, Y, Z)``, as the network saw it (inverted if it was).
        reconstruction: its reconstruction, same shape.
        quality: options of the map (``alpha``, ``window``, ``clamp``).

    Returns:
        float32 of the volume's shape; larger is more anomalous.
    """
    import torch

    from uad.iqa import quality_map

    def slices(array: np.ndarray) -> torch.Tensor:
        moved = np.ascontiguousarray(np.moveaxis(array, -1, 0), dtype=np.float32)
        return torch.from_numpy(moved).unsqueeze(1)

    scores = quality_map(name, slices(volume), slices(reconstruction), **quality)
    return np.ascontiguousarray(np.moveaxis(scores.squeeze(1).numpy(), 0, -1))
