"""The lock, what is written from it, and the script that builds .venv from it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest


@pytest.fixture(scope="module")
def lock(root):
    return tomllib.loads((root / "uv.lock").read_text(encoding="utf-8"))


def test_conda_environments_carry_the_same_pins(root):
    from tools.conda_envs import CLASSES, environment

    for name in CLASSES:
        text = (root / "envs" / f"{name}.yaml").read_text(encoding="utf-8")
        assert text == environment(name), "run 'make lock'"


def test_the_lock_has_every_direct_pin_and_pip_gets_the_same_files(root, lock):
    from tools.conda_envs import pins

    locked = {f"{p['name']}=={p['version']}": p for p in lock["package"] if "version" in p}
    assert {requirement.lower() for requirement in pins()} <= set(locked)
    entries = re.split(r"\n(?=\S)", (root / "envs/requirements.txt").read_text(encoding="utf-8"))
    for entry in entries[1:]:
        package = locked[entry.split(" ")[0]]
        files = [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
        hashes = set(re.findall(r"sha256:\w+", entry))
        assert hashes and hashes <= {file["hash"] for file in files}, entry


def test_pip_gets_what_pytorch_needs_without_cuda(root, lock):
    text = (root / "envs/requirements.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([\w-]+)==", text, re.MULTILINE))
    torch = next(p for p in lock["package"] if p["name"] == "torch")
    needed = {d["name"] for d in torch["dependencies"]} - {"triton"}
    assert "torch" not in listed and "sympy" in needed
    for name in needed:
        assert (name in listed) != name.startswith(("nvidia-", "cuda-")), name


def test_the_lock_names_public_hosts_only(root):
    text = (root / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"pypi.org", "files.pythonhosted.org"}


class TestSetUp:
    @pytest.fixture
    def run(self, root, tmp_path):
        """Runs a copy of the script where no other programs are than those named."""
        for name in ("envs/setup.sh", "uv.lock", "pyproject.toml"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(root / name, tmp_path / name)
        programs = tmp_path / "programs"
        programs.mkdir()
        for name in "bash cat dirname flock grep ln mkdir rm sha256sum touch".split():
            (programs / name).symlink_to(shutil.which(name))

        def start(python=None, **variables):
            if python:
                (programs / "python3").write_text(f"#!/bin/bash\n{python}\n")
                (programs / "python3").chmod(0o755)
            kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "TORCH")}
            return subprocess.run(
                ["bash", "envs/setup.sh"],
                cwd=tmp_path,
                env=kept | {"PATH": str(programs)} | variables,
                capture_output=True,
                text=True,
            )

        return start

    @pytest.mark.parametrize("python", [None, "exit 127", "exit 1"])
    def test_without_a_fitting_python_it_says_what_to_install(self, run, tmp_path, python):
        done = run(python)
        assert done.returncode == 1 and not (tmp_path / ".venv").exists()
        for part in ("sudo apt install python3", "sudo dnf install python3", "uv python install"):
            assert part in done.stderr

    def test_a_named_python_is_never_replaced_by_another(self, run):
        done = run('exec "$REAL" "$@"', REAL=sys.executable, PYTHON="/no/python3.12")
        assert done.returncode == 1 and "PYTHON=/no/python3.12 is not" in done.stderr

    @pytest.mark.parametrize("reason", ["it belongs to /elsewhere", "it has no pip"])
    def test_an_environment_that_cannot_be_used_is_made_anew(self, run, tmp_path, reason):
        (tmp_path / ".venv").mkdir()
        owner = "/elsewhere" if "elsewhere" in reason else tmp_path
        (tmp_path / ".venv/.folder").write_text(f"{owner}\n")
        done = run(f'case "$*" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@"; esac')
        assert f"Making .venv anew: {reason}" in done.stderr
        assert "sudo apt install python3." in done.stderr and done.returncode == 1
        assert not (tmp_path / ".venv").exists()

    def test_a_file_system_without_links_is_named(self, run, tmp_path):
        (tmp_path / "programs/ln").unlink()
        (tmp_path / "programs/ln").write_text("#!/bin/bash\nexit 1\n")
        (tmp_path / "programs/ln").chmod(0o755)
        done = run(f'exec {sys.executable} "$@"')
        message = "this file system has no symbolic links, which a Python environment needs"
        assert done.returncode == 1 and message in done.stderr
        assert not (tmp_path / ".venv").exists()
