"""Atlas, registration, bias field and pictures, on the atlas itself moved by a known affine."""

from unittest.mock import ANY

import numpy as np
import pytest

from tools.scans import QUICK, SPACING, register, reorient
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_json, sha256
from uad.core.masks import dice
from uad.core.nifti import read_scan, read_scan_mask, read_volume, write_volume
from uad.data.sri24 import atlas_source
from uad.preprocess import orientation
from uad.preprocess.ants_images import import_ants
from uad.preprocess.atlas import prepare_atlas
from uad.preprocess.intensity import Packing, pack_volume
from uad.preprocess.picture import qc_picture
from uad.preprocess.register import RegisterOptions, _box, _corrected, _read_inputs
from uad.preprocess.skullstrip import skull_strip


@pytest.fixture(scope="module")
def registered(scan_dir, atlas_dir, tmp_path_factory):
    return register(scan_dir, atlas_dir, tmp_path_factory.mktemp("registered"))[1]


def test_atlas_is_written_with_its_origin(atlas_dir, tmp_path):
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
    with pytest.raises(ConfigError, match="positive"):
        prepare_atlas(tmp_path, 0.0)


def test_registration_recovers_a_known_affine(registered, atlas_dir):
    atlas, ours = read_scan(atlas_dir / "brain_mask.nii.gz"), read_scan(registered.image)
    mask = read_scan_mask(registered.brain_mask, ours)[0]
    start = np.round(np.linalg.solve(atlas.affine, ours.affine)[:3, 3]).astype(int)
    assert np.allclose(atlas.affine[:3, :3], ours.affine[:3, :3])
    placed = np.zeros(atlas.data.shape, dtype=bool)
    placed[tuple(map(slice, start, start + mask.shape))] = mask
    facts = read_json(registered.sidecar)
    overlap = dice(placed, atlas.data > 0)
    assert overlap >= 0.95
    assert facts["registration"]["overlap_dice"] == pytest.approx(overlap, abs=1e-4)
    # the transform goes from the atlas to the scan, which is smaller by 0.92 in each direction
    assert facts["registration"]["determinant"] == pytest.approx(0.92**3, rel=0.1)
    assert facts["crop_start"] == start.tolist()


def test_outside_the_brain_is_zero_and_the_box_is_the_brains(registered):
    image, mask = (read_volume(p)[0] for p in (registered.image, registered.brain_mask))
    assert (image[mask == 0] == 0).all() and image.min() >= 0
    assert _box(mask > 0) == tuple(slice(0, n) for n in mask.shape)


def test_lesion_follows_the_image(registered):
    image = read_scan(registered.image)
    lesion = read_scan_mask(registered.lesion, image)[0]
    bright = image.data > 0.5 * image.data.max()
    assert dice(lesion, bright) > 0.75
    apart = np.argwhere(lesion).mean(axis=0) - np.argwhere(bright).mean(axis=0)
    assert np.linalg.norm(apart) < 0.5


def test_sidecar_tells_what_was_done_and_not_where_or_when(registered, scan_dir):
    facts = read_json(registered.sidecar)
    assert facts["Sources"] == [str(scan_dir / f"{n}.nii.gz") for n in ("image", "mask", "lesion")]
    assert facts["parameters"]["n4_iterations"] == [10, 10]
    assert facts["parameters"]["seed"] == 7
    assert facts["bias_field"]["min"] <= facts["bias_field"]["max"]
    assert facts["warnings"] == []
    assert str(registered.sidecar.parent) not in registered.sidecar.read_text()


def test_two_runs_give_the_same_bytes(registered, scan_dir, atlas_dir, tmp_path):
    _, again = register(scan_dir, atlas_dir, tmp_path)
    for name in ("image", "brain_mask", "lesion", "transform", "sidecar"):
        assert sha256(getattr(again, name)) == sha256(getattr(registered, name)), name


