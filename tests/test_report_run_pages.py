"""The report: what the run was, how much it took, and that all of it is in one light page."""

import json
import re
from types import SimpleNamespace

import docutils.core
import jinja2
import pytest
import yaml

from tools.result_trees import ResultTree
from uad.core.errors import DataError
from uad.core.records import load_records
from uad.report.pages import report_style, write_config_page, write_data_page
from uad.report.runtime import cost_by_rule, jobs_behind, write_runtime_page
from uad.report.stage_picture import draw_workflow, stages_of

HOST = {"name": "node", "platform": "Linux", "device": "cpu", "driver": None}
GPU = {"name": "gpu01", "platform": "Linux", "device": "NVIDIA H200", "driver": "560.35"}
STAGES = {
    "data": ["make_phantom", "download"],
    "train": ["train"],
    "evaluate": ["score"],
    "report": ["make_table"],
}


@pytest.fixture
def tree(tmp_path):
    """Two trainings, a score for each, a table of them, and a job that is not behind it."""
    tree = ResultTree(tmp_path / "results")
    tree.job("make_phantom", {"raw.tsv": "raw"}, host=HOST, seconds=10.0, threads=2)
    for name, host, memory in (("a", HOST, None), ("b", GPU, 900)):
        tree.job(
            "train", {f"{name}.weights": name}, ["raw.tsv"], host=host, seconds=30.0,
            peak_gpu_memory_mib=memory, wildcards={"method": name},
        )  # fmt: skip
        tree.job("score", {f"{name}.tsv": name}, [f"{name}.weights"], host=HOST)
    sources = ["a.tsv", "b.tsv", "raw.tsv"]
    tree.job("make_table", {"table.csv": "1"}, sources, host=HOST, seconds=0.5)
    tree.job("measure", {"other.json": "{}"}, host=HOST)
    return tree


@pytest.fixture
def jobs(tree):
    return jobs_behind(load_records(tree.root), ["table.csv"])


# --- what the run took


def test_only_the_jobs_behind_the_files_count_each_once(jobs):
    rules = "score train score train make_phantom make_table"
    assert [job.rule for job in jobs] == rules.split()


def test_core_hours_are_seconds_times_cores_the_dearest_rule_first(jobs):
    costs = cost_by_rule(jobs)
    assert list(costs.index) == ["train", "make_phantom", "score", "make_table"]
    assert costs.loc["make_phantom", "core_hours"] == pytest.approx(20 / 3600)
    numbers = costs.loc["train", ["jobs", "core_hours", "longest_minutes", "gpu_memory_mib"]]
    assert numbers.tolist() == pytest.approx([2, 60 / 3600, 0.5, 900])
    assert costs["gpu_memory_mib"].isna().sum() == 3


def test_the_page_of_times_says_phantom_and_has_a_row_per_rule(jobs, tmp_path):
    write_runtime_page(tmp_path / "p.html", jobs, phantom=True)
    text = " ".join((tmp_path / "p.html").read_text().split())
    assert "Phantom data" in text and "say nothing about real scans" in text
    assert re.findall(r'<th scope="row">(\w+)<', text)[:2] == ["train", "make_phantom"]
    assert "6 jobs on 2 machines (NVIDIA H200, cpu)" in text and "<td>900</td>" in text
    write_runtime_page(tmp_path / "r.html", jobs[-1:], phantom=False)
    assert "hantom data" not in (tmp_path / "r.html").read_text()


# --- the picture of the workflow


def test_stages_are_ordered_by_what_they_read_and_count_their_jobs(jobs):
    stages = stages_of(jobs, STAGES)
    assert dict(stages.nodes(data="rules")) == {
        "data": {"make_phantom": 1},
        "train": {"train": 2},
        "evaluate": {"score": 2},
        "report": {"make_table": 1},
    }
    # the report reads no data but what the others made of them
    links = {("data", "train"), ("train", "evaluate"), ("evaluate", "report")}
    assert set(stages.edges) == links


def test_other_jobs_and_rules_that_read_of_later_stages_change_no_link(tree, jobs):
    before = stages_of(jobs, STAGES)
    tree.job("download", {"late.tsv": "x"}, ["table.csv"], host=HOST)
    records = load_records(tree.root)
    assert stages_of(jobs_behind(records, ["table.csv"]), STAGES).edges == before.edges
    late = stages_of(jobs_behind(records, ["late.tsv"]), STAGES)
    assert late.edges == before.edges and late.nodes["data"]["rules"]["download"] == 1


def test_a_rule_without_a_stage_is_named(jobs):
    with pytest.raises(DataError, match=r"does not have: make_table, score\. .*another version"):
        stages_of(jobs, {"data": ["make_phantom"], "train": ["train"]})


def test_equal_runs_give_equal_pictures_that_say_phantom(jobs, tmp_path):
    stages = stages_of(jobs, STAGES)
    for name, phantom in (("a", True), ("b", True), ("real", False)):
        draw_workflow(tmp_path / f"{name}.svg", stages, phantom=phantom)
    first, again, real = ((tmp_path / f"{n}.svg").read_bytes() for n in ("a", "b", "real"))
    assert first == again != real
    assert b"6 jobs (phantom data)" in first and first.count(b"<path d=") == 1 + 3


# --- pages about data and configuration


