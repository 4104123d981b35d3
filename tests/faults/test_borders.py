"""Damage at borders that are easily overlooked: tables read on demand, files of a build, budgets of HDF5."""

import io
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from mrpipe import budget
from mrpipe.cli.main import main
from mrpipe.datasets.arrays import opened
from mrpipe.errors import DataError, FaultCollector, StorageError, reason
from mrpipe.experiment.truth import NAME, read_best
from mrpipe.forms import recognise
from mrpipe.reading import reading
from mrpipe.stages.reads import require_unchanged
from mrpipe.store.layout import WorkLayout
from mrpipe.store.publish import hidden_folder
from mrpipe.store.reader import open_store

STORE = Path(__file__).parents[1] / "data" / "stores" / "format-2"


@pytest.mark.parametrize("name", ["attrition", "dictionary"])
def test_tables_that_a_store_reads_on_demand(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(STORE, tmp_path / "store")
    path = tmp_path / "store" / f"{name}.parquet"
    path.write_bytes(b"\0" * path.stat().st_size)
    store = open_store(tmp_path / "store")
    with pytest.raises(DataError, match=rf"{name}\.parquet: expected a complete Parquet file"):
        getattr(store, name)
    if name == "attrition":
        assert main(["show", str(tmp_path / "store")]) == 3
        assert "attrition.parquet" in capsys.readouterr().err


def test_damaged_predictions_of_a_simulator(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=NAME):
        read_best(tmp_path, "mood")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_list_of_inputs(content: str, tmp_path: Path) -> None:
    paths = WorkLayout(tmp_path)
    paths.inputs.write_text(content)
    with pytest.raises(DataError, match=r"inputs\.json: expected SHA-256 not recorded"):
        require_unchanged(tmp_path)
    paths.record(paths.inputs)
    with pytest.raises(DataError, match=r"inputs\.json: expected a JSON object"):
        require_unchanged(tmp_path)


def test_a_refused_dataset_does_not_use_up_the_budget_of_the_others(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("huge", shape=(10**12,), dtype="f4", chunks=(1000,))
        file["small"] = np.arange(3)
    with opened(tmp_path / "a.h5", "a.h5", "") as hdf5:
        with pytest.raises(DataError, match="only 0 bytes of data"):
            hdf5.check(hdf5.get(hdf5.root, "huge"))
        assert hdf5.read(hdf5.get(hdf5.root, "small")).tolist() == [0, 1, 2]


def test_a_build_first_restores_the_store_that_a_killed_seal_moved_aside(tmp_path: Path) -> None:
    """Otherwise it would not notice that it replaces a store of other options."""
    old = tmp_path / ".store.s0123abcd" / "old"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    with hidden_folder(tmp_path / "store", "b"):
        assert (tmp_path / "store" / "manifest.json").is_file()
    assert not old.exists()


def test_messages_name_the_file_as_the_user_knows_it_without_memory_addresses(tmp_path: Path) -> None:
    faults = FaultCollector()
    with faults.collecting(), reading("scan 1", "an image", column="data", path=tmp_path):
        raise ValueError(f"{tmp_path} is no image <_io.BytesIO object at 0x7f00>\nsecond line")
    assert [str(f).split(". ")[0] for f in faults.faults] == [
        "scan 1, column 'data': expected an image; found unreadable data (scan 1 is no image)"
    ]
    assert reason(ValueError()) == "ValueError"


def test_collected_errors_of_the_disk_alone_remain_errors_of_the_disk() -> None:
    refused, damaged = FaultCollector(), FaultCollector()
    for faults, errors in (
        (refused, [PermissionError(13, "no")]),
        (damaged, [PermissionError(13, "no"), ValueError()]),
    ):
        for error in errors:
            with faults.collecting(), reading("a.csv", "a table"):
                raise error
    with pytest.raises(StorageError):
        refused.raise_if_any()
    with pytest.raises(DataError) as caught:
        damaged.raise_if_any()
    assert caught.value.exit_code == DataError.exit_code


def test_a_child_process_does_not_quote_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(job: object) -> bytes:
        pl.DataFrame({"a": ["Jane Doe"]}).select(pl.col("a").cast(pl.Int64))
        return b""

    fault = {"file": "a.xlsx", "expected": "a table", "found": "", "fix": ""}
    monkeypatch.setattr(budget.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([budget.FLOOR, fault, None])))
    assert budget.child(work) == DataError.exit_code
    (said,) = json.loads(capsys.readouterr().out)
    assert said["found"] == "unreadable data (InvalidOperationError)"


def test_a_pipe_in_an_export_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert recognise(tmp_path / "pipe") is None
