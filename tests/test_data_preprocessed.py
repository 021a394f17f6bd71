"""``source: preprocessed``: the tree that the authors of pDDPM share, entered after N4."""

import nibabel as nib
import numpy as np
import pytest

from uad.core.errors import DataError
from uad.data.layouts import index_dataset
from uad.data.preprocessed import load_preprocessed, scan_preprocessed
from uad.preprocess.intensity import Packing, pack_volume
from uad.qc.verdicts import give_verdicts, refuse_unusable, validate_tree

#: 4 mm, so that the tests are fast; the shared set has 1 mm.
SPACING = 4.0
LPS = np.diag([-SPACING, -SPACING, SPACING, 1.0])
SHAPE = (36, 44, 37)


def ellipsoid(centre, radii):
    grid = np.indices(SHAPE).transpose(1, 2, 3, 0)
    return (((grid - centre) / radii) ** 2).sum(-1)


def brain(seed, lesion=True):
    """Image, mask and lesion as the scripts leave them: fractions at the edges, LPS axes."""
    rng = np.random.default_rng(seed)
    away = ellipsoid(np.array(SHAPE) / 2 - 0.5, np.array(SHAPE) / 2 - rng.uniform(0, 1.5, 3))
    mask = np.clip((1.05 - away) * 6, 0, 1)
    spot = np.clip(1.5 - ellipsoid((12 + seed, 20, 18), (5, 5, 4)), 0, 1) * lesion
    image = (100 + 20 * rng.standard_normal(SHAPE) + 150 * spot) * mask
    return [v.astype(np.float32) for v in (image, mask, spot)]


def save(path, data, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def write_tree(root, folders=("Train/ixi", "Test/Brats21", "Test/MSLUB")):
    """Two subjects in each data set, with the published names."""
    names = (
        ("IXI002-Guys-0828", "IXI012-HH-1211"),
        ("BraTS2021_00000", "BraTS2021_00002"),
        ("patient01", "patient07"),
    )
    for number, (folder, subjects) in enumerate(zip(folders, names, strict=True)):
        for k, name in enumerate(subjects):
            image, mask, lesion = brain(2 * number + k, lesion=number > 0)
            save(root / folder / f"t2/{name}_t2.nii.gz", image)
            save(root / folder / f"mask/{name}_mask.nii.gz", mask)
            if number:
                save(root / folder / f"FLAIR/{name}_flair.nii.gz", image * 2)
                save(root / folder / f"seg/{name}_seg.nii.gz", lesion)
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "shared")


def index_preprocessed(root, layout, modalities, **options):
    return index_dataset(layout, root, modalities, preprocessed=True, **options)


def why(found):
    return dict(zip(found.subjects["name"], found.subjects["why"], strict=True))


# --- index


def test_the_tree_is_indexed_like_a_raw_one_with_brain_masks(tree):
    table = index_preprocessed(tree, "brats21", ["T2", "FLAIR"]).table
    assert table["subject"].unique().tolist() == ["BraTS202100000", "BraTS202100002"]
    first = table.iloc[1]
    assert first["image"].endswith("Test/Brats21/FLAIR/BraTS2021_00000_flair.nii.gz")
    assert first["mask"].endswith("mask/BraTS2021_00000_mask.nii.gz")
    assert first["lesion"].endswith("seg/BraTS2021_00000_seg.nii.gz")
    healthy = index_preprocessed(tree, "ixi", ["T2"]).table
    assert healthy["site"].tolist() == ["Guys", "HH"] and set(healthy["lesion"]) == {""}


@pytest.mark.parametrize(
    "folders",
    [
        ("Data/Train/ixi", "Data/Test/Brats21", "Data/Test/MSLUB"),
        tuple(f"v4correctedN4_non_iso_cut/{name}" for name in ("IXI", "Brats21", "MSLUB")),
    ],
)
def test_the_tree_is_found_as_shared_as_written_by_the_scripts_and_by_data_set(tmp_path, folders):
    write_tree(tmp_path, folders)
    for layout, folder in zip(("ixi", "brats21", "mslub"), folders, strict=True):
        for root in (tmp_path, tmp_path / folder):
            assert scan_preprocessed(root, layout, ["T2"])[0] == tmp_path / folder
        assert len(index_preprocessed(tmp_path, layout, ["T2"]).table) == 2


def test_gaps_and_wrong_folders_are_named_and_can_be_excluded(tree, tmp_path):
    (tree / "Test/MSLUB/mask/patient01_mask.nii.gz").unlink()
    table, left_out = index_preprocessed(tree, "mslub", ["T2"])
    assert table["name"].tolist() == ["patient07"] and left_out == {"patient01": "no brain mask"}
    excluded = index_preprocessed(tree, "mslub", ["T2"], exclude=["patient01"])
    assert excluded.table.equals(table) and not excluded.left_out
    with pytest.raises(DataError, match="'patient99' is not there"):
        index_preprocessed(tree, "mslub", ["T2"], exclude=["patient99"])
    with pytest.raises(DataError, match=r"no preprocessed ixi data; expected <root>/Train/ixi"):
        index_preprocessed(tmp_path / "nowhere", "ixi", ["T2"])
    with pytest.raises(DataError, match="no subject has all of T1, T2"):
        index_preprocessed(tree, "ixi", ["T1", "T2"])


