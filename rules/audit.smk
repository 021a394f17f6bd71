"""Auditing and sharing a finished results tree."""


rule pack_crate:
    input:
        rules.report.input,
        config=rules.save_config.output[0],
    output:
        "<results>/crate.zip",
    log:
        "<logs>/pack_crate/job.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        phantom=cfg.phantom,
        datasets={name: layout_name(cfg.datasets[name].layout) for name in cfg.datasets_of_run()},
        # 'make crate IMAGES=1 MODELS=1 AGENT=...'
        images=os.environ.get("UAD_CRATE_IMAGES", "") not in ("", "0"),
        models=os.environ.get("UAD_CRATE_MODELS", "") not in ("", "0"),
        agent=os.environ.get("UAD_CRATE_AGENT") or None,
    script:
        f"{SCRIPTS}/pack_crate.py"


rule crate:
    input:
        rules.pack_crate.output,
    localrule: True


# no output: it looks at all files each time that it is asked for
rule audit:
    input:
        checks(),
        rules.report.input,
    log:
        tree.log("audit"),
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        python=sys.executable,
        library=f"{workflow.basedir}/workflow_scripts",
        results=lambda wildcards: cfg.results,
    shell:
        "PYTHONPATH={params.library:q} {params.python:q} -m uad audit {params.results:q} 2>&1 | tee {log:q}"
