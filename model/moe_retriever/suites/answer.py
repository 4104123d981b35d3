"""The answer of a comparison: one sentence from its numbers, and a forest plot of all methods against the reference.

Sentences of a test set: the reference against the best rival, the number of rivals that differ from it, and the
strongest control. `holds` of an estimate is corrected for all rivals (Holm); intervals are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import fmean
from typing import Any

from markupsafe import Markup

from moe_retriever.evaluation.intervals import Estimate
from moe_retriever.evaluation.paired import Comparison
from moe_retriever.metrics import METRIC, Metric
from moe_retriever.plots.forest import forest
from moe_retriever.suites.published import missingness_title
from moe_retriever.suites.render import PageTable, bullets, markdown_grid, number
from moe_retriever.suites.spec import BEST
from mrpipe.privacy import Count

# More comparisons are summarised by data set, and not drawn; forest plots with more rows in all are closed at first.
MOST, MOST_ROWS = 6, 24
# Nouns for the samples of a data set.
_NOUNS = {"CMU-MOSI": "clips", "CMU-MOSEI": "clips", "CH-SIMS": "clips", "ENRICO": "screens"}


@dataclass(frozen=True)
class Compared:
    """Methods compared on the same test samples.

    Attributes:
        data: displayed name of the data set.
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
        """Mean of each method with a defined metric, the best one first; none if the test set has too few people."""
        if isinstance(self.n, Count) and self.n == 1:
            return {}
        found = {m: self.comparison.mean(m, self.metric) for m in self.comparison.methods}
        known = {m: e for m, e in found.items() if e is not None and m != BEST}
        sign = 1 if self.unit.lower_is_better else -1
        return dict(sorted(known.items(), key=lambda item: sign * item[1].value))

    @cached_property
    def differences(self) -> dict[str, Estimate]:
        """Differences of the other methods from the reference, the best one first."""
        if self.reference not in self.means:
            return {}
        found = self.comparison.differences(self.means, self.reference, self.metric)
        return {m: e for m in self.means if (e := found.get(m)) is not None}

    @property
    def digits(self) -> int:
        return self.unit.digits(self.unit.factor * max([2 * e.half_width() for e in self.differences.values()] or [0]))

    def text(self, e: Estimate, sign: int = 1, form: str = "+", digits: int | None = None) -> str:
        """A difference (or, with its digits, a mean) with its interval, in displayed units, times the sign."""
        digits = self.digits if digits is None else digits
        middle, *bounds = (sign * self.unit.factor * v for v in (e.value, e.low, e.high) if v is not None)
        low_high = ", ".join(number(v, f".{digits}f") for v in sorted(bounds)) or "no interval"
        return f"{number(middle, f'{form}.{digits}f')} [{low_high}]"

    def verdict(self, e: Estimate) -> str:
        """`better` or `worse` than the reference; "" if no difference is shown."""
        return "" if not e.holds else "better" if (e.value > 0) != self.unit.lower_is_better else "worse"

    def where(self) -> str:
        """The data, and in brackets the numbers of samples and seeds, the view and the missingness."""
        n_seeds = max((len(self.comparison.seeds(m)) for m in self.comparison.methods if m != BEST), default=0)
        seeds, noun = f"{n_seeds} seed{'s' * (n_seeds != 1)}", _NOUNS.get(self.data, "samples")
        tests = f"{self.n:,} test {noun.removesuffix('s') if f'{self.n}' == '1' else noun}"
        parts = filter(None, (tests, self.view, _hidden(self.missingness), seeds))
        return f"{'simulated ' * self.simulated}{self.data} ({', '.join(parts)})"

    def sentence(self) -> str:
        """The answer in one to three sentences."""
        if not self.means:
            return f"On {self.where()} no {self.unit.title} is shown: undefined, or too few test samples."
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
        if best != self.strongest in self.differences:
            control = f"the strongest control, {self.strongest},"
            found.append(self._against(control, self.differences[self.strongest]))
        return " ".join(found)

    def _alone(self) -> str:
        name, e = next(iter(self.means.items()))
        digits = self.unit.digits(2 * self.unit.factor * e.half_width())
        text = f"the {self.unit.titled} of {name} is {self.text(e, form='', digits=digits)}"
        if self.majority and self.metric == "accuracy":
            text += f"; always predicting {self.majority[0]} reaches {100 * self.majority[1]:.{digits}f}"
        return f"{text}."

    def _against(self, rival: str, e: Estimate) -> str:
        """Reference against a rival: by how much it is ahead or behind, and whether a difference is shown."""
        metric = self.unit.title + " (lower is better)" * self.unit.lower_is_better
        amount, _, interval = self.text(e, 1 if e.value >= 0 else -1, "").partition(" ")
        side = "ahead of" if (e.value < 0) != self.unit.lower_is_better else "behind"
        how = f"{amount}{' points' * self.unit.percent} {side}" if float(amount) else "level with"
        shown = "difference shown" if e.holds else "no difference shown"
        if len(self.differences) > 1 and e.p is not None and e.p < 0.05:
            shown += f" after correction for {len(self.differences)} comparisons"
        shown = "whether they differ is unknown" if e.p is None else shown
        return f"{self.reference} is {how} {rival} in {metric} {interval}: {shown}."

    def forest(self) -> str:
        """SVG of the differences from the reference, the best method first; "" if there are none."""
        rows = {f"{m} (control)" if m in self.controls else m: e for m, e in self.differences.items()}
        texts, verdicts = ([show(e) for e in rows.values()] for show in (self.text, self.verdict))
        label = f"{self.forest_title()}; the table has the same numbers."
        return forest(rows, texts, verdicts, self.unit, label) if rows else ""

    def forest_title(self) -> str:
        simulated, points = ", simulated data" * self.simulated, " (points)" * self.unit.percent
        return f"{self.name}{simulated}: {self.unit.title}, difference from {self.reference}{points}"

    @property
    def name(self) -> str:
        return f"{self.data}, {self.view}" if self.view else self.data


