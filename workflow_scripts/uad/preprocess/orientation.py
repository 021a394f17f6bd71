"""Does a scan lie on the atlas the right way round? Tried where its header may be wrong.

The 24 ways of turning a brain that keep its handedness are compared by mutual information on a
coarse grid. A brain and its mirror image overlap alike: left and right come from the header alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

#: Voxels (mm) and their number along the side of the cube in which brains are compared.
GRID, SIDE = 4.0, 52
#: A brain fits if its mutual information with the atlas (nats, its border left out) and, with the
#: border, its ratio to that of any other way round reach one of these pairs. Large tumours lower
#: the first, not the second. Real scans: docs/qc.md.
ENOUGH = ((0.03, 1.2), (0.01, 2.0))
#: Ways round that are registered when the header's does not fit.
TRIED = 3

#: 3x3 matrices with a 1 or -1 in each row: RAS+ axes of the scan to those of the atlas.
Turn = np.ndarray
#: A brain on the coarse grid, its middle in the middle, NaN outside; the same without its border.
Cubes = tuple[np.ndarray, np.ndarray]


def turns() -> list[Turn]:
    """The 24 rotations by right angles; the first leaves everything as it is."""
    matrices = [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    return [matrix for matrix in matrices if round(np.linalg.det(matrix)) == 1]


def cubes(data: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> Cubes:
    """A brain, (X, Y, Z) on RAS+ axes, on the coarse grid; its mask must not be empty."""
    from scipy import ndimage

    factor = GRID / np.asarray(spacing)
    corner = np.argwhere(mask).mean(axis=0) - factor * (SIDE - 1) / 2
    inside, values = (
        ndimage.affine_transform(
            ndimage.gaussian_filter(volume.astype(np.float32), factor / 3),
            np.diag(factor), corner, (SIDE,) * 3, order=1,
        )
        for volume in (mask, np.where(mask, data, 0))
    )  # fmt: skip
    whole = np.where(inside > 0.5, values, np.nan)
    return whole, np.where(ndimage.binary_erosion(inside > 0.5), values, np.nan)


def likeness(scan: Cubes, atlas: Cubes) -> list[tuple[float, Turn]]:
    """Mutual information (nats) of two brains for each of :func:`turns`, in their order."""
    found = []
    for turn in turns():
        order = np.abs(turn).argmax(axis=1)
        steps = turn[range(3), order]
        turned = scan[0].transpose(order)[tuple(slice(None, None, int(step)) for step in steps)]
        found.append((_of_cubes(turned, atlas[0]), turn))
    return found


def fit(registered: Cubes, atlas: Cubes) -> tuple[float, float, bool]:
    """How well a registered brain fits the atlas: both figures of ENOUGH, and whether it will do.

    What all cut-out brains have at their border counts for the way round, not for the fit.
    """
    value = _of_cubes(registered[1], atlas[1])
    (here, _), *others = likeness(registered, atlas)
    ratio = here / max(*(other for other, _ in others), 1e-6)
    return value, ratio, any(value >= floor and ratio >= least for floor, least in ENOUGH)


def _of_cubes(first: np.ndarray, second: np.ndarray) -> float:
    both = np.isfinite(first) & np.isfinite(second)
    return mutual_information(first[both], second[both], bins=16)


def mutual_information(x: np.ndarray, y: np.ndarray, bins: int = 32) -> float:
    """Mutual information in nats, from the joint histogram between the 1st and 99th percentiles."""
    if x.size < 2:
        return 0.0
    clipped = [np.clip(v.astype(np.float64), *np.percentile(v, [1, 99])) for v in (x, y)]
    joint, _, _ = np.histogram2d(*clipped, bins=bins)
    joint /= joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())


def axes_of(turn: Turn) -> str:
    """Where what the header calls right, front and up points to in truth, for example ``LPS``."""
    names = (("L", "R"), ("P", "A"), ("I", "S"))
    return "".join(names[int(np.abs(c).argmax())][int(c.sum() > 0)] for c in turn.T)
