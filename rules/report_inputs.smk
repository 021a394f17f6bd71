"""Input functions of report.smk."""


def cells(tables):
    """Metrics files behind some tables."""
    return list(
        dict.fromkeys(
            tree.per_test("metrics", "tsv", column.experiment, row, fold, column.test)
            for table in tables
            for row in cfg.tables[table].rows
            for column in cfg.tables[table].columns
            for fold in cfg.folds_of(column.experiment)
        )
    )


def figures_of_kind(kind):
    """Names of the figures of one kind, as a wildcard pattern."""
    return "|".join(n for n, f in cfg.figures.items() if f.kind == kind) or "none"


def figure_input(stage, ending, folds=slice(1)):
    """Input function: a file per method of a figure, in its first fold (or in others)."""

    def paths(wildcards):
        spec = cfg.figures[wildcards.figure]
        return [
            tree.per_test(stage, ending, spec.experiment, method, fold, spec.test)
            for method in spec.methods
            for fold in cfg.folds_of(spec.experiment)[folds]
        ]

    return paths


def figure_store(wildcards):
    """Slice store of the test set that a figure shows."""
    spec = cfg.figures[wildcards.figure]
    return tree.slices(spec.test, cfg.experiments[spec.experiment].modality)


def figure_air(wildcards):
    """The AIR decision, if a method of the figure uses it."""
    spec = cfg.figures[wildcards.figure]
    fold = cfg.folds_of(spec.experiment)[0]
    used = any(cfg.methods[method].air for method in spec.methods)
    return tree.air(spec.experiment, fold) if used else []


def figure_split(wildcards):
    """Who is tested in the fold that a figure shows."""
    spec = cfg.figures[wildcards.figure]
    return tree.split(spec.experiment, cfg.folds_of(spec.experiment)[0])


def figure_methods(wildcards):
    """What a figure needs to know of its methods."""
    return {
        name: {
            "label": cfg.labels[name],
            "score": cfg.methods[name].score,
            "air": cfg.methods[name].air,
            "quality": cfg.quality_of(name),
        }
        for name in cfg.figures[wildcards.figure].methods
    }


def cell_to_browse():
    """The cell that a notebook browses: that of the first figure of images, else of the tables."""
    figures = [cfg.figures[name] for name in cfg.figures_of_run()]
    found = [(f.experiment, f.methods[-1], f.test) for f in figures if f.kind != "curves"]
    tables = [cfg.tables[name] for name in cfg.tables_of_run()]
    found += [(c.experiment, t.rows[-1], c.test) for t in tables for c in t.columns]
    return found[0] if found else None


def air_notebook():
    """Inputs and parameters of ``air_statistics``."""
    experiments = cfg.air_experiments_of_run()
    stores = {
        tree.slices(test, cfg.experiments[name].modality)
        for name in experiments
        for test in cfg.experiments[name].test
    }
    return {"air": list(rules.make_air_table.input), "stores": sorted(stores)}, {}


def qualitative_notebook():
    """Inputs and parameters of ``qualitative``: figures of images, and a volume to browse."""
    experiment, method, test = cell_to_browse()
    fold = cfg.folds_of(experiment)[0]
    pictures = [name for name in cfg.figures_of_run() if cfg.figures[name].kind != "curves"]
    inputs = {
        "figures": expand(tree.figure("png"), figure=pictures),
        "store": tree.slices(test, cfg.experiments[experiment].modality),
        **{
            # reconstructions and maps may be temporary: as inputs they wait for this
            name: tree.per_test(stage, ending, experiment, method, fold, test)
            for name, stage, ending in [
                ("reconstructions", "reconstructions", "safetensors"),
                ("maps", "maps", "safetensors"),
                ("threshold", "thresholds", "json"),
                ("metrics", "metrics", "tsv"),
            ]
        },
        **({"air": tree.air(experiment, fold)} if cfg.methods[method].air else {}),
    }
    return inputs, {
        "experiment": experiment,
        "method": method,
        "method_label": cfg.labels[method],
        "test": test,
        "fold": fold,
        "air_rule": cfg.methods[method].air,
        "component_max_size": cfg.protocol.component_max_size,
    }


def results_notebook():
    """Inputs and parameters of ``results``."""
    names = cfg.tables_of_run()
    methods = {row for name in names for row in cfg.tables[name].rows}
    return {
        "tables": expand(tree.table("csv"), table=names),
        "significance": expand(tree.significance(), table=names),
    }, {
        "titles": {name: cfg.tables[name].title for name in names},
        "labels": {name: cfg.labels[name] for name in sorted(methods)},
    }


def audit_notebook():
    """Inputs and parameters of ``audit``: what the records are followed from, and the cell."""
    inputs = {
        "tables": expand(tree.table("csv"), table=cfg.tables_of_run()),
        "air_table": rules.make_air_table.output.csv,
        "quality": expand(tree.quality("tsv"), dataset=datasets_of_qc()),
    }
    name = cfg.tables_of_run()[0]
    table = cfg.tables[name]
    column = table.columns[0]
    return inputs, {
        "table": name,
        "row": table.rows[-1],
        "experiment": column.experiment,
        "test": column.test,
        "metric": "dice",
    }


#: Notebook -> its inputs and its parameters.
NOTEBOOKS = {
    "air_statistics": air_notebook,
    "qualitative": qualitative_notebook,
    "results": results_notebook,
    "audit": audit_notebook,
}


def notebooks_of_run():
    """Notebooks that have something to show: without tables there are no results."""
    shown = {"air_statistics": True, "qualitative": cell_to_browse()}
    return [name for name in NOTEBOOKS if shown.get(name, cfg.tables_of_run())]


def rules_by_stage():
    """Stage -> its rules: those of one file."""
    found = {}
    for each in workflow.rules:
        if each.script:
            found.setdefault(Path(each.snakefile).stem, []).append(each.name)
    return found


def what_is_reported():
    """Everything that the report shows, apart from the pages about the run itself."""
    parts = [part_files(part) for part in cfg.run.parts if part != "paper"]
    return [
        *rules.tables.input,
        *rules.air.input,
        *rules.figures.input,
        *(path for files in parts for path in files),
        *([tree.table("html", "cost")] if "extras" in cfg.run.parts else []),
        *checks(),
        tree.quality_summary("html"),
    ]
