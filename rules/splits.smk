"""Who is trained on, validated on and tested on."""


include: "splits_inputs.smk"


rule fetch_split_list:
    output:
        "<results>/splits/published/{list}",
    log:
        "<logs>/fetch_split_list/{list}.log",
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
        "<results>/splits/{experiment}/fold-{fold}.tsv",
    log:
        "<logs>/make_splits/{experiment}/fold-{fold}.log",
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        **settings("make_splits"),
    script:
        f"{SCRIPTS}/make_splits.py"
