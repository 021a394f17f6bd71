"""What two files of one name have in common that their bytes do not show: numbers, with tolerances.

A file is read as nested dictionaries and lists, and compared leaf by leaf: arrays, numbers, texts.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
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
    # grey levels of 255: antialiasing
    "picture": Tolerance(2.0),
    # two decimals in print: one in the last place
    "document": Tolerance(0.01),
}
#: What differs between two executions of one notebook: time stamps, durations, the temporary
#: name that it was written under, the random identity of the cell with the parameters.
VOLATILE_METADATA = ("papermill", "execution")
VOLATILE_TEXT = re.compile(
    r"cell-id=[0-9a-f]{8}\b|\.tmp-[^/\s\"]+?-\d+-"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?"
)
#: A number with decimals that stands by itself; counts must agree exactly.
_NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+(?:[eE][-+]?\d+)?|[eE][-+]?\d+))(?![\w.]*\w)")
_PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


@dataclass(frozen=True)
class Difference:
    """How far two contents are apart.

    Attributes:
        state: ``same content``, ``within tolerance`` or ``different``.
        detail: the first difference that is no number, and the largest of numbers with its place.
    """

    state: str
    detail: str = ""


def compare_files(
    here: Path,
    there: Path,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    portable: tuple[Callable[[Any], Any], ...] = (lambda content: content,) * 2,
) -> Difference:
    """Compare the contents of two files of one name whose bytes differ.

    Args:
        here: one.
        there: the other.
        tolerances: one for every kind.
        portable: for each of the two, see ``compare_trees.Run.portable``.
    """
    kind, read = _format_of(here.name)
    if read is None:
        return Difference("different", "other bytes")
    contents = []
    for side, path, place in zip(("here", "there"), (here, there), portable, strict=True):
        try:
            contents.append(dict(_leaves(place(read(path)))))
        except Exception as error:  # every format has exceptions of its own
            return Difference("different", f"cannot be read {side}: {error}")
    ours, theirs = contents
    other, largest, outside = "", (-math.inf, 0.0, ""), False
    for where in dict.fromkeys([*ours, *theirs]):
        if where not in ours or where not in theirs:
            other = other or f"{where} only {'here' if where in ours else 'there'}"
            continue
        found = _apart(ours[where], theirs[where], tolerances, kind)
        if isinstance(found, str):
            other = other or (f"{found} in {where}" if where else found)
        elif found:
            outside |= found[0] > 0
            largest = max(largest, (*found, where))
    _, distance, where = largest
    size = f"largest difference {distance:.3g}{f' ({where})' if where else ''}" if distance else ""
    state = "within tolerance" if distance else "same content"
    state = "different" if other or outside else state
    return Difference(state, "; ".join(text for text in (other, size) if text))


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


def _apart(
    here: Any, there: Any, tolerances: Mapping[str, Tolerance], kind: str
) -> tuple[float, float] | str | None:
    """By how much more than tolerated two leaves differ, and the distance; or in words."""
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (here, there)]
    arrays = [isinstance(value, np.ndarray) for value in (here, there)]
    if not all(numbers) and not all(arrays):
        return None if here == there else f"{_short(here)} and {_short(there)}"
    if all(arrays):
        if here.shape != there.shape or here.dtype != there.dtype:
            return " and ".join(f"{'x'.join(map(str, a.shape))} {a.dtype}" for a in (here, there))
        if kind == "array" and here.dtype.kind not in "fc":
            changed = np.count_nonzero(here != there)
            return f"{changed} of {here.size} integers" if changed else None
        kind = "picture" if kind == "document" else kind
    left, right = (np.asarray(value, np.float64).ravel() for value in (here, there))
    apart = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    if not apart.any():
        return None
    left, right = left[apart], right[apart]
    distance = np.nan_to_num(np.abs(left - right), nan=np.inf, posinf=np.inf)
    size = np.where(np.isfinite(right), np.abs(right), 0.0)
    # a hair more than asked for: 75.84 - 75.83 is not 0.01 in binary
    allowed = (tolerances[kind].absolute + tolerances[kind].relative * size) * (1 + 1e-9)
    return float((distance - allowed).max()), float(distance.max())


def _short(value: Any, most: int = 40) -> str:
    text = " ".join(str(value).split()) if value is not None else "nothing"
    return repr(text if len(text) <= most else text[: most - 1] + "…")


# Readers -------------------------------------------------------------------------------------


def _read_table(path: Path) -> dict[str, list[Any]]:
    """Columns by name."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of different lengths")
    head = rows[0] if rows else []
    return {name: [_number_or_text(row[i]) for row in rows[1:]] for i, name in enumerate(head)}


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"metadata": file.metadata() or {}, **tensors}


def _read_nifti(path: Path) -> dict[str, Any]:
    import nibabel as nib

    image = nib.load(path)
    return {"affine": image.affine, "voxels": np.asanyarray(image.dataobj)}


def _read_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}


def _read_picture(source: Path | io.BytesIO) -> np.ndarray:
    """(height, width, 4) levels of 0 to 255."""
    from PIL import Image

    with Image.open(source) as image:
        return np.asarray(image.convert("RGBA"))


def _decoded(text: str) -> np.ndarray:
    return _read_picture(io.BytesIO(base64.b64decode(text)))


def _words(text: str) -> list[Any]:
    """Pictures, numbers with decimals, and the words between them."""
    found: list[Any] = []
    for i, piece in enumerate(_PICTURE.split(text)):
        if i % 2:
            found.append(_decoded(piece))
            continue
        for j, part in enumerate(_NUMBER.split(VOLATILE_TEXT.sub("", piece))):
            found += [float(part)] if j % 2 else part.split()
    return found


def _read_notebook(path: Path) -> Any:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell.pop("id", None)  # papermill draws one for the cell with the parameters
        for name in VOLATILE_METADATA:
            cell["metadata"].pop(name, None)
    return _with_words(cells)


def _with_words(content: Any, key: str = "") -> Any:
    if key == "image/png":
        return _decoded("".join(content))
    if isinstance(content, dict):
        return {name: _with_words(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_with_words(value) for value in content]
    return _words(content) if isinstance(content, str) else content


def _read_text(path: Path) -> list[Any]:
    return _words(path.read_text(encoding="utf-8"))


#: By ending: kind, and what reads it.
_FORMATS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **dict.fromkeys((".csv", ".tsv"), ("table", _read_table)),
    ".json": ("json", lambda path: json.loads(path.read_text(encoding="utf-8"))),
    ".safetensors": ("array", _read_safetensors),
    ".npy": ("array", lambda path: np.load(path, allow_pickle=False)),
    **dict.fromkeys((".nii", ".nii.gz"), ("array", _read_nifti)),
    ".mat": ("transform", _read_mat),
    **dict.fromkeys((".png", ".webp"), ("picture", _read_picture)),
    **dict.fromkeys((".html", ".md", ".tex", ".txt", ".yaml"), ("document", _read_text)),
    ".ipynb": ("document", _read_notebook),
}


def _format_of(name: str) -> tuple[str, Callable[[Path], Any] | None]:
    """Kind and reader of a file, by its name; no reader: only its bytes can be compared."""
    found = (entry for end, entry in _FORMATS.items() if name.lower().endswith(end))
    return next(found, ("", None))
