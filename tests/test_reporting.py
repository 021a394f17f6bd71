"""Tables and figures: right numbers, honest words, equal bytes."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from uad import evaluate as evaluation
from uad.core.columns import SIGNIFICANCE
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv, write_text, write_tsv
from uad.preprocess.slices import write_store
from uad.report import figures
from uad.report.render import Cell, Document, Row, latex, tex_escape
from uad.report.tables import (
    PHANTOM_VERDICT,
    SUMMARY_COLUMNS,
    TableSpec,
    air_table,
    collect_metrics,
    read_published,
    summarise,
    terminal_table,
    write_air_table,
    write_table,
)

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "resources" / "published" / "tables.csv"
FACTS = {"data_source": "IXI for training, BraTS21 & MSLUB 100% for tests", "seed": 3141}
HEADER = (
    "row,experiment,test_dataset,metric,mean,std,n_folds,published_mean,published_std,"
    "n_volumes,published_source,difference,verdict,"
    "significant,tested_against,n_pairs,smallest_difference,largest_p_holm"
)
SPEC: dict[str, Any] = {
    "name": "table1",
    "title": "Table I: cross-dataset comparison",
    "rows": ["thresh", "pddpm", "pddpm-iqa", "oracle"],
    "labels": {"thresh": "Thresh", "pddpm": "pDDPM", "pddpm-iqa": "pDDPM + L_FQ"},
    "columns": [
        {"experiment": "cross_T2", "test_dataset": "brats21", "label": "BraTS21 (T2)"},
        {"experiment": "cross_T2", "test_dataset": "mslub", "label": "MSLUB (T2)"},
    ],
}
FORMATS = ("csv", "md", "tex", "html")


def make_metrics(
    values: dict[str, float], folds: int = 5, volumes: int = 25, spec: dict[str, Any] = SPEC
) -> pd.DataFrame:
    """Metrics whose mean over everything is the given value for every method."""
    rows = []
    for method, value in values.items():
        for column in spec["columns"]:
            for fold in range(folds):
                shift = 0.01 * (fold - (folds - 1) / 2) if 0 < value < 1 else 0
                for i in range(volumes):
                    spread = 0.001 * (i - (volumes - 1) / 2) if 0 < value < 1 else 0
                    score = value + shift + spread
                    place = (column["experiment"], method, fold, column["test_dataset"])
                    rows.append([*place, f"case-{i:03d}", score, score])
    names = ["experiment", "method", "fold", "test_dataset", "subject", "dice", "auprc"]
    return pd.DataFrame(rows, columns=names)


VALUES = {"thresh": 0.1969, "pddpm": 0.4941, "pddpm-iqa": 0.55, "oracle": 1.0}


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return read_published(PUBLISHED)


@pytest.fixture
def summary(published: pd.DataFrame) -> pd.DataFrame:
    return summarise(make_metrics(VALUES), SPEC, published)


def write_all(folder: Path, summary: pd.DataFrame, **options: Any) -> dict[str, str]:
    options = {"spec": SPEC, "phantom": False, "caption_facts": FACTS} | options
    paths = {suffix: folder / f"table1.{suffix}" for suffix in FORMATS}
    write_table(summary, out_paths=paths, **options)
    return {suffix: path.read_bytes().decode() for suffix, path in paths.items()}


def one(summary: pd.DataFrame, row: str, metric: str = "dice", dataset: str = "brats21") -> Any:
    found = summary[
        (summary["row"] == row)
        & (summary["metric"] == metric)
        & (summary["test_dataset"] == dataset)
    ]
    assert len(found) == 1
    return found.iloc[0]


def make_tests(metrics: pd.DataFrame, claims: list[tuple[str, str]]) -> pd.DataFrame:
    # Differences that are all the same would leave the bootstrap nothing to do.
    jitter = 0.001 * np.sin(np.arange(len(metrics)))
    changed = {name: (metrics[name] + jitter).clip(0, 1) for name in ("dice", "auprc")}
    return evaluation.test_claims(metrics.assign(**changed), claims, seed=0, n_resamples=500)


def compile_tex(files: list[Path]) -> str:
    """Compile tables as the comment at their top says; returns the compiler's output."""
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("pdflatex is not installed")
    folder = files[0].parent
    lines = [x[1:].strip() for x in files[0].read_text().splitlines() if x.startswith("%  ")]
    assert lines[3] == r"\input{THIS FILE}" and len(lines) == 5
    lines[3:4] = [rf"\input{{{path}}}" for path in files]
    (folder / "main.tex").write_text("\n".join(lines))
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    output = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, output[-2000:]
    assert (folder / "main.pdf").stat().st_size > 1000
    return output


# Numbers ---------------------------------------------------------------------------------


def test_mean_and_sample_std_over_folds(published: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    metrics = make_metrics(VALUES)
    metrics["dice"] = rng.random(len(metrics))
    metrics.loc[metrics.sample(30, random_state=0).index, "dice"] = np.nan
    record = one(summarise(metrics, SPEC, published), "pddpm")
    cell = metrics[(metrics["method"] == "pddpm") & (metrics["test_dataset"] == "brats21")]
    means = [
        100 * statistics.fmean(part["dice"].dropna().tolist()) for _, part in cell.groupby("fold")
    ]
    assert record["mean"] == pytest.approx(statistics.fmean(means), abs=1e-10)
    assert record["std"] == pytest.approx(statistics.stdev(means), abs=1e-10)
    assert record["n_folds"] == 5
    assert record["difference"] == pytest.approx(record["mean"] - 49.41)


def test_folds_weigh_equally_whatever_their_size(published: pd.DataFrame) -> None:
    metrics = make_metrics({"pddpm": 0.5}, folds=2, volumes=4)
    metrics["dice"] = metrics["fold"].map({0: 0.2, 1: 0.6})
    metrics = metrics[(metrics["fold"] == 0) | (metrics["subject"] == "case-000")]
    record = one(summarise(metrics, SPEC | {"rows": ["pddpm"]}, published), "pddpm")
    assert record["mean"] == pytest.approx(40)


def test_one_fold_has_no_std(published: pd.DataFrame) -> None:
    summary = summarise(make_metrics(VALUES, folds=1), SPEC, published)
    assert summary["std"].isna().all()
    assert set(summary["n_folds"]) == {1}
    assert one(summary, "pddpm")["verdict"] == "within 1 std (only 1 fold)"


def test_oracle_row_is_100(summary: pd.DataFrame, tmp_path: Path) -> None:
    oracle = summary[summary["row"] == "oracle"]
    assert (oracle["mean"] == 100).all()
    assert set(oracle["verdict"]) == {"no published value"}
    texts = write_all(tmp_path, summary)
    assert "oracle,cross_T2,brats21,dice,100.0000,0.0000,5,nan,nan,25,none,nan," in texts["csv"]
    assert "| oracle | **100.00±0.00** (not published) |" in texts["md"]
    assert "100.00±0.00*" in terminal_table(summary, SPEC)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.4941, "within 1 std"),
        (0.4941 + 0.0066, "within 1 std"),
        (0.4941 - 0.0131, "within 2 std"),
        (0.4941 - 0.0133, "outside"),
    ],
)
def test_verdicts(published: pd.DataFrame, value: float, verdict: str) -> None:
    summary = summarise(make_metrics(VALUES | {"pddpm": value}), SPEC, published)
    assert one(summary, "pddpm")["verdict"] == verdict
    assert one(summary, "thresh")["verdict"] == "no published std"


