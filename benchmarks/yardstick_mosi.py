"""An outside yardstick for CMU-MOSI: TF-IDF of the words and logistic or ridge regression of scikit-learn.

    python -m benchmarks.yardstick_mosi --raw DIR --store STORE --p 0 0.1 0.3 0.5 --seeds 5

Clips whose text is hidden get the most frequent class, or the mean. Penalties are selected on validation.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from mrpipe import open_store
from mrpipe.datasets.mosi import MosiOptions
from mrpipe.datasets.mosi.export import open_export
from mrpipe.experiment.missingness import Missingness, draw_masks

GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--p", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    store = open_store(args.store)
    export = open_export(Path(args.raw), MosiOptions(text_encoder="hashing", max_steps=0))
    words = dict(zip(export.clips["sample_id"], (" ".join(t) for t in export.tokens()), strict=True))
    frame = store.samples().join(store.split(None), on="sample_id").collect()
    text = np.array([words[i] for i in frame["sample_id"]])
    for task, metric in (("polarity", "accuracy"), ("score", "MAE")):
        labels = store.labels(task).collect()
        value = frame.join(labels, on="sample_id", how="left", maintain_order="left")["value"].cast(pl.Float64)
        y, part = value.fill_null(np.nan).to_numpy(), frame["split"].to_numpy()
        for p in args.p:
            found = []
            for seed in range(args.seeds if p else 1):
                mask = draw_masks(store, Missingness(p=p, seed=seed, modalities=("audio", "text")))
                both = frame.join(mask, on="sample_id", how="left", maintain_order="left", suffix="_drawn")
                has = (both["modality_mask_drawn"].to_numpy() >> store.bits["text"] & 1).astype(bool)
                rows = {k: np.flatnonzero((part == k) & ~np.isnan(y)) for k in ("train", "val", "test")}
                found.append(_fitted(task, text, y, has, rows))
            sd = f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else ""
            print(f"{task}, p = {p:g}: {metric} {np.mean(found):.3f}{sd}")


def _fitted(task: str, text: np.ndarray, y: np.ndarray, has: np.ndarray, rows: dict[str, np.ndarray]) -> float:
    """Test score of the penalty that is best on validation."""
    train = rows["train"][has[rows["train"]]]
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit(text[train])
    x = tfidf.transform(text)
    scores = []
    for c in GRID:
        model = LogisticRegression(C=c, max_iter=2000) if task == "polarity" else Ridge(alpha=1 / c)
        model.fit(x[train], y[train])
        scores.append({k: _score(task, model.predict(x), y, has, rows[k], y[rows["train"]]) for k in ("val", "test")})
    best = (max if task == "polarity" else min)(scores, key=lambda s: s["val"])
    return best["test"]


def _score(task: str, found: np.ndarray, y: np.ndarray, has: np.ndarray, rows: np.ndarray, train: np.ndarray) -> float:
    constant = np.bincount(train.astype(int)).argmax() if task == "polarity" else train.mean()
    predicted = np.where(has, found, constant)[rows]
    return float((predicted == y[rows]).mean() if task == "polarity" else np.abs(predicted - y[rows]).mean())


if __name__ == "__main__":
    main()
