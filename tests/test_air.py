"""Average intensity ratio, its two rules and the inversion (Eqs. 12 to 19)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uad import air, iqa
from uad.air import air_statistics, region_means, stored_decision
from uad.core.errors import DataError
from uad.core.files import write_json
from uad.preprocess.slices import Volumes

means = st.floats(0.01, 0.99)


class TestAverageIntensityRatio:
    @given(means, means)
    def test_at_least_one_symmetric_and_one_only_for_equal_means(self, a, n):
        ratio = air.average_intensity_ratio(a, n)
        assert isinstance(ratio, float)
        assert ratio >= 1
        assert ratio == air.average_intensity_ratio(n, a)
        assert (ratio == 1) == (a == n)

    @given(means, means)
    def test_equals_the_form_of_the_later_version(self, a, n):
        # (sum + |difference|) / (sum - |difference|)
        expected = (a + n + abs(a - n)) / (a + n - abs(a - n))
        assert air.average_intensity_ratio(a, n) == pytest.approx(expected)

    def test_arrays_and_tensors(self):
        a, n = [0.8, 0.2], [0.4, 0.4]
        np.testing.assert_allclose(air.average_intensity_ratio(np.array(a), np.array(n)), [2, 2])
        found = air.average_intensity_ratio(torch.tensor(a), torch.tensor(n))
        torch.testing.assert_close(found, torch.tensor([2.0, 2.0]))
        assert torch.equal(air.average_intensity_ratio(torch.tensor(a), 0.4), found)

    @pytest.mark.parametrize(("a", "n"), [(0.0, 0.5), (0.5, 0.0), (-0.1, 0.5), (math.nan, 0.5)])
    def test_means_that_are_not_positive_are_refused(self, a, n):
        for convert in (float, np.array, torch.tensor):
            with pytest.raises(ValueError, match="positive"):
                air.average_intensity_ratio(convert(a), convert(n))


def air_after(rule, a, n):
    return air.average_intensity_ratio(1 - a, 1 - n) if rule else air.average_intensity_ratio(a, n)


class TestTheoremOfThePaper:
    """Eqs. 14 to 19: under the priors the transform never lowers the AIR."""

    @given(st.floats(0.5, 0.999, exclude_min=True), st.floats(0.001, 0.999))
    def test_bright_modalities_gain(self, n, fraction):
        a = n + fraction * (1 - n)  # 0.5 < n < a < 1
        assert air.paper_rule(n)
        assert air_after(True, a, n) >= air.average_intensity_ratio(a, n) * (1 - 1e-12)

    @given(st.floats(0.001, 0.499), st.floats(0.001, 0.999))
    def test_dark_modalities_stay(self, n, fraction):
        a = n + fraction * (0.5 - n)  # n < a < 0.5
        assert not air.paper_rule(n)
        assert air_after(air.paper_rule(n), a, n) == air.average_intensity_ratio(a, n)

    def test_without_the_priors_the_rule_can_do_harm(self):
        # a lesion darker than the healthy brain, as T1 shows in real scans
        a, n = 0.3, 0.6
        assert air.paper_rule(n)
        assert air_after(True, a, n) < air.average_intensity_ratio(a, n)
        assert not air.maximising_rule(a, n)

    @given(means, means)
    def test_the_maximising_rule_never_lowers_the_ratio(self, a, n):
        best = air_after(air.maximising_rule(a, n), a, n)
        assert best >= air.average_intensity_ratio(a, n)
        assert best >= air_after(air.paper_rule(n), a, n)

    @given(st.floats(0.01, 0.98), st.floats(0.01, 0.98))
    def test_where_the_priors_hold_both_rules_agree(self, n, fraction):
        top = 1.0 if n > 0.5 else 0.5
        a = n + fraction * (top - n)
        if abs(a - n) > 1e-6 and abs(n - 0.5) > 1e-6:
            assert air.maximising_rule(a, n) == air.paper_rule(n)

    def test_one_half_itself_is_kept(self):
        assert not air.paper_rule(0.5)  # Eq. 13: strictly above
        assert not air.maximising_rule(0.5, 0.5)


class TestInversion:
    @given(arrays(np.float64, (4, 5), elements=st.floats(0, 1)), arrays(np.bool_, (4, 5)))
    def test_of_the_foreground_and_never_the_background_twice_is_the_identity(self, x, mask):
        once = air.invert_foreground(x, mask)
        assert (once[~mask] == x[~mask]).all()
        assert (once[mask] == 1 - x[mask]).all()
        np.testing.assert_allclose(air.invert_foreground(once, mask), x, atol=1e-15)


@pytest.mark.parametrize(
    ("modality", "a", "n", "words"),
    [
        ("T2", 0.45, 0.3, []),
        ("FLAIR", 0.9, 0.6, []),
        ("T1CE", 0.7, 0.55, []),
        ("T1", 0.54, 0.58, ["below the lesion mean"]),
        ("T2", 0.51, 0.36, ["lesion mean should be below 0.5"]),
        ("FLAIR", 0.92, 0.49, ["healthy mean should be above 0.5"]),
        ("T1CE", 0.3, 0.4, ["below the lesion mean", "healthy mean should be above 0.5"]),
        ("PD", 0.3, 0.4, ["below the lesion mean"]),
    ],
)
def test_each_violated_prior_is_one_sentence_with_the_numbers(modality, a, n, words):
    found = air.violated_priors(modality, a, n)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert sentence.startswith(modality)
        assert word in sentence


def test_the_ratio_is_part_of_the_quality_interface():
    assert iqa.average_intensity_ratio is air.average_intensity_ratio


def volumes(normal, anomalous, n=2, lesion=True):
    shape = (n, 4, 4, 4)
    lesions = np.zeros(shape, bool)
    lesions[:, 1, 1, 1] = lesion
    masks = np.ones(shape, bool)
    masks[:, 3] = False
    images = np.where(lesions, anomalous, normal) * masks
    return Volumes([f"s{i}" for i in range(n)], images.astype(np.float32), masks, lesions)


def test_a_method_inverts_as_the_record_says_by_the_rule_that_it_names(tmp_path):
    path = tmp_path / "air.json"
    write_json(path, {"invert": True, "paper_rule_invert": False, "maximising_invert": True})
    decided = {way: stored_decision(str(path), way) for way in (True, "paper", "maximising", False)}
    assert decided == {True: True, "paper": False, "maximising": True, False: False}
    assert stored_decision([], False) is False  # a rule without the input


def test_region_means_are_taken_inside_the_brain_per_volume_then_averaged():
    assert region_means(volumes(0.25, 0.75)) == (0.75, 0.25, 2)


@pytest.mark.parametrize(
    ("normal", "anomalous", "modality", "paper", "maximising"),
    [
        (0.3, 0.4, "T2", False, False),
        (0.6, 0.9, "FLAIR", True, True),
        (0.48, 0.9, "FLAIR", False, True),  # the rules part (FACTS, real scans)
        (0.6, 0.3, "T1", True, False),
    ],
)
def test_both_rules_are_reported_and_config_chooses(normal, anomalous, modality, paper, maximising):
    for rule, expected in (("paper", paper), ("maximising", maximising)):
        record = air_statistics({"b": volumes(normal, anomalous)}, modality, "b", rule)
        assert record["paper_rule_invert"] == paper
        assert record["maximising_invert"] == maximising
        assert record["invert"] == expected
        chosen = "air_if_inverted" if expected else "air_before"
        assert record["air_after"] == record[chosen]
        if rule == "maximising":
            assert record["air_after"] >= record["air_before"]


def test_a_warning_names_every_violated_prior_and_a_dissenting_test_set():
    sets = {"b": volumes(0.4, 0.3), "m": volumes(0.6, 0.7)}
    record = air_statistics(sets, "T2", "b", "paper")
    text = " ".join(record["warnings"])
    assert "b T2" in text and "m T2" in text and "decide otherwise than b" in text
    assert air_statistics({"b": volumes(0.3, 0.4)}, "T2", "b", "paper")["warnings"] == []


def test_a_validation_set_without_lesions_is_refused():
    with pytest.raises(DataError, match=r"b \(T2\): none of the 2 .*s0, s1.* has a lesion"):
        air_statistics({"b": volumes(0.3, 0.4, lesion=False)}, "T2", "b", "paper")
