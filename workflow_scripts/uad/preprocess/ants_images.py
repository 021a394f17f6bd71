"""ANTsPy: its import, its images, its files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from uad.core.imports import import_lightly

#: Parts of ANTsPy (plots, statistics, networks) whose imports take most of its time.
NOT_USED = ("contrib", "deeplearn", "learn", "math", "plotting")


def import_ants(threads: int = 1) -> ModuleType:
    """Import ANTsPy with a number of ITK threads, which ITK reads once, when it is loaded."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(max(1, int(threads)))
    return import_lightly("ants", empty=[f"ants.{part}" for part in NOT_USED])


def orthogonal(affine: np.ndarray) -> np.ndarray:
    """The affine with the closest orthogonal axes (polar decomposition), as ITK needs them.

    It is exact for every affine without shear.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = left @ right * spacing
    return result


def to_ants(data: np.ndarray, affine: np.ndarray) -> Any:
    """Make an ANTs image (float32, LPS+ world) of a volume with a RAS+ affine; a sheared one gets
    the closest orthogonal axes, as in :func:`orthogonal`.
    """
    import ants

    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    left, _, right = np.linalg.svd(matrix / spacing)
    return ants.from_numpy(
        np.asarray(data, dtype=np.float32),
        origin=[-float(affine[0, 3]), -float(affine[1, 3]), float(affine[2, 3])],
        spacing=[float(value) for value in spacing],
        direction=left @ right,
    )


def shear_of(affine: np.ndarray) -> float:
    """How far the axes of an affine are from orthogonal: the largest cosine between two."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


@contextlib.contextmanager
def ants_workspace(seed: int) -> Iterator[Path]:
    """Give a private directory for the files of ANTs, removed afterwards, with its seed set.

    ``ants.registration`` takes its seed from the configuration of the package only.
    """
    import ants

    before = ants.config._random_seed
    # 0 would mean "from the clock" to ITK
    ants.config.set_ants_deterministic(False, 1 + int(seed) % (2**31 - 2))
    try:
        with tempfile.TemporaryDirectory(prefix="uad-ants-") as folder:
            yield Path(folder)
    finally:
        ants.config.set_ants_deterministic(False, before)
