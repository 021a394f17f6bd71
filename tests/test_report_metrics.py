"""All metrics with intervals, by strata, and ranks: right numbers, honest words, equal bytes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from test_report_tables import SPEC, make_metrics
from uad import evaluate
from uad.core.seeds import derive_seed
from uad.report.curves import figure_lesions
from uad.report.metrics_table import (
    METRICS_COLUMNS,
    WHOLE,
    described,
    summarise_metrics,
    with_facts,
    write_metrics,
)
from uad.report.ranks import figure_ranks, rank_methods, write_ranks

VOXELS = [0, 500, 5_000, 50_000, 9_999, 10_000, 999, 1_000]


def metrics_of(volumes=8, folds=2, sites="aab", ages=()):
    """Metrics of the table's methods on volumes of known lesion size, site and age."""
    metrics = make_metrics(folds=folds, volumes=volumes)
    rng = np.random.default_rng(0)
    metrics["dice"] = (metrics["dice"] + rng.normal(0, 0.05, len(metrics))).clip(0, 1)
    number = metrics["subject"].str[-3:].astype(int)
    metrics["lesion_voxels"] = number.map(lambda i: VOXELS[i % len(VOXELS)])
    names = [f"case-{i:03d}" for i in range(volumes)]
    facts = {"subject": names, "site": [sites[i % len(sites)] for i in range(volumes)]}
    people = pd.DataFrame(
        facts | ({"age": [ages[i % len(ages)] for i in range(volumes)]} if ages else {})
    )
    return with_facts(metrics, {"brats21": people, "mslub": people[["subject"]]}, 0.001)


def summary_of(metrics, **options):
    return summarise_metrics(metrics, SPEC, ["dice", "auprc", "lesion_voxels"], seed=0, **options)


def one(summary, stratum=WHOLE, method="pddpm", metric="dice", test="brats21", strata=None):
    names = ["row", "test_dataset", "stratum", "metric"]
    found = summary[(summary[names] == [method, test, stratum, metric]).all(axis=1)]
    found = found[found["strata"] == strata] if strata else found
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture
def quick(monkeypatch):
    """Intervals from the smallest to the largest value, where it does not matter what they are."""

    def interval(values, seed):
        return SimpleNamespace(low=values.min(), high=values.max())

    monkeypatch.setattr("uad.report.metrics_table.bootstrap_interval", interval)


def test_mean_std_and_interval_are_those_of_the_volumes():
    metrics = metrics_of()
    metrics.loc[metrics["subject"] == "case-001", "dice"] = np.nan
    spec = replace(SPEC, methods=["pddpm"])
    summary = summarise_metrics(metrics, spec, ["dice"], seed=0)
    assert list(summary) == METRICS_COLUMNS
    record = one(summary)
    cell = metrics[(metrics["method"] == "pddpm") & (metrics["test_dataset"] == "brats21")]
    folds = cell.groupby("fold")["dice"].mean()
    assert (record["mean"], record["std"]) == pytest.approx((folds.mean(), folds.std()))
    assert (record["n_folds"], record["n_volumes"]) == (2, 7)
    values = cell.groupby("subject")["dice"].mean().dropna()
    key = ("pddpm", "cross_T2", "brats21", WHOLE, WHOLE, "dice")
    own = evaluate.bootstrap_interval(values.to_numpy(), derive_seed(0, "metrics", *key))
    assert (record["ci_low"], record["ci_high"]) == (own.low, own.high)
    method = {"confidence_level": 0.95, "n_resamples": 9999, "method": "BCa"}
    independent = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(5), **method)
    limits = independent.confidence_interval
    assert (record["ci_low"], record["ci_high"]) == pytest.approx(limits, abs=2e-3)


def test_volumes_are_divided_by_lesion_volume_site_and_age(quick):
    summary = summary_of(metrics_of(ages=[20, 30, 40, 50, 60, 70, None, None]))
    counts = summary[(summary["row"] == "pddpm") & (summary["metric"] == "dice")]
    counts = counts[counts["test_dataset"] == "brats21"].set_index(["strata", "stratum"])[
        "n_volumes"
    ]
    ml = "lesion volume [ml]"
    assert counts[ml].to_dict() == {"below 1": 3, "1 to 10": 3, "10 and above": 2}
    assert counts[f"{ml}, thirds"].tolist() == [3, 2, 3]
    assert counts["site"].to_dict() == {"a": 6, "b": 2}
    assert counts["age [years], thirds"].tolist() == [2, 2, 2]  # two of unknown age
    assert set(summary.loc[summary["strata"] != WHOLE, "metric"]) == {"dice", "auprc"}
    elsewhere = set(summary.loc[summary["test_dataset"] == "mslub", "strata"])
    assert elsewhere == {WHOLE, ml, f"{ml}, thirds"}  # nothing is known of sites and ages
    assert "site" not in set(summary_of(metrics_of(sites="a"))["strata"])


