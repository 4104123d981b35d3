"""Declarations of the ADNI tables: file names, columns and code lists (docs/raw-formats.md).

Exports of 2023 and earlier, 2024 and 2025 differ in file names, case, column order and columns; one declaration covers
all of them. `Export.table` returns cleaned values: codes as the index of their level, numbers as floats, and null for
blank, −4 and −1. None of these columns has −1 as a value; outside ADNI1 it is not an official missing code.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from mrpipe.errors import Fault
from mrpipe.raw import Column

PROVIDER = "https://ida.loni.usc.edu (ADNI, Download > Study Data / Tabular Data)"
CLASSES = ("CN", "MCI", "Dementia")
PTID_PATTERN = r"^\d{3}_S_\d{4,5}$"
QC_RID = 999999

Kind = Literal["number", "code", "codes", "date", "year", "text", "assay"]
Codes = tuple[tuple[str, str], ...]

YES_NO: Codes = (("0", "no"), ("1", "yes"))
PRESENT: Codes = (("1", "absent"), ("2", "present"))
ABNORMAL: Codes = (("1", "normal"), ("2", "abnormal"))


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
        return Fault(
            file=f"{self.name}_ddMonYYYY.csv",
            expected=f"the table {self.name}" + (f" (also named {', '.join(others)})" if others else ""),
            found=found,
            fix=f"Download it from {PROVIDER}: {self.menu}.",
        )


_KEYS = {
    "RID": ("SUBJID",),
    "PTID": ("SUBJECT_ID",),
    "PHASE": ("COLPROT", "PROTOCOLID"),
    **{"VISCODE": (), "VISCODE2": (), "DATE": ("VISDATE", "EXAMDATE"), "UPDATE_STAMP": ()},
}
# Key and bookkeeping columns of every table. Only RID or PTID is required. R writes NA for blanks.
KEYS = tuple(Column(name=n, aliases=a, required=False, null_values=("", "NA")) for n, a in _KEYS.items())


def _fields(names: str, kind: Kind = "text", **settings: Any) -> tuple[Field, ...]:
    return tuple(Field(name=n, kind=kind, **settings) for n in names.split())


def _codes(names: str, codes: Codes, *aliases: str) -> tuple[Field, ...]:
    return _fields(names, "code", codes=codes, aliases=aliases)


def _numbered(*levels: str) -> Codes:
    return tuple((str(i), level) for i, level in enumerate(levels, start=1))


RACES = _numbered("american_indian", "asian", "pacific_islander", "black", "white", "more_than_one", "unknown")
HISTORY = (
    "MHPSYCH MH2NEURL MH3HEAD MH4CARD MH5RESP MH6HEPAT MH7DERM MH8MUSCL MH9ENDO MH10GAST MH11HEMA MH12RENA MH13ALLE "
    "MH14ALCH MH15DRUG MH16SMOK MH17MALI MH18SURG MH19OTHR"
)
# Quantity → (its yes/no item, whether "no" means 0). Dose and duration are then 0; time since the end is undefined.
QUANTITIES = {
    "MH14AALCH": ("MH14ALCH", True),
    "MH14BALCH": ("MH14ALCH", True),
    "MH14CALCH": ("MH14ALCH", False),
    "MH15ADRUG": ("MH15DRUG", True),
    "MH15BDRUG": ("MH15DRUG", False),
    "MH16ASMOK": ("MH16SMOK", True),
    "MH16BSMOK": ("MH16SMOK", True),
    "MH16CSMOK": ("MH16SMOK", False),
}
_TEXTS = {
    "PTGENDER": ("Male|Female",),
    "PTMARRY": ("Married|Widowed|Divorced|Never married|Unknown|Domestic Partnership",),
    "PTETHCAT": ("Hisp/Latino|Not Hisp/Latino|Unknown", "Hispanic or Latino|Not Hispanic or Latino"),
    "PTRACCAT": (
        "Am Indian/Alaskan|Asian|Hawaiian/Other PI|Black|White|More than one|Unknown",
        "American Indian or Alaskan Native|Asian|Native Hawaiian or Other Pacific Islander|Black or African American|"
        "White|More than one race|Unknown",
    ),
}
# Text → code of a field, of ADNIMERGE and of ADSL of the R package ADNIMERGE2.
DECODED = {n: {t: str(i) for texts in x for i, t in enumerate(texts.split("|"), start=1)} for n, x in _TEXTS.items()}
_MARITAL = "married widowed divorced never_married unknown partner"
_HOMES = "house condominium apartment mobile_home retirement_community assisted_living nursing_facility other unknown"
SIGNS = "NXVISUAL NXAUDITO NXTREMOR"
FUNCTIONS = "NXCONSCI NXNERVE NXMOTOR NXFINGER NXHEEL NXSENSOR NXTENDON NXPLANTA NXGAIT NXOTHER NXABNORM"

DXSUM = LoniTable(
    name="DXSUM",
    stems=("DXSUM", "DXSUM_PDXCONV", "DXSUM_PDXCONV_ADNIALL"),
    fields=_fields("DIAGNOSIS DXCHANGE DXCURREN", required=False),
    menu="Assessments > Diagnosis > Diagnostic Summary",
)
MEDHIST = LoniTable(
    name="MEDHIST",
    fields=(*_codes(HISTORY, YES_NO), *_fields(" ".join(QUANTITIES), "number")),
    menu="Medical History > Medical History (ADNI1, GO, 2)",
)
# One row per condition; the codes of its category are the numbers of the items of MEDHIST.
INITHEALTH = LoniTable(
    name="INITHEALTH",
    fields=(
        *_codes("IHSYMPTOM", tuple((str(i), item) for i, item in enumerate(HISTORY.split(), start=1))),
        Field(name="IHSURG", kind="code", codes=YES_NO, required=False),
    ),
    menu="Medical History > Initial Health Assessment (ADNI3, 4)",
)
NEUROEXM = LoniTable(
    name="NEUROEXM",
    fields=(*_codes(SIGNS, PRESENT), *_codes(FUNCTIONS, ABNORMAL)),
    menu="Medical History > Neurological Exam",
)
PTDEMOG = LoniTable(
    name="PTDEMOG",
    fields=(
        *_codes("PTGENDER", _numbered("male", "female"), "SEX"),
        Field(name="PTDOB", kind="text", required=False),
        Field(name="PTDOBMM", kind="number", required=False),
        Field(name="PTDOBYY", kind="year", required=False),
        *_codes("PTHAND", _numbered("right", "left")),
        *_codes("PTMARRY", _numbered(*_MARITAL.split()), "MARISTAT"),
        Field(name="PTEDUCAT", kind="number", aliases=("EDUC",)),
        Field(name="AGE", kind="number", required=False, positive=True),
        *_codes("PTNOTRT", (*YES_NO, ("2", "not_applicable"))),
        *_codes("PTHOME", _numbered(*_HOMES.split())),
        *_codes("PTETHCAT", _numbered("hispanic", "not_hispanic", "unknown"), "ETHNIC"),
        Field(name="PTRACCAT", kind="codes", codes=RACES, aliases=("RACE",)),
    ),
    menu="Subject Characteristics > Subject Demographics",
    merged_in=("ADNIMERGE", "ADSL"),
)
RECCMEDS = LoniTable(
    name="RECCMEDS",
    fields=(
        Field(name="CMMED", kind="text"),
        Field(name="CMBGN", kind="year", required=False),
        Field(name="CMCONT", kind="code", codes=YES_NO, required=False),
        Field(name="CMEND", kind="year", required=False),
    ),
    menu="Medical History > Concurrent Medications Log",
)
VITALS = LoniTable(
    name="VITALS",
    fields=(
        *_fields("VSWEIGHT VSHEIGHT VSBPSYS VSBPDIA VSPULSE VSRESP VSTEMP", "number", positive=True),
        *_codes("VSWTUNIT", _numbered("lb", "kg")),
        *_codes("VSHTUNIT", _numbered("in", "cm")),
        *_codes("VSTMPUNT", _numbered("F", "C")),
    ),
    menu="Medical History > Vital Signs",
)
APOERES = LoniTable(
    name="APOERES",
    fields=_fields("GENOTYPE APGEN1 APGEN2", required=False) + _fields("APOE4", "number", required=False),
    menu="Genetic > Genotype Results > ApoE Genotyping Results",
    merged_in=("ADNIMERGE",),
)
ELECSYS = LoniTable(
    name="UPENNBIOMK_ROCHE_ELECSYS",
    older=tuple(rf"{name}(?:_\d\d_\d\d_\d\d)?" for name in ("UPENNBIOMK12(?:_2020)?", "UPENNBIOMK10", "UPENNBIOMK9")),
    fields=(
        Field(name="ABETA40", kind="assay", positive=True, required=False),
        Field(name="ABETA42", kind="assay", positive=True, aliases=("ABETA",)),
        *_fields("TAU PTAU", "assay", positive=True),
        Field(name="COMMENT", required=False),
    ),
    menu="Biospecimen > Biospecimen Results > UPENN CSF Biomarkers Roche Elecsys",
)
BATEMAN = LoniTable(
    name="batemanlab",
    stems=(r"batemanlab(?:_(?P<version>\d{8}))?",),
    older=(r"batemanlab_ADNI_\w*?",),
    fields=(
        Field(name="ABETA_4240_STANDARDIZED", kind="assay", aliases=("RATIO_ABETA42_40_BY_ISTD_TOUSE",)),
        *_fields("QC_STATUS INJECTION", required=False),
    ),
    menu="Biospecimen > Biospecimen Results > Bateman Lab ADNI Plasma Abeta42/Abeta40",
)
NFL = LoniTable(
    name="ADNI_BLENNOWPLASMANFL",
    stems=("BLENNOWPLASMANFLLONG",),
    older=("BLENNOWPLASMANFL",),
    fields=(Field(name="PLASMA_NFL", kind="assay"),),
    menu="Biospecimen > Biospecimen Results > Blennow Lab ADNI1 Plasma neurofilament light (NFL)",
)
ISOPROSTANE = LoniTable(
    name="ISOPROSTANE",
    fields=(Field(name="ISO8PGF2A", kind="assay"), Field(name="ISO812IPF2A", kind="assay", required=False)),
    menu="Biospecimen > Biospecimen Results > Isoprostane (urine)",
)
ADNIMERGE = LoniTable(
    name="ADNIMERGE",
    fields=(Field(name="DX", required=False),),
    menu="Study Info > Data & Database > Key ADNI tables merged into one table",
)
# Demographics of the R package ADNIMERGE2, whose tables have decoded values.
ADSL = LoniTable(name="ADSL", fields=(), menu="R package ADNIMERGE2")
# Read only to map RID to PTID and to date visits.
ROSTER = LoniTable(name="ROSTER", fields=(), menu="Enrollment > Roster")
REGISTRY = LoniTable(name="REGISTRY", fields=(), menu="Enrollment > Registry")

CLINICAL = (PTDEMOG, MEDHIST, NEUROEXM, RECCMEDS, VITALS)
BIOSPECIMEN = (APOERES, ELECSYS)
# Tables used to collect participants and visits. Optional tables are read only if their option is set.
PEOPLE = (DXSUM, *CLINICAL, *BIOSPECIMEN, ADNIMERGE, ROSTER, REGISTRY, INITHEALTH)
