# ADNI. Tables are small. Genotypes take two bits per call and are read in blocks (1.2 GB for 2,380 people x 600,000
# SNPs: benchmarks/genotypes.md). Raw T1 scans are prepared in parts (option image_parts), each scan taking about a
# minute and 1.5 GB on one thread; ingest only collects the results.
INGEST_COST["adni"] = {
    "clinical": {"threads": 1, "mem_mb": 2000, "runtime": "30m"},
    "biospecimen": {"threads": 1, "mem_mb": 2000, "runtime": "30m"},
    "genomic": {"threads": 2, "mem_mb": 3000, "runtime": "1h"},
    "image": {
        "group": "scans",
        "part_mem_mb": 2500,
        # Minutes: 3,000 people at three minutes per scan, but at least enough for two scans that time out.
        "part_runtime": lambda wildcards: max(120, 3 * 3000 // int(wildcards.total)),
        "mem_mb": 4000,
        "runtime": "24h",
    },
}

# Stores with images that this workflow builds: their scans get quality control.
IMAGED = [s.name for s in PLAN.stores.values() if s.dataset.name == "adni" and not s.sealed and "image" in s.modalities]
QUALITY.update({name: f"<results>/build/{name}/qc" for name in IMAGED})
EXTRA_TARGETS.extend(f"{folder}/contact_sheet.png" for folder in QUALITY.values())


rule image_qc:
    # Quality measures of every processed scan, outliers, and a contact sheet. Subjects are not identified.
    input:
        table="<results>/build/{dataset}/store/modalities/image.parquet",
        tried="<results>/build/{dataset}/tried/image.parquet",
    output:
        table="<results>/build/{dataset}/qc/qc.parquet",
        sheet=report(
            "<results>/build/{dataset}/qc/contact_sheet.png",
            category="stores",
            labels={"store": "{dataset}", "what": "quality control of images"},
            caption="../report/image_qc.rst",
        ),
    log:
        "<logs>/{dataset}/image_qc.log",
    benchmark:
        "<benchmarks>/{dataset}/image_qc.jsonl"
    wildcard_constraints:
        dataset="|".join(map(re.escape, IMAGED)) or "none",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(2000),
        runtime="1h",
    params:
        dataset=reader_name,
        work=lambda wildcards: path(f"<results>/build/{wildcards.dataset}"),
        out=subpath(output.table, parent=True),
        code=code_of("mrpipe.stages.qc", "mrpipe.datasets.adni.image.qc"),
    shell:
        "POLARS_MAX_THREADS={threads} OMP_NUM_THREADS={threads} python -m mrpipe qc {params.dataset} image"
        " --work {params.work:q} --out {params.out:q} > {log} 2>&1"
