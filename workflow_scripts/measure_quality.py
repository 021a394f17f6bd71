"""Rule measure_quality: measures and outlier flags of all scans of a data set."""

from math import prod

import pandas as pd

from uad.core.files import read_tsv, write_tsv
from uad.core.provenance import job
from uad.qc.measure import add_flags, measure_modality

with job(snakemake) as context:
    files, params = snakemake.input, snakemake.params
    table = read_tsv(files.participants).fillna("")
    field, shape = params.preprocessing["field_of_view"], params.preprocessing["shape"]
    voxel_ml = prod(field) / prod(shape) / 1000
    masks, registrations = iter(files.get("masks", [])), iter(files.get("registrations", []))
    parts = []
    for modality, store in zip(params.modalities, files.stores, strict=True):
        rows = table[table["modality"] == modality]
        sidecars = None
        if not params.preprocessed:
            sidecars = [(next(masks), next(registrations)) for _ in range(len(rows))]
        parts.append(measure_modality(rows, store, sidecars, voxel_ml))
    flagged = add_flags(pd.concat(parts, ignore_index=True), params.threshold)
    count = int((flagged["flags"] != "").sum())
    context.facts |= {"scans": len(flagged), "flagged": count}
    write_tsv(snakemake.output[0], flagged)
