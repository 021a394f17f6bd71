"""Whether two files of one name hold the same, by the numbers in them.

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
SAME, CLOSE, DIFFERENT = "same content", "within tolerance", "different"


def compare_files(
    here: Path,
    there: Path,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    portable: tuple[Callable[[str], str], ...] = (str, str),
) -> tuple[str, str]:
    """Compare two files of one name whose bytes differ.

    ``portable`` makes paths in the text of each independent of the machine.

    Returns:
        ``same content``, ``within tolerance`` or ``different``, and the first difference of that
        kind, the values here and there with an arrow between.
    """
    kind = next((kind for end, kind in KINDS.items() if here.name.lower().endswith(end)), "")
    if not kind:
        return DIFFERENT, "other bytes"
    contents = []
    for side, path, replace in zip(("here", "there"), (here, there), portable, strict=True):
        try:
            contents.append(dict(leaves(_read(path, kind, replace))))
        except Exception as error:  # every format has exceptions of its own
            return DIFFERENT, f"cannot be read {side}: {error}"
    ours, theirs = contents
    state, first = SAME, ""
    for where in dict.fromkeys([*ours, *theirs]):
        if where not in ours or where not in theirs:
            return DIFFERENT, f"{where} only {'here' if where in ours else 'there'}"
        found, detail = _compareleaves(ours[where], theirs[where], tolerances[kind])
        if found == DIFFERENT:
            return DIFFERENT, f"{where}: {detail}"
        if found == CLOSE and state == SAME:
            state, first = CLOSE, f"{where}: {detail}"
    return state, first


def leaves(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays, numbers and texts of nested data, each with its place."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from leaves(value, f"{where}[{i}]")
    else:
        yield where, content


def _compareleaves(here: Any, there: Any, tolerance: Tolerance) -> tuple[str, str]:
    types = {type(here), type(there)}
    if not (types <= {int, float} or types == {np.ndarray}):
        detail = " → ".join(repr(str(value)[:40]) for value in (here, there))
        return (SAME if here == there else DIFFERENT), detail
    left, right = np.asarray(here), np.asarray(there)
    if left.shape != right.shape or (left.ndim and left.dtype != right.dtype):
        texts = (f"{'x'.join(map(str, array.shape))} {array.dtype}" for array in (left, right))
        return DIFFERENT, " → ".join(texts)
    exactly = left.ndim and left.dtype.kind not in "fc"  # masks
    left, right = left.astype(np.float64), right.astype(np.float64)
    if np.array_equal(left, right, equal_nan=True):
        return SAME, ""
    if not left.ndim:
        detail = f"{here} → {there}"
    elif exactly:
        detail = f"{np.count_nonzero(left != right)} of {left.size} integers"
    else:
        detail = f"up to {np.nanmax(np.abs(left - right)):.3g}"
    # a hair more than asked for: 75.84 - 75.83 is not 0.01 in binary
    limits = {"atol": tolerance.absolute * (1 + 1e-9), "rtol": tolerance.relative}
    close = not exactly and np.allclose(left, right, equal_nan=True, **limits)
    return (CLOSE if close else DIFFERENT), detail


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
