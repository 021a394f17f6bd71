"""The slice store: all volumes of one data set and modality in one file.

safetensors, so that single volumes can be read without the rest and nothing is
ever unpickled. Arrays are in NIfTI order (x, y, z), axial slices on the last
axis: ``volumes`` float16 ``(N, X, Y, Z)``, ``masks`` and ``lesions`` uint8.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uad.errors import DataError
from uad.files import atomic_path

KEYS = ("volumes", "masks", "lesions")


@dataclass(frozen=True)
class Volumes:
    """Some volumes of a slice store.

    Attributes:
        subjects: their BIDS labels.
        volumes: float32 ``(N, X, Y, Z)``, about [0, 1], background 0.
        masks: bool, the brain.
        lesions: bool, the anomaly (all false for healthy subjects).
    """

    subjects: list[str]
    volumes: np.ndarray
    masks: np.ndarray
    lesions: np.ndarray


def write_store(path: str | os.PathLike[str], subjects: Sequence[str], arrays: Iterable) -> None:
    """Write a store from one (volume, mask, lesion) triple per subject."""
    from safetensors.numpy import save_file

    columns = list(zip(*arrays, strict=True))
    tensors = {key: np.stack(column) for key, column in zip(KEYS, columns, strict=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"subjects": json.dumps(list(subjects))})


def subjects_in(path: str | os.PathLike[str]) -> list[str]:
    """BIDS labels of the subjects of a store, in order."""
    return json.loads(read_metadata(path)["subjects"])


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            return handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{Path(path)}: not a readable safetensors file ({error}). Delete it and run again."
        ) from error


def read_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Voxels along x, y and z of the volumes of a store."""
    from safetensors import safe_open

    read_metadata(path)
    with safe_open(path, framework="numpy") as handle:
        _, *shape = handle.get_slice("volumes").get_shape()
    return tuple(shape)


def read_store(path: str | os.PathLike[str], subjects: Sequence[str]) -> Volumes:
    """Read the given subjects, and only those, from a store.

    Raises:
        DataError: the file is damaged, or a subject is not in it.
    """
    from safetensors import safe_open

    index = {label: i for i, label in enumerate(subjects_in(path))}
    missing = [label for label in subjects if label not in index]
    if missing:
        raise DataError(f"{path}: no subject '{missing[0]}' ({len(missing)} of the split missing).")
    with safe_open(path, framework="numpy") as handle:
        parts = {key: [handle.get_slice(key)[index[label]] for label in subjects] for key in KEYS}
    return Volumes(
        subjects=list(subjects),
        volumes=np.stack(parts["volumes"]).astype(np.float32),
        masks=np.stack(parts["masks"]) > 0,
        lesions=np.stack(parts["lesions"]) > 0,
    )


def eligible_slices(
    lesions: np.ndarray, *, tumour_free: bool, central: bool = False
) -> list[np.ndarray]:
    """Which axial slices of each volume training may draw.

    Args:
        lesions: bool ``(N, X, Y, Z)``.
        tumour_free: leave out slices that touch the lesion (intra-dataset setting).
        central: of the slices that remain keep the central half of the volume's depth,
            as the authors do after stacking them (the protocol's ``central_stack``).

    Returns:
        One array of slice numbers per volume.

    Raises:
        DataError: a volume has no tumour-free slice.
    """
    depth = lesions.shape[-1]
    chosen = []
    for volume in lesions:
        slices = np.arange(depth)
        if tumour_free:
            slices = slices[~volume.any(axis=(0, 1))]
            if central:
                start = max(0, (len(slices) - depth // 2) // 2)
                slices = slices[start : start + depth // 2]
        if not len(slices):
            raise DataError("a training volume has no tumour-free slice; exclude the subject.")
        chosen.append(slices)
    return chosen


def write_volumes(path: str | os.PathLike[str], volumes: dict[str, np.ndarray]) -> None:
    """Write volumes named ``<role>/<subject>`` as one safetensors file."""
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in volumes.items()}, temporary)


def names_in(path: str | os.PathLike[str], prefix: str = "") -> list[str]:
    """Names of the volumes of :func:`write_volumes` that start with ``prefix``, sorted."""
    from safetensors import safe_open

    read_metadata(path)
    with safe_open(path, framework="numpy") as handle:
        return sorted(name for name in handle.keys() if name.startswith(prefix))  # noqa: SIM118


def read_volumes(path: str | os.PathLike[str], prefix: str = "") -> dict[str, np.ndarray]:
    """Read the volumes whose name starts with ``prefix``, as float32, sorted by name."""
    from safetensors import safe_open

    names = names_in(path, prefix)
    with safe_open(path, framework="numpy") as handle:
        return {name: handle.get_tensor(name).astype(np.float32) for name in names}
