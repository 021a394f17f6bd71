"""Tables and figures: right numbers, honest words, equal bytes."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from uad.errors import ConfigError, DataError
from uad.files import write_tsv
from uad.reporting import figures
from uad.reporting.render import tex_escape
from uad.reporting.tables import (
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

PUBLISHED = Path(__file__).parents[1] / "resources" / "published" / "tables.csv"
FACTS = {"data_source": "IXI for training, BraTS21 & MSLUB 100% for tests", "seed": 3141}
HEADER = (
    "row,experiment,test_dataset,metric,mean,std,n_folds,published_mean,published_std,"
    "n_volumes,published_source,difference,verdict"
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
    said = "minutes of training of shrunken networks on phantom data cannot rank methods"
    for suffix in ("md", "tex", "html"):
        assert "Table I: cross-dataset comparison (phantom data)" in texts[suffix]
        assert said in texts[suffix]
        assert "within" not in texts[suffix]
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
    assert "| pDDPM | 49.41±1.58 (published 49.41±0.66) |" in text
    assert r"| pDDPM + L\_FQ | <u>55.00±1.58</u> (published 59.45±0.37) |" in text
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
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    bare = re.sub(r"\\[\\{}%&$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    body = bare.split("\n", 1)[1]
    assert "%" not in body
    assert "_" not in body
    assert r"\textbf{\boldmath 100.00$\pm$0.00}" in text
    assert r"\underline{55.00$\pm$1.58}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    counts = {re.sub(r"\\&", "", row).count("&") for row in rows if "multicolumn" not in row}
    assert counts == {4}


def test_latex_compiles(published: pd.DataFrame, tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("neither pdflatex nor tectonic is installed")
    # Three column groups, so that there are two panels of different width.
    extra = {"experiment": "intra_FLAIR", "test_dataset": "brats21", "label": "50 % & L_x #1"}
    spec = SPEC | {"columns": [*SPEC["columns"], extra]}
    summary = summarise(make_metrics(VALUES, spec=spec), spec, published)
    facts = FACTS | {"notes": ["Odd: \\ ~ ^ < > | ' \" é μ α ☃ { ± → −"]}
    write_all(tmp_path, summary, spec=spec, phantom=True, caption_facts=facts)
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\n"
        "\\begin{document}\\input{table1.tex}\\end{document}\n"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in compiler else []
    done = subprocess.run(
        [compiler, *options, "main.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "main.pdf").stat().st_size > 1000


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


def test_imports_stay_light() -> None:
    code = (
        "import sys, uad.reporting.tables, uad.reporting.figures;"
        "print([m for m in ('matplotlib', 'torch', 'scipy', 'snakemake') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
