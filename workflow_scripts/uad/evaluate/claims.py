"""Are the claims of a table more than chance: paired tests of one method against another.

The paper states p < 0.05 for Table I and for FLAIR in Table II, "significantly" without a p for
Table IV, nothing for Table III, and names neither its test nor its unit. Its line of work (cDDPM,
arXiv 2312.04215) used a permutation test with 10,000 rounds, which is what is done here, for both
units that may have been meant:

- ``volumes``: the difference on a test volume, averaged over the folds in which both methods have
  a value of it, one pair per volume. Says whether the difference would be found again in other
  patients of the kind, given these trained models.
- ``folds``: the mean over the test volumes of a fold (what the table's mean and deviation are
  made of), one pair per fold. Says whether it would be found again with other trainings; five
  folds cannot give a p below 0.0625, whatever the difference.

Folds share volumes and training data, so neither is a test of wholly independent samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.columns import SIGNIFICANCE
from uad.core.errors import ConfigError, DataError
from uad.core.seeds import derive_seed
from uad.evaluate.significance import bootstrap_interval, paired_permutation

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("dice", "auprc")
UNITS = ("volumes", "folds")
KEYS = ["experiment", "method", "fold", "test_dataset", "subject"]

#: One claim is one of a family of claims on the same numbers.
FAMILY = ["experiment", "test_dataset", "metric", "unit"]


def test_claims(
    metrics: pd.DataFrame,
    claims: Sequence[tuple[str, str]],
    *,
    seed: int,
    n_resamples: int = 10_000,
) -> pd.DataFrame:
    """Test every claim "row is better than against" on every test set that has both methods.

    The p value is two-sided, of :func:`uad.evaluate.paired_permutation`; the confidence
    interval (95 %) of the mean difference is of :func:`uad.evaluate.bootstrap_interval`.
    Each test has its own seed, derived from ``seed`` and what it is about: results do not
    depend on what else is tested, or in which order.

    Args:
        metrics: per-volume metrics of all cells, with the columns experiment, method, fold,
            test_dataset, subject, dice and auprc (in [0, 1], NaN where undefined).
        claims: pairs of methods (row, against).
        seed: master seed.
        n_resamples: random exchanges and bootstrap resamples, at least 1; exchanges are
            enumerated where there are not more (up to 13 pairs for 10,000).

    Returns:
        A frame with :data:`uad.core.columns.SIGNIFICANCE`, a row per claim, test set, metric
        and unit, in the order of the claims, test sets sorted: ``n`` pairs with a value on both
        sides (if none, the rest is NaN); ``difference``, ``ci_low``, ``ci_high`` of row minus
        against in percentage points (limits NaN for a single pair, and over folds: a bootstrap
        of five values means little); ``effect_size``, Cohen's d_z (NaN where all differences
        are equal); ``p_value`` and ``smallest_p``, the least that so many pairs can give;
        ``p_holm``, corrected for all claims on the same test set, metric and unit.

    Raises:
        ConfigError: a claim is given twice, or names a method against itself.
        DataError: a column is missing, a volume is listed twice, the two methods have no fold
            in common, or were tested on different volumes of a fold.
    """
    import pandas as pd

    _check(metrics, claims)
    sets = dict(iter(metrics.groupby(["experiment", "test_dataset"])))
    records = []
    for row, against in claims:
        for (experiment, dataset), part in sorted(sets.items()):
            if not {row, against} <= set(part["method"]):
                continue
            first, second = (part[part["method"] == method] for method in (row, against))
            where = f"{row} and {against} on {experiment}/{dataset}"
            first, second = _common_folds(first, second, where)
            about = {
                "row": row,
                "against": against,
                "experiment": experiment,
                "test_dataset": dataset,
            }
            for metric in METRICS:
                for unit in UNITS:
                    name = {**about, "metric": metric, "unit": unit}
                    difference = _differences(first, second, metric, unit)
                    records.append({**name, **_test(difference, name, seed, n_resamples)})
    found = pd.DataFrame(records, columns=SIGNIFICANCE)
    for _, family in found.groupby(FAMILY):
        found.loc[family.index, "p_holm"] = holm(family["p_value"].to_numpy(np.float64))
    return found


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: p values of one family, in [0, 1]; NaN is not counted and stays.

    Returns:
        Adjusted p values in the given order: rejecting those at most alpha keeps the chance of
        any false rejection in the family at alpha.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(p_values, np.nan)
    given = np.flatnonzero(~np.isnan(p_values))
    order = given[np.argsort(p_values[given], kind="stable")]
    steps = p_values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def smallest_p(n: int, n_resamples: int) -> float:
    """The least two-sided p value of a sign-flip test of ``n`` pairs; NaN without a pair."""
    if n == 0:
        return float("nan")
    # as scipy: exact where there are no more exchanges than resamples
    return 2 / 2**n if 2**n <= n_resamples else 2 / (n_resamples + 1)


def _differences(first: pd.DataFrame, second: pd.DataFrame, metric: str, unit: str) -> np.ndarray:
    """One difference per volume or fold, those without a value on both sides left out."""
    a, b = (side.set_index(["fold", "subject"])[metric] for side in (first, second))
    if unit == "volumes":
        difference = (a - b).groupby(level="subject").mean()
    else:  # as the table: the means of each side
        difference = a.groupby(level="fold").mean() - b.groupby(level="fold").mean()
    return difference.dropna().to_numpy(np.float64)


def _test(
    difference: np.ndarray, name: dict[str, str], seed: int, n_resamples: int
) -> dict[str, Any]:
    n = int(difference.size)
    if n == 0:
        return {"n": 0}
    place = [name[key] for key in ("experiment", "test_dataset", "metric", "unit")]
    # the claim the other way round draws the same exchanges, and so has the same p
    pair = sorted((name["row"], name["against"]))
    permutation = paired_permutation(
        difference,
        np.zeros(n),
        n_resamples,
        seed=derive_seed(seed, "permutation", *pair, *place),
    )
    low = high = float("nan")
    if name["unit"] == "volumes":
        own = derive_seed(seed, "bootstrap", *pair, *place)
        interval = bootstrap_interval(difference, own, n_resamples=n_resamples)
        low, high = interval.low, interval.high
    return {
        "n": n,
        "difference": 100 * permutation.effect,
        "ci_low": 100 * low,
        "ci_high": 100 * high,
        "effect_size": _effect_size(difference),
        "p_value": permutation.p_value,
        "smallest_p": smallest_p(n, n_resamples),
    }


def _effect_size(difference: np.ndarray) -> float:
    if difference.size < 2:
        return float("nan")
    deviation = float(difference.std(ddof=1))
    # metrics are in [0, 1]: less is rounding
    return float(difference.mean()) / deviation if deviation > 1e-12 else float("nan")


def _common_folds(
    first: pd.DataFrame, second: pd.DataFrame, where: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of both methods in the folds that both have."""
    folds = sorted(set(first["fold"]) & set(second["fold"]))
    if not folds:
        raise DataError(f"{where}: no fold in common, so nothing is paired.")
    for fold in folds:
        volumes, others = (
            set(side.loc[side["fold"] == fold, "subject"]) for side in (first, second)
        )
        if volumes != others:
            raise DataError(
                f"{where}: tested on different volumes of fold {fold} (for example "
                f"{min(volumes ^ others)}). Evaluate both again with the same splits."
            )
    return first[first["fold"].isin(folds)], second[second["fold"].isin(folds)]


def _check(metrics: pd.DataFrame, claims: Sequence[tuple[str, str]]) -> None:
    missing = [column for column in [*KEYS, *METRICS] if column not in metrics.columns]
    if missing:
        raise DataError(f"metrics: the columns {', '.join(missing)} are missing.")
    twice = metrics.duplicated(KEYS)
    if twice.any():
        listed = "/".join(str(value) for value in metrics.loc[twice, KEYS].iloc[0])
        raise DataError(f"metrics: {listed} is listed twice.")
    seen = set()
    for row, against in claims:
        if row == against:
            raise ConfigError(f"claim: {row!r} is compared with itself.")
        if (row, against) in seen:
            raise ConfigError(f"claim: {row!r} against {against!r} is listed twice.")
        seen.add((row, against))
