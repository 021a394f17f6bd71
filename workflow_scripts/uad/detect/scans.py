"""Which scans a model may be used on."""

from __future__ import annotations

import re
from pathlib import Path

from uad.core.errors import DataError
from uad.core.masks import SMALLEST_HEAD_ML, outline_ml
from uad.core.nifti import UnreadableVolumeError, open_volume
from uad.core.paths import SUFFIX
from uad.core.patterns import known_layouts
from uad.detect.trained_model import Subject, TrainedModel, stem_of

#: How the names of the volumes end that are written for a scan.
MAP, MASK = "_desc-anomaly_map.nii.gz", "_desc-anomaly_mask.nii.gz"


def scans_in(path: Path) -> list[Path]:
    """A scan, or all scans of a folder and its folders, but for the volumes written here.

    Raises:
        DataError: there is none.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    if not path.is_dir():
        return [path]
    found = sorted(p for ending in ("nii", "nii.gz") for p in path.rglob(f"*.{ending}"))
    found = [p for p in found if not p.name.endswith((MAP, MASK))]
    if not found:
        raise DataError(f"{path}: holds no scan (*.nii, *.nii.gz).")
    return found


def modality_of(scan: Path) -> str | None:
    """The modality that a file name tells, by the words of the known layouts; None: none."""
    words = {suffix.lower(): {modality} for modality, suffix in SUFFIX.items()}
    for layout in known_layouts().values():
        for modality, word in layout.modalities.items():
            words.setdefault(word.lower(), set()).add(modality)
    said = re.split(r"[^a-z0-9]+", stem_of(scan).lower())
    found = [words[word] for word in said if word in words and not word.isdigit()]
    return next(iter(found[-1])) if found and len(found[-1]) == 1 else None


def require_usable(
    model: TrainedModel, scan: Path, subject: Subject, modality: str | None, stripped: bool
) -> None:
    """Refuse what the model cannot take.

    Raises:
        DataError: it is no 3D volume; of another modality; with a skull where none is expected, or
            the other way round (not asked of scans of the run).
    """
    try:
        volume = open_volume(scan)
    except UnreadableVolumeError as error:
        series = " Of a series, extract the volume to look at." if "3D" in error.reason else ""
        raise DataError(
            f"{scan}: {error.reason}. A model takes one 3D scan per file.{series}"
        ) from error
    if subject.role is not None:
        return
    trained, found = model.experiment.modality, modality or modality_of(scan)
    if found is None:
        raise DataError(
            f"{scan}: its name does not tell the modality. If it is {trained}, on which the model "
            f"was trained, say so: --modality {trained}."
        )
    if found != trained:
        misleading = "" if modality else f" If the name misleads: --modality {trained}."
        raise DataError(
            f"{scan}: is {found}, but the model was trained on {trained}. Choose a model of an "
            f"experiment with {found}.{misleading}"
        )
    size = outline_ml(volume.data, volume.spacing)
    if stripped and size >= SMALLEST_HEAD_ML:
        raise DataError(
            f"{scan}: shows more than a brain ({size:.0f} ml), but --stripped is given. Leave that "
            "out: the skull is then removed."
        )
    if not stripped and size < SMALLEST_HEAD_ML:
        raise DataError(
            f"{scan}: looks skull-stripped (what it shows has {size:.0f} ml), but a whole head is "
            "expected. If it is stripped, say so: --stripped."
        )
