"""Import what a folder holds. Usage: import_datasets.py CONFIG [OVERLAY ...] FOLDER."""

import argparse
import sys
from pathlib import Path

from show_datasets import load
from uad.datasets.importing import describe, import_all, import_atlas
from uad.errors import UadError


def main(configs: list[str], folder: str, mode: str) -> None:
    """Import, and say what was done."""
    cfg = load(configs)
    archives = Path(folder).expanduser()
    datasets = {
        name: (spec.layout, spec.path)
        for name, spec in cfg.datasets.items()
        if spec.path and spec.source in ("folder", "download")
    }
    if cfg.preprocessing.atlas != "wheel":
        atlas = import_atlas(archives, cfg.preprocessing.atlas)
        if atlas is not None:
            print(f"sri24: {atlas.head} and {atlas.brain.name}")
    done, found = import_all(datasets, archives, mode=mode)
    for name, imported in done.items():
        print(describe(name, imported))
    for name in datasets:
        if name not in done:
            print(f"{name}: nothing of it is in {archives}")
    for archive, why in found.unknown.items():
        print(f"not used: {archive.name}: {why}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bring what a folder holds into the raw trees.")
    parser.add_argument("configs", nargs="+", help="config.yaml and overlays")
    parser.add_argument("folder", help="the folder with archives or unpacked images")
    parser.add_argument(
        "--mode",
        default="symlink",
        choices=["symlink", "hardlink", "copy"],
        help="how unpacked images get there",
    )
    options = parser.parse_args()
    try:
        main(options.configs, options.folder, options.mode)
    except UadError as error:
        sys.exit(f"ERROR: {error}")
