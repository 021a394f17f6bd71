"""What a target would cost: jobs, hours, disk, what is done. Usage: show_plan.py --help."""

import argparse
import sys
from pathlib import Path

from uad.config import load_files
from uad.errors import UadError
from uad.files import write_json
from uad.planning.jobs import ROOT, Command
from uad.planning.plan import make_plan, render


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description="Plan before you spend: nothing is run.")
    parser.add_argument("targets", nargs="+", help="paper, table3, a file, ...")
    parser.add_argument(
        "--overlay", action="append", default=[], type=Path, help="config file; as often as needed"
    )
    parser.add_argument("--profile", type=Path, help="Snakemake profile of the run")
    parser.add_argument("--tflops", type=float, help="sustained TFLOP/s of one GPU")
    parser.add_argument("--json", type=Path, help="write the plan to this file, too")
    args = parser.parse_args()
    cfg = load_files([ROOT / "config.yaml", *args.overlay])
    command = Command(tuple(args.overlay), args.profile)
    found = make_plan(cfg, command, args.targets, tflops=args.tflops)
    if args.json:
        write_json(args.json, found.as_dict())
    print(render(found))


if __name__ == "__main__":
    try:
        main()
    except UadError as error:
        sys.exit(f"ERROR: {error}")
