"""The answers of the experiments of a page: paired comparisons of the runs with the same test samples."""

from collections.abc import Sequence

from moe_retriever.catalogue import about
from moe_retriever.evaluation.paired import Comparison, Predicted
from moe_retriever.evaluation.run_folders import tested
from moe_retriever.metrics import kinds_of
from moe_retriever.report.runs import ReportedRun, masked, strongest_control
from moe_retriever.suites.answer import Compared
from moe_retriever.suites.published import method_title, task_title
from moe_retriever.suites.spec import REFERENCE


def compare(runs: Sequence[ReportedRun], *, named: bool) -> Compared:
    """Comparison of the runs of an experiment with MoE-Retriever, or else with the first method that is no control.

    Args:
        named: whether the sentence names task and modalities, to tell experiments on the same data apart.
    """
    first = runs[0].metrics
    found: dict[str, dict[int, Predicted]] = {}
    for run in runs:
        found.setdefault(method_title(run.label), {})[run.seed] = tested(run.folder)
    reference = min(runs, key=lambda run: (run.method != REFERENCE, about(run.method).control))
    majority, accuracy = (first["majority"][k] for k in ("class", "accuracy"))
    metric = "mae" if "regression" in kinds_of(len(first["classes"])) else "accuracy"
    return Compared(
        data=runs[0].dataset,
        view=f"{task_title(first['task'])} from {' + '.join(first['modalities'])}" if named else "",
        n=first["n"]["test"],
        missingness=masked(runs),
        simulated=first["origin"] == "simulated",
        metric=metric,
        comparison=Comparison(found),
        controls=frozenset(method_title(run.label) for run in runs if about(run.method).control),
        reference=None if about(reference.method).control else method_title(reference.label),
        strongest=(label := strongest_control(runs, metric)) and method_title(label),
        majority=None if accuracy is None else (str(majority), accuracy),
    )
