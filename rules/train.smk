"""Training: a fold of a method per job, on one GPU."""


include: "train_inputs.smk"


rule train_model:
    input:
        store=training_store,
        split="<results>/splits/{experiment}/fold-{fold}.tsv",
        air=air_if_used,
    output:
        weights="<results>/models/<cell>/model.safetensors",
        config="<results>/models/<cell>/config.json",
        history="<results>/models/<cell>/history.csv",
        picture=report(
            "<results>/models/<cell>/loss.png",
            caption="../report/loss.rst",
            category="Training",
            subcategory="{experiment}",
            labels={"method": "{method}", "fold": "{fold}"},
        ),
    log:
        "<logs>/train_model/<cell>.log",
    conda:
        "../envs/train.yaml"
    threads: cfg.run.train_threads
    resources:
        gpu=GPU_WANTED,
        gpu_slots=gpu_slots,
        mem_mb=request_memory(6000, 4, of_training),
        runtime=training_minutes,
    params:
        **settings("train_model"),
    script:
        f"{SCRIPTS}/train_model.py"
