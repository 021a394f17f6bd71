"""Claims of a table: paired tests of one method against another, by volume and by fold."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uad.core.columns import SIGNIFICANCE
from uad.core.errors import ConfigError, DataError
from uad.evaluate import bootstrap_interval, significance
from uad.evaluate.significance import holm, paired_permutation, smallest_p

FAMILY = ["experiment", "test_dataset", "metric", "unit"]


def cell(method, values, folds=1, experiment="cross_T2", test="mslub", auprc=None):
    """Metrics of a method: ``values`` is ``(folds, volumes)``, or one row for all folds."""
    values = np.broadcast_to(np.asarray(values, dtype=float), (folds, np.shape(values)[-1]))
    auprc = values if auprc is None else np.broadcast_to(auprc, values.shape)
    return pd.DataFrame(
        [
            {
                "experiment": experiment,
                "method": method,
                "fold": fold,
                "test_dataset": test,
                "subject": f"sub{volume:04d}",
                "dice": values[fold, volume],
                "auprc": auprc[fold, volume],
            }
            for fold in range(values.shape[0])
            for volume in range(values.shape[1])
        ]
    )


def study(seed=0, methods=("ours", "theirs", "other"), volumes=12, folds=5, gain=0.03):
    """Methods that get better in the order they are listed, from last to first."""
    rng = np.random.default_rng(seed)
    volume = rng.uniform(0.2, 0.6, volumes)
    cells = []
    for experiment, test in (("cross_T2", "mslub"), ("cross_T2", "brats21"), ("intra", "brats21")):
        for rank, method in enumerate(reversed(methods)):
            values = volume + gain * rank + 0.03 * rng.standard_normal((folds, volumes))
            more = volume + 0.03 * rng.standard_normal((folds, volumes))
            cells.append(cell(method, values, folds, experiment, test, more))
    return pd.concat(cells, ignore_index=True)


def results(metrics, pairs=(("ours", "theirs"),), seed=1, n_resamples=150):
    return significance.test_claims(metrics, list(pairs), seed=seed, n_resamples=n_resamples)


def one(found, **where):
    """The single row with these values."""
    rows = found[(found[list(where)] == list(where.values())).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


class TestControls:
    """Answers that are known beforehand: the oracle against chance, and a method's twin."""

    rng = np.random.default_rng(2)
    oracle = cell("oracle", np.ones(20), 5)
    chance = cell("chance", rng.uniform(0.0, 0.1, (5, 20)), 5)
    twin = oracle.assign(method="twin")

    def test_the_oracle_beats_chance_with_the_smallest_p_there_is(self):
        found = results(pd.concat([self.oracle, self.chance]), [("oracle", "chance")])
        assert (found["p_value"] == found["smallest_p"]).all()
        assert found["difference"].between(90, 100).all()
        assert (found.query("unit == 'volumes'")["ci_low"] > 90).all()
        assert (found["effect_size"] > 10).all()

    def test_a_method_does_not_differ_from_its_twin(self):
        found = results(pd.concat([self.oracle, self.twin]), [("oracle", "twin")])
        assert (found["p_value"] == 1).all()
        assert (found["difference"] == 0).all()
        volumes = found.query("unit == 'volumes'")
        assert (volumes[["ci_low", "ci_high"]] == 0).all(axis=None)
        assert found["effect_size"].isna().all()


def test_a_row_per_claim_test_set_metric_and_unit_where_both_methods_occur():
    metrics, pairs = study(), [("ours", "other"), ("ours", "theirs")]
    sets = [("cross_T2", "brats21"), ("cross_T2", "mslub"), ("intra", "brats21")]
    units = itertools.product(("dice", "auprc"), ("volumes", "folds"))
    expected = [(*p, *s, *u) for p, s, u in itertools.product(pairs, sets, list(units))]
    keys = results(metrics, pairs)[["row", "against", *FAMILY]]
    assert [*keys.itertuples(index=False, name=None)] == expected
    gone = (metrics["method"] == "theirs") & (metrics["experiment"] == "cross_T2")
    assert set(results(metrics[~gone])["experiment"]) == {"intra"}
    assert list(results(metrics, [("ours", "nobody")])) == SIGNIFICANCE


