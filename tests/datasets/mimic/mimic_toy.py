"""A hand-made MIMIC-IV export in which tests plant single errors, and a reference implementation of the labels."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path

import mrpipe
from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.tables import EVENTS, NOTES, PLACES, TABLES
from mrpipe.stages.build import build
from mrpipe.store.reader import Store

HEADERS = {
    **{n: [c.name for c in cs] for n, cs in TABLES.items()},
    **{PLACES[n]: [c.name for c in cs] for n, cs in (EVENTS | NOTES).items()},
}
SUBJECT = 10_000_001


def write_table(raw: Path, name: str, rows: Iterable[Mapping[str, object]], *, header=None, gz: bool = False) -> Path:
    """Write one table from dicts; missing keys become blank fields."""
    header = header or HEADERS[name]
    path = raw / f"{name}.csv{'.gz' if gz else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") if gz else path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, header, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table as dicts of strings with the csv module only."""
    path = path if path.exists() else path.with_name(path.name + ".gz")
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as handle:
        return list(csv.DictReader(handle))


class Toy:
    """Tables of patients with two ICU visits each; tests modify them before `write`."""

    def __init__(self, n: int = 3):
        self.patients: list[dict] = []
        self.admissions: list[dict] = []
        self.diagnoses: list[dict] = []
        self.procedures: list[dict] = []
        self.stays: list[dict] = []
        self.labs: list[dict] = []
        self.charts: list[dict] = []
        self.discharge: list[dict] = []
        self.radiology: list[dict] = []
        for i in range(n):
            self.patient(SUBJECT + i)
            self.visit(SUBJECT + i, 1, "2150-01-10 08:00:00", "2150-01-15 12:00:00")
            self.visit(SUBJECT + i, 2, "2150-06-01 08:00:00", "2150-06-09 12:00:00")

    def patient(self, subject: int, **more) -> dict:
        self.patients.append(
            {
                "subject_id": subject,
                "gender": "F",
                "anchor_age": 60,
                "anchor_year": 2150,
                "anchor_year_group": "2011 - 2013",
                **more,
            }
        )
        return self.patients[-1]

    def visit(
        self,
        subject: int,
        number: int,
        admit: str,
        discharge: str,
        *,
        icd: str = "4019",
        version: int = 9,
        icu: bool = True,
        **more,
    ) -> dict:
        hadm = hadm_of(subject, number)
        row = {
            "subject_id": subject,
            "hadm_id": hadm,
            "admittime": admit,
            "dischtime": discharge,
            "hospital_expire_flag": 0,
            **more,
        }
        self.admissions.append(row)
        self.diagnoses.append(
            {"subject_id": subject, "hadm_id": hadm, "seq_num": 1, "icd_code": icd, "icd_version": version}
        )
        if icu:
            self.stays.append({"subject_id": subject, "hadm_id": hadm, "stay_id": hadm + 10_000_000, "intime": admit})
        self.lab(subject, number, admit)
        return row

    def lab(self, subject: int, number: int | None, time: str, item: int = 50912, value: object = 1.0, **more) -> None:
        hadm = "" if number is None else hadm_of(subject, number)
        self.labs.append(
            {
                "subject_id": subject,
                "hadm_id": hadm,
                "itemid": item,
                "charttime": time,
                "value": value,
                "valuenum": value,
                "valueuom": "mg/dL",
                **more,
            }
        )

    def chart(self, subject: int, number: int, time: str, item: int, value: object, unit: str, **more) -> None:
        self.charts.append(
            {
                "subject_id": subject,
                "hadm_id": hadm_of(subject, number),
                "itemid": item,
                "charttime": time,
                "value": value,
                "valuenum": value,
                "valueuom": unit,
                **more,
            }
        )

    def note(self, subject: int, number: int | None, time: str, text: str, *, kind: str = "discharge") -> None:
        rows = getattr(self, kind)
        rows.append(
            {
                "note_id": f"{subject}-{kind[:1]}-{len(rows)}",
                "subject_id": subject,
                "note_seq": len(rows),
                "hadm_id": "" if number is None else hadm_of(subject, number),
                "charttime": time,
                "storetime": time,
                "text": text,
            }
        )

    def write(self, raw: Path, *, gz: bool = False) -> Path:
        charts = self.charts or [
            {
                "subject_id": SUBJECT,
                "hadm_id": hadm_of(SUBJECT, 1),
                "itemid": 220045,
                "charttime": "2150-01-11 00:00:00",
                "value": 80,
                "valuenum": 80,
                "valueuom": "bpm",
            }
        ]
        procedures = self.procedures or [
            {"subject_id": SUBJECT, "hadm_id": hadm_of(SUBJECT, 1), "seq_num": 1, "icd_code": "0331", "icd_version": 9}
        ]
        # Dates of death must occur in the table; this patient has no admission.
        died = {**self.patients[0], "subject_id": 19_000_000, "dod": "2151-01-01"}
        tables = {
            "hosp/patients": [*self.patients, died],
            "hosp/admissions": self.admissions,
            "hosp/diagnoses_icd": self.diagnoses,
            "hosp/procedures_icd": procedures,
            "icu/icustays": self.stays,
            "hosp/labevents": self.labs,
            "icu/chartevents": charts,
            "hosp/d_labitems": [{"itemid": 50912, "label": "Creatinine", "fluid": "Blood"}],
            "icu/d_items": [{"itemid": 220045, "label": "Heart Rate"}],
        }
        for name in ("discharge", "radiology"):
            if rows := getattr(self, name):
                tables[f"note/{name}"] = rows
        for name, rows in tables.items():
            write_table(raw, name, rows, gz=gz)
        return raw


