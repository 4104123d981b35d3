# ADNI: tables are small. Genotypes: two bits a call in memory, read in blocks (2,380 people x 600,000 SNPs: see
# benchmarks). Raw T1 scans are prepared part by part (image_parts); ingest only collects them.
INGEST_COST["adni"] = {
    "clinical": {"threads": 1, "mem_mb": 2000, "runtime": "30m"},
    "biospecimen": {"threads": 1, "mem_mb": 2000, "runtime": "30m"},
    "genomic": {"threads": 2, "mem_mb": 3000, "runtime": "1h"},
    "image": {"mem_mb": 4000, "runtime": "24h"},
}
