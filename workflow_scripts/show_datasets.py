"""Which data sets are there, and the next step for each. Usage: show_datasets.py CONFIG."""

import sys

import yaml

from uad import config as uad_config
from uad.datasets.registry import Status, status, table
from uad.errors import UadError

#: Where archives are looked for unless the config says otherwise ('archives').
ARCHIVES = "data/archives"


def statuses(cfg: uad_config.Config) -> list[Status]:
    """The state of every data set of a config, and of the atlas."""
    archives = getattr(cfg, "archives", None) or ARCHIVES
    rows = [
        status(
            name,
            spec.path,
            archives,
            layout=spec.layout,
            source=spec.source,
            modalities=spec.modalities,
        )
        for name, spec in cfg.datasets.items()
    ]
    atlas = getattr(cfg.preprocessing, "atlas", "wheel")
    return [*rows, status("sri24", None if atlas == "wheel" else atlas, archives)]


def main(path: str) -> None:
    """Print the table."""
    with open(path, encoding="utf-8") as handle:
        print(table(statuses(uad_config.load(yaml.safe_load(handle)))))
    print("\nLicences, sizes and what to do when something fails: docs/data.md")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UadError as error:
        sys.exit(f"ERROR: {error}")
