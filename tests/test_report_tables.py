"""Tables: right numbers, honest words, equal bytes, in every format."""

import itertools
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from uad import evaluate
from uad.core.columns import SIGNIFICANCE
from uad.core.errors import DataError
from uad.core.files import read_tsv, write_text, write_tsv
from uad.report.air_table import air_table, write_air_table
from uad.report.metric_files import collect_metrics, read_published
from uad.report.render import Cell, Document, Row, latex, tex_text
from uad.report.table_spec import TableSpec
from uad.report.tables import (
    PHANTOM_VERDICT,
    SUMMARY_COLUMNS,
    summarise,
    terminal_table,
    write_table,
)

ROOT = Path(__file__).parents[1]
PUBLISHED = read_published(ROOT / "resources" / "published" / "tables.csv")
SPEC = TableSpec(
    name="table1",
    title="Table I: cross-dataset comparison",
    methods=["thresh", "pddpm", "pddpm-iqa", "oracle"],
    labels={"thresh": "Thresh", "pddpm": "pDDPM", "pddpm-iqa": "pDDPM + L_FQ"},
    places={("cross_T2", "brats21"): "BraTS21 (T2)", ("cross_T2", "mslub"): "MSLUB (T2)"},
)
VALUES = {"thresh": 0.1969, "pddpm": 0.4941, "pddpm-iqa": 0.55, "oracle": 1.0}


def make_metrics(values=VALUES, folds=5, volumes=25, spec=SPEC):
    """Metrics whose mean over everything is the given value for every method."""
    rows = []
    cells = itertools.product(values.items(), spec.places, range(folds), range(volumes))
    for (method, value), (experiment, test), fold, i in cells:
        spread = 0.01 * (fold - (folds - 1) / 2) + 0.001 * (i - (volumes - 1) / 2)
        score = value + spread * (0 < value < 1)
        rows.append([experiment, method, fold, test, f"case-{i:03d}", score, score])
    names = "experiment method fold test_dataset subject dice auprc".split()
    return pd.DataFrame(rows, columns=names)


def summary_of(metrics=None, spec=SPEC, **options):
    return summarise(make_metrics() if metrics is None else metrics, spec, PUBLISHED, **options)


def texts_of(folder, summary, *, spec=SPEC, notes=(), significance=None):
    """A table in every format, by suffix; ``plain`` is its Markdown without escapes."""
    paths = {suffix: folder / f"table1.{suffix}" for suffix in ("csv", "md", "tex", "html")}
    options = {"seed": 3141, "notes": notes, "significance": significance}
    write_table(summary, spec, paths.values(), **options)
    texts = {suffix: path.read_bytes().decode() for suffix, path in paths.items()}
    return texts | {"plain": texts["md"].replace("\\", "")}


def one(summary, method, metric="dice", dataset="brats21"):
    (record,) = summary[
        (summary[["row", "metric", "test_dataset"]] == [method, metric, dataset]).all(axis=1)
    ].to_dict("records")
    return record


def compile_tex(files):
    """Compile tables as the comment at their top says; returns the compiler's output."""
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("pdflatex is not installed")
    lines = [x[1:].strip() for x in files[0].read_text().splitlines() if x.startswith("%  ")]
    assert lines[3] == r"\input{THIS FILE}" and len(lines) == 5
    lines[3:4] = [rf"\input{{{path}}}" for path in files]
    (files[0].parent / "main.tex").write_text("\n".join(lines))
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=files[0].parent, capture_output=True)
    output = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, output[-2000:]
    return output


# --- numbers


