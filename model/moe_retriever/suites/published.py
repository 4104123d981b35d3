"""Published values of the paper's tables (`published.csv`), and the paper's names of data sets and modalities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from moe_retriever.catalogue import method_title as method_title
from mrpipe.constants import constants
from mrpipe.experiment.missingness import p_text
from mrpipe.store.masks import combination_name

FILE = Path(__file__).resolve().parent / "published.csv"
# The paper's names of the data sets and letters of the modalities, in the order of its tables.
DATASETS = {
    "mosi": ("CMU-MOSI", {"vision": "V", "audio": "A", "text": "T"}),
    "enrico": ("ENRICO", {"screenshot": "S", "wireframe": "W"}),
    "adni": ("ADNI", {"image": "I", "genomic": "G", "clinical": "C", "biospecimen": "B"}),
    "mimic": ("MIMIC", {"lab": "L", "note": "N", "code": "C"}),
}
METRICS = {"accuracy": "Acc", "macro_f1": "F1", "auroc": "AUROC", "auprc": "PRAUC"}
# Displayed names: data set that is not in the paper → title, task → title, mechanism of simulated missingness → its
# name and that of its parameter.
NAMES: dict[str, dict[str, Any]] = constants(__file__, "names.json")
SIMULATED_WARNING = "The results only show that the pipeline runs; they allow no conclusions about real data."
# Tables that compare methods by view; the other tables are ablations.
_COMPARISONS = ("table1", "table2", "table4", "table5", "table6")


@dataclass(frozen=True)
class Published:
    """A published value, in %: mean and standard deviation over three seeds."""

    mean: float
    std: float


@cache
def published_table() -> pl.DataFrame:
    """All published values: `table, dataset, modalities, drop, metric, method, mean, std`."""
    return pl.read_csv(FILE, schema_overrides={"drop": pl.String})


def dataset_title(dataset: str, title: str = "") -> str:
    """The usual name of a data set, otherwise the title of its store up to a colon, or the given name."""
    known = {name: titles[0] for name, titles in DATASETS.items()} | NAMES["datasets"]
    return str(known.get(dataset) or title.split(":")[0] or dataset)


def task_title(task: str) -> str:
    return str(NAMES["tasks"].get(task, task.replace("_", " ")))


def origin_title(origin: str) -> str:
    return {"simulated": "simulated export", "export": "real export"}.get(origin, origin)


def origin_sentence(data: str, origin: str, store_id: str, size: str) -> str:
    """Origin and store of a data set; for simulated data also the size, and what its results do not show."""
    more = f", size {size}. {SIMULATED_WARNING}" if origin == "simulated" else "."
    return f"{data}: {origin_title(origin)}, store {store_id}{more}"


def missingness_title(mask: Mapping[str, Any] | None) -> str:
    """Simulated missingness in words: `mechanism`, `p`, the realised rate `hidden`, and non-default settings."""
    if mask is None:
        return "as observed"
    name, p = NAMES["mechanisms"].get(mask["mechanism"], (mask["mechanism"].replace("_", " "), "p"))
    own = {k: f"{k.removeprefix('n_')} = {v}" for k, v in mask.items() if k not in ("mechanism", "p", "hidden")}
    if "redraw" in own:
        own["redraw"] = "samples without any modality allowed"
    value = p_text(mask["p"]).replace("=", " ").replace(",", ", ")
    return ", ".join([name, f"{p} = {value}{hidden_text(mask.get('hidden'))}", *own.values()])


def hidden_text(rate: float | None) -> str:
    """` (23 % hidden)`: the realised rate of a mask, which is added wherever p is printed; empty if it is unknown."""
    return "" if rate is None else f" ({100 * rate:.0f} % hidden)"


def short(dataset: str, modalities: Sequence[str]) -> str:
    """A view in the paper's letters; in our names if the paper has no letter for one of the modalities."""
    letters = DATASETS.get(dataset, ("", {}))[1]
    if not set(modalities) <= set(letters):
        return combination_name(modalities)
    return combination_name(letter for m, letter in letters.items() if m in modalities)


def published_rows(
    dataset: str, modalities: Sequence[str], mask: Mapping[str, Any] | None, tables: Sequence[str] = _COMPARISONS
) -> dict[str, dict[str, Published]]:
    """The paper's method → our metric → published value, in the order of the paper; empty if there are none.

    Args:
        mask: `mechanism` and `p` of the simulated missingness, which the paper has completely at random only; None for
            as observed.
    """
    plain = mask is None or (mask["mechanism"] == "mcar" and set(mask) <= {"mechanism", "p", "hidden"})
    if dataset not in DATASETS or not plain:
        return {}
    drop = "natural" if mask is None else p_text(mask["p"])
    view = published_table().filter(dataset=DATASETS[dataset][0], modalities=short(dataset, modalities), drop=drop)
    here = view.filter(pl.col("table").is_in(tables))
    ours = {printed: metric for metric, printed in METRICS.items()}
    rows: dict[str, dict[str, Published]] = {}
    for method, metric, mean, std in here.select("method", "metric", "mean", "std").iter_rows():
        rows.setdefault(method, {}).setdefault(ours[metric], Published(mean, std))
    return rows
