"""Intensities and grids between a registered scan and the packed volume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uad.core.errors import DataError
from uad.preprocess.intensity import (
    Packing,
    crop_or_pad,
    curvature_flow,
    pack_tumour_free,
    pack_volume,
    percentile_scale,
    resample_grid,
)

shapes = st.lists(st.integers(1, 12), min_size=1, max_size=3)


@given(data=st.data(), have=shapes)
def test_crop_or_pad_is_central(data, have):
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


def test_crop_or_pad_mixes_both_and_fills():
    volume = np.arange(12, dtype=np.int16).reshape(3, 4)
    result = crop_or_pad(volume + 1, (5, 2))
    assert result.dtype == np.int16
    assert result.tolist() == [[0, 0], [2, 3], [6, 7], [10, 11], [0, 0]]
    with pytest.raises(ValueError, match="2 dimensions"):
        crop_or_pad(volume, (5,))


@given(
    seed=st.integers(0, 2**31),
    gain=st.floats(1e-3, 1e6),
    offset=st.floats(-1e3, 1e3),
    low=st.floats(0, 20),
    high=st.floats(80, 100),
)
def test_percentile_scale_stays_in_unit_range(seed, gain, offset, low, high):
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


def test_percentile_scale_names_what_is_wrong():
    volume = np.ones((3, 3, 3))
    with pytest.raises(DataError, match=r"sub-1.*empty"):
        percentile_scale(volume, np.zeros((3, 3, 3)), name="sub-1")
    with pytest.raises(DataError, match=r"sub-1.*constant"):
        percentile_scale(volume, volume, name="sub-1")
    with pytest.raises(DataError, match=r"sub-1.*shape"):
        percentile_scale(volume, np.ones((2, 3, 3)), name="sub-1")


def test_curvature_flow_keeps_planes_and_smooths_noise():
    grid = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij"))
    plane = (2 * grid[0] - grid[1] + 0.5 * grid[2]).astype(np.float32)
    # level sets of a plane are flat; only the mirrored border bends them
    assert np.allclose(curvature_flow(plane)[4:-4, 4:-4, 4:-4], plane[4:-4, 4:-4, 4:-4], atol=1e-4)
    noise = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    smooth = curvature_flow(noise)
    assert smooth.std() < 0.8 * noise.std()
    assert np.allclose(curvature_flow(100 * noise), 100 * smooth, rtol=1e-3, atol=1e-2)
    assert (curvature_flow(np.full((5, 5, 5), 3.0)) == 3.0).all()
    # the curvature of a sphere is 2/r: its signed distance falls by 2/r per unit time
    radius = np.linalg.norm(grid - 7.5, axis=0)
    moved = curvature_flow(radius)
    shell = (radius > 4) & (radius < 6)
    expected = radius + 3 * 0.125 * 2 / np.maximum(radius, 1)
    assert np.abs(moved - expected)[shell].max() < 0.02


def test_curvature_flow_equals_the_itk_filter():
    """Values of SimpleITK 2.5 CurvatureFlow(image, 0.125, 3) for the same volume."""
    axes = np.meshgrid(*[np.arange(5.0)] * 3, indexing="ij")
    volume = (np.sin(axes[0]) * 7 + np.cos(2 * axes[1]) * 5 + axes[2] ** 2).astype(np.float32)
    result = curvature_flow(volume)
    assert result[2, 2, 2] == pytest.approx(7.7659436, abs=1e-4)
    assert result[0, 0, 0] == pytest.approx(5.6197801, abs=1e-4)
    assert result[4, 1, 3] == pytest.approx(5.0232784, abs=1e-4)


def test_resample_grid_keeps_the_field_of_view():
    ramp = np.broadcast_to(np.arange(12.0)[:, None, None], (12, 6, 6)).astype(np.float32)
    half = resample_grid(ramp, (6, 3, 3), order=3)
    assert half.shape == (6, 3, 3)
    assert np.allclose(half[1:-1, 1, 1], [2.5, 4.5, 6.5, 8.5], atol=0.02)
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[1, 1, 1] = 3
    assert resample_grid(label, (2, 2, 2), order=0).ravel().tolist() == [3] + [0] * 7
    assert resample_grid(label, (8, 8, 8), order=0).sum() == 3 * 8


@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0])
def test_pack_volume_reaches_its_shape_from_any_spacing(spacing):
    shape = [round(extent / spacing) for extent in (140, 176, 134)]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    mask = radius <= 1
    lesion = np.sqrt((axes[0] - 0.3) ** 2 + axes[1] ** 2 + axes[2] ** 2) < 0.15
    image = np.where(mask, 100 * (2 - radius) + 300 * lesion, 0).astype(np.float32)
    volume, small, sick = pack_volume(image, mask, lesion, Packing(spacing))
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


def test_pack_volume_at_one_millimetre_is_every_second_voxel_of_the_labels():
    generator = np.random.default_rng(1)
    mask = generator.random((192, 192, 100)) < 0.5
    image = generator.random(mask.shape).astype(np.float32)
    volume, small, sick = pack_volume(image, mask, None, Packing(1.0, smooth=False))
    assert (small == mask[1::2, 1::2, 1::2]).all()
    assert sick.sum() == 0
    assert volume.shape == (96, 96, 50)


def test_pack_volume_smooths_only_when_asked():
    generator = np.random.default_rng(2)
    image = generator.random((96, 96, 50)).astype(np.float32) + 1
    mask = np.ones(image.shape, dtype=bool)
    rough = pack_volume(image, mask, None, Packing(2.0, smooth=False))[0]
    smooth = pack_volume(image, mask, None, Packing(2.0, smooth=True))[0]
    assert np.abs(np.diff(smooth, axis=0)).mean() < np.abs(np.diff(rough, axis=0)).mean()
    with pytest.raises(DataError, match="lesion mask"):
        pack_volume(image, mask, np.ones((2, 2, 2)), Packing(2.0))


def test_patients_are_trained_on_the_middle_of_all_slices_without_a_lesion():
    """As the authors do: stacked first, cropped then, scaled by what is left."""
    generator = np.random.default_rng(3)
    mask = np.ones((8, 8, 20), dtype=bool)
    image = generator.random(mask.shape).astype(np.float32)
    lesion = np.zeros_like(mask)
    lesion[2:4, 2:4, :8] = True
    image[lesion] = 9

    def packed(image, lesion, stack="stack"):
        packing = Packing(1.0, (8, 8, 12), (8, 8, 12), smooth=False, stack=stack)
        return pack_tumour_free(image, mask, lesion, packing, "a")

    volume, brain = packed(image, lesion)
    alone = Packing(1.0, (8, 8, 6), (8, 8, 6), smooth=False)
    expected, *_ = pack_volume(image[..., 11:17], mask[..., 11:17], None, alone)
    assert (volume == expected).all() and brain.all() and volume.max() == 1
    # by the percentiles of the scan, healthy tissue is as dark as beside its bright lesion
    assert 0.05 < packed(image, lesion, "scan")[0].max() < 0.2
    for array in packed(image, mask):  # no slice is left
        assert array.shape == (8, 8, 6) and not array.any()
