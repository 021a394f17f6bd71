"""One run through every stage: killed in a training, started again, and checked to the end."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from tools.runs import kill_in_training, leftovers, start
from uad.core.files import read_json

pytestmark = pytest.mark.e2e

TARGETS = ("paper", "report")


@pytest.fixture(scope="module")
def finished(root, config, tmp_path_factory):
    """Working directory of the run."""
    folder = tmp_path_factory.mktemp("whole")
    kill_in_training(start(root, folder, config, TARGETS), folder)
    run = start(root, folder, config, TARGETS)
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
    assert {row for row, _ in cells.index} == {"thresh", "ddpm", "pddpm-iqa"}
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


def test_the_same_command_again_has_nothing_to_do(root, config, finished):
    run = start(root, finished, config, TARGETS)
    assert run.wait(timeout=600) == 0
    assert "Nothing to be done" in (finished / "run.log").read_text()
