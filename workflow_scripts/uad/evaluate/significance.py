"""Is the difference between two methods more than chance, and how sure is a mean."""

from __future__ import annotations

import dataclasses

import numpy as np

from uad.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class PermutationResult:
    """What :func:`paired_permutation` found.

    Attributes:
        p_value: two-sided, in (0, 1].
        effect: mean of ``a - b``, in the unit of the values.
        pairs: number of pairs that were compared.
    """

    p_value: float
    effect: float
    pairs: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """What :func:`bootstrap_interval` found.

    Attributes:
        mean: mean of the values.
        low: lower limit of the interval of the mean.
        high: upper limit of it.
        level: confidence level.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    level: float
    count: int


def paired_permutation(
    a: np.ndarray, b: np.ndarray, n_resamples: int = 10_000, seed: int = 0
) -> PermutationResult:
    """Paired permutation test of the mean difference of two methods on the same volumes.

    The paper does not name its test; its predecessor (cDDPM, arXiv 2312.04215) used a
    permutation test with 10,000 rounds. With few pairs all exchanges are enumerated and the
    p value is exact.

    Args:
        a: one value per volume, for example Dice.
        b: the values of the other method, same volumes in the same order.
        n_resamples: number of random exchanges, at least 1.
        seed: seed of the exchanges.

    Returns:
        The result over the pairs in which neither value is NaN. One pair gives a p value of 1.

    Raises:
        DataError: the lengths differ, or no pair is left.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(
            f"a paired test needs one value per volume of both methods, got shapes {a.shape} "
            f"and {b.shape}. Both methods must be evaluated on the same test set."
        )
    difference = a - b
    difference = difference[~np.isnan(difference)]
    if difference.size == 0:
        raise DataError("a paired test needs at least one volume that both methods have a value of")
    effect = float(difference.mean())
    if difference.size == 1:
        return PermutationResult(1.0, effect, 1)
    from scipy import stats  # slow to import, and only reports need it

    # exchanging the members of a pair flips the sign of its difference
    # scipy counts the possible exchanges, 2 ** pairs, as a float; infinitely many is fine
    with np.errstate(over="ignore"):
        result = stats.permutation_test(
            (difference, np.zeros_like(difference)),
            lambda first, second, axis: np.mean(first - second, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=n_resamples,
            batch=1000,
            random_state=np.random.default_rng(seed),
        )
    return PermutationResult(float(result.pvalue), effect, int(difference.size))


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, *, level: float = 0.95, n_resamples: int = 10_000
) -> Interval:
    """Confidence interval of a mean by the bias-corrected and accelerated bootstrap.

    Args:
        values: one value per volume; NaN is left out.
        seed: seed of the resampling.
        level: confidence level, in (0, 1).
        n_resamples: number of resamples.

    Returns:
        The interval; with a single value its limits are NaN, with values that are
        equal but for rounding they are their mean.

    Raises:
        DataError: no value is left.
        ValueError: ``level`` is outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise DataError("a confidence interval needs at least one value")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, float("nan"), float("nan"), level, 1)
    # differences of metrics (or of percents) that are closer than this differ by rounding
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return Interval(mean, mean, mean, level, int(values.size))
    from scipy import stats  # slow to import, and only reports need it

    result = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=n_resamples,
        batch=1000,
        method="BCa",
        random_state=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high), level, int(values.size))
