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
    atlas, n4 = Path(files.atlas[0]).parent, params.n4
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
        RegisterOptions(
            spacing=params.spacing,
            seed=seed,
            threads=snakemake.threads,
            lesion_interpolation=params.lesion_interpolation,
            lesion_labels=params.lesion_labels,
            n4=n4["enabled"],
            n4_iterations=n4["iterations"],
            n4_tolerance=n4["tolerance"],
            n4_shrink=n4["shrink"],
        ),
    )
    if lesion is None:
        write_empty_like(output.lesion, output.mask)
    context.facts |= {"seed": seed}
    title = f"{names.dataset} {names.subject} {names.suffix}: registered to SRI24"
    shown = output.lesion if lesion else None
    removed = field if n4["enabled"] else None
    qc_picture(output.picture, output.image, output.mask, shown, atlas, title, removed)
