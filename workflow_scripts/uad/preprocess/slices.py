"""The slice store: all volumes of one data set and modality in one file.

safetensors, so that single volumes can be read without the rest and nothing is
ever unpickled. Arrays are in NIfTI order (x, y, z), axial slices on the last
axis: ``volumes`` float16 ``(N, X, Y, Z)``, ``masks`` and ``lesions`` uint8; for
patients who are trained on ``stacks`` and ``stack_masks`` ``(N, X, Y, Z / 2)``,
their slices without a lesion.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import DataError
from uad.core.files import atomic_path
from uad.preprocess.intensity import percentile_scale

KEYS = ("volumes", "masks", "lesions")
STACK_KEYS = ("stacks", "stack_masks")

#: NumPy type of a volume -> its name in a safetensors header.
_DTYPES = {"float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Volumes:
    """Volumes of some subjects (BIDS labels): float32 ``(N, X, Y, Z)``, about [0, 1], background 0;
    bool masks of the brain and of the anomaly (all false for healthy subjects).
    """

    subjects: list[str]
    volumes: np.ndarray
    masks: np.ndarray
    lesions: np.ndarray


def write_store(path: str | os.PathLike[str], subjects: Sequence[str], arrays: Iterable) -> None:
    """Write a store from (volume, mask, lesion), or these with stack and mask, per subject."""
    from safetensors.numpy import save_file

    columns = list(zip(*arrays, strict=True))
    keys = (*KEYS, *STACK_KEYS)[: len(columns)]
    tensors = {key: np.stack(column) for key, column in zip(keys, columns, strict=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"subjects": json.dumps(list(subjects))})


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors file, open for reading; DataError where it is damaged or absent."""
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{Path(path)}: not a readable safetensors file ({error}). Delete it and run again."
        ) from error
    with handle:
        yield handle


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    with _opened(path) as handle:
        return handle.metadata() or {}


def subjects_in(path: str | os.PathLike[str]) -> list[str]:
    """BIDS labels of the subjects of a store, in order."""
    return json.loads(read_metadata(path)["subjects"])


def read_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Voxels along x, y and z of the volumes of a store."""
    with _opened(path) as handle:
        _, *shape = handle.get_slice("volumes").get_shape()
    return tuple(shape)


def read_store(path: str | os.PathLike[str], subjects: Sequence[str]) -> Volumes:
    """Read the given subjects, and only those, from a store.

    Raises:
        DataError: the file is damaged, or a subject is not in it.
    """
    volumes, masks, lesions = map(np.stack, zip(*each_volume(path, subjects), strict=True))
    return Volumes(list(subjects), volumes.astype(np.float32), masks, lesions)


def each_volume(
    path: str | os.PathLike[str], subjects: Sequence[str], keys: Sequence[str] = KEYS
) -> Iterator[tuple[np.ndarray, ...]]:
    """Volume (float16, about [0, 1]), brain and lesion (bool) of each subject, one at a time.

    With :data:`STACK_KEYS` volume and brain of the stack.

    Raises:
        DataError: as :func:`read_store`.
    """
    places = _places(path, subjects)
    with _opened(path) as handle:
        parts = [handle.get_slice(key) for key in keys]
        for place in places:
            volume, *masks = (part[place] for part in parts)
            yield volume, *(mask > 0 for mask in masks)


def read_lesion(path: str | os.PathLike[str], subject: str) -> np.ndarray:
    """Read the lesion of one subject, bool ``(X, Y, Z)``, and nothing else.

    Raises:
        DataError: as :func:`read_store`.
    """
    (place,) = _places(path, [subject])
    with _opened(path) as handle:
        return handle.get_slice("lesions")[place] > 0


def _places(path: str | os.PathLike[str], subjects: Sequence[str]) -> list[int]:
    index = {label: i for i, label in enumerate(subjects_in(path))}
    missing = [label for label in subjects if label not in index]
    if missing:
        raise DataError(f"{path}: no subject '{missing[0]}' ({len(missing)} of the split missing).")
    return [index[label] for label in subjects]


def eligible_slices(
    lesions: np.ndarray, *, tumour_free: bool, central: bool = False
) -> list[np.ndarray]:
    """Axial slices that training may draw, by number, for each of bool ``(N, X, Y, Z)`` lesions.

    ``tumour_free`` leaves out slices that touch the lesion (intra-dataset setting); ``central``
    keeps of the others the central half of the volume's depth, as the authors do after stacking
    them (the protocol's ``central_stack``).
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
        chosen.append(slices)
    return chosen


def training_slices(
    path: str | os.PathLike[str], subjects: Sequence[str], data: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """What a training may draw: volumes and masks ``(N, X, Y, Z)``, slice numbers of each.

    Subjects are repeated as often as they are drawn. ``data`` has the ``setting`` of the
    experiment; for ``intra`` also ``intra_slices`` and ``intra_scaling`` (absent: ``scan``).

    Raises:
        DataError: as :func:`read_store`; or a volume has no tumour-free slice.
    """
    intra = data["setting"] == "intra"
    stacked = intra and data["intra_slices"] == "whole_brain_stack"
    if stacked:
        volumes, masks = map(np.stack, zip(*each_volume(path, subjects, STACK_KEYS), strict=True))
        volumes = volumes.astype(np.float32)
        slices = [np.flatnonzero(mask.any(axis=(0, 1))) for mask in masks]
    else:
        part = read_store(path, subjects)
        volumes, masks = part.volumes, part.masks
        central = intra and data["intra_slices"] == "central_stack"
        slices = eligible_slices(part.lesions, tumour_free=intra, central=central)
    for subject, drawn in zip(subjects, slices, strict=True):
        if not len(drawn):
            raise DataError(
                f"{path}: {subject} has no slice without a lesion; exclude the subject."
            )
    if "intra_scaling" in data and not stacked:
        for volume, mask, drawn in zip(volumes, masks, slices, strict=True):
            volume[..., drawn] = percentile_scale(volume[..., drawn], mask[..., drawn])
    return volumes, masks, slices


def write_volumes(path: str | os.PathLike[str], volumes: Mapping[str, np.ndarray]) -> None:
    """Write volumes named ``<role>/<subject>`` as one safetensors file, all from memory."""
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in volumes.items()}, temporary)


