"""Loading a store for another training loop: time of an epoch, and memory of the streamed form.

    python -m benchmarks.loader epoch STORE          # the project's own batches and StoreDataset, 0 and 2 workers
    python -m benchmarks.loader memory FOLDER 1 5    # StreamedStore on simulated stores of 1 and 5 GB, then removed

`epoch`: every sample of the training part once, in random batches of 32, the same steps of the same model (a GRU or a
linear layer per modality, mean over the observed ones) with either loader; the best of several epochs, after a first.
`memory`: a process of its own for each store iterates over all samples once; peak resident memory (VmHWM), beside that
after the imports. The stores hold random volumes of 24 × 32 × 32 float32 and vectors of 64 features.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_packed_sequence
from torch.utils.data import DataLoader

from moe_retriever import StoreDataset, StreamedStore
from moe_retriever.data.dataset import DenseBatch
from moe_retriever.data.load import Data, load
from moe_retriever.training.loop import batches
from mrpipe import open_store
from mrpipe.schema import Attrition, Checked, Cohort, Dataset, Features, Modality, ModalityReader, Scheme, Task

SHAPE, WIDTH = (24, 32, 32), 64


def own_batches(data: Data, epoch: int) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Encoder inputs of the present samples by modality, as the project's training gets them, and labels."""
    for index in batches(data.rows("train"), 32, 0, epoch):
        batch = data.batch(index, f"epoch {epoch}")
        inputs = {}
        for m, name in enumerate(data.spec.names):
            rows = batch.table_rows(m)[1]
            if len(rows):
                inputs[name] = data.tables[m].gather(rows)
        yield inputs, batch.label


def walk(loader: DataLoader[DenseBatch]) -> int:
    return sum(len(batch["index"]) for batch in loader)


@dataclass(frozen=True)
class NoOptions:
    """The simulated dataset has no options."""


class Model(torch.nn.Module):
    """A GRU or a linear layer per modality, and one head."""

    def __init__(self, dataset: StoreDataset):
        super().__init__()
        self.parts = torch.nn.ModuleDict()
        for m in dataset.spec.modalities:
            sequence = m.kind == "sequence"
            self.parts[m.name] = torch.nn.GRU(m.shape[0], 64, batch_first=True) if sequence else torch.nn.LazyLinear(64)
        self.head = torch.nn.Linear(64, max(len(dataset.classes), 1))

    def forward(self, batch: DenseBatch) -> torch.Tensor:
        hidden = []
        for m, (name, part) in enumerate(self.parts.items()):
            x = batch[f"{name}.values"]
            h = part(x)[0][:, -1] if isinstance(part, torch.nn.GRU) else part(x.flatten(1))
            hidden.append(h * batch["observed"][:, m, None])
        return self.head(torch.stack(hidden).sum(0))


def best(run: Callable[[int], object], repeat: int) -> float:
    seconds = []
    for epoch in range(repeat + 1):
        begun = time.perf_counter()
        run(epoch)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def epoch_times(path: Path, repeat: int) -> None:
    torch.set_num_threads(1)
    data = load(open_store(path))
    train = StoreDataset(path, part="train")
    print(f"{path.name}: {len(train)} training samples")

    def own(epoch: int) -> None:
        for inputs, _ in own_batches(data, epoch):
            for x in inputs.values():
                if isinstance(x, torch.nn.utils.rnn.PackedSequence):
                    pad_packed_sequence(x, batch_first=True)

    model = Model(train)
    optimiser = None

    def step(batch: DenseBatch) -> None:
        nonlocal optimiser
        loss = torch.nn.functional.cross_entropy(model(batch), batch["label"])
        optimiser = optimiser or torch.optim.Adam(model.parameters())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    print(f"own batches, nothing else:      {best(own, repeat):.3f} s")
    order = [batches(data.rows("train"), 32, 0, epoch) for epoch in range(repeat + 1)]
    place = np.full(len(data), -1)
    place[data.rows("train")] = np.arange(len(train))

    def trained_own(epoch: int) -> None:
        for index in order[epoch]:
            step(train.__getitems__(place[index].tolist())[0])

    print(f"own process, training:          {best(trained_own, repeat):.3f} s")
    for workers in (0, 2):
        loader = DataLoader(
            train, 32, shuffle=True, collate_fn=train.collate, num_workers=workers, persistent_workers=workers > 0
        )
        print(f"{workers} workers, nothing else:        {best(lambda _, it=loader: walk(it), repeat):.3f} s")

        def trained(_: int, it: DataLoader[DenseBatch] = loader) -> None:
            for batch in it:
                step(batch)

        print(f"{workers} workers, training:            {best(trained, repeat):.3f} s")


