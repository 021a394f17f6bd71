"""Rule search_threshold: the binarisation threshold, from the unhealthy validation set only."""

from dataclasses import asdict

from uad.core.files import write_json
from uad.core.provenance import job
from uad.evaluate import search_threshold
from uad.preprocess.slices import read_lesion, read_volumes

with job(snakemake):
    maps = read_volumes(snakemake.input.maps, "val_unhealthy/")
    subjects = [name.split("/")[1] for name in maps]
    lesions = [read_lesion(snakemake.input.store, subject) for subject in subjects]
    result = search_threshold(maps.values(), lesions, method=snakemake.params.search)
    write_json(snakemake.output[0], {**asdict(result), "subjects": subjects})
