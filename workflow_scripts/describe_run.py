"""Rule describe_run: pages about the run for its report: stages, data, configuration, times."""

import os
from pathlib import Path

import yaml

from uad.core.provenance import job
from uad.core.records import load_records
from uad.report.pages import write_config_page, write_data_page
from uad.report.runtime import jobs_behind, only, write_runtime_page
from uad.report.stage_picture import draw_workflow, stages_of

with job(snakemake):
    files, params, output = snakemake.input, snakemake.params, snakemake.output
    folder, phantom = snakemake.config.get("results", "results"), params.phantom
    records = load_records(folder)
    jobs = jobs_behind(records, [os.path.relpath(path, folder) for path in files])
    records = only(records, jobs)  # the same picture whatever else runs or ran in this tree
    stage_of = {rule: stage for stage, rules in params.stages.items() for rule in rules}
    draw_workflow(output.workflow, stages_of(records, jobs, stage_of), phantom=phantom)
    write_runtime_page(output.runtime, jobs, records.rule_order, phantom=phantom)
    config = yaml.safe_load(Path(files.config).read_text(encoding="utf-8"))
    write_config_page(output.config, config, phantom=phantom)
    participants = dict(zip(params.sources, files.participants, strict=True))
    tables = files.splits, participants, files.verdicts
    write_data_page(output.data, *tables, params.sources, phantom=phantom)
