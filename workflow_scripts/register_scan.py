"""Rule register_scan: resample, register to SRI24, crop and bias-correct one scan."""

import tempfile
from pathlib import Path

from uad.core.nifti import write_empty_like
from uad.core.provenance import job
from uad.core.seeds import derive_seed
from uad.preprocess.picture import qc_picture
from uad.preprocess.register import RegisterOptions, RegisterOutputs, register_scan

with job(snakemake) as context, tempfile.TemporaryDirectory() as folder:
    files, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    output, lesion = snakemake.output, files.get("lesion") or None
    atlas = Path(files.atlas[0]).parent
    seed = derive_seed(params.seed, "register", *names)
    register_scan(
        files.image,
        files.brain_mask,
        lesion,
        atlas,
        RegisterOutputs(
            image=Path(output.image),
            brain_mask=Path(output.mask),
            transform=Path(output.transform),
            sidecar=Path(output.sidecar),
            lesion=Path(output.lesion),
            bias_field=(field := Path(folder, "field.nii")),  # for the picture only
        ),
        RegisterOptions.of(params, seed, snakemake.threads),
    )
    if lesion is None:
        write_empty_like(output.lesion, output.mask)
    context.facts |= {"seed": seed}
    title = f"{names.dataset} {names.subject} {names.suffix}: registered to SRI24"
    shown = output.lesion if lesion else None
    removed = field if params.n4["enabled"] else None
    qc_picture(output.picture, output.image, output.mask, shown, atlas, title, removed)
