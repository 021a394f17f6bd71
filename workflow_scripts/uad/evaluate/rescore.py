"""Stored reconstructions scored again under variants of the protocol, without any network.

A variant goes the same way as the workflow itself (rules ``score_volumes``, ``search_threshold``,
``evaluate_volumes``) and gives the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uad.core.errors import DataError
from uad.evaluate.metrics import average_precision, dice
from uad.evaluate.postprocessing import postprocess
from uad.evaluate.score import DIRECT, score_volume
from uad.evaluate.threshold import search_threshold
from uad.evaluate.volumes import predict

if TYPE_CHECKING:
    import pandas as pd


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

    @property
    def map(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """All that the post-processed anomaly map depends on."""
        return self.score, self.quality, self.postprocessing

    def same_as(self, other: Variant) -> bool:
        """Whether nothing that score, post-processing and search use differs."""
        parts = ("map", "component_max_size", "threshold_search")
        return all(getattr(self, part) == getattr(other, part) for part in parts)


class _Map(NamedTuple):
    """The post-processed anomaly map of a volume, its lesion, and means of the raw map."""

    scores: np.ndarray
    lesion: np.ndarray
    means: dict[str, float]


def rescore(
    reconstructions: Mapping[str, np.ndarray],
    volumes: Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]],
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

    validation, test = (
        sorted(key for key in reconstructions if key.startswith(f"{role}/"))
        for role in ("val_unhealthy", "test")
    )

    def map_of(variant: Variant, key: str) -> _Map:
        subject = key.split("/")[1]
        try:
            return _map(variant, reconstructions[key], *volumes(subject))
        except DataError as error:
            raise DataError(f"{subject}: {error}") from error

    rows: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    for alike in _grouped(variants):
        maps = {key: map_of(alike[0], key) for key in validation}
        thresholds = {
            method: search_threshold(
                [part.scores for part in maps.values()],
                [part.lesion for part in maps.values()],
                method=method,
            ).threshold
            for method in {variant.threshold_search for variant in alike}
        }
        for key in [*validation, *test]:
            found = maps.pop(key) if key in maps else map_of(alike[0], key)
            for row in _rows(alike, key, found, thresholds):
                rows[row["variant"]].append(row)
    frame = pd.DataFrame([row for part in rows.values() for row in part])
    same = {variant.name: variant.same_as(variants[0]) for variant in variants}
    return frame.assign(same_as_baseline=frame["variant"].map(same))


def _map(
    variant: Variant,
    reconstruction: np.ndarray,
    scan: np.ndarray,
    mask: np.ndarray,
    lesion: np.ndarray,
) -> _Map:
    raw = score_volume(variant.score, scan, reconstruction, **variant.quality)
    means = {}
    for name, region in (("mean_normal", mask & ~lesion), ("mean_anomalous", mask & lesion)):
        means[name] = float(raw[region].mean(dtype=np.float64)) if region.any() else np.nan
    return _Map(postprocess(raw, mask, **variant.postprocessing), lesion, means)


def _rows(
    variants: list[Variant], key: str, found: _Map, thresholds: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Metrics of one map for variants that differ in threshold and component filter only."""
    role, subject = key.split("/")
    auprc = average_precision(found.scores, found.lesion)
    for variant in variants:
        threshold = thresholds[variant.threshold_search]
        prediction = predict(found.scores, threshold, variant.component_max_size)
        yield {
            "variant": variant.name,
            "role": role,
            "subject": subject,
            "dice": dice(prediction, found.lesion),
            "auprc": auprc,
            "threshold": threshold,
            **found.means,
        }


def _grouped(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Variants that share their maps together."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(repr(variant.map), []).append(variant)
    return list(groups.values())
