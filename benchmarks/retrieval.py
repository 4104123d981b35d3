"""Does retrieval help? MoE-Retriever with uniform and nearest supports against the strongest simple controls.

    python -m benchmarks.retrieval simulated --seeds 10 --out results/retrieval.jsonl
    python -m benchmarks.retrieval store --store stores/mfeat --p 0.3 0.5 --seeds 5 --out results/retrieval.jsonl
    python -m benchmarks.retrieval table --out results/retrieval.jsonl

`simulated` draws data whose best possible prediction is known, in regimes that differ from a base in one property.
Test samples of a store are not read: each seed divides the subjects of its training and validation splits anew, 60 %
for training, 10 % to select the epoch, and 30 % to be scored. Transforms see the features of the whole training split.
Runs in the file are not repeated, and each run is one line of JSON. Processes with different `--part 0/2`, `1/2` share
the work.

Simulated data: one of K clusters is drawn for each sample; half of the clusters, drawn at random, have label 1. A
modality is Gaussian with unit variance around a mean that depends on the cluster (shared by all modalities, weight
`redundancy`) or on one of the cluster's two groups that only this modality tells apart (weight 1 − redundancy). The
posterior of the clusters given any set of modalities, and of the label given the cluster and the mask, is exact.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from moe_retriever.config import make_config
from moe_retriever.data.load import Data, DataSpec, load
from moe_retriever.data.scores import score
from moe_retriever.data.tables import ModalitySpec, Rows, VectorTable
from moe_retriever.methods import get
from moe_retriever.training import selection
from moe_retriever.training.loop import make_optimiser, train_epoch
from moe_retriever.training.predict import predict, validate
from mrpipe import keyed, open_store
from mrpipe.experiment.missingness import Missingness, write_masks
from mrpipe.transforms.fit import Transforms
from mrpipe.transforms.options import TransformOptions

# One setting for all networks: the same limit of updates, and the epoch with the best validation AUROC.
COMMON = {"hidden": 64, "tokens": 1, "lr": 1e-3, "dropout": 0.3, "batch_size": 128, "epochs": 40, "patience": 10}
SMALL = {"hidden": 32, "encoder_hidden": 64, "fusion_ffn": 64}
OF_RETRIEVER = {"expert_ffn": 64}
HIDING = {"drop_modalities": 0.3}
NEAREST = {"support": "nearest"}
RECONSTRUCT = {"reconstruct": 0.1}
# Name → method and options.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask": ("attention_mask", {}),
    "mask, hiding": ("attention_mask", HIDING),
    "mask + indicator": ("mask_indicator", {}),
    "mask + indicator, hiding": ("mask_indicator", HIDING),
    "hybrid": ("hybrid", {}),
    "uniform": ("moe_retriever", {}),
    "uniform, hiding, reconstruct": ("moe_retriever", HIDING | RECONSTRUCT),
    "nearest": ("moe_retriever", NEAREST),
    "nearest, hiding, reconstruct": ("moe_retriever", NEAREST | HIDING | RECONSTRUCT),
}
REFERENCES = ("mask + indicator, hiding", "hybrid")
DRAWS = 5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Regime:
    """Properties of simulated data; `informative` is s in the hiding probability p (1 ± s) of the two classes."""

    modalities: int = 4
    p: float = 0.3
    redundancy: float = 0.5
    n_train: int = 800
    informative: float = 0.0
    clusters: int = 8
    width: int = 10
    strength: float = 1.6


BASE = Regime()
REGIMES: dict[str, Regime] = {
    "base: M = 4, p = 0.3, redundancy 0.5, n = 800": BASE,
    "p = 0.1": replace(BASE, p=0.1),
    "p = 0.5": replace(BASE, p=0.5),
    "p = 0.7": replace(BASE, p=0.7),
    "M = 2": replace(BASE, modalities=2),
    "M = 8": replace(BASE, modalities=8, strength=1.2),
    "redundancy 0": replace(BASE, redundancy=0.0),
    "redundancy 1": replace(BASE, redundancy=1.0),
    "n = 200": replace(BASE, n_train=200),
    "n = 3,200": replace(BASE, n_train=3200),
    "informative": replace(BASE, informative=0.8),
}
N_VAL, N_SCORED = 1000, 4000


def simulate(regime: Regime, seed: int) -> tuple[Data, Floats]:
    """Data with the splits train, val (selects the epoch) and test (scored), and the best P(label 1) of each sample."""
    rng = np.random.default_rng([seed, *(int(1000 * v) for v in vars(regime).values())])
    n, n_modalities, k = regime.n_train + N_VAL + N_SCORED, regime.modalities, regime.clusters
    label_of = rng.permutation(np.arange(k) % 2)
    own = np.stack([rng.permutation(np.arange(k) % 2) for _ in range(n_modalities)])
    center_KMF = math.sqrt(regime.redundancy) * rng.normal(size=(k, n_modalities, regime.width))
    of_group = rng.normal(size=(n_modalities, 2, regime.width))
    center_KMF += math.sqrt(1 - regime.redundancy) * of_group[np.arange(n_modalities)[None], own.T]
    center_KMF *= regime.strength / math.sqrt(regime.width)
    cluster = rng.integers(0, k, n)
    label = label_of[cluster]
    x = center_KMF[cluster] + rng.normal(size=(n, n_modalities, regime.width))
    hiding_2 = regime.p * (1 + regime.informative * np.array([-1.0, 1.0]))
    observed = rng.random((n, n_modalities)) >= hiding_2[label][:, None]
    keep = observed.any(axis=1)
    # Samples without any modality are left out; given its mask, this does not change the posterior of a sample.
    log_mask_n2 = observed.sum(1)[:, None] * np.log1p(-hiding_2) + (~observed).sum(1)[:, None] * np.log(hiding_2)
    log_like_nK = np.stack([-(((x - c) ** 2).sum(2) * observed).sum(1) / 2 for c in center_KMF], axis=1)
    log_like_nK += log_mask_n2[:, label_of]
    weight = np.exp(log_like_nK - log_like_nK.max(axis=1, keepdims=True))
    best = weight[:, label_of == 1].sum(axis=1) / weight.sum(axis=1)
    part = np.repeat([0, 1, 2], [regime.n_train, N_VAL, N_SCORED])
    return _data(x[keep], observed[keep], label[keep], part[keep]), best[keep]


def _data(x: Floats, observed: NDArray[np.bool_], label: NDArray[np.int64], part: NDArray[np.int64]) -> Data:
    n, n_modalities, width = x.shape
    ids = np.array([f"s{i:06d}" for i in range(n)])
    tables = [VectorTable(x[observed[:, m], m].astype(np.float32), torch.device("cpu")) for m in range(n_modalities)]
    specs = tuple(ModalitySpec(name=f"m{m}", kind="vector", shape=(width,)) for m in range(n_modalities))
    return Data(
        spec=DataSpec(modalities=specs, classes=("0", "1")),
        sample_id=ids,
        subject_id=ids,
        keys=keyed.id_keys(ids),
        observed=observed,
        row=np.where(observed, np.cumsum(observed, axis=0) - 1, -1),
        label=label,
        part=part.astype(np.int8),
        tables=list(tables),
        n_without={},
        fitted=Transforms({}, {}, TransformOptions(), {}),
        device=torch.device("cpu"),
    )


def run(data: Data, name: str, seed: int, settings: dict[str, Any], scored: Rows) -> dict[str, Any]:
    """Train a method, keep the epoch that validation selects, and score it."""
    started = time.process_time()
    method_name, own = METHODS[name]
    cls = get(method_name)
    if cls.name == "moe_retriever":
        own = OF_RETRIEVER | own
    method = cls.create(data.spec, make_config(cls, preset="paper", seed=seed, overrides={**settings, **own}))
    train, val = data.rows("train"), data.rows("val")
    method.prepare(data, train)
    c, optimiser = method.config.common, make_optimiser(method)
    best: tuple[float, float] = (-math.inf, -math.inf)
    state, at, history = method.state_dict(), 0, []
    for epoch in range(c.epochs):
        if selection.patience_over(history, at, c.patience, c.select_metric):
            break
        row = {"epoch": epoch + 1, "train_loss": train_epoch(method, data, train, optimiser, epoch)["loss"]}
        row |= {f"val_{k}": v for k, v in validate(method, data, val).items()}
        history.append(row)
        found = selection.epoch_score(row, c.select_metric)
        if method.selectable and found > best:
            best, at = found, epoch + 1
            state = {k: v.clone() for k, v in method.state_dict().items()}
    method.begin_epoch(at - 1, c.epochs)
    method.load_state_dict(state)
    out = {"method": name, "seed": seed, "epoch": at, "seconds": time.process_time() - started}
    label = data.label[scored]
    for key, draws in (("", None), (f", {DRAWS} draws", DRAWS)):
        if draws is None or method_name == "moe_retriever":
            scores = score(label, predict(method, data, scored, draws=draws).scored)
            out |= {f"{k}{key}": v for k, v in scores.items()}
    return out


def tasks(args: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """(data, seed, method), seeds first, so that an interrupted comparison is balanced."""
    names = list(REGIMES) if args.what == "simulated" else [f"p = {p:g}" if p else "as observed" for p in args.p]
    return itertools.product(args.only or names, range(args.first_seed, args.seeds), args.methods)  # type: ignore[return-value]


def experiment(args: argparse.Namespace) -> None:
    """Run what the file lacks."""
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    place, of = map(int, args.part.split("/"))
    prefix = "simulated" if args.what == "simulated" else Path(args.store).name + (f" {args.task}" if args.task else "")
    order = sorted(tasks(args), key=lambda task: task[1])
    for number, (name, seed) in enumerate(dict.fromkeys(task[:2] for task in order)):
        if number % of != place:
            continue
        mine = [m for n, s, m in order if (n, s) == (name, seed) and not done(args.out, prefix, name, seed, m)]
        if not mine:
            continue
        extra: dict[str, Any] = {}
        if args.what == "simulated":
            data, best = simulate(REGIMES[name], seed)
            scored, settings = data.rows("test"), COMMON | SMALL
            of_best = np.stack([1 - best, best], axis=1)[scored]
            extra = {f"best_{k}": score(data.label[scored], of_best)[k] for k in ("accuracy", "auroc")}
        else:
            data, settings = of_store(args, name, seed), COMMON
            scored = data.rows("test")
        for method in mine:
            line = {"data": prefix, "regime": name, **run(data, method, seed, settings, scored), **extra}
            with args.out.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            print(name, seed, method, f"{line['seconds']:.1f} s", flush=True)


def of_store(args: argparse.Namespace, name: str, seed: int) -> Data:
    """The store's data with the mask and the parts of this seed, without test samples."""
    store = open_store(args.store)
    mask = None
    if name != "as observed":
        mask = args.out.with_name(f"{Path(args.store).name}-{name.replace(' ', '')}-{seed}.parquet")
        write_masks(store, Missingness(p=float(name.removeprefix("p = ")), seed=seed), mask)
    data = load(store, task=args.task, mask_file=mask)
    u = keyed.uniform(keyed.id_keys(data.subject_id), seed, "parts", 1)[:, 0]
    data.part = np.where(data.part < 2, np.digitize(u, [0.6, 0.7]), -1).astype(np.int8)
    return data


