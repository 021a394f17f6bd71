"""docs/adding-a-method.md, followed step by step in a copy of the repository."""

import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tools.workflow import forked, job_counts

COPIED = ("Snakefile", "rules", "workflow_scripts", "resources", "notebooks", "report", "envs")


def blocks(root):
    """(language, title, text) of the code blocks of the page, in order."""
    text = (root / "docs/adding-a-method.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```", text, re.M | re.S)
    assert len(found) == 7
    return found


@pytest.fixture
def copy(root, tmp_path):
    """A copy of the workflow with everything that the page says to write."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in COPIED:
        copier = shutil.copytree if (root / name).is_dir() else shutil.copy
        copier(root / name, folder / name)
    for config in ("config.yaml", "config.demo.yaml", "tests/e2e/config.yaml"):
        (folder / config).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / config, folder / config)
    for _, title, text in blocks(root):
        if title:
            (folder / title).write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, command: str) -> tuple[int, str]:
    """Status and output of a command line of the page, in the copy, with the copy's library."""
    program, *arguments = command.removeprefix("$ ").split()
    assert program == "snakemake"
    environment = {**os.environ, "PYTHONPATH": str(folder / "workflow_scripts")}
    done = forked([*arguments, "--cores", "2"], cwd=folder, environment=environment)
    return done.returncode, done.stdout + done.stderr


def test_a_row_of_existing_parts_needs_a_config_entry_only(root, copy):
    command = next(text for kind, _, text in blocks(root) if kind == "console").strip()
    counts = job_counts(run(copy, command)[1])
    assert counts["train_model"] == 3 * 2 and counts["make_table"] == 1


def test_a_new_family_is_one_file_and_a_config_entry(root, copy):
    consoles = [text for kind, _, text in blocks(root) if kind == "console"]
    plan, _ = consoles[1].splitlines()
    _, output = run(copy, plan)
    assert job_counts(output)["train_model"] == 2 * 2, output


def test_a_typo_in_its_options_gets_the_answer_that_the_page_shows(root, copy):
    command, answer = [text for kind, _, text in blocks(root) if kind == "console"][2].splitlines()
    status, output = run(copy, command)
    assert status != 0 and answer in output and "Traceback" not in output


@pytest.mark.slow
def test_the_new_family_gets_its_row_on_the_phantom(root, copy):
    command = [text for kind, _, text in blocks(root) if kind == "console"][1].splitlines()[1]
    command = command.replace("config.demo.yaml", "tests/e2e/config.yaml")
    status, output = run(copy, command)
    assert status == 0, output
    table = pd.read_csv(copy / "results/tables/table3.csv")
    mine = table[table["row"] == "context"]
    assert len(mine) == 2 and mine["mean"].between(0, 100).all()
    assert "Context AE" in (copy / "results/tables/table3.md").read_text(encoding="utf-8")
    history = pd.read_csv(copy / "results/models/intra_FLAIR/context/fold-0/history.csv")
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
