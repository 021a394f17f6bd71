"""What the methods cost, side by side: size, operations, time, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from uad.core.errors import DataError
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    checked_facts,
    csv_text,
    html_page,
    latex,
    markdown,
    write_all,
)

__all__ = ["COST_COLUMNS", "cost_table", "write_cost_table"]

_COUNTS = [
    "parameters",
    "peak_memory_mb",
    "batch_size",
    "slices_per_step",
    "slices_per_volume",
    "threads",
]
_NUMBERS = [
    "gflops_per_slice_inference",
    "gflops_per_slice_training",
    "gflops_per_slice_training_late",
    "seconds_per_step",
    "seconds_per_step_late",
    "seconds_per_step_l1",
    "overhead_percent",
    "seconds_per_volume",
]
COST_COLUMNS = [
    "method",
    "label",
    "parameters",
    "gflops_per_slice_inference",
    "gflops_per_slice_training",
    "gflops_per_slice_training_late",
    "seconds_per_step",
    "seconds_per_step_late",
    "seconds_per_step_l1",
    "overhead_percent",
    "seconds_per_volume",
    "peak_memory_mb",
    "batch_size",
    "slices_per_step",
    "slices_per_volume",
    "image_size",
    "device",
    "threads",
    "precision",
    "machine",
]
#: Fields that a record may lack.
_OPTIONAL = (
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
    needed = [c for c in COST_COLUMNS if c not in ("overhead_percent", *_OPTIONAL)]
    rows = []
    for number, record in enumerate(records, 1):
        name = record.get("method", f"record {number}")
        missing = [column for column in needed if column not in record]
        if missing:
            raise DataError(f"cost of {name}: the fields {', '.join(missing)} are missing.")
        row = {column: record.get(column) for column in (*needed, *_OPTIONAL)}
        for column in [*_COUNTS, *_NUMBERS]:
            value = row.get(column)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"cost of {name}: {column} is {value!r}, expected a number.")
            if not (math.isfinite(value) and value >= 0):
                raise DataError(f"cost of {name}: {column} is {value}.")
        own, plain = row["seconds_per_step"], row["seconds_per_step_l1"]
        compares = own is not None and plain and record.get("loss") != "l1"
        row["overhead_percent"] = 100 * (own / plain - 1) if compares else None
        row["label"] = row["label"] or name
        size = row["image_size"]
        if size is not None and not isinstance(size, str):
            row["image_size"] = "x".join(str(side) for side in size)
        rows.append(row)
    if not rows:
        raise DataError("No records of cost were given.")
    frame = pd.DataFrame(rows, columns=COST_COLUMNS)
    if frame["method"].duplicated().any():
        twice = frame.loc[frame["method"].duplicated(), "method"].iloc[0]
        raise DataError(f"cost of {twice}: given twice.")
    kinds: dict[str, Any] = dict.fromkeys(_NUMBERS, float) | dict.fromkeys(_COUNTS, "Int64")
    frame[_COUNTS] = frame[_COUNTS].astype(float).round()
    return frame.astype(kinds)


def write_cost_table(
    frame: pd.DataFrame,
    out_paths: Iterable[PathLike] | Mapping[str, PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
    title: str = "Cost of the methods",
) -> None:
    """Write the frame of :func:`cost_table` as ``.csv``, ``.md``, ``.html`` or ``.tex``.

    Args:
        frame: from :func:`cost_table`.
        out_paths: files to write; their suffixes choose the formats.
        phantom: the networks are those of a phantom run: title and caption say so.
        caption_facts: ``data_source`` (what was fed to the networks), ``seed``, and
            ``notes`` as for :func:`uad.report.tables.write_table`.
        title: the table's title.
    """
    document = _document(frame, phantom, checked_facts(caption_facts), title)
    write_all(
        out_paths,
        {
            ".csv": lambda: csv_text(frame[COST_COLUMNS], "%.6g"),
            ".md": lambda: markdown(document),
            ".html": lambda: html_page(document),
            ".tex": lambda: latex(document),
        },
    )


def _document(frame: pd.DataFrame, phantom: bool, facts: Mapping[str, Any], title: str) -> Document:
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
    rows = [
        Row(
            str(record["label"]),
            [
                Cell(text)
                for text in (
                    _parameters(record["parameters"]),
                    _short(record["gflops_per_slice_inference"]),
                    _stages(record, "gflops_per_slice_training"),
                    _stages(record, "seconds_per_step"),
                    _short(record["seconds_per_step_l1"]),
                    _percent(record["overhead_percent"]),
                    _short(record["seconds_per_volume"]),
                    _whole(record["peak_memory_mb"]),
                    *(_text(record, column) for column in varying),
                )
            ],
        )
        for _, record in frame.iterrows()
    ]
    return Document(
        name="cost",
        title=f"{title} (phantom data)" if phantom else title,
        caption=_caption(frame, varying, facts),
        warning=_PHANTOM_WARNING if phantom else "",
        corner="Method",
        heads=heads,
        rows=rows,
        footnotes=[*_footnotes(frame), *map(str, facts["notes"])],
        panel=len(heads),
    )


def _footnotes(frame: pd.DataFrame) -> list[str]:
    """What the columns mean."""
    staged = not frame["seconds_per_step_late"].isna().all()
    return [
        "GFLOP: 10⁹ multiplications and additions, counted apart, of convolutions, matrix "
        "products and attention; nothing else is counted, no loss and no noise either. Training "
        "step: forward and backward pass, per slice of the batch, without the optimiser.",
        "Seconds per training step: forward and backward pass and the optimiser's step, without "
        "loading of data; median of up to five steps, of fewer where they are slow.",
        *(
            ["a / b: at the start / at the end of a training that may have stages."]
            if staged
            else []
        ),
        "Overhead: how much longer a training step takes with the method's own loss than with ℓ1, "
        "for methods whose loss has a structural term such as SSIM. Both are timed in few steps: "
        "differences of some per cent are noise.",
        "Seconds per volume: one volume restored, in the precision of training.",
        "Peak memory, of training steps and volumes together: on a GPU what PyTorch allocated "
        "there; on a CPU the whole process, with Python and all libraries.",
        f"{_NONE} does not apply: training of a method that is not trained; ℓ1 and overhead for "
        "a loss without a structural term or a method with a loss of its own.",
    ]


def _caption(frame: pd.DataFrame, varying: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """Where and how the numbers were measured."""
    shared = [
        f"{name} {_text(frame.iloc[0], column)}"
        for column, name in _CONDITIONS.items()
        if column not in varying and not _missing(frame[column].iloc[0])
    ]
    machine = f"Measured on: {', '.join(shared)}." if shared else ""
    return [
        text
        for text in (
            "All values were measured in this run, on the machine named here; the paper "
            "publishes none, and times are comparable within this table only.",
            machine,
            f"Input: {str(facts['data_source']).rstrip('.')}. Seed {facts['seed']}.",
        )
        if text
    ]


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _text(record: pd.Series, column: str) -> str:
    if _missing(record[column]):
        return _NONE
    text = str(record[column])
    return text.replace("x", "×") if column == "image_size" else text


def _parameters(value: Any) -> str:
    """``14.9 M``, ``310 k`` or the number itself."""
    if _missing(value):
        return _NONE
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if value >= unit:
            return f"{_digits(float(value) / unit)} {name}"
    return str(int(value))


def _digits(number: float) -> str:
    """Three significant digits."""
    if number == 0:
        return "0"
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:#.3g}".rstrip(".")


def _short(value: Any) -> str:
    return _NONE if _missing(value) else _digits(float(value))


def _stages(record: pd.Series, column: str) -> str:
    """The number at the start of the training, and the one at its end if it may differ."""
    texts = [_short(record[column])]
    if not _missing(record[f"{column}_late"]):
        texts.append(_short(record[f"{column}_late"]))
    return " / ".join(texts)


def _whole(value: Any) -> str:
    return _NONE if _missing(value) else f"{int(value)}"


def _percent(value: Any) -> str:
    if _missing(value):
        return _NONE
    return f"{'−' if round(value) < 0 else '+'}{abs(value):.0f} %"
