"""From anomaly maps to numbers: scores, post-processing, threshold search, metrics, significance.

Volumes are arrays in NIfTI order (x, y, z), axial slices on the last axis. A name is imported when
it is first used, because scripts that need a score need no SciPy.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "average_precision": "metrics",
    "bootstrap_interval": "significance",
    "cell_of": "volumes",
    "described_columns": "volumes",
    "dice": "metrics",
    "evaluate_volume": "volumes",
    "postprocess": "postprocessing",
    "predict": "volumes",
    "remove_small_components": "postprocessing",
    "search_threshold": "threshold",
    "test_claims": "significance",
    "threshold_curve": "volumes",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
