# ENRICO: images are decoded one by one and written as they come, so memory does not grow with their number.
INGEST_COST["enrico"] = {
    "screenshot": {"mem_mb": 2000, "runtime": "1h"},
    "wireframe": {"mem_mb": 2000, "runtime": "1h"},
}
