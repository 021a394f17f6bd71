"""Average intensity ratio (AIR) between lesion and healthy tissue, Eqs. 12 to 19 of the paper.

Region means of a validation set, what they say about inverting it, and the inversion itself. It
runs on Python floats, NumPy arrays and torch tensors, and never imports torch itself, so that
rules that only look at statistics start quickly. Intensities are scaled to [0, 1].
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
#: later version of the paper).
BRIGHT_MODALITIES = ("T1", "FLAIR", "T1CE")

#: Modalities whose lesion mean the paper expects below 0.5 (third prior).
DARK_MODALITIES = ("T2",)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def average_intensity_ratio(mean_anomalous: Any, mean_normal: Any) -> Any:
    """AIR of Eq. 12: the larger of the two region means divided by the smaller.

    Args:
        mean_anomalous: mean intensity of the lesions, in (0, 1]; a number, array or tensor.
        mean_normal: mean intensity of the healthy brain, of a shape that broadcasts with it.

    Returns:
        The ratio, at least 1: a float for two numbers, else an array or tensor.

    Raises:
        ValueError: a mean is zero, negative or NaN (the ratio would have no meaning).
    """
    if _is_tensor(mean_anomalous) or _is_tensor(mean_normal):
        torch = sys.modules["torch"]
        like = mean_anomalous if _is_tensor(mean_anomalous) else mean_normal
        low, high = (
            operation(
                torch.as_tensor(mean_anomalous, device=like.device),
                torch.as_tensor(mean_normal, device=like.device),
            )
            for operation in (torch.minimum, torch.maximum)
        )
    else:
        low = np.minimum(mean_anomalous, mean_normal)
        high = np.maximum(mean_anomalous, mean_normal)
    if not bool((low > 0).all()):  # this form refuses NaN too
        raise ValueError(
            "the average intensity ratio needs positive means, got "
            f"mean_anomalous={mean_anomalous}, mean_normal={mean_normal}"
        )
    ratio = high / low
    return float(ratio) if isinstance(ratio, np.generic) else ratio


def paper_rule(mean_normal: float) -> bool:
    """Whether Eq. 13 inverts: the healthy mean of the unhealthy validation set is above 0.5.

    Raises:
        ValueError: the mean is NaN or outside [0, 1].
    """
    mean_normal = float(mean_normal)
    if not 0.0 <= mean_normal <= 1.0:
        raise ValueError(
            f"mean_normal must be the mean of intensities in [0, 1], got {mean_normal}"
        )
    return mean_normal > MIDDLE


def maximising_rule(mean_anomalous: float, mean_normal: float) -> bool:
    """Whether inverting the foreground raises the AIR; a tie keeps the image as it is.

    It agrees with :func:`paper_rule` wherever the paper's priors hold (Eq. 16), and
    never lowers the AIR where they do not.

    Args:
        mean_anomalous: mean lesion intensity, in (0, 1).
        mean_normal: mean healthy intensity, in (0, 1).

    Raises:
        ValueError: a mean is NaN or not strictly between 0 and 1.
    """
    anomalous, normal = float(mean_anomalous), float(mean_normal)
    if not (0.0 < anomalous < 1.0 and 0.0 < normal < 1.0):
        raise ValueError(
            "the means must lie strictly between 0 and 1 for the ratio to exist before and "
            f"after inversion, got mean_anomalous={anomalous}, mean_normal={normal}"
        )
    inverted = average_intensity_ratio(1.0 - anomalous, 1.0 - normal)
    return inverted > average_intensity_ratio(anomalous, normal)


def decision(record: Mapping[str, Any], air: bool | str) -> bool:
    """Whether a method's scans are inverted.

    Args:
        record: an AIR record of ``results/air/``; empty for methods that do not use it.
        air: ``air`` of the method: false (never), true (as the record decides, by
            ``protocol.air_rule``), ``paper`` or ``maximising`` (that rule, whatever the record's).
    """
    if not air:
        return False
    return bool(record[DECISIONS[air]])


def stored_decision(path: str | Sequence[str], air: bool | str) -> bool:
    """:func:`decision` by the AIR record in a file.

    Args:
        path: the record; empty for methods that do not use it.
        air: ``air`` of the method, see :func:`decision`.
    """
    return decision(read_json(path) if path else {}, air)


def invert_foreground(x: Any, mask: Any) -> Any:
    """``1 - x`` where ``mask`` is non-zero, ``x`` elsewhere.

    Applying it twice gives ``x`` back, up to the rounding of ``1 - x``.

    Args:
        x: floating-point array or tensor of any shape, intensities in [0, 1].
        mask: foreground, of a shape that broadcasts to that of ``x``; the same kind
            (array or tensor) as ``x``.

    Returns:
        A new array or tensor like ``x``.

    Raises:
        ValueError: ``x`` is not floating point, or the mask does not fit.
    """
    if _is_tensor(x):
        torch = sys.modules["torch"]
        if not x.is_floating_point():
            raise ValueError(f"intensities must be floating point in [0, 1], got {x.dtype}")
        _check_mask(tuple(x.shape), tuple(mask.shape))
        return torch.where(mask != 0, 1 - x, x)
    x, mask = np.asarray(x), np.asarray(mask)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"intensities must be floating point in [0, 1], got {x.dtype}")
    _check_mask(x.shape, mask.shape)
    return np.where(mask != 0, 1 - x, x)


def air_transform(x: Any, mask: Any, mean_normal: float) -> Any:
    """The transform of Eq. 13, on the foreground only (as the paper adds below it).

    Args:
        x: floating-point array or tensor of any shape, intensities in [0, 1].
        mask: brain mask, of a shape that broadcasts to that of ``x``.
        mean_normal: mean healthy intensity of the unhealthy validation set, in [0, 1];
            one number for a whole data set, never one per image.

    Returns:
        A new array or tensor: :func:`invert_foreground` where ``mean_normal`` is above
        0.5, else a copy. The background is the same in both cases.

    Raises:
        ValueError: as :func:`paper_rule` and :func:`invert_foreground`.
    """
    inverted = invert_foreground(x, mask)
    if paper_rule(mean_normal):
        return inverted
    return x.clone() if _is_tensor(x) else np.array(x)


def violated_priors(modality: str, mean_anomalous: float, mean_normal: float) -> list[str]:
    """Which of the paper's priors (Section III-C) the measured means do not obey.

    The proof that the transform cannot lower the AIR (Eq. 16) holds only under them.

    Args:
        modality: for example ``T2``, ``FLAIR``, ``T1``, ``T1CE``; upper or lower case,
            with or without a hyphen or the ``w`` of ``T2w``. For any other name only
            the first prior is checked.
        mean_anomalous: mean lesion intensity of the unhealthy validation set.
        mean_normal: mean healthy intensity of it.

    Returns:
        One sentence for each violated prior; empty when all hold.
    """
    anomalous, normal = float(mean_anomalous), float(mean_normal)
    name = modality.upper().replace("-", "").replace("_", "").removesuffix("W")
    violated = []
    if not 0.0 < normal < anomalous < 1.0:
        violated.append(
            f"{modality}: the healthy mean should be above 0 and below the lesion mean, which "
            f"should be below 1; measured are {normal:.3f} (healthy) and {anomalous:.3f} (lesion)."
        )
    if name in BRIGHT_MODALITIES and not normal > MIDDLE:
        violated.append(
            f"{modality}: the healthy mean should be above {MIDDLE}; measured is {normal:.3f}."
        )
    if name in DARK_MODALITIES and not anomalous < MIDDLE:
        violated.append(
            f"{modality}: the lesion mean should be below {MIDDLE}; measured is {anomalous:.3f}."
        )
    return violated


def _check_mask(shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(shape, mask_shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"a mask of shape {mask_shape} does not fit an image of shape {shape}")


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
    count = len(anomalous)
    return sum(anomalous) / count, sum(normal) / count, count


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