def test_mean_and_sample_std_over_equal_folds_of_the_mean_over_defined_volumes():
    rng = np.random.default_rng(0)
    metrics = make_metrics()
    metrics["dice"] = rng.random(len(metrics))
    metrics.loc[metrics.sample(30, random_state=0).index, "dice"] = np.nan
    smaller = (metrics["fold"] > 0) | (metrics["subject"] < "case-003")
    metrics = metrics[smaller]
    record = one(summary_of(metrics), "pddpm")
    cell = metrics[(metrics["method"] == "pddpm") & (metrics["test_dataset"] == "brats21")]
    means = [100 * statistics.fmean(part["dice"].dropna()) for _, part in cell.groupby("fold")]
    assert record["mean"] == pytest.approx(statistics.fmean(means), abs=1e-10)
    assert record["std"] == pytest.approx(statistics.stdev(means), abs=1e-10)
    assert record["difference"] == pytest.approx(record["mean"] - 49.41)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"values": {"pddpm": 0.4941 + 0.0066}}, "within 1 std"),
        ({"values": {"pddpm": 0.4941 - 0.0131}}, "within 2 std"),
        ({"values": {"pddpm": 0.4941 - 0.0133}}, "outside"),
        ({"folds": 2, "volumes": 3}, "within 1 std (only 2 folds, 3 volumes)"),
        ({"folds": 1}, "within 1 std (only 1 fold)"),
    ],
)
def test_a_verdict_counts_published_stds_and_says_on_how_little_it_stands(changes, verdict):
    changes = changes | {"values": VALUES | changes.get("values", {})}
    summary = summary_of(make_metrics(**changes))
    assert one(summary, "pddpm")["verdict"] == verdict
    assert one(summary, "thresh")["verdict"].startswith("no published std")
    assert one(summary, "oracle")["verdict"] == "no published value"
    assert summary["std"].isna().all() == (changes.get("folds") == 1)


def test_verdicts_are_counted_and_rows_on_fewer_folds_or_volumes_noted(tmp_path):
    metrics = make_metrics(VALUES | {"pddpm-iqa": 0.5945 + 0.0074})
    said = "In all: 6 outside, 4 no published std, 1 within 1 std, 1 within 2 std."
    assert said in texts_of(tmp_path, summary_of(metrics))["md"]
    metrics = metrics[(metrics["method"] != "thresh") | (metrics["fold"] == 0)]
    gone = (metrics["method"] == "pddpm") & (metrics["subject"] == "case-001")
    metrics.loc[gone, "dice"] = np.nan
    metrics["subject"] += "-" + metrics["fold"].astype(str)  # of disjoint test sets
    text = texts_of(tmp_path, summary_of(metrics))["md"]
    assert "Thresh on BraTS21 (T2): only 1 fold and 25 volumes (others 5 and 125)." in text
    assert "pDDPM on MSLUB (T2): only 5 folds and 120 volumes (others 5 and 125)." in text
    assert "1 to 5 folds" in text


# --- significance


def significance_of(*changes):
    """Tests of one method against others, over volumes, on one column."""
    place = {"experiment": "cross_T2", "test_dataset": "brats21", "metric": "dice"}
    numbers = {"n": 25, "difference": 4.2, "p_value": 0.001, "p_holm": 0.002, "smallest_p": 0.0002}
    base = {"row": "pddpm-iqa", "against": "pddpm", "unit": "volumes", **place, **numbers}
    return pd.DataFrame([base | change for change in changes], columns=SIGNIFICANCE)


def really_tested(metrics, claims):
    # differences that are all the same would leave the bootstrap nothing to do
    jitter = 0.001 * np.sin(np.arange(len(metrics)))
    changed = {name: (metrics[name] + jitter).clip(0, 1) for name in ("dice", "auprc")}
    return evaluate.test_claims(metrics.assign(**changed), claims, seed=0, n_resamples=500)


def marked(folder, tests, **options):
    """The table with the marks of some tests: its summary and its texts."""
    summary = summary_of(significance=tests, **options)
    spec = options.get("spec", SPEC)
    return summary, texts_of(folder, summary, significance=tests, spec=spec)