class TestUnits:
    def test_volumes_are_averaged_over_the_folds_they_were_tested_in(self):
        ours = [[0.5, 0.7, 0.9], [0.7, 0.7, np.nan]]
        theirs = [[0.5, 0.5, 0.6], [0.5, 0.3, 0.2]]
        metrics = pd.concat([cell("ours", ours, 2), cell("theirs", theirs, 2)])
        found = one(results(metrics), metric="dice", unit="volumes")
        # the third volume has a pair in the first fold only
        differences = np.array([(0.0 + 0.2) / 2, (0.2 + 0.4) / 2, 0.9 - 0.6])
        assert found["n"] == 3
        assert found["difference"] == pytest.approx(100 * differences.mean())
        expected = differences.mean() / differences.std(ddof=1)
        assert found["effect_size"] == pytest.approx(expected)
        folds = one(results(metrics), metric="dice", unit="folds")  # means over their volumes
        means = [0.7 - (0.5 + 0.5 + 0.6) / 3, 0.7 - (0.5 + 0.3 + 0.2) / 3]
        assert folds["n"] == 2
        assert folds["difference"] == pytest.approx(100 * np.mean(means))

    def test_volumes_without_a_value_are_no_pair(self):
        metrics = pd.concat(
            [
                cell("ours", [0.5, np.nan, 0.7, 0.8], auprc=[np.nan] * 4),
                cell("theirs", [0.4, 0.3, np.nan, 0.5]),
            ]
        )
        found = results(metrics)
        assert one(found, metric="dice", unit="volumes")["n"] == 2
        undefined = one(found, metric="auprc", unit="volumes")
        assert undefined["n"] == 0
        assert undefined[["difference", "p_value", "smallest_p", "p_holm"]].isna().all()

    def test_only_folds_that_both_methods_have(self):
        metrics = study(folds=5)
        partial = metrics[(metrics["method"] != "ours") | (metrics["fold"] < 3)]
        same = metrics[metrics["fold"] < 3]
        pd.testing.assert_frame_equal(results(partial), results(same), check_exact=True)
        assert set(results(partial).query("unit == 'folds'")["n"]) == {3}


class TestNumbers:
    def test_are_those_of_the_permutation_test_and_the_bootstrap(self):
        metrics = study(volumes=8)
        found = results(metrics, n_resamples=400)
        found = one(found, test_dataset="mslub", metric="auprc", unit="volumes")
        part = metrics[metrics["test_dataset"] == "mslub"]
        mean = part.groupby(["method", "subject"])["auprc"].mean()
        ours, theirs = mean["ours"].to_numpy(), mean["theirs"].to_numpy()
        # 8 pairs: all 256 exchanges are enumerated, so the seed does not matter
        assert found["p_value"] == pytest.approx(paired_permutation(ours - theirs))
        assert found["difference"] == pytest.approx(100 * (ours - theirs).mean())
        interval = bootstrap_interval(ours - theirs)
        for limit in ("low", "high"):
            expected = 100 * getattr(interval, limit)
            assert found[f"ci_{limit}"] == pytest.approx(expected, abs=0.3)

    @pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 30])
    @pytest.mark.parametrize("n_resamples", [1, 255, 256, 400])
    def test_the_smallest_p_is_that_of_the_test(self, n, n_resamples):
        found = paired_permutation(1 + np.arange(n) / 100, n_resamples)
        least = smallest_p(n, n_resamples)
        assert found >= least
        if 2**n <= n_resamples or n == 30:  # else random exchanges may have all signs equal
            assert found == least

    @pytest.mark.filterwarnings("error")
    def test_equal_differences_have_no_effect_size(self):
        metrics = pd.concat([cell("ours", [0.3, 0.4, 0.7]), cell("theirs", [0.2, 0.3, 0.6])])
        found = one(results(metrics), metric="dice", unit="volumes")
        assert np.isnan(found["effect_size"])
        assert found["difference"] == pytest.approx(10)
        # equal but for rounding: the interval is the difference
        assert found["ci_low"] == found["ci_high"] == found["difference"]


