"""Bring what a folder holds into the raw trees. Usage: import_datasets.py CONFIG ARCHIVES [MODE].

MODE is how files of unpacked folders get there: symlink (default), hardlink or copy.
"""

import sys
from pathlib import Path

import yaml

from uad import config as uad_config
from uad.datasets.importing import describe, import_all
from uad.errors import ConfigError, UadError


def main(path: str, archives: str, mode: str = "symlink") -> None:
    """Import, and say what was done."""
    if mode not in ("symlink", "hardlink", "copy"):
        raise ConfigError(f"unknown mode '{mode}': symlink, hardlink or copy")
    with open(path, encoding="utf-8") as handle:
        cfg = uad_config.load(yaml.safe_load(handle))
    datasets = {
        name: (spec.layout, spec.path)
        for name, spec in cfg.datasets.items()
        if spec.path and spec.source != "phantom"
    }
    done, found = import_all(datasets, Path(archives).expanduser(), mode=mode)
    for name, imported in done.items():
        print(describe(name, imported))
    for name in datasets.keys() - done.keys():
        print(f"{name}: nothing of it is in {archives}")
    for archive, why in found.unknown.items():
        print(f"not used: {archive.name}: {why}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UadError as error:
        sys.exit(f"ERROR: {error}")
