"""From anomaly maps to numbers: post-processing, threshold, metrics, significance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import label as skimage_label
from skimage.measure import regionprops
from sklearn.metrics import average_precision_score

from uad.core.errors import DataError
from uad.evaluate import (
    average_precision,
    described_columns,
    dice,
    evaluate_volume,
    postprocess,
    remove_small_components,
    search_threshold,
    threshold_curve,
)
from uad.evaluate.postprocessing import median_filter

shapes = st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 6))
masks = shapes.flatmap(lambda shape: arrays(np.bool_, shape))
# few distinct scores, so that ties occur
coarse_scores = st.integers(0, 8).map(lambda value: value / 8)
scored = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.float32, n, elements=st.one_of(coarse_scores, st.floats(0, 1, width=32))),
        arrays(np.bool_, n),
    )
)
scored_with_lesion = scored.filter(lambda pair: pair[1].any())
# with many zeros, as post-processed maps have them, and also below zero
signed_scores = st.one_of(st.just(0.0), st.integers(-4, 8).map(lambda value: value / 8))
signed = st.integers(1, 60).flatmap(
    lambda n: st.tuples(arrays(np.float32, n, elements=signed_scores), arrays(np.bool_, n))
)
signed_with_lesion = signed.filter(lambda pair: pair[1].any())


def ball(shape=(20, 22, 12), radius=8):
    """A round brain mask and a map that is positive inside it."""
    grid = np.indices(shape)
    centre = np.array(shape).reshape(3, 1, 1, 1) / 2
    mask = ((grid - centre) ** 2).sum(0) < radius**2
    scores = np.random.default_rng(0).random(shape).astype(np.float32)
    return scores, mask


class Controls:
    """A volume with answers that are known beforehand: the oracle, chance, and no opinion."""

    shape = (40, 44, 20)
    from_middle = np.indices(shape) - np.reshape(shape, (3, 1, 1, 1)) / 2
    mask = ((2 * from_middle / np.reshape(shape, (3, 1, 1, 1))) ** 2).sum(0) < 1
    lesion = (from_middle**2).sum(0) <= 36  # more than 5 voxels from the rim of the brain
    oracle = lesion.astype(np.float32)
    prevalence = lesion.mean()
    dice_of_everything = 2 * prevalence / (1 + prevalence)


methods = pytest.mark.parametrize("method", ["halving", "exact"])


class TestControls:
    @staticmethod
    def evaluated(scores, method, component_max_size):
        threshold = search_threshold([scores], [Controls.lesion], method=method).threshold
        return evaluate_volume(
            scores, Controls.lesion, Controls.mask, threshold, component_max_size
        )

    @methods
    def test_oracle_after_post_processing(self, method):
        # The median takes voxels from the lesion's edge and adds none, for the ball is convex; it
        # keeps those whose whole window is lesion. The rest ranks with the background.
        lesion = Controls.lesion
        scores = postprocess(Controls.oracle, Controls.mask)
        found = self.evaluated(scores, method, 7)
        core = ndimage.binary_erosion(lesion, np.ones((5, 5, 5))).sum()
        assert not (scores > 0)[~lesion].any()
        assert 2 * core / (core + lesion.sum()) < found["dice"] < 1
        # a perfect method cannot have more than this on a lesion of 24 mm
        assert found["dice"] == pytest.approx(0.888, abs=0.001)
        kept = (scores > 0).sum() / lesion.sum()
        assert found["auprc"] == pytest.approx(kept + (1 - kept) * Controls.prevalence)

    @methods
    def test_chance_does_no_better_than_calling_everything_a_lesion(self, method):
        for seed in range(5):
            scores = np.random.default_rng(seed).random(Controls.shape, dtype=np.float32)
            found = self.evaluated(scores, method, 0)
            assert found["auprc"] == pytest.approx(Controls.prevalence, rel=0.2)
            assert found["dice"] == pytest.approx(Controls.dice_of_everything, rel=0.05)


def test_dice_by_hand():
    assert dice(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])) == 0.5
    assert dice(np.array([1, 1, 0]), np.array([1, 1, 0])) == 1
    assert dice(np.array([1, 0]), np.array([0, 1])) == dice(np.zeros(2), np.array([0, 1])) == 0
    assert np.isnan(dice(np.zeros((2, 2, 2)), np.zeros((2, 2, 2))))  # undefined
    with pytest.raises(DataError, match=r"\(2, 3\).*\(3, 2\)"):
        dice(np.zeros((2, 3)), np.zeros((3, 2)))


@given(st.one_of(scored_with_lesion, signed_with_lesion))
def test_average_precision_equals_scikit_learn(pair):
    scores, labels = pair
    expected = average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-9)


def test_average_precision_is_undefined_without_a_lesion_and_refuses_nan_and_other_grids():
    assert np.isnan(average_precision(np.ones(5), np.zeros(5)))
    with pytest.raises(DataError, match="NaN"):
        average_precision(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(DataError, match="shape"):
        average_precision(np.zeros(3), np.zeros(4))


def naive_exact(scores, labels):
    """Dice at every score of a lesion voxel, and the highest threshold with the best."""
    found = {score: dice(scores >= score, labels) for score in np.unique(scores[labels])}
    score, best = max(found.items(), key=lambda item: (item[1], item[0]))
    left_out = scores[scores < score]
    return left_out.max() if left_out.size else np.nextafter(score, np.float32(-np.inf)), best


def naive_halving(scores, labels, bottom, top, steps):
    """The greedy search, written as the recursion that defines it."""
    if steps == 0:
        return []
    low, high = bottom + (top - bottom) / 4, bottom + (top - bottom) * 3 / 4
    middle = (bottom + top) / 2
    dice_low, dice_high = dice(scores > low, labels), dice(scores > high, labels)
    if dice_low >= dice_high:
        return [(dice_low, low), *naive_halving(scores, labels, bottom, middle, steps - 1)]
    return [(dice_high, high), *naive_halving(scores, labels, middle, top, steps - 1)]


class TestThreshold:
    @given(st.one_of(scored_with_lesion, signed_with_lesion))
    def test_exact_compares_every_prediction(self, pair):
        found = search_threshold(*pair, method="exact")
        assert (found.threshold, found.dice) == naive_exact(*pair)
        assert found.evaluations == np.unique(pair[0][pair[1]]).size

    @given(st.one_of(scored_with_lesion, signed_with_lesion), st.integers(1, 12))
    def test_halving_is_the_greedy_search(self, pair, steps):
        scores, labels = pair
        top = float(scores.max()) or 1.0
        visited = naive_halving(scores, labels, 0.0, top, steps)
        best = max(value for value, _ in visited)
        found = search_threshold(scores, labels, steps=steps)
        assert found.dice == best
        assert found.threshold == [point for value, point in visited if value == best][-1]
        assert found.method == "halving"
        assert found.evaluations == 2 * steps

    def test_halving_can_miss_the_best(self):
        # two lesion voxels on top, healthy ones in the middle, most of the lesion below: the
        # first comparison leads into the upper half and never back
        scores = np.array([1.0] * 2 + [0.5] * 40 + [0.1] * 60 + [0.0] * 900)
        labels = np.array([1] * 2 + [0] * 40 + [1] * 60 + [0] * 900)
        assert search_threshold(scores, labels).dice == pytest.approx(2 * 2 / (2 + 62))
        best = search_threshold(scores, labels, method="exact")
        assert best.dice == pytest.approx(2 * 62 / (102 + 62))
        assert best.threshold == 0

    @given(st.lists(scored, min_size=1, max_size=4), st.sampled_from(["halving", "exact"]))
    def test_a_list_of_volumes_is_pooled(self, pairs, method):
        scores, labels = [p[0] for p in pairs], [p[1] for p in pairs]
        pooled = np.concatenate(scores), np.concatenate(labels)
        if pooled[1].any():
            together = search_threshold(*pooled, method=method)
            collection = dict(enumerate(scores)).values()
            assert search_threshold(collection, labels, method=method) == together

    @pytest.mark.parametrize(
        ("scores", "labels", "message"),
        [
            (np.ones(3), np.zeros(3), "no lesion voxel.*unhealthy validation set"),
            ([], [], "no lesion voxel"),
            (np.array([0.5, np.nan]), np.array([1, 0]), "diverged"),
            (np.array([0.5, np.inf]), np.array([1, 0]), "diverged"),
            (np.zeros((2, 2)), np.zeros((2, 3)), "shape"),
            ([np.zeros(2)] * 2, [np.zeros(2)], "2 anomaly maps, but 1 labels"),
        ],
    )
    def test_what_no_threshold_can_be_searched_for_is_refused(self, scores, labels, message):
        with pytest.raises(DataError, match=message):
            search_threshold(scores, labels)


def eroded(mask, iterations):
    """In each axial slice by the cross of four neighbours."""
    cross = ndimage.generate_binary_structure(2, 1)[..., None]
    return ndimage.binary_erosion(mask, cross, iterations)


class TestPostprocess:
    def test_the_authors_code_erodes_first_the_papers_text_last(self):
        scores, mask = ball()
        before, inside = scores.copy(), eroded(mask, 3)
        first = ndimage.median_filter(np.where(inside, scores, 0), 5)
        last = np.where(inside, ndimage.median_filter(scores, 5), 0)
        assert first.any() and (first != last).any()
        np.testing.assert_array_equal(postprocess(scores, mask), first)
        np.testing.assert_array_equal(postprocess(scores, mask, order="median_first"), last)
        np.testing.assert_array_equal(scores, before)

    @given(masks, st.integers(1, 3))
    def test_erosion_works_in_the_axial_plane_and_from_the_image_border(self, mask, erosion):
        found = postprocess(np.ones(mask.shape), mask, erosion=erosion, median=0)
        np.testing.assert_array_equal(found > 0, eroded(mask, erosion))

    @given(
        shapes.flatmap(
            lambda shape: arrays(
                np.float32, shape, elements=st.one_of(st.just(0), st.floats(-1, 1, width=32))
            )
        ),
        st.sampled_from([3, 5]),
    )
    def test_median_equals_scipy(self, volume, size):
        expected = ndimage.median_filter(volume, size)
        np.testing.assert_array_equal(median_filter(volume, size), expected)

    def test_both_steps_can_be_switched_off(self):
        scores, mask = ball()
        for median in (0, 1):
            found = postprocess(scores, mask, erosion=0, median=median)
            np.testing.assert_array_equal(found, scores)
            assert not np.shares_memory(found, scores)

    @pytest.mark.parametrize(
        ("scores", "mask", "message"),
        [
            (np.zeros((4, 4, 2)), np.zeros((4, 4, 3)), r"\(4, 4, 2\).*\(4, 4, 3\)"),
            (np.zeros((4, 4)), np.zeros((4, 4)), "3D"),
            (np.full((3, 3, 3), np.nan), np.ones((3, 3, 3)), "diverged"),
            (np.full((3, 3, 3), np.inf), np.ones((3, 3, 3)), "diverged"),
        ],
    )
    def test_maps_that_cannot_be_processed_are_refused(self, scores, mask, message):
        with pytest.raises(DataError, match=message):
            postprocess(scores, mask)


def skimage_filter(prediction, max_size):
    """The authors' filter: scikit-image's components and their filled area."""
    prediction = prediction.copy()
    labels = skimage_label(prediction, connectivity=prediction.ndim)
    for region in regionprops(labels):
        if region.area_filled <= max_size:
            prediction[labels == region.label] = False
    return prediction


class TestSmallComponents:
    @given(masks, st.integers(0, 40))
    def test_equals_scikit_image(self, prediction, max_size):
        expected = skimage_filter(prediction, max_size)
        np.testing.assert_array_equal(remove_small_components(prediction, max_size), expected)

    def test_seven_voxels_go_and_eight_stay(self):
        prediction = np.zeros((10, 10, 4), dtype=bool)
        prediction[0, :7, 0] = True
        prediction[5, :8, 0] = True
        found = remove_small_components(prediction)
        assert not found[0].any()
        assert found[5].sum() == 8
        assert remove_small_components(prediction, 0).sum() == prediction.sum() == 15

    @pytest.mark.parametrize(("max_size", "kept"), [(25, 26), (26, 26), (27, 0)])
    def test_a_hole_counts_as_filled(self, max_size, kept):
        shell = np.zeros((5, 5, 5), dtype=bool)
        shell[1:4, 1:4, 1:4] = True
        shell[2, 2, 2] = False  # 26 voxels around a hole of one
        assert remove_small_components(shell, max_size).sum() == kept
        assert skimage_filter(shell, max_size).sum() == kept


class TestEvaluateVolume:
    scores, mask = ball()
    lesion = mask & (np.random.default_rng(8).random(mask.shape) < 0.1)

    def test_fields_and_their_order(self):
        found = evaluate_volume(self.scores, self.lesion, self.mask, 0.9, 1)
        prediction = remove_small_components(self.scores > 0.9, 1)
        assert list(found.items())[:7] == [
            ("dice", dice(prediction, self.lesion)),
            ("auprc", average_precision(self.scores, self.lesion)),
            ("threshold", 0.9),
            ("lesion_voxels", self.lesion.sum()),
            ("predicted_voxels", prediction.sum()),
            ("brain_voxels", self.mask.sum()),
            ("prevalence", self.lesion.mean()),
        ]
        assert {type(value) for value in found.values()} == {int, float}
        cell = ["experiment", "method", "fold", "test_dataset", "subject"]
        assert list(described_columns()) == [*cell, *found]


def curve_of(scores, labels, **options):
    return threshold_curve(lambda: zip(scores, labels, strict=True), **options)


class TestThresholdCurve:
    @given(st.lists(scored, min_size=1, max_size=4), st.integers(2, 12))
    def test_exact_at_each_threshold(self, pairs, points):
        scores, labels = [p[0] for p in pairs], [p[1] for p in pairs]
        if not np.concatenate(labels).any():
            return
        curve = curve_of(scores, labels, points=points)
        assert len(curve) <= 2 * points
        for row in curve.itertuples():
            above = [score > row.threshold for score in scores]
            hits = sum(int((a & label).sum()) for a, label in zip(above, labels, strict=True))
            predicted = sum(int(a.sum()) for a in above)
            assert (row.true_positives, row.false_positives) == (hits, predicted - hits)
            assert row.recall == hits / row.lesion_voxels
            np.testing.assert_equal(row.precision, hits / predicted if predicted else np.nan)
            dices = [dice(a, label) for a, label in zip(above, labels, strict=True)]
            defined = [value for value in dices if not np.isnan(value)]
            expected = np.mean(defined) if defined else np.nan
            np.testing.assert_allclose(row.mean_dice, expected, atol=1e-12)

    @given(scored_with_lesion)
    def test_from_everything_to_nothing(self, pair):
        curve = curve_of(*([part] for part in pair))
        assert (curve["threshold"].diff().dropna() > 0).all()
        assert (curve["recall"].diff().dropna() <= 0).all()
        assert curve["recall"].iloc[0] == 1
        assert curve["true_positives"].iloc[-1] == curve["false_positives"].iloc[-1] == 0
        assert {0.0, float(pair[0].max())} <= set(curve["threshold"])

    @pytest.mark.parametrize(
        ("scores", "labels", "message"),
        [
            ([np.ones(3)], [np.zeros(3)], "no lesion voxel"),
            ([], [], "no lesion voxel"),
            ([np.ones(3)], [np.ones(4)], "shape"),
            ([np.array([0.1, np.nan])], [np.ones(2)], "NaN"),
            ([np.array([0.1, np.inf])], [np.array([1, 0])], "infinite"),
        ],
    )
    def test_wrong_volumes(self, scores, labels, message):
        with pytest.raises(DataError, match=message):
            curve_of(scores, labels)
