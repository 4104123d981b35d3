# Training and evaluation on a sealed store. The same commands work without the workflow: see `mrpipe --help`.


rule settings:
    # Checks hyper-parameters first, before any store is built. Its output is not an input of training, not even an
    # ancient() one, because Snakemake 9.27 skips jobs downstream of an ancient input that is rebuilt.
    output:
        "<results>/runs/{experiment}/settings.json",
    log:
        "<logs>/{experiment}/settings.log",
    benchmark:
        "<benchmarks>/{experiment}/settings.jsonl"
    priority: 100
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime="10m",
    params:
        asked=lambda wildcards: settings_asked(r for r in PLAN.runs.values() if r.experiment == wildcards.experiment),
        code=code_of("moe_retriever.config", "moe_retriever.methods"),
    shell:
        "python -m mrpipe settings {params.asked:q} > {output} 2> {log}"


rule train:
    input:
        verified=lambda wildcards: f"<results>/verified/{run_plan(wildcards).store}.txt",
        mask=lambda wildcards: mask_file(run_plan(wildcards)),
        best=lambda wildcards: search_result(run_plan(wildcards)),
    output:
        model="<results>/runs/{experiment}/{method}/seed{seed}/model.pt",
        config="<results>/runs/{experiment}/{method}/seed{seed}/config.json",
        cost="<results>/runs/{experiment}/{method}/seed{seed}/cost.json",
    log:
        "<logs>/{experiment}/{method}_seed{seed}_train.log",
    benchmark:
        "<benchmarks>/{experiment}/{method}_seed{seed}_train.jsonl"
    group:
        group_of_cell
    conda:
        "../../environment.yml"
    # One thread: runs are independent, and the last digits of results depend on the number of threads.
    resources:
        mem_mb=memory(8000),
        runtime="12h",
        gpu=lambda wildcards: int(config["gpu"] and gradient_steps(run_plan(wildcards).method)),
    params:
        store=lambda wildcards: store_folder(run_plan(wildcards).store),
        # This folder also holds the checkpoint for resuming a killed training: not an output, so Snakemake keeps it.
        run=subpath(output.model, parent=True),
        mask=lambda wildcards, input: ["--mask", *input.mask] if input.mask else [],
        best=lambda wildcards, input: ["--options", *input.best] if input.best else [],
        options=lambda wildcards: train_arguments(run_plan(wildcards)),
        code=code_with_method("moe_retriever.training.loop:run_training", run_plan),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe train --store {params.store:q}"
        " --out {params.run:q} {params.mask:q} {params.best:q} {params.options:q} --threads {threads} --no-test --quiet"
        " > {log} 2>&1"


rule evaluate:
    # Without `test`, under the conditions of the training; otherwise under a protocol, which shares the training.
    input:
        unpack(test_files),
        model="<results>/runs/{experiment}/{method}/seed{seed}/model.pt",
    output:
        metrics="<results>/runs/{experiment}/{method}/seed{seed}/{test}metrics.json",
        table="<results>/runs/{experiment}/{method}/seed{seed}/{test}metrics.csv",
        predictions="<results>/runs/{experiment}/{method}/seed{seed}/{test}predictions.parquet",
    log:
        "<logs>/{experiment}/{method}_seed{seed}_{test}evaluate.log",
    benchmark:
        "<benchmarks>/{experiment}/{method}_seed{seed}_{test}evaluate.jsonl"
    group:
        group_of_cell
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(4000),
        runtime="2h",
        gpu=lambda wildcards: int(config["gpu"] and gradient_steps(run_plan(wildcards).method)),
    params:
        store=lambda wildcards: store_folder(run_plan(wildcards).test_store),
        run=subpath(input.model, parent=True),
        protocol=lambda wildcards, input: protocol_arguments(
            run_plan(wildcards), input.get("mask", ()), store_folder(run_plan(wildcards).store)
        ),
        code=code_with_method("moe_retriever.evaluation.evaluate:evaluate_run", run_plan),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe evaluate --run {params.run:q}"
        " --store {params.store:q} {params.protocol:q} --part test --threads {threads} --quiet > {log} 2>&1"
