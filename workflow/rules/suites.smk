# Tables and figures of the paper and custom ones (workflow/config/suites.yaml). The rules in model.smk build a suite's
# runs (cells); the rules in this file turn them into tables and figures.


for suite_name in SUITES.names:

    if INTERNALS.rule_name(suite_name) in INTERNALS.rule_names:
        raise WorkflowError(f"suites.{suite_name}: the workflow has a rule of this name; choose another")

    rule:
        name:
            suite_name
        input:
            suite_targets(suite_name),
        localrule: True


use rule settings as suite_settings with:
    output:
        "<results>/suites/{suite}/settings.json",
    log:
        "<logs>/suites/{suite}_settings.log",
    benchmark:
        "<benchmarks>/suites/{suite}_settings.jsonl"
    params:
        asked=lambda wildcards: settings_asked(suite_of(wildcards).cells.values()),
        code=code_of("moe_retriever.config", "moe_retriever.methods"),


rule search:
    # One search per method, shared by all seeds, with the same budget for every method, scored on the validation split.
    # It is not grouped with its cells: the seeds would share its one GPU, and a failed cell would fail the search too.
    input:
        contents=lambda wildcards: contents([searched(wildcards)]),
        mask=lambda wildcards: mask_file(searched(wildcards)),
    output:
        best="<results>/searches/{experiment}/{method}/best.json",
        trials="<results>/searches/{experiment}/{method}/trials.parquet",
    log:
        "<logs>/{experiment}/{method}_search.log",
    benchmark:
        "<benchmarks>/{experiment}/search_{method}.jsonl"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(8000),
        # Trials run one after the other.
        runtime="24h",
        gpu=lambda wildcards: int(config["gpu"] and gradient_steps(searched(wildcards).method)),
    params:
        store=lambda wildcards: store_folder(searched(wildcards).store),
        # An interrupted search resumes from the trials in this folder.
        out=subpath(output.best, parent=True),
        mask=lambda wildcards, input: ["--mask", *input.mask] if input.mask else [],
        options=lambda wildcards: search_arguments(searched(wildcards)),
        code=lambda wildcards: code_hash("moe_retriever.training.search", method_module(searched(wildcards).method)),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe search --store {params.store:q}"
        " --out {params.out:q} {params.mask:q} {params.options:q} --threads {threads} --quiet > {log} 2>&1"


rule cost:
    # Figure 4. Other jobs on the same machine affect the measured times: for undisturbed ones, use `--cores 1`.
    input:
        contents=lambda wildcards: content_files(searched(wildcards).store),
        mask=lambda wildcards: mask_file(searched(wildcards)),
    output:
        "<results>/costs/{experiment}/{method}.csv",
    log:
        "<logs>/{experiment}/{method}_cost.log",
    benchmark:
        "<benchmarks>/{experiment}/cost_{method}.jsonl"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(8000),
        runtime="4h",
        gpu=int(config["gpu"]),
    params:
        store=lambda wildcards: store_folder(searched(wildcards).store),
        mask=lambda wildcards, input: ["--mask", *input.mask] if input.mask else [],
        options=lambda wildcards: benchmark_arguments(searched(wildcards), SUITES.benchmark_steps),
        code=lambda wildcards: code_hash("moe_retriever.evaluation.cost", method_module(searched(wildcards).method)),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe benchmark --store {params.store:q}"
        " {params.mask:q} {params.options:q} --out {output:q} --threads {threads} --quiet > {log} 2>&1"


rule render:
    input:
        batches=suite_batches,
        costs=suite_costs,
        verified=lambda wildcards: [f"<results>/verified/{name}.txt" for name in suite_of(wildcards).stores],
    output:
        # The number of tables and figures depends on the suite; this flag file marks them as complete.
        touch("<results>/suites/{suite}/finished"),
    log:
        "<logs>/suites/{suite}_render.log",
    benchmark:
        "<benchmarks>/suites/{suite}_render.jsonl"
    wildcard_constraints:
        suite="|".join(name for name in SUITES.names if name not in SUITES.collections),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(4000),
        runtime="1h",
    params:
        suite=lambda wildcards: json.dumps(suite_description(suite_of(wildcards))),
        out=subpath(output[0], parent=True),
        command=lambda wildcards, output: suite_command(suite_of(wildcards), Path(output[0]).parent),
        code=lambda wildcards: code_of(
            "moe_retriever.suites.figures" if suite_of(wildcards).figure else "moe_retriever.suites.tables"
        )(wildcards),
    shell:
        "printf '%s\\n' {params.suite:q} > {params.out:q}/suite.json;"
        " POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe {params.command:q} > {log} 2>&1"
