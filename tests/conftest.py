"""Fixtures that several test files share."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Tests share two cores with each other: one thread each
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")
# programs that a test starts use the library of this checkout, wherever the environment was made
os.environ["PYTHONPATH"] = str(ROOT / "workflow_scripts")

# The same examples in every run, so that a failure is the change's; make test-all takes more
# (UAD_EXAMPLES), and others each time
EXAMPLES = os.environ.get("UAD_EXAMPLES")
hypothesis.settings.register_profile(
    "uad", deadline=None, max_examples=int(EXAMPLES or 15), derandomize=EXAMPLES is None
)
hypothesis.settings.load_profile("uad")


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture
def content(root):
    """``config.yaml`` as plain data, to be changed by a test."""
    import yaml

    return yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def atlas_dir(tmp_path_factory):
    """The atlas, prepared at 4 mm."""
    from tools.scans import SPACING
    from uad.preprocess.atlas import prepare_atlas

    folder = tmp_path_factory.mktemp("atlas")
    prepare_atlas(folder, SPACING)
    return folder


@pytest.fixture(scope="session")
def scan_dir(atlas_dir, tmp_path_factory):
    """A scan with a known truth (``tools.scans.make_scan``); not to be changed."""
    from tools.scans import make_scan

    return make_scan(tmp_path_factory.mktemp("scan"), atlas_dir)


@pytest.fixture
def stand_ins(tmp_path):
    """Stand-ins of 12 IXI, 10 BraTS21 and 4 MSLUB subjects, and ``small.yaml`` to split them."""
    return fill(tmp_path)


@pytest.fixture(scope="session")
def indexed(root, tmp_path_factory):
    """The same, indexed, for dry runs that leave them as they are."""
    from tools.workflow import snakemake

    folder = fill(tmp_path_factory.mktemp("indexed"))
    snakemake(root, folder, "index", "--configfile", folder / "small.yaml")
    return folder


def fill(folder):
    """Make the stand-ins."""
    import yaml

    from tools.workflow import SMALL_SPLITS, make_stand_ins

    make_stand_ins(folder, ixi=12, brats21=10, mslub=4)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL_SPLITS))
    return folder


#: What the end-to-end run builds.
TARGETS = ("paper", "alpha", "protocol_effects", "cost", "report")


@pytest.fixture(scope="session")
def config(root):
    """Overlay of the smallest run through every stage."""
    return root / "tests" / "e2e" / "config.yaml"


@pytest.fixture(scope="session")
def finished(root, config, tmp_path_factory):
    """Working directory of an uninterrupted end-to-end run; not to be changed.

    ``UAD_FINISHED_RUN`` names one that is there already, for work on the tests that read it.
    """
    from tools.workflow import snakemake

    if there := os.environ.get("UAD_FINISHED_RUN"):
        return Path(there)
    folder = tmp_path_factory.mktemp("finished")
    snakemake(root, folder, *TARGETS, "--configfile", config)
    return folder


@pytest.fixture
def copy_of(finished, tmp_path):
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"
