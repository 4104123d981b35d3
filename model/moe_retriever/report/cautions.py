"""Warnings about results that need care: constant predictions, few seeds, small test sets, possible label leakage."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moe_retriever.catalogue import method_title
from moe_retriever.report.methods_data import plural
from moe_retriever.report.runs import ReportedRun

FEW_SEEDS = 3
SMALL_TEST = 100
MOST_NAMED = 6


class Caution(NamedTuple):
    """A warning; `who` names the runs concerned, and is empty for all runs of the experiment."""

    text: str
    who: str = ""


def of_experiment(runs: Sequence[ReportedRun]) -> list[Caution]:
    first = runs[0].metrics
    trained = [run for run in runs if run.method != "majority"]
    constant = [r for r in trained if _is_constant(r)]
    below = [r for r in trained if r not in constant and _below_majority(r)]
    cut = [r for r in runs if r.metrics["training"].get("best_epoch") == r.config["common"]["epochs"]]
    untaught = [r for r in runs if _from_random_images(r)]
    n_seeds, n_test = len({run.seed for run in runs}), first["n"]["test"]
    seeds = f"There {'is' if n_seeds == 1 else 'are'} only {plural(n_seeds, 'seed')}"
    tests = f"There {'is' if f'{n_test}' == '1' else 'are'} only {plural(n_test, 'test sample')}"
    found = [
        ("All test samples were assigned to one class, so the accuracy is the frequency of that class.", constant),
        (f"The accuracy is below that of always predicting {first['majority']['class']}.", below),
        (f"{seeds}, so differences between methods may be due to chance.", trained and n_seeds < FEW_SEEDS),
        (f"{tests}; consider the intervals when comparing methods.", n_test < SMALL_TEST),
        *dict.fromkeys((note, True) for run in runs for note in run.metrics["training"].get("notes", ())),
        ("The best validation score was reached in the last epoch; longer training may improve the results.", cut),
        ("The image encoder started from random weights; the option image_weights has pretrained ones.", untaught),
    ]
    return [Caution(text, _named(of, runs) if isinstance(of, list) else "") for text, of in found if of]


def of_store(described: Mapping[str, Any]) -> list[Caution]:
    """Warnings about a store, from its description on the page."""
    found = []
    audit = described["audit"]
    if audit and audit["n"]:
        found.append(
            f"The leakage audit has {plural(audit['n'], 'finding')}: features that nearly determine a class on their "
            f"own (single-feature AUROC above {audit['threshold']})."
        )
    steps = described["attrition"]
    if 2 * steps[-1]["n_after"] < steps[0]["n_before"]:
        share = steps[-1]["n_after"] / steps[0]["n_before"]
        found.append(f"Only {share:.0%} of the records in the export are in the cohort; check the exclusions.")
    quality = described.get("quality")
    if quality and quality["n_failed"]:
        found.append(f"{quality['n_failed']} of {quality['n']} scans failed processing or quality control.")
    return [Caution(text) for text in found]


def _named(some: Sequence[ReportedRun], runs: Sequence[ReportedRun]) -> str:
    """Displayed names of some of the runs, with their seeds if not all runs of a label are included."""
    said = []
    for label in dict.fromkeys(run.label for run in some):
        seeds, every = ({run.seed for run in those if run.label == label} for those in (some, runs))
        numbers = ", ".join(map(str, sorted(seeds)))
        name = method_title(label)
        said.append(name if seeds == every else f"{name} (seed{'s' * (len(seeds) > 1)} {numbers})")
    return ", ".join(said[:MOST_NAMED] + [f"and {len(said) - MOST_NAMED} more"] * (len(said) > MOST_NAMED))


def _is_constant(run: ReportedRun) -> bool:
    """Whether a run predicts one class for all samples.

    Then the balanced accuracy is 1/k and, with accuracy a, the macro-F1 is 2a / ((1 + a) k); one of these alone can
    occur by chance.
    """
    scores, k = run.metrics["metrics"], len(run.metrics["classes"])
    a, balanced, f1 = (scores.get(name, {}).get("value") for name in ("accuracy", "balanced_accuracy", "macro_f1"))
    if None in (a, balanced, f1):
        return False
    return bool(abs(balanced - 1 / k) < 1e-9 and abs(f1 - 2 * a / ((1 + a) * k)) < 1e-9)


def _below_majority(run: ReportedRun) -> bool:
    ours, theirs = run.metrics["metrics"].get("accuracy", {}).get("value"), run.metrics["majority"]["accuracy"]
    return ours is not None and theirs is not None and ours < theirs


def _from_random_images(run: ReportedRun) -> bool:
    """Whether the run trained an image encoder that did not start from a file of weights."""
    kinds = {m["kind"] for m in run.config["data"]["modalities"]}
    return "image" in kinds and "epochs" in run.metrics["training"] and not run.config["common"].get("image_weights")
