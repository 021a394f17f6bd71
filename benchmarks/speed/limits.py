"""What has to hold, and whether it does."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A bound on one number of the results.

    Attributes:
        text: what must hold, in words.
        path: keys that lead to the number within the figures.
        at_least: the number must not be smaller than ``bound``, otherwise not larger.
        bound: in the unit of the number.
    """

    text: str
    path: tuple[str, ...]
    at_least: bool
    bound: float


LIMITS = {
    "cpu": (
        Limit(
            "training loop beyond forward and backward: at most 5 % of them",
            ("training_loop", "overhead"),
            False,
            0.05,
        ),
        Limit(
            "data and noise of a batch: at least 20 times as fast",
            ("data_and_noise", "ratio", "median"),
            True,
            20,
        ),
        Limit(
            "the same with compiled reference noise",
            ("data_and_noise", "ratio_with_compiled_noise", "median"),
            True,
            20,
        ),
        Limit(
            "scoring and metrics per core: at least 5 times as fast",
            ("evaluation", "ratio", "median"),
            True,
            5,
        ),
        Limit(
            "threshold, Dice and AUPRC of a map: equal to 1e-6",
            ("evaluation", "largest_difference"),
            False,
            1e-6,
        ),
        Limit(
            "imports of a table script: at most 1.5 s",
            ("imports", "make_table_s", "median"),
            False,
            1.5,
        ),
    ),
    "gpu": (
        Limit(
            "training step: at least 45 % of the matmul ceiling",
            ("training_step", "fraction_of_ceiling"),
            True,
            0.45,
        ),
        Limit(
            "training step: at least 5 times as fast",
            ("training_step", "ratio"),
            True,
            5,
        ),
        Limit(
            "a fold of 19,200 steps: at most 15 minutes",
            ("training_step", "minutes_of_fold"),
            False,
            15,
        ),
        Limit(
            "reconstruction and scoring of 1151 volumes: at most 5 minutes",
            ("volumes", "minutes"),
            False,
            5,
        ),
        Limit(
            "fusion-quality loss: at most 5 % of the step",
            ("fusion_loss", "share_of_step"),
            False,
            0.05,
        ),
    ),
}


def check(figures: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Every limit: its text, value and bound, and whether it holds; None where not measured."""
    found = []
    for limit in LIMITS[kind]:
        try:
            value = reduce(operator.getitem, limit.path, figures)
        except (KeyError, TypeError):
            value = None
        holds = None
        if value is not None:
            holds = bool(value >= limit.bound if limit.at_least else value <= limit.bound)
        found.append(
            {
                "text": limit.text,
                "value": value,
                "limit": limit.bound,
                "at_least": limit.at_least,
                "holds": holds,
            }
        )
    return found
