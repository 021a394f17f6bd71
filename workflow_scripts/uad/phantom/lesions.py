"""Lesions of a phantom: a glioma, or multiple-sclerosis plaques."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uad.phantom.anatomy import Anatomy, Template, rotation


@dataclass(frozen=True)
class Lesions:
    """``labels`` as the file has them (uint8), and each class's soft weight in [0, 1]."""

    labels: np.ndarray
    weights: dict[str, np.ndarray]


def _lowest(values: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` allowed voxels with the lowest values (all, if fewer)."""
    places = np.flatnonzero(allowed)
    count = min(count, len(places))
    # a stable sort, so that ties break by position on every machine
    chosen = places[np.argsort(values.ravel()[places], kind="stable")[:count]]
    mask = np.zeros(values.size, dtype=bool)
    mask[chosen] = True
    return mask.reshape(values.shape)


def _squared_norm(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Squared length of ``matrix @ vector``: plain sums, what BLAS returns depends on threads."""
    x, y, z = vectors
    return sum((row[0] * x + row[1] * y + row[2] * z) ** 2 for row in matrix)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component of a mask that is not empty."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def make_tumour(anatomy: Anatomy, site: np.ndarray, rng: np.random.Generator) -> Lesions:
    """A glioma: labels 1 necrotic core, 2 oedema, 4 enhancing rim, as in BraTS.

    The core is an ellipsoid with a noisy border. Oedema grows from it, cheaply
    through white matter, dearly through grey matter and hardly through fluid.
    """
    from scipy import ndimage

    grid = anatomy.grid
    litre = np.clip(0.095 * np.exp(rng.normal(0, 0.35)), 0.05, 0.15)
    core_part = rng.uniform(0.18, 0.40)
    axes = np.exp(rng.normal(0, 0.16, 3))
    turn = (rotation(rng.uniform(-180, 180, 3)) / axes[:, None]).astype(np.float32)
    offset = anatomy.coordinates - site.astype(np.float32).reshape(3, 1, 1, 1)
    distance = np.sqrt(_squared_norm(turn, offset))
    coarse, fine = grid.smooth_field(rng, 18.0), grid.smooth_field(rng, 8.0)

    voxels = litre * 1e6 / grid.spacing**3
    solid = anatomy.brain & (anatomy.csf < 0.6)
    # the falx holds a tumour back
    across = anatomy.coordinates[0] * np.float32(np.sign(site[0])) < -1
    level = distance * (1 + 0.22 * coarse + 0.12 * fine)
    core = _largest_part(_lowest(level, solid & ~across, max(round(core_part * voxels), 8)))
    radius = np.float32((litre * 1e6 * 3 / (4 * np.pi)) ** (1 / 3))
    cost = distance * (1 + 0.18 * coarse) + radius * (
        0.8 * anatomy.gm + 2.0 * anatomy.csf + 0.6 * across
    )
    cost[core] = -1
    # oedema grows from the tumour: leave out what has no connection to it
    whole = _largest_part(_lowest(cost, solid, max(round(voxels), 16)))
    core &= whole

    depth = (ndimage.distance_transform_edt(core) - 0.5) * grid.spacing
    rim = core & (depth < rng.uniform(2.5, 4.5) * (1 + 0.25 * fine))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[whole], labels[core], labels[rim] = 2, 1, 4
    # tissue borders are blurred by half a voxel, and by a millimetre in the body
    blur = max(0.4, 1.0 / grid.spacing)
    weights = {
        name: ndimage.gaussian_filter((labels == label).astype(np.float32), blur)
        for name, label in (("core", 1), ("oedema", 2), ("rim", 4))
    }
    # infiltration and enhancement are uneven
    weights["oedema"] *= np.clip(0.85 + 0.2 * fine, 0.4, 1)
    weights["core"] *= np.clip(0.85 + 0.2 * coarse, 0.4, 1)
    weights["rim"] *= np.clip(0.75 + 0.2 * coarse, 0.45, 1)
    return Lesions(labels, weights)


def make_plaques(anatomy: Anatomy, template: Template, rng: np.random.Generator) -> Lesions:
    """Multiple-sclerosis plaques: small ellipsoids, most of them near the ventricles.

    Their volume together is .0006 to .006 of the brain's, within what MSLUB has.
    """
    grid = anatomy.grid
    number = int(rng.integers(6, 21))
    part = np.clip(0.0025 * np.exp(rng.normal(0, 0.6)), 0.0006, 0.006)
    sites = rng.choice(template.plaque_sites, size=number, replace=False, p=template.plaque_weights)
    coarse = grid.smooth_field(rng, 9.0)
    level = np.full(grid.shape, np.inf, dtype=np.float32)
    activity = np.ones(grid.shape, dtype=np.float32)
    for site in sites:
        axes = np.exp(rng.normal(0, 0.35)) * np.exp(rng.normal(0, 0.25, 3))
        turn = (rotation(rng.uniform(-180, 180, 3)) / axes[:, None]).astype(np.float32)
        near = np.ones(grid.shape, dtype=bool)
        for axis in range(3):
            near &= np.abs(anatomy.coordinates[axis] - np.float32(site[axis])) < 20
        offset = anatomy.coordinates[:, near] - site.astype(np.float32)[:, None]
        distance = np.sqrt(_squared_norm(turn, offset))
        nearest = distance < level[near]
        level[near] = np.where(nearest, distance, level[near])
        activity[near] = np.where(nearest, np.float32(rng.uniform(0.45, 1.1)), activity[near])
    level *= np.clip(1 + 0.2 * coarse, 0.5, 1.5)
    solid = anatomy.brain & (anatomy.csf < 0.5) & (anatomy.wm > 0.3)
    mask = _lowest(level, solid, max(round(part * int(anatomy.brain.sum())), 4))
    border = level[mask].max()
    # full at the centre, about half at the border, a faint halo beyond
    weight = np.clip(1.25 - 0.7 * (level / border), 0, 1) * np.minimum(activity, 1)
    weight = np.where(np.isfinite(level), weight, 0).astype(np.float32)
    weight[~mask] *= np.float32(0.35)
    return Lesions(mask.astype(np.uint8), {"plaque": weight})
