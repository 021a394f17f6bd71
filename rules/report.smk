"""Tables, figures, notebooks and the report."""


include: "report_inputs.smk"


rule compare_methods:
    input:
        metrics=lambda wildcards: cells([wildcards.table]),
    output:
        "<results>/significance/{table}.tsv",
    log:
        "<logs>/compare_methods/{table}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        claims=lambda wildcards: cfg.tables[wildcards.table].tested,
        seed=cfg.seed,
    script:
        f"{SCRIPTS}/compare_methods.py"


rule make_table:
    input:
        metrics=lambda wildcards: cells([wildcards.table]),
        readiness=lambda wildcards: cells([wildcards.table], "readiness", "json"),
        significance=rules.compare_methods.output,
        published=f"{REPOSITORY}/resources/published/tables.csv",
    output:
        csv="<results>/tables/{table}.csv",
        md="<results>/tables/{table}.md",
        tex="<results>/tables/{table}.tex",
        html=shown("<results>/tables/{table}.html", "table", table="{table}"),
    log:
        "<logs>/make_table/{table}.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        **settings("make_table"),
        labels=cfg.labels,
    script:
        f"{SCRIPTS}/make_table.py"


rule tables:
    input:
        expand(tree.table("{ending}"), table=cfg.tables_of_run(), ending=TABLE_ENDINGS),


rule make_maps_figure:
    input:
        unpack(figure_files),
    output:
        shown("<results>/figures/{figure}.png", "maps", figure="{figure}"),
    log:
        "<logs>/make_maps_figure/{figure}.log",
    wildcard_constraints:
        figure=figures_of_kind("maps", "methods"),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(30),
    params:
        **DRAWN,
    script:
        f"{SCRIPTS}/make_maps_figure.py"


rule make_curves_figure:
    input:
        unpack(figure_files),
    output:
        shown("<results>/figures/{figure}.png", "curves", figure="{figure}"),
    log:
        "<logs>/make_curves_figure/{figure}.log",
    wildcard_constraints:
        figure=figures_of_kind("curves"),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(30),
    params:
        **DRAWN,
    script:
        f"{SCRIPTS}/make_curves_figure.py"


rule figures:
    input:
        expand(tree.figure("png"), figure=cfg.figures_of_run()),


rule run_notebook:
    input:
        unpack(lambda wildcards: NOTEBOOKS[wildcards.notebook]()[0]),
        notebook=f"{REPOSITORY}/notebooks/{{notebook}}.ipynb",
    output:
        ipynb="<results>/notebooks/{notebook}.ipynb",
        html=shown("<results>/notebooks/{notebook}.html", "notebook", notebook="{notebook}"),
    log:
        "<logs>/run_notebook/{notebook}.log",
    wildcard_constraints:
        notebook="|".join(NOTEBOOKS),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(30),
    params:
        parameters=lambda wildcards: NOTEBOOKS[wildcards.notebook]()[1],
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/run_notebook.py"


rule notebooks:
    input:
        expand(rules.run_notebook.output.html, notebook=notebooks_of_run()),


rule save_config:
    output:
        "<results>/config.resolved.yaml",
    log:
        "<logs>/save_config/job.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        config=config,
    script:
        f"{SCRIPTS}/save_config.py"


rule describe_run:
    input:
        what_is_reported(),
        splits=[
            tree.split(experiment, fold)
            for experiment in dict(cfg.cells_of_run())
            for fold in cfg.folds_of(experiment)
        ],
        participants=expand(tree.participants(), dataset=cfg.datasets_of_run()),
        verdicts=expand(tree.validation("tsv"), dataset=cfg.datasets_of_run()),
        config=rules.save_config.output[0],
    output:
        workflow=shown("<results>/figures/workflow.svg", "stages", content="1 workflow by stage"),
        data=shown("<results>/report/data.html", "data", content="2 data sets and volumes"),
        config=shown("<results>/report/config.html", "config", content="3 configuration"),
        runtime=shown("<results>/cost/runtime.html", "runtime", content="4 time and memory by rule"),
    log:
        "<logs>/describe_run/job.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(30),
    params:
        stages=lambda wildcards: rules_by_stage(),
        sources={name: cfg.datasets[name].source for name in cfg.datasets_of_run()},
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/describe_run.py"


rule make_report:
    input:
        what_is_reported(),
        rules.notebooks.input,
        rules.describe_run.output,
        workflow=rules.describe_run.output.workflow,
        style=f"{REPOSITORY}/report/report.css",
        config=rules.save_config.output[0],
    output:
        "<results>/report.html",
    log:
        "<logs>/make_report/job.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        snakefile=f"{workflow.basedir}/Snakefile",
        targets=targets_of_report(),
    script:
        f"{SCRIPTS}/make_report.py"


rule report:
    input:
        rules.make_report.output,
