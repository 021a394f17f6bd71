"""Anomaly maps of whole volumes: the quality map between a scan and its reconstruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from uad.core.errors import DataError

#: Slices that are scored at a time, whose dozen float32 maps stay in the processor's cache: all at
#: once take twice as long.
_AT_A_TIME = 4

#: Name of the score of methods that give an anomaly score in place of a reconstruction.
DIRECT = "direct"


def score_volume(
    name: str, volume: np.ndarray, reconstruction: np.ndarray, **quality: Any
) -> np.ndarray:
    """Per-voxel anomaly score (Eq. 2) of a scan ``(X, Y, Z)``, as the network saw it (inverted if
    it was), from its reconstruction, computed per axial slice on the [0, 1] scale.

    ``name`` is a key of :data:`uad.iqa.QUALITY_MAPS`, or ``direct``: the reconstruction is the
    anomaly score itself. One set of options (``alpha``, ``window``, ``clamp``) serves all maps.

    Returns:
        New float32 array of the volume's shape, not negative; larger is more anomalous.

    Raises:
        ConfigError: there is no such quality map, or none takes an option of that name.
        DataError: the shapes differ or are not 3D; or the score is ``direct`` and has a value
            that is NaN, infinite or negative.
    """
    volume, reconstruction = np.asarray(volume), np.asarray(reconstruction)
    if volume.ndim != 3 or volume.shape != reconstruction.shape:
        raise DataError(
            f"the scan has shape {volume.shape} and its reconstruction {reconstruction.shape}; "
            "both must be 3D and on one grid. Were the slices packed again since? Then "
            "reconstruct again."
        )
    if name == DIRECT:
        return _direct(reconstruction.astype(np.float32))
    if name == "l1" and not quality:  # importing torch would take longer than the score
        return np.abs(volume.astype(np.float32) - reconstruction.astype(np.float32))
    import torch

    from uad.iqa import quality_map

    images, restored = (
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0), dtype=np.float32))[:, None]
        for array in (volume, reconstruction)
    )
    scores = np.empty(volume.shape, dtype=np.float32)
    for start in range(0, len(images), _AT_A_TIME):
        some = slice(start, start + _AT_A_TIME)
        part = quality_map(name, images[some], restored[some], **quality)
        scores[..., some] = np.moveaxis(part.squeeze(1).numpy(), 0, -1)
    return scores


def _direct(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise DataError(
            "the method's own anomaly score has NaN or infinite values. The model has probably "
            "diverged: look at its training history."
        )
    if (scores < 0).any():
        raise DataError(
            f"the method's own anomaly score goes down to {scores.min():.4g}. It must not be "
            "negative: 0 is the score of the background, and the threshold is searched above it."
        )
    return scores
