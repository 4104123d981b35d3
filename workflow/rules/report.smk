rule report_page:
    input:
        verified=[f"<results>/verified/{name}.txt" for name in PLAN.stores],
        batches=batch_files(PLAN.runs.values()),
        # A function, because QUALITY is filled by the dataset-specific rules, which are included later.
        quality=lambda wildcards: [f"{folder}/{file}" for folder in QUALITY.values() for file in QUALITY_FILES],
    output:
        page=report(
            "<results>/report/index.html",
            category="results",
            labels={"what": "report"},
            caption="../report/results.rst",
        ),
        table=report(
            "<results>/report/results.csv",
            category="results",
            labels={"what": "all scores, one row a run, group and metric"},
            caption="../report/results.rst",
        ),
        answer="<results>/report/answer.md",
        # The number of figures is not known in advance. Routing figures also appear in Snakemake's report.
        figures=report(
            directory("<results>/report/figures"),
            patterns=["{figure}-routing.svg"],
            category="routing",
            labels={"experiment": "{figure}"},
            caption="../report/routing.rst",
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.jsonl"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(4000),
        runtime="1h",
    params:
        runs=[run_folder(run) for run in PLAN.runs.values()],
        stores=[store_folder(name) for name in PLAN.stores],
        suites=rendered_suites,
        searches=path("<results>/searches"),
        cells=lambda wildcards: path("<results>/runs"),
        suites_state=rendered_state,
        quality=lambda wildcards: [f"{name}={path(folder)}" for name, folder in QUALITY.items()],
        benchmarks=path("<benchmarks>"),
        code=code_of("moe_retriever.report"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe report --runs {params.runs:q}"
        " --stores {params.stores:q} --suites {params.suites:q} --cells {params.cells:q}"
        " --searches {params.searches:q} --qc {params.quality:q}"
        " --benchmarks {params.benchmarks:q} --out {output.page:q} > {log} 2>&1"


rule suite_report:
    # Report page of a single suite, for workflow runs that request only that suite.
    input:
        lambda wildcards: [f"{folder}/finished" for folder in suite_folders(wildcards)],
    output:
        report(
            "<results>/suites/{suite}/report/index.html",
            category="results",
            labels={"what": "report of {suite}"},
            caption="../report/results.rst",
        ),
        answer="<results>/suites/{suite}/report/answer.md",
    log:
        "<logs>/suites/{suite}_report.log",
    benchmark:
        "<benchmarks>/suites/{suite}_report.jsonl"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(4000),
        runtime="1h",
    params:
        command=lambda wildcards, output: report_command(map(path, suite_folders(wildcards)), output[0]),
        code=code_of("moe_retriever.report"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe {params.command:q} > {log} 2>&1"