@pytest.mark.parametrize("codes", ["LPS", pytest.param("SRA", marks=pytest.mark.slow)])
def test_a_scan_whose_header_lost_its_axes_is_turned_and_says_so(
    codes, registered, scan_dir, atlas_dir, tmp_path
):
    for name in ("image", "mask", "lesion"):
        turned = reorient(scan_dir / f"ras_{name}.nii.gz", tmp_path / f"{name}.nii.gz", codes)
        data, affine = read_volume(turned)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        write_volume(turned, data, np.diag([*spacing, 1.0]))
    facts, out = register(tmp_path, atlas_dir, tmp_path / "out")
    assert facts["warnings"] == [ANY] and f"is {codes} in the image" in facts["warnings"][0]
    for name in ("image", "brain_mask", "lesion"):
        ours, theirs = (read_volume(getattr(o, name)) for o in (out, registered))
        assert np.allclose(ours[1], theirs[1]) and ours[0].shape == theirs[0].shape
        assert dice(ours[0] > 0, theirs[0] > 0) > 0.95
    assert dice(read_volume(out.lesion)[0] > 0, read_volume(registered.lesion)[0] > 0) > 0.9


def test_what_fits_in_no_orientation_is_refused(scan_dir, atlas_dir, tmp_path, monkeypatch):
    brain = read_scan(atlas_dir / "brain.nii.gz")
    atlas = orientation.cubes(brain.data, brain.data > 0, brain.spacing)
    noise = np.random.default_rng(0).random(brain.data.shape) + 1
    found = orientation.fit(orientation.cubes(noise, brain.data > 0, brain.spacing), atlas)
    assert found[0] < 0.01 and not found[2]  # though its outline has a right way round
    monkeypatch.setattr(orientation, "ENOUGH", ((9.0, 0.0),))
    monkeypatch.setattr("uad.preprocess.register.TRIED", 1)
    with pytest.raises(DataError, match=r"image\.nii\.gz: does not fit the atlas in any orient"):
        register(scan_dir, atlas_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_z_scored_scan_is_moved_up_and_registered_as_before(
    registered, scan_dir, atlas_dir, tmp_path
):
    data, affine = read_volume(scan_dir / "image.nii.gz")
    inside = data > 0
    scaled = np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0)
    write_volume(tmp_path / "z.nii.gz", scaled, affine)
    facts, out = register(scan_dir, atlas_dir, tmp_path / "out", image=tmp_path / "z.nii.gz")
    assert facts["warnings"] == [] and 1 < facts["intensities_moved_up"] < 10
    packed = []
    for files in (registered, out):
        image, mask = (read_volume(path)[0] for path in (files.image, files.brain_mask))
        packed.append(pack_volume(image, mask, None, Packing(SPACING, smooth=False)))
    assert dice(packed[0][1] > 0, packed[1][1] > 0) > 0.98
    both = (packed[0][1] & packed[1][1]) > 0
    assert np.corrcoef(packed[0][0][both], packed[1][0][both])[0, 1] > 0.98


def test_linear_lesion_warping_dilates(registered, scan_dir, atlas_dir, tmp_path):
    linear = {"lesion_interpolation": "linear", "n4": False}
    facts, out = register(scan_dir, atlas_dir, tmp_path, **linear)
    near, wide = (read_volume(o.lesion)[0] > 0 for o in (registered, out))
    assert wide.sum() > 1.2 * near.sum()
    assert (near <= wide).all()
    assert facts["bias_field"] is None


