"""A results tree against its records: verdict and exit status. Usage: audit_results.py RESULTS."""

import os
import sys
import time
from pathlib import Path

from uad.errors import UadError

USAGE = "Usage: audit_results.py RESULTS, the results folder of a finished run."


def main(arguments: list[str]) -> int:
    """Audit, write the verdict into the tree, print it.

    Args:
        arguments: the results folder.

    Returns:
        The exit status: 0 passed, 1 failed or no tree to audit, 2 wrong usage.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    from uad.audit import audit, terminal, write_verdict

    started = time.monotonic()
    try:
        # a run from a copy of the code names the repository itself (uad.launch)
        verdict = audit(arguments[0], repository=os.environ.get("UAD_REPOSITORY"))
    except UadError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    page = write_verdict(verdict, Path(arguments[0]) / "audit")
    seconds = time.monotonic() - started
    print(f"{terminal(verdict)}\nIn {seconds:.1f} s. The verdict on one page: {page}")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
