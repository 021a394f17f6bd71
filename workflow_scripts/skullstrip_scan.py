"""Rule skullstrip_scan: the brain mask of one raw scan."""

from pathlib import Path

from uad.files import write_json
from uad.preprocessing.brain_masks import read_prediction
from uad.preprocessing.qc import qc_picture
from uad.preprocessing.skullstrip import skull_strip
from uad.provenance import job
from uad.seeds import derive_seed

with job(snakemake) as context:
    files, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    image, mask, prediction = files.image, snakemake.output.mask, files.get("prediction")
    seed = derive_seed(params.seed, "skullstrip", *names)
    facts = skull_strip(
        image,
        mask,
        params.backend,
        Path(files.atlas[0]).parent,
        seed=seed,
        threads=snakemake.threads,
        predicted=read_prediction(prediction, names.subject) if prediction else None,
        **params.skullstrip,
    )
    context.facts |= {"seed": seed}
    write_json(snakemake.output.sidecar, {"Sources": [image], **facts})
    title = f"{names.dataset} {names.subject} {names.suffix}: brain mask ({params.backend})"
    qc_picture(snakemake.output.picture, image, mask, None, None, title)
