"""Skull stripping, registration and packing: a scan per job, then one file per data set.

Where a network strips the skulls on a GPU, a job predicts the masks of some scans.
"""


include: "preprocess_inputs.smk"


rule predict_brain_masks:
    input:
        lambda wildcards: list(scans_of_batch(wildcards).values()),
    output:
        temp(tree.brain_masks()),
    log:
        tree.log("predict_brain_masks", "{dataset}", "{suffix}_batch-{batch}"),
    conda:
        "../envs/preprocess.yaml"
    threads: cfg.run.scan_threads
    resources:
        gpu=1,
        gpu_slots=cfg.run.jobs_per_gpu,
        mem_mb=by_attempt(6000),
        runtime=prediction_minutes,
    params:
        **settings("predict_brain_masks"),
        subjects=lambda wildcards: list(scans_of_batch(wildcards)),
    script:
        f"{SCRIPTS}/predict_brain_masks.py"


rule skullstrip_scan:
    input:
        image=lambda wildcards: raw_scan(wildcards).image,
        atlas=rules.prepare_atlas.output,
        prediction=prediction,
    output:
        mask=tree.scan("nii.gz", space="orig", label="brain", desc="mask"),
        sidecar=tree.scan("json", space="orig", label="brain", desc="mask"),
        picture=tree.scan("png", folder="figures", desc="skullstrip"),
    log:
        tree.log("skullstrip_scan", "{dataset}", "{subject}_{suffix}"),
    group:
        batch_of("skullstrip")
    conda:
        "../envs/preprocess.yaml"
    threads: cfg.run.scan_threads
    resources:
        mem_mb=stripping_memory,
        runtime=stripping_minutes,
    params:
        **settings("skullstrip_scan"),
    script:
        f"{SCRIPTS}/skullstrip_scan.py"


rule register_scan:
    input:
        image=lambda wildcards: raw_scan(wildcards).image,
        lesion=lambda wildcards: raw_scan(wildcards).lesion or [],
        brain_mask=rules.skullstrip_scan.output.mask,
        atlas=rules.prepare_atlas.output,
    output:
        image=tree.scan("nii.gz", space="SRI24", desc="preproc"),
        mask=tree.scan("nii.gz", space="SRI24", label="brain", desc="mask"),
        lesion=tree.scan("nii.gz", space="SRI24", label="lesion", desc="mask"),
        transform=tree.scan(
            "mat", **{"from": "orig", "to": "SRI24", "mode": "image", "desc": "xfm"}
        ),
        sidecar=tree.scan("json", space="SRI24", desc="preproc"),
        picture=tree.scan("png", folder="figures", desc="register"),
    log:
        tree.log("register_scan", "{dataset}", "{subject}_{suffix}"),
    group:
        batch_of("register")
    conda:
        "../envs/preprocess.yaml"
    threads: cfg.run.scan_threads
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(10),
    params:
        **settings("register_scan"),
    script:
        f"{SCRIPTS}/register_scan.py"


rule pack_slices:
    input:
        unpack(scans),
        participants=tree.participants(),
    output:
        tree.slices(),
    log:
        tree.log("pack_slices", "{dataset}_{modality}"),
    conda:
        "../envs/preprocess.yaml"
    resources:
        mem_mb=request_memory(3000, 4, of_wildcard),
        runtime=request(30, 0.1, of_wildcard),
    params:
        **settings("pack_slices"),
        preprocessed=lambda wildcards: is_preprocessed(wildcards.dataset),
    script:
        f"{SCRIPTS}/pack_slices.py"
