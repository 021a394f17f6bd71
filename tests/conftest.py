"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Tests share two cores with each other: one thread each
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture
def content(root):
    """``config.yaml`` as plain data, to be changed by a test."""
    import yaml

    return yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
