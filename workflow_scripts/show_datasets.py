"""The data sets, what is there, the next step. Usage: show_datasets.py CONFIG [OVERLAY ...]."""

import sys
from collections.abc import Iterable

import yaml
from snakemake.utils import update_config

from uad import config as uad_config
from uad.datasets.registry import Status, status, table
from uad.errors import ConfigError, UadError


def load(paths: Iterable[str]) -> uad_config.Config:
    """A config with its overlays, merged as Snakemake does."""
    content: dict = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as handle:
                update_config(content, yaml.safe_load(handle) or {})
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return uad_config.load(content)


def statuses(cfg: uad_config.Config) -> list[Status]:
    """The state of every data set of a config, and of the atlas."""
    rows = [
        status(
            name,
            spec.path,
            cfg.archives,
            layout=spec.layout,
            source=spec.source,
            modalities=spec.modalities,
        )
        for name, spec in cfg.datasets.items()
    ]
    atlas = cfg.preprocessing.atlas
    return [*rows, status("sri24", None if atlas == "wheel" else atlas, cfg.archives)]


if __name__ == "__main__":
    try:
        print(table(statuses(load(sys.argv[1:]))))
    except UadError as error:
        sys.exit(f"ERROR: {error}")
    print("\nLicences, sizes and what to do when something fails: docs/data.md")
