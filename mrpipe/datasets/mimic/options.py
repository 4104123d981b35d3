"""Options of the MIMIC-IV reader, one for each choice that the paper leaves open, and of the simulator."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mrpipe.datasets.mimic.note_text import HEADINGS
from mrpipe.errors import Fault, FaultCollector, UsageError
from mrpipe.options import option
from mrpipe.text.encoders import HELP

RELEASES = ("2.0", "2.1", "2.2", "3.0", "3.1")


@dataclass(frozen=True, kw_only=True)
class MimicOptions:
    """Options of the MIMIC-IV cohort and readers."""

    STEPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "checksums rebuilt integrity": (),
        "event_sources event_window n_shards": ("lab", "lab_summary"),
        "bin_hours outlier_ranges": ("lab.ingest", "lab_summary.ingest"),
        "rollup icd_versions": ("code",),
        "text_encoder note_features note_pieces": ("note",),
        "notes summary_time note_sections": ("note", "cohort if store_text"),
        "leak_guard": ("note", "code", "cohort if store_text"),
        "store_text": ("cohort",),
    }

    # Export
    release: str = option("auto", "release of the export (auto: detected from the tables)", choices=("auto", *RELEASES))
    form: str = option(
        "auto",
        "form of the tables that are present in several (auto: the one listed in SHA256SUMS.txt; else any, if their "
        "contents are equal)",
        choices=("auto", "csv.gz", "csv", "parquet"),
    )
    checksums: str = option(
        "verify",
        "checksums in the provider's SHA256SUMS.txt, if the export contains it: a mismatch is an error (verify), is "
        "noted in the manifest (note), or is ignored (skip)",
        choices=("verify", "note", "skip"),
    )
    rebuilt: tuple[str, ...] = option(
        (), 'files known to differ from SHA256SUMS.txt, by path in the export, e.g. ["icu/chartevents.csv.gz"]'
    )
    integrity: str = option(
        "full",
        "check of the large tables without a verified checksum. full: read them as the build does, which finds all "
        "errors; quick: read only the header and the first rows",
        choices=("full", "quick"),
    )

    # Cohort
    icd9: str = option(
        "any",
        "visits (hospital admissions) to include, by the version of their diagnosis and procedure codes: with any "
        "ICD-9 code (any), with ICD-9 codes only (all), or regardless of the version (off)",
        choices=("any", "all", "off"),
    )
    terminal_visits: str = option(
        "drop",
        "visits that end in death: hospital_expire_flag or deathtime set, or dod on or before the day of discharge",
        choices=("drop", "keep"),
    )
    min_visits: int = option(2, "minimum number of visits per patient; the MoE-Retriever paper requires more than one")
    min_visits_stage: str = option(
        "after",
        "whether min_visits counts visits before or after the filters terminal_visits, icd9 and require_icu=every",
        choices=("before", "after"),
    )
    require_icu: str = option(
        "patient",
        "require an ICU stay in at least one remaining visit (patient), in the index visit (index) or in every visit "
        "(every: visits without one are dropped), or do not require any (no)",
        choices=("patient", "index", "every", "no"),
    )
    min_age: int = option(18, "minimum age in years at the index admission (0: no limit)")
    index_visit: str = option(
        "last", "the visit whose discharge is the prediction time; later visits are ignored", choices=("last", "first")
    )
    horizon_days: int = option(365, "death within this number of days after the index discharge is the positive class")
    death_date: str = option(
        "any",
        "date of death: dod in patients only (dod), also the in-hospital death in admissions if dod is blank (any), or "
        "in-hospital deaths only (hospital), for exports without dod; deaths after discharge then count as alive",
        choices=("any", "dod", "hospital"),
    )
    reversed_visits: str = option("keep", "visits with admittime after dischtime", choices=("keep", "drop"))
    overlapping_visits: str = option(
        "keep", "visits that begin before the end of an earlier visit of the patient", choices=("keep", "drop")
    )

    # Laboratory results and vital signs
    event_sources: tuple[str, ...] = option(("labevents", "chartevents"), "measurement tables to read")
    event_window: str = option(
        "visits",
        "measurements to keep: from 24 h before the admission to the discharge of each remaining visit (visits), or "
        "all measurements up to the prediction time (history); later ones, by charttime or storetime, are never used",
        choices=("visits", "history"),
    )
    bin_hours: float = option(0.0, "average each item in bins of this many hours (0: no binning)")
    outlier_ranges: bool = option(True, "discard physiologically impossible values (outlier limits of MIMIC-Extract)")
    n_shards: int = option(1, "number of parts in which measurements are prepared, split by ranges of patients")

    # Codes
    rollup: str = option(
        "none",
        "ICD codes as recorded, or truncated to their category (3 characters; ICD-9 procedures: 2, E codes: 4)",
        choices=("none", "category"),
    )
    icd_versions: str = option("both", "ICD versions of the codes to include", choices=("both", "9", "10"))

    # Notes
    notes: tuple[str, ...] = option(("discharge",), "note tables to read: discharge, radiology")
    leak_guard: bool = option(
        True,
        "remove what reveals the outcome: sections of notes on discharge disposition and condition, and sentences and "
        "ICD codes about death, hospice, palliative or comfort care, or do-not-resuscitate orders",
    )
    summary_time: str = option(
        "discharge",
        "when a discharge summary becomes available: at the discharge of its visit, as its codes do, if it was signed "
        "within 30 days (discharge), or when it was signed, often days later (storetime)",
        choices=("discharge", "storetime"),
    )
    note_sections: tuple[str, ...] = option((), "sections of discharge summaries to keep, by heading (empty: all)")
    text_encoder: str = option(
        "counts",
        "how notes become vectors. counts: hashed term counts, from which training fits TF-IDF and SVD; auto: minilm "
        f"if it is installed, otherwise hashing; {HELP}; the ids of precomputed vectors are note_id",
    )
    note_features: int = option(2048, "number of hashed terms for text_encoder=counts")
    note_pieces: int = option(8, "maximum number of 180-word chunks per note, evenly spaced (0: all); not for counts")
    store_text: bool = option(False, "also write the cleaned note text to samples.parquet (column note_text)")

    def validate(self) -> None:
        """Raise a DataError with all options that are out of range."""
        faults = FaultCollector()

        def require(name: str, ok: bool, expected: str) -> None:
            if not ok:
                faults.add(Fault(file="options", column=name, expected=expected, found=str(getattr(self, name))))

        minima = {"min_visits": 1, "horizon_days": 1, "n_shards": 1, "note_features": 1}
        for name, minimum in (minima | {"min_age": 0, "bin_hours": 0, "note_pieces": 0}).items():
            require(name, getattr(self, name) >= minimum, f"at least {minimum}")
        for name, known in (("event_sources", ("labevents", "chartevents")), ("notes", ("discharge", "radiology"))):
            chosen = set(getattr(self, name))
            require(name, bool(chosen) and chosen <= set(known), f"{known[0]}, {known[1]} or both")
        unknown = sorted({s.lower() for s in self.note_sections} - set(HEADINGS))
        require("note_sections", not unknown, f"headings of notes: {', '.join(HEADINGS)}")
        faults.raise_if_any()


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


def within(raw: Path, path: Path) -> str:
    """Path relative to the export, for error messages and the manifest."""
    return path.relative_to(raw).as_posix()
