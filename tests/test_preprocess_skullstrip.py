"""Skull stripping: the back ends, and networks that predict in batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.scans import move, reorient
from uad.core.errors import ConfigError, DataError
from uad.core.files import sha256
from uad.core.masks import SMALLEST_HEAD_ML, dice, outline_ml
from uad.core.nifti import read_scan, read_scan_mask, read_volume, write_volume
from uad.preprocess import hdbet, prediction_batches
from uad.preprocess.brain_masks import predict_brain_masks, read_prediction
from uad.preprocess.skullstrip import skull_strip


@pytest.fixture(scope="session")
def head(atlas_dir, tmp_path_factory):
    """A head with skull and the true mask of its brain."""
    folder = tmp_path_factory.mktemp("head")
    scan = read_scan(atlas_dir / "head.nii.gz")
    affine = move(scan.affine, -6.0, 1.06, (5.0, 12.0, -9.0))
    write_volume(folder / "head.nii.gz", scan.data, affine)
    write_volume(
        folder / "truth.nii.gz", read_volume(atlas_dir / "brain_mask.nii.gz")[0] > 0, affine
    )
    return folder / "head.nii.gz", folder / "truth.nii.gz"


def test_ants_finds_the_brain(head, atlas_dir, tmp_path):
    facts = skull_strip(head[0], tmp_path / "ras.nii.gz", "ants", atlas_dir, seed=3)
    truth = read_volume(head[1])[0] > 0
    mask, affine = read_volume(tmp_path / "ras.nii.gz")
    assert np.allclose(affine, read_volume(head[0])[1], atol=1e-4)
    assert dice(mask > 0, truth) > 0.90
    assert facts["brain_ml"] == pytest.approx(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1e3)
    assert facts["versions"]["antspyx"]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ILA"])
def test_foreground_is_the_same_world_mask_in_any_orientation(codes, scan_dir, tmp_path):
    turned = reorient(scan_dir / "ras_image.nii.gz", tmp_path / "scan.nii.gz", codes)
    facts = skull_strip(turned, tmp_path / "mask.nii.gz", "foreground", None)
    image = read_scan(turned)
    mask, warnings = read_scan_mask(tmp_path / "mask.nii.gz", image)
    truth = read_scan(scan_dir / "ras_mask.nii.gz")
    assert warnings == [] and facts["warnings"] == []
    assert (mask == (truth.data > 0)).all()
    assert np.allclose(image.affine, truth.affine, atol=1e-4)


def test_foreground_fills_holes_drops_islands_and_knows_its_background(tmp_path):
    data = np.full((40, 40, 40), -5.0)
    data[8:32, 8:32, 8:32] = 10.0
    data[20, 20, 20] = -5.0
    data[2:4, 2:4, 2:4] = 10.0
    for spacing, warnings in ((4.0, 0), (1.0, 1)):
        write_volume(tmp_path / "scan.nii.gz", data, np.diag([*[spacing] * 3, 1]))
        facts = skull_strip(tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz", "foreground", None)
        assert (facts["background"], facts["brain_voxels"]) == (-5.0, 24**3)
        assert len(facts["warnings"]) == warnings
    assert "brain volume of 14 ml is outside 400 to 2500 ml" in facts["warnings"][0]


def test_a_scan_that_is_all_one_value_has_no_brain(tmp_path):
    write_volume(tmp_path / "scan.nii.gz", np.ones((20, 20, 20)), np.eye(4))
    with pytest.raises(DataError, match=r"scan\.nii\.gz"):
        skull_strip(tmp_path / "scan.nii.gz", tmp_path / "m" / "mask.nii.gz", "foreground", None)
    assert not (tmp_path / "m").exists()


@pytest.fixture(scope="session")
def stripped(head, tmp_path_factory):
    """The head, its skull removed by somebody."""
    data, affine = read_volume(head[0])
    path = tmp_path_factory.mktemp("stripped") / "brain.nii.gz"
    write_volume(path, np.where(read_volume(head[1])[0] > 0, data, 0), affine)
    return path


def test_auto_takes_the_way_that_each_scan_needs_and_says_so(bright, head, stripped, tmp_path):
    for scan, backend, body in ((head[0], "hdbet", "a head"), (stripped, "foreground", "a brain")):
        facts = skull_strip(scan, tmp_path / "auto.nii.gz", "auto-hdbet", None, **OPTIONS)
        assert facts["backend"] == backend and facts["auto"].startswith(body)
        assert not any("is not for it" in text for text in facts["warnings"])
        skull_strip(scan, tmp_path / "named.nii.gz", backend, None, **OPTIONS)
        assert sha256(tmp_path / "auto.nii.gz") == sha256(tmp_path / "named.nii.gz")


def test_a_back_end_that_is_not_for_such_a_scan_is_a_warning(bright, head, stripped, tmp_path):
    facts = skull_strip(stripped, tmp_path / "m.nii.gz", "hdbet", None, **OPTIONS)
    assert "a brain without skull, not a head: 'hdbet' is not for it" in facts["warnings"][0]
    facts = skull_strip(head[0], tmp_path / "m.nii.gz", "foreground", None)
    assert any("a head, not a brain: 'foreground'" in text for text in facts["warnings"])


@pytest.mark.parametrize("values", ["raw", "z-scored", "inverted", "on a bright background"])
def test_heads_and_brains_are_told_apart_whatever_the_values(head, stripped, values):
    def change(data):
        inside = data[data > 0]
        return {
            "raw": data,
            "z-scored": np.where(data > 0, (data - inside.mean()) / inside.std(), 0),
            "inverted": np.where(data > 0, data.max() + 1 - data, 0),
            "on a bright background": data + 500,
        }[values]

    for path, is_head in ((head[0], True), (stripped, False)):
        scan = read_scan(path)
        assert (outline_ml(change(scan.data), scan.spacing) > SMALLEST_HEAD_ML) == is_head


def test_an_unknown_back_end_suggests_the_near_one(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'hdbet'"):
        skull_strip(tmp_path / "x.nii.gz", tmp_path / "m.nii.gz", "hd-bet", None)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR"])
def test_hdbet_gets_zyx_arrays_of_the_mni_orientation(codes, tmp_path, monkeypatch):
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


def test_hdbet_never_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(hdbet, "_weights", lambda fold: tmp_path / f"{fold}.model")
    with pytest.raises(ConfigError, match=r"0\.model: the weights of HD-BET are missing"):
        hdbet.require_weights(1)


# skull stripping in batches


@pytest.fixture
def bright(monkeypatch):
    """A stand-in for HD-BET: bright is brain. The list has an entry each time it is loaded."""
    loaded = []

    def load(folds, place, tta):
        loaded.append((folds, place, tta))
        return lambda array, spacing: (array > 5).astype(np.uint8)

    monkeypatch.setattr(hdbet, "load_network", load)
    monkeypatch.setattr(hdbet, "require_weights", lambda folds: None)
    return loaded


def blocks(folder, **sizes):
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


def test_a_batch_loads_the_network_once_and_gives_the_masks_of_single_runs(bright, tmp_path):
    scans = blocks(tmp_path, A=10, B=12, C=9)
    out = tmp_path / "batch.safetensors"
    assert predict_brain_masks(scans, out, "hdbet", **OPTIONS) == []
    assert bright == [(5, "cpu", True)]
    predict_brain_masks(scans, tmp_path / "again", "hdbet", **OPTIONS)
    assert sha256(tmp_path / "again") == sha256(out)
    for subject, scan in scans.items():
        single, batched = tmp_path / "single.nii.gz", tmp_path / "batched.nii.gz"
        expected = skull_strip(scan, single, "hdbet", None, **OPTIONS)
        bright.clear()
        prediction = read_prediction(out, subject)
        assert skull_strip(scan, batched, "hdbet", None, predicted=prediction) == expected
        assert bright == []  # who writes a predicted mask loads no network
        assert batched.read_bytes() == single.read_bytes()
        assert expected["island_voxels_dropped"] == 1


def test_a_scan_that_cannot_be_used_leaves_the_others_of_its_batch_alone(bright, tmp_path):
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


def test_a_batch_that_crashes_names_the_scan_and_leaves_nothing(bright, tmp_path, monkeypatch):
    def out_of_memory(self, scan):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(hdbet.HdBet, "predict", out_of_memory)
    scans = blocks(tmp_path, A=10)
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        predict_brain_masks(scans, tmp_path / "out" / "b.safetensors", "hdbet", **OPTIONS)
    assert "A.nii.gz" in caught.value.__notes__[0]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_prediction_that_does_not_fit_is_refused(bright, tmp_path):
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


subjects = st.text("abcXYZ0189", min_size=1, max_size=12)


@given(st.sets(subjects, min_size=1), st.sets(subjects), st.integers(0, 8))
def test_more_subjects_leave_the_batches_of_the_others_as_they_are(old, new, doublings):
    count = 2**doublings

    def of(labels):
        return {label: prediction_batches.number_of(label, count) for label in sorted(labels)}

    before, after = of(old), of(old | new)
    assert {label: after[label] for label in old} == before
    assert set(after.values()) <= set(range(count))


def test_batches_have_about_nine_scans_and_their_number_follows_the_size_coarsely():
    assert [prediction_batches.count_for(n) for n in (0, 1, 9, 12, 13, 24, 30, 577, 1251)] == [
        1, 1, 1, 1, 2, 2, 4, 64, 128
    ]  # fmt: skip
    # a corrected size of a data set does not shuffle its batches
    assert {prediction_batches.count_for(n) for n in range(520, 800)} == {64}
    labels = [f"IXI{n:03d}HH{n:04d}" for n in range(577)]
    sizes = np.bincount([prediction_batches.number_of(label, 64) for label in labels], minlength=64)
    assert sizes.max() <= 25 and sizes.mean() == pytest.approx(577 / 64)