def done(out: Path, data: str, regime: str, seed: int, method: str) -> bool:
    """Whether the file has a result."""
    if not out.is_file():
        return False
    lines = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return any((x["data"], x["regime"], x["seed"], x["method"]) == (data, regime, seed, method) for x in lines)


def values(frame: pl.DataFrame, method: str, metric: str) -> pl.DataFrame:
    """`seed`, value in points; of retrieval, the mean over several draws."""
    column = f"{metric}, {DRAWS} draws" if METHODS[method][0] == "moe_retriever" else metric
    return frame.filter(method=method).select("seed", 100 * pl.col(column)).drop_nulls().sort("seed")


def paired(frame: pl.DataFrame, metric: str, one: str, other: str) -> tuple[int, float, float, float, float]:
    """Number of seeds, then mean, 95 % t interval and standard deviation over seeds of one − other, in points.

    Seeds of `simulated` are independent data sets. Those of a store share samples; for them, the variance of the mean
    is increased by the ratio of scored to training samples (Nadeau and Bengio, 2003).
    """
    both = values(frame, one, metric).join(values(frame, other, metric), on="seed", how="inner")
    d = (both[:, 1] - both[:, 2]).to_numpy()
    shared = 0.0 if frame["data"][0] == "simulated" else 0.3 / 0.6
    half = student.ppf(0.975, len(d) - 1) * d.std(ddof=1) * math.sqrt(1 / len(d) + shared)
    return len(d), float(d.mean()), float(d.mean() - half), float(d.mean() + half), float(d.std(ddof=1))


