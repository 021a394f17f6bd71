"""Measures of every preprocessed scan, and which are far from the middle of their data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uad.core.files import read_json
from uad.data.layouts import bids_label

if TYPE_CHECKING:
    import pandas as pd

#: Between texts of one field (several warnings, several flags).
SEPARATOR = "; "
#: Scans below which a median and its spread say too little to call one of them an outlier; the
#: smallest samples for which Iglewicz and Hoaglin tried their threshold.
MIN_SCANS = 10
#: Relative difference that is no more than the last digits of a measure, which has six.
RESOLUTION = 1e-5


class Measure(NamedTuple):
    """One number per scan: a column, and which deviation is flagged (None: never).

    What each is stands in the gallery (``report/templates/gallery.html``).
    """

    name: str
    label: str
    unit: str = ""
    side: str | None = "both"
    logarithmic: bool = False  # flagged by its logarithm


MEASURES = (
    # of the brain mask
    Measure("mask_ml", "brain mask, raw scan", "ml", "both", True),
    Measure("islands", "voxels dropped as islands", "", None),
    # of registration
    Measure("overlap_dice", "overlap with the atlas", "", "low"),
    Measure("correlation", "correlation with the atlas"),
    Measure("mutual_information", "mutual information with the atlas", "nats", "low"),
    Measure("determinant", "determinant of the transform", "", "both", True),
    Measure("translation_mm", "translation", "mm", "high", True),
    Measure("brain_ml", "brain, registered", "ml", "both", True),
    Measure("lesion_ml", "lesion, registered", "ml", "both", True),
    # of the bias correction
    Measure("bias_range", "bias field, 99th / 1st percentile", "", "high", True),
    Measure("bias_min", "bias field, smallest", "", None),
    Measure("bias_max", "bias field, largest", "", None),
    # of the intensities
    Measure("intensity_p01", "intensity, 1st percentile", "", None),
    Measure("intensity_p50", "intensity, median", "", "both", True),
    Measure("intensity_p99", "intensity, 99th percentile", "", None),
    Measure("intensity_contrast", "contrast", "", "both", True),
    # of the packed volume
    Measure("packed_mean", "packed volume, mean"),
    Measure("packed_std", "packed volume, deviation"),
    Measure("packed_brain_ml", "packed brain", "ml", "both", True),
    Measure("packed_lesion_ml", "packed lesion", "ml", "both", True),
    Measure("packed_lesion_ratio", "lesion / healthy brightness", "", None),
)
NAMES = tuple(measure.name for measure in MEASURES)


def _sidecar_measures(paths: Sequence[str | Path]) -> tuple[dict[str, float], list[str]]:
    """Measures and warnings in the sidecars of skull stripping and of registration."""
    mask, sidecar = map(read_json, paths)
    found, bias = sidecar["registration"], sidecar["bias_field"]
    low, middle, high = (sidecar["intensity_percentiles"][q] for q in ("1", "50", "99"))
    measures = {
        "mask_ml": mask["brain_ml"],
        "islands": mask["island_voxels_dropped"],
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
    if bias:
        measures |= {"bias_min": bias["min"], "bias_max": bias["max"]}
        measures["bias_range"] = bias["p99"] / bias["p01"]
    return measures, [*mask["warnings"], *sidecar["warnings"]]


def _packed_measures(
    volume: np.ndarray, mask: np.ndarray, lesion: np.ndarray, voxel_ml: float
) -> dict[str, float]:
    inside = volume[mask].astype(np.float32)
    measures = {"packed_brain_ml": float(mask.sum()) * voxel_ml}
    if inside.size:
        measures |= {"packed_mean": float(inside.mean()), "packed_std": float(inside.std())}
    if lesion.any():
        measures["packed_lesion_ml"] = float(lesion.sum()) * voxel_ml
        found, rest = lesion & mask, volume[mask & ~lesion].astype(np.float32)
        if found.any() and rest.size and rest.mean() > 0:
            bright = float(volume[found].mean(dtype=np.float32))
            measures["packed_lesion_ratio"] = bright / float(rest.mean())
    return measures


def measure_modality(
    participants: pd.DataFrame,
    store: str | Path,
    sidecars: Sequence[tuple[str | Path, str | Path]] | None,
    voxel_ml: float,
) -> pd.DataFrame:
    """Measure all scans of one data set and modality (their rows of the participants table).

    ``sidecars`` are the JSON files of skull stripping and of registration in the order of the
    rows, None where somebody else preprocessed the scans; ``voxel_ml`` is of a packed voxel.

    Returns:
        A row per scan: ``subject``, ``name``, ``site``, ``modality``, the measures, ``warnings``.

    Raises:
        DataError: the store lacks a subject.
    """
    import pandas as pd

    from uad.preprocess.slices import each_volume

    rows = []
    packed = each_volume(store, list(participants["subject"]))
    for number, (row, arrays) in enumerate(
        zip(participants.to_dict("records"), packed, strict=True)
    ):
        found, warnings = _sidecar_measures(sidecars[number]) if sidecars else ({}, [])
        found |= _packed_measures(*arrays, voxel_ml)
        # a healthy scan has no lesion to measure; an unhealthy one that lost it has one of 0 ml
        if row.get("lesion") and not arrays[2].any():
            found["packed_lesion_ml"] = 0.0
            warnings.append("no lesion is left in the packed volume")
        measures = {name: float(f"{float(found.get(name, np.nan)):.6g}") for name in NAMES}
        named = {key: row[key] for key in ("subject", "name", "site", "modality")}
        warned = SEPARATOR.join(dict.fromkeys(warnings))
        rows.append({**named, **measures, "warnings": warned})
    return pd.DataFrame(rows)


def modified_z_scores(values: np.ndarray) -> np.ndarray:
    """Modified z-scores, 0.6745 (x - median) / MAD (Iglewicz and Hoaglin 1993, p. 11).

    MAD is the median absolute deviation; 0.6745 makes the score of normal data that of
    (x - mean) / standard deviation. Where MAD is 0 (half of the values are equal) the mean
    absolute deviation times 1.2533 stands in, as those authors propose.

    0 for all that are equal up to :data:`RESOLUTION`, NaN for NaN (not measured), infinite where
    the value is infinite and others are not.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.where(np.isnan(values), np.nan, 0.0)
    middle = float(np.median(values[finite]))
    away = values - middle
    away[np.abs(away) <= RESOLUTION * max(abs(middle), np.finfo(float).tiny)] = 0.0
    spread = float(np.median(np.abs(away[finite]))) / 0.6745
    if spread == 0:
        spread = float(np.mean(np.abs(away[finite]))) * np.sqrt(np.pi / 2)
    return away / spread if spread else away


