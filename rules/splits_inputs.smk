"""Input functions of splits.smk: what a split depends on."""

from uad.splits import reference_files


def split_keys(wildcards):
    """The sizes that an experiment's splits depend on."""
    content, experiment = plain(cfg.splits), experiment_of(wildcards)
    if experiment.setting == "intra":
        return {key: content[key] for key in ("kind", "seed")}
    if content["kind"] == "reference":
        return {"kind": "reference", "reference": content["reference"]}
    del content["reference"]
    sizes = content["unhealthy_validation"]
    content["unhealthy_validation"] = {t: sizes[t] for t in experiment.test if t in sizes}
    return content


def split_experiment(wildcards):
    """What a split depends on of its experiment, and the layouts of its data sets."""
    content = plain(experiment_of(wildcards))
    names = [content["train"], *content["test"]]
    kept = {key: content[key] for key in ("setting", "modality", "train", "test", "folds")}
    return {**kept, "layouts": {name: cfg.datasets[name].layout for name in names}}


def split_lists(wildcards):
    """The published lists that a split is made from."""
    experiment = experiment_of(wildcards)
    if cfg.splits.kind != "reference" or experiment.setting == "intra":
        return []
    names = reference_files(
        [cfg.datasets[name].layout for name in (experiment.train, *experiment.test)],
        experiment.modality,
        int(wildcards.fold),
    )
    folder = cfg.splits.reference.folder
    return [f"{folder}/{name}" if folder else tree.published_split(name) for name in names]