def table(args: argparse.Namespace) -> None:
    """Print, as Markdown, the means of all methods, and the differences of retrieval to the strongest controls."""
    frame, metric = pl.read_ndjson(args.out, infer_schema_length=None), args.metric
    groups = list(frame.group_by("data", "regime", maintain_order=True))
    print("| data | seeds | best possible |", " | ".join(METHODS), "|\n|---|---|---|" + "---|" * len(METHODS))
    for (data, regime), own in groups:
        found = [values(own, m, metric) for m in METHODS]
        possible = own[f"best_{metric}"].drop_nulls() if f"best_{metric}" in own.columns else pl.Series([])
        best = f"{100 * possible.mean():.1f}" if len(possible) else "–"
        cells = [f"{v[:, 1].mean():.1f}" if len(v) else "–" for v in found]
        print(f"| {data}, {regime} | {max(map(len, found))} | {best} |", " | ".join(cells), "|")
    retrieval = [m for m in METHODS if METHODS[m][0] == "moe_retriever"]
    for other in REFERENCES:
        print(f"\nDifference to {other}\n\n| data |", " | ".join(retrieval), "| sd of a difference |")
        print("|---|" + "---|" * (len(retrieval) + 1))
        for (data, regime), own in groups:
            if any(len(values(own, m, metric)) < 2 for m in (other, *retrieval)):
                continue
            differences = [paired(own, metric, m, other) for m in retrieval]
            cells = [f"{d:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−") for _, d, low, high, _ in differences]
            sd = math.sqrt(np.mean([d[4] ** 2 for d in differences]))
            print(f"| {data}, {regime} |", " | ".join(cells), f"| {sd:.1f} |")
        simulated = [own for (data, regime), own in groups if data == "simulated" and regime != "informative"]
        cells = [over_regimes([paired(own, metric, m, other) for own in simulated]) for m in retrieval]
        print(f"| mean of the {len(simulated)} simulated regimes without informative gaps |", " | ".join(cells), "| |")


def over_regimes(differences: list[tuple[int, float, float, float, float]]) -> str:
    """Mean over regimes with a 95 % t interval: independent data sets, and one variance within regimes."""
    n = np.array([d[0] for d in differences])
    variance = float(((n - 1) * np.array([d[4] for d in differences]) ** 2).sum() / (n - 1).sum())
    mean = float(np.mean([d[1] for d in differences]))
    half = student.ppf(0.975, (n - 1).sum()) * math.sqrt(variance * (1 / n).sum()) / len(n)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulated", "store", "table"))
    parser.add_argument("--store", help="folder of a sealed store")
    parser.add_argument("--task", help="task of the store")
    parser.add_argument("--p", type=float, nargs="+", default=[0.3], help="rates of missingness; 0: as observed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="regimes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    table(args) if args.what == "table" else experiment(args)


if __name__ == "__main__":
    main()
