"""Rule skullstrip_scan: the brain mask of one raw scan."""

from pathlib import Path

from uad.devices import claim
from uad.files import write_json
from uad.preprocessing.qc import qc_picture
from uad.preprocessing.skullstrip import skull_strip
from uad.provenance import job
from uad.seeds import derive_seed

with job(snakemake) as context:
    files, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    place = params.skullstrip.get("device", "auto")
    context.facts["gpu"] = claim(snakemake.resources.get("gpu", 0), place)
    image, mask = files.image, snakemake.output.mask
    seed = derive_seed(params.seed, "skullstrip", *names)
    facts = skull_strip(
        image,
        mask,
        params.backend,
        Path(files.atlas[0]).parent,
        seed=seed,
        threads=snakemake.threads,
        **params.skullstrip,
    )
    context.facts |= {"seed": seed}
    write_json(snakemake.output.sidecar, {"Sources": [image], **facts})
    title = f"{names.dataset} {names.subject} {names.suffix}: brain mask ({params.backend})"
    qc_picture(snakemake.output.picture, image, mask, None, None, title)
