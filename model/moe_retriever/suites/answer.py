"""The answer of a comparison: one sentence from its numbers, and a forest plot of all methods against the reference.

Sentences of a test set: the reference against the best rival, the number of rivals that differ from it, and the
strongest control. `holds` of an estimate is corrected for all rivals (Holm); intervals are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from moe_retriever.evaluation.intervals import Estimate
from moe_retriever.evaluation.paired import Comparison
from moe_retriever.metrics import METRIC, Metric
from moe_retriever.plots.forest import Interval, forest
from moe_retriever.suites.published import missingness_title
from moe_retriever.suites.render import PageTable, bullets, markdown_grid, number
from moe_retriever.suites.spec import BEST
from mrpipe.privacy import Count

# With more comparisons than this, they are summarised by data set, and only the first are drawn.
MOST = 6
# Nouns for the samples of a data set.
_NOUNS = {"mosi": "clips", "mosei": "clips", "ch_sims": "clips", "enrico": "screens"}


@dataclass(frozen=True)
class Compared:
    """Methods compared on the same test samples.

    Attributes:
        data: displayed name of the data set.
        dataset: its key.
        view: what distinguishes the comparison from others on the same data; may be empty.
        n: number of test samples; a `Count` if the samples are people.
        missingness: `mechanism`, `p` and `hidden` of the simulated missingness; None for as observed.
        metric: the metric of the sentence.
        controls: names of the methods that are controls.
        reference: the method that the others are compared with, if it has runs.
        strongest: the control that is best on the validation split, if known.
        majority: class and accuracy of the most frequent class, if known.
    """

    data: str
    dataset: str
    view: str
    n: int
    missingness: Mapping[str, Any] | None
    simulated: bool
    metric: str
    comparison: Comparison
    controls: frozenset[str]
    reference: str | None
    strongest: str | None = None
    majority: tuple[str, float] | None = None

    @property
    def unit(self) -> Metric:
        return METRIC[self.metric]

    @cached_property
    def means(self) -> dict[str, Estimate]:
        """Mean of each method for which the metric is defined, the best one first."""
        found = {m: self.comparison.mean(m, self.metric) for m in self.comparison.methods}
        known = {m: e for m, e in found.items() if e is not None and m != BEST}
        sign = 1 if self.unit.lower_is_better else -1
        return dict(sorted(known.items(), key=lambda item: sign * item[1].value))

    @cached_property
    def differences(self) -> dict[str, Estimate]:
        """Differences of the other methods from the reference, the best one first."""
        if self.reference not in self.means or self.hidden:
            return {}
        found = self.comparison.differences(self.means, self.reference, self.metric)
        return {m: e for m in self.means if (e := found.get(m)) is not None}

    @property
    def hidden(self) -> bool:
        """Whether the test set is too small for its scores to be shown."""
        return isinstance(self.n, Count) and self.n == 1

    @property
    def digits(self) -> int:
        """Decimals of the differences."""
        return self.unit.digits(self.unit.factor * max([2 * e.half_width() for e in self.differences.values()] or [0]))

    def text(self, e: Estimate, sign: int = 1, form: str = "+") -> str:
        """A difference with its interval, in displayed units, times the sign."""
        middle, *bounds = (sign * self.unit.factor * v for v in (e.value, e.low, e.high) if v is not None)
        low_high = ", ".join(number(v, f".{self.digits}f") for v in sorted(bounds)) or "no interval"
        return f"{number(middle, f'{form}.{self.digits}f')} [{low_high}]"

    def verdict(self, e: Estimate) -> str:
        """`better` or `worse` than the reference; "" if no difference is shown."""
        return "" if not e.holds else "better" if (e.value > 0) != self.unit.lower_is_better else "worse"

    def cells(self) -> dict[str, tuple[str, bool]]:
        """Method → its difference from the reference as text, and whether it is shown to differ."""
        return {m: (self.text(e), e.holds) for m, e in self.differences.items()}

    def where(self) -> str:
        """The data, and in brackets the numbers of samples and seeds, the view and the missingness."""
        of = self.comparison
        n_seeds = max((len(of.seeds(m)) for m in of.methods if m != BEST), default=0)
        parts = [f"{self.n:,} test {_NOUNS.get(self.dataset, 'samples')}", self.view, _hidden(self.missingness)]
        parts.append(f"{n_seeds} seed{'s' * (n_seeds != 1)}")
        return f"{'simulated ' * self.simulated}{self.data} ({', '.join(filter(None, parts))})"

    def sentence(self) -> str:
        """The answer in one to three sentences."""
        if self.hidden:
            return f"On {self.where()} the scores are not shown, because there are too few test samples."
        if not self.means:
            return f"On {self.where()} no method has a defined {self.unit.title}."
        if not self.differences:
            return f"On {self.where()} {self._alone()}"
        best, difference = next(iter(self.differences.items()))
        title = f"{best} (the strongest control)" if best == self.strongest else best
        found = [f"On {self.where()} {self._against(title, difference)}"]
        if len(self.differences) > 1:
            verdicts = [self.verdict(e) for e in self.differences.values()]
            counts = {"better": verdicts.count("worse"), "worse": verdicts.count("better")}
            shown = " and ".join(f"{word} than {n}" for word, n in counts.items() if n)
            shown = f"It is shown to be {shown}" if shown else "It is not shown to differ from any"
            found.append(f"{shown} of {len(verdicts)} rivals.")
            if self.strongest in self.differences and self.strongest != best:
                found.append(
                    self._against(f"the strongest control, {self.strongest},", self.differences[self.strongest])
                )
        return " ".join(found)

    def _alone(self) -> str:
        name, e = next(iter(self.means.items()))
        digits = self.unit.digits(2 * self.unit.factor * e.half_width())
        value, *bounds = (
            v if v is None else number(self.unit.factor * v, f".{digits}f") for v in (e.value, e.low, e.high)
        )
        text = f"the {self.unit.title} of {name} is {value}{' %' * self.unit.percent}"
        text += f" [{bounds[0]}, {bounds[1]}]" * bool(e.parts)
        if self.majority and self.metric == "accuracy":
            text += f"; always predicting {self.majority[0]} reaches {100 * self.majority[1]:.{digits}f} %"
        return f"{text}."

    def _against(self, rival: str, e: Estimate) -> str:
        """Reference against a rival: by how much it is ahead or behind, and whether a difference is shown."""
        ahead = (e.value < 0) != self.unit.lower_is_better
        metric = self.unit.title + " (lower is better)" * self.unit.lower_is_better
        amount, _, interval = self.text(e, 1 if e.value >= 0 else -1, "").partition(" ")
        how = f"{amount}{' points' * self.unit.percent} {'ahead of' if ahead else 'behind'}"
        if float(amount) == 0:
            how = "level with"
        return f"{self.reference} is {how} {rival} in {metric} {interval}: {self._shown(e)}."

    def _shown(self, e: Estimate) -> str:
        n = len(self.differences)
        corrected = f" after correction for {n} comparisons" if n > 1 else ""
        if e.p is None:
            return "whether they differ is unknown"
        return f"difference shown{corrected}" if e.holds else f"no difference shown{corrected if e.p < 0.05 else ''}"

    def forest(self) -> str:
        """SVG of the differences from the reference, the best method first; "" if there are none."""
        rows = []
        for m, e in self.differences.items():
            low, high = (None if v is None else self.unit.factor * v for v in (e.low, e.high))
            name = f"{m} (control)" if m in self.controls else m
            rows.append(Interval(name, self.unit.factor * e.value, low, high, self.text(e), self.verdict(e)))
        label = f"{self.forest_title()}; the table has the same numbers."
        return forest(rows, label=label, lower_is_better=self.unit.lower_is_better) if rows else ""

    def forest_title(self) -> str:
        """Caption of the forest plot."""
        unit = " (points)" if self.unit.percent else ""
        data = ", ".join([self.name, *["simulated data"] * self.simulated])
        return f"{data}: {self.unit.title}, difference from {self.reference}{unit}"

    @property
    def name(self) -> str:
        """Data set and view."""
        return f"{self.data}, {self.view}" if self.view else self.data


def sentences(compared: Sequence[Compared]) -> list[str]:
    """One sentence per comparison; of many, a summary per data set."""
    if len(compared) <= MOST:
        return [c.sentence() for c in compared]
    groups: dict[tuple[str, str, bool], list[Compared]] = {}
    for c in compared:
        groups.setdefault((c.data, c.metric, c.simulated), []).append(c)
    return [_summary(of) if len(of) > 1 else of[0].sentence() for of in groups.values()]


def _summary(compared: Sequence[Compared]) -> str:
    """The reference against the best rival of each of several comparisons on the same data."""
    first = compared[0]
    firsts = [(c, next(iter(c.differences.items()))) for c in compared if c.differences]
    where = f"On {'simulated ' * first.simulated}{first.data} ({len(compared)} comparisons)"
    if not firsts:
        return f"{where} there is no difference to a reference."
    verdicts = [c.verdict(e) for c, (_, e) in firsts]
    better, worse = verdicts.count("worse"), verdicts.count("better")
    lead = fmean((1 if c.unit.lower_is_better else -1) * c.unit.factor * e.value for c, (_, e) in firsts)
    amount = f"{abs(lead):.{max(c.digits for c, _ in firsts)}f}{' points' * first.unit.percent}"
    return (
        f"{where} {first.reference} is shown to be better than the best rival in {better} and worse in {worse}; in "
        f"{len(firsts) - better - worse} no difference is shown. On average it is {amount} "
        f"{'ahead of' if lead > 0 else 'behind'} the best rival in {first.unit.title}."
    )


def _hidden(mask: Mapping[str, Any] | None) -> str:
    """The missingness in words; the realised rate alone if it is completely at random."""
    if mask is None:
        return ""
    plain = mask["mechanism"] == "mcar" and set(mask) <= {"mechanism", "p", "hidden"}
    if plain and mask.get("hidden") is not None:
        return f"{100 * mask['hidden']:.0f} % of the modalities hidden"
    return missingness_title(mask)


def answer_markdown(said: Sequence[str], tables: Sequence[PageTable]) -> str:
    """Content of answer.md: the sentences as a list, then the tables."""
    return "\n\n".join(filter(None, [bullets(said), *map(markdown_grid, tables)])) + "\n"
