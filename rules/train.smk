"""Training: a fold of a method per job, on one GPU."""


include: "train_inputs.smk"


rule train_model:
    input:
        store=training_store,
        split=tree.split(),
        air=air_if_used,
    output:
        weights=tree.model("model.safetensors"),
        config=tree.model("config.json"),
        history=tree.model("history.csv"),
        picture=report(
            tree.model("loss.png"),
            caption="../report/loss.rst",
            category="Training",
            subcategory="{experiment}",
            labels={"method": "{method}", "fold": "{fold}"},
        ),
    log:
        tree.log("train_model", "{experiment}", "{method}", "fold-{fold}"),
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
