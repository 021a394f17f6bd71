"""Who is trained on, validated on and tested on."""


include: "splits_inputs.smk"


rule fetch_split_list:
    output:
        tree.published_split(),
    log:
        tree.log("fetch_split_list", "{list}"),
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    script:
        f"{SCRIPTS}/fetch_split_list.py"


rule make_splits:
    input:
        participants=lambda wildcards: [
            tree.participants(dataset)
            for dataset in dict.fromkeys(
                [experiment_of(wildcards).train, *experiment_of(wildcards).test]
            )
        ],
        lists=split_lists,
    output:
        tree.split(),
    log:
        tree.log("make_splits", "{experiment}", "fold-{fold}"),
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        **settings("make_splits"),
    script:
        f"{SCRIPTS}/make_splits.py"
