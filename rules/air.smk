"""Average intensity ratio: measured on the unhealthy validation set, decided, reported."""


rule compute_air:
    input:
        split="<results>/splits/{experiment}/fold-{fold}.tsv",
        stores=lambda wildcards: [
            store_of(test, wildcards) for test in experiment_of(wildcards).test
        ],
    output:
        "<results>/air/{experiment}/fold-{fold}.json",
    log:
        "<logs>/compute_air/{experiment}/fold-{fold}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(30),
    params:
        **settings("compute_air"),
    script:
        f"{SCRIPTS}/compute_air.py"


rule make_air_table:
    input:
        [
            tree.air(experiment, fold)
            for experiment in cfg.air_experiments_of_run()
            for fold in cfg.folds_of(experiment)
        ],
    output:
        csv="<results>/tables/air.csv",
        md="<results>/tables/air.md",
        html=shown("<results>/tables/air.html", "air", content="AIR by experiment and fold"),
        picture=shown("<results>/figures/air.png", "air", content="AIR before and after"),
    log:
        "<logs>/make_air_table/job.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        phantom=cfg.phantom,
        seed=cfg.seed,
    script:
        f"{SCRIPTS}/make_air_table.py"


rule air:
    input:
        rules.make_air_table.output,
