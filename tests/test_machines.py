"""What machines and users bring along: other copies, variables, pipes, file systems, other runs."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import snakemake as installed_snakemake

from tools.workflow import snakemake
from uad.run.launch import snapshot

MANIFEST = "results/raw/brats21.manifest.tsv"


def start(root, folder, *arguments, **environment):
    """Begin a run of plain Snakemake, as a user types it in ``folder``."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", root / "Snakefile", "--cores", "1"]
    command += ["--configfile", root / "tests/e2e/config.yaml", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | environment, **streams)


def test_jobs_run_the_library_beside_the_snakefile_and_no_package_of_pythonpath(root, tmp_path):
    """In a folder with a space, while PYTHONPATH has another copy and packages of its own."""
    code, other = tmp_path / "my code", tmp_path / "other"
    for copy in (code, other):
        snapshot(root, copy)
    shutil.copytree(root / "tests/e2e", code / "tests/e2e")
    broken = "raise RuntimeError('of another place')\n"
    (other / "workflow_scripts/uad/phantom/__init__.py").write_text(broken)
    (tmp_path / "packages/nibabel").mkdir(parents=True)
    (tmp_path / "packages/nibabel/__init__.py").write_text(broken)
    paths = [other / "workflow_scripts", tmp_path / "packages"]
    run = start(code, tmp_path, "--", MANIFEST, PYTHONPATH=os.pathsep.join(map(str, paths)))
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    record = json.loads((tmp_path / f"{MANIFEST}.prov.json").read_text())
    assert record["roots"]["repository"] == str(code)


def test_a_snakemake_that_jobs_would_not_find_is_refused(root, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/snakemake").symlink_to(Path(installed_snakemake.__file__).parent)
    run = start(root, tmp_path, "-n", "--", MANIFEST, PYTHONPATH=str(tmp_path / "theirs"))
    output, _ = run.communicate(timeout=300)
    message = f"Snakemake is loaded from {tmp_path}/theirs, which is outside its environment"
    assert run.returncode == 1 and output.count(message) == 1, output


def test_a_second_run_is_refused_with_one_sentence_but_may_plan(root, tmp_path, monkeypatch):
    (tmp_path / ".uad").mkdir()
    monkeypatch.delenv("UAD_LOCKED", raising=False)
    arguments = "--nolock", "--configfile", root / "tests/e2e/config.yaml", "--", MANIFEST
    with open(tmp_path / ".uad/run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = snakemake(root, tmp_path, *arguments, check=False)
        assert output.count("Another run is at work in this directory.") == 1, output
        assert "Traceback" not in output and not (tmp_path / "results").exists()
        assert "make_phantom" in snakemake(root, tmp_path, "-n", *arguments)


def test_a_reader_that_has_seen_enough_is_no_error(root):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "uad", "datasets", "config.yaml"]
    done = subprocess.run(command, cwd=root, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_home_that_cannot_be_written_is_not_needed(root, tmp_path):
    (tmp_path / "file").touch()
    run = start(root, tmp_path, "-n", "--", MANIFEST, HOME=str(tmp_path / "file/home"))
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0 and "make_phantom" in output, output


def test_make_takes_no_profile_package_or_python_of_the_user(root):
    names = "SNAKEMAKE_PROFILE PYTHONHOME PYTHONPATH PYTHONNOUSERSITE".split()
    show = "show:; @echo " + " ".join(f"[$${{{name}-}}]" for name in names)
    theirs = os.environ | dict.fromkeys(names, "/theirs")
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", show, "show"],
        cwd=root,
        env=theirs,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"[] [] [{root}/workflow_scripts] [1]\n"


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({"TARGET": "x86"}, [], "-- paper"),
        ({"TARGET": "x86"}, ["TARGET=table3"], "-- table3"),
        ({"PROFILE": "production"}, [], "python -m snakemake --cores all"),
        ({"PROFILE": "production"}, ["PROFILE=slurm"], "uad launch slurm"),
    ],
)
def test_options_of_make_are_given_to_make(root, environment, arguments, expected):
    done = subprocess.run(
        ["make", "--dry-run", "paper", *arguments],
        cwd=root,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | environment,
        capture_output=True,
        text=True,
    )
    name = next(iter(environment))
    assert expected in done.stdout
    told = f"{name} in the environment is not used; give it to make: make paper {name}=...\n"
    assert done.stderr == ("" if arguments else told)
