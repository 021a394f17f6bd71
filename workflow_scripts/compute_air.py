"""Rule compute_air: AIR on the unhealthy validation set, and the inversion that it implies."""

import logging

from uad.air import air_statistics
from uad.core.files import read_tsv, write_json
from uad.core.provenance import job
from uad.preprocess.slices import read_store
from uad.splits import subjects_of

with job(snakemake) as context:
    split = read_tsv(snakemake.input.split)
    params = snakemake.params
    volumes = {
        name: read_store(store, subjects_of(split, name, "val_unhealthy"))
        for name, store in zip(params.tests, snakemake.input.stores, strict=True)
    }
    record = {
        "experiment": snakemake.wildcards.experiment,
        "fold": int(snakemake.wildcards.fold),
        **air_statistics(volumes, params.modality, params.reference, params.rule),
    }
    for warning in record["warnings"]:
        logging.warning("%s", warning)
    write_json(snakemake.output[0], record)
