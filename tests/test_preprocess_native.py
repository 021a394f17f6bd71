"""From SRI24 back to the scan's own grid: the inverse of registration and packing."""

import ants
import nibabel as nib
import numpy as np
import pytest
from scipy.io import savemat

from uad.core.errors import DataError
from uad.core.nifti import read_scan, write_volume
from uad.preprocess.intensity import Packing, pack_volume
from uad.preprocess.native import atlas_to_scan, packed_affine, to_own_grid

FIELD, PACKED = (192.0, 192.0, 100.0), (96, 96, 50)


def transform_file(path, rotation=0.1, shift=(4.0, -7.0, 11.0)):
    """An affine as ANTs writes it: turned, scaled and shifted about a centre."""
    turn = np.array(
        [[np.cos(rotation), -np.sin(rotation), 0], [np.sin(rotation), np.cos(rotation), 0]]
    )
    matrix = 1.05 * np.vstack([turn, [0, 0.02, 1]])
    parameters = np.concatenate([matrix.ravel(), shift])
    savemat(
        path,
        {"AffineTransform_double_3_3": parameters[:, None], "fixed": [[10], [20], [30]]},
        format="4",
    )
    return path


def ball(shape, affine, centre, radius):
    """The voxels within ``radius`` mm of a point of the world."""
    world = (
        np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape))
        + affine[:3, 3, None, None, None]
    )
    return ((world - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) < radius**2


def test_the_affine_is_that_of_ants(tmp_path):
    path = transform_file(tmp_path / "xfm.mat")
    point = np.array([12.0, -34.0, 56.0])
    expected = ants.apply_ants_transform_to_point(
        ants.read_transform(str(path)), point * [-1, -1, 1]
    )
    found = atlas_to_scan(path) @ [*point, 1]
    np.testing.assert_allclose(found[:3], np.array(expected) * [-1, -1, 1], atol=1e-4)
    (tmp_path / "broken.mat").write_bytes(b"no transform")
    with pytest.raises(DataError, match="broken.mat: not an affine"):
        atlas_to_scan(tmp_path / "broken.mat")


@pytest.mark.parametrize("shape", [(150, 181, 140), (201, 190, 60)])
def test_a_packed_volume_lies_where_the_registered_image_lies(shape):
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = [-80, -110, -60]
    mask = np.ones(shape, bool)
    blob = ball(shape, affine, [5, -15, -25], 12)
    image = np.random.default_rng(0).random(shape)
    _, _, lesion = pack_volume(image, mask, blob, Packing(1.0, FIELD, PACKED, smooth=False))
    found = packed_affine(shape, affine, FIELD, PACKED)
    np.testing.assert_allclose(np.diag(found)[:3], 2)
    inside = np.argwhere(lesion) @ found[:3, :3].T + found[:3, 3]
    np.testing.assert_allclose(inside.mean(0), [5, -15, -25], atol=0.5)


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAR"])
def test_a_mask_taken_there_and_back_is_the_same_in_any_orientation(axes, tmp_path):
    scan_affine = np.diag([0.9, 1.1, 3.0, 1])
    scan_affine[:3, 3] = [-90, -120, -70]
    image = nib.Nifti1Image(np.zeros((200, 210, 55), np.float32), scan_affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(scan_affine), nib.orientations.axcodes2ornt(axes)
        )
    )
    write_volume(tmp_path / "scan.nii.gz", np.asarray(turned.dataobj), turned.affine)
    scan = read_scan(tmp_path / "scan.nii.gz")
    forth = atlas_to_scan(transform_file(tmp_path / "xfm.mat"))
    atlas_affine = np.diag([2.0, 2, 2, 1])
    atlas_affine[:3, 3] = [-95, -100, -50]
    # a ball of SRI24 is where the transform puts its centre, in the file's own axes
    centre = np.array([10, 5, 12])
    volume = ball(PACKED, atlas_affine, centre, 20)
    found = to_own_grid(volume, atlas_affine, scan, tmp_path / "xfm.mat")
    assert found.shape == turned.shape
    where = np.argwhere(found).mean(0) @ turned.affine[:3, :3].T + turned.affine[:3, 3]
    expected = (forth @ [*centre, 1])[:3]
    assert np.abs(where - expected).max() < 0.5  # of voxels of 0.9 to 3 mm
    scores = to_own_grid(volume.astype(np.float32), atlas_affine, scan, tmp_path / "xfm.mat")
    np.testing.assert_array_equal(scores > 0.5, found)
