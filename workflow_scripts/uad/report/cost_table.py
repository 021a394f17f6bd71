"""What the methods cost, side by side: size, operations, time, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from uad.report.render import NOTHING, Cell, Document, PathLike, Row, digits, write_document

_COUNTS = "parameters peak_memory_mb batch_size slices_per_step slices_per_volume threads".split()
_NUMBERS = (
    "gflops_per_slice_inference gflops_per_slice_training gflops_per_slice_training_late "
    "seconds_per_step seconds_per_step_late seconds_per_step_l1 overhead_percent seconds_per_volume"
).split()
COST_COLUMNS = (
    f"method label parameters {' '.join(_NUMBERS)} peak_memory_mb batch_size slices_per_step "
    "slices_per_volume image_size device threads precision machine"
).split()
#: How a run is described in the caption.
_CONDITIONS = "machine device threads precision batch_size slices_per_volume image_size".split()
_HEADS = [
    ("Network", "parameters"),
    ("GFLOP per slice", "inference"),
    ("GFLOP per slice", "training step"),
    ("Training step [s]", "own loss"),
    ("Training step [s]", "ℓ1 loss"),
    ("Training step [s]", "overhead"),
    ("Test", "s per volume"),
    ("Memory", "peak [MiB]"),
]


def cost_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per method, in the order given.

    The records are those of :func:`uad.cost.measure`, with ``method``, ``label`` and ``loss``.

    Returns:
        A frame with :data:`COST_COLUMNS`. ``overhead_percent`` is how much longer a
        training step takes with the method's loss than with l1 (missing where that is
        its loss, or the time with l1 is not given: the difference would be noise of the clock).
    """
    frame = pd.DataFrame(list(records)).reindex(columns=[*COST_COLUMNS, "loss"])
    frame = frame.astype(dict.fromkeys([*_COUNTS, *_NUMBERS], float))
    longer = frame["seconds_per_step"] / frame["seconds_per_step_l1"] - 1
    return frame.assign(
        **{column: frame[column].round().astype("Int64") for column in _COUNTS},
        overhead_percent=100 * longer.where(frame["loss"] != "l1"),
        image_size=["x".join(map(str, size)) for size in frame["image_size"]],
    )[COST_COLUMNS]


def write_cost_table(
    frame: pd.DataFrame, out_paths: Iterable[PathLike], *, phantom: bool, seed: str
) -> None:
    """Write the frame of :func:`cost_table`, as :func:`uad.report.tables.write_table` does."""
    conditions = {
        condition.replace("_", " "): " or ".join(map(str, frame[condition].dropna().unique()))
        for condition in _CONDITIONS
    }
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    document = Document.of(
        "cost",
        phantom=phantom,
        table={
            "corner": "Method",
            "heads": _HEADS,
            "rows": [Row(record["label"], list(map(Cell, _texts(record)))) for record in records],
            "panel": len(_HEADS),
        },
        seed=seed,
        conditions=[f"{name} {text}" for name, text in conditions.items() if text],
        staged=bool(frame["seconds_per_step_late"].notna().any()),
        dash=NOTHING,
    )
    write_document(out_paths, document, frame[COST_COLUMNS], "%.6g")


def _texts(record: Mapping[str, Any]) -> list[str]:
    """The cells of a method; None is what does not apply to it."""
    overhead, parameters = record["overhead_percent"], record["parameters"]
    return [
        NOTHING if parameters is None else f"{digits(parameters / 1e6)} M",
        digits(record["gflops_per_slice_inference"]),
        _stages(record, "gflops_per_slice_training"),
        _stages(record, "seconds_per_step"),
        digits(record["seconds_per_step_l1"]),
        NOTHING if overhead is None else f"{round(overhead):+d} %".replace("-", "−"),
        digits(record["seconds_per_volume"]),
        str(record["peak_memory_mb"]),
    ]


def _stages(record: Mapping[str, Any], column: str) -> str:
    """The number at the start of the training, and the one at its end if it may differ."""
    late = record[f"{column}_late"]
    return digits(record[column]) + ("" if late is None else f" / {digits(late)}")
