"""Reader options of MIMIC-IV: every choice that the paper leaves open has a name here, with a recommended default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrpipe.errors import Fault, FaultCollector
from mrpipe.options import option

RELEASES = ("2.0", "2.1", "2.2", "3.0", "3.1")


@dataclass(frozen=True, kw_only=True)
class MimicOptions:
    """How a MIMIC-IV export becomes a cohort and its modalities."""

    # Export
    release: str = option("auto", "release of the export; auto tells it from the tables", choices=("auto", *RELEASES))
    checksums: str = option(
        "verify",
        "SHA256SUMS.txt of the provider, where it lies in the export: a file that differs is a fault, a note, or not "
        "looked at",
        choices=("verify", "note", "skip"),
    )
    rebuilt: tuple[str, ...] = option(
        (), 'files that are known to differ from SHA256SUMS.txt, as it names them: ["icu/chartevents.csv.gz"]'
    )
    integrity: str = option(
        "full",
        "full inflates each compressed file without a checked sum to its end (CRC) before the long work starts; quick "
        "reads only headers and first rows",
        choices=("full", "quick"),
    )

    # Cohort
    icd9: str = option(
        "any",
        "which visits count: with any ICD-9 diagnosis or procedure, with ICD-9 ones only, or all visits (off)",
        choices=("any", "all", "off"),
    )
    terminal_visits: str = option(
        "drop",
        "visits that end in death (flag, death time, or date of death not after discharge)",
        choices=("drop", "keep"),
    )
    min_visits: int = option(2, "smallest number of visits of a patient (the paper: more than one)")
    min_visits_stage: str = option(
        "after", "count visits before or after dropping terminal and non-ICD-9 ones", choices=("before", "after")
    )
    require_icu: str = option(
        "patient",
        "ICU stay required: in any remaining visit of the patient, in the index visit, in every visit (others are "
        "dropped), or not",
        choices=("patient", "index", "every", "no"),
    )
    min_age: int = option(18, "smallest age at the index admission in years (0: no limit)")
    index_visit: str = option("last", "the visit at whose discharge is predicted", choices=("last", "first"))
    horizon_days: int = option(365, "death within so many days of the index discharge is the positive class")
    death_date: str = option(
        "any",
        "dod of patients.csv only, or, where it is blank, the in-hospital death that admissions.csv records",
        choices=("any", "dod"),
    )
    reversed_visits: str = option("keep", "visits that are admitted after their discharge", choices=("keep", "drop"))
    overlapping_visits: str = option(
        "keep", "visits that begin before an earlier one of the patient has ended", choices=("keep", "drop")
    )

    # Labs and vitals
    event_sources: tuple[str, ...] = option(("labevents", "chartevents"), "tables of measurements that are read")
    event_window: str = option(
        "visits",
        "measurements kept: from 24 h before a remaining visit's admission to its discharge, or all up to the "
        "prediction time (history)",
        choices=("visits", "history"),
    )
    bin_hours: float = option(0.0, "mean of an item within bins of so many hours (0: every measurement is kept)")
    outlier_ranges: bool = option(True, "set values outside the documented possible range of their item aside")
    n_shards: int = option(1, "measurements are prepared in so many parts, by a hash of the patient")

    # Codes
    rollup: str = option(
        "none", "codes as they stand, or their category (3-digit roll-up)", choices=("none", "category")
    )
    icd_versions: str = option("both", "code versions that enter the sequence", choices=("both", "9", "10"))

    # Notes
    notes: tuple[str, ...] = option(("discharge",), "notes that are read: discharge, radiology")
    leak_guard: bool = option(
        True,
        "leave out what tells the outcome: notes after the prediction time or of visits that are not in the cohort, "
        "sections of disposition and condition at discharge, sentences about death, hospice or comfort care",
    )
    note_sections: tuple[str, ...] = option((), "only these sections of discharge summaries (empty: all)")
    text_encoder: str = option(
        "counts", "counts (hashed terms; TF-IDF and SVD are fitted on training rows), minilm, hashing or hashing-<dim>"
    )
    note_features: int = option(2048, "hashed terms of text_encoder=counts")
    note_pieces: int = option(8, "minilm: so many pieces of 180 words of a note are encoded, evenly spaced (0: all)")
    store_text: bool = option(False, "also write the cleaned text of the notes into samples.parquet (note_text)")

    def validate(self) -> None:
        """Raise one DataError with every value out of its range."""
        faults = FaultCollector()

        def require(name: str, ok: bool, expected: str) -> None:
            if not ok:
                faults.add(Fault(file="options", column=name, expected=expected, found=str(getattr(self, name))))

        require("min_visits", self.min_visits >= 1, "at least 1")
        require("horizon_days", self.horizon_days >= 1, "at least 1")
        require("min_age", self.min_age >= 0, "0 or more")
        require("n_shards", self.n_shards >= 1, "at least 1")
        require("bin_hours", self.bin_hours >= 0, "0 or more")
        require("note_features", self.note_features >= 1, "at least 1")
        require("note_pieces", self.note_pieces >= 0, "0 or more")
        known = {"labevents", "chartevents"}
        require(
            "event_sources",
            bool(self.event_sources) and set(self.event_sources) <= known,
            "some of labevents, chartevents",
        )
        require(
            "notes", bool(self.notes) and set(self.notes) <= {"discharge", "radiology"}, "some of discharge, radiology"
        )
        faults.raise_if_any()


def within(raw: Path, path: Path) -> str:
    """Path relative to the export, for errors and inventories."""
    return path.relative_to(raw).as_posix()
