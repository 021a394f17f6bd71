"""Bring what a folder holds into the raw trees."""

import argparse
from pathlib import Path

from uad.config import load_files
from uad.data.place import describe, import_all
from uad.data.sri24 import atlas_root, import_atlas, packed_atlas


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("configs", nargs="+", type=Path, help="config.yaml and overlays")
    parser.add_argument("folder", help="the folder with archives or unpacked images")


def run(options: argparse.Namespace) -> int:
    """Import, and say what was done."""
    cfg = load_files(options.configs)
    archives = Path(options.folder).expanduser()
    datasets = {
        name: (spec.layout, spec.path)
        for name, spec in cfg.datasets.items()
        if spec.path and spec.source in ("folder", "download")
    }
    atlases = packed_atlas(archives) if archives.is_dir() else []
    done, found = import_all(datasets, archives, need=not atlases)
    for name, imported in done.items():
        print(describe(name, imported))
    for name in datasets:
        if name not in done:
            print(f"{name}: nothing of it is in {archives}")
    for archive, why in found.unknown.items():
        if archive not in atlases:
            print(f"not used: {archive.name}: {why}")
    root = atlas_root(cfg.preprocessing.atlas, cfg.archives)
    if atlases and root is not None:
        atlas = import_atlas(atlases, root)
        print(f"sri24: {atlas.head} and {atlas.brain.name}")
    for archive in atlases if root is None else ():
        print(f"not used: {archive.name}: preprocessing.atlas is '{cfg.preprocessing.atlas}'")
    return 0
