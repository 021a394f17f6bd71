"""A results tree against its records: whether every file is what its record says."""

import argparse
import os
import time
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("results", help="the results folder of a finished run")
    parser.add_argument("--output", type=Path, help="folder of the pages (default RESULTS/audit)")
    parser.add_argument(
        "--no-raw", action="store_true", help="raw files that are not here do not fail"
    )


def run(options: argparse.Namespace) -> int:
    """Audit, print the verdict, write it into the tree or another folder.

    Returns:
        0 passed, 1 failed.
    """
    from uad.audit.tree import is_raw
    from uad.audit.verdict import audit

    started = time.monotonic()
    # a run from a copy of the code names the repository itself (uad.run.launch)
    repository = os.environ.get("UAD_REPOSITORY") or None
    omitted = is_raw if options.no_raw else frozenset()
    verdict = audit(options.results, repository=repository, omitted=omitted)
    print(f"{verdict.text()}\nIn {time.monotonic() - started:.1f} s.", end=" ", flush=True)
    try:
        page = verdict.write(options.output or Path(options.results) / "audit")
        print(f"The verdict on one page: {page}")
    except OSError as error:
        print(f"The page could not be written ({error}): name a folder with --output.")
    return 0 if verdict.passed else 1
