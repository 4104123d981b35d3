"""The same table in another form gives the same store, apart from the name of its file in the dictionary."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyreadstat
import pytest

from mrpipe.store.reader import Store
from tests.datasets.tables.tables_toy import IDS, built, config, csv, notes_of, people, write, write_workbook

LABS = pl.DataFrame(
    {
        "id": IDS,
        "crp": [None if k % 7 == 0 else k / 4 for k in range(len(IDS))],
        "grade": [k % 3 for k in range(len(IDS))],
        "ward": [["Zürich", "Genève", "Bern"][k % 3] for k in range(len(IDS))],
    }
)
SPEC = config(modalities={"a": {"file": "labs.csv", "kinds": {"grade": [0, 1, 2]}}})


def _european(path: Path) -> None:
    text = LABS.with_columns(pl.col("crp").cast(pl.String).str.replace(".", ",", literal=True))
    path.write_text(text.write_csv(separator=";"), encoding="utf-16")


def _zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("export/labs.csv", LABS.write_csv())


FORMS: dict[str, Callable[[Path], object]] = {
    "labs.tsv": lambda p: LABS.write_csv(p, separator="\t"),
    "european.csv": _european,
    "labs.csv.gz": lambda p: LABS.write_csv(p, compression="gzip"),
    "labs.zip": _zipped,
    "labs.xlsx": lambda p: write_workbook(p, LABS),
    "labs.parquet": LABS.write_parquet,
    "labs.feather": LABS.write_ipc,
    "labs.sav": lambda p: pyreadstat.write_sav(LABS.to_pandas(), str(p)),
    "labs.dta": lambda p: pyreadstat.write_dta(LABS.to_pandas(), str(p)),
    "labs.xpt": lambda p: pyreadstat.write_xport(LABS.to_pandas(), str(p)),
}


def parts(store: Store) -> dict[str, str]:
    """File of the store → its SHA-256, without the dictionary, which names the source files."""
    return {f["file"]: f["sha256"] for f in store.manifest.files if f["file"] != "dictionary.parquet"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return built(tmp_path_factory.mktemp("csv"), {"people.csv": people(), "labs.csv": LABS.write_csv()}, SPEC)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_store(tmp_path: Path, name: str, expected: Store) -> None:
    spec = SPEC | {"modalities": {"a": SPEC["modalities"]["a"] | {"file": name}}}
    FORMS[name](write(tmp_path / "raw", {}, spec) / name)
    store = built(tmp_path, {"people.csv": people()}, spec)
    assert parts(store) == parts(expected)
    dictionary, other = (s.dictionary.drop("source_file") for s in (store, expected))
    assert dictionary.equals(other)


def test_the_time_of_a_wide_table_grows_linearly(tmp_path: Path) -> None:
    def seconds(n: int) -> float:
        rows: list[list[object]] = [[i, *[k * j % 7 for j in range(n)]] for k, i in enumerate(IDS)]
        files = {"a.csv": csv(",".join(["id", *(f"gene{j}" for j in range(n))]), rows), "people.csv": people()}
        start = time.process_time()
        notes_of(tmp_path / str(n), files, config())
        return time.process_time() - start

    seconds(10)  # imports
    assert seconds(2500) < 10 * seconds(500)
