"""How well a method reconstructs healthy tissue, and whether that is enough to rank it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from uad.evaluate.score import score_volume

#: Mean DSSIM of healthy tissue above which SSIM-based scores say little: where they stopped to be
#: better than l1 on degraded reconstructions of phantoms and real FLAIR (docs/positive-control.md).
LIMIT = 0.25

MEASURES = ("dssim", "l1", "contrast_ratio")


def healthy_errors(
    scan: np.ndarray,
    reconstruction: np.ndarray,
    brain: np.ndarray,
    lesion: np.ndarray,
    quality: Mapping[str, Any],
) -> dict[str, float]:
    """:data:`MEASURES` of a reconstruction in the brain outside the lesion.

    Mean DSSIM per axial slice (``quality``: its window and clamp); mean l1; standard deviation of
    the reconstruction over that of the scan, ``(x, y, z)`` as the network saw it. NaN where there
    is no such tissue; the ratio also where the scan is constant. Brain and lesion: above 0.
    """
    healthy = (brain > 0) & (lesion == 0)
    if not healthy.any():
        return dict.fromkeys(MEASURES, float("nan"))
    errors = {
        "dssim": score_volume("ssim", scan, reconstruction, **quality),
        "l1": score_volume("l1", scan, reconstruction),
    }
    means = {name: float(error[healthy].mean(dtype=np.float64)) for name, error in errors.items()}
    given, restored = (float(a[healthy].std(dtype=np.float64)) for a in (scan, reconstruction))
    return {**means, "contrast_ratio": restored / given if given else float("nan")}


def means_by_role(errors: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean errors of ``<role>/<subject>`` volumes by role; undefined ones are left out.

    A mean is None where no volume has a value.
    """
    roles: dict[str, list[Mapping[str, float]]] = {}
    for name, found in errors.items():
        roles.setdefault(name.split("/")[0], []).append(found)
    means: dict[str, dict[str, Any]] = {}
    for role, volumes in sorted(roles.items()):
        means[role] = {"n_volumes": len(volumes)}
        for measure in MEASURES:
            values = [v[measure] for v in volumes if np.isfinite(v[measure])]
            means[role][measure] = float(np.mean(values)) if values else None
    return means
