"""What a finished run on the phantom must show, whatever its numbers are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from uad.config import Config
from uad.core.files import read_json, read_tsv
from uad.core.paths import Tree

#: Smallest fall of the healthy validation loss that counts as having learnt.
LEAST_FALL = 0.3
#: Smallest AUPRC, as a multiple of the lesion prevalence, that counts as detecting anything.
LEAST_GAIN = 3.0
#: What Eq. 13 decides on the phantom, whose contrasts follow real scans.
INVERTED = {"T2": False, "FLAIR": True, "T1CE": True}


def _falls(root: Path) -> pd.Series:
    """How far the healthy validation loss fell in each training (0 to 1)."""
    falls = {}
    for path in sorted(root.glob("models/*/*/*/history.csv")):
        loss = pd.read_csv(path)["val_loss"].dropna()
        falls["/".join(path.parts[-4:-1])] = 1 - loss.min() / loss.iloc[0]
    return pd.Series(falls)


def _gains(root: Path) -> pd.Series:
    """Mean AUPRC as a multiple of the mean prevalence, by test set and method."""
    rows = []
    for path in sorted(root.glob("metrics/*/*/*/*.tsv")):
        table, (experiment, method) = read_tsv(path), path.parts[-4:-2]
        gain = table["auprc"].mean() / table["prevalence"].mean()
        rows.append((f"{experiment}/{path.stem}", method, gain))
    table = pd.DataFrame(rows, columns=["test", "method", "gain"])
    return table.groupby(["test", "method"])["gain"].mean()


def check_phantom_run(config: Config) -> list[tuple[bool, str]]:
    """Whether all methods learnt, lesions are detected at all, and AIR decided as on real scans.

    Returns:
        (passed, sentence) for each check.
    """
    tree = Tree(config.results)
    falls, gains = _falls(Path(tree.root)), _gains(Path(tree.root))
    fall, best = falls.min(), gains[gains.groupby("test").idxmax()]
    least = best.min()
    checks = [
        (
            bool(fall >= LEAST_FALL),
            f"healthy validation loss fell by {fall:.0%} or more in all {len(falls)} "
            f"trainings (least: {falls.idxmin()}; at least {LEAST_FALL:.0%} expected)",
        ),
        (
            bool(least >= LEAST_GAIN),
            f"the best method's AUPRC is {least:.1f} times the lesion prevalence or more "
            f"on every test set (least: {', '.join(best.idxmin())}; at least "
            f"{LEAST_GAIN:.0f} expected)",
        ),
    ]
    for experiment in config.air_experiments_of_run():
        expected = INVERTED.get(config.experiments[experiment].modality)
        for fold in config.folds_of(experiment):
            record = read_json(tree.air(experiment, fold))
            if expected is not None and record["paper_rule_invert"] != expected:
                verb = "inverted" if expected else "kept"
                checks.append((False, f"{experiment} fold {fold} should be {verb} by Eq. 13"))
    return checks