def hadm_of(subject: int, number: int) -> int:
    return 20_000_000 + (subject - SUBJECT) * 10 + number


def toy(tmp_path: Path, change=lambda toy: None) -> Path:
    """Write an export of 8 patients with one measurement each, after `change`."""
    made = Toy(8)
    made.labs = []
    for i in range(8):
        made.lab(SUBJECT + i, 1, "2150-01-11 08:00:00", value=1.0)
    change(made)
    return made.write(tmp_path / "raw")


def store_of(raw: Path, out: Path, **settings) -> Store:
    """Build a store of an export."""
    build(get_dataset("mimic"), raw, out, settings)
    return mrpipe.open_store(out)


def _time(text: str) -> dt.datetime:
    return dt.datetime.strptime(text, "%Y-%m-%d %H:%M:%S")


def reference_labels(raw: Path) -> dict[str, int]:
    """Label of each patient in the cohort under the default options, by loops over rows."""
    patients = {r["subject_id"]: r for r in read_rows(raw / "hosp/patients.csv")}
    nine = {
        r["hadm_id"]
        for t in ("diagnoses", "procedures")
        for r in read_rows(raw / f"hosp/{t}_icd.csv")
        if r["icd_version"] == "9"
    }
    icu = {r["hadm_id"] for r in read_rows(raw / "icu/icustays.csv")}
    by_patient: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(raw / "hosp/admissions.csv"):
        by_patient.setdefault(row["subject_id"], []).append(row)
    labels = {}
    for subject, rows in by_patient.items():
        dod = patients[subject]["dod"]
        death = dt.date.fromisoformat(dod) if dod else None
        if death is None:
            inside = [
                _time(r["deathtime"]).date() if r["deathtime"] else _time(r["dischtime"]).date()
                for r in rows
                if r["deathtime"] or r["hospital_expire_flag"] == "1"
            ]
            death = min(inside, default=None)
        kept = []
        for r in sorted(rows, key=lambda r: (_time(r["admittime"]), int(r["hadm_id"]))):
            discharge = _time(r["dischtime"]).date()
            if r["hospital_expire_flag"] == "1" or r["deathtime"] or (death and death <= discharge):
                continue
            if r["hadm_id"] in nine:
                kept.append(r)
        if len(kept) < 2 or not any(r["hadm_id"] in icu for r in kept):
            continue
        index = kept[-1]
        age = (
            int(patients[subject]["anchor_age"])
            + _time(index["admittime"]).year
            - int(patients[subject]["anchor_year"])
        )
        if age < 18:
            continue
        days = (death - _time(index["dischtime"]).date()).days if death else None
        labels[subject] = int(days is not None and days <= 365)
    return labels
