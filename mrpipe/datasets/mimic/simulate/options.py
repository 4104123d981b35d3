"""Simulator options of MIMIC-IV."""

from dataclasses import dataclass

from mrpipe.errors import UsageError
from mrpipe.options import option


@dataclass(frozen=True, kw_only=True)
class MimicSimulation:
    """Options of the MIMIC-IV simulator."""

    n_patients: int = option(1200, "number of patients in the export, of whom the fraction eligible enters the cohort")
    n_chart_rows: int = option(60_000, "number of rows in icu/chartevents")
    n_lab_rows: int = option(40_000, "number of rows in hosp/labevents")
    seed: int = option(0, "random seed")
    release: str = option(
        "2.2",
        "release whose layout is written; 3.1 adds patients of 2020 - 2022, who have no notes, and shuffles rows",
        choices=("2.0", "2.2", "3.1"),
    )
    eligible: float = option(0.4, "fraction of patients in the cohort: two or more ICD-9 visits and an ICU stay")
    mortality: float = option(0.226, "mean probability of death within a year of the index discharge")
    strength: float = option(
        1.0, "effect of each of the four latent factors on the log odds of death (0: the label is unpredictable)"
    )
    notes: bool = option(True, "write the note module")
    notes_missing: float = option(0.012, "fraction of patients without notes")
    procedures_missing: float = option(0.20, "fraction of patients without procedures")
    informative: float = option(
        0.0, "missingness of notes and procedures, from completely at random (0) to severity-dependent (1)"
    )
    traps: float = option(1.0, "frequency of the data errors of real exports, relative to their usual rate (0: none)")
    n_rare_items: int = option(40, "number of rare laboratory items, and of rare chart items, besides the common ones")
    form: str = option(
        "csv.gz",
        "form of the tables: csv.gz as the provider writes them, csv, parquet, shards (folders of Parquet files), "
        "bigquery (numbered files, times with T), pandas (an index column, ids as floats), or database (blanks as \\N, "
        "times with fractions and zone, upper-case names)",
        choices=("csv.gz", "csv", "parquet", "shards", "bigquery", "pandas", "database"),
    )
    shuffle_columns: bool = option(False, "write the columns in random order")

    def validate(self) -> None:
        """Raise a UsageError if an option is out of range."""
        for name in ("eligible", "mortality", "notes_missing", "procedures_missing", "informative"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"simulation of mimic: {name} must be between 0 and 1, not {getattr(self, name)}")
        if not 0.0 < self.mortality < 1.0 or self.n_patients < 40 or self.traps < 0 or self.strength < 0:
            raise UsageError(
                "simulation of mimic: n_patients must be at least 40, 0 < mortality < 1, traps and strength 0 or more"
            )
        if min(self.n_chart_rows, self.n_lab_rows) < 1 or self.n_rare_items < 0:
            raise UsageError(
                "simulation of mimic: n_chart_rows and n_lab_rows must be 1 or more, n_rare_items 0 or more"
            )
