"""End of a run: print the tables and where to look."""

import argparse
import textwrap
from pathlib import Path

import pandas as pd

from uad.config import Config, load_files
from uad.core.files import read_json
from uad.core.paths import Tree
from uad.report.sanity import check_phantom_run
from uad.report.table_spec import TableSpec
from uad.report.tables import terminal_table, unready


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("configs", nargs="+", type=Path, help="config.yaml and overlays")


def run(options: argparse.Namespace) -> int:
    """Print tables, decisions and where to look.

    Returns:
        1 if a run on the phantom lacks what any such run must show.
    """
    cfg = load_files(options.configs)
    tree = Tree(cfg.results)
    print_tables(cfg, tree)
    print_decisions(cfg, tree)
    checks = check_phantom_run(cfg) if cfg.phantom else []
    if checks:
        print("\nPhantom results: they show that the workflow runs; they cannot rank methods.\n")
    for passed, sentence in checks:
        print(f"  {'ok  ' if passed else 'FAIL'} {sentence}")
    print_readiness(cfg, tree)
    print_next_steps(cfg, tree)
    return int(not all(passed for passed, _ in checks))


def print_tables(cfg: Config, tree: Tree) -> None:
    """Print every table of the run."""
    for name in cfg.tables_of_run():
        spec = TableSpec.of(name, cfg.tables[name].model_dump(), cfg.labels)
        print(f"\n{terminal_table(pd.read_csv(tree.table('csv', name)), spec)}")


def print_decisions(cfg: Config, tree: Tree) -> None:
    """Print which folds were inverted."""
    print("\nAIR decisions:")
    for experiment in cfg.air_experiments_of_run():
        for fold in cfg.folds_of(experiment):
            record = read_json(tree.air(experiment, fold))
            print(
                f"  {experiment:12} fold {fold}: healthy mean {record['mean_normal']:.3f}, "
                f"AIR {record['air_before']:.2f} -> {record['air_after']:.2f}, "
                f"{'inverted' if record['invert'] else 'kept'}"
            )


def print_readiness(cfg: Config, tree: Tree) -> None:
    """Print which methods of the tables reconstruct too poorly to be ranked."""
    tables = [pd.read_csv(tree.table("csv", name)) for name in cfg.tables_of_run()]
    for sentence in unready(pd.concat(tables), cfg.labels.__getitem__) if tables else []:
        print(
            textwrap.fill(
                sentence, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
        )


def print_next_steps(cfg: Config, tree: Tree) -> None:
    """Print what to look at and what to do now, in six lines at most."""
    elsewhere = "" if tree.root == "results" else f" RESULTS={tree.root}"
    print(f"\nOpen the report:       {tree.root}/report.html")
    print(f"Look at the scans:     {tree.gallery()}")
    if tables := cfg.tables_of_run():
        row, column = cfg.tables[tables[0]].rows[-1], cfg.tables[tables[0]].columns[0]
        cell = f"TABLE={tables[0]} ROW={row} COLUMN={column.experiment}/{column.test}"
        print(f"Check a cell:          make trace {cell}{elsewhere}")
    print(f"Check everything:      make audit{elsewhere}")
    if cfg.phantom:
        print("Run it on your scans:  make datasets (says which are there and how to get the rest)")
