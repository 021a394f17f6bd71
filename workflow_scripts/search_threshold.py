"""Rule search_threshold: the binarisation threshold, from the unhealthy validation set only."""

from dataclasses import asdict

from uad.datasets.slices import read_store, read_volumes
from uad.evaluation import search_threshold
from uad.files import write_json
from uad.provenance import job

with job(snakemake):
    maps = read_volumes(snakemake.input.maps[0], "val_unhealthy/")
    subjects = [key.split("/")[1] for key in maps]
    labels = read_store(snakemake.input.store, subjects).lesions
    result = search_threshold(list(maps.values()), list(labels), method=snakemake.params.search)
    write_json(snakemake.output[0], {**asdict(result), "subjects": subjects})
