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

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import DataError
from uad.core.nifti import read_mask, read_volume
from uad.core.patterns import BRAIN, LESION, layout_of
from uad.data.layouts import Index, index_subjects
from uad.data.sources import load_registry

#: Below which folders that of a data set may lie.
ABOVE = ("", "Data", "v4correctedN4_non_iso_cut", "processed_data/v4correctedN4_non_iso_cut")
EXPECTED = (
    "expected <root>/{}/{{t2,...}}/NAME_t2.nii.gz with mask/NAME_mask.nii.gz (and "
    "seg/NAME_seg.nii.gz), the tree of the pDDPM README"
)


def dataset_folder(root: str | Path, layout: str) -> Path:
    """The folder of a data set that holds the modality folders.

    Raises:
        DataError: there is none.
    """
    root, folders = Path(root), load_registry().of_layout(layout).preprocessed
    for place in [root, *(root / above / folder for above in ABOVE for folder in folders)]:
        if any(_folders(place, modality) for modality in layout_of(layout).modalities):
            return place
    raise DataError(f"{root}: no preprocessed {layout} data; {EXPECTED.format(folders[0])}.")


def _folders(place: Path, name: str) -> list[Path]:
    """Folders of this name, upper or lower case."""
    return sorted(f for f in place.glob("*") if f.is_dir() and f.name.lower() == name.lower())


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
    opened: bool = False,
) -> Index:
    """List the subjects of a preprocessed tree.

    Arguments, result and errors are those of :func:`uad.data.layouts.index_dataset`, for the
    tree or the folder of one data set in it; with one more column, ``mask`` (the brain mask).
    """
    place, patterns = dataset_folder(root, layout), layout_of(layout)
    kinds = {m: m for m in modalities} | {BRAIN: "mask"}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for role, kind in (kinds if patterns.healthy else kinds | {LESION: "seg"}).items():
        for name, path in _files(place, kind).items():
            if re.fullmatch(patterns.subject, name):
                found[name][role] = path
    found = {name: files for name, files in sorted(found.items()) if {*files} & {*modalities}}
    nobody = (
        f"{place}: no subject of {layout} has all of {', '.join(modalities)}; "
        f"{EXPECTED.format(load_registry().of_layout(layout).preprocessed[0])}."
    )
    chosen = modalities, exclude or {}, limit
    return index_subjects(found, layout, place, chosen, nobody, masks=True, opened=opened)


@dataclass(frozen=True)
class Preprocessed:
    """One preprocessed scan as the authors' loader sees it, axes x, y, z as stored: image (X, Y, Z;
    float32, 0 outside the brain), brain and lesion (bool), voxel size (mm), axes against RAS+.
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
    """Read one scan (``image``, ``mask`` and ``lesion``, empty for healthy subjects) of
    :func:`index_preprocessed`, with voxels of ``spacing`` mm, ready for ``pack_volume``.

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