def test_few_volumes_are_said(published: pd.DataFrame) -> None:
    summary = summarise(make_metrics(VALUES, folds=2, volumes=3), SPEC, published)
    assert one(summary, "pddpm")["verdict"] == "within 1 std (only 2 folds, 3 volumes)"


def test_volumes_of_disjoint_test_sets_are_counted_once_each(published: pd.DataFrame) -> None:
    metrics = make_metrics(VALUES)
    metrics["subject"] = metrics["subject"] + "-" + metrics["fold"].astype(str)
    assert set(summarise(metrics, SPEC, published)["n_volumes"]) == {125}


def test_published_value_of_another_table(published: pd.DataFrame, tmp_path: Path) -> None:
    spec = {
        "name": "table3",
        "title": "Table III",
        "rows": ["dae", "pddpm"],
        "columns": [{"experiment": "intra_FLAIR", "test_dataset": "brats21", "label": "FLAIR"}],
    }
    metrics = make_metrics({"dae": 0.3, "pddpm": 0.4}, spec=spec)
    summary = summarise(metrics, spec, published)
    assert one(summary, "dae")["published_source"] == "arXiv 2408.08228v1, Table II"
    text = write_all(tmp_path, summary, spec=spec)["md"]
    assert "Published values of dae on FLAIR: arXiv 2408.08228v1, Table II." in text


def test_a_value_without_published_std_is_not_judged(
    published: pd.DataFrame, tmp_path: Path
) -> None:
    spec = SPEC | {"name": "table4", "rows": ["ddpm", "ddpm-iqa"], "labels": {}}
    metrics = make_metrics({"ddpm": 0.4067, "ddpm-iqa": 0.6202}, folds=2, volumes=3, spec=spec)
    summary = summarise(metrics, spec, published)
    record = one(summary, "ddpm-iqa")
    # Table I has a std for DDPM; Table IV, which is compared with here, has none.
    assert record["published_mean"] == 62.02
    assert summary["published_std"].isna().all()
    assert set(summary["verdict"]) == {"no published std (only 2 folds, 3 volumes)"}
    assert record["difference"] == pytest.approx(0, abs=1e-9)
    texts = write_all(tmp_path, summary, spec=spec)
    assert "+0.00, no published std (only 2 folds, 3 volumes)" in texts["html"]
    said = "Distance from the published means: 8 values without a published std, not judged."
    assert said in texts["md"]
    assert "within" not in texts["md"]


def test_distances_are_counted(published: pd.DataFrame, tmp_path: Path) -> None:
    values = VALUES | {"pddpm": 0.4941, "pddpm-iqa": 0.5945 + 0.0074}
    text = write_all(tmp_path, summarise(make_metrics(values), SPEC, published))["md"]
    assert (
        "Distance from the published means: of 8 values with a published std: 1 within 1 std, "
        "1 within 2 std, 6 outside; 4 values without a published std, not judged."
    ) in text


# Significance ----------------------------------------------------------------------------


def significance(*tests: dict[str, Any]) -> pd.DataFrame:
    """Tests of the first row of a table against others, over volumes, on one column."""
    base = {
        "row": "pddpm-iqa",
        "against": "pddpm",
        "experiment": "cross_T2",
        "test_dataset": "brats21",
        "metric": "dice",
        "unit": "volumes",
        "n": 25,
        "difference": 4.2,
        "ci_low": 3.0,
        "ci_high": 5.0,
        "effect_size": 1.0,
        "p_value": 0.001,
        "p_holm": 0.002,
        "smallest_p": 0.0002,
    }
    return pd.DataFrame([base | test for test in tests], columns=SIGNIFICANCE)


@pytest.mark.parametrize(
    ("second", "mark"),
    [
        ({}, "yes"),
        ({"p_holm": 0.05}, "no"),
        ({"p_holm": 0.0499}, "yes"),
        ({"p_value": 0.001, "p_holm": 0.2}, "no"),
        ({"difference": -4.2}, "no"),
        ({"difference": 0.0}, "no"),
        ({"p_holm": np.nan, "difference": np.nan, "n": 0}, "no"),
        # Over folds, or elsewhere: not a test of this cell.
        ({"unit": "folds", "p_holm": 0.9}, "yes"),
        ({"test_dataset": "mslub", "p_holm": 0.9}, "yes"),
        ({"metric": "auprc", "p_holm": 0.9}, "yes"),
    ],
)
def test_mark_needs_every_test_of_the_cell(
    published: pd.DataFrame, second: dict[str, Any], mark: str
) -> None:
    tests = significance({}, {"against": "thresh"} | second)
    summary = summarise(make_metrics(VALUES), SPEC, published, significance=tests)
    assert one(summary, "pddpm-iqa")["significant"] == mark
    assert one(summary, "pddpm")["significant"] == "not tested"
    assert one(summary, "pddpm")["tested_against"] == "none"


