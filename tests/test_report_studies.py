"""Studies: right numbers, honest words, equal bytes."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from uad import evaluate
from uad.core.errors import DataError
from uad.core.files import read_tsv, write_tsv
from uad.report.curves import figure_sweep
from uad.report.study_table import (
    CHOSEN,
    STUDY_COLUMNS,
    summarise_study,
    trained_points,
    write_study,
)
from uad.report.table_spec import StudySpec

SPEC = StudySpec(
    name="alpha",
    title="Weight of SSIM",
    methods=["b", "a"],
    places={("intra", "x"): "X (FLAIR)", ("cross", "y"): "y (cross)"},
    labels={"b": "B_method", "a": "A"},
    baseline="as configured",
    variants=["as configured", "0", "0.5", "1"],
    sweep="alpha",
)
SELECTS = replace(SPEC, select_on="dice")
#: Dice of each variant on the test set; AUPRC is 0.1 above it.
EFFECT = {"as configured": 0.50, "0": 0.40, "0.5": 0.52, "1": 0.45}
#: By fold, the Dice of the variants on a validation set that prefers others.
VALIDATION = {0: EFFECT | {"0": 0.7}, 1: EFFECT | {"1": 0.7}, 2: EFFECT | {"0": 0.7}}
SMALL = {"methods": ("a",), "places": (("intra", "x"),)}


def make_volumes(
    folds=3,
    volumes=12,
    methods=("a", "b"),
    places=(("cross", "y"), ("intra", "x")),
    validation=None,
    shared=True,
):
    """Volumes of a study whose variants differ by :data:`EFFECT` on average.

    With ``shared`` all folds test the same volumes.
    """
    rows = []
    cells = itertools.product(places, methods, range(folds), EFFECT.items(), range(volumes))
    for (experiment, dataset), method, fold, (variant, value), i in cells:
        known = (validation or {}).get(fold, EFFECT)[variant]
        # sums to zero over volumes, and differs between variants
        noise = 0.004 * (i - (volumes - 1) / 2) * (1 + len(variant) / 7)
        name = f"s{i:02d}" if shared else f"s{fold}-{i:02d}"
        for role, level in (("val_unhealthy", known), ("test", value)):
            score = level + 0.01 * (fold - 1) + noise
            place = [experiment, method, fold, dataset, variant, role]
            rows.append([*place, name, score, score + 0.1])
    names = "experiment method fold test_dataset variant role subject dice auprc".split()
    frame = pd.DataFrame(rows, columns=names)
    return frame.assign(same_as_baseline=frame["variant"] == SPEC.baseline)


def one(summary, variant, metric="dice", method="a", place="x"):
    names = ["variant", "metric", "method", "test_dataset"]
    found = summary[(summary[names] == [variant, metric, method, place]).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def chosen():
    return summarise_study(make_volumes(validation=VALIDATION), SELECTS)


# --- numbers


def test_mean_std_and_difference_to_the_baseline():
    summary = summarise_study(make_volumes(), SPEC)
    assert list(summary.columns) == STUDY_COLUMNS and len(summary) == 2 * 2 * 4 * 2
    record = one(summary, "0.5")
    assert (record["mean"], record["std"]) == pytest.approx((52, 1))
    assert (record["n_folds"], record["n_volumes"]) == (3, 12)
    assert record["difference"] == pytest.approx(2)
    assert record["ci_low"] < 2 < record["ci_high"]
    assert one(summary, "0.5", "auprc")["mean"] == pytest.approx(62)
    base = one(summary, "as configured")
    assert base["difference"] == 0 and base[["ci_low", "ci_high"]].isna().all()
    assert set(summary["chosen"]) == {"none"} and set(summary["n_chosen"]) == {0}


def test_folds_weigh_equally_and_differences_are_paired_by_fold():
    rows = make_volumes(folds=2, volumes=4, shared=False, **SMALL)
    rows = rows[(rows["fold"] == 0) | (rows["subject"] == "s1-00")]
    rows.loc[rows["fold"] == 1, "dice"] = rows["variant"].map({"0.5": 0.9}).fillna(0.5)
    record = one(summarise_study(rows, SPEC), "0.5")
    # fold 0: +0.02 over four volumes; fold 1: +0.4 with one
    assert record["difference"] == pytest.approx((2 + 40) / 2)
    assert record["n_volumes"] == 5


def test_the_interval_is_over_volumes_however_many_folds_test_them():
    rows = make_volumes(folds=1, **SMALL)
    copies = pd.concat([rows.assign(fold=fold) for fold in range(5)])
    test = rows[rows["role"] == "test"].pivot(index="subject", columns="variant", values="dice")
    pairs = 100 * (test["0.5"] - test["as configured"])
    expected = evaluate.bootstrap_interval(pairs.to_numpy(), seed=3)
    for volumes in (rows, copies):
        record = one(summarise_study(volumes, SPEC, seed=3), "0.5")
        limits = (record["ci_low"], record["ci_high"])
        assert limits == pytest.approx((expected.low, expected.high))


def test_each_fold_takes_the_variant_that_its_validation_set_prefers_whatever_the_test_set_says():
    rows = make_volumes(validation=VALIDATION)
    summary = summarise_study(rows, SELECTS)
    record = one(summary, CHOSEN)
    assert record["chosen"] == "0 (2x), 1 (1x)"
    assert [one(summary, v)["n_chosen"] for v in SPEC.variants] == [0, 2, 0, 1]
    assert record["mean"] == pytest.approx((39 + 45 + 41) / 3)
    assert record["difference"] == pytest.approx(-(10 + 5 + 10) / 3)
    assert record["validation_mean"] == pytest.approx(70)
    assert one(summary, "0")["validation_mean"] == pytest.approx((70 + 40 + 70) / 3)
    assert one(summary, CHOSEN, "auprc")["chosen"] == record["chosen"]  # Dice decides for both
    rows.loc[(rows["role"] == "test") & (rows["variant"] == "0.5"), ["dice", "auprc"]] = 1.0
    after = one(summarise_study(rows, SELECTS), CHOSEN)
    for column in ("chosen", "mean", "validation_mean"):
        assert after[column] == record[column]


def test_the_first_of_equal_variants_is_chosen_whatever_rounding_says():
    same = dict.fromkeys(EFFECT, 0.5)
    rows = make_volumes(folds=2, validation={0: same, 1: same})
    rows.loc[rows["role"] == "val_unhealthy", "dice"] = 0.5 + 1e-15 * (rows["variant"] == "1")
    assert one(summarise_study(rows, SELECTS), CHOSEN)["chosen"] == "as configured (2x)"


def test_the_order_is_that_of_the_spec_whatever_that_of_the_rows(chosen):
    assert list(dict.fromkeys(chosen["method"])) == ["b", "a"]
    assert list(dict.fromkeys(chosen["test_dataset"])) == ["x", "y"]
    shuffled = make_volumes(validation=VALIDATION).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(chosen, summarise_study(shuffled, SELECTS))


def test_undefined_metrics_and_missing_validation_volumes_are_refused():
    rows = make_volumes(**SMALL)
    with pytest.raises(DataError, match="fold-2: dice is not defined"):
        summarise_study(rows.assign(dice=rows["dice"].where(rows["fold"] != 2)), SPEC)
    rows = rows[(rows["role"] == "test") | (rows["fold"] != 1)]
    with pytest.raises(DataError, match="fold-1 has no validation volumes"):
        summarise_study(rows, SELECTS)
    assert len(summarise_study(rows, SPEC))  # they may be absent where nothing is chosen


# --- formats


def texts_of(folder, summary, spec=SPEC, phantom=False):
    paths = [folder / f"study.{suffix}" for suffix in ("csv", "md", "html", "tex")]
    write_study(summary, spec, paths, phantom=phantom, seed=3141)
    return {path.suffix[1:]: path.read_text() for path in paths}


def test_variants_stand_below_each_other_in_a_block_per_method_and_test_set(chosen, tmp_path):
    texts = texts_of(tmp_path, chosen, SELECTS)
    table = [line for line in texts["md"].splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 * (1 + 4 + 1)
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "DICE \\[%\\] difference \\[95 % interval\\]" in table[0]
    assert table[2].startswith("| **B\\_method, X (FLAIR)** |  |")
    assert table[3].startswith("| as configured | 50.00±1.00 | – | ")
    assert table[4].startswith("| 0 | 40.00±1.00 | **−10.00 \\[−11.")
    assert "| **chosen on validation: 0 (2x), 1 (1x)** | 41.67±" in texts["md"]
    assert texts["html"].count('<tr class="heading"><th colspan="7"') == 4
    sizes = "X (FLAIR): 12 test volumes, 3 folds; y (cross): 12 test volumes, 3 folds."
    assert sizes in texts["md"]


def test_a_study_says_what_its_numbers_are_and_where_they_are_of_a_phantom(chosen, tmp_path):
    texts = texts_of(tmp_path, chosen, SELECTS)
    for said in ("nothing was trained for a variant", "would be to choose on the test set"):
        assert said in texts["md"] and said in texts["html"]
    assert "phantom" not in texts["md"] + texts["html"]
    phantom = texts_of(tmp_path, chosen, SELECTS, phantom=True)
    assert "Weight of SSIM (phantom data)" in phantom["md"]
    assert "say nothing about the variants" in phantom["html"]


def test_a_variant_that_changes_nothing_for_a_method_is_not_measured(tmp_path):
    rows = make_volumes(**SMALL)
    same = rows["variant"].isin(["as configured", "0.5"])
    value = EFFECT["as configured"]
    rows.loc[same, "dice"] = value + 0.01 * rows["subject"].str[1:].astype(int)
    write_tsv(tmp_path / "rows.tsv", rows.assign(same_as_baseline=same))
    summary = summarise_study(read_tsv(tmp_path / "rows.tsv"), SPEC)
    record = one(summary, "0.5")
    assert record["same_as_baseline"] and not one(summary, "1")["same_as_baseline"]
    assert record["mean"] == one(summary, "as configured")["mean"]
    assert record["difference"] == 0 and np.isnan(record["ci_low"])
    texts = texts_of(tmp_path, summary)
    assert texts["md"].count("| does not apply |") == 2
    assert "'does not apply': the variant changes nothing for this method" in texts["md"]


def test_clear_differences_are_bold_but_not_on_few_volumes(tmp_path):
    many, few = (
        texts_of(tmp_path, summarise_study(make_volumes(volumes=n, **SMALL), SPEC))["md"]
        for n in (12, 5)
    )
    assert "**−10.00 \\[" in many
    assert "−10.00 \\[" in few and "**−10.00" not in few
    assert "fewer than 10 volumes are too narrow" in few


# --- sweeps


def make_metrics(values):
    rows = [
        ["intra", method, fold, "x", f"s{i}", value + fold / 100, value / 2]
        for method, value in values.items()
        for fold in range(3)
        for i in range(2 + fold)
    ]
    names = "experiment method fold test_dataset subject dice auprc".split()
    return pd.DataFrame(rows, columns=names)


def test_methods_trained_with_a_value_are_points_of_the_method_they_belong_to():
    metrics = make_metrics({"a-low": 0.4, "a-high": 0.6, "other": 0.9})
    values = {"a-low": 0.25, "a-high": 0.75, "other": 0.5}
    points = trained_points(metrics, {"a": ["a-high", "a-low"]}, values)
    assert list(points["value"]) == [0.25, 0.75] * 2
    assert list(points["metric"]) == ["auprc"] * 2 + ["dice"] * 2
    assert set(points["method"]) == {"a"}
    assert points["mean"].tolist() == pytest.approx([20, 30, 41, 61])
    assert points["std"].iloc[-1] == pytest.approx(1) and set(points["n_folds"]) == {3}


def test_a_sweep_is_drawn_with_its_baseline_and_its_trained_methods(chosen, tmp_path):
    values = {"a": 0.84, "b": 0.5, "a-low": 0.25}
    trained = trained_points(make_metrics({"a-low": 0.4}), {"a": ["a-low"]}, values)
    pictures = []
    for points in (trained, trained, trained.iloc[:0]):
        path = tmp_path / f"{len(pictures)}.png"
        figure_sweep(path, chosen, SELECTS, phantom=True, baseline_values=values, trained=points)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
