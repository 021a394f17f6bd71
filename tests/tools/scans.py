"""Small scans with a known truth: the atlas, moved by a known affine, with a bright lesion."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from uad.core.nifti import read_scan, write_volume
from uad.preprocess.register import RegisterOptions, RegisterOutputs, register_scan

SPACING = 4.0
#: Lets the registration of one test take a second or two.
QUICK = {"spacing": SPACING, "seed": 7, "n4_iterations": (10, 10)}


def move(affine, degrees, scale, shift):
    """Rotate about z, scale and shift the world of an affine."""
    angle = np.deg2rad(degrees)
    world = np.eye(4)
    world[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    world[:3, :3] *= scale
    world[:3, 3] = shift
    return world @ affine


def reorient(source, target, codes):
    """Store the same volume with other axes."""
    image = nib.load(source)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    write_volume(target, np.asarray(turned.dataobj), turned.affine)
    return target


def make_scan(folder, atlas_dir):
    """``{ras_,}{image,mask,lesion}.nii.gz`` of the stripped atlas, elsewhere and smaller."""
    brain = read_scan(atlas_dir / "brain.nii.gz")
    mask = brain.data > 0
    centre = np.round(np.argwhere(mask).mean(axis=0)).astype(int) + [5, 4, 4]
    grid = np.moveaxis(np.indices(mask.shape), 0, -1)
    lesion = (np.linalg.norm(grid - centre, axis=-1) <= 2.5) & mask
    data = np.where(lesion, 3 * brain.data.max(), brain.data)
    affine = move(brain.affine, 9.0, 0.92, (20.0, -15.0, 8.0))
    for name, volume in (("image", data), ("mask", mask), ("lesion", lesion)):
        write_volume(folder / f"ras_{name}.nii.gz", volume, affine)
        reorient(folder / f"ras_{name}.nii.gz", folder / f"{name}.nii.gz", "PSL")
    return folder


def register(scan_dir, atlas_dir, out, image=None, mask=None, lesion="lesion.nii.gz", **changes):
    """Register the scan of a folder, or other files; its facts and where it was written."""
    files = RegisterOutputs(
        image=out / "image.nii.gz",
        brain_mask=out / "mask.nii.gz",
        lesion=out / "lesion.nii.gz",
        transform=out / "affine.mat",
        sidecar=out / "image.json",
    )
    names = (image or "image.nii.gz", mask or "mask.nii.gz")
    lesion = scan_dir / lesion if lesion else None
    options = RegisterOptions(**QUICK | changes)
    return register_scan(*(scan_dir / n for n in names), lesion, atlas_dir, files, options), files