def test_mark_columns(published: pd.DataFrame) -> None:
    tests = significance({}, {"against": "thresh", "difference": 2.5, "p_holm": 0.03, "n": 24})
    record = one(summarise(make_metrics(VALUES), SPEC, published, significance=tests), "pddpm-iqa")
    # In the order of the table's rows, whatever the order of the tests.
    assert record["tested_against"] == "thresh; pddpm"
    assert (record["n_pairs"], record["smallest_difference"]) == (24, 2.5)
    assert record["largest_p_holm"] == 0.03


def test_marks_in_every_format(published: pd.DataFrame, tmp_path: Path) -> None:
    metrics = make_metrics(VALUES | {"oracle": 0.3})
    # Through a file, as in the workflow.
    write_tsv(tmp_path / "s.tsv", make_tests(metrics, [("pddpm-iqa", "pddpm")]))
    tests = read_tsv(tmp_path / "s.tsv")
    summary = summarise(metrics, SPEC, published, significance=tests)
    texts = write_all(tmp_path / "t", summary, significance=tests)
    assert texts["md"].count("**55.00±1.58**† (published") == 4
    assert texts["html"].count("<b>55.00±1.58</b><sup>†</sup>") == 4
    tex = r"\textbf{\boldmath 55.00$\pm$1.58}\textsuperscript{$\dagger$}"
    assert texts["tex"].count(tex) == 4
    printed = terminal_table(summary, SPEC)
    assert "55.00±1.58*†" in printed and "† significantly better" in printed
    rows = [line for line in printed.splitlines() if "±" in line or "19.69" in line]
    assert len({line.rstrip().rfind(".") for line in rows}) <= 3
    # The table's CSV remembers the marks, and tests given later add them.
    assert terminal_table(pd.read_csv(tmp_path / "t" / "table1.csv"), SPEC) == printed
    bare = summarise(metrics, SPEC, published)
    assert terminal_table(bare, SPEC, significance=tests) == printed
    assert "†" not in terminal_table(bare, SPEC)
    assert write_all(tmp_path / "u", bare, significance=tests) == texts


def test_legend_says_what_was_tested(published: pd.DataFrame, tmp_path: Path) -> None:
    tests = significance({}, {"against": "thresh"}, {"test_dataset": "mslub", "n": 20})
    summary = summarise(make_metrics(VALUES), SPEC, published, significance=tests)
    text = write_all(tmp_path, summary, significance=tests)["md"]
    assert (
        "† Better than every row that it was tested against in its column and metric (difference "
        "above 0 and Holm-corrected p \\< 0.05; two-sided paired permutation test over test "
        "volumes, 10,000 resamples). Tested: pDDPM + L\\_FQ against Thresh and pDDPM; pDDPM + "
        "L\\_FQ against pDDPM (volumes: BraTS21 (T2) n = 25, MSLUB (T2) n = 20). The test does "
        "not know of the spread between trainings. Where the paper states significance, it names "
        "no test."
    ) in text
    assert "This run supports all 3 tested differences that are published as higher." in text
    assert "No value has earned it" not in text
    failed = significance({"p_holm": 0.3})
    text = write_all(tmp_path, summary, significance=failed)["md"]
    assert "No value has earned it." in text


def test_unsupported_claims_are_listed(published: pd.DataFrame, tmp_path: Path) -> None:
    spec = {
        "name": "table2",
        "title": "Table II",
        "rows": ["pddpm", "pddpm-iqa", "mine"],
        "labels": {"pddpm": "pDDPM", "pddpm-iqa": "IQA"},
        "columns": [{"experiment": "intra_T1CE", "test_dataset": "brats21", "label": "T1-CE"}],
    }
    place = {"experiment": "intra_T1CE"}
    tests = significance(
        place | {"difference": -1.234, "p_holm": 0.0004},
        # Published: 47.55 below 49.06.
        place | {"metric": "auprc", "difference": 2.0, "p_holm": 0.5},
        place | {"against": "mine", "difference": 9.0, "p_holm": 0.001},
        place | {"row": "mine", "difference": np.nan, "p_holm": np.nan, "n": 0},
    )
    summary = summarise(make_metrics(dict.fromkeys(spec["rows"], 0.4), spec=spec), spec, published)
    text = write_all(tmp_path, summary, spec=spec, significance=tests)["md"].replace("\\", "")
    assert (
        "Published as higher, but not supported by this run (1 of 1; difference in percentage "
        "points, Holm-corrected p): IQA over pDDPM on T1-CE, DICE (−1.23, p < 0.001)."
    ) in text
    assert (
        "Tested, but not published as higher: IQA over pDDPM on T1-CE, AUPRC (+2.00, p = 0.5)."
    ) in text
    assert (
        "Tested, no published numbers: IQA over mine on T1-CE, DICE (+9.00, p = 0.001); mine over "
        "pDDPM on T1-CE, DICE (no pairs)."
    ) in text
    assert "claim" not in text.lower()


def test_too_few_pairs_to_be_significant(published: pd.DataFrame, tmp_path: Path) -> None:
    metrics = make_metrics(VALUES, folds=5, volumes=6)
    claims = [("pddpm-iqa", "pddpm"), ("pddpm-iqa", "thresh")]
    tests = make_tests(metrics, claims)
    summary = summarise(metrics, SPEC, published, significance=tests)
    assert set(summary["significant"]) == {"no", "not tested"}
    text = write_all(tmp_path, summary, significance=tests)["md"]
    # 2 / 2^6 alone would do, but not after the correction for two claims.
    assert "Over volumes no difference can be significant, however large (BraTS21 (T2): 6" in text
    assert "6 volumes, corrected p at least 0.0625" in text
    assert "Over folds no difference can be significant" in text
    assert "5 folds, corrected p at least 0.125" in text