class TestSeeds:
    pairs = [("ours", "theirs"), ("ours", "other"), ("theirs", "other")]

    def test_a_claim_does_not_depend_on_the_others_nor_on_the_order(self):
        metrics, place = study(volumes=20), ["row", "against", *FAMILY]
        together = results(metrics, self.pairs[::-1]).set_index(place).drop(columns="p_holm")
        for pair in self.pairs:
            alone = results(metrics, [pair]).set_index(place).drop(columns="p_holm")
            pd.testing.assert_frame_equal(alone, together.loc[alone.index], check_exact=True)

    def test_the_claim_the_other_way_round_has_the_same_p(self):
        metrics = study(volumes=20)
        forth, back = results(metrics, [("ours", "other")]), results(metrics, [("other", "ours")])
        np.testing.assert_array_equal(forth["p_value"], back["p_value"])
        np.testing.assert_array_equal(forth["difference"], -back["difference"])
        np.testing.assert_allclose(forth["ci_low"], -back["ci_high"], atol=0.5)

    def test_the_seed_decides(self):
        metrics = study(volumes=20, gain=0.005)
        pd.testing.assert_frame_equal(results(metrics), results(metrics), check_exact=True)
        other = results(metrics, seed=2)
        by_volume = other["unit"] == "volumes"
        assert (results(metrics)["ci_low"] != other["ci_low"])[by_volume].all()


def naive_holm(p_values):
    """Reject the k-th smallest while all up to it are below alpha over those that remain."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    for k, index in enumerate(order):
        steps = [(len(order) - j) * p_values[order[j]] for j in range(k + 1)]
        adjusted[index] = min(1, max(steps))
    return adjusted


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(np.array)


class TestHolm:
    @given(p_values)
    def test_the_definition(self, p):
        np.testing.assert_allclose(holm(p), naive_holm(p))

    def test_tests_that_could_not_be_made_are_not_counted(self):
        np.testing.assert_array_equal(holm(np.array([np.nan, 0.02, 0.5])), [np.nan, 0.04, 0.5])
        assert holm(np.array([])).size == 0

    def test_the_family_is_the_claims_on_one_test_set_metric_and_unit(self):
        found = results(study(volumes=6), TestSeeds.pairs)
        assert found.groupby(FAMILY).size().eq(3).all()
        for _, family in found.groupby(FAMILY):
            np.testing.assert_allclose(family["p_holm"], naive_holm(family["p_value"].to_numpy()))
        alone = results(study(volumes=6))
        assert alone["p_holm"].equals(alone["p_value"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [([("ours", "ours")], "itself"), ([("ours", "theirs")] * 2, "twice")],
)
def test_claims_that_say_nothing_are_refused(pairs, message):
    with pytest.raises(ConfigError, match=message):
        results(study(), pairs)


class TestPermutationAndBootstrap:
    rng = np.random.default_rng(5)
    base = rng.random(40)
    better = base + 0.1 + 0.05 * rng.standard_normal(40)

    def test_a_clear_difference_is_significant_in_both_directions(self):
        forth, back = (paired_permutation(s * (self.better - self.base), 2000) for s in (1, -1))
        assert forth < 0.01
        assert back == pytest.approx(forth, abs=0.01)
        assert paired_permutation(np.zeros(40), 500) == 1
        assert paired_permutation(np.array([0.8])) == 1  # one pair proves nothing

    def test_chance_is_not_significant_more_often_than_it_should_be(self):
        rng = np.random.default_rng(6)
        p = [paired_permutation(rng.random(15) - rng.random(15), 300, s) for s in range(100)]
        assert np.mean(np.array(p) < 0.05) < 0.12

    def test_the_interval_is_about_that_of_the_normal_distribution(self):
        found = bootstrap_interval(self.base)
        half_width = 1.96 * self.base.std(ddof=1) / np.sqrt(40)
        assert found.low < found.mean < found.high
        assert found.high - found.low == pytest.approx(2 * half_width, rel=0.15)

    def test_degenerate_samples(self):
        assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25, 0.25)
        assert bootstrap_interval(np.array([1.0, np.nan, 3.0])).mean == 2
        single = bootstrap_interval(np.array([0.25]))
        assert single.mean == 0.25
        assert np.isnan([single.low, single.high]).all()
        with pytest.raises(DataError, match="at least one"):
            bootstrap_interval(np.array([np.nan]))
