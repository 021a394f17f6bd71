"""End of a run: print the tables and where to look. Usage: show_results.py CONFIG [OVERLAY ...]."""

import sys

import pandas as pd

from uad.config import load_files
from uad.errors import UadError
from uad.files import read_json
from uad.paths import Tree
from uad.reporting.sanity import check_phantom_run
from uad.reporting.tables import terminal_table

try:
    cfg = load_files(sys.argv[1:])
except UadError as error:
    sys.exit(f"ERROR: {error}")
tree = Tree(cfg.results)
labels = {name: method.label or name for name, method in cfg.methods.items()}
for name in cfg.tables_of_run():
    table = cfg.tables[name]
    columns = [
        {"experiment": c.experiment, "test_dataset": c.test, "label": c.label or c.test}
        for c in table.columns
    ]
    spec = {
        "name": name,
        "title": table.title,
        "rows": table.rows,
        "columns": columns,
        "labels": labels,
    }
    print(f"\n{terminal_table(pd.read_csv(tree.table('csv', name)), spec)}")
print("\nAIR decisions:")
for experiment in cfg.air_experiments_of_run():
    for fold in cfg.folds_of(experiment):
        record = read_json(tree.air(experiment, fold))
        print(
            f"  {experiment:12} fold {fold}: healthy mean {record['mean_normal']:.3f}, "
            f"AIR {record['air_before']:.2f} -> {record['air_after']:.2f}, "
            f"{'inverted' if record['invert'] else 'kept'}"
        )
print(
    f"\nReport:   {tree.root}/report.html\nTables:   {tree.root}/tables/\n"
    f"Figures:  {tree.root}/figures/\nScans:    {tree.gallery()}\nThe tree: results/README.md"
)
if tables := cfg.tables_of_run():
    row, column = cfg.tables[tables[0]].rows[-1], cfg.tables[tables[0]].columns[0]
    cell = f"TABLE={tables[0]} ROW={row} COLUMN={column.experiment}/{column.test}"
    elsewhere = "" if tree.root == "results" else f" RESULTS={tree.root}"
    print(
        f"\nCheck all of it:         make audit{elsewhere}"
        f"\nWhere a cell comes from: make trace {cell}{elsewhere}"
    )
if cfg.phantom:
    print(
        "\nThese are phantom results: they show that the workflow runs; they cannot rank methods."
    )
    print()
    checks = check_phantom_run(cfg)
    for passed, sentence in checks:
        print(f"  {'ok  ' if passed else 'FAIL'} {sentence}")
    sys.exit(not all(passed for passed, _ in checks))
