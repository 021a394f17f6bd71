"""Rule evaluate_volumes: Dice and AUPRC of every test volume, and both over the threshold."""

import pandas as pd

from uad.datasets.slices import read_store, read_volumes
from uad.evaluation import evaluate_volume, threshold_curve
from uad.files import read_json, write_tsv
from uad.provenance import job

with job(snakemake):
    names, files = snakemake.wildcards, snakemake.input
    threshold = read_json(files.threshold[0])["threshold"]
    cell = {
        "experiment": names.experiment,
        "method": names.method,
        "fold": int(names.fold),
        "test_dataset": names.test,
    }
    maps = read_volumes(files.maps[0], "test/")
    subjects = [key.split("/")[1] for key in maps]
    part = read_store(files.store, subjects)
    rows = [
        {
            **cell,
            "subject": subject,
            **evaluate_volume(scores, lesion, mask, threshold, snakemake.params.component_max_size),
        }
        for subject, scores, lesion, mask in zip(
            subjects, maps.values(), part.lesions, part.masks, strict=True
        )
    ]
    write_tsv(snakemake.output.metrics, pd.DataFrame(rows))
    curve = threshold_curve(list(maps.values()), list(part.lesions))
    write_tsv(snakemake.output.curve, curve.assign(**cell)[[*cell, *curve.columns]])
