"""Rule make_phantom: write the raw tree of one synthetic data set, and its manifest."""

import shutil
from pathlib import Path

import pandas as pd

from uad.core.files import sha256, write_tsv
from uad.core.provenance import job
from uad.phantom import write_dataset

with job(snakemake) as context:
    spec, root = snakemake.params.dataset, Path(snakemake.params.root)
    seed = snakemake.params.seed
    # subjects of another seed or number must not stay among the new ones
    shutil.rmtree(root, ignore_errors=True)
    paths = write_dataset(
        root,
        spec["layout"],
        spec["phantom"]["subjects"],
        spec["modalities"],
        spec["phantom"]["spacing"],
        seed,
    )
    rows = [
        {"path": str(p.relative_to(root)), "bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in sorted(map(Path, paths))
    ]
    context.facts |= {"seed": seed, "files": len(rows)}
    write_tsv(snakemake.output[0], pd.DataFrame(rows))
