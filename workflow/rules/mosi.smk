# CMU-MOSI. Sentence embeddings need a language model; the other modalities are read from small arrays.
INGEST_COST["mosi"] = {
    "text": {"mem_mb": 3000, "runtime": "2h"},
    "audio": {"threads": 1, "mem_mb": 2000, "runtime": "1h"},
    "vision": {"threads": 1, "mem_mb": 2000, "runtime": "1h"},
}
