"""Input functions of train.smk."""


def loop_of(wildcards):
    """Training parameters that define the result; how a training is run is left out."""
    loop = cfg.train_of(wildcards.method)
    return loop.model_dump(mode="json", exclude=set(loop.HOW))


def training_data(wildcards):
    """What an experiment trains on."""
    experiment = experiment_of(wildcards)
    content = {"setting": experiment.setting, "train": experiment.train}
    if experiment.setting == "intra":
        content["intra_slices"] = cfg.protocol.intra_slices
    return content


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