@pytest.mark.parametrize(
    ("second", "mark"),
    [
        ({}, "yes"),
        ({"p_holm": 0.05}, "no"),
        ({"p_holm": 0.0499}, "yes"),
        ({"difference": 0.0}, "no"),
        ({"p_holm": np.nan, "difference": np.nan, "n": 0}, "no"),
        # over folds, or elsewhere: not a test of this cell
        ({"unit": "folds", "p_holm": 0.9}, "yes"),
        ({"test_dataset": "mslub", "p_holm": 0.9}, "yes"),
        ({"metric": "auprc", "p_holm": 0.9}, "yes"),
    ],
)
def test_a_mark_needs_every_test_of_the_cell(second, mark):
    summary = summary_of(significance=significance_of({}, {"against": "thresh"} | second))
    record = one(summary, "pddpm-iqa")
    assert record["significant"] == mark
    assert one(summary, "pddpm")["significant"] == "not tested"
    if second == {"p_holm": 0.0499}:  # what the mark stands on, in the order of the table
        stands_on = "tested_against n_pairs smallest_difference largest_p_holm".split()
        assert [record[key] for key in stands_on] == ["thresh; pddpm", 25, 4.2, 0.0499]


def test_marks_are_in_every_format_and_read_back(tmp_path):
    metrics = make_metrics(VALUES | {"oracle": 0.3})
    write_tsv(tmp_path / "s.tsv", really_tested(metrics, [("pddpm-iqa", "pddpm")]))
    summary, texts = marked(tmp_path, read_tsv(tmp_path / "s.tsv"), metrics=metrics)
    assert texts["md"].count("**55.00±1.58**† (published") == 4
    assert texts["html"].count("<b>55.00±1.58</b><sup>†</sup>") == 4
    assert texts["tex"].count(r"\textbf{55.00$\pm$1.58\textsuperscript{$\dagger$}}") == 4
    printed = terminal_table(summary, SPEC)
    assert "55.00±1.58*†" in printed
    assert terminal_table(pd.read_csv(tmp_path / "table1.csv"), SPEC) == printed


def test_the_legend_says_what_was_tested_and_whether_published_differences_hold(tmp_path):
    tests = significance_of({}, {"against": "thresh"}, {"test_dataset": "mslub"})
    _, texts = marked(tmp_path, tests)
    assert "Tested: pDDPM + L_FQ against Thresh and pDDPM. The test does not" in texts["plain"]
    assert "supports every tested difference that is published as higher (3)." in texts["plain"]
    _, texts = marked(tmp_path, significance_of({}, {"against": "thresh", "p_holm": 0.0601}))
    assert (
        "Published as higher, but not supported by this run (1 of 2; difference in percentage "
        "points, Holm-corrected p): pDDPM + L_FQ over Thresh on BraTS21 (T2), DICE (+4.20, "
        "p = 0.06)."
    ) in texts["plain"]


def test_too_few_volumes_to_be_significant_are_said(tmp_path):
    metrics = make_metrics(volumes=6)
    # 2 / 2^6 alone would do, but not after the correction for two claims
    tests = really_tested(metrics, [("pddpm-iqa", "pddpm"), ("pddpm-iqa", "thresh")])
    summary, texts = marked(tmp_path, tests, metrics=metrics)
    assert set(summary["significant"]) == {"no", "not tested"}
    assert "Too few test volumes for any difference to be significant: Bra" in texts["md"]


def test_tests_of_other_methods_and_columns_change_nothing(tmp_path):
    plain = texts_of(tmp_path / "a", summary_of())
    other = significance_of({"row": "vae"}, {"against": "vae"}, {"experiment": "cross_T1"})
    assert marked(tmp_path / "b", other)[1] == plain
    assert "†" not in "".join(plain.values())


# --- refusals


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m, p: m.assign(auprc=m["auprc"].mask(p & (m["fold"] == 3))),
            "auprc of cross_T2/pddpm/fold-3/brats21",
        ),
        (lambda m, p: m[~(p & (m["subject"] == "case-007"))], "case-007"),
    ],
)
def test_metrics_that_would_give_wrong_tables_are_refused(change, match):
    metrics = make_metrics()
    with pytest.raises(DataError, match=match):
        summary_of(change(metrics, metrics["method"] == "pddpm"))


# --- reading


