"""Rule evaluate_volumes: Dice and AUPRC of every test volume."""

import pandas as pd

from uad.datasets.slices import read_store, read_volumes
from uad.evaluation import average_precision, dice, remove_small_components
from uad.files import read_json, write_tsv
from uad.provenance import job

with job(snakemake):
    names, files = snakemake.wildcards, snakemake.input
    threshold = read_json(files.threshold[0])["threshold"]
    rows = []
    for key, scores in read_volumes(files.maps[0], "test/").items():
        subject = key.split("/")[1]
        part = read_store(files.store, [subject])
        lesion, mask = part.lesions[0], part.masks[0]
        prediction = remove_small_components(
            scores > threshold, snakemake.params.component_max_size
        )
        rows.append(
            {
                "experiment": names.experiment,
                "method": names.method,
                "fold": int(names.fold),
                "test_dataset": names.test,
                "subject": subject,
                "dice": dice(prediction, lesion),
                "auprc": average_precision(scores, lesion),
                "threshold": threshold,
                "lesion_voxels": int(lesion.sum()),
                "predicted_voxels": int(prediction.sum()),
                "brain_voxels": int(mask.sum()),
                "prevalence": float(lesion.mean()),
            }
        )
    write_tsv(snakemake.output[0], pd.DataFrame(rows))
