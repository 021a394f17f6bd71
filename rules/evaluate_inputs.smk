"""Input functions of evaluate.smk."""


def weights_if_trained(wildcards):
    """The weights, for methods that have any."""
    if not cfg.family_of(wildcards.method).trained:
        return []
    return tree.model("model.safetensors", wildcards.experiment, wildcards.method, wildcards.fold)


def kept(path):
    """Large intermediate files go when they have been used, unless the config keeps them."""
    return path if cfg.run.keep_reconstructions else temp(path)


def healthy_store(wildcards):
    """Slice store of the healthy data set of an experiment."""
    return store_of(experiment_of(wildcards).train, wildcards)


def healthy_files():
    """Judgements on the healthy test subjects, of the cells of the tables that have any."""
    methods = cfg.run.healthy_methods
    return [
        f"{cfg.results}/healthy/{experiment}/{method}/fold-{fold}/{test}.json"
        for experiment, method in cfg.cells_of_run()
        if methods is None or method in methods
        for fold in cfg.folds_of(experiment)
        for test in cfg.experiments[experiment].test
        if cfg.splits.healthy_test and test != cfg.experiments[experiment].train
    ]