def test_metrics_are_read_sorted_and_subjects_stay_text(tmp_path):
    metrics = make_metrics(folds=2, volumes=3)
    metrics["subject"] = metrics["subject"].str.replace("case-", "")
    metrics.loc[0, "auprc"] = np.nan
    paths = []
    for key, part in metrics.groupby(["experiment", "method", "fold", "test_dataset"]):
        paths.append(tmp_path / f"{'-'.join(map(str, key))}.tsv")
        write_tsv(paths[-1], part)
    found = collect_metrics(map(str, reversed(paths)))
    expected = metrics.sort_values(list(metrics)[:5]).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found["subject"].iloc[0] == "000"


# --- formats


def test_equal_metrics_give_equal_bytes_and_the_csv_reads_back(tmp_path):
    metrics = make_metrics()
    first = texts_of(tmp_path / "a", summary_of(metrics))
    assert first == texts_of(tmp_path / "b", summary_of(metrics.sample(frac=1, random_state=0)))
    lines = first["csv"].split("\n")
    assert lines[0] == ",".join(SUMMARY_COLUMNS)
    assert lines[0].startswith(
        "row,experiment,test_dataset,metric,mean,std,n_folds,published_mean,published_std,"
    )
    assert lines[1].startswith("thresh,cross_T2,brats21,dice,19.6900,1.5811,5,19.6900,nan,25,")
    assert "oracle,cross_T2,brats21,dice,100.0000,0.0000,5,nan,nan,25,none,nan," in first["csv"]
    assert len(lines) == 2 + 4 * 2 * 2 and lines[-1] == "" and ",," not in first["csv"]
    assert "\r" not in first["csv"]
    back = pd.read_csv(tmp_path / "a/table1.csv")
    pd.testing.assert_frame_equal(back, summary_of(metrics), atol=5e-5, rtol=0, check_dtype=False)


def test_the_caption_has_its_facts_in_every_format(tmp_path):
    note = "IXI for training, BraTS21 & MSLUB 100% for tests."
    texts = texts_of(tmp_path, summary_of(), notes=[note])
    for suffix in ("md", "tex", "html"):
        text = texts[suffix].replace("\\", "").replace("&amp;", "&")
        for said in (
            note,
            "Data: the data sets named in the config.",
            "25 test volumes, 5 folds",
            "Seed 3141.",
            "arXiv 2408.08228v1, Table I",
            "not computed here",
        ):
            assert said in text
        assert "phantom" not in text.lower()


def test_a_phantom_is_named_and_compared_nowhere_and_its_marks_are_disclaimed(tmp_path):
    tests = significance_of({}, {"metric": "auprc", "p_holm": 0.9})
    summary, texts = marked(tmp_path, tests, phantom=True)
    said = "phantom data cannot rank methods for real scans"
    for suffix in ("md", "tex", "html"):
        assert "Table I: cross-dataset comparison (phantom data)" in texts[suffix]
        assert said in texts[suffix] and "say nothing about methods" in texts[suffix]
        assert not re.search("within|−|erdict|not supported", texts[suffix])
        assert "49.41±0.66" in texts[suffix].replace(r"$\pm$", "±")  # still shown
    frame = pd.read_csv(tmp_path / "table1.csv")
    assert set(frame["verdict"]) == {PHANTOM_VERDICT}
    assert frame["difference"].isna().all() and frame["published_mean"].notna().any()
    assert "(phantom data)" in terminal_table(summary, SPEC)


