"""Rule score_volumes: post-processed anomaly maps from stored reconstructions, and their errors."""

import numpy as np

from uad.air import invert_foreground, stored_decision
from uad.core.files import write_json
from uad.core.provenance import job
from uad.evaluate import cell_of, postprocess
from uad.evaluate.readiness import healthy_errors, means_by_role
from uad.evaluate.score import score_volume
from uad.preprocess.slices import read_shape, read_store, read_volumes, volume_writer

with job(snakemake) as context:
    files, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    invert = stored_decision(files.air, params.air)
    reconstructions = read_volumes(files.reconstructions[0])
    shape = read_shape(files.store)
    errors = {}
    with volume_writer(snakemake.output.maps, reconstructions, shape, np.float32) as write:
        for name, reconstruction in reconstructions.items():
            part = read_store(files.store, [name.split("/")[1]])
            volume, mask = part.volumes[0], part.masks[0]
            reference = invert_foreground(volume, mask) if invert else volume
            residual = score_volume(params.score, reference, reconstruction, **params.quality)
            write(name, postprocess(residual, mask, **params.postprocessing))
            if params.dssim is not None:
                pair = reference, reconstruction
                errors[name] = healthy_errors(*pair, mask, part.lesions[0], params.dssim)
    cell = cell_of(names)
    write_json(snakemake.output.readiness, {**cell, "roles": means_by_role(errors)})
    context.facts |= {"volumes": len(reconstructions)}
