"""Average intensity ratio (AIR) between lesion and healthy tissue, Eqs. 12 to 19 of the paper.

Region means of a validation set, what they say about inverting it, and the inversion itself.
Intensities are scaled to [0, 1].
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.core.files import read_json

if TYPE_CHECKING:
    from uad.preprocess.slices import Volumes

#: A mean above this value is inverted (Eq. 13, and the second and third prior).
MIDDLE = 0.5

#: Distance that means keep from 0 and 1, so that the AIR exists before and after inversion.
MARGIN = 1e-6

#: ``air`` of a method -> the field of an AIR record that decides.
DECISIONS = {True: "invert", "paper": "paper_rule_invert", "maximising": "maximising_invert"}

#: Modalities whose healthy mean the paper expects above 0.5 (second prior; T1 since the
#: later version of the paper), and those whose lesion mean it expects below 0.5 (third prior).
BRIGHT_MODALITIES, DARK_MODALITIES = ("T1", "FLAIR", "T1CE"), ("T2",)


def average_intensity_ratio(mean_anomalous: Any, mean_normal: Any) -> Any:
    """AIR of Eq. 12: the larger of the two region means divided by the smaller, at least 1.

    The means are numbers, arrays or tensors that broadcast; two numbers give a float.

    Raises:
        ValueError: a mean is zero, negative or NaN (the ratio would have no meaning).
    """
    means, library = (mean_anomalous, mean_normal), np
    torch = sys.modules.get("torch")
    if torch and any(isinstance(mean, torch.Tensor) for mean in means):
        means, library = tuple(map(torch.as_tensor, means)), torch
    low, high = library.minimum(*means), library.maximum(*means)
    if not bool((low > 0).all()):  # this form refuses NaN too
        raise ValueError(
            "the average intensity ratio needs positive means, got "
            f"mean_anomalous={mean_anomalous}, mean_normal={mean_normal}"
        )
    ratio = high / low
    return float(ratio) if isinstance(ratio, np.generic) else ratio


def paper_rule(mean_normal: float) -> bool:
    """Whether Eq. 13 inverts: the healthy mean of the unhealthy validation set is above 0.5."""
    return mean_normal > MIDDLE


def maximising_rule(mean_anomalous: float, mean_normal: float) -> bool:
    """Whether inverting the foreground raises the AIR; a tie keeps the image as it is.

    It agrees with :func:`paper_rule` wherever the paper's priors hold (Eq. 16).

    Raises:
        ValueError: a mean is not strictly between 0 and 1.
    """
    inverted = average_intensity_ratio(1.0 - mean_anomalous, 1.0 - mean_normal)
    return inverted > average_intensity_ratio(mean_anomalous, mean_normal)


def stored_decision(path: str | Sequence[str], air: bool | str) -> bool:
    """Whether a method's scans are inverted, by its ``air``: false (never), true (as the AIR record
    decides, by ``protocol.air_rule``), ``paper`` or ``maximising`` (that rule). A method that never
    inverts has no record.
    """
    return bool(air) and bool(read_json(path)[DECISIONS[air]])


def invert_foreground(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The inversion of Eq. 13: ``1 - x`` where ``mask`` is non-zero, ``x`` elsewhere."""
    return np.where(mask, 1 - x, x)


def violated_priors(modality: str, mean_anomalous: float, mean_normal: float) -> list[str]:
    """Which of the paper's priors (Section III-C) the measured means do not obey, a sentence each.

    The proof that the transform cannot lower the AIR (Eq. 16) holds only under them. For a
    modality that the paper does not have only the first prior is checked.
    """
    anomalous, normal = mean_anomalous, mean_normal
    violated = []
    if not 0.0 < normal < anomalous < 1.0:
        violated.append(
            f"{modality}: the healthy mean should be above 0 and below the lesion mean, which "
            f"should be below 1; measured are {normal:.3f} (healthy) and {anomalous:.3f} (lesion)."
        )
    if modality in BRIGHT_MODALITIES and not normal > MIDDLE:
        violated.append(
            f"{modality}: the healthy mean should be above {MIDDLE}; measured is {normal:.3f}."
        )
    if modality in DARK_MODALITIES and not anomalous < MIDDLE:
        violated.append(
            f"{modality}: the lesion mean should be below {MIDDLE}; measured is {anomalous:.3f}."
        )
    return violated


def region_means(volumes: Volumes) -> tuple[float, float, int]:
    """Mean intensity of lesions and of the healthy brain, per volume, then over the volumes with
    a lesion; and how many these are.

    Raises:
        DataError: no volume has a lesion inside the brain.
    """
    anomalous, normal = [], []
    for volume, mask, lesion in zip(volumes.volumes, volumes.masks, volumes.lesions, strict=True):
        if (lesion & mask).any():
            # spline resampling overshoots [0, 1], where ratios of 1 - x lose their meaning
            scaled = volume.clip(MARGIN, 1 - MARGIN)
            anomalous.append(float(scaled[lesion & mask].mean()))
            normal.append(float(scaled[mask & ~lesion].mean()))
    if not anomalous:
        raise DataError(
            f"none of the {len(volumes.subjects)} unhealthy validation volumes "
            f"({', '.join(volumes.subjects[:5])}) has a lesion: AIR and threshold cannot be "
            "determined. Check their lesion masks."
        )
    count = len(anomalous)
    return sum(anomalous) / count, sum(normal) / count, count


def air_statistics(
    volumes: Mapping[str, Volumes], modality: str, reference: str, rule: str
) -> dict[str, Any]:
    """The record of ``results/air/`` of an experiment and fold: AIR before and after, the decision.

    ``invert`` is what training, validation, threshold search and test consume: the ``rule``
    (``paper``, Eq. 13, or ``maximising``; both are reported) on the unhealthy validation volumes of
    the test set ``reference``.

    Raises:
        DataError: a validation set without lesions.
    """
    sets: dict[str, dict[str, Any]] = {}
    for name, part in volumes.items():
        try:
            anomalous, normal, count = region_means(part)
        except DataError as error:
            raise DataError(f"{name} ({modality}): {error}") from error
        sets[name] = {
            "mean_anomalous": anomalous,
            "mean_normal": normal,
            "n_volumes": count,
            "subjects": part.subjects,
            "air_before": average_intensity_ratio(anomalous, normal),
            "air_if_inverted": average_intensity_ratio(1 - anomalous, 1 - normal),
            "paper_rule_invert": paper_rule(normal),
            "maximising_invert": maximising_rule(anomalous, normal),
            "violated_priors": violated_priors(modality, anomalous, normal),
        }
    decisive, decides = sets[reference], DECISIONS[rule]
    invert = decisive[decides]
    warnings = [
        f"{name} {modality}: {prior}" for name, s in sets.items() for prior in s["violated_priors"]
    ]
    warnings += [
        f"{name} {modality} alone would decide otherwise than {reference} (invert: {invert})"
        for name, s in sets.items()
        if s[decides] != invert
    ]
    return {
        "modality": modality,
        "rule": rule,
        "invert": invert,
        "reference_dataset": reference,
        **{k: v for k, v in decisive.items() if k != "subjects"},
        "air_after": decisive["air_if_inverted"] if invert else decisive["air_before"],
        "warnings": warnings,
        "sets": sets,
    }
