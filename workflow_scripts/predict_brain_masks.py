"""Rule predict_brain_masks: brain masks of a batch of scans by a network that is loaded once."""

from uad.core.provenance import job
from uad.preprocess.brain_masks import predict_brain_masks
from uad.run.devices import claim

with job(snakemake) as context:
    params = snakemake.params
    context.facts["gpu"] = claim(snakemake.resources.gpu, params.network["device"])
    context.facts["without_mask"] = predict_brain_masks(
        dict(zip(params.subjects, snakemake.input, strict=True)),
        snakemake.output[0],
        params.backend,
        threads=snakemake.threads,
        **params.network,
    )
