"""A results tree against its records: verdict and exit status. Usage: audit_results.py --help."""

import argparse
import os
import sys
import time
from pathlib import Path

from uad.errors import UadError


def main(arguments: list[str]) -> int:
    """Audit, print the verdict, write it into the tree or another folder.

    Args:
        arguments: as ``--help`` tells.

    Returns:
        The exit status: 0 passed, 1 failed or no tree to audit. Wrong usage ends with 2.
    """
    parser = argparse.ArgumentParser(description="Whether every file is what its record says.")
    parser.add_argument("results", help="the results folder of a finished run")
    parser.add_argument("--output", type=Path, help="folder of the pages (default RESULTS/audit)")
    parser.add_argument(
        "--no-raw", action="store_true", help="raw files that are not here do not fail"
    )
    args = parser.parse_args(arguments)
    from uad.audit import audit, is_raw, terminal, write_verdict

    started = time.monotonic()
    try:
        # a run from a copy of the code names the repository itself (uad.launch)
        repository = os.environ.get("UAD_REPOSITORY") or None
        omitted = is_raw if args.no_raw else frozenset()
        verdict = audit(args.results, repository=repository, omitted=omitted)
    except UadError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    print(f"{terminal(verdict)}\nIn {time.monotonic() - started:.1f} s.", end=" ", flush=True)
    try:
        page = write_verdict(verdict, args.output or Path(args.results) / "audit")
        print(f"The verdict on one page: {page}")
    except OSError as error:
        print(f"The page could not be written ({error}): name a folder with --output.")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
