"""Declarations of the ADNI tables in tables.json: file names, columns and code lists (docs/raw-formats.md).

Exports of 2023 and earlier, 2024 and 2025 differ in file names, case, column order and columns; one declaration covers
all of them. `Export.table` returns cleaned values: codes as the index of their level, numbers as floats, and null for
blank, −4 and −1. None of these columns has −1 as a value; outside ADNI1 it is not an official missing code.
"""

import re
from dataclasses import dataclass
from typing import Literal

from mrpipe.constants import constants
from mrpipe.errors import Fault
from mrpipe.raw import Column

PROVIDER = "https://ida.loni.usc.edu (ADNI, Download > Study Data / Tabular Data)"
CLASSES = ("CN", "MCI", "Dementia")
PTID_PATTERN = r"^\d{3}_S_\d{4,5}$"
QC_RID = 999999

Kind = Literal["number", "code", "codes", "date", "year", "text", "assay"]
Codes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A raw column to read.

    Attributes:
        kind: number; code (one of `codes`); codes (several, separated by `|` or `:`); date; year; text; assay (number,
            `>1700`, `<80`, `<LLOQ` or `<LOD`).
        codes: pairs of code and level; the cleaned value is the position of the level.
        positive: 0 is missing as well, because a measurement must be positive.
    """

    name: str
    kind: Kind = "text"
    codes: Codes = ()
    aliases: tuple[str, ...] = ()
    required: bool = True
    positive: bool = False

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(level for _, level in self.codes)

    def column(self) -> Column:
        return Column(name=self.name, aliases=self.aliases, required=self.required)


@dataclass(frozen=True, kw_only=True)
class LoniTable:
    """A LONI table.

    Attributes:
        name: canonical name.
        stems: names of the same table in file names, as case-insensitive regular expressions, newest name first;
            default: `name`. A group `version` in them is a date that takes precedence over the date of the download.
        older: names of other assays or versions, preferred first; read only if the table itself is absent.
        fields: columns to read besides the keys.
        menu: menu path on the LONI website.
        merged_in: tables that have some of its fields as well, and are read for them if the table is absent.
    """

    name: str
    fields: tuple[Field, ...]
    menu: str
    stems: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    merged_in: tuple[str, ...] = ()

    def field(self, name: str) -> Field:
        return next(f for f in self.fields if f.name == name)

    def absent(self, found: str = "no such file") -> Fault:
        others = [stem for s in self.stems + self.older if (stem := re.split(r"[(\\]", s)[0]) != self.name]
        expected = f"the table {self.name}" + (f" (also named {', '.join(others)})" if others else "")
        fix = f"Download it from {PROVIDER}: {self.menu}."
        return Fault(file=f"{self.name}_ddMonYYYY.csv", expected=expected, found=found, fix=fix)


_KEYS = {
    "RID": ("SUBJID",),
    "PTID": ("SUBJECT_ID",),
    "PHASE": ("COLPROT", "PROTOCOLID"),
    **{"VISCODE": (), "VISCODE2": (), "DATE": ("VISDATE", "EXAMDATE"), "UPDATE_STAMP": ()},
}
# Key and bookkeeping columns of every table. Only RID or PTID is required. R writes NA for blanks.
KEYS = tuple(Column(name=n, aliases=a, required=False, null_values=("", "NA")) for n, a in _KEYS.items())


_DECLARED = constants(__file__, "tables.json")
_TABLES = {
    name: LoniTable(**table | {"fields": tuple(Field(**field) for field in table["fields"])})
    for name, table in _DECLARED["tables"].items()
}
DXSUM, MEDHIST, NEUROEXM, PTDEMOG = (_TABLES[n] for n in ("DXSUM", "MEDHIST", "NEUROEXM", "PTDEMOG"))
RECCMEDS, VITALS, APOERES, ELECSYS = (_TABLES[n] for n in ("RECCMEDS", "VITALS", "APOERES", "ELECSYS"))
BATEMAN, NFL, ISOPROSTANE, ADNIMERGE = (_TABLES[n] for n in ("BATEMAN", "NFL", "ISOPROSTANE", "ADNIMERGE"))
# One row per condition; the codes of its category are the numbers of the items of MEDHIST.
INITHEALTH = _TABLES["INITHEALTH"]
# Demographics of the R package ADNIMERGE2, whose tables have decoded values.
ADSL = _TABLES["ADSL"]
# Read only to map RID to PTID and to date visits.
ROSTER, REGISTRY = _TABLES["ROSTER"], _TABLES["REGISTRY"]

RACES = PTDEMOG.field("PTRACCAT").codes
HISTORY = tuple(f.name for f in MEDHIST.fields if f.kind == "code")
SIGNS = tuple(f.name for f in NEUROEXM.fields if "present" in f.levels)
FUNCTIONS = tuple(f.name for f in NEUROEXM.fields if "abnormal" in f.levels)
# Quantity → (its yes/no item, whether "no" means 0). Dose and duration are then 0; time since the end is undefined.
QUANTITIES: dict[str, tuple[str, bool]] = _DECLARED["quantities"]
# Text → code of a field, of ADNIMERGE and of ADSL of the R package ADNIMERGE2.
DECODED = {n: {t: str(i) for texts in x for i, t in enumerate(texts, 1)} for n, x in _DECLARED["decoded"].items()}

CLINICAL = (PTDEMOG, MEDHIST, NEUROEXM, RECCMEDS, VITALS)
BIOSPECIMEN = (APOERES, ELECSYS)
# Tables used to collect participants and visits. Optional tables are read only if their option is set.
PEOPLE = (DXSUM, *CLINICAL, *BIOSPECIMEN, ADNIMERGE, ROSTER, REGISTRY, INITHEALTH)
