"""Raw trees, the atlas, and who is in each data set."""


rule check_disk_space:
    output:
        f"{cfg.results}/preflight.json",
    log:
        tree.log("check_disk_space"),
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        config=part_of_config("results", "datasets", "preprocessing"),
    script:
        f"{SCRIPTS}/check_disk_space.py"


rule make_phantom:
    input:
        rules.check_disk_space.output,
    output:
        tree.manifest(),
    log:
        tree.log("make_phantom", "{dataset}"),
    benchmark:
        tree.benchmark("make_phantom", "{dataset}")
    conda:
        "../envs/preprocess.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        root=tree.raw(),
        dataset=lambda wildcards: cfg.datasets[wildcards.dataset].model_dump(mode="json"),
        seed=cfg.seed,
    script:
        f"{SCRIPTS}/make_phantom.py"


rule prepare_atlas:
    output:
        tree.atlas("head.nii.gz"),
        tree.atlas("brain.nii.gz"),
        tree.atlas("brain_mask.nii.gz"),
        tree.atlas("atlas.json"),
    log:
        tree.log("prepare_atlas"),
    conda:
        "../envs/preprocess.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        spacing=cfg.preprocessing.spacing,
    script:
        f"{SCRIPTS}/prepare_atlas.py"


checkpoint index_dataset:
    input:
        raw_tree,
    output:
        tree.participants(),
    log:
        tree.log("index_dataset", "{dataset}"),
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        root=lambda wildcards: (
            tree.raw(wildcards.dataset)
            if cfg.datasets[wildcards.dataset].source == "phantom"
            else cfg.datasets[wildcards.dataset].path
        ),
        dataset=lambda wildcards: cfg.datasets[wildcards.dataset].model_dump(mode="json"),
    script:
        f"{SCRIPTS}/index_dataset.py"


rule index:
    input:
        expand(tree.participants(), dataset=cfg.datasets_of_run()),
