"""From anomaly maps to numbers: post-processing, threshold search, metrics, significance.

NumPy and SciPy only. Volumes are arrays in NIfTI order (x, y, z), axial slices on the
last axis.
"""

from uad.evaluation.metrics import average_precision, dice
from uad.evaluation.postprocessing import postprocess, remove_small_components
from uad.evaluation.significance import (
    Interval,
    PermutationResult,
    bootstrap_interval,
    paired_permutation,
)
from uad.evaluation.threshold import ThresholdResult, search_threshold

__all__ = [
    "Interval",
    "PermutationResult",
    "ThresholdResult",
    "average_precision",
    "bootstrap_interval",
    "dice",
    "paired_permutation",
    "postprocess",
    "remove_small_components",
    "search_threshold",
]
