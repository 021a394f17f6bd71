"""Rule make_study: how Dice and AUPRC move when the same reconstructions are scored otherwise."""

import pandas as pd

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.studies import summarise_study, write_study

with job(snakemake):
    params = snakemake.params
    rows = pd.concat(map(read_tsv, snakemake.input.cells), ignore_index=True)
    source = "synthetic phantom" if params.phantom else "the data sets named in the config"
    write_study(
        summarise_study(rows, params.spec, seed=params.seed),
        params.spec,
        list(snakemake.output),
        phantom=params.phantom,
        caption_facts={"data_source": source, "seed": params.seed, "notes": params.notes},
    )
