# MIMIC-IV. Measurements are read in one pass over labevents and chartevents, in bounded memory (about 0.5 GiB:
# benchmarks/mimic.md). n_shards > 1 splits the pass into parts by ranges of patients: each part decompresses the
# files again and keeps its own patients. lab_summary reads the parts of lab.
MEASUREMENTS = {"threads": 2, "mem_mb": 2000, "runtime": "2h"}
MEASUREMENTS |= {"group": "shards", "part_mem_mb": 2000, "part_runtime": "6h"}
INGEST_COST["mimic"] = {
    "lab": MEASUREMENTS,
    "lab_summary": MEASUREMENTS,
    "note": {"threads": 2, "mem_mb": 4000, "runtime": "12h"},
    "code": {"threads": 2, "mem_mb": 4000, "runtime": "1h"},
}