# --- checks


@pytest.mark.parametrize("layout", ["ixi", "brats21", "mslub"])
def test_a_clean_tree_passes_the_checks_of_a_raw_one(tree, layout):
    checked = validate_tree(layout, index_preprocessed(tree, layout, ["T2"]).table)
    assert give_verdicts(checked).counts["used"] == 2
    assert (checked["mask_fractional"] > 0).all() and (checked["mask_dice"] > 0.95).all()
    refuse_unusable(layout, checked)


def test_faults_of_preprocessed_data_are_found(tree):
    folder = tree / "Test/Brats21"
    image, mask, _ = brain(2)
    save(folder / "mask/BraTS2021_00000_mask.nii.gz", np.roll(mask, 12, axis=0))
    image[3, 4, 5] = np.nan
    save(folder / "t2/BraTS2021_00002_t2.nii.gz", image)
    found = why(
        give_verdicts(validate_tree("brats21", index_preprocessed(tree, "brats21", ["T2"]).table))
    )
    assert "brain mask: fits the T2 image badly" in found["BraTS2021_00000"]
    assert "1 voxels are NaN" in found["BraTS2021_00002"]
    save(folder / "mask/BraTS2021_00000_mask.nii.gz", image * 9)
    save(folder / "seg/BraTS2021_00002_seg.nii.gz", image[:-1])
    found = why(
        give_verdicts(validate_tree("brats21", index_preprocessed(tree, "brats21", ["T2"]).table))
    )
    assert "brain mask: has values up to" in found["BraTS2021_00000"]
    assert "lesion mask" in found["BraTS2021_00002"]


# --- loading


def rows(tree, layout):
    return index_preprocessed(tree, layout, ["T2"]).table.to_dict("records")


def test_a_scan_is_loaded_as_the_authors_loader_sees_it(tree):
    scan = load_preprocessed(rows(tree, "brats21")[0], spacing=SPACING)
    image, mask, lesion = brain(2)
    np.testing.assert_array_equal(scan.image, image)
    # any value above 0 counts, as in the authors' loader and evaluation
    np.testing.assert_array_equal(scan.mask, mask > 0)
    np.testing.assert_array_equal(scan.lesion, lesion > 0)
    assert scan.flipped == (0, 1)
    np.testing.assert_array_equal(scan.to_ras(scan.image), image[::-1, ::-1])
    assert not load_preprocessed(rows(tree, "ixi")[0], spacing=SPACING).lesion.any()


def test_the_order_of_stored_axes_does_not_matter(tree):
    row = rows(tree, "mslub")[0]
    before = load_preprocessed(row, spacing=SPACING)
    for key in ("image", "mask", "lesion"):
        stored = nib.load(row[key])
        data = np.asanyarray(stored.dataobj).transpose(2, 0, 1)
        nib.save(nib.Nifti1Image(data, stored.affine[:, [2, 0, 1, 3]]), row[key])
    after = load_preprocessed(row, spacing=SPACING)
    np.testing.assert_array_equal(after.image, before.image)
    assert after.flipped == before.flipped


def test_a_loaded_scan_is_packed_and_then_turned(tree):
    scan = load_preprocessed(rows(tree, "brats21")[1], spacing=SPACING)
    packing = Packing(SPACING, field_of_view=(160.0, 192.0, 100.0), shape=(40, 48, 25))
    packed = pack_volume(scan.image, scan.mask, scan.lesion, packing)
    volume, mask, lesion = map(scan.to_ras, packed)
    assert volume.shape == (40, 48, 25) and volume.dtype == np.float16
    assert mask.any() and lesion.any() and not lesion[mask == 0].any()
    # the lesion lies at low x and y of LPS axes: to the right and in front
    centre, whole = (np.argwhere(v).mean(axis=0) for v in (lesion, mask))
    assert centre[0] > whole[0] and centre[1] > whole[1]


def test_unusable_scans_are_refused_with_the_reason(tree):
    row = rows(tree, "mslub")[0]
    with pytest.raises(DataError, match=r"has voxels of 4x4x4 mm, but preprocessing.spacing is 1"):
        load_preprocessed(row)
    _, mask, _ = brain(4)
    for data, message in (
        (np.zeros_like(mask), "the brain mask is empty"),
        (np.roll(mask, 14, axis=1), "does not fit"),
        (mask[1:], "the mask has shape"),
    ):
        nib.save(nib.Nifti1Image(data, LPS), row["mask"])
        with pytest.raises(DataError, match=message):
            load_preprocessed(row, spacing=SPACING)
