"""Stored reconstructions scored again under variants of the protocol, without any network.

A variant goes the same way as the workflow itself (rules ``score_volumes``, ``search_threshold``,
``evaluate_volumes``) and gives the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.evaluate.metrics import average_precision, dice
from uad.evaluate.postprocessing import postprocess
from uad.evaluate.score import DIRECT, score_volume
from uad.evaluate.threshold import search_threshold
from uad.evaluate.volumes import predict

if TYPE_CHECKING:
    import pandas as pd

Volumes = Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way from a reconstruction to a prediction; the defaults are the reference protocol.

    ``score`` is as in :func:`uad.evaluate.score.score_volume`; the other fields are those of
    ``protocol:`` and ``studies:`` in the config, which checks them.
    """

    name: str
    score: str
    alpha: float = 0.84
    ssim_window: str = "gaussian"
    ssim_clamp: bool = True
    postprocessing_order: str = "erosion_first"
    erosion: int = 3
    median: int = 5
    component_max_size: int = 7
    threshold_search: str = "halving"

    @property
    def quality(self) -> dict[str, Any]:
        """Those options of the quality map that it takes."""
        from uad.iqa import options_of

        options = {"alpha": self.alpha, "window": self.ssim_window, "clamp": self.ssim_clamp}
        return {} if self.score == DIRECT else options_of(self.score, options)

    @property
    def postprocessing(self) -> dict[str, Any]:
        """Options of :func:`uad.evaluate.postprocess`; one step, or none, has no order."""
        median = 0 if self.median <= 1 else self.median  # a window of one voxel is no window
        order = self.postprocessing_order if self.erosion and median else "erosion_first"
        return {"erosion": self.erosion, "median": median, "order": order}

    def same_as(self, other: Variant) -> bool:
        """Whether nothing that score, post-processing and search use differs."""
        used = "score quality postprocessing component_max_size threshold_search".split()
        return all(getattr(self, part) == getattr(other, part) for part in used)


def rescore(
    reconstructions: Mapping[str, np.ndarray],
    volumes: Volumes,
    variants: Sequence[Variant],
) -> pd.DataFrame:
    """Evaluate every variant on the same reconstructions, its threshold from validation alone.

    ``reconstructions`` are ``(X, Y, Z)``, by ``val_unhealthy/<subject>`` and ``test/<subject>``;
    ``volumes`` gives a subject's scan as the network saw it, its brain and its lesion (bool). The
    first variant is the baseline; names differ. In memory at a time: the maps of the validation
    set, then one of a test volume.

    Returns:
        One row per variant (in the given order), role (``val_unhealthy``, then ``test``) and
        subject (sorted): ``variant``, ``role``, ``subject``, ``dice``, ``auprc`` (both as
        :func:`uad.evaluate.evaluate_volume`), ``threshold``; ``mean_normal``, ``mean_anomalous``:
        mean score, before post-processing, of the healthy brain and of the lesion within it, NaN
        where there is none; ``same_as_baseline``: it cannot give other numbers than the first.

    Raises:
        DataError: there is no lesion in any validation volume; a volume and its reconstruction
            do not fit each other; scores are not finite.
    """
    import pandas as pd

    rows = [
        {"variant": variant.name, **row, "same_as_baseline": variant.same_as(variants[0])}
        for variant in variants
        for row in _rows(reconstructions, volumes, variant)
    ]
    return pd.DataFrame(rows)


def _rows(
    reconstructions: Mapping[str, np.ndarray], volumes: Volumes, variant: Variant
) -> Iterator[dict[str, Any]]:
    """The metrics of one variant, volume by volume."""
    validation, test = (
        sorted(key for key in reconstructions if key.startswith(f"{role}/"))
        for role in ("val_unhealthy", "test")
    )

    def scored(key: str) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The post-processed map of a volume, its lesion, and means of the raw map."""
        subject = key.split("/")[1]
        scan, brain, lesion = volumes(subject)
        try:
            raw = score_volume(variant.score, scan, reconstructions[key], **variant.quality)
            scores = postprocess(raw, brain, **variant.postprocessing)
        except DataError as error:
            raise DataError(f"{subject}: {error}") from error
        regions = {"mean_normal": brain & ~lesion, "mean_anomalous": brain & lesion}
        means = {
            name: float(raw[region].mean(dtype=np.float64)) if region.any() else np.nan
            for name, region in regions.items()
        }
        return scores, lesion, means

    maps = {key: scored(key) for key in validation}
    known, lesions = ([part[i] for part in maps.values()] for i in (0, 1))
    threshold = search_threshold(known, lesions, method=variant.threshold_search).threshold
    for key in [*validation, *test]:
        scores, lesion, means = maps.pop(key) if key in maps else scored(key)
        role, subject = key.split("/")
        yield {
            "role": role,
            "subject": subject,
            "dice": dice(predict(scores, threshold, variant.component_max_size), lesion),
            "auprc": average_precision(scores, lesion),
            "threshold": threshold,
            **means,
        }
