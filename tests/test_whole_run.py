"""One run through every stage: killed in a training, started again, and checked to the end."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from tools.runs import kill_in_training, leftovers, start
from uad.core.files import read_json

pytestmark = pytest.mark.e2e

TARGETS = ("table3", "report")
#: Less than the slow end-to-end runs: one data set, one trained method.
ONE_TABLE = {
    "tables": {"table3": {"rows": ["thresh", "pddpm-iqa"], "claims": [["pddpm-iqa", "thresh"]]}},
    "run": {"figures": ["figure3"], "studies": []},
    "figures": {"figure3": {"methods": ["thresh", "pddpm-iqa"]}},
}


@pytest.fixture(scope="module")
def again(root, config, tmp_path_factory):
    """Starts the run, or goes on with it: always the same command. Returns folder and process."""
    folder = tmp_path_factory.mktemp("whole")
    overlay = folder / "one_table.yaml"
    overlay.write_text(yaml.safe_dump(ONE_TABLE))
    return lambda: (folder, start(root, folder, [config, overlay], TARGETS))


@pytest.fixture(scope="module")
def finished(again):
    """Working directory of the run."""
    folder, run = again()
    kill_in_training(run, folder)
    _, run = again()
    assert run.wait(timeout=3000) == 0, (folder / "run.log").read_text()[-3000:]
    return folder


def test_the_interrupted_training_went_on_from_its_checkpoint(finished):
    records = (finished / "results/models").rglob("model.safetensors.prov.json")
    assert any(read_json(path)["facts"]["resumed"] for path in records)
    assert not leftovers(finished)


def test_the_table_has_every_cell_and_says_phantom(finished):
    tables = finished / "results/tables"
    table = pd.read_csv(tables / "table3.csv")
    assert list(table.columns[:9]) == (
        "row experiment test_dataset metric mean std n_folds published_mean published_std".split()
    )
    cells = table.groupby(["row", "test_dataset"])["metric"].apply(set)
    assert {row for row, _ in cells.index} == {"thresh", "pddpm-iqa"}
    assert all({"dice", "auprc"} <= metrics for metrics in cells)
    assert table["mean"].between(0, 100).all() and (table["n_folds"] == 2).all()
    for ending in ("md", "tex", "html"):
        assert "phantom" in (tables / f"table3.{ending}").read_text(encoding="utf-8").lower()


def test_its_audit_finds_nothing_wrong(root, finished):
    done = subprocess.run(
        [sys.executable, "-m", "uad", "audit", finished / "results"],
        env=os.environ | {"PYTHONPATH": str(root / "workflow_scripts")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_report_shows_tables_and_figures(finished):
    text = (finished / "results/report.html").read_text(encoding="utf-8")
    assert "synthetic phantom" in text
    for name in ("tables/table3.html", "tables/air.html", "figures/figure3.png"):
        assert f"results/{name}" in text


def test_the_same_command_again_has_nothing_to_do(again, finished):
    _, run = again()
    assert run.wait(timeout=600) == 0
    assert "Nothing to be done" in (finished / "run.log").read_text()
