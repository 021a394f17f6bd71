"""Stored reconstructions scored again under variants of the protocol, without any network.

What a choice of quality map, post-processing or threshold search costs can be measured on
reconstructions that exist already. A variant goes the same way as the workflow itself (rules
``score_volumes``, ``search_threshold``, ``evaluate_volumes``) and gives the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import ConfigError, DataError
from uad.evaluate.metrics import average_precision, check_same_shape, dice
from uad.evaluate.postprocessing import postprocess
from uad.evaluate.score import DIRECT, score_volume
from uad.evaluate.threshold import search_threshold
from uad.evaluate.volumes import predict

if TYPE_CHECKING:
    import pandas as pd

VALIDATION, TEST = "val_unhealthy", "test"

#: Columns of :func:`rescore`.
COLUMNS = [
    "variant",
    "role",
    "subject",
    "dice",
    "auprc",
    "threshold",
    "mean_normal",
    "mean_anomalous",
    "same_as_baseline",
]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way from a reconstruction to a prediction; the defaults are the reference protocol.

    Attributes:
        name: how the rows of this variant are called.
        score: quality map, as in :func:`uad.evaluate.score.score_volume`.
        quality: options of the map (``alpha``, ``window``, ``clamp``).
        erosion: as in :func:`uad.evaluate.postprocess`, like ``median`` and ``order``.
        median: side of the cubic median window, odd; 0 or 1: off.
        order: ``erosion_first`` or ``median_first``.
        component_max_size: components of at most so many voxels are dropped; 0: off.
        threshold_search: ``halving`` or ``exact``.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str
    score: str
    quality: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    erosion: int = 3
    median: int = 5
    order: str = "erosion_first"
    component_max_size: int = 7
    threshold_search: str = "halving"

    def __post_init__(self) -> None:
        wrong = {
            "erosion": self.erosion < 0,
            "median": self.median < 0 or (self.median > 1 and self.median % 2 == 0),
            "order": self.order not in ("erosion_first", "median_first"),
            "component_max_size": self.component_max_size < 0,
            "threshold_search": self.threshold_search not in ("halving", "exact"),
        }
        for field, bad in wrong.items():
            if bad:
                value = getattr(self, field)
                raise ConfigError(f"variant {self.name!r}: {field} cannot be {value!r}.")

    @classmethod
    def of(
        cls,
        *,
        alpha: float,
        ssim_window: str,
        ssim_clamp: bool,
        postprocessing_order: str,
        **others: Any,
    ) -> Variant:
        """A variant by the names that ``protocol:`` and ``studies:`` use in the config."""
        quality = {"alpha": alpha, "window": ssim_window, "clamp": ssim_clamp}
        return cls(quality=quality, order=postprocessing_order, **others)

    @property
    def postprocessing(self) -> dict[str, Any]:
        """Options of :func:`uad.evaluate.postprocess`."""
        # a window of one voxel is no window
        median = 0 if self.median <= 1 else self.median
        return {"erosion": self.erosion, "median": median, "order": self.order}


def rescore(
    reconstructions: Mapping[str, np.ndarray],
    volumes: Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]],
    variants: Iterable[Variant],
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
            its brain mask and its lesion mask. Called once per test subject, and once per
            different score map for a validation subject.
        variants: what to compare, the first is the baseline; names must differ.

    Returns:
        One row per variant (in the given order), role (``val_unhealthy``, then ``test``) and
        subject (sorted): ``variant``, ``role``, ``subject``, ``dice``, ``auprc`` (both as
        :func:`uad.evaluate.evaluate_volume`), ``threshold``, and ``mean_normal`` and
        ``mean_anomalous``: mean raw score, before post-processing, of the healthy brain and of
        the lesion within the brain mask (as for AIR); NaN where there is none. And
        ``same_as_baseline``: whether the variant cannot give other numbers than the first,
        because nothing that its score, post-processing and search use differs.

    Raises:
        ConfigError: there is no variant, a name is given twice, or a quality map or one of its
            options is not known or out of range.
        DataError: a key has another role; there is no validation volume or no lesion in any; a
            volume and its reconstruction do not fit each other; scores are not finite.
    """
    import pandas as pd

    variants = list(variants)
    groups = _grouped(variants)
    validation, tested = (_of_role(reconstructions, role) for role in (VALIDATION, TEST))
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {
        (number, role): [] for number in range(len(variants)) for role in (VALIDATION, TEST)
    }
    thresholds: dict[int, float] = {}
    # the first group is those with the score map of the first variant
    scored = [number for members in groups[0] for number in members]
    same = {number for number in scored if _steps(variants[number]) == _steps(variants[0])}

    def record(role: str, subject: str, raw: _Raw, scores: np.ndarray, members: list[int]) -> None:
        auprc = average_precision(scores, raw.lesion)
        dices: dict[tuple[float, int], float] = {}
        for number in members:
            key = thresholds[number], variants[number].component_max_size
            if key not in dices:
                dices[key] = dice(predict(scores, *key), raw.lesion)
            found = {"dice": dices[key], "auprc": auprc, "threshold": key[0], **raw.means}
            row = {"variant": variants[number].name, "role": role, "subject": subject, **found}
            rows[number, role].append({**row, "same_as_baseline": number in same})

    for posts in groups:
        first = variants[posts[0][0]]
        raws = {s: _raw(first, s, reconstructions[k], volumes(s)) for s, k in validation.items()}
        for members in posts:
            maps = {s: _processed(variants[members[0]], s, raw) for s, raw in raws.items()}
            lesions = [raw.lesion for raw in raws.values()]
            found: dict[str, float] = {}
            for number in members:
                search = variants[number].threshold_search
                if search not in found:
                    result = search_threshold(list(maps.values()), lesions, method=search)
                    found[search] = result.threshold
                thresholds[number] = found[search]
            for subject, scores in maps.items():
                record(VALIDATION, subject, raws[subject], scores, members)
            del maps  # before the next are made
        del raws

    for subject, key in tested.items():
        reconstruction, volume = reconstructions[key], volumes(subject)
        for posts in groups:
            raw = _raw(variants[posts[0][0]], subject, reconstruction, volume)
            for members in posts:
                scores = _processed(variants[members[0]], subject, raw)
                record(TEST, subject, raw, scores, members)
    return pd.DataFrame([row for part in rows.values() for row in part], columns=COLUMNS)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """The score map of a volume before post-processing, and what belongs to it."""

    scores: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    means: dict[str, float]


