"""Input functions of splits.smk: what a split depends on."""

from uad.published_splits import reference_files


def split_lists(wildcards):
    """The published lists that a split is made from."""
    experiment = experiment_of(wildcards)
    if cfg.splits.kind != "reference" or experiment.setting == "intra":
        return []
    names = reference_files(
        [layout_name(cfg.datasets[name].layout) for name in (experiment.train, *experiment.test)],
        experiment.modality,
        int(wildcards.fold),
    )
    folder = cfg.splits.reference.folder
    return [
        f"{folder}/{name}" if folder else f"{tree.root}/splits/published/{name}" for name in names
    ]
