"""Rule score_volumes: post-processed anomaly maps from stored reconstructions."""

import numpy as np

from uad.air import invert_foreground, stored_decision
from uad.core.provenance import job
from uad.evaluate import postprocess
from uad.evaluate.score import score_volume
from uad.preprocess.slices import read_shape, read_store, read_volumes, volume_writer

with job(snakemake) as context:
    files, params = snakemake.input, snakemake.params
    invert = stored_decision(files.air, params.air)
    reconstructions = read_volumes(files.reconstructions[0])
    shape = read_shape(files.store)
    with volume_writer(snakemake.output[0], reconstructions, shape, np.float32) as write:
        for name, reconstruction in reconstructions.items():
            part = read_store(files.store, [name.split("/")[1]])
            volume, mask = part.volumes[0], part.masks[0]
            reference = invert_foreground(volume, mask) if invert else volume
            residual = score_volume(params.score, reference, reconstruction, **params.quality)
            write(name, postprocess(residual, mask, **params.postprocessing))
    context.facts |= {"volumes": len(reconstructions)}
