"""What a target would cost: jobs, hours, disk, what is done. Nothing is run."""

import argparse
from pathlib import Path

from uad.config import load_files
from uad.core.files import write_json
from uad.run.dry_run import ROOT
from uad.run.plan import make_plan, render


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("targets", nargs="+", help="paper, table3, a file, ...")
    parser.add_argument(
        "--overlay", action="append", default=[], type=Path, help="config file; as often as needed"
    )
    parser.add_argument("--profile", type=Path, help="Snakemake profile of the run")
    parser.add_argument("--tflops", type=float, help="sustained TFLOP/s of one GPU")
    parser.add_argument("--json", type=Path, help="write the plan to this file, too")


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    cfg = load_files([ROOT / "config.yaml", *options.overlay])
    found = make_plan(cfg, options.targets, options.overlay, options.profile, options.tflops)
    if options.json:
        write_json(options.json, found)
    print(render(found))
    return 0
