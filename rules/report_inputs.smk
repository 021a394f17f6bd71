"""Input functions of report.smk."""


def on_columns(stage, methods, columns, ending="tsv"):
    """Files of some methods on the test sets of some columns, in all folds."""
    return [
        tree.per_test(stage, ending, column.experiment, method, fold, column.test)
        for method in methods
        for column in columns
        for fold in cfg.folds_of(column.experiment)
    ]


def cells(tables, stage="metrics", ending="tsv"):
    """Files of a stage behind some tables."""
    specs = [cfg.tables[table] for table in tables]
    paths = (path for spec in specs for path in on_columns(stage, spec.rows, spec.columns, ending))
    return list(dict.fromkeys(paths))


def figures_of_kind(*kinds):
    """Names of the figures of some kinds, as a wildcard pattern."""
    return "|".join(n for n, f in cfg.figures.items() if f.kind in kinds) or "none"


def figure_files(wildcards):
    """What a figure shows: curves of all folds, or images of the first one."""
    spec = cfg.figures[wildcards.figure]
    first, *others = cfg.folds_of(spec.experiment)

    def of_methods(stage, ending, *folds):
        cells = [(spec.experiment, m, fold, spec.test) for m in spec.methods for fold in folds]
        return [tree.per_test(stage, ending, *cell) for cell in cells]

    if spec.kind == "curves":
        endings = {"curves": "tsv", "thresholds": "json", "metrics": "tsv"}
        return {stage: of_methods(stage, endings[stage], first, *others) for stage in endings}
    files = {
        "reconstructions": of_methods("reconstructions", "safetensors", first),
        "store": tree.slices(spec.test, cfg.experiments[spec.experiment].modality),
    }
    if any(cfg.methods[method].air for method in spec.methods):
        files["air"] = tree.air(spec.experiment, first)
    return files


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


#: Params of the rules that draw figures of the config.
DRAWN = {
    "figure": lambda wildcards: plain(cfg.figures[wildcards.figure]),
    "methods": figure_methods,
    "phantom": cfg.phantom,
}


def cell_to_browse():
    """The cell that a notebook browses: that of the first figure of images, else of the tables."""
    figures = [cfg.figures[name] for name in cfg.figures_of_run()]
    found = [(f.experiment, f.methods[-1], f.test) for f in figures if f.kind != "curves"]
    tables = [cfg.tables[name] for name in cfg.tables_of_run()]
    found += [(c.experiment, t.rows[-1], c.test) for t in tables for c in t.columns]
    return found[0] if found else None


# Each notebook: its inputs and its parameters ----------------------------------------------


def air_notebook():
    """``air_statistics``: the decisions, and the scans that they were made from."""
    experiments = {name: cfg.experiments[name] for name in cfg.air_experiments_of_run()}
    stores = {tree.slices(test, e.modality) for e in experiments.values() for test in e.test}
    return {"air": list(rules.make_air_table.input), "stores": sorted(stores)}, {}


def qualitative_notebook():
    """``qualitative``: figures of images, and a volume to browse."""
    experiment, method, test = cell_to_browse()
    cell = (experiment, method, cfg.folds_of(experiment)[0], test)
    pictures = [name for name in cfg.figures_of_run() if cfg.figures[name].kind != "curves"]
    inputs = {
        "figures": expand(tree.figure("png"), figure=pictures),
        "store": tree.slices(test, cfg.experiments[experiment].modality),
        # reconstructions and maps may be temporary: as inputs they wait for this
        "reconstructions": tree.per_test("reconstructions", "safetensors", *cell),
        "maps": tree.per_test("maps", "safetensors", *cell),
        "threshold": tree.per_test("thresholds", "json", *cell),
        "metrics": tree.per_test("metrics", "tsv", *cell),
        **({"air": tree.air(experiment, cell[2])} if cfg.methods[method].air else {}),
    }
    return inputs, {
        **dict(zip(("experiment", "method", "fold", "test"), cell)),
        "method_label": cfg.labels[method],
        "air_rule": cfg.methods[method].air,
        "component_max_size": cfg.protocol.component_max_size,
    }


def results_notebook():
    """``results``: tables and tests."""
    tables = cfg.tables_of_run()
    inputs = {
        "tables": expand(tree.table("csv"), table=tables),
        "significance": expand(rules.compare_methods.output, table=tables),
        **{
            kind: [path for table in tables for path in analysis_files(kind, table, ".csv")]
            for kind in cfg.run.analyses
        },
    }
    methods = sorted({row for name in tables for row in cfg.tables[name].rows})
    return inputs, {"labels": {name: cfg.labels[name] for name in methods}}


def audit_notebook():
    """``audit``: what the records are followed from, and the cell."""
    inputs = {
        "tables": expand(tree.table("csv"), table=cfg.tables_of_run()),
        "air_table": rules.make_air_table.output.csv,
        "quality": expand(tree.quality("tsv"), dataset=datasets_of_qc()),
    }
    name = cfg.tables_of_run()[0]
    row, column = cfg.tables[name].rows[-1], cfg.tables[name].columns[0]
    cell = {"experiment": column.experiment, "test": column.test, "metric": "dice"}
    return inputs, {"table": name, "row": row, **cell}


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


def healthy_is_reported():
    """Whether the report has the healthy scans: asked for, with the extras, or judged before."""
    asked = cfg.run.healthy_methods is not None or "extras" in cfg.run.parts
    return asked or os.path.exists(tree.table("html", "healthy"))


def targets_of_report():
    """Targets whose files the report shows."""
    healthy = ["healthy"] if healthy_is_reported() else []
    return list(dict.fromkeys(["paper", *cfg.run.parts, *healthy, "qc", "describe_run"]))


def what_is_reported():
    """Everything that the report shows, apart from the pages about the run itself."""
    return [
        *rules.tables.input,
        *rules.air.input,
        *rules.figures.input,
        *analyses_of_run(),
        *(path for part in cfg.run.parts if part != "paper" for path in part_files(part)),
        *([tree.table("html", "cost")] if "extras" in cfg.run.parts else []),
        *(rules.healthy.input if healthy_is_reported() else []),
        *checks(),
        tree.quality_summary("html"),
    ]
