# ADNI: tables are small. Genotypes: two bits a call in memory, read in blocks (2,380 people x 600,000 SNPs need 1.2 GB:
# benchmarks/genotypes.md). Raw T1 scans are prepared part by part (image_parts), about a minute and 1.5 GB each on one
# thread; ingest only collects them.
INGEST_COST["adni"] = {
    "clinical": {"threads": 1, "mem_mb": 2000, "runtime": "30m"},
    "biospecimen": {"threads": 1, "mem_mb": 2000, "runtime": "30m"},
    "genomic": {"threads": 2, "mem_mb": 3000, "runtime": "1h"},
    "image": {
        "group": "scans",
        "part_mem_mb": 2500,
        # Minutes: ADNI's 3,000 people, three minutes a scan, and no less than two scans that run into their time limit.
        "part_runtime": lambda wildcards: max(120, 3 * 3000 // int(wildcards.total)),
        "mem_mb": 4000,
        "runtime": "24h",
    },
}

# Stores with images that are built here: each gets its scans' quality control.
IMAGED = [s.name for s in PLAN.stores.values() if s.dataset.name == "adni" and not s.sealed and "image" in s.modalities]
QUALITY.update({name: f"<results>/build/{name}/qc" for name in IMAGED})
EXTRA_TARGETS.extend(f"{folder}/contact_sheet.png" for folder in QUALITY.values())


rule image_qc:
    # Numbers of every scan that was tried, outliers, and a sheet of pictures. Neither names a subject.
    input:
        store="<results>/stores/{dataset}/modalities/image.parquet",
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
    threads: 1
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