def test_marks_of_phantoms_are_disclaimed(published: pd.DataFrame, tmp_path: Path) -> None:
    tests = significance({}, {"metric": "auprc", "p_holm": 0.9})
    summary = summarise(make_metrics(VALUES), SPEC, published, phantom=True, significance=tests)
    texts = write_all(tmp_path, summary, phantom=True, significance=tests)
    for suffix in ("md", "html"):
        assert "55.00±1.58" in texts[suffix] and "†" in texts[suffix]
        assert "† and its absence say nothing about methods" in texts[suffix]
        assert "not supported" not in texts[suffix]


def test_significance_of_nothing(published: pd.DataFrame, tmp_path: Path) -> None:
    metrics = make_metrics(VALUES)
    plain = write_all(tmp_path / "a", summarise(metrics, SPEC, published))
    tests = make_tests(metrics, [])
    assert tests.empty
    summary = summarise(metrics, SPEC, published, significance=tests)
    assert write_all(tmp_path / "b", summary, significance=tests) == plain
    # Of rows and columns that the table does not show.
    other = significance({"row": "vae"}, {"against": "vae"}, {"experiment": "cross_T1"})
    assert write_all(tmp_path / "c", summary, significance=other) == plain
    assert "†" not in "".join(plain.values())


def test_a_summary_of_before_the_marks_is_read(summary: pd.DataFrame) -> None:
    assert terminal_table(summary.iloc[:, :13], SPEC) == terminal_table(summary, SPEC)


def test_bad_significance(published: pd.DataFrame) -> None:
    metrics = make_metrics(VALUES)
    for tests, match in [
        (significance({}).drop(columns="p_holm"), "p_holm"),
        (significance({"unit": "voxels"}), "unknown unit voxels"),
        (significance({"metric": "iou"}), "unknown metric iou"),
        (significance({}, {}), "listed twice"),
    ]:
        with pytest.raises(DataError, match=match):
            summarise(metrics, SPEC, published, significance=tests)


# Refusals --------------------------------------------------------------------------------


def test_missing_cell_is_named(published: pd.DataFrame) -> None:
    metrics = make_metrics(VALUES)
    gone = (metrics["method"] == "pddpm") & (metrics["test_dataset"] == "mslub")
    with pytest.raises(DataError, match="cross_T2/pddpm/mslub"):
        summarise(metrics[~gone], SPEC, published)


def test_missing_record_in_a_summary_is_named(summary: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="thresh/cross_T2/brats21/dice"):
        write_all(tmp_path, summary.iloc[1:])
    assert not list(tmp_path.iterdir())


def test_fold_without_any_value_is_named(published: pd.DataFrame) -> None:
    metrics = make_metrics(VALUES)
    metrics.loc[(metrics["method"] == "pddpm") & (metrics["fold"] == 3), "auprc"] = np.nan
    with pytest.raises(DataError, match="auprc of cross_T2/pddpm/fold-3/brats21"):
        summarise(metrics, SPEC, published)


def test_methods_must_share_their_volumes(published: pd.DataFrame) -> None:
    metrics = make_metrics(VALUES)
    gone = (metrics["method"] == "oracle") & (metrics["subject"] == "case-007")
    with pytest.raises(DataError, match="case-007"):
        summarise(metrics[~gone], SPEC, published)


@pytest.mark.parametrize("bad", [49.41, -0.1])
def test_values_outside_the_unit_interval(published: pd.DataFrame, bad: float) -> None:
    metrics = make_metrics(VALUES)
    metrics.loc[5, "dice"] = bad
    with pytest.raises(DataError, match="expected a number from 0 to 1"):
        summarise(metrics, SPEC, published)


def test_volume_listed_twice(published: pd.DataFrame) -> None:
    metrics = make_metrics(VALUES)
    with pytest.raises(DataError, match="listed twice"):
        summarise(pd.concat([metrics, metrics.iloc[:1]]), SPEC, published)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": ["pddpm", "pddpm"]},
        {"columns": SPEC["columns"] * 2},
        {"columns": [{"experiment": "cross_T2"}]},
    ],
)
def test_bad_specs(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="table1"):
        TableSpec.of(SPEC | change)


@pytest.mark.parametrize("facts", [{"seed": 1}, FACTS | {"n_folds": 5}])
def test_bad_caption_facts(summary: pd.DataFrame, tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="caption_facts"):
        write_all(tmp_path, summary, caption_facts=facts)


def test_unknown_format(summary: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"table1\.xlsx"):
        write_table(summary, SPEC, [tmp_path / "table1.xlsx"], phantom=False, caption_facts=FACTS)


def test_phantom_summary_is_never_written_as_real(published: pd.DataFrame, tmp_path: Path) -> None:
    summary = summarise(make_metrics(VALUES), SPEC, published, phantom=True)
    with pytest.raises(DataError, match="phantom"):
        write_all(tmp_path, summary)


# Reading ---------------------------------------------------------------------------------


def write_metrics(folder: Path, metrics: pd.DataFrame) -> list[Path]:
    paths = []
    for key, part in metrics.groupby(["experiment", "method", "fold", "test_dataset"]):
        experiment, method, fold, dataset = key
        path = folder / "metrics" / experiment / method / f"fold-{fold}" / f"{dataset}.tsv"
        write_tsv(path, part)
        paths.append(path)
    return paths


def test_collect_metrics(tmp_path: Path) -> None:
    metrics = make_metrics(VALUES, folds=2, volumes=3)
    metrics["subject"] = metrics["subject"].str.replace("case-", "")
    metrics["threshold"] = 0.05
    metrics.loc[0, "auprc"] = np.nan
    paths = write_metrics(tmp_path, metrics)
    found = collect_metrics(reversed(paths))
    expected = metrics.sort_values(["experiment", "method", "fold", "test_dataset", "subject"])
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
    assert found["subject"].iloc[0] == "000"
    pd.testing.assert_frame_equal(found, collect_metrics(map(str, paths)))


def test_collect_metrics_refuses_a_moved_file(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, make_metrics({"pddpm": 0.5}, folds=1))[0]
    moved = path.parents[1] / "fold-4" / path.name
    moved.parent.mkdir()
    path.rename(moved)
    with pytest.raises(DataError, match="the path says"):
        collect_metrics([moved])


