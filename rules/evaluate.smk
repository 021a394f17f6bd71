"""Reconstruction, anomaly maps, threshold and metrics of one fold on one test set."""


include: "evaluate_inputs.smk"


rule reconstruct_volumes:
    input:
        weights=weights_if_trained,
        store=test_store,
        split="<results>/splits/{experiment}/fold-{fold}.tsv",
        air=air_if_used,
    output:
        kept("<results>/reconstructions/<cell>/{test}.safetensors"),
    log:
        "<logs>/reconstruct_volumes/<cell>/{test}.log",
    conda:
        "../envs/train.yaml"
    threads: cfg.run.train_threads
    resources:
        gpu=lambda wildcards: GPU_WANTED * cfg.family_of(wildcards.method).trained,
        gpu_slots=gpu_slots,
        mem_mb=by_attempt(6000),
        runtime=request(60, 0.2, of_test),
    params:
        **settings("reconstruct_volumes"),
    script:
        f"{SCRIPTS}/reconstruct_volumes.py"


rule score_volumes:
    input:
        reconstructions=rules.reconstruct_volumes.output,
        store=test_store,
        air=air_if_used,
    output:
        maps=kept("<results>/maps/<cell>/{test}.safetensors"),
        readiness="<results>/readiness/<cell>/{test}.json",
    log:
        "<logs>/score_volumes/<cell>/{test}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=request(60, 0.1, of_test),
    params:
        **settings("score_volumes"),
    script:
        f"{SCRIPTS}/score_volumes.py"


rule search_threshold:
    input:
        maps=rules.score_volumes.output.maps,
        store=test_store,
    output:
        "<results>/thresholds/<cell>/{test}.json",
    log:
        "<logs>/search_threshold/<cell>/{test}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=request_memory(1000, 0.5, of_test),
        runtime=request(30, 0.05, of_test),
    params:
        **settings("search_threshold"),
    script:
        f"{SCRIPTS}/search_threshold.py"


rule evaluate_volumes:
    input:
        maps=rules.score_volumes.output.maps,
        store=test_store,
        threshold=rules.search_threshold.output,
    output:
        metrics="<results>/metrics/<cell>/{test}.tsv",
        columns="<results>/metrics/<cell>/{test}.json",
        curve="<results>/curves/<cell>/{test}.tsv",
    log:
        "<logs>/evaluate_volumes/<cell>/{test}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=request(1000, 0.2, of_test),
        runtime=request(30, 0.1, of_test),
    params:
        **settings("evaluate_volumes"),
    script:
        f"{SCRIPTS}/evaluate_volumes.py"


# the healthy test subjects of a cross-dataset experiment, restored and scored as a test set is
use rule reconstruct_volumes as reconstruct_healthy with:
    input:
        weights=weights_if_trained,
        store=healthy_store,
        split="<results>/splits/{experiment}/fold-{fold}.tsv",
        air=air_if_used,
    output:
        kept("<results>/healthy/<cell>/{test}.reconstructions.safetensors"),
    log:
        "<logs>/reconstruct_healthy/<cell>/{test}.log",
    params:
        **settings("reconstruct_healthy"),


use rule score_volumes as score_healthy with:
    input:
        reconstructions=rules.reconstruct_healthy.output,
        store=healthy_store,
        air=air_if_used,
    output:
        maps=kept("<results>/healthy/<cell>/{test}.maps.safetensors"),
        readiness="<results>/healthy/<cell>/{test}.readiness.json",
    log:
        "<logs>/score_healthy/<cell>/{test}.log",
    params:
        **settings("score_healthy"),


rule evaluate_healthy:
    input:
        healthy=rules.score_healthy.output.maps,
        healthy_store=healthy_store,
        maps=rules.score_volumes.output.maps,
        store=test_store,
        threshold=rules.search_threshold.output[0],
    output:
        scans="<results>/healthy/<cell>/{test}.tsv",
        summary="<results>/healthy/<cell>/{test}.json",
    log:
        "<logs>/evaluate_healthy/<cell>/{test}.log",
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=request_memory(2000, 1, of_test),
        runtime=request(30, 0.1, of_test),
    params:
        **settings("evaluate_healthy"),
    script:
        f"{SCRIPTS}/evaluate_healthy.py"


rule make_healthy_table:
    input:
        healthy_files(),
    output:
        csv="<results>/tables/healthy.csv",
        md="<results>/tables/healthy.md",
        html=shown("<results>/tables/healthy.html", "healthy", content="healthy scans"),
    log:
        "<logs>/make_healthy_table/job.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        labels=cfg.labels,
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/make_healthy_table.py"


rule healthy:
    input:
        rules.make_healthy_table.output if healthy_files() else [],
    localrule: True
