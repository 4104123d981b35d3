# MIMIC-IV: the measurements are one pass over labevents and chartevents, in bounded memory whatever their size (about
# 0.5 GiB, benchmarks/mimic.md). n_shards > 1 cuts the pass into parts by a hash of the patient: each part inflates the
# files again and keeps its own patients. lab_summary reads what lab prepared, where that lies beside it.
MEASUREMENTS = {
    "group": "shards",
    "part_mem_mb": 2000,
    "part_runtime": "6h",
    "threads": 2,
    "mem_mb": 2000,
    "runtime": "2h",
}
INGEST_COST["mimic"] = {
    "lab": MEASUREMENTS,
    "lab_summary": MEASUREMENTS,
    "note": {"threads": 2, "mem_mb": 4000, "runtime": "12h"},
    "code": {"threads": 2, "mem_mb": 4000, "runtime": "1h"},
}
