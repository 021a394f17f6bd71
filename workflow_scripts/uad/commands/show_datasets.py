"""The data sets, what is there, and the next step for each."""

import argparse
from pathlib import Path

from uad import config as uad_config
from uad.core.files import read_json, read_tsv
from uad.core.paths import Tree
from uad.data.sri24 import atlas_root
from uad.data.status import Status, atlas_status, status, table

#: Doubtful subjects shown per data set.
MOST = 5


def statuses(cfg: uad_config.Config) -> list[Status]:
    """The state of every data set of a config, and of the atlas."""
    rows = [
        status(name, spec.layout, spec.path or "", cfg.archives, spec.source, spec.modalities)
        for name, spec in cfg.datasets.items()
    ]
    atlas = cfg.preprocessing.atlas
    source = "download" if atlas == "download" else "folder"
    return [*rows, atlas_status(atlas_root(atlas, cfg.archives), source)]


def verdicts(cfg: uad_config.Config) -> list[str]:
    """What validation found, for the real data sets that were validated."""
    lines, begun = [], Path(cfg.results) / "source.json"
    if begun.exists() and read_json(begun)["source"] == "phantom":
        return []
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


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("configs", nargs="+", type=Path, help="config.yaml and overlays")


def run(options: argparse.Namespace) -> int:
    """Print the table and the verdicts."""
    cfg = uad_config.load_files(options.configs)
    print(table(statuses(cfg)))
    if lines := verdicts(cfg):
        print("\n".join(["", "Validated:", *lines]))
    print("\nLicences, sizes and what to do when something fails: docs/data.md")
    return 0
