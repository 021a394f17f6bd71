"""Which layout of file names fits a folder, and how many subjects it would find."""

import argparse
from pathlib import Path

from uad.config import load_files
from uad.core.errors import DataError
from uad.data.fit import fits


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("folder", type=Path, help="the folder with the scans")
    parser.add_argument(
        "configs", nargs="*", type=Path, help="config.yaml and overlays with layouts of your own"
    )


def run(options: argparse.Namespace) -> int:
    """Print what fits."""
    folder = options.folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    sets = load_files(options.configs).datasets if options.configs else {}
    own = {name: spec.layout for name, spec in sets.items() if not isinstance(spec.layout, str)}
    print("\n".join(fits(folder, own)))
    return 0