def test_the_page_of_data_counts_volumes_by_role_and_says_where_folds_differ(tmp_path):
    head = "dataset\tsubject\tname\trole\tweight\n"
    folder = tmp_path / "splits/cross_T2"
    folder.mkdir(parents=True)
    for fold, test in ((0, "x3 x4"), (1, "x4")):
        rows = [
            "ixi\ti1\ti1\ttrain\t1",
            "ixi\ti2\ti2\tval_healthy\t1",
            "b\tx1\tx1\tval_unhealthy\t1",
        ]
        rows += [f"b\t{name}\t{name}\ttest\t1" for name in test.split()]
        (folder / f"fold-{fold}.tsv").write_text(head + "\n".join(rows) + "\n")
    for name, subjects in (("ixi", "i1 i2"), ("b", "x1 x3 x4")):
        rows = [f"{s}\tT2" for s in subjects.split()]
        (tmp_path / f"{name}.tsv").write_text("subject\tmodality\n" + "\n".join(rows) + "\n")
        away = "x2\texcluded\tno T2 image\n" if name == "b" else ""
        verdicts = f"name\tverdict\twhy\n{subjects.split()[0]}\tused\t\n{away}"
        (tmp_path / f"verdicts_{name}.tsv").write_text(verdicts)
    participants = {name: tmp_path / f"{name}.tsv" for name in ("ixi", "b")}
    verdicts = [tmp_path / f"verdicts_{name}.tsv" for name in participants]
    tables = folder.glob("*.tsv"), participants, verdicts
    sources = {"ixi": "folder", "b": "phantom"}
    write_data_page(tmp_path / "data.html", *tables, sources, phantom=True)
    text = " ".join((tmp_path / "data.html").read_text().split())
    assert "ixi (as provided by the user): 2 subjects; scans: 2 T2." in text
    assert "b (synthetic phantom): 3 subjects; scans: 3 T2." in text
    assert "<td>2</td><td>–</td><td>–</td><td>1</td><td>1 to 2</td>" in re.sub("> <", "><", text)
    assert "cannot rank methods" in text
    assert "b: 1 subject(s) are left out and count nowhere: x2 (no T2 image)." in text
    assert "ixi: " not in text


def test_the_page_of_the_config_has_all_of_it_escaped(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 3\nnote: {text: <&>}\n")
    write_config_page(tmp_path / "c.html", tmp_path / "c.yaml", phantom=False)
    text = (tmp_path / "c.html").read_text()
    assert "seed: 3\nnote: {text: &lt;&amp;&gt;}" in text and "phantom" not in text


def test_the_picture_is_the_background_of_the_first_page(root, tmp_path):
    picture = tmp_path / "p.svg"
    picture.write_text('<svg viewBox="0 0 900.5 300"></svg>')
    text = report_style(root / "report/report.css", picture)
    assert "#rulegraph" in text and "aspect-ratio: 900.5 / 300" in text
    assert 'url("data:image/svg+xml;base64,' in text


# --- captions


@pytest.mark.parametrize("phantom", [False, True])
@pytest.mark.parametrize(
    "name",
    ["study", "curves", "cost", "maps", "table", "air", "metrics", "ranks", "healthy"],
)
def test_captions_render_as_in_the_report_and_say_phantom(root, name, phantom):
    figure = {"kind": "maps", "experiment": "intra", "test": "x", "method": "a", "methods": "ab"}
    params = SimpleNamespace(
        phantom=phantom,
        figure=figure,
        methods={name: {"label": name.upper(), "score": "l1"} for name in "ab"},
        spec={"title": "Weight", "select_on": "dice"},
        trained={"a": ["b"]},
    )
    wildcards = SimpleNamespace(study="alpha", figure="figure1", table="table1")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    template = environment.from_string((root / f"report/{name}.rst").read_text(encoding="utf-8"))
    text = template.render(snakemake=SimpleNamespace(params=params, wildcards=wildcards))
    assert ("Phantom" in text) == phantom
    page = docutils.core.publish_parts(text, writer="html", settings_overrides={"halt_level": 2})
    assert "{{" not in page["body"] and "system-message" not in page["body"]


# --- of a finished run


@pytest.mark.slow
def test_the_report_has_everything_is_light_and_says_phantom_everywhere(finished):
    results = finished / "results"
    text = (results / "report.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r"^\s*var results = (\{.*\});?$", text, re.M)[1])
    config = yaml.safe_load((results / "config.resolved.yaml").read_text())
    wanted = [f"tables/{name}.html" for name in [*config["run"]["tables"], "air"]]
    wanted += [f"figures/{name}.png" for name in [*config["run"]["figures"], "air"]]
    wanted += ["figures/workflow.svg", "report/config.html", "report/data.html"]
    wanted += ["cost/runtime.html", "qc/summary.html", "validation/brats21.html"]
    wanted += [f"notebooks/{path.name}" for path in results.glob("notebooks/*.html")]
    wanted += [str(path.relative_to(results)) for path in results.glob("models/*/*/*/loss.png")]
    assert {f"results/{name}" for name in wanted} <= set(shown)
    assert len(text) < 8_000_000
    for name, entry in shown.items():
        assert "hantom" in entry["caption"], name
        assert entry["data_uri"].startswith(f"data:{entry['mime_type']};"), name
    description = re.search(r"var workflow_desc = (.*);", text)[1]
    assert "synthetic phantom" in description and "cannot rank methods" in description
    assert re.search(r"#rulegraph \{ background-image: url\(", text)


@pytest.mark.slow
def test_pages_of_a_run_name_its_jobs_and_volumes(finished):
    results = finished / "results"
    runtime = (results / "cost/runtime.html").read_text(encoding="utf-8")
    assert "train_model" in runtime and "run_notebook" not in runtime
    data = " ".join((results / "report/data.html").read_text(encoding="utf-8").split())
    assert "brats21 (synthetic phantom): 8 subjects; scans: 8 FLAIR." in data
    assert "<td>2</td><td>4</td><td>1</td><td>1</td><td>2</td>" in re.sub("> <", "><", data)
