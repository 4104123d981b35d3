"""The metrics: title, kinds of tasks, unit and direction. This module imports no large packages."""

import math
from typing import NamedTuple


class Metric(NamedTuple):
    """A metric.

    Attributes:
        kinds: kinds of tasks that have it: classification, binary (two classes), regression, cmu (sentiment from -3 to
            3, as in CMU-MOSI and CMU-MOSEI), sims (from -1 to 1, as in CH-SIMS).
        percent: whether it is displayed in %; otherwise as it is, e.g. in units of the target.
    """

    title: str
    kinds: tuple[str, ...]
    percent: bool
    lower_is_better: bool

    @property
    def factor(self) -> int:
        """Factor from a value to the displayed one."""
        return 100 if self.percent else 1

    @property
    def titled(self) -> str:
        """Title with the unit."""
        return f"{self.title} (%)" if self.percent else self.title

    def digits(self, width: float | None = None) -> int:
        """Decimals of displayed values: two significant digits of the width of their (widest) 95% interval.

        Of values in %, one, or two if the interval is at most one point wide; of others, at most three (the usual).
        """
        least, most, usual = (1, 2, 1) if self.percent else (0, 3, 3)
        return min(max(1 - math.floor(math.log10(width)), least), most) if width else usual


_TITLES = {
    "classification": {
        **{"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"},
        **{"auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "brier": "Brier", "nll": "NLL", "aurc": "AURC"},
    },
    "binary": {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"},
    "regression": {"mae": "MAE", "rmse": "RMSE", "corr": "Corr", "r2": "R²"},
    "cmu": {
        **{"acc7": "Acc-7", "acc5": "Acc-5", "acc2_has0": "Acc-2 (neg./non-neg.)", "f1_has0": "F1 (neg./non-neg.)"},
        **{"acc2_non0": "Acc-2 (neg./pos.)", "f1_non0": "F1 (neg./pos.)"},
    },
    "sims": {"sims_acc5": "Acc-5", "sims_acc3": "Acc-3", "sims_acc2": "Acc-2", "sims_f1": "F1"},
}
_UNITS, _LOWER = {"brier", "nll", *_TITLES["regression"]}, {"ece", "brier", "nll", "aurc", "mae", "rmse"}
METRIC = {
    name: Metric(title, (kind,), name not in _UNITS, name in _LOWER)
    for kind, titles in _TITLES.items()
    for name, title in titles.items()
}
METRIC_NAMES = {name: metric.title for name, metric in METRIC.items()}
METRICS, VALUE_METRICS = (tuple(_TITLES[kind]) for kind in ("classification", "regression"))


def convention_of(dataset: str, task: str) -> str:
    """Kind of the additional metrics of a sentiment score: cmu or sims; "" if there are none."""
    return {"mosi": "cmu", "mosei": "cmu", "ch_sims": "sims"}.get(dataset, "") if task == "score" else ""


def kinds_of(n_classes: int, convention: str = "") -> tuple[str, ...]:
    """Kinds of a task, see `Metric.kinds`; a regression has no classes."""
    if n_classes == 0:
        return ("regression", convention)
    return ("classification", "binary") if n_classes == 2 else ("classification",)


def names_of(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the metrics of a task of these kinds."""
    return tuple(name for name, metric in METRIC.items() if set(metric.kinds) & set(kinds))


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a metric, or of the loss, are better."""
    return metric == "loss" or METRIC[metric].lower_is_better
