"""The command line: every verb explains itself; the exit code says whose fault it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.help import COMMANDS
from mrpipe.cli.main import command_names, main

STORE = Path(__file__).parents[1] / "data" / "stores" / "format-1"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_it_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 8
    assert COMMANDS[name][1].splitlines()[0] in text
    assert f"  mrpipe {name} " in text


def test_help_lists_every_command_and_version_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in command_names())
    assert {"train", "report", "run"} <= set(command_names())
    assert "Exit codes: 0 success, 2 usage error, 3 invalid input data." in text
    assert main([]) == 2
    assert capsys.readouterr().out == text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mrpipe {mrpipe.__version__}\n"


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "mrpipe: unknown command 'trian'. Did you mean 'train'?\n"


def test_show_verify_and_export_read_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(STORE), "--deep"]) == 0
    assert main(["show", str(STORE)]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    assert main(["export", str(STORE), "--out", str(tmp_path / "npz"), "--format", "npz"]) == 0
    with np.load(tmp_path / "npz" / "series.npz") as file:
        assert file["offsets"][-1] == len(file["x"]) == len(file["time"])
    assert main(["export", str(STORE), "--out", str(tmp_path), "--modalities", "table", "series", "genotype"]) == 0
    table = pl.read_csv(tmp_path / "table.csv")
    plain = pl.read_parquet(STORE / "modalities" / "table.parquet")
    assert table["sample_id"].to_list() == plain["sample_id"].to_list()
    assert set(pl.read_csv(tmp_path / "genotype.csv").drop("sample_id").to_numpy().ravel()) <= {0, 1, 2, 3}
    assert pl.read_csv(tmp_path / "series.csv").columns[:3] == ["sample_id", "step", "time"]


def test_mask_prints_what_it_hid_and_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mask", str(STORE), "--p", "0.5", "--seed", "3", "--out", str(tmp_path / "m.parquet")]) == 0
    printed = sum(int(line.split()[0]) for line in capsys.readouterr().out.splitlines())
    assert printed == pl.read_parquet(tmp_path / "m.parquet").height


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "nowhere"], 3, "manifest"),
        (["mask", str(STORE), "--p", "2", "--out", "x"], 2, "p must lie"),
        (["mask", str(STORE), "--mechanism", "magic", "--out", "x"], 2, "mnar_label"),
        (["mask", str(STORE), "--modalities", "mri", "--out", "x"], 2, "mri"),
        (["export", str(STORE), "--out", "x", "--modalities", "image"], 2, "npz"),
        (["check", "mosy", "--raw", "x"], 2, "mosi"),
        (["check", "mosi", "--raw", "x", "--set", "text_encoder"], 2, "key=value"),
        (["split", "mosi", "--store", str(STORE), "--scheme", "mine"], 2, "standard"),
        (["ingest", "mosi", "smell", "--raw", "x", "--work", "x", "--store", "x"], 2, "smell"),
        # Steps out of their order.
        (["ingest", "mosi", "text", "--raw", "x", "--work", "x", "--store", "x"], 2, "run mrpipe cohort first"),
        (["prepare", "mimic", "lab", "--part", "0", "--raw", "x", "--work", "x"], 2, "run mrpipe cohort first"),
        (["samples", "mosi", "--work", "x", "--store", "x", "--modalities", "text"], 2, "run mrpipe cohort first"),
        (["samples", "tables", "--work", "x", "--store", "x", "--modalities", "a"], 2, "run mrpipe check --work first"),
        (["split", "tables", "--store", "x", "--scheme", "standard"], 2, "run mrpipe samples first"),
        (["seal", "mosi", "--work", "x", "--store", "x"], 2, "run mrpipe check --work first"),
    ],
)
def test_wrong_use_is_2_and_wrong_data_3_and_nothing_is_written(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_code_hash_of_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["code-hash", "mrpipe.store.masks"]) == 0
    assert len(capsys.readouterr().out.strip()) == 16
    assert main(["code-hash", "mrpipe.nothing"]) == 2


def test_the_archived_manifest_is_what_the_format_says() -> None:
    manifest = json.loads((STORE / "manifest.json").read_text())
    for key in (
        "format",
        "dataset",
        "release",
        "origin",
        "modalities",
        "labels",
        "splits",
        "tables",
        "inputs",
        "code_hash",
        "mrpipe_version",
        "n_samples",
        "n_subjects",
        "pattern_counts",
        "store_id",
    ):
        assert key in manifest