@contextlib.contextmanager
def volume_writer(
    path: str | os.PathLike[str],
    names: Iterable[str],
    shape: Sequence[int],
    dtype: type[np.floating],
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Write a file of :func:`write_volumes` volume by volume, in any order: the same bytes.

    The library writes only what is all in memory. The format is the length of the header in 8
    bytes, the header in JSON and the arrays, little-endian, each at the place that it says.

    ``names`` (``<role>/<subject>``) are of all volumes, ``shape`` of each, which becomes float16 or
    float32. Yields a function that writes a volume, given its name and itself; the file is there
    when the block ends.

    Raises:
        ValueError: a volume has another shape, was not announced, is written twice or is missing.
    """
    shape, stored = tuple(shape), np.dtype(dtype).newbyteorder("<")
    size, kind = math.prod(shape) * stored.itemsize, _DTYPES[stored.name]
    places = {name: number * size for number, name in enumerate(sorted(names))}
    entries = {
        name: {"dtype": kind, "shape": shape, "data_offsets": (place, place + size)}
        for name, place in places.items()
    }
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    missing = set(places)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)

        def write(name: str, volume: np.ndarray) -> None:
            if name not in missing:
                raise ValueError(f"{path}: volume {name!r} was not announced, or is there already")
            if volume.shape != shape:
                raise ValueError(f"{path}: {name!r} has shape {volume.shape}, not {shape}")
            file.seek(8 + len(header) + places[name])
            file.write(np.ascontiguousarray(volume, dtype=stored).data)
            missing.remove(name)

        yield write
        if missing:
            raise ValueError(f"{path}: {len(missing)} volumes are missing, such as {min(missing)}")


def names_in(path: str | os.PathLike[str], prefix: str = "") -> list[str]:
    """Names of the volumes of :func:`write_volumes` that start with ``prefix``, sorted."""
    with _opened(path) as handle:
        return sorted(name for name in handle.keys() if name.startswith(prefix))  # noqa: SIM118


def read_volumes(path: str | os.PathLike[str], prefix: str = "") -> Mapping[str, np.ndarray]:
    """The volumes whose name starts with ``prefix``, as float32, sorted by name.

    Each is read when it is asked for, every time, and is not kept.

    Raises:
        DataError: the file is damaged.
    """
    return _StoredVolumes(path, names_in(path, prefix))


class _StoredVolumes(Mapping[str, np.ndarray]):
    def __init__(self, path: str | os.PathLike[str], names: Iterable[str]) -> None:
        self._path = path
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(f"{self._path}: no volume {name!r}")
        # Opened for each: as long as it is open, all of the file that was read counts as memory.
        with _opened(self._path) as handle:
            return handle.get_tensor(name).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
