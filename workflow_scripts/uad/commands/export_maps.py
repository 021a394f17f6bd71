"""Write input, reconstruction, anomaly map, prediction and truth of test volumes as NIfTI.

In SRI24 and, where the workflow registered the scan, on the grid of the scan itself; and one HTML
page to look at them.
"""

import argparse
from pathlib import Path

import yaml

from uad import config as uad_config
from uad.core.errors import ConfigError, near
from uad.report.export import Cell, export


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder")
    parser.add_argument("--experiment", help="default: that of the first figure of several methods")
    parser.add_argument("--test", help="test set; default: that of the figure")
    parser.add_argument("--method", action="append", help="can be repeated; default: the figure's")
    parser.add_argument("--fold", type=int, help="default: the first of the run")
    parser.add_argument(
        "--subject",
        action="append",
        help="can be repeated; default: a small, a median and a large lesion, as in Figure 3",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("exports"), help="folder (default exports)"
    )


def run(options: argparse.Namespace) -> int:
    """Export a cell per method; print the page of each."""
    resolved = options.results / "config.resolved.yaml"
    if not resolved.exists():
        raise ConfigError(f"{resolved}: no such file. Name the results of a run with --results.")
    cfg = uad_config.load(yaml.safe_load(resolved.read_text(encoding="utf-8")))
    figures = [f for f in cfg.figures.values() if f.kind == "methods"]
    experiment = options.experiment or (figures[0].experiment if figures else None)
    if experiment not in cfg.experiments:
        known = ", ".join(cfg.experiments)
        hint = near(experiment, cfg.experiments) if experiment else ""
        raise ConfigError(f"--experiment {experiment}{hint}: name one of {known}.")
    shown = next((f for f in figures if f.experiment == experiment), None)
    test = options.test or (shown.test if shown else cfg.experiments[experiment].test[0])
    methods = options.method or (shown.methods if shown else None)
    if not methods:
        raise ConfigError(f"--method: no figure shows methods on {experiment}, so name one.")
    for method in methods:
        if method not in cfg.methods:
            raise ConfigError(f"--method {method}: unknown{near(method, cfg.methods)}.")
    fold = cfg.folds_of(experiment)[0] if options.fold is None else options.fold
    for method in methods:
        cell = Cell(experiment, method, fold, test)
        page = export(cfg, options.results, cell, options.subject, options.out)
        print(f"Written: {page} and the volumes beside it")
    return 0
