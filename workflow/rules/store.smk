# Builds a sealed store from an export. These rules apply to every dataset; dataset-specific ones are in <dataset>.smk.


rule check:
    input:
        simulated_export,
    output:
        # Kept if a check fails, so that a mistake in one option does not rebuild everything.
        update("<results>/build/{dataset}/checked.json"),
    log:
        "<logs>/{dataset}/check.log",
    benchmark:
        "<benchmarks>/{dataset}/check.jsonl"
    group:
        job_group("export")
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(2000),
        runtime="1h",
    params:
        dataset=reader_name,
        raw=raw_folder,
        work=subpath(output[0], parent=True),
        options=reader_options("check"),
        modalities=lambda wildcards: store_plan(wildcards).modalities,
        schemes=lambda wildcards: [s for s, value in store_plan(wildcards).schemes.items() if not value.get("ids")],
        export=export_files("check"),
        code=code_of(
            "mrpipe.stages.check:write_check", function=lambda dataset, wildcards: (dataset.check, dataset.cohort)
        ),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe check {params.dataset}"
        " --raw {params.raw:q} --work {params.work:q} --modalities {params.modalities:q} --schemes {params.schemes:q}"
        " {params.options:q} > {log} 2>&1"


rule cohort:
    input:
        # The check runs first. Its result does not rerun this step; its own options, files and code do (params).
        checked=ancient("<results>/build/{dataset}/checked.json"),
        simulated=simulated_export,
    output:
        cohort="<results>/build/{dataset}/cohort.parquet",
        attrition="<results>/build/{dataset}/attrition.parquet",
    log:
        "<logs>/{dataset}/cohort.log",
    benchmark:
        "<benchmarks>/{dataset}/cohort.jsonl"
    group:
        job_group("export")
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime="1h",
    params:
        dataset=reader_name,
        raw=raw_folder,
        work=subpath(output.cohort, parent=True),
        options=reader_options("cohort"),
        export=export_files("cohort"),
        tasks=lambda wildcards: [repr(task) for task in store_plan(wildcards).dataset.tasks],
        code=code_of("mrpipe.stages.cohort:build_cohort", function=lambda dataset, wildcards: dataset.cohort),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe cohort {params.dataset}"
        " --raw {params.raw:q} --work {params.work:q} {params.options:q} > {log} 2>&1"


rule prepare:
    # Only for modalities that declare parts (shards of a large table, scans). Parts are independent jobs.
    input:
        checked=ancient("<results>/build/{dataset}/checked.json"),
        cohort="<results>/build/{dataset}/cohort.parquet",
    output:
        "<results>/build/{dataset}/parts/{modality}/{part}-of-{total}.parquet",
    log:
        "<logs>/{dataset}/prepare_{modality}_{part}-of-{total}.log",
    benchmark:
        "<benchmarks>/{dataset}/prepare_{modality}_{part}-of-{total}.jsonl"
    group:
        group_of_parts
    conda:
        "../../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * ingest_cost(wildcards, "part_mem_mb", 4000),
        runtime=lambda wildcards: ingest_cost(wildcards, "part_runtime", "4h"),
    params:
        dataset=reader_name,
        raw=raw_folder,
        work=subpath(input.checked, parent=True),
        options=reader_options("prepare"),
        export=export_files("prepare"),
        code=code_of(
            "mrpipe.stages.prepare:prepare",
            function=lambda dataset, wildcards: dataset.modalities[wildcards.modality].prepare,
        ),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe prepare {params.dataset}"
        " {wildcards.modality} --part {wildcards.part} --raw {params.raw:q} --work {params.work:q}"
        " {params.options:q} > {log} 2>&1"


rule ingest:
    input:
        checked=ancient("<results>/build/{dataset}/checked.json"),
        cohort="<results>/build/{dataset}/cohort.parquet",
        parts=modality_parts,
    output:
        table="<results>/build/{dataset}/store/modalities/{modality}.parquet",
        dictionary="<results>/build/{dataset}/dictionary/{modality}.parquet",
        tried="<results>/build/{dataset}/tried/{modality}.parquet",
        content="<results>/contents/{dataset}/modalities/{modality}.txt",
    log:
        "<logs>/{dataset}/ingest_{modality}.log",
    benchmark:
        "<benchmarks>/{dataset}/ingest_{modality}.jsonl"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: ingest_cost(wildcards, "threads", 2)
    resources:
        mem_mb=lambda wildcards, attempt: attempt * ingest_cost(wildcards, "mem_mb", 4000),
        runtime=lambda wildcards: ingest_cost(wildcards, "runtime", "4h"),
    params:
        dataset=reader_name,
        raw=raw_folder,
        work=subpath(input.checked, parent=True),
        options=reader_options("ingest"),
        export=export_files("ingest"),
        bit=lambda wildcards: store_plan(wildcards).dataset.modalities[wildcards.modality].bit,
        code=code_of(
            "mrpipe.stages.ingest:ingest",
            function=lambda dataset, wildcards: dataset.modalities[wildcards.modality].read,
        ),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe ingest {params.dataset}"
        " {wildcards.modality} --raw {params.raw:q} --work {params.work:q} {params.options:q} > {log} 2>&1;"
        " cat {params.work:q}/written/store/modalities/{wildcards.modality}.parquet.sha256"
        " {params.work:q}/written/dictionary/{wildcards.modality}.parquet.sha256 > {output.content:q}"


