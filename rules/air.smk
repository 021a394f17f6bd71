"""Average intensity ratio: measured on the unhealthy validation set, decided, reported."""


rule compute_air:
    input:
        split=tree.split(),
        stores=lambda wildcards: [
            store_of(test, wildcards) for test in experiment_of(wildcards).test
        ],
    output:
        tree.air(),
    log:
        tree.log("compute_air", "{experiment}", "fold-{fold}"),
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
        csv=tree.table("csv", "air"),
        md=tree.table("md", "air"),
        html=report(
            tree.table("html", "air"),
            caption="../report/air.rst",
            category="AIR",
            labels={"content": "AIR by experiment and fold"},
        ),
        picture=report(
            tree.figure("png", "air"),
            caption="../report/air.rst",
            category="AIR",
            labels={"content": "AIR before and after"},
        ),
    log:
        tree.log("make_air_table"),
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
