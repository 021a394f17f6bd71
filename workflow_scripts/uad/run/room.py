"""Room for the planned outputs, checked before hours of work."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from uad.core.errors import DataError
from uad.core.files import read_json, write_json
from uad.data.layouts import index_dataset

#: Compressed bytes per voxel of one registered scan (image, masks, pictures) and of a raw phantom
#: scan. Measured, and rounded up: 0.87 for the phantom at 3 mm, 0.76 for IXI and 0.84 for MSLUB
#: at 2 mm; without pictures 0.61 for MSLUB at 1 mm.
DERIVATIVE_BYTES_PER_VOXEL = 1.0
RAW_BYTES_PER_VOXEL = 2.0
#: float16 volume, uint8 mask and lesion; stacks of training patients: half as many voxels.
STORE_BYTES_PER_VOXEL = 5.5
#: Weights of the paper's U-Nets: 37.5 M floats at channels 128, 256, 256.
BYTES_PER_SQUARED_CHANNEL = 1020
ATLAS_MM3 = 240 * 240 * 155
HEAD_MM3 = 260**3


def scan_bytes(dataset: dict[str, Any], preprocessing: dict[str, Any]) -> dict[str, float]:
    """Estimated bytes that one scan leaves: ``raw`` (of a phantom), ``registered``, ``packed``.

    Data set and preprocessing are those of the config, as plain data.
    """
    phantom = dataset["source"] == "phantom"
    return {
        "raw": HEAD_MM3 / dataset["phantom"]["spacing"] ** 3 * RAW_BYTES_PER_VOXEL * phantom,
        "registered": ATLAS_MM3 / preprocessing["spacing"] ** 3 * DERIVATIVE_BYTES_PER_VOXEL,
        "packed": prod(preprocessing["shape"]) * STORE_BYTES_PER_VOXEL,
    }


def planned_bytes(datasets: dict[str, Any], preprocessing: dict[str, Any]) -> dict[str, int]:
    """Estimated bytes that will be kept, per data set that is there."""
    planned = {}
    for name, dataset in datasets.items():
        if dataset["source"] == "phantom":
            scans = dataset["phantom"]["subjects"] * len(dataset["modalities"])
        else:
            keys = ("layout", "path", "modalities", "exclude", "limit")
            try:
                scans = len(index_dataset(*(dataset[key] for key in keys)).table)
            except DataError:
                continue  # the index of this data set tells what is wrong with it
        planned[name] = round(scans * sum(scan_bytes(dataset, preprocessing).values()))
    return planned


def model_bytes(models: Iterable[dict[str, Any]], folds: int) -> int:
    """Estimated size of the weights, two for each training (final and checkpoint).

    Models are those of the trained cells, as plain data with complete options.
    """
    total = 0
    for model in models:
        channels = model["options"].get("network", model["options"]).get("channels", [])
        total += sum(c * c for c in channels) * BYTES_PER_SQUARED_CHANNEL
    return round(2 * total * folds)


def mark_kind(folder: str | Path, phantom: bool) -> None:
    """Note in a results tree which kind of data it was begun with."""
    write_json(Path(folder) / "source.json", {"source": "phantom" if phantom else "real"})


def check_one_kind(folder: str | Path, phantom: bool) -> None:
    """Refuse to mix phantom and real results in one tree.

    Raises:
        DataError: the tree was begun with the other kind of data.
    """
    marker, kind = Path(folder) / "source.json", "phantom" if phantom else "real"
    if marker.exists() and read_json(marker)["source"] != kind:
        raise DataError(
            f"{Path(folder).resolve()} holds results of a {read_json(marker)['source']} run; this "
            f"run is a {kind} one and would replace them. Remove the folder, or name another: "
            "--config results=<folder>."
        )


def check_room(folder: str | Path, planned: dict[str, int]) -> dict[str, Any]:
    """Compare the planned bytes with the free ones of the file system of ``folder``.

    Raises:
        DataError: they do not fit.
    """
    needed = sum(planned.values())
    usage = shutil.disk_usage(folder)
    if needed > usage.free:
        parts = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in planned.items())
        raise DataError(
            f"{Path(folder).resolve()}: the planned outputs need about {needed / 1e9:.1f} GB "
            f"({parts}), but only {usage.free / 1e9:.1f} GB are free. Free some space, or set "
            "'results' in the config to a folder on a larger disk."
        )
    return {"planned_bytes": planned}
