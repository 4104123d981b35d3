"""The answers of the experiments of a page: paired comparisons of the runs with the same test samples."""

from collections.abc import Sequence

from moe_retriever.catalogue import about
from moe_retriever.evaluation.paired import Comparison, Predicted
from moe_retriever.evaluation.run_folders import tested
from moe_retriever.metrics import kinds_of
from moe_retriever.report.runs import ReportedRun, masked
from moe_retriever.suites.answer import Compared
from moe_retriever.suites.published import method_title, task_title
from moe_retriever.suites.spec import REFERENCE, SuiteRow
from moe_retriever.suites.tables import strongest_controls


def compare(runs: Sequence[ReportedRun], *, named: bool) -> Compared:
    """Comparison of the runs of an experiment with MoE-Retriever, or else with the first method that is no control.

    Args:
        named: whether the sentence names task and modalities, to tell experiments on the same data apart.
    """
    first = runs[0].metrics
    rows, found = {}, dict[str, dict[int, Predicted]]()
    validation = dict[str, list[dict[str, float]]]()
    for run in runs:
        name = method_title(run.label)
        rows[name] = SuiteRow(name, run.method, first["preset"], "", about(run.method).control)
        found.setdefault(name, {})[run.seed] = tested(run.folder)
        validation.setdefault(name, []).append(run.metrics["training"].get("val", {}))
    reference = min(rows.values(), key=lambda row: (row.method != REFERENCE, row.control))
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
        controls=frozenset(r.name for r in rows.values() if r.control),
        reference=None if reference.control else reference.name,
        strongest=strongest_controls(list(rows.values()), validation).get(metric),
        majority=None if accuracy is None else (str(majority), accuracy),
    )