def test_markdown_has_a_value_with_everything_beside_it_per_cell(tmp_path):
    text = texts_of(tmp_path, summary_of())["md"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {6} and len(table) == 2 + 4
    assert r"BraTS21 (T2) DICE \[%\]" in table[0]
    assert "| pDDPM | 49.41±1.58 (published 49.41±0.66, +0.00, within 1 std) |" in text
    mine = r"| pDDPM + L\_FQ | <u>55.00±1.58</u> (published 59.45±0.37, −4.45, outside) |"
    assert mine in text and "| oracle | **100.00±0.00** (published –) |" in text
    assert "(published 19.69, +0.00, no published std)" in text


@pytest.mark.parametrize(
    ("values", "best", "second"),
    [
        ({"a": 0.1, "b": 0.3, "c": 0.2}, "b", "c"),
        # equal in the two decimals that are shown
        ({"a": 0.300041, "b": 0.300038, "c": 0.2}, "ab", "c"),
        ({"a": 0.30006, "b": 0.30004, "c": 0.2}, "a", "b"),
        ({"a": 0.3, "b": 0.2, "c": 0.2}, "a", "bc"),
        ({"a": 0.3}, "", ""),
    ],
)
def test_best_and_second_are_marked_in_every_format(tmp_path, values, best, second):
    place = {("cross_T2", "brats21"): "BraTS21 (T2)"}
    spec = replace(SPEC, methods=list(values), labels={}, places=place)
    summary = summary_of(make_metrics(values, folds=1, spec=spec), spec)
    texts = texts_of(tmp_path, summary, spec=spec) | {"text": terminal_table(summary, spec)}
    marks = {
        "md": (r"^\| (\w) \| \*\*", r"^\| (\w) \| <u>"),
        "tex": (r"^(\w) & \\textbf", r"^(\w) & \\underline"),
        "html": (r">(\w)</th><td><b>", r">(\w)</th><td><u>"),
        "text": (r"^(\w) +\d+\.\d\d\*", r"^(\w) +\d+\.\d\d\+"),
    }
    for suffix, patterns in marks.items():
        found = ["".join(re.findall(pattern, texts[suffix], re.M)) for pattern in patterns]
        assert found == [best, second], suffix


def test_html_is_one_page_that_escapes_and_loads_nothing(tmp_path):
    labels = SPEC.labels | {"pddpm": "a<b & c"}
    spec = replace(SPEC, title="<script>alert(1)</script>", labels=labels)
    text = texts_of(tmp_path, summary_of(), spec=spec)["html"]
    page = BeautifulSoup(text, "html.parser")
    (table,) = page.find_all("table")
    rows = [[int(c.get("colspan", 1)) for c in row(["td", "th"])] for row in table.find_all("tr")]
    assert list(map(sum, rows)) == [5, 4, 5, 5, 5, 5]  # the corner is two rows high
    assert not page(["script", "link", "img"]) and "http" not in text
    assert "a&lt;b &amp; c" in text
    assert text.index("Seed 3141") < text.index("<table") < text.index('class="notes"')


def test_latex_is_one_float_with_the_published_values_below_the_measured(tmp_path):
    assert tex_text("50 % of L_FQ & a#b {c} $d$") == r"50 \% of L\_FQ \& a\#b \{c\} \$d\$"
    assert tex_text("1±2 ↑ é☃ a\\b") == r"1$\pm$2 $\uparrow$ é\texttt{U+2603} a$\backslash$b"
    text = texts_of(tmp_path, summary_of())["tex"]
    head, body = text.split("\\begin{table}")
    assert all(line.startswith("%") for line in head.splitlines())
    assert r"\textbf{100.00$\pm$0.00}" in body and r"\underline{55.00$\pm$1.58}" in body
    assert r"published} & {\scriptsize 49.41$\pm$0.66}" in body


def test_latex_compiles_within_the_line_whatever_the_texts_are(tmp_path):
    # three column groups and a long label: two panels of different width, scaled to the line
    places = SPEC.places | {("intra_FLAIR", "brats21"): "50 % & L_x #1"}
    labels = SPEC.labels | {"oracle": "pDDPM + L_FQ + AIR↑, with a label that is long"}
    spec = replace(SPEC, places=places, labels=labels)
    metrics = make_metrics(spec=spec)
    tests = really_tested(metrics, [("pddpm-iqa", "pddpm"), ("pddpm", "pddpm-iqa")])
    odd = " ".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x180)])) + "±−–—ℓ†‡≤≥→↑↓α…☃ \t.\n"
    text = marked(tmp_path, tests, metrics=metrics, spec=spec)[1]["tex"]
    assert text.count(r"\addlinespace") == 1
    document = Document("all", odd, odd, odd[:9], [("", "a b")], [Row("×", [Cell("±")])])
    write_text(tmp_path / "all.tex", latex(document))
    assert "Overfull" not in compile_tex([tmp_path / "table1.tex", tmp_path / "all.tex"])


