"""What the methods cost, side by side: size, operations, time, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from uad.core.errors import DataError
from uad.report.metric_files import check_unique
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    csv_text,
    titled,
    write_document,
)

#: Column of the CSV -> what it holds.
_COLUMNS = {
    "method": str,
    "label": str,
    "parameters": int,
    "gflops_per_slice_inference": float,
    "gflops_per_slice_training": float,
    "gflops_per_slice_training_late": float,
    "seconds_per_step": float,
    "seconds_per_step_late": float,
    "seconds_per_step_l1": float,
    "overhead_percent": float,
    "seconds_per_volume": float,
    "peak_memory_mb": int,
    "batch_size": int,
    "slices_per_step": int,
    "slices_per_volume": int,
    "image_size": str,
    "device": str,
    "threads": int,
    "precision": str,
    "machine": str,
}
COST_COLUMNS = list(_COLUMNS)
#: Fields that a record may lack.
_OPTIONAL = (
    "overhead_percent",  # computed here
    "gflops_per_slice_training_late",
    "seconds_per_step_late",
    "slices_per_step",
    "slices_per_volume",
    "machine",
)
#: How a run is described: in the caption where it is the same for all methods.
_CONDITIONS = {
    "machine": "machine",
    "device": "device",
    "threads": "threads",
    "precision": "precision",
    "batch_size": "batch size",
    "slices_per_step": "slices per step",
    "slices_per_volume": "slices per volume",
    "image_size": "image size",
}
_PHANTOM_WARNING = (
    "These are the costs of a phantom run: its networks and volumes are as large as its "
    "configuration says, which need not be the sizes of the paper."
)
_NONE = "–"


def cost_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per method, in the order given.

    Args:
        records: mappings with the fields of :data:`COST_COLUMNS` (but ``overhead_percent``,
            which is computed here); None where a method has no such thing, as the training
            of one that is not trained. They may lack ``machine`` (in words), ``slices_per_step``,
            ``slices_per_volume``, the two ``_late`` (the end of a training whose stages
            differ) and ``loss`` (the method's own). Further fields are not read.

    Returns:
        A frame with :data:`COST_COLUMNS`. ``overhead_percent`` is how much longer a
        training step takes with the method's loss than with l1 (missing where that is
        its loss, or the time with l1 is not given: the difference would be noise of the clock).

    Raises:
        DataError: no records, a field is missing, a method is given twice, or a number is
            negative or no number.
    """
    if not records:
        raise DataError("No records of cost were given.")
    frame = pd.DataFrame([_checked(record) for record in records], columns=COST_COLUMNS)
    check_unique(frame, ["method"], "records of cost")
    counts = [column for column, kind in _COLUMNS.items() if kind is int]
    frame[counts] = frame[counts].astype(float).round().astype("Int64")
    return frame.astype({column: float for column, kind in _COLUMNS.items() if kind is float})


