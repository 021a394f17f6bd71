"""How far the numbers of two files of one name are apart.

Kinds that hold numbers are read as nested data and compared leaf by leaf; of all others only the
bytes tell that they differ.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Tolerance(NamedTuple):
    """Two numbers agree if they differ by no more than ``absolute + relative * |other|``."""

    absolute: float
    relative: float = 0.0


#: By kind of file. A kind is what ``--tolerance`` names.
TOLERANCES = {
    # tables are written with four decimals: one in the last place
    "table": Tolerance(1e-4, 1e-4),
    # thresholds, AIR, sidecars: full precision of numbers of about 1
    "json": Tolerance(1e-6, 1e-4),
    # float32 sums in another order, of intensities and weights of about 1
    "array": Tolerance(1e-5, 1e-4),
    # matrix and millimetres of an affine, stored as float32
    "transform": Tolerance(1e-4, 1e-4),
}


def compare_files(
    here: Path,
    there: Path,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    portable: tuple[Callable[[str], str], ...] = (str, str),
) -> tuple[str, str]:
    """Compare the contents of two files of one name whose bytes differ.

    ``portable`` makes paths in the text of each independent of the machine.

    Returns:
        ``same content``, ``within tolerance`` or ``different``, and the first difference that is
        no number with the largest of numbers.
    """
    kind = next((kind for end, kind in KINDS.items() if here.name.lower().endswith(end)), "")
    if not kind:
        return "different", "other bytes"
    contents = []
    for side, path, replace in zip(("here", "there"), (here, there), portable, strict=True):
        try:
            contents.append(dict(_leaves(_read(path, kind, replace))))
        except Exception as error:  # every format has exceptions of its own
            return "different", f"cannot be read {side}: {error}"
    ours, theirs = contents
    words, largest, outside = [], (0.0, ""), False
    for where in dict.fromkeys([*ours, *theirs]):
        if where not in ours or where not in theirs:
            words.append(f"{where} only {'here' if where in ours else 'there'}")
            continue
        found = _distance(ours[where], theirs[where], tolerances[kind])
        if isinstance(found, str):
            words.append(f"{found} in {where}")
        elif found:
            outside |= found[0] > 0
            largest = max(largest, (found[1], where))
    distance, where = largest
    size = [f"largest difference {distance:.3g} ({where})"] if distance else []
    state = "within tolerance" if distance else "same content"
    return "different" if words or outside else state, "; ".join([*words[:1], *size])


def _leaves(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays, numbers and texts of nested data, each with its place."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from _leaves(value, f"{where}[{i}]")
    else:
        yield where, content


def _distance(here: Any, there: Any, tolerance: Tolerance) -> tuple[float, float] | str | None:
    """By how much more than tolerated two leaves differ, and the distance; or in words."""
    kinds = {type(here), type(there)}
    if not kinds <= {int, float} and kinds != {np.ndarray}:
        return None if here == there else " and ".join(repr(str(v)[:40]) for v in (here, there))
    if isinstance(here, np.ndarray):
        if here.shape != there.shape or here.dtype != there.dtype:
            return " and ".join(f"{'x'.join(map(str, a.shape))} {a.dtype}" for a in (here, there))
        if here.dtype.kind not in "fc":  # masks
            changed = np.count_nonzero(here != there)
            return f"{changed} of {here.size} integers" if changed else None
    left, right = (np.asarray(value, np.float64).ravel() for value in (here, there))
    apart = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    if not apart.any():
        return None
    left, right = left[apart], right[apart]
    distance = np.nan_to_num(np.abs(left - right), nan=np.inf, posinf=np.inf)
    size = np.where(np.isfinite(right), np.abs(right), 0.0)
    # a hair more than asked for: 75.84 - 75.83 is not 0.01 in binary
    allowed = (tolerance.absolute + tolerance.relative * size) * (1 + 1e-9)
    return float((distance - allowed).max()), float(distance.max())


#: Kind by the end of a name.
KINDS = {
    ".csv": "table",
    ".tsv": "table",
    ".json": "json",
    ".safetensors": "array",
    ".nii": "array",
    ".nii.gz": "array",
    ".mat": "transform",
}


def _read(path: Path, kind: str, replace: Callable[[str], str]) -> Any:
    if kind == "json":
        return json.loads(replace(path.read_text(encoding="utf-8")))
    if kind == "table":
        text = io.StringIO(replace(path.read_text(encoding="utf-8")))
        separator = "\t" if path.suffix == ".tsv" else ","
        table = pd.read_csv(text, sep=separator, dtype=str, keep_default_na=False)
        return {name: list(map(_number_or_text, table[name])) for name in table}
    if kind == "transform":
        from scipy.io import loadmat

        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return {"metadata": file.metadata() or {}, **tensors}
    import nibabel as nib

    image = nib.load(path)
    return {"affine": image.affine, "voxels": np.asanyarray(image.dataobj)}


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
