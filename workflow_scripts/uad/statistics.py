"""Region means of a validation set, and what they say about inverting it (Eqs. 12 to 19)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uad.air import (
    average_intensity_ratio,
    maximising_rule,
    paper_rule,
    violated_priors,
)
from uad.core.errors import DataError
from uad.preprocess.slices import Volumes

#: Distance that means keep from 0 and 1, so that the AIR exists before and after inversion.
MARGIN = 1e-6


def region_means(volumes: Volumes) -> tuple[float, float, int]:
    """Mean intensity of lesions and of the healthy brain: per volume, then over volumes.

    Returns:
        (mean_anomalous, mean_normal, number of volumes with a lesion).

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
    return (
        sum(anomalous) / len(anomalous),
        sum(normal) / len(normal),
        len(anomalous),
    )


def air_statistics(
    volumes: Mapping[str, Volumes], modality: str, reference: str, rule: str
) -> dict[str, Any]:
    """AIR before and after the transform, and the decision, for one experiment and fold.

    Args:
        volumes: unhealthy validation volumes of each test set.
        modality: T1, T1CE, T2 or FLAIR, for the priors.
        reference: the test set that decides.
        rule: ``paper`` (Eq. 13) or ``maximising``; both are reported.

    Returns:
        The record of ``results/air/``: ``invert`` is what training, validation,
        threshold search and test consume.

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
    decisive = sets[reference]
    invert = decisive["paper_rule_invert" if rule == "paper" else "maximising_invert"]
    warnings = [
        f"{name} {modality}: {prior}" for name, s in sets.items() for prior in s["violated_priors"]
    ]
    warnings += [
        f"{name} {modality} alone would decide otherwise than {reference} (invert: {invert})"
        for name, s in sets.items()
        if s["paper_rule_invert" if rule == "paper" else "maximising_invert"] != invert
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
