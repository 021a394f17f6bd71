"""Where reconstructions are good, the paper's order holds: l1 < SSIM < fusion < fusion with AIR."""

import itertools
import os
from pathlib import Path

import pytest

from tools.positive_control import STEPS, control, phantom_cases, real_cases

#: Points of AUPRC by which each step exceeds the one before it, at least, for every seed.
MARGIN = 2


def holds(auprc: dict[str, float]) -> bool:
    values = [auprc[name] for name in STEPS]
    return all(better - worse > MARGIN for worse, better in itertools.pairwise(values))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]
)
def test_the_papers_order_holds(seed):
    auprc = control(phantom_cases(seed), seed)
    assert holds(auprc), auprc
    assert auprc["healthy DSSIM"] < 0.05


def test_each_mistake_breaks_the_order():
    cases = phantom_cases(0)
    mistakes = {
        "the score is computed on the scan that was not inverted": {"invert_scan": False},
        "erosion and median are left out": {"postprocessing": {"erosion": 0, "median": 0}},
        "alpha is 0": {"quality": {"alpha": 0.0}},
    }
    for name, options in mistakes.items():
        auprc = control(cases, 0, **options)
        assert not holds(auprc), f"{name}: {auprc}"


def test_on_real_flair_lesions_fusion_with_air_is_first():
    data = Path(os.environ.get("UAD_REAL_DATA", "../shared/data"))
    if not (data / "tcga").is_dir():
        pytest.skip(f"no real scans in {data} (UAD_REAL_DATA)")
    for name, case in real_cases(data):
        if case.lesion.sum() * 0.008 < 5:  # ml; smaller ones are lost in the median filter
            continue
        auprc = control([case], 0)
        assert max(STEPS, key=auprc.__getitem__) == "fusion with AIR", f"{name}: {auprc}"
