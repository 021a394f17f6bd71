"""Rule evaluate_healthy: false positives in healthy test scans, and thresholds that fix them."""

from uad.core.files import read_json, write_json, write_tsv
from uad.core.provenance import job
from uad.evaluate import cell_of
from uad.evaluate.healthy import judge_healthy
from uad.preprocess.slices import read_store, read_volumes

with job(snakemake) as context:
    names, files, params = snakemake.wildcards, snakemake.input, snakemake.params

    def scored(maps, store, role):
        """Maps of a role with brain and lesion."""
        for name, scores in read_volumes(maps, f"{role}/").items():
            subject = name.split("/")[1]
            part = read_store(store, [subject])
            yield subject, scores, part.masks[0], part.lesions[0]

    frame, summary = judge_healthy(
        scored(files.healthy, files.healthy_store, "test_healthy"),
        scored(files.maps, files.store, "test"),
        read_json(files.threshold)["threshold"],
        params.component_max_size,
        params.voxel_mm,
    )
    cell = cell_of(names)
    write_tsv(snakemake.output.scans, frame.assign(**cell)[[*cell, *frame.columns]])
    write_json(snakemake.output.summary, {**cell, **summary})
    context.facts |= {"scans": len(frame)}
