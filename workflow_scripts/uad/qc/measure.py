"""Measures of every scan, from the sidecars of preprocessing and the packed volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uad.core.errors import DataError
from uad.core.files import read_json

if TYPE_CHECKING:
    import pandas as pd

#: Between texts of one field (several warnings, several flags).
SEPARATOR = "; "


class Measure(NamedTuple):
    """One number per scan.

    Attributes:
        name: column of the table.
        label: what people call it.
        unit: of the number; empty if it has none.
        help: what it is, in one sentence.
        side: which deviation is flagged (``low``, ``high``, ``both``); None: never flagged.
        logarithmic: flagged by its logarithm.
    """

    name: str
    label: str
    unit: str
    help: str
    side: str | None = "both"
    logarithmic: bool = False


_UNITS = "Inside the brain, corrected, in units of the scanner."
MEASURES: tuple[Measure, ...] = (
    # of the brain mask
    Measure("mask_ml", "brain mask, raw scan", "ml",
            "Volume of the brain mask on the raw scan.", "both", True),
    Measure("islands", "voxels dropped as islands", "",
            "Voxels of the predicted mask that were not connected to the brain.", None),
    # of registration
    Measure("overlap_dice", "overlap with the atlas", "",
            "Dice of the registered brain mask and the atlas' brain.", "low"),
    Measure("correlation", "correlation with the atlas", "",
            "Pearson correlation with the T1 atlas inside both brains; other contrasts have "
            "less, T2 a negative one."),
    Measure("mutual_information", "mutual information with the atlas", "nats",
            "From the joint histogram inside both brains.", "low"),
    Measure("determinant", "determinant of the transform", "",
            "Volume in the scan of a unit volume of the atlas: above 1 the brain is larger.",
            "both", True),
    Measure("translation_mm", "translation", "mm",
            "Length of the transform's translation.", "high", True),
    Measure("brain_ml", "brain, registered", "ml",
            "Volume of the registered brain mask: about the atlas' for a good registration.",
            "both", True),
    Measure("lesion_ml", "lesion, registered", "ml",
            "Volume of the registered lesion mask; empty for healthy scans.", "both", True),
    # of the bias correction
    Measure("bias_range", "bias field, 99th / 1st percentile", "",
            "Range of the bias field that N4 removed inside the brain; 1: none.", "high", True),
    Measure("bias_min", "bias field, smallest", "", "Smallest value; the mean is 1.", None),
    Measure("bias_max", "bias field, largest", "", "Largest value; the mean is 1.", None),
    # of the intensities
    Measure("intensity_p01", "intensity, 1st percentile", "", _UNITS, None),
    Measure("intensity_p50", "intensity, median", "", _UNITS, "both", True),
    Measure("intensity_p99", "intensity, 99th percentile", "", _UNITS, None),
    Measure("intensity_contrast", "contrast", "",
            "(99th - 1st percentile) / median of the intensities inside the brain.", "both", True),
    # of the packed volume
    Measure("packed_mean", "packed volume, mean", "",
            "Mean inside the brain of the volume that the networks see; 0 and 1 are its "
            "percentiles."),
    Measure("packed_std", "packed volume, deviation", "",
            "Standard deviation inside the brain of that volume."),
    Measure("packed_brain_ml", "packed brain", "ml",
            "Volume of the brain inside the field of view.", "both", True),
    Measure("packed_lesion_ml", "packed lesion", "ml",
            "Volume of the lesion inside the field of view; what a test can find.", "both", True),
    Measure("packed_lesion_ratio", "lesion / healthy brightness", "",
            "Mean of the packed lesion over the mean of the rest of the brain.", None),
)  # fmt: skip
NAMES = tuple(measure.name for measure in MEASURES)


def mask_measures(sidecar: Mapping[str, Any]) -> dict[str, float]:
    """Measures of skull stripping, from its sidecar."""
    return {
        "mask_ml": sidecar["brain_ml"],
        "islands": sidecar["island_voxels_dropped"],
    }


def registration_measures(sidecar: Mapping[str, Any]) -> dict[str, float]:
    """Measures of registration and bias correction, from their sidecar."""
    found, percentiles = sidecar["registration"], sidecar["intensity_percentiles"]
    low, middle, high = (percentiles[q] for q in ("1", "50", "99"))
    measures = {
        **{k: found[k] for k in ("overlap_dice", "correlation", "mutual_information")},
        "determinant": found["determinant"],
        "translation_mm": float(np.linalg.norm(found["translation_mm"])),
        "brain_ml": sidecar["brain_ml"],
        "lesion_ml": np.nan if sidecar["lesion_ml"] is None else sidecar["lesion_ml"],
        "intensity_p01": low,
        "intensity_p50": middle,
        "intensity_p99": high,
        "intensity_contrast": (high - low) / middle if middle > 0 else np.nan,
    }
    if bias := sidecar["bias_field"]:
        measures |= {
            "bias_range": bias["p99"] / bias["p01"],
            "bias_min": bias["min"],
            "bias_max": bias["max"],
        }
    return measures


def packed_measures(
    volume: np.ndarray, mask: np.ndarray, lesion: np.ndarray, voxel_ml: float
) -> dict[str, float]:
    """Measures of a packed volume.

    Args:
        volume: float ``(X, Y, Z)``, about [0, 1].
        mask: bool, the brain.
        lesion: bool, the lesion; nowhere true for healthy scans.
        voxel_ml: volume of a voxel in millilitres.
    """
    inside = volume[mask].astype(np.float32)
    inside_brain = lesion & mask
    measures = {
        "packed_mean": float(inside.mean()) if inside.size else np.nan,
        "packed_std": float(inside.std()) if inside.size else np.nan,
        "packed_brain_ml": float(mask.sum()) * voxel_ml,
        "packed_lesion_ml": np.nan,
        "packed_lesion_ratio": np.nan,
    }
    if lesion.any():
        measures["packed_lesion_ml"] = float(lesion.sum()) * voxel_ml
        rest = volume[mask & ~lesion].astype(np.float32)
        if inside_brain.any() and rest.size and rest.mean() > 0:
            measures["packed_lesion_ratio"] = float(
                volume[inside_brain].mean(dtype=np.float32)
            ) / float(rest.mean())
    return measures


def measure_modality(
    participants: pd.DataFrame,
    store: str | Path,
    sidecars: Sequence[tuple[str | Path, str | Path]] | None,
    voxel_ml: float,
) -> pd.DataFrame:
    """Measure all scans of one data set and modality.

    Args:
        participants: their rows of the participants table.
        store: their slice store.
        sidecars: JSON of skull stripping and of registration, in the order of the rows; None
            where somebody else preprocessed the scans.
        voxel_ml: volume of a packed voxel in millilitres.

    Returns:
        A row per scan: ``subject``, ``name``, ``site``, ``modality``, the measures, ``warnings``.

    Raises:
        DataError: a sidecar is no sidecar, or the store lacks a subject.
    """
    import pandas as pd

    from uad.preprocess.slices import each_volume

    rows = []
    packed = each_volume(store, list(participants["subject"]))
    for number, (row, arrays) in enumerate(
        zip(participants.to_dict("records"), packed, strict=True)
    ):
        found, warnings = _sidecar_measures(sidecars[number]) if sidecars else ({}, [])
        found |= packed_measures(*arrays, voxel_ml)
        # a healthy scan has no lesion to measure; an unhealthy one that lost it has one of 0 ml
        if row.get("lesion") and not arrays[2].any():
            found["packed_lesion_ml"] = 0.0
            warnings.append("no lesion is left in the packed volume")
        measures = {name: float(f"{float(found.get(name, np.nan)):.6g}") for name in NAMES}
        named = {key: row[key] for key in ("subject", "name", "site", "modality")}
        warned = SEPARATOR.join(dict.fromkeys(warnings))
        rows.append({**named, **measures, "warnings": warned})
    return pd.DataFrame(rows)


def _sidecar_measures(paths: Sequence[str | Path]) -> tuple[dict[str, float], list[str]]:
    """Measures and warnings in the sidecars of skull stripping and registration."""
    found, warnings = {}, []
    for path, measure in zip(paths, (mask_measures, registration_measures), strict=True):
        sidecar = read_json(path)
        try:
            found |= measure(sidecar)
            warnings += sidecar["warnings"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: is no sidecar of this version ({error!r}). Delete it and run again."
            ) from error
    return found, warnings
