"""From anomaly maps to numbers: post-processing, threshold search, metrics, significance.

NumPy and SciPy only; pandas is imported by the functions that return a frame, torch by those
that score reconstructions. Volumes are arrays in NIfTI order (x, y, z), axial slices on the
last axis.
"""

from uad.evaluate.claims import test_claims
from uad.evaluate.metrics import average_precision, dice
from uad.evaluate.postprocessing import postprocess, remove_small_components
from uad.evaluate.rescore import Variant, rescore
from uad.evaluate.significance import (
    Interval,
    PermutationResult,
    bootstrap_interval,
    paired_permutation,
)
from uad.evaluate.threshold import ThresholdResult, search_threshold
from uad.evaluate.volumes import evaluate_volume, predict, threshold_curve

__all__ = [
    "Interval",
    "PermutationResult",
    "ThresholdResult",
    "Variant",
    "average_precision",
    "bootstrap_interval",
    "dice",
    "evaluate_volume",
    "paired_permutation",
    "postprocess",
    "predict",
    "remove_small_components",
    "rescore",
    "search_threshold",
    "test_claims",
    "threshold_curve",
]
