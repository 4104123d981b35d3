rule simulate:
    # The output is a flag file: Snakemake would delete a declared export before the step can replace it atomically.
    output:
        touch("<results>/build/{dataset}/simulated"),
    log:
        "<logs>/{dataset}/simulate.log",
    benchmark:
        "<benchmarks>/{dataset}/simulate.jsonl"
    group:
        job_group("export")
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(2000),
        runtime="1h",
    params:
        dataset=reader_name,
        out=raw_folder,
        options=lambda wildcards: set_arguments(store_plan(wildcards).simulation),
        code=code_of("mrpipe.stages.simulate:simulate", function=lambda dataset, wildcards: dataset.simulate),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe simulate {params.dataset}"
        " --out {params.out:q} {params.options:q} --overwrite > {log} 2>&1"
