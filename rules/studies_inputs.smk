"""Input functions of studies.smk."""


def tests_of_table(table):
    """Test sets of a table, each once."""
    return list(dict.fromkeys(column.test for column in cfg.tables[table].columns))


def study_cells(wildcards):
    """Rescored volumes behind one study."""
    spec = cfg.studies[wildcards.study]
    return on_columns(f"studies/{wildcards.study}", spec.methods, spec.columns)


def study_trained(wildcards):
    """Metrics of the methods that a sweep compares with: trained, not only scored, otherwise."""
    spec = cfg.studies[wildcards.study]
    methods = [name for base, others in spec.trained.items() for name in (base, *others)]
    return on_columns("metrics", methods, spec.columns)


def study_spec(wildcards):
    """A study as its reports describe it."""
    spec = cfg.studies[wildcards.study]
    names = [variant["name"] for variant in cfg.variants_of(wildcards.study, spec.methods[0])]
    return {
        "name": wildcards.study,
        "title": spec.title,
        "baseline": names[0],
        "variants": names,
        "labels": {method: cfg.labels[method] for method in spec.methods},
        "columns": [plain(column) for column in spec.columns],
        "sweep": next(iter(spec.sweep), None),
        "select_on": spec.select_on,
    }


def swept_values(study):
    """The number that a study sweeps, as each of its methods has it in the config."""
    spec = cfg.studies[study]
    key = next(iter(spec.sweep))
    names = [*spec.methods, *(name for others in spec.trained.values() for name in others)]
    return {name: cfg.variants_of(study, name)[0][key] for name in names}


def cost_methods():
    """Methods of this run, each once."""
    return list(dict.fromkeys(method for _, method in cfg.cells_of_run()))
