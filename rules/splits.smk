"""Who is trained on, validated on and tested on."""


rule make_splits:
    input:
        lambda wildcards: [
            tree.participants(dataset)
            for dataset in dict.fromkeys(
                [experiment_of(wildcards).train, *experiment_of(wildcards).test]
            )
        ],
    output:
        tree.split(),
    log:
        tree.log("make_splits", "{experiment}", "fold-{fold}"),
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        experiment=lambda wildcards: plain(experiment_of(wildcards)),
        splits=split_keys,
    script:
        f"{SCRIPTS}/make_splits.py"
