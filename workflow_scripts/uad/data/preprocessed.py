"""Scans that somebody preprocessed already: the tree that the authors of pDDPM share.

Their pipeline ends where our ``register_scan`` ends: resampled to 1 mm, skull-stripped,
registered to SRI24, cropped to the brain's box, bias-corrected by N4. Holders of that set
start here, with the paper's own inputs.

The layout is that of the pDDPM README and of the paths in its published lists [pD]::

    Train/ixi/{t1,t2}/IXI002-Guys-0828_t2.nii.gz       mask/IXI002-Guys-0828_mask.nii.gz
    Test/Brats21/{t1,t1ce,t2,flair}/BraTS2021_00000_t2.nii.gz   mask/..._mask   seg/..._seg
    Test/MSLUB/{t1,t2,flair}/patient01_t2.nii.gz                mask/..._mask   seg/..._seg

or, as the scripts write it, ``v4correctedN4_non_iso_cut/{IXI,Brats21,MSLUB}/...``. That the
shared archive itself looks like this is **not verified**: it was not at hand. What follows
from the scripts and is taken into account: masks and lesions were warped linearly, so they
hold fractions, and any value above 0 counts (as in the authors' loader and evaluation); the
crop left the header of the whole volume, so that positions in millimetres mean nothing, and
images, masks and lesions belong together voxel for voxel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uad.core.errors import DataError
from uad.core.nifti import read_mask, read_volume
from uad.core.patterns import layout_of
from uad.data.layouts import excluded_names, refuse_gaps, table_of
from uad.data.sources import load_registry

#: Below which folders that of a data set may lie.
ABOVE = ("", "Data", "v4correctedN4_non_iso_cut", "processed_data/v4correctedN4_non_iso_cut")


def dataset_folder(root: str | Path, layout: str) -> Path:
    """The folder of a data set that holds the modality folders.

    Raises:
        DataError: there is none.
    """
    root, folders = Path(root), load_registry().of_layout(layout).preprocessed
    places = [root, *(root / above / folder for above in ABOVE for folder in folders)]
    for place in places:
        if any(_folders(place, modality) for modality in layout_of(layout).modalities):
            return place
    raise DataError(f"{root}: no preprocessed {layout} data; {_expected(folders)}.")


def _expected(folders: list[str]) -> str:
    return (
        f"expected <root>/{folders[0]}/{{t2,...}}/NAME_t2.nii.gz with mask/NAME_mask.nii.gz"
        " (and seg/NAME_seg.nii.gz), the tree of the pDDPM README"
    )


def _folders(place: Path, name: str) -> list[Path]:
    """Folders of this name, upper or lower case."""
    if not place.is_dir():
        return []
    return sorted(f for f in place.iterdir() if f.is_dir() and f.name.lower() == name.lower())


def _files(place: Path, kind: str) -> dict[str, str]:
    """Files ``NAME_<kind>.nii.gz`` of the folder ``<kind>``, by NAME."""
    pattern = re.compile(rf"(.+)_{kind}\.nii(\.gz)?", re.IGNORECASE)
    found = {}
    for folder in _folders(place, kind):
        for path in sorted(folder.iterdir()):
            if match := pattern.fullmatch(path.name):
                found.setdefault(match[1], str(path))
    return found


def index_preprocessed(
    root: str | Path,
    layout: str,
    modalities: list[str],
    exclude: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """List the subjects of a preprocessed tree, without opening an image.

    Args:
        root: the tree, or the folder of one data set in it.
        layout: a layout of the registry.
        modalities: our modality names; a subject needs a file for each.
        exclude: subjects to leave out, by public name or BIDS label, with the reason.
        limit: keep the first that many subjects by name.

    Returns:
        A participants table as of :func:`uad.data.layouts.index_dataset`, with one more
        column, ``mask`` (the brain mask).

    Raises:
        DataError: no subject, an incomplete subject, an unknown excluded name.
    """
    place, patterns = dataset_folder(root, layout), layout_of(layout)
    images = {modality: _files(place, modality) for modality in modalities}
    masks, lesions = _files(place, "mask"), _files(place, "seg")
    names = sorted({n for files in images.values() for n in files})
    left_out = set(excluded_names(exclude or {}, names, place).values())
    names = [n for n in names if n not in left_out and re.fullmatch(patterns.subject, n)]
    if patterns.incomplete == "skip":
        names = [n for n in names if all(n in images[m] for m in modalities)]
    needed = {**images, "brain mask": masks} | ({} if patterns.healthy else {"lesion": lesions})
    gaps = [f"{name} ({what})" for name in names for what in needed if name not in needed[what]]
    refuse_gaps(gaps, "file(s)", place)
    if not names:
        raise DataError(
            f"{place}: no subject of {layout} has all of {', '.join(modalities)}; "
            f"{_expected(load_registry().of_layout(layout).preprocessed)}."
        )
    return table_of(
        {
            "name": name,
            "site": patterns.site_of(name) or layout,
            "modality": modality,
            "image": images[modality][name],
            "lesion": "" if patterns.healthy else lesions[name],
            "mask": masks[name],
        }
        for name in names[:limit]
        for modality in modalities
    )


@dataclass(frozen=True)
class Preprocessed:
    """One preprocessed scan as the authors' loader sees it, axes x, y, z as stored.

    Attributes:
        image: (X, Y, Z) float32, 0 outside the brain.
        mask: bool, the brain.
        lesion: bool, nowhere true for healthy subjects.
        spacing: voxel size in millimetres.
        flipped: the axes that run against RAS+.
    """

    image: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    spacing: float
    flipped: tuple[int, ...]

    def to_ras(self, volume: np.ndarray) -> np.ndarray:
        """Turn a volume on these axes, packed or not, to RAS+.

        Pack first, turn last: an odd margin is cropped at the low end of the *stored* axes in
        the authors' loader, so turning first would move the brain by a voxel.
        """
        return np.ascontiguousarray(np.flip(volume, self.flipped))


def load_preprocessed(row: Mapping[str, Any], *, spacing: float = 1.0) -> Preprocessed:
    """Read one scan of :func:`index_preprocessed`, ready for ``pack_volume``.

    Args:
        row: ``image``, ``mask`` and ``lesion`` (empty for healthy subjects).
        spacing: the voxel size (mm) that the scan must have (``preprocessing.spacing``).

    Raises:
        DataError: a file is unreadable or not finite, the grids differ, the voxels have
            another size, the mask is empty, or lies elsewhere than the image.
    """
    import nibabel as nib

    path = row["image"]
    image, affine = read_volume(path)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(sizes, spacing, rtol=0.01):
        raise DataError(
            f"{path}: has voxels of {'x'.join(f'{s:.3g}' for s in sizes)} mm, but "
            f"preprocessing.spacing is {spacing:g}. Preprocessed data are taken as they are: "
            "set it to their voxel size."
        )
    mask = read_mask(row["mask"], image.shape, path).data
    lesion = np.zeros_like(mask)
    if row.get("lesion"):
        lesion = read_mask(row["lesion"], image.shape, path).data
    if not mask.any():
        raise DataError(f"{row['mask']}: the brain mask is empty; exclude the subject.")
    overlap = 2.0 * int((mask & (image != 0)).sum()) / (int(mask.sum()) + np.count_nonzero(image))
    if overlap < 0.8:
        raise DataError(
            f"{row['mask']}: does not fit {path} (Dice {overlap:.2f}); is it the mask of "
            "another scan? Exclude the subject, or replace the file."
        )
    orientation = nib.orientations.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    flipped = tuple(int(axis) for axis in range(3) if orientation[order[axis], 1] < 0)
    image, mask, lesion = (volume.transpose(order) for volume in (image, mask, lesion))
    return Preprocessed(image, mask, lesion, float(spacing), flipped)
