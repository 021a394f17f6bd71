"""Rule evaluate_volumes: metrics of every test volume, and curves over the threshold."""

import pandas as pd

from uad.core.files import read_json, write_json, write_tsv
from uad.core.provenance import job
from uad.evaluate import cell_of, described_columns, evaluate_volume, threshold_curve
from uad.preprocess.slices import read_lesion, read_store, read_volumes

with job(snakemake):
    names, files, params = snakemake.wildcards, snakemake.input, snakemake.params
    threshold = read_json(files.threshold[0])["threshold"]
    cell = cell_of(names)
    maps = read_volumes(files.maps, "test/")
    subjects = [name.split("/")[1] for name in maps]
    rows = []
    for subject, scores in zip(subjects, maps.values(), strict=True):
        part = read_store(files.store, [subject])
        found = evaluate_volume(
            scores,
            part.lesions[0],
            part.masks[0],
            threshold,
            params.component_max_size,
            params.voxel_mm,
        )
        rows.append({**cell, "subject": subject, **found})
    write_tsv(snakemake.output.metrics, pd.DataFrame(rows))
    write_json(snakemake.output.columns, described_columns())
    curve = threshold_curve(
        lambda: ((maps[f"test/{name}"], read_lesion(files.store, name)) for name in subjects)
    )
    write_tsv(snakemake.output.curve, curve.assign(**cell)[[*cell, *curve.columns]])
