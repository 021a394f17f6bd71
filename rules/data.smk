"""Raw trees, the atlas, and who is in each data set."""


include: "data_inputs.smk"


rule check_disk_space:
    output:
        f"{cfg.results}/preflight.json",
    log:
        tree.log("check_disk_space"),
    # asked for by the targets, not by the scans: see docs/architecture.md
    priority: 1000
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        phantom=cfg.phantom,
        datasets={name: plain(cfg.datasets[name]) for name in cfg.datasets_of_run()},
        preprocessing=plain(cfg.preprocessing),
        models=[plain(cfg.models[cfg.methods[row].model]) for row in cfg.trained_rows()],
        folds=max(len(cfg.folds_of(name)) for name in cfg.experiments),
    script:
        f"{SCRIPTS}/check_disk_space.py"


rule make_phantom:
    output:
        tree.manifest(),
    log:
        tree.log("make_phantom", "{dataset}"),
    conda:
        "../envs/preprocess.yaml"
    resources:
        mem_mb=by_attempt(3000),
        runtime=by_attempt(60),
    params:
        **settings("make_phantom"),
        root=tree.raw(),
    script:
        f"{SCRIPTS}/make_phantom.py"


rule download_atlas:
    output:
        tree.atlas("download.json"),
    log:
        tree.log("download_atlas"),
    retries: 0
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        archives=cfg.archives,
    script:
        f"{SCRIPTS}/download_atlas.py"


rule prepare_atlas:
    input:
        rules.download_atlas.output if cfg.preprocessing.atlas == "download" else [],
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
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        **settings("prepare_atlas"),
    script:
        f"{SCRIPTS}/prepare_atlas.py"


rule download_dataset:
    output:
        tree.downloaded(),
    log:
        tree.log("download_dataset", "{dataset}"),
    retries: 0  # a transfer is patient by itself, and a missing token does not come by waiting
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        root=raw_root,
        archives=cfg.archives,
        dataset=dataset_keys("layout", "modalities"),
    script:
        f"{SCRIPTS}/download_dataset.py"


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
        root=raw_root,
        listing=raw_listing,
        dataset=dataset_keys("layout", "source", "modalities", "exclude", "limit"),
    script:
        f"{SCRIPTS}/index_dataset.py"


rule validate_dataset:
    input:
        tree.participants(),
    output:
        tsv=tree.validation("tsv"),
        html=report(
            tree.validation("html"),
            caption="../report/validation.rst",
            category="Raw data",
            labels={"data set": "{dataset}"},
        ),
        scans=tree.validation("scans.tsv"),
    log:
        tree.log("validate_dataset", "{dataset}"),
    priority: 100
    conda:
        "../envs/preprocess.yaml"
    threads: cfg.run.validation_threads
    resources:
        mem_mb=by_attempt(4000),
        runtime=request(30, 0.2, of_wildcard),
    params:
        root=raw_root,
        listing=raw_listing,
        dataset=dataset_keys("layout", "source", "modalities", "expected", "exclude", "limit"),
        phantom=cfg.phantom,
        backend=lambda wildcards: cfg.backend_of(wildcards.dataset),
    script:
        f"{SCRIPTS}/validate_dataset.py"


rule validate:
    input:
        expand(tree.validation("html"), dataset=datasets_at_hand()),


rule index:
    input:
        expand(tree.participants(), dataset=cfg.datasets_of_run()),
