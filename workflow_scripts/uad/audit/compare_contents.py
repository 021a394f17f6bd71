"""What two files of a kind have in common that their bytes do not show: numbers, with tolerances.

A file is read as nested dictionaries and lists of arrays, numbers and texts. Paths that differ only
because the runs lie in different places are made alike by ``portable``, see ``compare_trees.Run``.
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

#: Turns plain data of a run into what they would be in another place.
Portable = Callable[[Any], Any]


@dataclass(frozen=True)
class Tolerance:
    """Two numbers agree if they differ by no more than ``absolute + relative * |other|``.

    Attributes:
        absolute: in the unit of the number.
        relative: share of the other number.
    """

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
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+(?:[eE][-+]?\d+)?|[eE][-+]?\d+)(?![\w.]*\w)")
_PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


@dataclass
class Difference:
    """How far two contents are apart.

    Attributes:
        absolute: largest absolute difference of two numbers.
        relative: largest difference of two numbers as a share of the other.
        outside: numbers that differ by more than the tolerance.
        where: column, tensor or key of the largest excess over the tolerance.
        other: what differs and is not a number; empty if nothing is.
    """

    absolute: float = 0.0
    relative: float = 0.0
    outside: int = 0
    where: str = ""
    other: str = ""
    _excess: float = -math.inf

    @property
    def state(self) -> str:
        """``same content``, ``within tolerance`` or ``different``."""
        if self.other or self.outside:
            return "different"
        return "within tolerance" if self.absolute else "same content"

    def __str__(self) -> str:
        parts = [self.other] if self.other else []
        if self.absolute:
            where = f" ({self.where})" if self.where else ""
            sizes = f"{self.absolute:.3g}, relative {self.relative:.2g}"
            parts.append(f"largest difference {sizes}{where}")
        return "; ".join(parts)

    def add(self, here: Any, there: Any, tolerance: Tolerance, where: str) -> None:
        """Take in two numbers, or two arrays of one shape."""
        here, there = (np.asarray(value, dtype=np.float64).ravel() for value in (here, there))
        apart = ~((here == there) | (np.isnan(here) & np.isnan(there)))
        if not apart.any():
            return
        here, there = here[apart], there[apart]
        distance = np.nan_to_num(np.abs(here - there), nan=np.inf, posinf=np.inf)
        size = np.where(np.isfinite(there), np.abs(there), 0.0)
        # a hair more than asked for: 75.84 - 75.83 is not 0.01 in binary
        excess = distance - (tolerance.absolute + tolerance.relative * size) * (1 + 1e-9)
        with np.errstate(divide="ignore"):
            share = distance / size
        self.outside += int(np.count_nonzero(excess > 0))
        self.absolute = max(self.absolute, float(distance.max()))
        self.relative = max(self.relative, float(share.max()))
        if excess.max() > self._excess:
            self._excess, self.where = float(excess.max()), where

    def note(self, text: str, where: str = "") -> None:
        """Say what else differs; the first counts."""
        self.other = self.other or f"{text}{f' in {where}' if where else ''}"


def compare_files(
    here: Path,
    there: Path,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    portable: tuple[Portable, Portable] = (lambda content: content,) * 2,
) -> Difference:
    """Compare the contents of two files of one name whose bytes differ.

    Args:
        here: one.
        there: the other.
        tolerances: one for every kind.
        portable: for each of the two, see the module.
    """
    difference = Difference()
    kind = kind_of(here.name)
    if kind is None:
        difference.note("other bytes")
        return difference
    contents = []
    for side, path, place in zip(("here", "there"), (here, there), portable, strict=True):
        try:
            contents.append(place(_reader_of(path.name)(path)))
        except Exception as error:  # every format has exceptions of its own
            difference.note(f"cannot be read {side}: {error}")
            return difference
    _compare(*contents, difference, tolerances, kind, "")
    return difference


def _compare(
    here: Any,
    there: Any,
    difference: Difference,
    tolerances: Mapping[str, Tolerance],
    kind: str,
    where: str,
) -> None:
    """Compare what the readers give."""
    if isinstance(here, _Picture) and isinstance(there, _Picture):
        # signed, so that levels can be subtracted
        left, right = here.pixels.astype(np.float32), there.pixels.astype(np.float32)
        _compare_arrays(left, right, difference, tolerances["picture"], where)
    elif isinstance(here, np.ndarray) and isinstance(there, np.ndarray):
        _compare_arrays(here, there, difference, tolerances[kind], where)
    elif isinstance(here, dict) and isinstance(there, dict):
        for key in dict.fromkeys([*here, *there]):
            name = f"{where}.{key}" if where else str(key)
            if key not in here or key not in there:
                difference.note(f"{name} only {'here' if key in here else 'there'}")
            else:
                _compare(here[key], there[key], difference, tolerances, kind, name)
    elif isinstance(here, list) and isinstance(there, list):
        if len(here) != len(there):
            difference.note(f"{len(here)} and {len(there)} entries", where)
            return
        for left, right in zip(here, there, strict=True):
            _compare(left, right, difference, tolerances, kind, where)
    elif _is_number(here) and _is_number(there):
        difference.add(here, there, tolerances[kind], where)
    elif here != there:
        difference.note(f"{_short(here)} and {_short(there)}", where)


def _compare_arrays(
    here: np.ndarray, there: np.ndarray, difference: Difference, tolerance: Tolerance, where: str
) -> None:
    if here.shape != there.shape or here.dtype != there.dtype:
        sizes = (f"{'x'.join(map(str, a.shape))} {a.dtype}" for a in (here, there))
        difference.note(" and ".join(sizes), where)
    elif here.dtype.kind in "fc":
        difference.add(here, there, tolerance, where)
    elif not np.array_equal(here, there):
        changed = np.count_nonzero(here != there)
        largest = np.abs(here.astype(np.float64) - there.astype(np.float64)).max()
        difference.note(f"{changed} of {here.size} integers, by up to {largest:g}", where)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any, most: int = 40) -> str:
    text = " ".join(str(value).split()) if value is not None else "nothing"
    return repr(text if len(text) <= most else text[: most - 1] + "…")


# Readers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """A picture, alone or in a document: (height, width, 4) levels of 0 to 255."""

    pixels: np.ndarray


def _read_table(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))
    head, body = (rows[0], rows[1:]) if rows else ([], [])
    if any(len(row) != len(head) for row in body):
        raise ValueError("rows of different lengths")
    return {name: [_number_or_text(row[i]) for row in body] for i, name in enumerate(head)}


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _read_safetensors(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"metadata": file.metadata() or {}, **tensors}


def _read_nifti(path: Path) -> Any:
    import nibabel as nib

    image = nib.load(path)
    return {"affine": image.affine, "voxels": np.asanyarray(image.dataobj)}


def _read_mat(path: Path) -> Any:
    from scipy.io import loadmat

    return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}


def _picture(source: Path | io.BytesIO) -> _Picture:
    from PIL import Image

    with Image.open(source) as image:
        return _Picture(np.asarray(image.convert("RGBA")))


def _parts(text: str) -> Iterator[Any]:
    """Pictures, numbers with decimals, and the words between them."""
    for i, piece in enumerate(_PICTURE.split(text)):
        if i % 2:
            yield _picture(io.BytesIO(base64.b64decode(piece)))
            continue
        piece, end = VOLATILE_TEXT.sub("", piece), 0
        for number in _NUMBER.finditer(piece):
            yield from piece[end : number.start()].split()
            value = float(number[0])
            yield value if math.isfinite(value) else number[0]
            end = number.end()
        yield from piece[end:].split()


def _read_notebook(path: Path) -> Any:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell.pop("id", None)  # papermill draws one for the cell with the parameters
        for name in VOLATILE_METADATA:
            cell["metadata"].pop(name, None)
    return _document(cells)


def _document(content: Any) -> Any:
    if isinstance(content, dict):
        picture = content.get("image/png")
        found = {key: _document(value) for key, value in content.items() if key != "image/png"}
        if picture is not None:
            found["image/png"] = _picture(io.BytesIO(base64.b64decode("".join(picture))))
        return found
    if isinstance(content, list):
        return [_document(value) for value in content]
    return list(_parts(content)) if isinstance(content, str) else content


def _read_text(path: Path) -> Any:
    return list(_parts(path.read_text(encoding="utf-8")))


#: By ending: kind, and what reads it.
_FORMATS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    ".csv": ("table", _read_table),
    ".tsv": ("table", _read_table),
    ".json": ("json", lambda path: json.loads(path.read_text(encoding="utf-8"))),
    ".safetensors": ("array", _read_safetensors),
    ".npy": ("array", lambda path: np.load(path, allow_pickle=False)),
    ".nii": ("array", _read_nifti),
    ".nii.gz": ("array", _read_nifti),
    ".mat": ("transform", _read_mat),
    ".png": ("picture", _picture),
    ".webp": ("picture", _picture),
    **dict.fromkeys((".html", ".md", ".tex", ".txt", ".yaml"), ("document", _read_text)),
    ".ipynb": ("document", _read_notebook),
}


def kind_of(name: str) -> str | None:
    """Kind of a file, by the ending of its name; None: only its bytes can be compared."""
    return next((kind for end, (kind, _) in _FORMATS.items() if name.lower().endswith(end)), None)


def _reader_of(name: str) -> Callable[[Path], Any]:
    return next(read for end, (_, read) in _FORMATS.items() if name.lower().endswith(end))
