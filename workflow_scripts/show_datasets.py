"""The data sets, what is there, the next step. Usage: show_datasets.py CONFIG [OVERLAY ...]."""

import sys
from pathlib import Path

from uad import config as uad_config
from uad.datasets.importing import atlas_root
from uad.datasets.registry import Status, status, table
from uad.errors import UadError
from uad.files import read_tsv
from uad.paths import Tree

#: Doubtful subjects shown per data set.
MOST = 5


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
    source = "download" if atlas == "download" else "folder"
    root = atlas_root(atlas, cfg.archives)
    return [*rows, status("sri24", root, cfg.archives, source=source)]


def verdicts(cfg: uad_config.Config) -> list[str]:
    """What validation found, for the data sets that were validated."""
    lines = []
    for name in cfg.datasets:
        path = Path(Tree(cfg.results).validation("tsv", name))
        if not path.exists():
            continue
        subjects = read_tsv(path).fillna("")
        counts = subjects["verdict"].value_counts()
        lines.append(f"{name}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
        doubtful = subjects[subjects["why"] != ""]
        lines += [f"  {row.name}: {row.why}" for row in doubtful.head(MOST).itertuples(index=False)]
        if len(doubtful) > MOST:
            lines.append(f"  ... and {len(doubtful) - MOST} more: {path.with_suffix('.html')}")
    return lines


def main(paths: list[str]) -> None:
    """Print the table and the verdicts."""
    cfg = uad_config.load_files(paths)
    print(table(statuses(cfg)))
    if lines := verdicts(cfg):
        print("\n".join(["", "Validated:", *lines]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UadError as error:
        sys.exit(f"ERROR: {error}")
    print("\nLicences, sizes and what to do when something fails: docs/data.md")
