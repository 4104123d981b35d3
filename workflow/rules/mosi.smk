# CMU-MOSI and kin. Sentence embeddings need a language model; the other modalities are read from small arrays.
INGEST_COST["mosi"] = INGEST_COST["ch_sims"] = {
    "text": {"mem_mb": 3000, "runtime": "2h"},
    "audio": {"threads": 1, "mem_mb": 2000, "runtime": "1h"},
    "vision": {"threads": 1, "mem_mb": 2000, "runtime": "1h"},
}
# The frames of CMU-MOSEI are read one video at a time.
INGEST_COST["mosei"] = {
    "text": {"mem_mb": 12000, "runtime": "8h"},
    "audio": {"threads": 1, "mem_mb": 16000, "runtime": "8h"},
    "vision": {"threads": 1, "mem_mb": 16000, "runtime": "4h"},
}
