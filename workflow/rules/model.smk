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


rule cells:
    # Trains and evaluates the cells of a batch, one after the other, and skips those that are complete. Run folders are
    # no outputs, because Snakemake would remove those of all cells before a job and after a failed one. A batch with a
    # missing result runs again: see `incomplete_batches`.
    input:
        lambda wildcards: batch_of(wildcards).inputs,
        lambda wildcards: contents(batch_of(wildcards).runs),
    output:
        "<results>/batches/cells/{batch}.json",
    log:
        "<logs>/batches/{batch}.log",
    benchmark:
        "<benchmarks>/batches/{batch}.jsonl"
    group:
        job_group("cells")
    conda:
        "../../environment.yml"
    # One thread: runs are independent, and the last digits of results depend on the number of threads.
    resources:
        mem_mb=memory(8000),
        runtime=minutes_of_batch,
        gpu=int(config["gpu"]),
    params:
        cells=lambda wildcards: json.dumps([cell_request(cell) for cell in batch_of(wildcards).cells]),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe cells {params.cells:q}"
        " --out {output:q} --threads {threads} --quiet > {log} 2>&1"


use rule cells as cpu_cells with:
    # Methods without gradient steps use no GPU; profiles can send them elsewhere.
    output:
        "<results>/batches/cpu_cells/{batch}.json",
    group:
        job_group("cpu_cells")
    resources:
        mem_mb=memory(8000),
        runtime=minutes_of_batch,
        gpu=0,
