"""Studies: stored reconstructions scored again under variants, with the workflow's numbers."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from uad.config import Protocol
from uad.core.errors import DataError
from uad.evaluate import evaluate_volume, postprocess, search_threshold
from uad.evaluate.rescore import Variant, rescore
from uad.evaluate.score import score_volume

torch.set_num_threads(1)

SHAPE = (20, 22, 10)
SUBJECTS = {"val_unhealthy": ["b", "a", "c"], "test": ["e", "d", "g", "f"]}
DEFAULT = Variant("default", "fusion")
VARIANTS = [
    DEFAULT,
    Variant("l1", "l1"),
    Variant("exact", "fusion", threshold_search="exact"),
    Variant("no components", "fusion", component_max_size=0),
    Variant("median first", "fusion", postprocessing_order="median_first"),
    Variant("no median", "fusion", median=1),
    Variant("alpha", "fusion", alpha=0.2, erosion=1, median=3),
    Variant("ms-ssim", "ms-ssim", erosion=0),
    Variant("gms", "gms", component_max_size=2),
    Variant("direct", "direct"),
]


def scan(subject):
    """A round brain with a bright lesion, as the store keeps it: (volume, mask, lesion)."""
    rng = np.random.default_rng(ord(subject))
    grid = np.indices(SHAPE)
    middle = np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    mask = (((grid - middle) / middle) ** 2).sum(0) < 1
    centre = middle + rng.uniform(-3, 3, (3, 1, 1, 1))
    lesion = mask & (((grid - centre) ** 2).sum(0) < rng.uniform(3, 4.5) ** 2)
    volume = mask * (0.4 + 0.05 * rng.standard_normal(SHAPE)) + 0.3 * lesion
    return volume.astype(np.float16), mask.astype(np.uint8), lesion.astype(np.uint8)


@functools.cache
def volumes(subject):
    """A scan as the network saw it, its brain and its lesion."""
    volume, mask, lesion = scan(subject)
    return volume, mask > 0, lesion > 0


@pytest.fixture(scope="module")
def reconstructions():
    """The scan without its lesion, and noise."""
    restored = {}
    for role, subjects in SUBJECTS.items():
        for subject in subjects:
            volume, mask, lesion = (array.astype(np.float32) for array in scan(subject))
            noise = np.random.default_rng(1000 + ord(subject)).standard_normal(SHAPE)
            image = np.abs(volume - 0.25 * lesion + 0.04 * mask * noise)
            restored[f"{role}/{subject}"] = image.astype(np.float16)
    return restored


def workflow(variant, reconstructions):
    """What score_volumes, search_threshold and evaluate_volumes do."""
    maps = {}
    for key, reconstruction in reconstructions.items():
        volume, mask, _ = volumes(key.split("/")[1])
        residual = score_volume(variant.score, volume, reconstruction, **variant.quality)
        order, erosion, median = variant.postprocessing_order, variant.erosion, variant.median
        maps[key] = postprocess(residual, mask, erosion=erosion, median=median, order=order)
    known = [key for key in maps if key.startswith("val_unhealthy/")]
    lesions = [volumes(key.split("/")[1])[2] for key in known]
    result = search_threshold([maps[k] for k in known], lesions, method=variant.threshold_search)
    threshold = json.loads(json.dumps(result.threshold))  # it goes through a file
    rows = {}
    for key, scores in maps.items():
        _, mask, lesion = volumes(key.split("/")[1])
        rows[key] = evaluate_volume(scores, lesion, mask, threshold, variant.component_max_size)
    return rows


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_numbers_are_exactly_those_of_the_three_rules(variant, reconstructions):
    expected = workflow(variant, reconstructions)
    found = rescore(reconstructions, volumes, [variant])
    assert len(found) == len(expected) == 7
    for row in found.itertuples():
        reference = expected[f"{row.role}/{row.subject}"]
        for field in ("dice", "auprc", "threshold"):
            assert getattr(row, field) == reference[field]


def test_rows_are_in_the_order_of_variants_roles_and_subjects(reconstructions):
    backwards = dict(reversed(list(reconstructions.items())))
    rows = rescore(backwards, volumes, VARIANTS[:2])
    columns = "variant role subject dice auprc threshold mean_normal mean_anomalous "
    assert list(rows) == (columns + "same_as_baseline").split()
    expected = [
        (variant.name, role, subject)
        for variant in VARIANTS[:2]
        for role in ("val_unhealthy", "test")
        for subject in sorted(SUBJECTS[role])
    ]
    assert [*rows[["variant", "role", "subject"]].itertuples(index=False, name=None)] == expected


def test_means_are_of_the_raw_score_by_region_within_the_brain(reconstructions):
    def changed(subject):
        volume, mask, lesion = volumes(subject)
        return volume, mask, {"d": lesion & False, "e": mask}.get(subject, lesion)

    found = rescore(reconstructions, changed, [VARIANTS[1]]).set_index("subject")
    for subject, row in found.iterrows():
        volume, mask, lesion = changed(subject)
        raw = np.abs(volume - reconstructions[f"{row.role}/{subject}"])
        for mean, region in ((row.mean_normal, mask & ~lesion), (row.mean_anomalous, lesion)):
            expected = raw[region].mean() if region.any() else np.nan
            assert mean == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found.loc["d", "auprc"])


@pytest.mark.parametrize(
    ("baseline", "change", "same"),
    [
        # what a score does not use
        (Variant("b", "l1"), {"ssim_window": "uniform"}, True),
        (Variant("b", "ssim"), {"alpha": 0.5}, True),
        (DEFAULT, {"alpha": 0.8}, False),
        # one step has no order; a window of one voxel is none
        (Variant("b", "l1", median=0), {"median": 1}, True),
        (Variant("b", "l1", erosion=0), {"postprocessing_order": "median_first"}, True),
        (Variant("b", "l1"), {"postprocessing_order": "median_first"}, False),
        (Variant("b", "l1"), {"component_max_size": 0}, False),
        (Variant("b", "l1"), {"threshold_search": "exact"}, False),
        (Variant("b", "l1"), {"score": "l2"}, False),
    ],
)
def test_variants_that_cannot_differ_are_known(baseline, change, same):
    assert dataclasses.replace(baseline, name="other", **change).same_as(baseline) == same


def test_the_threshold_is_from_the_validation_set_alone(reconstructions):
    changed = {k: v * 0.5 if k.startswith("test/") else v for k, v in reconstructions.items()}
    before, after = (
        rescore(stored, volumes, VARIANTS[:3]) for stored in (reconstructions, changed)
    )
    assert before["threshold"].equals(after["threshold"])
    known = before["role"] == "val_unhealthy"
    assert before[known].equals(after[known]) and (before["auprc"] != after["auprc"]).any()


def test_the_defaults_of_a_variant_are_the_reference_protocol():
    protocol = Protocol()
    names = [field.name for field in dataclasses.fields(Variant)][2:]
    assert Variant("default", "fusion", **{n: getattr(protocol, n) for n in names}) == DEFAULT
    assert DEFAULT.quality == protocol.quality


@pytest.mark.parametrize("role", list(SUBJECTS))
@pytest.mark.parametrize(
    ("bad", "message"), [(np.zeros((3, 3, 3)), "grid"), (np.full(SHAPE, np.inf), "infinite")]
)
def test_an_error_names_the_volume(role, bad, message, reconstructions):
    subject = SUBJECTS[role][0]
    stored = {**reconstructions, f"{role}/{subject}": bad}
    with pytest.raises(DataError, match=f"{subject}: .*{message}"):
        rescore(stored, volumes, [DEFAULT])


class TestScoringDirectly:
    def test_the_score_is_returned_as_a_copy(self):
        scores = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
        found = score_volume("direct", np.zeros((4, 5, 6)), scores, **DEFAULT.quality)
        assert found.dtype == np.float32 and not np.shares_memory(found, scores)
        np.testing.assert_array_equal(found, scores)

    @pytest.mark.parametrize(
        ("bad", "message"), [(np.nan, "NaN"), (np.inf, "infinite"), (-0.25, "-0.25.*negative")]
    )
    def test_values_that_no_threshold_can_be_searched_for(self, bad, message):
        scores = np.ones((2, 2, 2))
        scores[0, 0, 0] = bad
        with pytest.raises(DataError, match=message):
            score_volume("direct", scores, scores)

    @pytest.mark.parametrize("name", ["direct", "l1", "fusion"])
    def test_other_grids_are_refused(self, name):
        for shapes in (((2, 3, 4), (2, 3, 5)), ((3, 4), (3, 4))):
            with pytest.raises(DataError, match="grid"):
                score_volume(name, *map(np.zeros, shapes))
