"""Measures of every scan, from the sidecars of preprocessing and the packed volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.errors import DataError
from uad.core.files import read_json
from uad.qc.judge import outliers

if TYPE_CHECKING:
    import pandas as pd

#: Between texts of one field (several warnings, several flags).
SEPARATOR = "; "


@dataclass(frozen=True)
class Measure:
    """One number per scan.

    Attributes:
        name: column of the table.
        label: what people call it.
        unit: of the number; empty if it has none.
        help: what it is, in one sentence.
        side: which deviation is flagged (``low``, ``high``, ``both``); None: never flagged.
        logarithmic: flagged by its logarithm.
        stage: ``mask``, ``registration``, ``bias``, ``intensity`` or ``packed``.
    """

    name: str
    label: str
    unit: str
    help: str
    stage: str
    side: str | None = "both"
    logarithmic: bool = False


MEASURES: tuple[Measure, ...] = (
    Measure(
        "mask_ml", "brain mask, raw scan", "ml",
        "Volume of the brain mask on the raw scan.", "mask", logarithmic=True,
    ),
    Measure(
        "islands", "voxels dropped as islands", "",
        "Voxels of the predicted mask that were not connected to the brain.", "mask", None,
    ),
    Measure(
        "overlap_dice", "overlap with the atlas", "",
        "Dice of the registered brain mask and the atlas' brain.", "registration", "low",
    ),
    Measure(
        "correlation", "correlation with the atlas", "",
        "Pearson correlation with the T1 atlas inside both brains; other contrasts have less, "
        "T2 a negative one.", "registration", "both",
    ),
    Measure(
        "mutual_information", "mutual information with the atlas", "nats",
        "From the joint histogram inside both brains.", "registration", "low",
    ),
    Measure(
        "determinant", "determinant of the transform", "",
        "Volume in the scan of a unit volume of the atlas: above 1 the brain is larger.",
        "registration", "both", True,
    ),
    Measure(
        "translation_mm", "translation", "mm",
        "Length of the transform's translation.", "registration", "high", True,
    ),
    Measure(
        "brain_ml", "brain, registered", "ml",
        "Volume of the registered brain mask: about the atlas' for a good registration.",
        "registration", "both", True,
    ),
    Measure(
        "lesion_ml", "lesion, registered", "ml",
        "Volume of the registered lesion mask; empty for healthy scans.",
        "registration", "both", True,
    ),
    Measure(
        "bias_range", "bias field, 99th / 1st percentile", "",
        "Range of the bias field that N4 removed inside the brain; 1: none.", "bias", "high", True,
    ),
    Measure(
        "bias_min", "bias field, smallest", "", "Smallest value; the mean is 1.", "bias", None,
    ),
    Measure(
        "bias_max", "bias field, largest", "", "Largest value; the mean is 1.", "bias", None,
    ),
    Measure(
        "intensity_p01", "intensity, 1st percentile", "",
        "Inside the brain, corrected, in units of the scanner.", "intensity", None,
    ),
    Measure(
        "intensity_p50", "intensity, median", "",
        "Inside the brain, corrected, in units of the scanner.", "intensity", "both", True,
    ),
    Measure(
        "intensity_p99", "intensity, 99th percentile", "",
        "Inside the brain, corrected, in units of the scanner.", "intensity", None,
    ),
    Measure(
        "intensity_contrast", "contrast", "",
        "(99th - 1st percentile) / median of the intensities inside the brain.",
        "intensity", "both", True,
    ),
    Measure(
        "packed_mean", "packed volume, mean", "",
        "Mean inside the brain of the volume that the networks see; 0 and 1 are its percentiles.",
        "packed",
    ),
    Measure(
        "packed_std", "packed volume, deviation", "",
        "Standard deviation inside the brain of that volume.", "packed",
    ),
    Measure(
        "packed_brain_ml", "packed brain", "ml",
        "Volume of the brain inside the field of view.", "packed", "both", True,
    ),
    Measure(
        "packed_lesion_ml", "packed lesion", "ml",
        "Volume of the lesion inside the field of view; what a test can find.",
        "packed", "both", True,
    ),
    Measure(
        "packed_lesion_ratio", "lesion / healthy brightness", "",
        "Mean of the packed lesion over the mean of the rest of the brain.", "packed", None,
    ),
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
    sick = lesion & mask
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
        if sick.any() and rest.size and rest.mean() > 0:
            measures["packed_lesion_ratio"] = float(volume[sick].mean(dtype=np.float32)) / float(
                rest.mean()
            )
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

    subjects = list(participants["subject"])
    rows = []
    packed = each_volume(store, subjects)
    for number, (row, arrays) in enumerate(
        zip(participants.to_dict("records"), packed, strict=True)
    ):
        found: dict[str, Any] = dict.fromkeys(NAMES, np.nan)
        warnings: list[str] = []
        if sidecars is not None:
            for path, measure in zip(
                sidecars[number], (mask_measures, registration_measures), strict=True
            ):
                sidecar = read_json(path)
                try:
                    found |= measure(sidecar)
                    warnings += sidecar["warnings"]
                except (KeyError, TypeError) as error:
                    raise DataError(
                        f"{path}: is no sidecar of this version ({error!r}). Delete it and run "
                        "again."
                    ) from error
        found |= packed_measures(*arrays, voxel_ml)
        # a healthy scan has no lesion to measure; a sick one that lost it has one of 0 ml
        if row.get("lesion") and not arrays[2].any():
            found["packed_lesion_ml"] = 0.0
            warnings.append("no lesion is left in the packed volume")
        rows.append(
            {
                "subject": row["subject"],
                "name": row["name"],
                "site": row["site"],
                "modality": row["modality"],
                **{name: _rounded(found[name]) for name in NAMES},
                "warnings": SEPARATOR.join(dict.fromkeys(warnings)),
            }
        )
    return pd.DataFrame(rows)


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")


def add_flags(table: pd.DataFrame, threshold: float = 3.5) -> pd.DataFrame:
    """Flag the outliers, among the scans of one modality and data set.

    Args:
        table: rows of :func:`measure_modality`, one data set, any number of modalities.
        threshold: of the modified z-score.

    Returns:
        The table with two more columns: ``flags`` (names of measures) and ``why`` (for each
        the value and the data set's median); empty where there are none.
    """
    flags: dict[Any, list[str]] = {index: [] for index in table.index}
    why: dict[Any, list[str]] = {index: [] for index in table.index}
    for _, part in table.groupby("modality", sort=False):
        for measure in flagged_measures():
            values = part[measure.name].to_numpy(dtype=np.float64)
            hits = outliers(values, threshold, side=measure.side, logarithmic=measure.logarithmic)
            for index, value in zip(part.index[hits], values[hits], strict=True):
                flags[index].append(measure.name)
                middle = np.nanmedian(values)
                unit = f" {measure.unit}" if measure.unit else ""
                why[index].append(f"{measure.label} {value:.4g}{unit} (median {middle:.4g})")
    return table.assign(
        flags=[SEPARATOR.join(flags[index]) for index in table.index],
        why=[SEPARATOR.join(why[index]) for index in table.index],
    )


def flagged_measures() -> list[Measure]:
    """The measures whose outliers are flagged."""
    return [measure for measure in MEASURES if measure.side is not None]


def medians(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Median of each measure by modality; what was not measured is left out."""
    found = {}
    for modality, part in table.groupby("modality", sort=False):
        middles = part[list(NAMES)].astype(float).median()
        found[str(modality)] = {k: _rounded(v) for k, v in middles.items() if not np.isnan(v)}
    return found
