"""Input functions of train.smk."""


def training_store(wildcards):
    """Slice store that an experiment trains on."""
    return store_of(experiment_of(wildcards).train, wildcards)


def of_training(wildcards):
    """The data set that a job trains on."""
    return experiment_of(wildcards).train


def training_minutes(wildcards):
    """Time limit of a training: half a second a step, an hour at least.

    Not more with each attempt: it goes on where it was, and partitions have limits.
    """
    loop = cfg.train_of(wildcards.method)
    slices = scans_of(of_training(wildcards)) * loop.samples_per_volume
    steps = loop.epochs * max(1, slices // loop.batch_size)
    return max(60, round(steps * 0.5 / 60))
