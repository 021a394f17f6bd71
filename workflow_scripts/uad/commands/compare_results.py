"""Compare two runs, artifact by artifact (docs/comparing-runs.md).

Exit status: 0 identical, also within tolerance; 1 different; 2 not comparable.
"""

import argparse
from pathlib import Path

from uad.audit.compare import compare_runs, page, summary
from uad.audit.compare_contents import TOLERANCES, Tolerance
from uad.audit.compared_run import open_run
from uad.core.errors import DataError
from uad.core.files import write_json, write_text


def tolerance(text: str) -> tuple[str, Tolerance]:
    """``array=1e-5`` or ``array=1e-5,1e-4``: a kind, its absolute and its relative tolerance."""
    kind, _, numbers = text.partition("=")
    if kind not in TOLERANCES:
        raise argparse.ArgumentTypeError(f"no kind {kind!r}; there are {', '.join(TOLERANCES)}")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=ABSOLUTE or KIND=ABSOLUTE,RELATIVE")
    return kind, Tolerance(*values)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("results", help="results folder, or crate: folder or zip with results/")
    parser.add_argument("other", help="likewise")
    parser.add_argument(
        "--tolerance",
        metavar="KIND=ABS[,REL]",
        action="append",
        type=tolerance,
        default=[],
        help=f"kinds: {', '.join(TOLERANCES)}; may be repeated",
    )
    parser.add_argument("--output", type=Path, help="folder of the reports (RESULTS/audit)")


def run(options: argparse.Namespace) -> int:
    """Compare, write the reports, print the summary."""
    with open_run(options.results) as here, open_run(options.other) as there:
        if options.output is None and Path(options.results).is_file():
            raise DataError("where shall the reports of a zip go? Name a folder: --output FOLDER")
        comparison = compare_runs(here, there, dict(options.tolerance))
        folder = options.output or here.records.root / "audit"
        try:
            write_json(folder / "compare.json", comparison)
            write_text(folder / "compare.html", page(comparison))
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written to ({error}). Name another folder: --output FOLDER"
            ) from error
    print(summary(comparison))
    print(f"\nEverything: {folder / 'compare.html'}, {folder / 'compare.json'}")
    return int(comparison["verdict"] == "different")
