"""The command line: ``uad <verb>``, or ``python -m uad <verb>``; ``make`` calls the same."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from uad.core.errors import UadError

#: Verb -> (file of uad/commands/, what it does), in the order in which a person needs them.
VERBS = {
    "datasets": ("show_datasets", "which data sets are there, and the next step for each"),
    "layouts": ("show_layouts", "which layout of file names fits a folder of scans"),
    "import": ("import_datasets", "bring a folder of archives into the raw trees"),
    "plan": ("show_plan", "jobs, hours and disk of a target, before it is run"),
    "launch": ("launch_workflow", "start a run on a cluster, with a profile"),
    "results": ("show_results", "the tables of a finished run, and where to look"),
    "detect": ("detect_scans", "anomaly map and mask of a scan, by a trained model"),
    "export": ("export_maps", "volumes of test subjects as NIfTI, in two spaces, and a page"),
    "audit": ("audit_results", "whether every file is what its record says, and all agree"),
    "trace": ("trace_cell", "where a cell of a table is from, down to the raw files"),
    "compare": ("compare_results", "two runs, file by file"),
    "verify": ("verify_crate", "a crate from nothing but itself"),
}


def main(words: list[str] | None = None) -> int:
    """Run a verb.

    Returns:
        Its exit status: 0 where all is well; 2 where it could not do its work.
    """
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="uad", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (file, summary) in VERBS.items():
        sub = verbs.add_parser(verb, help=summary)
        if words and words[0] == verb:  # the others are not imported
            command = importlib.import_module(f"uad.commands.{file}")
            sub.description = command.__doc__
            command.arguments(sub)
    options = parser.parse_args(words)
    try:
        status = command.run(options)
        sys.stdout.flush()
        return status
    except UadError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough: uad datasets | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
