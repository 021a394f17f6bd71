"""Rule skullstrip_scan: the brain mask of one raw scan."""

from pathlib import Path

from uad.core.files import write_json
from uad.core.provenance import job
from uad.core.seeds import derive_seed
from uad.preprocess.brain_masks import read_prediction
from uad.preprocess.picture import qc_picture
from uad.preprocess.skullstrip import skull_strip

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