@pytest.mark.parametrize("text", ["", "experiment\tmethod\n", "a\tb\n1\t2\n"])
def test_collect_metrics_refuses_damaged_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "brats21.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        collect_metrics([path])


def test_collect_metrics_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        collect_metrics([tmp_path / "brats21.tsv"])
    with pytest.raises(DataError, match="No files"):
        collect_metrics([])


# Formats ---------------------------------------------------------------------------------


def test_csv_bytes(published: pd.DataFrame, tmp_path: Path) -> None:
    metrics = make_metrics(VALUES)
    first = write_all(tmp_path / "a", summarise(metrics, SPEC, published))
    shuffled = metrics.sample(frac=1, random_state=0)
    second = write_all(tmp_path / "b", summarise(shuffled, SPEC, published))
    assert first == second
    lines = first["csv"].split("\n")
    assert lines[0] == HEADER == ",".join(SUMMARY_COLUMNS)
    assert "\r" not in first["csv"]
    assert lines[-1] == ""
    assert len(lines) == 2 + 4 * 2 * 2
    assert ",," not in first["csv"]
    assert lines[1].startswith("thresh,cross_T2,brats21,dice,19.6900,1.5811,5,19.6900,nan,25,")


def test_csv_reads_back(summary: pd.DataFrame, tmp_path: Path) -> None:
    write_all(tmp_path, summary)
    back = pd.read_csv(tmp_path / "table1.csv", keep_default_na=False, na_values=["nan"])
    pd.testing.assert_frame_equal(back, summary, atol=5e-5, rtol=0, check_dtype=False)
    default = pd.read_csv(tmp_path / "table1.csv")
    assert terminal_table(default, SPEC) == terminal_table(summary, SPEC)


def test_caption_facts_are_in_every_text(summary: pd.DataFrame, tmp_path: Path) -> None:
    facts = FACTS | {"notes": ["Protocol: as published."]}
    texts = write_all(tmp_path, summary, caption_facts=facts)
    for suffix in ("md", "tex", "html"):
        text = texts[suffix].replace("\\", "").replace("&amp;", "&")
        assert "IXI for training, BraTS21 & MSLUB 100% for tests." in text
        assert "25 test volumes, 5 folds" in text
        assert "Seed 3141." in text
        assert "arXiv 2408.08228v1, Table I" in text
        assert "not computed here" in text
        assert "Protocol: as published." in text
        assert "phantom" not in text.lower()


def test_phantom_is_said_everywhere(published: pd.DataFrame, tmp_path: Path) -> None:
    summary = summarise(make_metrics(VALUES), SPEC, published)
    texts = write_all(tmp_path, summary, phantom=True)
    said = "phantom data cannot rank methods for real scans"
    for suffix in ("md", "tex", "html"):
        assert "Table I: cross-dataset comparison (phantom data)" in texts[suffix]
        assert said in texts[suffix]
        assert "within" not in texts[suffix] and "−" not in texts[suffix]
        assert "erdict" not in texts[suffix] and "comparison with" not in texts[suffix]
        assert "published 49.41±0.66" in texts[suffix] or suffix == "tex"
    frame = pd.read_csv(tmp_path / "table1.csv")
    assert set(frame["verdict"]) == {PHANTOM_VERDICT}
    assert frame["difference"].isna().all()
    assert frame["published_mean"].notna().any()
    printed = terminal_table(summarise(make_metrics(VALUES), SPEC, published, phantom=True), SPEC)
    assert "(phantom data)" in printed
    assert said in " ".join(printed.split())