def _checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table, from the record of a method."""
    name = record.get("method", "a method without a name")
    missing = [c for c in COST_COLUMNS if c not in record and c not in _OPTIONAL]
    if missing:
        raise DataError(f"cost of {name}: the fields {', '.join(missing)} are missing.")
    row = {column: record.get(column) for column in COST_COLUMNS}
    for column, kind in _COLUMNS.items():
        value = row[column]
        if kind is str or value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (math.isfinite(value) and value >= 0):
            raise DataError(f"cost of {name}: {column} is {value!r}, expected a number.")
    own, plain = row["seconds_per_step"], row["seconds_per_step_l1"]
    compares = own is not None and plain and record.get("loss") != "l1"
    row["overhead_percent"] = 100 * (own / plain - 1) if compares else None
    row["label"] = row["label"] or name
    if isinstance(row["image_size"], list | tuple):
        row["image_size"] = "x".join(map(str, row["image_size"]))
    return row


def write_cost_table(
    frame: pd.DataFrame,
    out_paths: Iterable[PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
) -> None:
    """Write the frame of :func:`cost_table`, as :func:`uad.report.tables.write_table` does."""
    varying = [c for c in _CONDITIONS if frame[c].astype(str).nunique() > 1]
    heads = [
        ("Network", "parameters"),
        ("GFLOP per slice", "inference"),
        ("GFLOP per slice", "training step"),
        ("Training step [s]", "own loss"),
        ("Training step [s]", "ℓ1 loss"),
        ("Training step [s]", "overhead"),
        ("Test", "s per volume"),
        ("Memory", "peak [MiB]"),
        *(("Measured with", _CONDITIONS[column]) for column in varying),
    ]
    document = Document(
        name="cost",
        title=titled("Cost of the methods", phantom),
        caption=_caption(frame, varying, caption_facts),
        warning=_PHANTOM_WARNING if phantom else "",
        corner="Method",
        heads=heads,
        rows=[
            Row(record["label"], list(map(Cell, _texts(record, varying))))
            for record in frame.astype(object).where(frame.notna(), None).to_dict("records")
        ],
        footnotes=[*_footnotes(frame), *caption_facts.get("notes", ())],
        panel=len(heads),
    )
    write_document(out_paths, document, csv_text(frame[COST_COLUMNS], "%.6g"))


def _texts(record: Mapping[str, Any], varying: Sequence[str]) -> list[str]:
    """The cells of a method; None is what does not apply to it."""
    overhead = record["overhead_percent"]
    return [
        _parameters(record["parameters"]),
        _short(record["gflops_per_slice_inference"]),
        _stages(record, "gflops_per_slice_training"),
        _stages(record, "seconds_per_step"),
        _short(record["seconds_per_step_l1"]),
        _NONE if overhead is None else f"{overhead:+.0f} %".replace("-", "−").replace("−0 ", "+0 "),
        _short(record["seconds_per_volume"]),
        _text(record, "peak_memory_mb"),
        *(_text(record, column) for column in varying),
    ]


def _text(record: Mapping[str, Any], column: str) -> str:
    if record[column] is None:
        return _NONE
    text = str(record[column])
    return text.replace("x", "×") if column == "image_size" else text


def _parameters(value: int | None) -> str:
    """``14.9 M``, ``310 k`` or the number itself."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if value is not None and value >= unit:
            return f"{_short(value / unit)} {name}"
    return _NONE if value is None else str(value)


def _short(number: float | None) -> str:
    """Three significant digits."""
    if number is None:
        return _NONE
    if number == 0 or number >= 100:
        return f"{number:.0f}"
    return f"{number:#.3g}".rstrip(".")


def _stages(record: Mapping[str, Any], column: str) -> str:
    """The number at the start of the training, and the one at its end if it may differ."""
    late = record[f"{column}_late"]
    return _short(record[column]) + ("" if late is None else f" / {_short(late)}")


def _caption(frame: pd.DataFrame, varying: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """Where and how the numbers were measured."""
    first = frame.iloc[0]
    shared = [
        f"{name} {_text(first, column)}"
        for column, name in _CONDITIONS.items()
        if column not in varying and not pd.isna(first[column])
    ]
    return [
        "All values were measured in this run, on the machine named here; the paper "
        "publishes none, and times are comparable within this table only.",
        *([f"Measured on: {', '.join(shared)}."] if shared else []),
        f"Input: {facts['data_source']}. Seed {facts['seed']}.",
    ]


def _footnotes(frame: pd.DataFrame) -> list[str]:
    """What the columns mean."""
    staged = bool(frame["seconds_per_step_late"].notna().any())
    return [
        "GFLOP: 10⁹ multiplications and additions, counted apart, of convolutions, matrix "
        "products and attention; nothing else is counted, no loss and no noise either. Training "
        "step: forward and backward pass, per slice of the batch, without the optimiser.",
        "Seconds per training step: forward and backward pass and the optimiser's step, without "
        "loading of data; median of up to five steps, of fewer where they are slow.",
        *["a / b: at the start / at the end of a training that may have stages."] * staged,
        "Overhead: how much longer a training step takes with the method's own loss than with ℓ1, "
        "for methods whose loss has a structural term such as SSIM. Both are timed in few steps: "
        "differences of some per cent are noise.",
        "Seconds per volume: one volume restored, in the precision of training.",
        "Peak memory, of training steps and volumes together: on a GPU what PyTorch allocated "
        "there; on a CPU the whole process, with Python and all libraries.",
        f"{_NONE} does not apply: training of a method that is not trained; ℓ1 and overhead for "
        "a loss without a structural term or a method with a loss of its own.",
    ]