def test_equal_metrics_give_equal_bytes_and_small_test_sets_are_noted(quick, tmp_path):
    columns = {"dice": {"direction": "higher", "about": "overlap", "nan": "no lesion"}}
    columns |= {"auprc": {"unit": "ml", "direction": "nearer to 0"}}
    found = []
    for name, metrics in (("a", metrics_of()), ("b", metrics_of().sample(frac=1, random_state=0))):
        paths = [tmp_path / name / f"metrics.{suffix}" for suffix in ("csv", "md", "html", "tex")]
        write_metrics(summary_of(metrics), SPEC, columns, paths, phantom=True, seed=7)
        figure_lesions(tmp_path / name / "lesions.png", metrics, SPEC, phantom=True)
        found.append([path.read_bytes() for path in [*paths, tmp_path / name / "lesions.png"]])
    assert found[0] == found[1]
    csv, md, html, tex = (content.decode() for content in found[0][:4])
    assert csv.startswith(",".join(METRICS_COLUMNS)) and ",," not in csv
    assert "| Method | dice ↑ | auprc \\[ml\\] → 0 | lesion\\_voxels |" in md
    assert "- dice: overlap; not defined where: no lesion." in md
    assert "| **BraTS21 (T2) (8 volumes)** |" in md
    assert "| **BraTS21 (T2), lesion volume \\[ml\\]: below 1 (3 volumes)** |" in md
    assert "MSLUB (T2): 8 volumes, fewer than 50." in md
    assert "BCa bootstrap" in html and "(phantom data)" in tex and "cannot rank methods" in md
    assert "lesion volume" not in tex  # a page has no room for the strata
    assert list(described(metrics_of())) == ["dice", "auprc"]  # others are not judged, or not there


# --- ranks


def test_ranks_are_over_volumes_and_the_critical_difference_is_demsars():
    ranks = rank_methods(metrics_of(volumes=20), SPEC)
    best = ranks[(ranks["test_dataset"] == "brats21") & (ranks["metric"] == "dice")]
    assert best["row"].iloc[0] == "oracle" and best["mean_rank"].iloc[0] == 1
    assert best["mean_rank"].sum() == pytest.approx(1 + 2 + 3 + 4)
    # q of four methods at 5 % is 2.569 (Demšar 2006, table 5)
    assert best["critical_difference"].iloc[0] == pytest.approx(2.569 * np.sqrt(20 / 120), abs=1e-3)
    metrics = metrics_of(volumes=20)
    wide = metrics[metrics["test_dataset"] == "brats21"].pivot_table("dice", "subject", "method")
    expected = stats.friedmanchisquare(*(wide[method] for method in wide))
    assert best["friedman_chi2"].iloc[0] == pytest.approx(expected.statistic)
    assert best["friedman_p"].iloc[0] == pytest.approx(expected.pvalue)
    other = dict(zip(best["row"], best["different_from"], strict=True))
    assert "oracle" in other["thresh"] and "thresh" in other["oracle"]


def test_volumes_without_a_value_and_tables_of_two_methods_are_not_ranked():
    metrics = metrics_of(volumes=20)
    gone = (metrics["subject"] == "case-003") & (metrics["method"] == "pddpm")
    metrics.loc[gone, "dice"] = np.nan
    ranks = rank_methods(metrics, SPEC)
    assert set(ranks.loc[ranks["metric"] == "dice", "n_volumes"]) == {19}
    assert rank_methods(metrics, replace(SPEC, methods=["thresh", "pddpm"])).empty
    same = metrics.assign(dice=0.5, auprc=0.5)
    assert rank_methods(same, SPEC)["friedman_p"].isna().all()
    assert set(rank_methods(same, SPEC)["mean_rank"]) == {2.5}


def test_ranks_are_written_and_drawn_with_equal_bytes(tmp_path):
    metrics = metrics_of(volumes=20)
    for name, frame in (("a", metrics), ("b", metrics.sample(frac=1, random_state=0))):
        ranks = rank_methods(frame, SPEC)
        paths = [tmp_path / f"{name}.{suffix}" for suffix in ("csv", "md", "html")]
        write_ranks(ranks, SPEC, paths, phantom=True)
        figure_ranks(tmp_path / f"{name}.png", ranks, SPEC, phantom=True)
    for suffix in ("csv", "md", "html", "png"):
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert first == second
    text = (tmp_path / "a.md").read_text()
    assert "| **BraTS21 (T2), DICE (n = 20, Friedman p = " in text
    assert "| oracle | 1.00 | " in text and "cannot rank methods" in text
