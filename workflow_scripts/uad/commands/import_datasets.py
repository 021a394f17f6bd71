"""Bring what a folder holds into the raw trees."""

import argparse
from pathlib import Path

from uad.config import load_files
from uad.data.place import describe, import_all


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("configs", nargs="+", type=Path, help="config.yaml and overlays")
    parser.add_argument("folder", help="the folder with archives or unpacked images")


def run(options: argparse.Namespace) -> int:
    """Import, and say what was done."""
    archives = Path(options.folder).expanduser()
    datasets = {
        name: (spec.layout, spec.path)
        for name, spec in load_files(options.configs).datasets.items()
        if spec.path and spec.source in ("folder", "download")
    }
    done, unused = import_all(datasets, archives)
    for name in datasets:
        nothing = f"{name}: nothing of it is in {archives}"
        print(describe(name, done[name]) if name in done else nothing)
    for archive, why in unused.items():
        print(f"not used: {archive.name}: {why}")
    return 0
