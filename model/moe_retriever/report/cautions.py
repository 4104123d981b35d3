"""What a careful reader would ask about a run, said before they ask: constant predictions, few seeds, leaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_retriever.report.experiments import anchor_of
from moe_retriever.report.methods_data import plural
from moe_retriever.report.runs import ReportedRun

FEW_SEEDS = 3
SMALL_TEST = 100
MOST = 24
MOST_PLACES = 4


@dataclass(frozen=True)
class Caution:
    """One thing to know, with the place on the page where it belongs.

    Attributes:
        who: the runs that it is about; empty: all of that place.
    """

    text: str
    where: str
    anchor: str
    who: str = ""


@dataclass(frozen=True)
class Said:
    """A caution of several places; `more` is how many are not listed."""

    text: str
    places: tuple[Caution, ...]
    more: int


def together(found: Iterable[Caution]) -> list[Said]:
    """The same words said once, with all their places."""
    places: dict[str, list[Caution]] = {}
    for caution in found:
        places.setdefault(caution.text, []).append(caution)
    return [Said(text, tuple(own[:MOST_PLACES]), max(0, len(own) - MOST_PLACES)) for text, own in places.items()]


def of_experiment(key: tuple[str, ...], runs: Sequence[ReportedRun]) -> list[Caution]:
    """What to know about the runs of one experiment."""
    first = runs[0].metrics
    found: list[tuple[str, str]] = []
    constant = [r for r in runs if r.method != "majority" and _is_constant(r)]
    if constant:
        found.append(("One class for every test sample: accuracy says how frequent that is.", _named(constant, runs)))
    below = [r for r in runs if r not in constant and r.method != "majority" and _below_majority(r)]
    if below:
        found.append((f"Accuracy below that of always saying {first['majority']['class']}.", _named(below, runs)))
    seeds = {run.seed for run in runs}
    trained = [run for run in runs if run.method != "majority"]
    if trained and len(seeds) < FEW_SEEDS:
        found.append((f"{plural(len(seeds), 'seed')}: differences between methods may be chance.", ""))
    if first["n"]["test"] < SMALL_TEST:
        found.append((f"{first['n']['test']} test samples: look at the intervals before the means.", ""))
    if not first["n"]["val"]:
        found.append(("No validation samples: the last epoch was kept.", ""))
    cut = [r for r in runs if _still_improving(r)]
    if cut:
        text = "The last epoch allowed was the best on validation; longer training may help."
        found.append((text, _named(cut, runs)))
    dataset, _, _, task, _, view, missingness, transforms = key
    where = f"{dataset}, {task} from {view}, {missingness}{f', {transforms}' if transforms else ''}"
    return [Caution(text, where, anchor_of(key), who) for text, who in found]


def of_store(described: Mapping[str, Any]) -> list[Caution]:
    """What to know about a store, from what the page says of it."""
    m, anchor = described["manifest"], described["anchor"]
    found = []
    audit = described["audit"]
    if audit and audit["n"]:
        several = "s tell" if audit["n"] > 1 else " tells"
        found.append(
            f"{audit['n']} finding{several} a class almost alone (single-feature AUROC above "
            f"{audit['threshold']}): the label in other words?"
        )
    steps = described["attrition"]
    if 2 * steps[-1]["n_after"] < steps[0]["n_before"]:
        share = steps[-1]["n_after"] / steps[0]["n_before"]
        found.append(f"{share:.0%} of those in the export are in the cohort: see who was left out.")
    quality = described.get("quality")
    if quality and quality["n_failed"]:
        found.append(f"{quality['n_failed']} of {quality['n']} scans failed quality control or processing.")
    return [Caution(text, f"store {m.dataset}", anchor) for text in found]


def _named(some: Sequence[ReportedRun], runs: Sequence[ReportedRun]) -> str:
    """Labels of some of the runs, with the seeds where it is not all of that label's."""
    said = []
    for label in dict.fromkeys(run.label for run in some):
        seeds, every = ({run.seed for run in those if run.label == label} for those in (some, runs))
        numbers = ", ".join(map(str, sorted(seeds)))
        said.append(label if seeds == every else f"{label} (seed{'s' * (len(seeds) > 1)} {numbers})")
    return ", ".join(said)


def _is_constant(run: ReportedRun) -> bool:
    """One class for all: recalls of 1 and 0 make a balanced accuracy of 1/k and, with accuracy a, a macro-F1 of
    2a / ((1 + a) k). Either alone can be chance.
    """
    scores, k = run.metrics["metrics"], len(run.metrics["classes"])
    a, balanced, f1 = (scores[name]["value"] for name in ("accuracy", "balanced_accuracy", "macro_f1"))
    if None in (a, balanced, f1):
        return False
    return bool(abs(balanced - 1 / k) < 1e-9 and abs(f1 - 2 * a / ((1 + a) * k)) < 1e-9)


def _below_majority(run: ReportedRun) -> bool:
    ours, theirs = run.metrics["metrics"]["accuracy"]["value"], run.metrics["majority"]["accuracy"]
    return ours is not None and theirs is not None and ours < theirs


def _still_improving(run: ReportedRun) -> bool:
    training = run.metrics["training"]
    return training.get("best_epoch") == run.config["common"]["epochs"]
