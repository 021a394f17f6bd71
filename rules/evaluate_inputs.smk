"""Input functions of evaluate.smk."""


def weights_if_trained(wildcards):
    """The weights, for methods that have any."""
    if not cfg.family_of(wildcards.method).trained:
        return []
    return tree.model("model.safetensors", wildcards.experiment, wildcards.method, wildcards.fold)


def kept(path):
    """Large intermediate files go when they have been used, unless the config keeps them."""
    return path if cfg.run.keep_reconstructions else temp(path)
