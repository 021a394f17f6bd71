"""Rule make_study: how Dice and AUPRC move when the same reconstructions are scored otherwise."""

import pandas as pd

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.render import data_source
from uad.report.study_table import StudySpec, summarise_study, write_study

with job(snakemake):
    params, phantom = snakemake.params, snakemake.params.phantom
    spec = StudySpec(**params.spec)
    volumes = pd.concat(map(read_tsv, snakemake.input.cells), ignore_index=True)
    summary = summarise_study(volumes, spec, seed=params.seed)
    facts = {
        "data_source": data_source(phantom),
        "seed": params.seed,
        "notes": params.notes,
    }
    write_study(summary, spec, snakemake.output, phantom=phantom, caption_facts=facts)