def test_a_lesion_outside_the_brain_and_a_header_elsewhere_are_warnings(scan_dir, tmp_path):
    mask, affine = read_volume(scan_dir / "mask.nii.gz")
    lesion = np.zeros_like(mask)
    lesion[:2, :2, :2] = 1
    write_volume(tmp_path / "far.nii.gz", lesion, affine)
    files = (scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz", tmp_path / "far.nii.gz")
    *_, warnings = _read_inputs(*files, None)
    assert "the lesion lies entirely outside the brain" in warnings[0]
    affine[:3, 3] += 30
    write_volume(tmp_path / "moved.nii.gz", mask, affine)
    scan = read_scan(scan_dir / "image.nii.gz")
    moved, warnings = read_scan_mask(tmp_path / "moved.nii.gz", scan)
    assert "52.0 mm" in warnings[0] or "51.9 mm" in warnings[0]
    assert (moved == read_scan_mask(scan_dir / "mask.nii.gz", scan)[0]).all()


def test_an_atlas_that_does_not_fit_is_refused(scan_dir, atlas_dir, tmp_path):
    with pytest.raises(ConfigError, match="4 mm, but 2 mm"):
        register(scan_dir, atlas_dir, tmp_path, spacing=2.0)
    with pytest.raises(DataError, match=r"atlas\.json"):
        register(scan_dir, tmp_path / "none", tmp_path)
    assert list(tmp_path.iterdir()) == []


def changed(name, change):
    """A fault: the file of a role, its content changed."""

    def make(path, scan):
        write_volume(path, *change(*read_volume(scan / f"{name}.nii.gz")))
        return name

    return make


def with_nan(data, affine):
    data[3, 3, 3] = np.nan
    return data, affine


def truncated(path, scan):
    path.write_bytes((scan / "image.nii.gz").read_bytes()[:2000])
    return "image"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated, "truncated"),
        (changed("image", with_nan), "NaN"),
        (changed("image", lambda d, a: (np.stack([d, d], axis=-1), a)), "not a 3D volume"),
        (changed("lesion", lambda d, a: (d[1:], a)), "has shape"),
        (changed("lesion", lambda d, a: (d, a @ np.diag([-1, 1, 1, 1]))), "axes of the mask"),
        (changed("mask", lambda d, a: (0 * d, a)), "brain mask is empty"),
        (lambda path, scan: "image", "no such file"),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_left(make, reason, scan_dir, atlas_dir, tmp_path):
    bad, out = tmp_path / "in" / "bad.nii.gz", tmp_path / "out"
    bad.parent.mkdir()
    out.mkdir()
    role = make(bad, scan_dir)
    with pytest.raises(DataError, match=reason) as caught:
        register(scan_dir, atlas_dir, out, **{role: bad})
    assert str(bad) in str(caught.value)
    if role == "image":
        with pytest.raises(DataError, match=r"bad\.nii\.gz"):
            skull_strip(bad, out / "m.nii.gz", "foreground", None)
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_the_shortcut_of_n4_changes_little(atlas_dir):
    """Fitted to every second voxel of a brain of three tissues under a known field, or to all."""
    brain = read_scan(atlas_dir / "brain.nii.gz")
    box = _box(brain.data > 0)
    data, mask = brain.data[box], brain.data[box] > 0
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
        corrected, field, _ = _corrected(image, mask, brain.affine, options)
        fields.append(field[mask])
        volume, inside, _ = pack_volume(corrected, mask, None, Packing(SPACING, smooth=False))
        packed.append(volume[inside > 0].astype(np.float32))
    for field in fields:
        assert np.corrcoef(field, truth[mask])[0, 1] > 0.98
    assert np.corrcoef(*fields)[0, 1] > 0.995
    assert np.abs(fields[1] / fields[0] - 1).mean() < 0.01
    apart = np.abs(packed[1] - packed[0])
    assert apart.mean() < 0.01 and np.percentile(apart, 99) < 0.03


def test_picture_is_small_repeatable_and_radiological(registered, atlas_dir, tmp_path):
    from PIL import Image

    out = registered
    for name in ("first.png", "second.png"):
        qc_picture(tmp_path / name, out.image, out.brain_mask, out.lesion, atlas_dir, "sub-1 T1w")
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


def test_picture_of_a_raw_scan_needs_no_atlas(scan_dir, tmp_path):
    image, mask = scan_dir / "image.nii.gz", scan_dir / "mask.nii.gz"
    qc_picture(tmp_path / "raw.png", image, mask, None, None, "raw")
    assert 2_000 < (tmp_path / "raw.png").stat().st_size < 150_000
    with pytest.raises(DataError, match=r"no\.nii\.gz"):
        qc_picture(tmp_path / "bad.png", tmp_path / "no.nii.gz", mask, None, None, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["raw.png"]
