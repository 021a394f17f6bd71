"""Healthy test scans: false positives, thresholds that fix their rate, telling scans apart."""

import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from tools.workflow import snakemake
from uad.core.errors import DataError
from uad.core.files import write_json, write_text
from uad.evaluate import dice, predict
from uad.evaluate.healthy import judge_healthy
from uad.report.healthy_table import HEADS, HEALTHY_COLUMNS, healthy_table, write_healthy_table

SHAPE, VOXEL = (12, 12, 8), (1.0, 2.0, 3.0)


def scans(count, lesion, seed):
    """Noise in a brain that fills most of the volume; with a lesion, brighter there."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:-1] = True
    truth = np.zeros(SHAPE, bool)
    truth[3:7, 3:7, 3:6] = lesion
    for number in range(count):
        scores = (rng.random(SHAPE) + 0.5 * truth) * brain
        yield f"{'ill' if lesion else 'well'}{number}", scores.astype(np.float32), brain, truth


def judged(threshold=0.9, component=0, healthy=5, unhealthy=4, seed=0):
    return judge_healthy(
        scans(healthy, False, seed), scans(unhealthy, True, seed + 99), threshold, component, VOXEL
    )


def test_a_row_per_scan_with_what_is_wrongly_predicted():
    frame, summary = judged(component=1)
    assert frame["healthy"].tolist() == [True] * 5 + [False] * 4
    parts = [*scans(5, False, 0), *scans(4, True, 99)]
    for row, (subject, scores, brain, truth) in zip(frame.itertuples(), parts, strict=True):
        assert row.subject == subject
        wrong = predict(scores, 0.9, 1) & ~truth
        assert row.false_positive_ml == pytest.approx(wrong.sum() * 0.006)
        assert row.mean_score == pytest.approx(scores[brain].mean(), rel=1e-5)
        assert row.maximum_score == scores[brain].max()
    assert (summary["n_healthy"], summary["n_unhealthy"]) == (5, 4)
    assert summary["false_positive_ml"] == pytest.approx(frame["false_positive_ml"][:5].mean())


@given(st.integers(0, 1000), st.sampled_from([0.01, 0.05]))
def test_at_most_the_given_share_of_the_healthy_brain_is_above_a_threshold(seed, rate):
    _, summary = judged(seed=seed)
    found = summary["thresholds"][f"rate_{rate:g}"]
    pooled = np.concatenate([scores[brain] for _, scores, brain, _ in scans(5, False, seed)])
    threshold = np.float32(found["threshold"])
    assert (pooled > threshold).mean() <= rate
    assert (pooled >= threshold).mean() > rate  # the next lower one is too low
    dices = [dice(predict(s, found["threshold"], 0), t) for _, s, _, t in scans(4, True, seed + 99)]
    assert found["mean_dice"] == pytest.approx(np.mean(dices))


def test_healthy_against_unhealthy_scans_as_scikit_learn():
    frame, summary = judged(healthy=12, unhealthy=9)
    for name in ("mean_score", "maximum_score"):
        ill, score = ~frame["healthy"], frame[name]
        assert summary[f"auroc_{name}"] == pytest.approx(roc_auc_score(ill, score))
        expected = average_precision_score(ill, score)
        assert summary[f"average_precision_{name}"] == pytest.approx(expected)
    assert summary["auroc_mean_score"] > 0.9  # lesions are brighter


def test_the_table_has_every_measure_of_every_cell_over_folds(tmp_path):
    names = {"experiment": "cross_T2", "test_dataset": "mslub"}
    cells = [(method, fold) for method in ("b", "a") for fold in (0, 1)]
    records = [
        {**names, "method": method, "fold": fold, **judged(seed=10 * len(method) + fold)[1]}
        for method, fold in cells
    ]
    frame = healthy_table(records)
    assert frame["measure"].tolist() == [*HEADS] * 2 and frame["row"].iloc[0] == "b"
    found = frame[frame["row"] == "a"].set_index("measure")
    volumes = [record["false_positive_ml"] for record in records[2:]]
    assert found.loc["false_positive_ml", "mean"] == pytest.approx(np.mean(volumes))
    assert found.loc["false_positive_ml", "std"] == pytest.approx(np.std(volumes, ddof=1))
    dices = [record["thresholds"]["rate_0.01"]["mean_dice"] for record in records[2:]]
    assert found.loc["thresholds.rate_0.01.mean_dice", "mean"] == pytest.approx(
        100 * np.mean(dices)
    )
    paths = [tmp_path / f"healthy.{suffix}" for suffix in ("csv", "md", "html")]
    write_healthy_table(frame, paths, {"a": "A", "b": "B"}, phantom=True)
    csv, text, page = (path.read_text() for path in paths)
    assert csv.startswith(HEALTHY_COLUMNS.replace(" ", ",")) and len(
        csv.splitlines()
    ) == 1 + 2 * len(HEADS)
    assert "**cross\\_T2, mslub (5 healthy scans, 4 unhealthy, 2 folds)**" in text
    assert "| 1 % of healthy voxels above threshold | 1 % of healthy voxels above DICE" in text
    assert page.count('<th scope="row">') == 2 and "cannot rank methods" in page
    with pytest.raises(DataError, match="healthy_test"):
        healthy_table([])


@pytest.mark.slow
def test_the_target_healthy_makes_the_table(root, indexed, tmp_path):
    shutil.copytree(indexed, tmp_path, dirs_exist_ok=True)
    cell = {"experiment": "cross_T2", "method": "thresh", "fold": 0}
    for test in ("brats21", "mslub"):
        path = tmp_path / f"results/healthy/cross_T2/thresh/fold-0/{test}.json"
        write_json(path, {**cell, "test_dataset": test, **judged()[1]})
    overlay = {"tables": {"table1": {"rows": ["thresh"]}}, "run": {"tables": ["table1"]}}
    overlay["run"]["folds"] = [0]
    write_text(tmp_path / "mine.yaml", yaml.safe_dump(overlay))
    rules = ("--allowed-rules", "healthy", "make_healthy_table")
    overlays = (tmp_path / "small.yaml", tmp_path / "mine.yaml")
    snakemake(root, tmp_path, "healthy", "--configfile", *overlays, *rules)
    assert "Thresh" in (tmp_path / "results/tables/healthy.html").read_text()
