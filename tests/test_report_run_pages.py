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
from uad.core.files import write_json
from uad.core.provenance import record_digest
from uad.core.records import load_records
from uad.report.pages import report_style, write_config_page, write_data_page
from uad.report.runtime import (
    cost_by_rule,
    duration,
    environments,
    hours,
    job_table,
    jobs_behind,
    only,
    run_facts,
    write_runtime_page,
)
from uad.report.stage_picture import draw_workflow, stages_of

HOST = {"name": "node", "platform": "Linux", "device": "cpu", "driver": None}
GPU = {"name": "gpu01", "platform": "Linux", "device": "NVIDIA H200", "driver": "560.35"}
STAGES = {"make_phantom": "data", "train": "train", "score": "evaluate", "make_table": "report"}


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
def records(tree):
    return load_records(tree.root)


@pytest.fixture
def jobs(records):
    return jobs_behind(records, ["table.csv"])


# --- what the run took


def test_only_the_jobs_behind_the_files_count_each_once(jobs):
    assert [job.rule for job in jobs] == [
        "score", "train", "score", "train", "make_phantom", "make_table",
    ]  # fmt: skip


def test_core_hours_are_seconds_times_cores_and_shares_sum_to_100(records, jobs):
    costs = cost_by_rule(job_table(jobs), records.rule_order).set_index("rule")
    assert list(costs.index) == ["make_phantom", "train", "score", "make_table"]
    assert costs.loc["make_phantom", "core_hours"] == pytest.approx(20 / 3600)
    assert costs.loc["train", "core_hours"] == pytest.approx(60 / 3600)
    assert costs["share"].sum() == pytest.approx(100)
    assert costs.loc["train", ["jobs", "mean", "longest", "gpu_memory_mib"]].tolist() == [
        2, 30, 30, 900,
    ]  # fmt: skip
    assert costs["gpu_memory_mib"].isna().sum() == 3


def test_totals_name_machines_devices_and_the_share_of_provenance(jobs):
    facts = run_facts(job_table(jobs))
    assert (facts["jobs"], facts["hosts"]) == (6, 2)
    assert facts["devices"] == ["NVIDIA H200", "cpu"] and facts["drivers"] == ["560.35"]
    # started a minute apart, the first of six at 00:01; the last takes half a second
    assert facts["hours"] * 3600 == pytest.approx(5 * 60 + 0.5)
    assert facts["record_seconds"] == pytest.approx(0.06)
    assert facts["record_share"] == pytest.approx(100 * 0.06 / 72.5)


def test_other_jobs_change_neither_the_order_of_the_rules_nor_who_made_a_file(tree, jobs):
    before = only(load_records(tree.root), jobs)
    tree.job("aaa", {"other.tsv": "x"}, ["table.csv"])
    first = next(iter(sorted(record.rule for record in jobs)))
    tree.job(first, {"more.tsv": "x"}, ["other.tsv"])  # would put this rule after all others
    records = load_records(tree.root)
    after = only(records, jobs_behind(records, ["table.csv"]))
    assert after.rule_order == before.rule_order != records.rule_order
    assert set(after.producers) == set(before.producers)


def test_versions_that_differ_between_jobs_are_all_named(tree, records, jobs):
    assert environments(jobs) == {"numpy": ["2.3.5"], "python": ["3.11.7"]}
    path = tree.root / jobs[0].key
    content = json.loads(path.read_text())
    content["environment"]["numpy"] = "2.4.0"
    write_json(path, {**content, "record_sha256": record_digest(content)})
    again = jobs_behind(load_records(tree.root), ["table.csv"])
    assert environments(again)["numpy"] == ["2.3.5", "2.4.0"]


def test_the_page_of_times_says_phantom_and_has_a_row_per_rule(records, jobs, tmp_path):
    write_runtime_page(tmp_path / "p.html", jobs, records.rule_order, phantom=True)
    text = " ".join((tmp_path / "p.html").read_text().split())
    assert "phantom data" in text and "say nothing about real scans" in text
    assert len(re.findall(r'<th scope="row">', text)) == 4 + 1
    assert "GPU memory [MiB]" in text and "6 jobs on 2 machines (NVIDIA H200, cpu)" in text
    write_runtime_page(tmp_path / "r.html", jobs[-1:], records.rule_order, phantom=False)
    real = (tmp_path / "r.html").read_text()
    assert "hantom data" not in real and "GPU memory [MiB]" not in real


def test_durations_and_hours_are_written_for_people():
    texts = ["0.42 s", "12.3 s", "4 min 05 s", "3 h 07 min"]
    assert [duration(seconds) for seconds in (0.42, 12.34, 245, 11220)] == texts
    assert [hours(number) for number in (0.0012, 0.5, 123.4)] == ["0.0012", "0.500", "123.4"]


