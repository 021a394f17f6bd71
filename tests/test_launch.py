"""Starting a run on a cluster: the copy of the code, the remains of the last run, the scheduler."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from uad.core import provenance
from uad.core.files import read_json, write_json
from uad.run.launch import (
    LaunchError,
    cancel_unattended,
    copy_overlays,
    readable_sacct,
    register_run,
    snapshot,
    unattended_jobs,
)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Writes pretend SLURM commands, first on the search path."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(**bodies):
        for name, body in bodies.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)

    return write


class TestTheCopyOfTheCode:
    def test_has_what_a_run_reads_keeps_the_times_and_replaces_the_last_one(self, root, tmp_path):
        (tmp_path / "code/rules").mkdir(parents=True)
        (tmp_path / "code/rules/old.smk").touch()
        assert snapshot(root, tmp_path / "code") == tmp_path / "code/Snakefile"
        for name in ("Snakefile", "config.yaml", "rules/train.smk", "workflow_scripts/uad/air.py"):
            copy = tmp_path / "code" / name
            assert copy.read_bytes() == (root / name).read_bytes()
            assert copy.stat().st_mtime_ns == (root / name).stat().st_mtime_ns
        assert not list((tmp_path / "code").rglob("__pycache__"))
        assert not (tmp_path / "code/rules/old.smk").exists()

    def test_knows_which_commit_it_is_of(self, root, tmp_path):
        snapshot(root, tmp_path / "code")
        script = "from uad.core.provenance import code_state; print(code_state()['commit'])"
        library = {"PYTHONPATH": str(tmp_path / "code/workflow_scripts")}
        command = [sys.executable, "-c", script]  # where there is no repository
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | library
        )
        assert done.stdout.strip() == str(provenance.git_state()["commit"])

    def test_is_only_made_of_the_repository(self, tmp_path):
        with pytest.raises(LaunchError, match="no Snakefile there"):
            snapshot(tmp_path, tmp_path / "code")


def test_overlays_are_copied_so_that_edits_do_not_reach_a_run(tmp_path):
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text("seed: 1\n")
    other.write_text("seed: 2\n")
    given = ["--nolock", "--configfile", str(mine), str(other), "--config", "a=1", "--", "paper"]
    copied = copy_overlays(given, tmp_path / "copies")
    mine.write_text("seed: 3\n")
    assert [Path(copied[n]).read_text() for n in (2, 3)] == ["seed: 1\n", "seed: 2\n"]
    assert copied[:2] + copied[4:] == given[:2] + given[4:]
    with pytest.raises(LaunchError, match=r"none\.yaml: there is no such config file"):
        copy_overlays(["--configfile", str(tmp_path / "none.yaml")], tmp_path / "copies")


class TestARunOnAnotherLoginNode:
    @pytest.fixture
    def record(self, tmp_path):
        write_json(tmp_path / "run.json", {"host": "login2", "pid": 77})
        return tmp_path / "run.json"

    def test_is_not_disturbed_but_may_be_taken_over(self, commands, tmp_path, record, monkeypatch):
        commands(squeue=f"echo '7|uad_1|{tmp_path}'")
        with pytest.raises(LaunchError, match=r"started on login2 \(process 77\)"):
            register_run(tmp_path, record)
        monkeypatch.setenv("UAD_TAKE_OVER", "1")
        register_run(tmp_path, record)
        assert read_json(record) == {"host": platform.node(), "pid": os.getpid()}

    def test_that_left_no_jobs_is_over(self, commands, tmp_path, record):
        commands(squeue="true")
        register_run(tmp_path, record)
        assert read_json(record)["host"] == platform.node()


class TestJobsThatNobodyWatches:
    def test_are_those_of_this_directory_with_our_name(self, commands, tmp_path):
        commands(
            squeue=f"echo '7|uad_1234|{tmp_path}'; echo '8|uad_1234|{tmp_path}/other';"
            f"echo '9|bash|{tmp_path}'; echo '10_[3-5]|uad_77|{tmp_path}/'"
        )
        assert unattended_jobs(tmp_path) == ["7", "10_[3-5]"]

    def test_are_ended_and_waited_for(self, commands, tmp_path):
        gone = tmp_path / "gone"
        commands(squeue=f"[ -e {gone} ] || echo '7|uad_1|{tmp_path}'", scancel=f"echo $@ > {gone}")
        assert cancel_unattended(tmp_path) == ["7"]
        assert gone.read_text().split() == ["7"]
        assert cancel_unattended(tmp_path) == []

    def test_that_do_not_end_are_an_error(self, commands, tmp_path):
        commands(squeue=f"echo '7|uad_1|{tmp_path}'", scancel="true")
        with pytest.raises(LaunchError, match=r"Jobs 7 of an earlier run .* do not end"):
            cancel_unattended(tmp_path, patience=0)

    def test_cannot_be_known_without_slurm_or_when_it_refuses(
        self, commands, tmp_path, monkeypatch
    ):
        commands(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
        with pytest.raises(LaunchError, match="Unable to contact slurm controller"):
            unattended_jobs(tmp_path)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(LaunchError, match="squeue: not found"):
            unattended_jobs(tmp_path)


class TestReadableSacct:
    def ask(self, path):
        return subprocess.run(
            ["sacct", "-X", "a b"], capture_output=True, text=True, env={"PATH": path}
        )

    def test_says_cancelled_as_the_plugin_knows_it_and_does_not_wrap_itself(
        self, commands, tmp_path, monkeypatch
    ):
        commands(sacct="echo '7|CANCELLED by 1000'; echo '8|COMPLETED'; echo \"$#\"")
        for _ in range(2):
            path = readable_sacct(tmp_path / "bin")
            assert path.split(os.pathsep).count(str(tmp_path / "bin")) == 1
            assert self.ask(path).stdout.splitlines() == ["7|CANCELLED", "8|COMPLETED", "2"]
            monkeypatch.setenv("PATH", path)

    def test_fails_as_sacct_fails(self, commands, tmp_path):
        commands(sacct="echo problem >&2; exit 3")
        done = self.ask(readable_sacct(tmp_path / "bin"))
        assert (done.returncode, done.stderr) == (3, "problem\n")

    def test_changes_nothing_where_there_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert readable_sacct(tmp_path / "bin") == str(tmp_path)
        assert not (tmp_path / "bin").exists()
