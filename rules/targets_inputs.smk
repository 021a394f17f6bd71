"""What the targets of the Snakefile, and the report, consist of."""

TABLE_ENDINGS = ["csv", "md", "tex", "html"]


def checks():
    """What every target asks for first: room on the disk, a verdict on the raw scans, the config."""
    return [
        f"{cfg.results}/preflight.json",
        f"{cfg.results}/config.resolved.yaml",
        *expand(tree.validation("html"), dataset=cfg.datasets_of_run()),
    ]


def study_files(names):
    """What the reports of some studies consist of."""
    return [
        path
        for name in names
        for path in [
            *expand(tree.study("{ending}", name), ending=["csv", "md", "html"]),
            *([tree.study("png", name)] if cfg.studies[name].sweep else []),
        ]
    ]


def analysis_files(kind, table, ending=""):
    """What an analysis of a table consists of (with an ending only such); ranks need three methods."""
    if kind == "ranks":
        endings = ["csv", "md", "html", "png"] if len(cfg.tables[table].rows) > 2 else []
        files = expand(tree.study("{ending}", f"ranks_{table}"), ending=endings)
    else:
        files = expand(tree.table("{ending}", f"metrics_{table}"), ending=TABLE_ENDINGS)
        files.append(tree.figure("png", f"lesions_{table}"))
    return [path for path in files if path.endswith(ending)]


def analyses_of_run():
    """Files of all analyses of the tables of this run."""
    tables = cfg.tables_of_run()
    return [path for kind in cfg.run.analyses for t in tables for path in analysis_files(kind, t)]


def part_files(part):
    """Tables, figures and studies of one part of the config."""
    tables = [name for name, table in cfg.tables.items() if table.part == part]
    figures = [name for name, figure in cfg.figures.items() if figure.part == part]
    studies = [name for name in cfg.studies_of_run() if cfg.studies[name].part == part]
    return [
        *expand(tree.table("{ending}", "{table}"), table=tables, ending=TABLE_ENDINGS),
        *expand(tree.figure("png", "{figure}"), figure=figures),
        *study_files(studies),
    ]
