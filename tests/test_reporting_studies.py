"""Studies, curves and costs: right numbers, honest words, equal bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from uad import evaluate as evaluation
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv, write_tsv
from uad.evaluate import rescore as rescoring
from uad.report import curves as drawing
from uad.report.cost import COST_COLUMNS, cost_table, write_cost_table
from uad.report.figures import figure_curves
from uad.report.studies import (
    CHOSEN,
    STUDY_COLUMNS,
    StudySpec,
    figure_sweep,
    summarise_study,
    trained_points,
    write_study,
)

REPORT = Path(__file__).parents[1] / "report"
FACTS = {"data_source": "IXI & BraTS21", "seed": 3141}
SPEC: dict[str, Any] = {
    "name": "alpha",
    "title": "Weight of SSIM",
    "baseline": "as configured",
    "variants": ["as configured", "0", "0.5", "1"],
    "labels": {"b": "B_method", "a": "A"},
    "columns": [
        {"experiment": "intra", "test": "x", "label": "X (FLAIR)"},
        {"experiment": "cross", "test": "y", "label": None},
    ],
    "select_on": None,
    "sweep": "alpha",
}
#: Dice of each variant on the test set; AUPRC is 0.1 above it.
EFFECT = {"as configured": 0.50, "0": 0.40, "0.5": 0.52, "1": 0.45}


def make_rows(
    folds: int = 3,
    volumes: int = 12,
    methods: tuple[str, ...] = ("a", "b"),
    places: tuple[tuple[str, str], ...] = (("cross", "y"), ("intra", "x")),
    validation: dict[int, dict[str, float]] | None = None,
    shared: bool = True,
) -> pd.DataFrame:
    """Rows of a study whose variants differ by :data:`EFFECT` on average.

    ``validation`` has the Dice of the variants on the validation set by fold; with
    ``shared`` all folds test the same volumes.
    """
    rows = []
    for experiment, dataset in places:
        for method in methods:
            for fold in range(folds):
                for variant, value in EFFECT.items():
                    known = (validation or {}).get(fold, EFFECT)[variant]
                    for role, level in (("val_unhealthy", known), ("test", value)):
                        for i in range(volumes):
                            # Sums to zero over volumes, and differs between variants.
                            noise = 0.004 * (i - (volumes - 1) / 2) * (1 + len(variant) / 7)
                            name = f"s{i:02d}" if shared else f"s{fold}-{i:02d}"
                            score = level + 0.01 * (fold - 1) + noise
                            place = [experiment, method, fold, dataset, "alpha", variant, role]
                            rows.append([*place, name, score, score + 0.1, 0.1, 0.2, 0.4])
    names = "experiment method fold test_dataset study variant role subject dice auprc threshold "
    return pd.DataFrame(rows, columns=(names + "mean_normal mean_anomalous").split())


def one(
    summary: pd.DataFrame, variant: str, metric: str = "dice", method: str = "a", place: str = "x"
) -> Any:
    found = summary[
        (summary["variant"] == variant)
        & (summary["metric"] == metric)
        & (summary["method"] == method)
        & (summary["test_dataset"] == place)
    ]
    assert len(found) == 1
    return found.iloc[0]


# Numbers of a study ----------------------------------------------------------------------


def test_mean_std_and_difference() -> None:
    summary = summarise_study(make_rows(), SPEC)
    assert list(summary.columns) == STUDY_COLUMNS
    assert len(summary) == 2 * 2 * 4 * 2
    record = one(summary, "0.5")
    assert record["mean"] == pytest.approx(52)
    assert record["std"] == pytest.approx(1)
    assert (record["n_folds"], record["n_volumes"]) == (3, 12)
    assert record["difference"] == pytest.approx(2)
    assert record["ci_low"] < 2 < record["ci_high"]
    assert one(summary, "0.5", "auprc")["mean"] == pytest.approx(62)
    base = one(summary, "as configured")
    assert base["difference"] == 0
    assert np.isnan(base["ci_low"]) and np.isnan(base["ci_high"])
    assert set(summary["chosen"]) == {"none"} and set(summary["n_chosen"]) == {0}


def test_folds_weigh_equally_and_differences_are_paired_by_fold() -> None:
    rows = make_rows(folds=2, volumes=4, methods=("a",), places=(("intra", "x"),), shared=False)
    extra = (rows["fold"] == 1) & (rows["subject"] != "s1-00")
    rows = rows[~extra]
    rows.loc[rows["fold"] == 1, "dice"] = rows["variant"].map({"0.5": 0.9}).fillna(0.5)
    record = one(summarise_study(rows, SPEC), "0.5")
    # Fold 0: +0.02 over four volumes; fold 1: +0.4 with one.
    assert record["difference"] == pytest.approx((2 + 40) / 2)
    assert record["n_volumes"] == 5


def test_interval_is_over_volumes_not_over_folds_times_volumes() -> None:
    rows = make_rows(folds=1)
    copies = pd.concat([rows.assign(fold=fold) for fold in range(5)])
    once = one(summarise_study(rows, SPEC, seed=3), "0.5")
    often = one(summarise_study(copies, SPEC, seed=3), "0.5")
    # The same volumes tested by five folds are not five times as many volumes.
    assert (often["ci_low"], often["ci_high"]) == pytest.approx((once["ci_low"], once["ci_high"]))
    differences = (
        rows[(rows["role"] == "test") & (rows["method"] == "a") & (rows["experiment"] == "intra")]
        .pivot(index="subject", columns="variant", values="dice")
        .mul(100)
    )
    expected = evaluation.bootstrap_interval(
        (differences["0.5"] - differences["as configured"]).to_numpy(), seed=3
    )
    assert (once["ci_low"], once["ci_high"]) == pytest.approx((expected.low, expected.high))


def test_volumes_without_a_value_are_left_out_of_their_pairs() -> None:
    rows = make_rows(folds=1, methods=("a",), places=(("intra", "x"),))
    gone = (rows["variant"] == "0.5") & (rows["subject"] == "s00") & (rows["role"] == "test")
    rows.loc[gone, "dice"] = np.nan
    record = one(summarise_study(rows, SPEC), "0.5")
    assert record["n_volumes"] == 11
    assert np.isfinite(record["ci_low"])


def test_one_volume_has_no_interval() -> None:
    record = one(summarise_study(make_rows(folds=1, volumes=1), SPEC), "0.5")
    assert np.isnan(record["ci_low"]) and np.isnan(record["std"])
    assert record["difference"] == pytest.approx(2)


VALIDATION = {
    0: EFFECT | {"0": 0.7},
    1: EFFECT | {"1": 0.7},
    2: EFFECT | {"0": 0.7},
}


def test_chosen_on_validation() -> None:
    spec = SPEC | {"select_on": "dice", "variant_labels": {"0": "none"}}
    summary = summarise_study(make_rows(validation=VALIDATION), spec)
    record = one(summary, CHOSEN)
    assert record["chosen"] == "none (2x), 1 (1x)"
    assert [one(summary, v)["n_chosen"] for v in spec["variants"]] == [0, 2, 0, 1]
    # On the test set: fold by fold the value of the variant that its validation set chose.
    assert record["mean"] == pytest.approx((39 + 45 + 41) / 3)
    assert record["difference"] == pytest.approx(-(10 + 5 + 10) / 3)
    assert record["validation_mean"] == pytest.approx(70)
    assert one(summary, "0")["validation_mean"] == pytest.approx((70 + 40 + 70) / 3)
    variants = summary[summary["metric"] == "dice"].groupby(["method", "test_dataset"])["variant"]
    assert all(list(names) == [*spec["variants"], CHOSEN] for _, names in variants)
    # Dice decides for AUPRC, too.
    assert one(summary, CHOSEN, "auprc")["chosen"] == record["chosen"]


def test_the_test_set_does_not_choose() -> None:
    rows = make_rows(validation=VALIDATION)
    summary = summarise_study(rows, SPEC | {"select_on": "dice"})
    rows.loc[(rows["role"] == "test") & (rows["variant"] == "0.5"), ["dice", "auprc"]] = 1.0
    other = summarise_study(rows, SPEC | {"select_on": "dice"})
    for column in ("chosen", "mean", "validation_mean"):
        assert one(other, CHOSEN)[column] == one(summary, CHOSEN)[column]


def test_first_of_equal_variants_is_chosen() -> None:
    same = dict.fromkeys(EFFECT, 0.5)
    rows = make_rows(folds=2, validation={0: same, 1: same})
    # Float dust decides nothing.
    rows.loc[rows["role"] == "val_unhealthy", "dice"] = 0.5 + 1e-15 * (rows["variant"] == "1")
    summary = summarise_study(rows, SPEC | {"select_on": "dice"})
    assert one(summary, CHOSEN)["chosen"] == "as configured (2x)"
    assert one(summary, CHOSEN)["difference"] == 0


def test_validation_may_be_absent_unless_it_chooses() -> None:
    rows = make_rows()
    rows = rows[rows["role"] == "test"]
    assert summarise_study(rows, SPEC)["validation_mean"].isna().all()
    with pytest.raises(DataError, match="no validation volumes"):
        summarise_study(rows, SPEC | {"select_on": "auprc"})


def test_order_is_that_of_the_spec_and_equal_input_gives_equal_output() -> None:
    rows = make_rows()
    summary = summarise_study(rows, SPEC)
    assert list(dict.fromkeys(summary["method"])) == ["b", "a"]
    assert list(dict.fromkeys(summary["test_dataset"])) == ["x", "y"]
    shuffled = summarise_study(rows.sample(frac=1, random_state=0), SPEC)
    pd.testing.assert_frame_equal(summary, shuffled)
    other = summarise_study(rows, SPEC, seed=1)
    pd.testing.assert_series_equal(summary["difference"], other["difference"])
    assert not summary["ci_low"].equals(other["ci_low"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.drop(columns="role"), "role"),
        (lambda r: r.assign(role="train"), "unknown role train"),
        (lambda r: pd.concat([r, r.iloc[:1]]), "listed twice"),
        (lambda r: r.assign(dice=r["dice"] * 100), "outside 0 to 1"),
        (lambda r: r[r["variant"] != "1"], "0 volumes for variant '1'"),
        (
            lambda r: r[(r["variant"] != "1") | (r["subject"] != "s03") | (r["fold"] != 1)],
            "35 volumes for variant '1', but 36",
        ),
        (lambda r: r[r["role"] != "test"], "no test volumes"),
        (lambda r: r.assign(dice=r["dice"].where(r["fold"] != 2)), "fold-2 is not defined"),
    ],
)
def test_damaged_rows_are_refused(change: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        summarise_study(change(make_rows()), SPEC)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"baseline": "2"}, "not a variant"),
        ({"variants": ["as configured", "0", "0"]}, "listed twice"),
        ({"variants": ["as configured", CHOSEN]}, "cannot be the name"),
        ({"select_on": "iou"}, "expected dice or auprc"),
        ({"columns": [{"experiment": "intra"}]}, "'test' is missing"),
    ],
)
def test_bad_study_specs(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        StudySpec.of(SPEC | change)


def test_rows_of_the_workflow_are_taken(tmp_path: Path) -> None:
    """Rescored phantoms, through their file, give a summary."""
    rng = np.random.default_rng(0)
    mask = np.zeros((14, 14, 8), dtype=bool)
    mask[2:-2, 2:-2, 1:-1] = True
    lesion = np.zeros_like(mask)
    lesion[5:9, 5:9, 3:6] = True

    def volume(_: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (mask * (0.5 + 0.4 * lesion)).astype(np.float32), mask, lesion

    keys = [f"{role}/s{i}" for role in ("val_unhealthy", "test") for i in range(2)]
    noise = {key: (0.5 * mask + 0.05 * rng.random(mask.shape)).astype(np.float32) for key in keys}
    options = {"erosion": 0, "component_max_size": 0}
    variants = [
        rescoring.Variant("as configured", "l1", median=0, **options),
        rescoring.Variant("0.5", "l1", median=3, **options),
    ]
    place = {"experiment": "intra", "method": "a", "fold": 0, "test_dataset": "x"}
    rows = rescoring.rescore(noise, volume, variants).assign(**place, study="s")
    write_tsv(tmp_path / "rows.tsv", rows)
    spec = SPEC | {"variants": ["as configured", "0.5"], "select_on": "dice"}
    summary = summarise_study(read_tsv(tmp_path / "rows.tsv"), spec)
    assert len(summary) == 3 * 2
    assert summary["mean"].between(1, 100).all()


# Writing a study -------------------------------------------------------------------------


def write(folder: Path, summary: pd.DataFrame, spec: dict[str, Any], **options: Any) -> Any:
    paths = [folder / f"study.{suffix}" for suffix in ("csv", "md", "html", "tex")]
    options = {"phantom": False, "caption_facts": FACTS} | options
    write_study(summary, spec, paths, **options)
    return SimpleNamespace(**{p.suffix[1:]: p.read_bytes().decode() for p in paths})


@pytest.fixture(scope="module")
def chosen() -> tuple[pd.DataFrame, dict[str, Any]]:
    spec = SPEC | {"select_on": "dice"}
    return summarise_study(make_rows(validation=VALIDATION), spec), spec


def test_study_layout(chosen: Any, tmp_path: Path) -> None:
    texts = write(tmp_path, *chosen)
    assert texts.csv.splitlines()[0] == ",".join(STUDY_COLUMNS)
    lines = texts.md.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4 * (1 + 4 + 1)
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "DICE \\[%\\] difference \\[95 % interval\\]" in table[0]
    assert table[2].startswith("| **B\\_method, X (FLAIR)** |  |")
    assert any(line.startswith("| **A, y (cross)** |") for line in table)
    assert table[3].startswith("| as configured | 50.00±1.00 | – | ")
    assert table[4].startswith("| 0 | 40.00±1.00 | **−10.00 \\[−11.")
    assert "| **chosen on validation: 0 (2x), 1 (1x)** | 41.67±" in texts.md
    assert texts.html.count('<tr class="heading"><th colspan="7"') == 4
    assert "X (FLAIR): 12 test volumes, 3 folds; y (cross): 12 test volumes, 3 folds." in texts.md
    assert "IXI & BraTS21" in texts.md and "IXI &amp; BraTS21" in texts.html
    assert "phantom" not in texts.md + texts.html


def test_study_says_what_its_numbers_are(chosen: Any, tmp_path: Path) -> None:
    texts = write(tmp_path / "a", *chosen)
    for said in (
        "nothing was trained for a variant",
        "not corrected for the number of variants",
        "would be to choose on the test set",
    ):
        assert said in texts.md and said in texts.html
    plain = write(tmp_path / "b", summarise_study(make_rows(), SPEC), SPEC)
    assert "choose on the test set" not in plain.md
    phantom = write(tmp_path / "c", *chosen, phantom=True)
    assert "Weight of SSIM (phantom data)" in phantom.md
    assert "say nothing about the variants" in phantom.html
    assert "does not apply" not in plain.md + phantom.md


def test_variants_that_change_nothing_are_not_measured(tmp_path: Path) -> None:
    """The score of method a does not use what '0.5' sets; b is configured with 1."""
    rows = make_rows(validation=VALIDATION)
    same = (rows["variant"] == "as configured") | (
        rows["variant"] == rows["method"].map({"a": "0.5", "b": "1"})
    )
    value = EFFECT["as configured"]
    rows.loc[same, "dice"] = value + 0.01 * rows["subject"].str[1:].astype(int)
    write_tsv(tmp_path / "rows.tsv", rows.assign(same_as_baseline=same))
    rows = read_tsv(tmp_path / "rows.tsv")
    spec = SPEC | {"select_on": "dice"}
    summary = summarise_study(rows, spec)
    for method, idle, other in (("a", "0.5", "1"), ("b", "1", "0.5")):
        record, base = (one(summary, v, method=method) for v in (idle, "as configured"))
        assert (
            record["same_as_baseline"]
            and not one(summary, other, method=method)["same_as_baseline"]
        )
        assert (record["mean"], record["difference"]) == (base["mean"], 0)
        assert np.isnan(record["ci_low"]) and np.isnan(record["ci_high"])
        assert not one(summary, CHOSEN, method=method)["same_as_baseline"]
    texts = write(tmp_path, summary, spec)
    assert texts.md.count("| does not apply |") == 2 * 2 * 2
    assert "[+0.00, +0.00]" not in texts.md.replace("\\", "")
    assert "'does not apply': the variant changes nothing for this method" in texts.md
    assert "does not apply" in texts.html and "does not apply" in texts.tex
    # The CSV remembers it, and the line of a sweep keeps the point.
    back = pd.read_csv(tmp_path / "study.csv")
    assert write(tmp_path / "back", back, spec) == texts
    plain = summarise_study(rows.drop(columns="same_as_baseline"), spec)
    assert sweep(tmp_path / "1.png", summary) == sweep(tmp_path / "2.png", plain)


def test_clear_differences_are_bold_but_not_on_few_volumes(tmp_path: Path) -> None:
    many = write(tmp_path / "a", summarise_study(make_rows(volumes=12), SPEC), SPEC)
    assert "**−10.00 \\[" in many.md
    few = write(tmp_path / "b", summarise_study(make_rows(volumes=5), SPEC), SPEC)
    assert "−10.00 \\[" in few.md and "**−10.00" not in few.md
    assert "fewer than 10 volumes are too narrow" in few.md


def test_study_bytes_and_reading_back(chosen: Any, tmp_path: Path) -> None:
    summary, spec = chosen
    first = write(tmp_path / "a", summary, spec)
    assert first == write(tmp_path / "b", summary, spec)
    back = pd.read_csv(tmp_path / "a" / "study.csv")
    pd.testing.assert_frame_equal(back, summary, atol=5e-5, rtol=0, check_dtype=False)


def test_study_and_cost_compile(chosen: Any, tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("pdflatex is not installed")
    write(tmp_path, *chosen, phantom=True)
    records = [cost("plain_&_simple", label=None), cost("b", batch_size=4, label="B " * 30)]
    write_cost_table(
        cost_table(records), [tmp_path / "cost.tex"], phantom=True, caption_facts=FACTS
    )
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\n"
        "\\begin{document}\\input{study.tex}\\input{cost.tex}\\end{document}\n"
    )
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    output = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, output[-2000:]
    assert "Overfull" not in output


# Figures ---------------------------------------------------------------------------------


def sweep(path: Path, summary: pd.DataFrame, spec: dict[str, Any] = SPEC, **options: Any) -> bytes:
    figure_sweep(path, summary, spec, **({"phantom": False} | options))
    return path.read_bytes()


def test_figure_sweep(chosen: Any, tmp_path: Path) -> None:
    summary, spec = chosen
    write_study(summary, spec, [tmp_path / "s.csv"], phantom=False, caption_facts=FACTS)
    trained = trained_points(
        make_metrics({"a-low": 0.4, "a-high": 0.6}),
        {"a": ["a-low", "a-high"]},
        {"a-low": 0.25, "a-high": 0.75},
    )
    pictures = [
        sweep(tmp_path / "1.png", summary, spec),
        sweep(tmp_path / "2.png", pd.read_csv(tmp_path / "s.csv"), spec),
        sweep(tmp_path / "3.png", summary, spec, baseline_value=0.84),
        sweep(tmp_path / "4.png", summary, spec, baseline_value={"a": 0.84, "b": 0.5}),
        sweep(tmp_path / "5.png", summary, spec, trained=trained),
        sweep(tmp_path / "6.png", summary, spec, phantom=True),
    ]
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 5
    assert pictures[0].startswith(b"\x89PNG")
    words = summary.assign(variant="as configured")
    with pytest.raises(DataError, match="number as its name"):
        sweep(tmp_path / "7.png", words, spec)


def make_metrics(values: dict[str, float]) -> pd.DataFrame:
    names = ["experiment", "method", "fold", "test_dataset", "subject", "dice", "auprc"]
    return pd.DataFrame(
        [
            ["intra", method, fold, "x", f"s{i}", value + fold / 100, value / 2]
            for method, value in values.items()
            for fold in range(3)
            for i in range(2 + fold)
        ],
        columns=names,
    )


def test_trained_points() -> None:
    metrics = make_metrics({"a-low": 0.4, "a-high": 0.6, "other": 0.9})
    values = {"a-low": 0.25, "a-high": 0.75, "other": 0.5}
    points = trained_points(metrics, {"a": ["a-high", "a-low"]}, values)
    assert list(points["value"]) == [0.25, 0.75] * 2
    assert list(points["metric"]) == ["auprc"] * 2 + ["dice"] * 2
    assert set(points["method"]) == {"a"}
    assert points["mean"].tolist() == pytest.approx([20, 30, 41, 61])
    assert points["std"].iloc[-1] == pytest.approx(1)
    with pytest.raises(DataError, match="no metrics of missing"):
        trained_points(metrics, {"a": ["missing"]}, {"missing": 1.0})


def curve(scale: float = 1.0, folds: int = 3) -> pd.DataFrame:
    frames = []
    for fold in range(folds):
        rng = np.random.default_rng(fold)
        scores = np.concatenate([rng.gamma(2, 1, 900), rng.gamma(6, 1, 100)]).astype(np.float32)
        labels = np.arange(1000) >= 900
        frames.append(evaluation.threshold_curve([scale * scores], [labels], points=40))
    return pd.concat([frame.assign(fold=fold) for fold, frame in enumerate(frames)])


def test_figure_curves(tmp_path: Path) -> None:
    methods = {f"method {i} with a name": curve(1 + i / 9) for i in range(13)}
    chosen = {name: [3.0, 4.0, 5.0] for name in list(methods)[:12]}
    options = {"phantom": True, "title": "T", "chosen": chosen, "prevalence": 0.1}
    for name in ("one", "two"):
        paths = [tmp_path / f"{name}.{suffix}" for suffix in ("png", "svg")]
        figure_curves(paths, methods, **options)
    for suffix in ("png", "svg"):
        pair = [(tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two")]
        assert pair[0] == pair[1]
    shuffled = {name: frame.sample(frac=1, random_state=1) for name, frame in methods.items()}
    figure_curves(tmp_path / "three.png", shuffled, **options)
    assert (tmp_path / "three.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_figure_curves_of_one_fold_and_other_scales(tmp_path: Path) -> None:
    narrow = {"a": curve(0.01, folds=1)}
    figure_curves(tmp_path / "a.png", narrow, phantom=False, title="T")
    wide = narrow | {"b": curve(10, folds=1)}
    figure_curves(tmp_path / "b.png", wide, phantom=False, title="T")
    zero = curve(folds=1).assign(mean_dice=0.0)
    figure_curves(tmp_path / "c.png", {"a": zero}, phantom=False, title="T")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


def test_mean_curves() -> None:
    def fold(recall: list[float], precision: list[float], scale: float) -> pd.DataFrame:
        thresholds = scale * np.arange(len(recall))
        dice = np.linspace(0.8, 0, len(recall))
        return pd.DataFrame(
            {
                "fold": int(scale),
                "threshold": thresholds,
                "precision": precision,
                "recall": recall,
                "mean_dice": dice,
            }
        )

    parts = [
        fold([1.0, 0.5, 0.0], [0.1, 0.6, np.nan], 1.0),
        fold([0.8, 0.4, 0.0], [0.3, 0.8, np.nan], 2.0),
    ]
    recall, precision = drawing._mean_precision(parts)
    at = dict(zip(recall.round(2), precision, strict=True))
    # The precision at a recall is that of the highest threshold that reaches it.
    assert at[0.4] == pytest.approx((0.6 + 0.8) / 2)
    assert at[0.41] == pytest.approx((0.6 + 0.3) / 2)
    assert at[0.51] == pytest.approx((0.1 + 0.3) / 2)
    # No mean where a fold has no value.
    assert recall.max() == pytest.approx(0.8)
    thresholds, dice = drawing._mean_dice(parts)
    assert thresholds.tolist() == [0, 1, 2, 4]
    assert dice.tolist() == pytest.approx([0.8, 0.5, 0.2, 0])


def test_figure_curves_refusals(tmp_path: Path) -> None:
    good = {"a": curve()}
    for curves, chosen, match in [
        ({}, None, "no curves"),
        ({"a": curve().drop(columns="recall")}, None, "recall"),
        ({"a": curve().iloc[:0]}, None, "no rows"),
        ({"a": curve().assign(precision=np.nan)}, None, "no finite values"),
        (good, {"b": [1.0]}, "of b, but no curve"),
        (good, {"a": [1.0]}, "3 folds, but 1 chosen"),
    ]:
        with pytest.raises(DataError, match=match):
            figure_curves(tmp_path / "a.png", curves, phantom=False, title="T", chosen=chosen)
    assert not list(tmp_path.iterdir())


def test_thirteen_methods_look_different() -> None:
    looks = {(str(look["color"]), str(look["ls"])) for look in drawing.CYCLE}
    assert len(looks) == len(drawing.CYCLE) >= 13


# Cost ------------------------------------------------------------------------------------


def cost(method: str, **changes: Any) -> dict[str, Any]:
    record = {
        "method": method,
        "label": method.upper(),
        "parameters": 14_912_345,
        "gflops_per_slice_inference": 12.3456,
        "gflops_per_slice_training": 37.1,
        "seconds_per_step": 0.0125,
        "seconds_per_step_l1": 0.01,
        "seconds_per_volume": 3.2,
        "peak_memory_mb": 1532,
        "batch_size": 32,
        "image_size": [96, 80],
        "device": "NVIDIA A10",
        "threads": 4,
        "precision": "32-true",
    }
    return record | changes


UNTRAINED = dict.fromkeys(
    [
        "parameters",
        "gflops_per_slice_inference",
        "gflops_per_slice_training",
        "seconds_per_step",
        "seconds_per_step_l1",
    ]
)


def written(folder: Path, records: list[dict[str, Any]], **options: Any) -> Any:
    paths = [folder / f"cost.{suffix}" for suffix in ("csv", "md", "html", "tex")]
    options = {"phantom": False, "caption_facts": FACTS} | options
    write_cost_table(cost_table(records), paths, **options)
    return SimpleNamespace(**{p.suffix[1:]: p.read_bytes().decode() for p in paths})


def test_cost_table() -> None:
    table = cost_table([cost("b"), cost("a", **UNTRAINED), cost("c", loss="l1")])
    assert list(table.columns) == COST_COLUMNS
    assert table["method"].tolist() == ["b", "a", "c"]
    assert table["overhead_percent"].iloc[0] == pytest.approx(25)
    assert table["overhead_percent"].iloc[1:].isna().all()
    assert table["parameters"].isna().tolist() == [False, True, False]
    assert table["image_size"].iloc[0] == "96x80"


def test_cost_in_every_format(tmp_path: Path) -> None:
    texts = written(tmp_path / "a", [cost("b"), cost("a", **UNTRAINED)])
    assert texts.csv.splitlines()[1] == (
        "b,B,14912345,12.3456,37.1,nan,0.0125,nan,0.01,25,3.2,1532,32,nan,nan,96x80,NVIDIA A10,4,"
        "32-true,nan"
    )
    assert texts.csv.splitlines()[2].startswith("a,A" + 8 * ",nan" + ",3.2,1532,32,")
    assert "| B | 14.9 M | 12.3 | 37.1 | 0.0125 | 0.0100 | +25 % | 3.20 | 1532 |" in texts.md
    assert "| A | – | – | – | – | – | – | 3.20 | 1532 |" in texts.md
    for text in (texts.md, texts.html):
        assert "measured in this run" in text
        assert "device NVIDIA A10, threads 4, precision 32-true, batch size 32" in text
        assert "phantom" not in text
    assert r"$\ell$1 loss" in texts.tex
    assert texts == written(tmp_path / "b", [cost("b"), cost("a", **UNTRAINED)])


def test_conditions_that_differ_are_columns(tmp_path: Path) -> None:
    records = [cost("a", machine="host"), cost("b", batch_size=4, device="CPU", machine="host")]
    text = written(tmp_path, records).md
    assert "Measured with device | Measured with batch size |" in text
    assert text.count("| NVIDIA A10 | 32 |") == text.count("| CPU | 4 |") == 1
    assert "Measured on: machine host, threads 4, precision 32-true, image size 96×80." in text


def test_cost_of_phantom_networks_says_so(tmp_path: Path) -> None:
    texts = written(tmp_path, [cost("a")], phantom=True)
    assert "Cost of the methods (phantom data)" in texts.md
    assert "need not be the sizes of the paper" in texts.html


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([], "No records"),
        ([{"method": "a"}], "cost of a: the fields"),
        ([cost("a"), cost("a")], "given twice"),
        ([cost("a", parameters=-1)], "parameters is -1"),
        ([cost("a", seconds_per_step=float("nan"))], "seconds_per_step is nan"),
        ([cost("a", peak_memory_mb="much")], "peak_memory_mb is 'much'"),
    ],
)
def test_bad_costs_are_refused(records: list[dict[str, Any]], match: str) -> None:
    with pytest.raises(DataError, match=match):
        cost_table(records)


# Captions --------------------------------------------------------------------------------


@pytest.mark.parametrize("phantom", [False, True])
@pytest.mark.parametrize("name", ["study", "curves", "methods", "cost", "maps", "table"])
def test_captions_render(name: str, phantom: bool) -> None:
    """As Snakemake's report does it: a template, then reStructuredText."""
    jinja2 = pytest.importorskip("jinja2")
    core = pytest.importorskip("docutils.core")
    params = SimpleNamespace(
        phantom=phantom,
        figure={"experiment": "intra", "test": "x", "method": "a", "methods": ["a", "b"]},
        methods={"a": {"label": "A", "score": "l1"}, "b": {"label": "B", "score": "l1"}},
        spec={"title": "Weight", "select_on": "dice"},
        trained={"a": ["b"]},
    )
    wildcards = SimpleNamespace(study="alpha", figure="figure1", table="table1")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    template = environment.from_string((REPORT / f"{name}.rst").read_text(encoding="utf-8"))
    text = template.render(snakemake=SimpleNamespace(params=params, wildcards=wildcards))
    assert ("Phantom" in text) == phantom
    page = core.publish_parts(text, writer="html", settings_overrides={"halt_level": 2})
    assert "{{" not in page["body"] and "system-message" not in page["body"]
