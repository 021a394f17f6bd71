"""Rule describe_run: pages about the run for its report: stages, data, configuration, times."""

import os

from uad.core.provenance import job
from uad.core.records import load_records
from uad.report.pages import write_config_page, write_data_page
from uad.report.runtime import jobs_behind, write_runtime_page
from uad.report.stage_picture import draw_workflow, stages_of

with job(snakemake):
    files, params, output = snakemake.input, snakemake.params, snakemake.output
    folder, phantom = snakemake.config.get("results", "results"), params.phantom
    jobs = jobs_behind(load_records(folder), [os.path.relpath(path, folder) for path in files])
    draw_workflow(output.workflow, stages_of(jobs, params.stages), phantom=phantom)
    write_runtime_page(output.runtime, jobs, phantom=phantom)
    write_config_page(output.config, files.config, phantom=phantom)
    participants = dict(zip(params.sources, files.participants, strict=True))
    tables = files.splits, participants, files.verdicts
    write_data_page(output.data, *tables, params.sources, phantom=phantom)
