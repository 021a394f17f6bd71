"""Rule make_study: how Dice and AUPRC move when the same reconstructions are scored otherwise."""

import pandas as pd

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.study_table import summarise_study, write_study
from uad.report.table_spec import StudySpec

with job(snakemake):
    params, spec = snakemake.params, StudySpec.of_study(**snakemake.params.spec)
    volumes = pd.concat(map(read_tsv, snakemake.input.cells), ignore_index=True)
    summary = summarise_study(volumes, spec, seed=params.seed)
    facts = {"phantom": params.phantom, "seed": params.seed, "notes": params.notes}
    write_study(summary, spec, snakemake.output, **facts)