def simulated(folder: Path, gigabytes: float) -> Path:
    """A store of random volumes and vectors, written in blocks."""
    from mrpipe.stages import seal
    from mrpipe.stages.build import build

    seal.dataset_module = lambda name: "mrpipe.stages.build"  # type: ignore[attr-defined]
    size = int(np.prod(SHAPE))
    n = int(gigabytes * 2**30 / (4 * size))

    def cohort(raw: Path, options: object) -> Cohort:
        samples = pl.DataFrame({"sample_id": [f"s{i:07d}" for i in range(n)]})
        samples = samples.with_columns(
            subject_id="sample_id",
            fold=pl.when(pl.int_range(n) % 100 > 1).then(pl.lit("train")).otherwise(pl.lit("test")),
        )
        label = samples.select("sample_id", (pl.int_range(n) % 2).alias("value"))
        return Cohort(samples=samples, labels={"outcome": label}, attrition=Attrition(n).frame())

    def reader(name: str, bit: int, kind: str, shape: tuple[int, ...], step: int) -> ModalityReader:
        def read(raw: Path, cohort: pl.DataFrame, options: object) -> Features:
            modality = Modality(name=name, bit=bit, kind=kind, shape=shape)  # type: ignore[arg-type]
            ids = cohort["sample_id"].sort().to_list()[::step]
            width = modality.size

            def rows() -> Iterator[pa.RecordBatch]:
                rng = np.random.default_rng(bit)
                for start in range(0, len(ids), 128):
                    some = ids[start : start + 128]
                    x = pa.array(rng.random(len(some) * width, dtype=np.float32))
                    column = pa.FixedSizeListArray.from_arrays(x, type=pa.list_(pa.float32(), width))
                    yield pa.RecordBatch.from_arrays([pa.array(some), column], schema=modality.arrow_schema())

            n_features = 1 if kind == "volume" else width
            dictionary = pl.DataFrame(
                {
                    "modality": name,
                    "position": range(n_features),
                    "name": [f"{name}{i}" for i in range(n_features)],
                    "dtype": "float32",
                    "unit": "",
                    "kind": "pixel" if kind == "volume" else "numeric",
                    "levels": [None] * n_features,
                    "description": "",
                    "source_file": "",
                    "source_column": "",
                    "n_observed": len(ids),
                    "n_missing": 0,
                },
                schema_overrides={"levels": pl.List(pl.String)},
            )
            return Features(modality=modality, batches=rows(), dictionary=dictionary)

        return ModalityReader(bit=bit, description=name, read=read)

    (folder / "raw").mkdir(parents=True)
    dataset = Dataset(
        name="simulated",
        title="Simulated",
        citation="none",
        licence="none",
        provider="benchmarks/loader.py",
        options=NoOptions,
        simulation=NoOptions,
        modalities={
            "volume": reader("volume", 0, "volume", SHAPE, 1),
            "table": reader("table", 1, "vector", (WIDTH,), 2),
        },
        tasks=(Task(name="outcome", kind="classification", classes=("no", "yes")),),
        schemes={"standard": Scheme(column="fold", description="all")},
        check=lambda raw, options: Checked(release="1", files=()),
        cohort=cohort,
        simulate=lambda out, truth, settings: None,
    )
    build(dataset, folder / "raw", folder / "store", {})
    return folder / "store"


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def stream(path: Path) -> None:
    before, begun = peak_mib(), time.perf_counter()
    samples = StreamedStore(path, part="train").shuffle(buffer=256)
    fitted = time.perf_counter()
    n = walk(DataLoader(samples, 32, collate_fn=samples.collate))
    done = time.perf_counter()
    size = sum(p.stat().st_size for p in path.rglob("*.parquet")) / 2**30
    print(
        f"{size:.2f} GiB on disk, {n} samples: fit {fitted - begun:.0f} s, epoch {done - fitted:.0f} s, "
        f"peak {peak_mib():.0f} MiB, of which {before:.0f} MiB after the imports",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("epoch", "memory", "stream"))
    parser.add_argument("path", type=Path)
    parser.add_argument("gigabytes", nargs="*", type=float)
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    if a.what == "epoch":
        epoch_times(a.path, a.repeat)
    elif a.what == "stream":
        stream(a.path)
    for gigabytes in a.gigabytes:
        folder = a.path / f"{gigabytes:g}"
        try:
            store = simulated(folder, gigabytes)
            subprocess.run([sys.executable, "-m", "benchmarks.loader", "stream", str(store)], check=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
