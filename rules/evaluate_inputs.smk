"""Input functions of evaluate.smk."""


def reconstruction_gpu(wildcards):
    """One GPU for the methods that have a network."""
    return GPU_WANTED if cfg.family_of(wildcards.method).trained else 0


def weights_if_trained(wildcards):
    """The weights, for methods that have any."""
    if not cfg.family_of(wildcards.method).trained:
        return []
    return tree.model("model.safetensors", wildcards.experiment, wildcards.method, wildcards.fold)


def score_quality(wildcards):
    """Options that the score of a method takes."""
    return cfg.quality_of(wildcards.method, cfg.methods[wildcards.method].score)


def batch_that_matters(wildcards):
    """Slices per pass, where the noise of a slice depends on its place in the pass."""
    one_field = noise_field(wildcards) == "per_batch"
    return None if one_field else cfg.train_of(wildcards.method).inference_batch


def kept(path):
    """Large intermediate files go when they have been used, unless the config keeps them."""
    return path if cfg.run.keep_reconstructions else temp(path)