rule samples:
    input:
        cohort="<results>/build/{dataset}/cohort.parquet",
        attrition="<results>/build/{dataset}/attrition.parquet",
        modalities=of_modalities("<results>/build/{dataset}/store/modalities/{modality}.parquet"),
        tried=of_modalities("<results>/build/{dataset}/tried/{modality}.parquet"),
    output:
        samples="<results>/build/{dataset}/store/samples.parquet",
        attrition="<results>/build/{dataset}/store/attrition.parquet",
        content="<results>/contents/{dataset}/samples.txt",
    log:
        "<logs>/{dataset}/samples.log",
    benchmark:
        "<benchmarks>/{dataset}/samples.jsonl"
    group:
        job_group("seal")
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=memory(2000),
        runtime="1h",
    params:
        dataset=reader_name,
        work=subpath(input.cohort, parent=True),
        modalities=lambda wildcards: store_plan(wildcards).modalities,
        code=code_of("mrpipe.stages.samples:assemble_samples"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe samples {params.dataset}"
        " --work {params.work:q} --modalities {params.modalities:q} > {log} 2>&1;"
        " cat {params.work:q}/written/store/samples.parquet.sha256 {params.work:q}/written/store/labels/*.sha256"
        " > {output.content:q}"


rule split:
    input:
        samples="<results>/build/{dataset}/store/samples.parquet",
        ids=lambda wildcards: store_plan(wildcards).schemes[wildcards.scheme].get("ids", []),
    output:
        table="<results>/build/{dataset}/store/splits/{scheme}.parquet",
        content="<results>/contents/{dataset}/splits/{scheme}.txt",
    log:
        "<logs>/{dataset}/split_{scheme}.log",
    benchmark:
        "<benchmarks>/{dataset}/split_{scheme}.jsonl"
    group:
        job_group("seal")
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(2000),
        runtime="1h",
    params:
        dataset=reader_name,
        work=lambda wildcards: path(f"<results>/build/{wildcards.dataset}"),
        seed=lambda wildcards: store_plan(wildcards).schemes[wildcards.scheme].get("seed", 0),
        ids=lambda wildcards, input: ["--ids", *input.ids] if input.ids else [],
        declared=lambda wildcards: repr(store_plan(wildcards).dataset.schemes.get(wildcards.scheme)),
        code=code_of("mrpipe.stages.split:make_split"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe split {params.dataset}"
        " --work {params.work:q} --scheme {wildcards.scheme} --seed {params.seed} {params.ids:q} > {log} 2>&1;"
        " cp {params.work:q}/written/store/splits/{wildcards.scheme}.parquet.sha256 {output.content:q}"


rule seal:
    # Copies the tables to the store. No rule takes a file of a finished store as an input, except its manifest: a file
    # that is changed there is an error of the step that reads it, and nothing seals it again.
    input:
        checked="<results>/build/{dataset}/checked.json",
        samples="<results>/build/{dataset}/store/samples.parquet",
        attrition="<results>/build/{dataset}/store/attrition.parquet",
        modalities=of_modalities("<results>/build/{dataset}/store/modalities/{modality}.parquet"),
        dictionaries=of_modalities("<results>/build/{dataset}/dictionary/{modality}.parquet"),
        splits=lambda wildcards: [
            f"<results>/build/{wildcards.dataset}/store/splits/{scheme}.parquet"
            for scheme in store_plan(wildcards).schemes
        ],
    output:
        manifest="<results>/stores/{dataset}/manifest.json",
        provenance="<results>/stores/{dataset}/provenance.json",
        dictionary="<results>/stores/{dataset}/dictionary.parquet",
        card=report(
            "<results>/stores/{dataset}/README.md",
            category="stores",
            labels={"store": "{dataset}", "what": "data card"},
            caption="../report/card.rst",
        ),
    log:
        "<logs>/{dataset}/seal.log",
    benchmark:
        "<benchmarks>/{dataset}/seal.jsonl"
    group:
        job_group("seal")
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime="1h",
    params:
        dataset=reader_name,
        work=subpath(input.checked, parent=True),
        store=subpath(output.manifest, parent=True),
        schemes=lambda wildcards: list(store_plan(wildcards).schemes),
        declared=lambda wildcards: store_plan(wildcards).declared,
        code=code_of("mrpipe.stages.seal:seal"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe seal {params.dataset}"
        " --work {params.work:q} --store {params.store:q} --schemes {params.schemes:q} > {log} 2>&1"


rule verify:
    input:
        store_manifest,
    output:
        "<results>/verified/{dataset}.txt",
    log:
        "<logs>/{dataset}/verify.log",
    benchmark:
        "<benchmarks>/{dataset}/verify.jsonl"
    group:
        job_group("seal")
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=memory(4000),
        runtime="1h",
    params:
        store=lambda wildcards: store_folder(wildcards.dataset),
        code=code_of("mrpipe.store.reader"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe verify {params.store:q} --deep"
        " > {output} 2> {log}"


rule mask:
    # The mask of simulated missingness is drawn once and shared by all methods.
    input:
        lambda wildcards: content_files(wildcards.dataset, mask_plan(wildcards).modalities),
    output:
        "<results>/masks/{dataset}/{mask}.parquet",
    log:
        "<logs>/{dataset}/mask_{mask}.log",
    benchmark:
        "<benchmarks>/{dataset}/mask_{mask}.jsonl"
    group:
        job_group("masks")
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(2000),
        runtime="10m",
    params:
        store=lambda wildcards: store_folder(wildcards.dataset),
        options=lambda wildcards: mask_arguments(mask_plan(wildcards)),
        code=code_of("mrpipe.experiment.missingness:write_masks"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe mask {params.store:q}"
        " --out {output:q} {params.options:q} > {log} 2>&1"