# --- the picture of the workflow


def test_stages_are_ordered_by_what_they_read_and_count_their_jobs(records, jobs):
    stages = stages_of(records, jobs, STAGES)
    assert stages.rules == {
        "data": {"make_phantom": 1},
        "train": {"train": 2},
        "evaluate": {"score": 2},
        "report": {"make_table": 1},
    }
    # the report reads no data but what the others made of them
    assert stages.links == [("data", "train"), ("train", "evaluate"), ("evaluate", "report")]
    assert stages.layers == {"data": 0, "train": 1, "evaluate": 2, "report": 3}


def test_of_two_stages_that_read_from_each_other_the_one_read_more_comes_first(tree):
    tree.job("late_data", {"late.tsv": "x"}, ["table.csv"], host=HOST)
    records = load_records(tree.root)
    jobs = jobs_behind(records, ["late.tsv", "a.weights"])
    stages = stages_of(records, jobs, {**STAGES, "late_data": "data"})
    assert next(iter(stages.rules)) == "data" and stages.rules["data"]["late_data"] == 1


def test_a_rule_without_a_stage_is_named(records, jobs):
    with pytest.raises(DataError, match=r"does not have: make_table, score\. .*another version"):
        stages_of(records, jobs, {"make_phantom": "data", "train": "train"})
    with pytest.raises(DataError, match="no job"):
        stages_of(records, [], STAGES)


def test_equal_runs_give_equal_pictures_that_say_phantom(records, jobs, tmp_path):
    stages = stages_of(records, jobs, STAGES)
    for name in ("a", "b"):
        draw_workflow(tmp_path / f"{name}.svg", stages, phantom=True)
    draw_workflow(tmp_path / "real.svg", stages, phantom=False)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes() != (tmp_path / "real.svg").read_bytes()
    assert len(first) < 200_000


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
    sources = {"ixi": "folder", "b": "phantom"}
    out = tmp_path / "data.html"
    tables = folder.glob("*.tsv"), participants, verdicts
    write_data_page(out, *tables, sources, phantom=True)
    text = " ".join(out.read_text().split())
    assert "ixi (as provided by the user): 2 subjects; scans: 2 T2." in text
    assert "b (synthetic phantom): 3 subjects; scans: 3 T2." in text
    assert "<td>2</td><td>–</td><td>–</td><td>1</td><td>1 to 2</td>" in text
    assert "cannot rank methods" in text
    assert "b: 1 subject(s) are left out and count nowhere: x2 (no T2 image)." in text
    assert "ixi: " not in text


def test_the_page_of_the_config_has_every_key_escaped_and_without_anchors(tmp_path):
    shared = {"channels": [8, 16]}
    config = {"seed": 3, "models": {"a": shared, "b": shared}, "note": {"text": "<&>"}}
    write_config_page(tmp_path / "c.html", config, phantom=False)
    text = (tmp_path / "c.html").read_text()
    assert text.count("channels: [8, 16]") == 2 and "&amp;id" not in text
    assert "seed: 3" in text and "&lt;&amp;&gt;" in text and "phantom" not in text
    assert re.findall(r"<summary>(\w+)</summary>", text) == ["general", "models", "note"]


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
    params = SimpleNamespace(
        phantom=phantom,
        figure={
            "kind": "maps",
            "experiment": "intra",
            "test": "x",
            "method": "a",
            "methods": ["a", "b"],
        },
        methods={"a": {"label": "A", "score": "l1"}, "b": {"label": "B", "score": "l1"}},
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


@pytest.fixture
def shown(finished):
    """What the report of a run shows: by path, as the page itself has it."""
    text = (finished / "results/report.html").read_text(encoding="utf-8")
    listed = re.search(r"^\s*var results = (\{.*\});?$", text, re.M)[1]
    return json.loads(listed)


@pytest.mark.slow
def test_the_report_has_everything_is_light_and_says_phantom_everywhere(finished, shown):
    results = finished / "results"
    config = yaml.safe_load((results / "config.resolved.yaml").read_text())
    wanted = [f"tables/{name}.html" for name in [*config["run"]["tables"], "air"]]
    wanted += [f"figures/{name}.png" for name in [*config["run"]["figures"], "air"]]
    wanted += ["figures/workflow.svg", "report/config.html", "report/data.html"]
    wanted += ["cost/runtime.html", "qc/summary.html", "validation/brats21.html"]
    wanted += [f"notebooks/{path.name}" for path in results.glob("notebooks/*.html")]
    wanted += [str(path.relative_to(results)) for path in results.glob("models/*/*/*/loss.png")]
    assert {f"results/{name}" for name in wanted} <= set(shown)
    text = (results / "report.html").read_text(encoding="utf-8")
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
    assert "<td>2</td><td>4</td><td>1</td><td>1</td><td>2</td>" in data
