# From a sealed store to a trained model and its test scores. A store alone is enough: see python -m model --help.


rule settings:
    # Names of methods and hyper-parameters are checked first of all, before an hour is spent on stores.
    output:
        "<results>/runs/{experiment}/settings.json",
    log:
        "<logs>/{experiment}/settings.log",
    benchmark:
        "<benchmarks>/{experiment}/settings.jsonl"
    priority: 100
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime="10m",
    params:
        asked=lambda wildcards: settings_asked(PLAN, wildcards.experiment),
        code=code_of("model.config", "model.methods"),
    shell:
        "python -m workflow.settings {params.asked:q} > {output} 2> {log}"


rule train:
    input:
        settings=ancient("<results>/runs/{experiment}/settings.json"),
        verified=lambda wildcards: f"<results>/verified/{run_plan(wildcards).store}.txt",
        mask=lambda wildcards: mask_file(run_plan(wildcards)),
    output:
        checkpoint="<results>/runs/{experiment}/{method}/seed{seed}/checkpoint.pt",
        config="<results>/runs/{experiment}/{method}/seed{seed}/config.json",
        predictions="<results>/runs/{experiment}/{method}/seed{seed}/predictions.parquet",
        table="<results>/runs/{experiment}/{method}/seed{seed}/metrics.csv",
        metrics="<results>/runs/{experiment}/{method}/seed{seed}/metrics.json",
    log:
        "<logs>/{experiment}/{method}_seed{seed}_train.log",
    benchmark:
        "<benchmarks>/{experiment}/{method}_seed{seed}_train.jsonl"
    conda:
        "../../environment.yml"
    # One thread: runs are independent, and a result does not depend on how many cores there are.
    threads: 1
    resources:
        mem_mb=memory(8000),
        runtime="12h",
        gpu=int(config["gpu"]),
    params:
        store=lambda wildcards: store_folder(run_plan(wildcards).store),
        # The point from which a killed training continues lies in this folder and is no output: Snakemake keeps it.
        run=subpath(output.metrics, parent=True),
        mask=lambda wildcards, input: ["--mask", *input.mask] if input.mask else [],
        options=lambda wildcards: train_arguments(run_plan(wildcards)),
        code=lambda wildcards: code_of(
            "model.train", f"model.methods.{wildcards.method}"
        )(wildcards),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m model train --store {params.store:q}"
        " --out {params.run:q} {params.mask:q} {params.options:q} --quiet > {log} 2>&1"


rule evaluate:
    # The checkpoint alone, in a process of its own, must give what training said of the test part.
    input:
        checkpoint="<results>/runs/{experiment}/{method}/seed{seed}/checkpoint.pt",
        mask=lambda wildcards: mask_file(run_plan(wildcards)),
    output:
        "<results>/runs/{experiment}/{method}/seed{seed}/evaluation.csv",
    log:
        "<logs>/{experiment}/{method}_seed{seed}_evaluate.log",
    benchmark:
        "<benchmarks>/{experiment}/{method}_seed{seed}_evaluate.jsonl"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime="2h",
        gpu=int(config["gpu"]),
    params:
        store=lambda wildcards: store_folder(run_plan(wildcards).store),
        run=subpath(input.checkpoint, parent=True),
        mask=lambda wildcards, input: ["--mask", *input.mask] if input.mask else [],
        code=lambda wildcards: code_of(
            "model.checkpoint", "model.evaluate", f"model.methods.{wildcards.method}"
        )(wildcards),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m model evaluate --run {params.run:q}"
        " --store {params.store:q} {params.mask:q} --part test --out {output:q} --quiet > {log} 2>&1"