def _raw(
    variant: Variant,
    subject: str,
    reconstruction: np.ndarray,
    volume: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> _Raw:
    reference, mask, lesion = volume[0], np.asarray(volume[1]) > 0, np.asarray(volume[2]) > 0
    with _naming(subject):
        scores = score_volume(variant.score, reference, reconstruction, **variant.quality)
        for other in (mask, lesion):
            check_same_shape(scores, other)
    means = {
        "mean_normal": _mean(scores[mask & ~lesion]),
        "mean_anomalous": _mean(scores[mask & lesion]),
    }
    return _Raw(scores, mask, lesion, means)


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def _processed(variant: Variant, subject: str, raw: _Raw) -> np.ndarray:
    with _naming(subject):
        return postprocess(raw.scores, raw.mask, **variant.postprocessing)


@contextlib.contextmanager
def _naming(subject: str) -> Iterator[None]:
    """Say whose volume it was."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{subject}: {error}") from error


def _grouped(variants: list[Variant]) -> list[list[list[int]]]:
    """Numbers of the variants, those that share a score map together, then those that share more.

    Raises:
        ConfigError: as :func:`rescore`.
    """
    if not variants:
        raise ConfigError("a study needs at least one variant.")
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two variants of the study are called {twice!r}.")
    groups: dict[str, dict[str, list[int]]] = {}
    for number, variant in enumerate(variants):
        raw, post = _score_key(variant), repr(variant.postprocessing)
        groups.setdefault(raw, {}).setdefault(post, []).append(number)
    return [list(posts.values()) for posts in groups.values()]


def _steps(variant: Variant) -> tuple[Any, ...]:
    """Equal for variants that make the same of equal score maps."""
    post = variant.postprocessing
    if not (post["erosion"] and post["median"]):
        post["order"] = None  # one step or none has no order
    return sorted(post.items()), variant.component_max_size, variant.threshold_search


def _score_key(variant: Variant) -> str:
    """Equal for variants with equal score maps."""
    from uad.iqa import options_of

    if variant.score == DIRECT:
        return DIRECT
    nothing = np.zeros((8, 8, 1), dtype=np.float32)
    try:
        score_volume(variant.score, nothing, nothing, **variant.quality)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"variant {variant.name!r}: {error}") from error
    return repr((variant.score, sorted(options_of(variant.score, variant.quality).items())))


def _of_role(reconstructions: Mapping[str, np.ndarray], role: str) -> dict[str, str]:
    """Subject -> key of the reconstructions of a role, sorted by subject."""
    for key in reconstructions:
        if key.split("/")[0] not in (VALIDATION, TEST) or key.count("/") != 1:
            raise DataError(
                f"reconstruction {key!r}: expected '{VALIDATION}/<subject>' or '{TEST}/<subject>'."
            )
    keys = sorted(key for key in reconstructions if key.startswith(f"{role}/"))
    if not keys and role == VALIDATION:
        raise DataError(
            "there is no reconstruction of an unhealthy validation volume, so no threshold can be "
            "searched."
        )
    return {key.split("/")[1]: key for key in keys}
