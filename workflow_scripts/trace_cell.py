"""Where a table's cell comes from, down to the raw files. Usage: trace_cell.py --help."""

import argparse
import sys
from pathlib import Path

from uad.errors import UadError
from uad.files import write_json, write_text
from uad.lineage import METRICS, Lineage, trace
from uad.records import load_records
from uad.reporting.lineage_picture import draw


def main() -> None:
    """Print the tree, write it with its picture, and end with 1 if anything does not match."""
    parser = argparse.ArgumentParser(description="Trace a cell of a table to the raw files.")
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
    args = parser.parse_args()
    lineage = trace(
        load_records(args.results),
        table=args.table,
        row=args.row,
        column=args.column or None,
        metric=args.metric,
        check=not args.no_check,
    )
    text = lineage.text(full=args.all)
    print(text, flush=True)
    folder = args.output or args.results / "audit" / "trace"
    try:
        print(f"Written: {write(lineage, folder, text)}.{{json,png,txt}}")
    except OSError as error:
        print(f"The files could not be written ({error}): name a folder with --output.")
    sys.exit(bool(lineage.problems))


def write(lineage: Lineage, folder: Path, text: str) -> Path:
    """Write the files of a lineage; returns their path without the ending."""
    path = folder / lineage.name
    write_json(f"{path}.json", lineage.as_json())
    write_text(f"{path}.txt", text)
    draw(lineage, f"{path}.png")
    return path


if __name__ == "__main__":
    try:
        main()
    except UadError as error:
        sys.exit(f"ERROR: {error}")
