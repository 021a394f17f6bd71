"""Trace a cell of a table to the raw files."""

import argparse
from pathlib import Path

from uad.audit.recompute import METRICS
from uad.audit.trace import trace
from uad.audit.trace_text import text_of
from uad.core.files import write_json, write_text
from uad.core.records import load_records


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder")
    parser.add_argument("--table", required=True, help="for example table3")
    parser.add_argument("--row", required=True, help="the method, or its label in the table")
    parser.add_argument(
        "--column", help="experiment/test, its label, or either name alone; if there are several"
    )
    parser.add_argument("--metric", default=METRICS[0], help=" or ".join(METRICS))
    parser.add_argument("--all", action="store_true", help="print all siblings, however many")
    parser.add_argument("--no-check", action="store_true", help="do not hash the files")
    parser.add_argument("--output", type=Path, help="folder (default RESULTS/audit/trace)")


def run(options: argparse.Namespace) -> int:
    """Print the tree and write it; the status is 1 if anything does not match."""
    lineage = trace(
        load_records(options.results),
        table=options.table,
        row=options.row,
        column=options.column or None,
        metric=options.metric,
        check=not options.no_check,
    )
    text = text_of(lineage, options.all)
    print(text, flush=True)
    folder = options.output or options.results / "audit" / "trace"
    cell = lineage.cell
    names = ("table", "row", "experiment", "test", "metric")
    path = folder / "_".join(cell[name] for name in names)
    try:
        write_json(f"{path}.json", lineage.as_json())
        write_text(f"{path}.txt", text)
        print(f"Written: {path}.{{json,txt}}")
    except OSError as error:
        print(f"The files could not be written ({error}): name a folder with --output.")
    return int(bool(lineage.problems))
