"""Large packages are imported without what is not used of them, and nothing else is disturbed."""

import subprocess
import sys
import textwrap

import pytest

from uad.core.imports import import_lightly


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that would take an optional one, and whose part ``plots`` fails if it is loaded."""
    files = {
        "large_package/__init__.py": "from .plots import *\ntry:\n    import optional_package\n"
        "except ImportError:\n    optional_package = None\n",
        "large_package/plots.py": "raise RuntimeError('loaded')",
        "optional_package.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "large_package"
    for name in ("large_package", "large_package.plots", "optional_package"):
        sys.modules.pop(name, None)


def test_hidden_packages_and_parts_are_not_loaded_and_can_be_later(package):
    with pytest.raises(RuntimeError, match="loaded"):
        import_lightly(package, absent=["optional_package"])  # leaves nothing hidden
    module = import_lightly(package, absent=["optional_package"], empty=["large_package.plots"])
    assert module.optional_package is None
    assert not {"optional_package", "large_package.plots"} & set(sys.modules)
    import optional_package

    assert optional_package.__file__
    with pytest.raises(RuntimeError, match="loaded"):
        __import__("large_package.plots")


def test_what_is_loaded_already_stays(package):
    import optional_package

    module = import_lightly(package, absent=["optional_package"], empty=["large_package.plots"])
    assert module.optional_package is optional_package
    assert import_lightly(package) is module


@pytest.mark.slow
def test_networks_and_ants_load_no_plots_and_no_statistics():
    program = """
        import sys
        from uad.networks import convolutional, unet
        from uad.preprocess.ants_images import import_ants
        import_ants()
        print([m for m in ("matplotlib", "scipy.stats", "sklearn", "skimage", "statsmodels")
               if m in sys.modules])
        import scipy.stats, ants.math
        assert ants.registration and ants.math.ilr
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
