"""Training runs and their evaluations, and the names of their folders and mask files."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mrpipe.experiment.missingness import Missingness, non_default, p_text


@dataclass(frozen=True, kw_only=True)
class PlannedTest:
    """A protocol: how test samples differ from those that belong to a training.

    Attributes:
        store: another store, all labelled samples of which are tested; "" for the test split of the training store.
        missingness: simulated missingness of the tested samples, without seed and view; None for as observed.
        pattern: combination of modalities with which complete samples are tested; one evaluation has all of them.
    """

    store: str = ""
    missingness: Missingness | None = None
    pattern: str = ""

    @property
    def name(self) -> str:
        parts = ["patterns"] * bool(self.pattern) + [f"store_{self.store}"] * bool(self.store)
        return "-".join([*parts, *([missingness_name(self.missingness)] if self.missingness else [])])


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training run: a method and a seed of an experiment, or a cell of suites.

    Attributes:
        experiment: folder shared by the runs with the same data, view and missingness.
        label: folder shared by the runs with the same method and settings; in an experiment, the method's name.
        transforms: transform options that differ from their defaults.
        trials: number of trials of the hyper-parameter search; 0 for no search.
        first_seed: seed of the missingness mask that the search uses.
        test: protocol of the evaluation; None for the test split with the mask of the training.
    """

    experiment: str
    label: str
    method: str
    seed: int
    store: str
    preset: str
    task: str | None
    scheme: str | None
    modalities: tuple[str, ...]
    missingness: Missingness | None
    overrides: Mapping[str, Any]
    transforms: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 0
    first_seed: int = 0
    test: PlannedTest | None = None

    @cached_property
    def folder(self) -> str:
        """Path below the folder of all runs."""
        return f"{self.experiment}/{self.label}/seed{self.seed}"

    @cached_property
    def tested(self) -> str:
        """Path of the evaluation below the folder of all runs."""
        return f"{self.folder}/tests/{self.test.name}" if self.test else self.folder

    @property
    def test_store(self) -> str:
        return (self.test and self.test.store) or self.store

    @cached_property
    def test_missingness(self) -> Missingness | None:
        """Simulated missingness of the evaluated samples."""
        if self.test is None or self.test.missingness is None:
            return None if self.test else self.missingness
        return replace(self.test.missingness, seed=self.seed, modalities=self.modalities)

    @cached_property
    def mask(self) -> str | None:
        """Name of the run's mask file; runs with the same mask name share the file."""
        return None if self.missingness is None else mask_name(self.missingness)


def missingness_name(m: Missingness) -> str:
    """Name of a missingness setting, without the view and the seed."""
    own = non_default(vars(m))  # `asdict` copies, which takes seconds for 10,000 runs
    texts = {"rate": m.rate, "strength": f"strength{m.strength:g}", "n_blocks": f"blocks{m.n_blocks}"}
    texts |= {"task": f"task_{m.task}", "redraw": "noredraw"}
    rates = re.sub("[=,]", "_", p_text(m.p))
    return "-".join([m.mechanism, f"p{rates}", *(text for name, text in texts.items() if name in own)])


def mask_name(m: Missingness) -> str:
    """Name of a mask file: everything that determines the draw, except the store."""
    view = ["_".join(m.modalities)] * bool(m.modalities)
    return "-".join([missingness_name(m), *view, f"seed{m.seed}"])


def masks_of(runs: Iterable[PlannedRun]) -> dict[tuple[str, str], Missingness]:
    """(store, name of the mask file) → settings."""
    both = [m for r in runs for m in ((r.store, r.missingness), (r.test_store, r.test_missingness))]
    return {(store, mask_name(m)): m for store, m in both if m}
