"""Stored reconstructions scored again under variants of the protocol, without any network.

What a choice of quality map, post-processing or threshold search costs can be measured on
reconstructions that exist already. A variant goes the same way as the workflow itself (rules
``score_volumes``, ``search_threshold``, ``evaluate_volumes``) and gives the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.evaluate.metrics import average_precision, binary, check_same_shape, dice
from uad.evaluate.postprocessing import postprocess
from uad.evaluate.score import DIRECT, score_volume
from uad.evaluate.threshold import search_threshold
from uad.evaluate.volumes import predict

if TYPE_CHECKING:
    import pandas as pd

VALIDATION, TEST = "val_unhealthy", "test"


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
        parts = ("score", "quality", "postprocessing", "component_max_size", "threshold_search")
        return all(getattr(self, part) == getattr(other, part) for part in parts)


@dataclasses.dataclass(frozen=True)
class _Map:
    """The anomaly map of a volume, and what belongs to it."""

    scores: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    means: dict[str, float]

    def processed(self, options: dict[str, Any]) -> _Map:
        return dataclasses.replace(self, scores=postprocess(self.scores, self.mask, **options))


def rescore(
    reconstructions: Mapping[str, np.ndarray],
    volumes: Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]],
    variants: Sequence[Variant],
) -> pd.DataFrame:
    """Evaluate every variant on the same reconstructions.

    The threshold of a variant comes from the unhealthy validation set alone. Variants that
    share a quality map and its options share the score maps, and those that share the
    post-processing too share the processed maps. In memory at a time: of the validation set one
    score map and one processed map per volume, then one test volume.

    Args:
        reconstructions: reconstruction ``(X, Y, Z)`` by ``val_unhealthy/<subject>`` and
            ``test/<subject>``, as :func:`uad.preprocess.slices.read_volumes` reads them; for
            ``score: direct`` the anomaly scores. A mapping that reads on access will do.
        volumes: subject -> the scan as the network saw it (inverted if the method inverts),
            its brain mask and its lesion mask.
        variants: what to compare, with names that differ; the first is the baseline.

    Returns:
        One row per variant (in the given order), role (``val_unhealthy``, then ``test``) and
        subject (sorted): ``variant``, ``role``, ``subject``, ``dice``, ``auprc`` (both as
        :func:`uad.evaluate.evaluate_volume`), ``threshold``, and ``mean_normal`` and
        ``mean_anomalous``: mean raw score, before post-processing, of the healthy brain and of
        the lesion within the brain mask (as for AIR); NaN where there is none. And
        ``same_as_baseline``: whether the variant cannot give other numbers than the first.

    Raises:
        DataError: there is no validation volume or no lesion in any; a volume and its
            reconstruction do not fit each other; scores are not finite.
    """
    import pandas as pd

    keys = sorted(reconstructions)
    of_validation, of_test = (
        [k for k in keys if k.startswith(f"{r}/")] for r in (VALIDATION, TEST)
    )
    if not of_validation:
        raise DataError(
            "there is no reconstruction of an unhealthy validation volume, so no threshold can be "
            "searched."
        )

    def scored(variant: Variant, key: str) -> _Map:
        with _naming(key):
            return _score(variant, reconstructions[key], volumes(key.split("/")[1]))

    rows = []
    for alike in _grouped(variants, "score", "quality"):
        sharing = _grouped(alike, "postprocessing")
        thresholds: dict[str, float] = {}
        raws = {key: scored(alike[0], key) for key in of_validation}
        for members in sharing:
            maps = {}
            for key, raw in raws.items():
                with _naming(key):
                    maps[key] = raw.processed(members[0].postprocessing)
            pairs = [m.scores for m in maps.values()], [m.lesion for m in maps.values()]
            for searching in _grouped(members, "threshold_search"):
                method = searching[0].threshold_search
                found = search_threshold(*pairs, method=method).threshold
                thresholds |= {variant.name: found for variant in searching}
            for key, processed in maps.items():
                rows += _rows(members, key, processed, thresholds)
            del maps, pairs  # before the next are made
        del raws
        for key in of_test:
            raw = scored(alike[0], key)
            for members in sharing:
                with _naming(key):
                    processed = raw.processed(members[0].postprocessing)
                rows += _rows(members, key, processed, thresholds)
    place = {variant.name: number for number, variant in enumerate(variants)}
    rows.sort(key=lambda row: (place[row["variant"]], row["role"] == TEST, row["subject"]))
    same = {variant.name: variant.same_as(variants[0]) for variant in variants}
    frame = pd.DataFrame(rows)
    return frame.assign(same_as_baseline=frame["variant"].map(same))


def _score(
    variant: Variant,
    reconstruction: np.ndarray,
    volume: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> _Map:
    reference, mask, lesion = volume[0], binary(volume[1]), binary(volume[2])
    scores = score_volume(variant.score, reference, reconstruction, **variant.quality)
    for other in (mask, lesion):
        check_same_shape(scores, other)
    means = {}
    for name, region in (("mean_normal", mask & ~lesion), ("mean_anomalous", mask & lesion)):
        means[name] = float(scores[region].mean(dtype=np.float64)) if region.any() else np.nan
    return _Map(scores, mask, lesion, means)


def _rows(
    variants: list[Variant], key: str, processed: _Map, thresholds: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Metrics of one map for variants that differ in threshold and component filter only."""
    role, subject = key.split("/")
    auprc = average_precision(processed.scores, processed.lesion)
    dices: dict[tuple[float, int], float] = {}
    for variant in variants:
        how = thresholds[variant.name], variant.component_max_size
        if how not in dices:
            dices[how] = dice(predict(processed.scores, *how), processed.lesion)
        numbers = {"dice": dices[how], "auprc": auprc, "threshold": how[0], **processed.means}
        yield {"variant": variant.name, "role": role, "subject": subject, **numbers}


def _grouped(variants: Sequence[Variant], *parts: str) -> list[list[Variant]]:
    """Variants that are alike in these parts together, in the order of the first of each."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(repr([getattr(variant, part) for part in parts]), []).append(variant)
    return list(groups.values())


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Say whose volume it was."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key.split('/')[1]}: {error}") from error
