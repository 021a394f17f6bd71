"""Studies: reconstructions scored again under variants, and what the methods cost."""


include: "studies_inputs.smk"


rule rescore_volumes:
    input:
        reconstructions=rules.reconstruct_volumes.output,
        store=test_store,
        air=air_if_used,
    output:
        "<results>/studies/{study}/<cell>/{test}.tsv",
    log:
        "<logs>/rescore_volumes/{study}/<cell>/{test}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=request_memory(2000, 1, of_test),
        runtime=request(60, 1, of_test),
    params:
        **settings("rescore_volumes"),
    script:
        f"{SCRIPTS}/rescore_volumes.py"


rule make_study:
    input:
        cells=study_cells,
    output:
        csv="<results>/studies/{study}.csv",
        md="<results>/studies/{study}.md",
        html=shown("<results>/studies/{study}.html", "study", study="{study}", content="table"),
    log:
        "<logs>/make_study/{study}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(60),
    params:
        spec=study_spec,
        trained=lambda wildcards: cfg.studies[wildcards.study].trained,
        notes=lambda wildcards: cfg.studies[wildcards.study].notes,
        phantom=cfg.phantom,
        seed=cfg.seed,
    script:
        f"{SCRIPTS}/make_study.py"


rule make_sweep_figure:
    input:
        summary=rules.make_study.output.csv,
        trained=study_trained,
    output:
        picture=shown("<results>/studies/{study}.png", "study", study="{study}", content="figure"),
        points="<results>/studies/{study}.trained.tsv",
    log:
        "<logs>/make_sweep_figure/{study}.log",
    conda:
        "../envs/report.yaml"
    params:
        spec=study_spec,
        trained=lambda wildcards: cfg.studies[wildcards.study].trained,
        values=lambda wildcards: swept_values(wildcards.study),
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/make_sweep_figure.py"


rule make_metrics_table:
    input:
        metrics=lambda wildcards: cells([wildcards.table]),
        participants=lambda wildcards: expand(
            tree.participants(), dataset=tests_of_table(wildcards.table)
        ),
    output:
        csv="<results>/tables/metrics_{table}.csv",
        md="<results>/tables/metrics_{table}.md",
        tex="<results>/tables/metrics_{table}.tex",
        html=shown(
            "<results>/tables/metrics_{table}.html", "metrics", table="{table}", content="table"
        ),
        picture=shown(
            "<results>/figures/lesions_{table}.png", "metrics", table="{table}", content="figure"
        ),
    log:
        "<logs>/make_metrics_table/{table}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(60),
    params:
        **settings("make_metrics_table"),
        labels=cfg.labels,
        tests=lambda wildcards: tests_of_table(wildcards.table),
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/make_metrics_table.py"


rule make_ranks:
    input:
        metrics=lambda wildcards: cells([wildcards.table]),
    output:
        csv="<results>/studies/ranks_{table}.csv",
        md="<results>/studies/ranks_{table}.md",
        html=shown(
            "<results>/studies/ranks_{table}.html", "ranks", table="{table}", content="ranks"
        ),
        picture=shown(
            "<results>/studies/ranks_{table}.png",
            "ranks",
            table="{table}",
            content="critical differences",
        ),
    log:
        "<logs>/make_ranks/{table}.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        **settings("make_ranks"),
        labels=cfg.labels,
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/make_ranks.py"


rule measure_cost:
    output:
        "<results>/cost/{method}.json",
    log:
        "<logs>/measure_cost/{method}.log",
    conda:
        "../envs/train.yaml"
    threads: cfg.run.train_threads
    resources:
        gpu=GPU_WANTED,
        gpu_slots=GPU_WANTED * cfg.run.jobs_per_gpu,
        mem_mb=by_attempt(16000),
        runtime=by_attempt(60),
        timing=1,
    params:
        **settings("measure_cost"),
    script:
        f"{SCRIPTS}/measure_cost.py"


rule make_cost_table:
    input:
        expand(rules.measure_cost.output, method=cost_methods()),
    output:
        csv="<results>/tables/cost.csv",
        md="<results>/tables/cost.md",
        tex="<results>/tables/cost.tex",
        html=shown("<results>/tables/cost.html", "cost", content="cost of the methods"),
    log:
        "<logs>/make_cost_table/job.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        labels=cfg.labels,
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/make_cost_table.py"


rule cost:
    input:
        rules.make_cost_table.output,


rule studies:
    input:
        study_files(cfg.studies_of_run()),
