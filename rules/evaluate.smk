"""Reconstruction, anomaly maps, threshold and metrics of one fold on one test set."""


include: "evaluate_inputs.smk"


rule reconstruct_volumes:
    input:
        weights=weights_if_trained,
        store=test_store,
        split=tree.split(),
        air=air_if_used,
    output:
        kept(tree.per_test("reconstructions", "safetensors")),
    log:
        tree.log("reconstruct_volumes", "{experiment}", "{method}", "fold-{fold}", "{test}"),
    conda:
        "../envs/train.yaml"
    threads: cfg.run.train_threads
    resources:
        gpu=reconstruction_gpu,
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
        kept(tree.per_test("maps", "safetensors")),
    log:
        tree.log("score_volumes", "{experiment}", "{method}", "fold-{fold}", "{test}"),
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
        maps=rules.score_volumes.output,
        store=test_store,
    output:
        tree.per_test("thresholds", "json"),
    log:
        tree.log("search_threshold", "{experiment}", "{method}", "fold-{fold}", "{test}"),
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
        maps=rules.score_volumes.output,
        store=test_store,
        threshold=rules.search_threshold.output,
    output:
        metrics=tree.per_test("metrics", "tsv"),
        curve=tree.per_test("curves", "tsv"),
    log:
        tree.log("evaluate_volumes", "{experiment}", "{method}", "fold-{fold}", "{test}"),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=request(1000, 0.2, of_test),
        runtime=request(30, 0.1, of_test),
    params:
        **settings("evaluate_volumes"),
    script:
        f"{SCRIPTS}/evaluate_volumes.py"
