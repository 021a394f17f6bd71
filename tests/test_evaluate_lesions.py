"""All metrics of a volume against scikit-learn, MONAI, scikit-image and definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from skimage.measure import label as components
from sklearn import metrics as sk

from uad.evaluate import described_columns, dice, evaluate_volume
from uad.evaluate.lesion_wise import OVERLAP, TOLERANCE_MM, lesion_metrics, surface_metrics

VOXEL = (1.0, 2.0, 3.5)
NEAR = {"rel": 1e-6, "abs": 1e-6, "nan_ok": True}
NEAR_MONAI = NEAR | {"rel": 1e-5}  # which takes its percentile in float32

two_masks = st.tuples(*[st.integers(1, 7)] * 3).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


def monai(prediction, lesion, voxel=VOXEL):
    pair = [torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (prediction, lesion)]
    options = {"include_background": True, "spacing": voxel}
    return {
        "hausdorff95_mm": float(compute_hausdorff_distance(*pair, percentile=95, **options)),
        "surface_dice": float(compute_surface_dice(*pair, [TOLERANCE_MM], **options)),
    }


def definitions(prediction, lesion, voxel_ml):
    """Lesion by lesion, one after the other."""
    parts = [
        [labels == n for n in range(1, labels.max() + 1)]
        for labels in (components(mask, connectivity=3) for mask in (lesion, prediction))
    ]
    found = [(part & prediction).sum() >= OVERLAP * part.sum() for part in parts[0]]
    true = [(part & lesion).sum() >= OVERLAP * part.sum() for part in parts[1]]
    dices = []
    for part in parts[0]:
        touching = sum([other for other in parts[1] if (other & part).any()], np.zeros_like(part))
        dices.append(2 * (touching & part).sum() / (touching.sum() + part.sum()))
    mean = lambda values: np.mean(values) if len(values) else np.nan  # noqa: E731
    recall, precision = mean(found), mean(true)
    total = np.nan_to_num(recall) + np.nan_to_num(precision)
    sizes = [part.sum() * voxel_ml for part in parts[0]]
    return {
        "lesions": len(found),
        "predicted_lesions": len(true),
        "lesion_sensitivity": recall,
        "lesion_precision": precision,
        "lesion_f1": (np.nan_to_num(2 * recall * precision / total) if total else 0.0)
        if found or true
        else np.nan,
        "lesion_dice": mean(dices),
        "largest_lesion_ml": max(sizes, default=np.nan),
        "median_lesion_ml": np.median(sizes) if sizes else np.nan,
    }


class TestSurfaces:
    @given(two_masks)
    def test_equal_monai(self, pair):
        found = surface_metrics(*pair, VOXEL)
        if all(mask.any() for mask in pair):
            assert found == pytest.approx(monai(*pair), **NEAR_MONAI)

    def test_by_hand_with_anisotropic_voxels(self):
        first, second = np.zeros((2, 9, 9, 9), bool)
        first[4, 4, 4], second[4, 4, 6] = True, True
        assert surface_metrics(first, second, VOXEL) == {"hausdorff95_mm": 7.0, "surface_dice": 0}
        assert surface_metrics(first, second, (9, 9, 1)) == {"hausdorff95_mm": 2, "surface_dice": 1}

    def test_without_a_mask(self):
        nothing, something = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
        both = surface_metrics(nothing, nothing, VOXEL)
        assert np.isnan(list(both.values())).all()
        for pair in ((nothing, something), (something, nothing)):
            found = surface_metrics(*pair, VOXEL)
            assert np.isnan(found["hausdorff95_mm"])
            assert found["surface_dice"] == 0


class TestLesions:
    @given(two_masks)
    def test_equal_the_definitions(self, pair):
        assert lesion_metrics(*pair, 0.008) == pytest.approx(definitions(*pair, 0.008), **NEAR)

    def test_touching_by_a_corner_is_one_lesion_and_a_tenth_is_enough(self):
        lesion = np.zeros((12, 12, 6), bool)
        lesion[0, :10, 0] = True  # 10 voxels
        lesion[1, 10, 1] = True  # touches the last by an edge: 11 voxels
        lesion[5:8, 5:8, 3] = True  # 9 voxels
        lesion[11, 11, 5] = True  # one voxel
        prediction = np.zeros_like(lesion)
        prediction[0, 0, 0] = True  # 1 of 11 is less than a tenth
        prediction[5, 5, 3] = True  # 1 of 9 is more
        prediction[11, 0, 0] = True  # nothing there
        found = lesion_metrics(prediction, lesion, 0.001)
        assert (found["lesions"], found["predicted_lesions"]) == (3, 3)
        assert found["lesion_sensitivity"] == pytest.approx(1 / 3)
        assert found["lesion_precision"] == pytest.approx(2 / 3)
        assert found["lesion_f1"] == pytest.approx(4 / 9)
        assert found["lesion_dice"] == pytest.approx((2 / 12 + 2 / 10 + 0) / 3)
        sizes = found["largest_lesion_ml"], found["median_lesion_ml"]
        assert sizes == pytest.approx((0.011, 0.009))

    def test_one_prediction_over_two_lesions_counts_for_both(self):
        lesion = np.zeros((9, 3, 3), bool)
        lesion[0], lesion[8] = True, True
        found = lesion_metrics(np.ones_like(lesion), lesion, 1)
        assert (found["lesion_sensitivity"], found["lesion_precision"]) == (1, 1)
        assert found["lesion_dice"] == pytest.approx(2 * 9 / (9 + 81))


class TestWholeVolume:
    @given(two_masks, st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 0.9]))
    def test_equals_scikit_learn(self, pair, seed, threshold):
        lesion, brain = pair
        scores = np.random.default_rng(seed).integers(0, 5, lesion.shape) / 4
        found = evaluate_volume(scores, lesion, brain, threshold, 0)
        for place, inside in (("", np.ones_like(brain)), ("_brain", brain)):
            truth, score = lesion[inside], scores[inside]
            if truth.any():
                assert found[f"auprc{place}"] == pytest.approx(
                    sk.average_precision_score(truth, score)
                )
            if truth.any() and not truth.all():
                assert found[f"auroc{place}"] == pytest.approx(sk.roc_auc_score(truth, score))
        truth, predicted = lesion.ravel(), (scores > threshold).ravel()
        options = {"labels": [False, True], "zero_division": np.nan, "average": None}
        precision, recall, *_ = sk.precision_recall_fscore_support(truth, predicted, **options)
        expected = {"precision": precision[1], "recall": recall[1], "specificity": recall[0]}
        assert {key: found[key] for key in expected} == pytest.approx(expected, **NEAR)
        if truth.any():
            steps = [dice(scores >= t, lesion) for t in np.unique(scores)]
            assert found["best_dice"] == pytest.approx(max(steps))
        wrong = (predicted & ~truth).sum() * 0.008
        assert found["false_positive_ml"] == pytest.approx(wrong)
        assert found["volume_difference_ml"] == pytest.approx(
            (predicted.sum() - truth.sum()) * 0.008
        )

    #: Lesion and prediction, present or not -> what is NaN; nothing else is.
    OF_LESION = "auprc best_dice recall auroc auprc_over_chance auprc_brain auroc_brain "
    OF_LESION += "lesion_sensitivity lesion_dice largest_lesion_ml median_lesion_ml hausdorff95_mm"
    OF_PREDICTION = "precision hausdorff95_mm lesion_precision"

    @pytest.mark.parametrize(
        ("lesion", "predicted", "undefined"),
        [
            (True, True, ""),
            (False, True, OF_LESION),
            (True, False, OF_PREDICTION),
            (False, False, f"{OF_LESION} {OF_PREDICTION} dice surface_dice lesion_f1"),
        ],
    )
    def test_what_is_not_defined_is_nan_and_said_so(self, lesion, predicted, undefined):
        brain, truth = np.ones((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
        truth[2:4, 2:4, 2:4] = lesion
        scores = np.zeros(truth.shape)
        scores[2:4, 2:4, 1:4] = 1
        found = evaluate_volume(scores, truth, brain, 0.5 if predicted else 1, 0)
        assert {key for key, value in found.items() if np.isnan(value)} == set(undefined.split())
        said = described_columns()
        assert all("nan" in said[name] for name in undefined.split())
        ranges = {name: facts["range"] for name, facts in said.items() if "range" in facts}
        for name, (low, high) in ranges.items():
            assert np.isnan(found[name]) or low <= found[name] <= (high or np.inf)
