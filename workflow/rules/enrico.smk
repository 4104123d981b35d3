# ENRICO. Images are decoded and written one by one, so memory does not grow with their number.
INGEST_COST["enrico"] = {
    "screenshot": {"mem_mb": 2000, "runtime": "1h"},
    "wireframe": {"mem_mb": 2000, "runtime": "1h"},
}
