"""Quality control: measures, outliers and pictures of all scans, and a page to go through them."""


include: "qc_inputs.smk"


rule draw_packed_scans:
    input:
        tree.slices(),
    output:
        tree.packed_sheet(),
    log:
        tree.log("draw_packed_scans", "{dataset}_{modality}_{sheet}"),
    wildcard_constraints:
        sheet="[0-9]+",
    conda:
        "../envs/preprocess.yaml"
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(10),
    params:
        subjects=subjects_of_sheet,
    script:
        f"{SCRIPTS}/draw_packed_scans.py"


rule measure_quality:
    input:
        unpack(sidecars),
        participants=tree.participants(),
        stores=lambda wildcards: [
            tree.slices(wildcards.dataset, modality)
            for modality in modalities_of_run(wildcards.dataset)
        ],
    output:
        tree.quality("tsv"),
    log:
        tree.log("measure_quality", "{dataset}"),
    conda:
        "../envs/preprocess.yaml"
    resources:
        mem_mb=by_attempt(3000),
        runtime=request(10, 0.05, of_wildcard),
    params:
        modalities=lambda wildcards: modalities_of_run(wildcards.dataset),
        preprocessing={key: plain(cfg.preprocessing)[key] for key in ("field_of_view", "shape")},
        preprocessed=lambda wildcards: is_preprocessed(wildcards.dataset),
        threshold=cfg.qc.threshold,
    script:
        f"{SCRIPTS}/measure_quality.py"


rule make_gallery:
    input:
        unpack(packed_sheets),
        tables=expand(tree.quality("tsv"), dataset=datasets_of_qc()),
    output:
        gallery=tree.gallery(),
        json=tree.quality_summary("json"),
        html=report(
            tree.quality_summary("html"),
            caption="../report/qc.rst",
            category="Quality control",
            labels={"page": "counts per data set"},
        ),
    log:
        tree.log("make_gallery"),
    localrule: True
    conda:
        "../envs/preprocess.yaml"
    params:
        datasets=datasets_of_qc(),
        # the pictures are linked, not read
        pictures={name: picture_links(name) for name in datasets_of_qc()},
        shape=cfg.preprocessing.shape,
        # all verdicts, also those that change no number: the page shows them
        decisions=[decision._asdict() for decision in decisions],
        decisions_file=Path(cfg.qc.decisions).name,
        threshold=cfg.qc.threshold,
        phantom=cfg.phantom,
    script:
        f"{SCRIPTS}/make_gallery.py"


rule qc:
    input:
        rules.make_gallery.output,