def outliers(
    values: np.ndarray, threshold: float = 3.5, *, side: str = "both", logarithmic: bool = False
) -> np.ndarray:
    """Which values (N; NaN: not measured) are outliers; none below :data:`MIN_SCANS` measured ones.

    The threshold of the modified z-score is what Iglewicz and Hoaglin recommend; ``side`` says
    which deviation is a fault (``low``, ``high``, ``both``). Volumes and brightness, whose spread
    grows with their size, are judged by their logarithm; 0 is then far below all others.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.count_nonzero(~np.isnan(values)) < MIN_SCANS:
        return np.zeros(values.shape, dtype=bool)
    if logarithmic:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(np.maximum(values, 0))  # NaN stays NaN
    scores = modified_z_scores(values)
    low, high = scores < -threshold, scores > threshold
    return {"low": low, "high": high, "both": low | high}[side]


def add_flags(table: pd.DataFrame, threshold: float = 3.5) -> pd.DataFrame:
    """Flag the outliers among the scans of one modality of a data set.

    The table (of :func:`measure_modality`) gets two more columns: ``flags`` (names of measures)
    and ``why`` (for each the value and the data set's median); empty where there are none.
    """
    found: dict[Any, list[tuple[str, str]]] = {index: [] for index in table.index}
    for _, part in table.groupby("modality", sort=False):
        for measure in (m for m in MEASURES if m.side is not None):
            values = part[measure.name].to_numpy(dtype=np.float64)
            hits = outliers(values, threshold, side=measure.side, logarithmic=measure.logarithmic)
            for index, value in zip(part.index[hits], values[hits], strict=True):
                unit = f" {measure.unit}" if measure.unit else ""
                median = f"(median {np.nanmedian(values):.4g})"
                why = f"{measure.label} {value:.4g}{unit} {median}"
                found[index].append((measure.name, why))
    columns = {
        column: [SEPARATOR.join(flag[place] for flag in found[index]) for index in table.index]
        for place, column in enumerate(("flags", "why"))
    }
    return table.assign(**columns)


def medians(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Median of each measure by modality, six digits; what was not measured is left out."""
    found = table.groupby("modality", sort=False)[list(NAMES)].median()
    return {
        str(modality): {name: float(f"{value:.6g}") for name, value in row.dropna().items()}
        for modality, row in found.astype(float).iterrows()
    }


def summarise(
    tables: Mapping[str, pd.DataFrame], decisions: Iterable[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Counts for the report, a row per data set (a flagged table) and modality.

    ``judged``: there were enough scans to flag any; ``keep`` and ``unsure``: verdicts of the rows
    of a decision file; ``by_measure``: flagged scans by measure.
    """
    given = {
        (row["dataset"], bids_label(row["subject"]), row["modality"]): row["verdict"]
        for row in decisions
    }
    rows = []
    for dataset, table in tables.items():
        middles = medians(table)
        for modality, part in table.groupby("modality", sort=False):
            verdicts = [
                given.get((dataset, subject, modality)) or given.get((dataset, subject, "*"))
                for subject in part["subject"]
            ]
            names = [name for flags in part["flags"] for name in flags.split(SEPARATOR)]
            rows.append(
                {
                    "dataset": dataset,
                    "modality": str(modality),
                    "scans": len(part),
                    "judged": len(part) >= MIN_SCANS,
                    "flagged": int((part["flags"] != "").sum()),
                    "warned": int((part["warnings"] != "").sum()),
                    "keep": verdicts.count("keep"),
                    "unsure": verdicts.count("unsure"),
                    "by_measure": {n: names.count(n) for n in NAMES if n in names},
                    "medians": middles[str(modality)],
                }
            )
    return rows
