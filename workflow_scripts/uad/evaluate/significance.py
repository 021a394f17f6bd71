"""Are the claims of a table more than chance: paired tests of one method against another.

The paper states p < 0.05 for Table I and for FLAIR in Table II, "significantly" without a p for
Table IV, nothing for Table III, and names neither its test nor its unit. Its line of work (cDDPM,
arXiv 2312.04215) used a permutation test with 10,000 rounds, which is what is done here, for both
units that may have been meant:

- ``volumes``: the difference on a test volume, averaged over the folds in which both methods have
  a value of it: would it be found again in other patients, given these trained models?
- ``folds``: the mean over the test volumes of a fold, of which the table's mean and deviation are
  made: would it be found again with other trainings? Five folds cannot give a p below 0.0625.

Folds share volumes and training data, so neither is a test of wholly independent samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uad.core.columns import SIGNIFICANCE
from uad.core.errors import ConfigError, DataError
from uad.core.seeds import derive_seed

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("dice", "auprc")
UNITS = ("volumes", "folds")

#: One claim is one of a family of claims on the same numbers.
FAMILY = ["experiment", "test_dataset", "metric", "unit"]


class Interval(NamedTuple):
    """A mean and the limits of its confidence interval."""

    mean: float
    low: float
    high: float


def test_claims(
    metrics: pd.DataFrame,
    claims: Sequence[tuple[str, str]],
    *,
    seed: int,
    n_resamples: int = 10_000,
) -> pd.DataFrame:
    """Test every claim "row is better than against" on every test set that has both methods.

    ``metrics`` has a row per cell and volume, in [0, 1], NaN where undefined. Each test has a seed
    of its own, derived from ``seed`` and what it is about: results do not depend on what else is
    tested, or in which order.

    Returns:
        A frame with :data:`uad.core.columns.SIGNIFICANCE`, a row per claim, test set, metric
        and unit, in the order of the claims, test sets sorted: ``n`` pairs with a value on both
        sides (if none, the rest is NaN); ``difference``, ``ci_low``, ``ci_high`` (95 %) of row
        minus against in percentage points (limits NaN for a single pair, and over folds: a
        bootstrap of five values means little); ``effect_size``, Cohen's d_z (NaN where all
        differences are equal); ``p_value``, two-sided, and ``smallest_p``, the least that so many
        pairs can give; ``p_holm``, corrected for all claims on the same test set, metric and unit.

    Raises:
        ConfigError: a claim is given twice, or names a method against itself.
    """
    import pandas as pd

    for row, against in claims:
        if row == against:
            raise ConfigError(f"claim: {row!r} is compared with itself.")
        if sum((row, against) == tuple(claim) for claim in claims) > 1:
            raise ConfigError(f"claim: {row!r} against {against!r} is listed twice.")
    sets = dict(iter(metrics.groupby(["experiment", "test_dataset"])))
    records = []
    for (row, against), (place, part) in itertools.product(claims, sorted(sets.items())):
        if not {row, against} <= set(part["method"]):
            continue
        sides = [
            part[part["method"] == method].set_index(["fold", "subject"])
            for method in (row, against)
        ]
        about = {"row": row, "against": against, **dict(zip(FAMILY, place, strict=False))}
        for metric, unit in itertools.product(METRICS, UNITS):
            name = {**about, "metric": metric, "unit": unit}
            difference = _differences(*(side[metric] for side in sides), unit)
            records.append({**name, **_test(difference, name, seed, n_resamples)})
    found = pd.DataFrame(records, columns=SIGNIFICANCE)
    for _, family in found.groupby(FAMILY):
        found.loc[family.index, "p_holm"] = holm(family["p_value"].to_numpy(np.float64))
    return found


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979); NaN is not counted
    and stays.
    """
    adjusted = np.full_like(p_values, np.nan)
    given = np.flatnonzero(~np.isnan(p_values))
    order = given[np.argsort(p_values[given], kind="stable")]
    steps = p_values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def smallest_p(n: int, n_resamples: int) -> float:
    """The least two-sided p value of a sign-flip test of ``n`` pairs."""
    # as scipy: exact where there are no more exchanges than resamples
    return 2 / 2**n if 2**n <= n_resamples else 2 / (n_resamples + 1)


def paired_permutation(difference: np.ndarray, n_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p value of a paired permutation test: is the mean difference other than zero?

    With few pairs (up to 13 for 10,000 resamples) all exchanges are enumerated. One pair gives 1.
    """
    if difference.size == 1:
        return 1.0
    from scipy import stats  # slow to import, and only reports need it

    # scipy counts the possible exchanges, 2 ** pairs, as a float; infinitely many is fine
    with np.errstate(over="ignore"):
        result = stats.permutation_test(
            (difference, np.zeros_like(difference)),
            lambda first, second, axis: np.mean(first - second, axis=axis),
            permutation_type="samples",
            n_resamples=n_resamples,
            batch=1000,
            random_state=np.random.default_rng(seed),
        )
    return float(result.pvalue)


def bootstrap_interval(values: np.ndarray, seed: int = 0, *, n_resamples: int = 10_000) -> Interval:
    """95 % confidence interval of a mean by the bias-corrected and accelerated bootstrap.

    NaN is left out. With a single value the limits are NaN, with values that are equal but for
    rounding they are their mean.

    Raises:
        DataError: no value is left.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise DataError("a confidence interval needs at least one value")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, float("nan"), float("nan"))
    # differences of metrics (or of percents) that are closer than this differ by rounding
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return Interval(mean, mean, mean)
    from scipy import stats

    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=n_resamples,
        batch=1000,
        random_state=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high))


def _differences(first: pd.Series, second: pd.Series, unit: str) -> np.ndarray:
    """One difference per volume or fold, those without a value on both sides left out."""
    if unit == "volumes":  # averaged over the folds that have both
        difference = (first - second).groupby(level="subject").mean()
    else:  # as the table: the means of each side
        means = [side.groupby(level="fold").mean() for side in (first, second)]
        difference = means[0] - means[1]
    return difference.dropna().to_numpy(np.float64)


def _test(
    difference: np.ndarray, name: dict[str, str], seed: int, n_resamples: int
) -> dict[str, Any]:
    n = int(difference.size)
    if n == 0:
        return {"n": 0}
    # the claim the other way round draws the same exchanges, and so has the same p
    place = [*sorted((name["row"], name["against"])), *(name[key] for key in FAMILY)]
    own = derive_seed(seed, "permutation", *place)
    low = high = float("nan")
    if name["unit"] == "volumes":
        _, low, high = bootstrap_interval(
            difference, derive_seed(seed, "bootstrap", *place), n_resamples=n_resamples
        )
    mean = float(difference.mean())
    deviation = float(difference.std(ddof=1)) if n > 1 else 0.0
    return {
        "n": n,
        "difference": 100 * mean,
        "ci_low": 100 * low,
        "ci_high": 100 * high,
        # metrics are in [0, 1]: less is rounding
        "effect_size": mean / deviation if deviation > 1e-12 else float("nan"),
        "p_value": paired_permutation(difference, n_resamples, own),
        "smallest_p": smallest_p(n, n_resamples),
    }