def test_tables_of_the_config_fit_a_page(tmp_path, content):
    paths = []
    for name in ("table1", "table2", "table3", "table4", "air_rules"):
        table = content["tables"][name]
        labels = {method: content["methods"][method].get("label") for method in table["rows"]}
        spec = TableSpec.of(name, table, labels)
        metrics = make_metrics(dict.fromkeys(table["rows"], 0.4), folds=2, volumes=3, spec=spec)
        texts_of(tmp_path / name, summary_of(metrics, spec), spec=spec)
        paths.append(tmp_path / name / "table1.tex")
    log = compile_tex(paths)
    assert "Overfull" not in log and "too large" not in log


def test_a_terminal_gets_100_columns_with_published_values_beside():
    printed = terminal_table(summary_of(), SPEC)
    lines = printed.splitlines()
    assert lines[0] == SPEC.title and "100.00±0.00*" in printed
    assert any(line.split()[:3] == ["pDDPM", "49.41±1.58", "49.41±0.66"] for line in lines)
    long = replace(SPEC, labels={"pddpm": "a very long label " * 5})
    for text in (printed, terminal_table(summary_of(), long)):
        assert max(map(len, text.splitlines())) <= 100


# --- average intensity ratio


def air_record(fold, **changes):
    choices = dict.fromkeys(["invert", "paper_rule_invert", "maximising_invert"], True)
    ratios = {"air_before": 1.5, "air_after": 4.2 + 0.2 * fold, "air_if_inverted": 4.2 + 0.2 * fold}
    facts = {"experiment": "intra_FLAIR", "modality": "FLAIR", "reference_dataset": "brats21"}
    facts |= {"fold": fold, "n_volumes": 125, "rule": "paper", "violated_priors": []}
    means = {"mean_normal": 0.58 + 0.01 * fold, "mean_anomalous": 0.90}
    return {**facts, **means, **choices, **ratios, **changes}


def test_air_has_a_row_per_fold_and_a_mean_row_that_counts_choices():
    kept = {"invert": False, "paper_rule_invert": False, "air_after": 1.5, "mean_normal": 0.48}
    said = "healthy mean above 0.5; it is 0.48."
    other = air_record(0, experiment="cross_T2", modality="T2")
    frame = air_table([air_record(0, **kept, violated_priors=[said]), air_record(1), other])
    assert frame["fold"].tolist() == ["0", "mean", "0", "1", "mean"]
    assert frame["choices_differ"].tolist() == ["no", "no", "yes", "no", "1 of 2"]
    assert frame["violated_priors"].tolist() == ["none", "none", said, "none", "1 of 2 folds"]
    mean = frame.iloc[-1]
    assert mean["mean_normal"] == pytest.approx((0.48 + 0.59) / 2)
    assert mean["air_after"] == pytest.approx((1.5 + 4.4) / 2)
    assert (mean["invert"], mean["maximising_invert"]) == ("1 of 2", "yes")


def test_the_air_table_lists_violated_priors_below_and_marks_differing_rules(tmp_path):
    first = air_record(0, maximising_invert=False, violated_priors=["first; of two", "second"])
    frame = air_table([first, air_record(1)])
    paths = [tmp_path / f"air.{suffix}" for suffix in ("csv", "md", "html")]
    write_air_table(frame, paths, phantom=True, seed=0)
    csv, text, page = (path.read_text() for path in paths)
    assert "intra_FLAIR,FLAIR,brats21,0,125,0.5800,0.9000,1.5000,4.2000,4.2000,paper," in csv
    assert "first; of two | second" in csv
    assert "**yes**" in text and "| **1 of 2** | yes |" in text
    said = "- Priors violated in intra_FLAIR, fold 0: first; of two | second\n"
    assert said in text.replace("\\", "")
    assert "(phantom data)" in page and "say nothing about real scans" in page
