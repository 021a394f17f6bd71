"""Rule score_volumes: post-processed anomaly maps from stored reconstructions."""

import numpy as np

from uad.air import invert_foreground, stored_decision
from uad.datasets.slices import read_store, read_volumes, write_volumes
from uad.evaluation import postprocess
from uad.provenance import job
from uad.scoring import score_volume

with job(snakemake) as context:
    files = snakemake.input
    invert = stored_decision(files.air, snakemake.params.air)
    maps = {}
    for key, reconstruction in read_volumes(files.reconstructions[0]).items():
        part = read_store(files.store, [key.split("/")[1]])
        volume, mask = part.volumes[0], part.masks[0]
        reference = invert_foreground(volume, mask) if invert else volume
        residual = score_volume(
            snakemake.params.score, reference, reconstruction, **snakemake.params.quality
        )
        maps[key] = postprocess(
            residual,
            mask,
            **snakemake.params.postprocessing,
        ).astype(np.float32)
    write_volumes(snakemake.output[0], maps)
    context.facts |= {"volumes": len(maps)}