def test_markdown_layout(summary: pd.DataFrame, tmp_path: Path) -> None:
    text = write_all(tmp_path, summary)["md"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {6}
    assert r"BraTS21 (T2) DICE \[%\]" in table[0]
    assert len(table) == 2 + 4
    assert "| pDDPM | 49.41±1.58 (published 49.41±0.66, +0.00, within 1 std) |" in text
    mine = r"| pDDPM + L\_FQ | <u>55.00±1.58</u> (published 59.45±0.37, −4.45, outside) |"
    assert mine in text
    assert "(published 19.69, +0.00, no published std)" in text
    assert "- Behind or below a published value: difference" in text
    assert text.count("**") == 2 * 4


@pytest.mark.parametrize(
    ("values", "best", "second"),
    [
        ({"a": 0.1, "b": 0.3, "c": 0.2}, "b", "c"),
        ({"a": 0.3, "b": 0.3, "c": 0.2}, "ab", "c"),
        ({"a": 0.3, "b": 0.2, "c": 0.2}, "a", "bc"),
        # Equal in the two decimals that are shown.
        ({"a": 0.300041, "b": 0.300038, "c": 0.2}, "ab", "c"),
        ({"a": 0.30006, "b": 0.30004, "c": 0.2}, "a", "b"),
        ({"a": 0.3, "b": 0.3}, "ab", ""),
        ({"a": 0.3}, "", ""),
    ],
)
def test_best_and_second(
    published: pd.DataFrame, tmp_path: Path, values: dict[str, float], best: str, second: str
) -> None:
    spec = SPEC | {"rows": list(values), "labels": {}, "columns": SPEC["columns"][:1]}
    summary = summarise(make_metrics(values, folds=1), spec, published)
    texts = write_all(tmp_path, summary, spec=spec)
    printed = terminal_table(summary, spec)
    marks = {
        "md": (r"^\| (\w) \| \*\*", r"^\| (\w) \| <u>"),
        "tex": (r"^(\w) & \\textbf", r"^(\w) & \\underline"),
        "html": (r">(\w)</th><td><b>", r">(\w)</th><td><u>"),
    }
    for suffix, (bold, under) in marks.items():
        assert "".join(re.findall(bold, texts[suffix], re.M)) == best
        assert "".join(re.findall(under, texts[suffix], re.M)) == second
    assert "".join(re.findall(r"^(\w) +\d+\.\d\d\*", printed, re.M)) == best
    assert "".join(re.findall(r"^(\w) +\d+\.\d\d\+", printed, re.M)) == second


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects what a page has."""

    void = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.widths: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag == "tr":
            self.widths.append(0)
        if tag in ("td", "th"):
            self.widths[-1] += int(dict(attrs).get("colspan") or 1)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed(summary: pd.DataFrame, tmp_path: Path) -> None:
    text = write_all(tmp_path, summary)["html"]
    page = Outline()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.seen.count("table") == 1
    assert page.widths == [5, 4, 5, 5, 5, 5]
    assert not {"script", "link", "img"} & set(page.seen)
    assert "http" not in text
    assert "BraTS21 &amp; MSLUB" in text
    assert text.index("Seed 3141") < text.index("<table") < text.index('class="notes"')


def test_html_escapes(summary: pd.DataFrame, tmp_path: Path) -> None:
    spec = SPEC | {"title": "<script>alert(1)</script>", "labels": {"pddpm": "a<b & c"}}
    text = write_all(tmp_path, summary, spec=spec)["html"]
    assert "<script>" not in text
    assert "a&lt;b &amp; c" in text


def test_tex_escape() -> None:
    assert tex_escape("50 % of L_FQ & a#b {c} $d$") == r"50 \% of L\_FQ \& a\#b \{c\} \$d\$"
    assert tex_escape("\\x~^") == r"\textbackslash{}x\textasciitilde{}\textasciicircum{}"
    assert tex_escape("1±2 ↑") == r"1$\pm$2 $\uparrow$"
    assert tex_escape("é☃") == r"é\texttt{U+2603}"


def test_latex_is_balanced(summary: pd.DataFrame, tmp_path: Path) -> None:
    text = write_all(tmp_path, summary)["tex"]
    stack = []
    for what, name in re.findall(r"^\\(begin|end)\{(\w+)\}", text, re.M):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    head, body, compared = text.split("\\begin{table}")
    assert "published 59.45" not in compared and r"$-$4.45, outside" in compared
    assert "not published" in compared
    assert r"\label{tab:table1-comparison}" in compared
    assert all(line.startswith("%") for line in head.splitlines())
    bare = re.sub(r"\\[\\{}%&$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    body = re.sub(r"\\[\\{}%&$#_]", "", body).replace("{!}{%\n", "{!}{\n")
    assert "%" not in body
    assert "_" not in body
    assert r"\textbf{\boldmath 100.00$\pm$0.00}" in text
    assert r"\underline{55.00$\pm$1.58}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    counts = {re.sub(r"\\&", "", row).count("&") for row in rows if "multicolumn" not in row}
    assert counts == {4, 2}


def test_latex_compiles(published: pd.DataFrame, tmp_path: Path) -> None:
    # Three column groups and a long label: two panels of different width, scaled to the line.
    extra = {"experiment": "intra_FLAIR", "test_dataset": "brats21", "label": "50 % & L_x #1"}
    spec = SPEC | {"columns": [*SPEC["columns"], extra]}
    spec["labels"] = SPEC["labels"] | {"oracle": "pDDPM + L_FQ + AIR↑, with a label that is long"}
    metrics = make_metrics(VALUES, spec=spec)
    tests = make_tests(metrics, [("pddpm-iqa", "pddpm"), ("pddpm", "pddpm-iqa")])
    summary = summarise(metrics, spec, published, significance=tests)
    facts = FACTS | {"notes": ["Odd: \\ ~ ^ < > | ' \" é ł μ α ☃ { ± → − ℓ † – Đ « ² \t."]}
    folders = {}
    for phantom in (False, True):
        folders[phantom] = tmp_path / str(phantom)
        options = {"spec": spec, "phantom": phantom, "caption_facts": facts}
        text = write_all(folders[phantom], summary, significance=tests, **options)["tex"]
        assert r"\textsuperscript{$\dagger$}" in text
        assert text.count(r"\begin{table}") == (1 if phantom else 2)
    log = compile_tex([folder / "table1.tex" for folder in folders.values()])
    assert "Overfull" not in log


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "air_rules"])
def test_tables_of_the_paper_fit_a_page(published: pd.DataFrame, tmp_path: Path, name: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    table = config["tables"][name]
    columns = [{**column, "test_dataset": column["test"]} for column in table["columns"]]
    labels = {row: config["methods"][row].get("label") or row for row in table["rows"]}
    spec = SPEC | {"name": name, "rows": table["rows"], "columns": columns, "labels": labels}
    metrics = make_metrics(dict.fromkeys(spec["rows"], 0.4), folds=2, volumes=3, spec=spec)
    text = write_all(tmp_path, summarise(metrics, spec, published), spec=spec)["tex"]
    assert "(only 2 folds, 3 volumes)" in text
    log = compile_tex([tmp_path / "table1.tex"])
    assert "Overfull" not in log and "too large" not in log


def test_latex_sets_every_character(tmp_path: Path) -> None:
    characters = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x180)])) + "±−–—ℓ†‡≤≥→↑↓α…☃"
    document = Document(
        "all", "Characters", [characters], characters[:9], [("", "a b")], [Row("×", [Cell("±")])]
    )
    write_text(tmp_path / "all.tex", latex(document))
    compile_tex([tmp_path / "all.tex"])


def test_terminal_table(summary: pd.DataFrame) -> None:
    lines = terminal_table(summary, SPEC).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == SPEC["title"]
    assert any(line.split()[:3] == ["pDDPM", "49.41±1.58", "49.41±0.66"] for line in lines)
    assert sum(line.startswith("Method") for line in lines) in (1, 2)
    long = SPEC | {"labels": {"pddpm": "a very long label " * 5}}
    assert max(map(len, terminal_table(summary, long).splitlines())) <= 100


def test_uneven_folds_are_noted(published: pd.DataFrame, tmp_path: Path) -> None:
    metrics = make_metrics(VALUES)
    metrics = metrics[(metrics["method"] != "thresh") | (metrics["fold"] == 0)]
    metrics.loc[(metrics["method"] == "pddpm") & (metrics["subject"] == "case-001"), "dice"] = (
        np.nan
    )
    text = write_all(tmp_path, summarise(metrics, SPEC, published))["md"]
    assert "Thresh on BraTS21 (T2): DICE and AUPRC from 1 fold only (others 5)." in text
    assert "pDDPM on MSLUB (T2): DICE from 24 volumes only (others 25)." in text
    assert "1 to 5 folds" in text


# Average intensity ratio -----------------------------------------------------------------


def air_record(fold: int, **changes: Any) -> dict[str, Any]:
    record = {
        "experiment": "intra_FLAIR",
        "modality": "FLAIR",
        "fold": fold,
        "rule": "paper",
        "invert": True,
        "paper_rule_invert": True,
        "maximising_invert": True,
        "mean_normal": 0.58 + 0.01 * fold,
        "mean_anomalous": 0.90,
        "air_before": 1.5,
        "air_after": 4.2 + 0.2 * fold,
        "air_if_inverted": 4.2 + 0.2 * fold,
        "violated_priors": [],
        "n_volumes": 125,
        "reference_dataset": "brats21",
    }
    return record | changes


def test_air_table() -> None:
    kept = {"invert": False, "paper_rule_invert": False, "air_after": 1.5, "mean_normal": 0.48}
    records = [
        air_record(0, **kept, violated_priors=["healthy mean above 0.5; it is 0.48."]),
        air_record(1),
        air_record(0, experiment="cross_T2", modality="T2"),
    ]
    frame = air_table(records)
    assert frame["fold"].tolist() == ["0", "mean", "0", "1", "mean"]
    assert frame["choices_differ"].tolist() == ["no", "no", "yes", "no", "1 of 2"]
    said = "healthy mean above 0.5; it is 0.48."
    assert frame["violated_priors"].tolist() == ["none", "none", said, "none", "1 of 2 folds"]
    mean = frame.iloc[-1]
    assert mean["mean_normal"] == pytest.approx((0.48 + 0.59) / 2)
    assert mean["air_after"] == pytest.approx((1.5 + 4.4) / 2)
    assert mean["invert"] == "1 of 2"
    assert mean["maximising_invert"] == "yes"


def test_air_table_refusals() -> None:
    record = air_record(0)
    del record["air_before"]
    with pytest.raises(DataError, match=r"intra_FLAIR/fold-0.*air_before"):
        air_table([record])
    with pytest.raises(DataError, match="twice"):
        air_table([air_record(0), air_record(0)])
    with pytest.raises(DataError, match="mean_anomalous"):
        air_table([air_record(0, mean_anomalous=None)])
    with pytest.raises(DataError, match="No AIR"):
        air_table([])


def test_write_air_table(tmp_path: Path) -> None:
    violated = ["first; of two", "second"]
    first = air_record(0, maximising_invert=False, violated_priors=violated)
    frame = air_table([first, air_record(1)])
    paths = [tmp_path / f"air.{suffix}" for suffix in ("csv", "md", "html")]
    write_air_table(frame, paths, phantom=True, caption_facts=FACTS)
    csv, text, page = (path.read_bytes().decode() for path in paths)
    assert csv.startswith("experiment,modality,reference_dataset,fold,n_volumes,mean_normal,")
    assert "intra_FLAIR,FLAIR,brats21,0,125,0.5800,0.9000,1.5000,4.2000,4.2000,paper," in csv
    assert "phantom" in text
    assert "(phantom data)" in page
    assert "**yes**" in text
    assert "| yes | 2, see below |" in text
    assert "| yes | 1 of 2 folds |" in text
    assert "- Prior violated in intra\\_FLAIR, fold 0: first; of two\n" in text
    assert "first; of two | second" in csv
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    write_air_table(frame, paths[1:2], phantom=False, caption_facts=FACTS)
    assert "phantom" not in paths[1].read_text()


# Figures ---------------------------------------------------------------------------------


def sample(subject: str = "case-000", **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(subject))
    truth = np.zeros((24, 20), dtype=bool)
    truth[5:12, 0:6] = True
    arrays = {key: rng.random(truth.shape) for key in ("input", "reconstruction", "l1", "ssim")}
    content = {"subject": subject, "slice": 21, "lesion_voxels": 1234, "truth": truth}
    return content | arrays | {"fusion": arrays["l1"] / 2} | changes


def test_figure_maps_bytes(tmp_path: Path) -> None:
    samples = [sample("a"), sample("a-long-name-of-a-subject"), sample("ccc")]
    contents = []
    for folder in ("one", "two"):
        paths = [tmp_path / folder / f"maps.{suffix}" for suffix in ("png", "svg", "pdf")]
        figures.figure_maps(paths, samples, phantom=True, title="Maps")
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG")
    # 200 dpi is 7874 pixels per metre.
    assert b"pHYs" + (7874).to_bytes(4, "big") in contents[0][0]
    assert not re.search(rb"20\d\d-\d\d-\d\d|<dc:date|CreationDate|tEXt", b"".join(contents[0]))
    figures.figure_maps(tmp_path / "real.svg", samples, phantom=False, title="Maps")
    assert (tmp_path / "real.svg").read_bytes() != contents[0][1]


def test_figure_maps_with_other_columns(tmp_path: Path) -> None:
    columns = [
        figures.MapColumn("input", "input", "image"),
        figures.MapColumn("l1", "pDDPM", "map"),
        figures.MapColumn("fusion", "pDDPM-IQA", "map"),
        figures.MapColumn("truth", "truth", "truth"),
    ]
    path = tmp_path / "maps.png"
    zero = sample(l1=np.zeros((24, 20)), fusion=np.zeros((24, 20)))
    del zero["lesion_voxels"]
    figures.figure_maps(path, [zero], phantom=False, title="M", columns=columns, shared_scale=True)
    assert path.stat().st_size > 1000


def test_figure_maps_scales() -> None:
    arrays = [{"a": np.full((9, 9), 1.0), "b": np.full((9, 9), 3.0), "c": np.full((9, 9), 9.0)}]
    own = {key: ("", key) for key in arrays[0]}
    assert [limit for limit, _ in figures._scales(arrays, own).values()] == [1, 3, 9]
    groups = {"a": ("l1", ""), "b": ("l1", ""), "c": ("", "l1")}
    scales = figures._scales(arrays, groups)
    assert (scales["a"], scales["b"]) == ((3.0, False), (3.0, False))
    assert scales["c"][0] == 9


def test_figure_maps_of_methods_share_a_scale_by_measure(tmp_path: Path) -> None:
    contents = []
    for scale in ("", "l1"):
        columns = [
            figures.MapColumn("input", "input", "image"),
            figures.MapColumn("l1", "a method with a name of several words", "map", scale),
            figures.MapColumn("ssim", "second", "map", scale),
            figures.MapColumn("fusion", "third", "map", "fusion"),
            figures.MapColumn("truth", "truth", "truth"),
        ]
        samples = [sample(name, ssim=np.full((24, 20), 0.2)) for name in ("a", "b", "c")]
        path = tmp_path / f"maps{scale}.png"
        figures.figure_maps(path, samples, phantom=False, title="Fig. 3", columns=columns)
        contents.append(path.read_bytes())
    assert contents[0] != contents[1]


def test_figure_maps_refusals(tmp_path: Path) -> None:
    path = tmp_path / "maps.png"
    for bad, match in [
        ({"l1": np.zeros((3, 3))}, "'l1' has shape"),
        ({"ssim": np.full((24, 20), np.nan)}, "NaN"),
    ]:
        with pytest.raises(DataError, match=match):
            figures.figure_maps(path, [sample(**bad)], phantom=False, title="M")
    incomplete = sample()
    del incomplete["fusion"]
    with pytest.raises(DataError, match="'fusion'"):
        figures.figure_maps(path, [incomplete], phantom=False, title="M")
    with pytest.raises(DataError, match="no samples"):
        figures.figure_maps(path, [], phantom=False, title="M")
    assert not path.exists()


def history(steps: int) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    val = np.where(step % 10 == 0, 0.6 * np.exp(-step / 50) + 0.03, np.nan)
    train = 0.5 * np.exp(-step / 50) + 0.02
    return pd.DataFrame(
        {"epoch": (step - 1) // 10, "step": step, "train_loss": train, "val_loss": val}
    )


@pytest.mark.parametrize("steps", [1, 15, 400])
def test_figure_loss(tmp_path: Path, steps: int) -> None:
    figures.figure_loss(tmp_path / "a.png", history(steps), "pddpm")
    figures.figure_loss(tmp_path / "b.png", history(steps).iloc[::-1], "pddpm")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_figure_loss_refuses_an_empty_history(tmp_path: Path) -> None:
    empty = history(5).assign(train_loss=np.nan, val_loss=np.nan)
    with pytest.raises(DataError, match="no loss"):
        figures.figure_loss(tmp_path / "a.png", empty, "pddpm")
    with pytest.raises(DataError, match="val_loss"):
        figures.figure_loss(tmp_path / "a.png", empty.drop(columns="val_loss"), "pddpm")


def test_figure_air(tmp_path: Path) -> None:
    kept = {"invert": False, "air_after": 1.5}
    other = air_record(0, experiment="cross_T2", modality="T2", **kept)
    frame = air_table([air_record(0, **kept), air_record(1), air_record(2), other])
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        figures.figure_air(path, frame, phantom=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_figures_need_a_known_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.bmp"):
        figures.figure_loss(tmp_path / "a.bmp", history(5), "pddpm")


def test_choose_slices() -> None:
    sizes = {f"case-{i:02d}": 10 * i for i in range(13)}
    loaded = []

    def load(subject: str) -> np.ndarray:
        loaded.append(subject)
        mask = np.zeros((6, 6, 9), dtype=np.uint8)
        mask[1:3, 1:3, 2] = 1
        mask[1:4, 1:4, 5:7] = 1
        return mask

    choices = figures.choose_slices(sizes, load)
    # case-00 has no lesion; of 12 volumes those at floor(12 q) = 2, 6, 10 are taken.
    assert [c.subject for c in choices] == ["case-03", "case-07", "case-11"] == loaded
    assert {c.slice for c in choices} == {5}
    backwards = dict(reversed(sizes.items()))
    assert figures.choose_slices(backwards, load) == choices


@pytest.mark.parametrize("volumes", range(1, 13))
def test_choose_slices_of_few_volumes(volumes: int) -> None:
    sizes = {f"case-{i}": 5 for i in range(volumes)}
    choices = figures.choose_slices(sizes, lambda _: np.ones((2, 2, 2)))
    assert figures.choose_slices({name: np.ones((2, 2, 2)) for name in sizes}) == choices
    assert len({c.subject for c in choices}) == len(choices) == min(3, volumes)


def test_choose_slices_refusals() -> None:
    with pytest.raises(DataError, match="lesion"):
        figures.choose_slices({"a": np.zeros((2, 2, 2))})
    with pytest.raises(DataError, match="a: 3 lesion voxels"):
        figures.choose_slices({"a": 3}, lambda _: np.zeros((2, 2, 2)))


def test_map_samples_are_turned_for_display_and_made_of_the_chosen_volumes_only(tmp_path) -> None:
    names = [f"case-{i}" for i in range(4)]
    volumes = np.arange(4 * 5 * 6 * 3, dtype=np.float16).reshape(4, 5, 6, 3)
    lesions = np.zeros(volumes.shape, np.uint8)
    for i, lesion in enumerate(lesions):  # case-0 has none; slice 1 has most
        lesion[0, 0, 2], lesion[1 : 1 + i, 4, 1] = i > 0, 1
    store = tmp_path / "s.safetensors"
    write_store(store, names, zip(volumes, np.ones_like(lesions), lesions, strict=True))
    asked = []

    def layers(subject: str, volume: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(subject)
        return {"input": volume, "half": volume / 2 * mask}

    samples = figures.map_samples(store, names[:3], layers)
    assert asked == [s["subject"] for s in samples] == ["case-1", "case-2"]  # case-3 is not tested
    assert [(s["slice"], s["lesion_voxels"]) for s in samples] == [(1, 2), (1, 3)]
    first = samples[0]
    np.testing.assert_array_equal(first["input"], np.rot90(volumes[1, :, :, 1]))
    np.testing.assert_array_equal(first["half"], first["input"] / 2)
    assert first["truth"].shape == (6, 5) and first["truth"][1, 1]
