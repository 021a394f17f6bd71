"""Rethinking medical anomaly detection in brain MRI: every table and figure, from raw scans."""

from snakemake.utils import min_version

min_version("9.27")


# absolute, so that --directory can put data and results elsewhere
configfile: f"{workflow.basedir}/config.yaml"


report: "report/workflow.rst"


include: "rules/start.smk"
include: "rules/common.smk"
include: "rules/targets_inputs.smk"
include: "rules/data.smk"
include: "rules/preprocess.smk"
include: "rules/qc.smk"
include: "rules/splits.smk"
include: "rules/air.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/studies.smk"
include: "rules/audit.smk"


# a job whose outputs were removed leaves no record of them either
onerror:
    for failed in workflow.scheduler.failed:
        for job in getattr(failed, "jobs", [failed]):  # of a group
            if job.output and not os.path.exists(job.output[0]):
                Path(f"{job.output[0]}.prov.json").unlink(missing_ok=True)


localrules:
    paper,
    index,
    qc,
    tables,
    figures,
    air,
    notebooks,
    report,
    studies,
    cost,
    later,
    extras,


rule paper:
    default_target: True
    input:
        checks(),
        rules.tables.input,
        rules.air.input,
        rules.figures.input,
        rules.notebooks.input,


# what the paper's later version adds
rule later:
    input:
        checks(),
        part_files("later"),


# what neither version has
rule extras:
    input:
        checks(),
        part_files("extras"),
        analyses_of_run(),
        rules.cost.input,
        rules.healthy.input,


# table1, table2, ...: one target per table of the config
for name in cfg.tables:

    rule:
        name:
            name
        input:
            checks(),
            expand(tree.table("{ending}", name), ending=TABLE_ENDINGS),
        localrule: True


# metrics_table1, ranks_table1, ...: one target per analysis of a table
for name in cfg.tables:
    for kind in cfg.run.analyses:
        if files := analysis_files(kind, name):

            rule:
                name:
                    f"{kind}_{name}"
                input:
                    checks(),
                    files,
                localrule: True


# and one per study
for name in cfg.studies:

    rule:
        name:
            name
        input:
            checks(),
            study_files([name]),
        localrule: True
