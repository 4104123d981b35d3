"""Options of the MIMIC-IV simulator."""

from __future__ import annotations

from dataclasses import dataclass

from mrpipe.errors import UsageError
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class MimicSimulation:
    """A simulated MIMIC-IV export."""

    n_patients: int = option(1200, "patients in patients.csv; about `eligible` of them are in the cohort")
    n_chart_rows: int = option(60_000, "rows of icu/chartevents")
    n_lab_rows: int = option(40_000, "rows of hosp/labevents")
    seed: int = option(0, "seed of every draw")
    release: str = option(
        "2.2",
        "layout of this release; 3.1 adds year group 2020 - 2022, without notes, and other row order",
        choices=("2.0", "2.2", "3.1"),
    )
    eligible: float = option(0.4, "share of patients with several ICD-9 visits and an ICU stay")
    mortality: float = option(0.226, "share of deaths within a year of the index discharge")
    strength: float = option(
        1.0, "how strongly each of the four latent factors acts on death; 0: nothing can be learnt"
    )
    notes: bool = option(True, "write the notes module")
    notes_missing: float = option(0.012, "share of patients without any note")
    procedures_missing: float = option(0.20, "share of patients without any procedure")
    informative: float = option(
        0.0, "0: missing completely at random; 1: the sicker, the likelier is a record incomplete"
    )
    traps: float = option(1.0, "how often faults of real exports occur, relative to their usual rate (0: never)")
    n_rare_items: int = option(40, "laboratory and chart items beside the common ones, each in few patients")
    compressed: bool = option(True, "csv.gz, as the provider has it, or csv")
    shuffle_columns: bool = option(False, "columns in another order")

    def validate(self) -> None:
        """Raise a UsageError for a value out of its range."""
        for name in ("eligible", "mortality", "notes_missing", "procedures_missing", "informative"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"simulation of mimic: {name} must lie between 0 and 1, not {getattr(self, name)}")
        if not 0.0 < self.mortality < 1.0 or self.n_patients < 40 or self.traps < 0 or self.strength < 0:
            raise UsageError(
                "simulation of mimic: at least 40 patients, mortality inside (0, 1), traps and strength 0 or more"
            )
        if min(self.n_chart_rows, self.n_lab_rows) < 1 or self.n_rare_items < 0:
            raise UsageError("simulation of mimic: at least one row a table")
