"""Scans that somebody preprocessed already: the tree that the authors of pDDPM share.

Their pipeline ends where our ``register_scan`` ends: resampled to 1 mm, skull-stripped,
registered to SRI24, cropped to the brain's box, bias-corrected by N4. The layout is that of the
pDDPM README and of the paths in its published lists [pD]::

    Train/ixi/{t1,t2}/IXI002-Guys-0828_t2.nii.gz       mask/IXI002-Guys-0828_mask.nii.gz
    Test/Brats21/{t1,t1ce,t2,flair}/BraTS2021_00000_t2.nii.gz   mask/..._mask   seg/..._seg
    Test/MSLUB/{t1,t2,flair}/patient01_t2.nii.gz                mask/..._mask   seg/..._seg

or, as the scripts write it, ``v4correctedN4_non_iso_cut/{IXI,Brats21,MSLUB}/...``. That the
shared archive itself looks like this is **not verified**: it was not at hand. From the scripts:
masks and lesions were warped linearly, so they hold fractions, and any value above 0 counts; the
crop left the header of the whole volume, so that positions in millimetres mean nothing, and
images, masks and lesions belong together voxel for voxel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import DataError
from uad.core.masks import dice
from uad.core.nifti import read_mask, read_volume
from uad.core.patterns import AnyLayout, Files, Layout, layout_of
from uad.data.sources import load_registry

#: Below which folders that of a data set may lie.
ABOVE = ("", "Data", "v4correctedN4_non_iso_cut", "processed_data/v4correctedN4_non_iso_cut")
#: The names in it; the folder of a modality may have any.
PATTERNS = {
    "image": ["{modality}/{subject}_{modality}.nii.gz", "*/{subject}_{modality}.nii.gz"],
    "brain": "mask/{subject}_mask.nii.gz",
    "lesion": "seg/{subject}_seg.nii.gz",
}


def scan_preprocessed(
    root: str | Path, layout: AnyLayout, modalities: list[str]
) -> tuple[Path, dict[str, Files]]:
    """The folder of a data set in a preprocessed tree (or the tree, if it is of this data set
    alone), and the files of each subject there who has an image of one of the modalities.

    Raises:
        DataError: there is none.
    """
    own, folders = layout_of(layout), load_registry().of_layout(layout).preprocessed
    names = {**PATTERNS, "modalities": {m: m.lower() for m in own.modalities}}
    if own.healthy:
        del names["lesion"]
    patterns = Layout.model_validate(own.model_dump() | names)
    places = (Path(root, above, folder) for above in ABOVE for folder in folders)
    for place in (Path(root), *places):
        if found := patterns.scan(place):
            return place, {n: files for n, files in found.items() if {*files} & {*modalities}}
    raise DataError(
        f"{root}: no preprocessed {layout} data; expected <root>/{' or '.join(folders)}/"
        "{t2,...}/NAME_t2.nii.gz with mask/NAME_mask.nii.gz (and seg/NAME_seg.nii.gz), the tree of "
        "the pDDPM README."
    )


@dataclass(frozen=True)
class Preprocessed:
    """One preprocessed scan as the authors' loader sees it, axes x, y, z as stored: image (X, Y, Z;
    float32, 0 outside the brain), brain and lesion (bool), axes against RAS+.
    """

    image: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    flipped: tuple[int, ...]

    def to_ras(self, volume: np.ndarray) -> np.ndarray:
        """Turn a volume on these axes, packed or not, to RAS+.

        Pack first, turn last: an odd margin is cropped at the low end of the *stored* axes in
        the authors' loader, so turning first would move the brain by a voxel.
        """
        return np.ascontiguousarray(np.flip(volume, self.flipped))


def load_preprocessed(row: Mapping[str, Any], *, spacing: float = 1.0) -> Preprocessed:
    """Read one scan (``image``, ``mask`` and ``lesion``, empty for healthy subjects) with voxels of
    ``spacing`` mm, ready for ``pack_volume``.

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
    if (overlap := dice(mask, image != 0)) < 0.8:
        raise DataError(
            f"{row['mask']}: does not fit {path} (Dice {overlap:.2f}); is it the mask of "
            "another scan? Exclude the subject, or replace the file."
        )
    orientation = nib.orientations.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    flipped = tuple(int(axis) for axis in range(3) if orientation[order[axis], 1] < 0)
    image, mask, lesion = (volume.transpose(order) for volume in (image, mask, lesion))
    return Preprocessed(image, mask, lesion, flipped)