def forests(compared: Sequence[Compared]) -> tuple[tuple[str, Markup, bool], ...]:
    """Caption and SVG of the forest plots of the first comparisons, and whether each is open at first."""
    drawn = [c for c in compared[:MOST] if c.differences]
    shown = zip(drawn, accumulate(len(c.differences) for c in drawn), strict=True)
    return tuple((c.forest_title(), Markup(c.forest()), n <= MOST_ROWS or c is drawn[0]) for c, n in shown)


def sentences(compared: Sequence[Compared]) -> list[str]:
    """One sentence per comparison; of many, a summary per data set."""
    if len(compared) <= MOST:
        return [c.sentence() for c in compared]
    groups: dict[tuple[str, str, bool], list[Compared]] = {}
    for c in (c for c in compared if c.differences):
        groups.setdefault((c.data, c.metric, c.simulated), []).append(c)
    return [_summary(of) if len(of) > 1 else of[0].sentence() for of in groups.values()]


def _summary(compared: Sequence[Compared]) -> str:
    """The reference against the best rival of each of several comparisons on the same data."""
    first = compared[0]
    firsts = [(c, next(iter(c.differences.values()))) for c in compared]
    verdicts = [c.verdict(e) for c, e in firsts]
    better, worse = verdicts.count("worse"), verdicts.count("better")
    lead = fmean((1 if c.unit.lower_is_better else -1) * c.unit.factor * e.value for c, e in firsts)
    amount = f"{abs(lead):.{max(c.digits for c in compared)}f}{' points' * first.unit.percent}"
    return (
        f"On {'simulated ' * first.simulated}{first.data} ({len(compared)} comparisons) {first.reference} is shown to "
        f"be better than the best rival in {better} and worse in {worse}; in {len(compared) - better - worse} no "
        f"difference is shown. On average it is {amount} {'ahead of' if lead > 0 else 'behind'} the best rival in "
        f"{first.unit.title}."
    )


def _hidden(mask: Mapping[str, Any] | None) -> str:
    """The missingness in words; the realised rate alone if it is completely at random."""
    if mask and mask["mechanism"] == "mcar" and mask.keys() == {"mechanism", "p", "hidden"}:
        return f"{100 * mask['hidden']:.0f} % of the modalities hidden"
    return missingness_title(mask) if mask else ""


def answer_markdown(said: Sequence[str], tables: Sequence[PageTable]) -> str:
    """Content of answer.md: the sentences as a list, then the tables."""
    return "\n\n".join(filter(None, [bullets(said), *map(markdown_grid, tables)])) + "\n"
