"""Command line: help of every command, exit codes, and commands on a store."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.help import COMMANDS
from mrpipe.cli.main import command_names, main

STORE = Path(__file__).parents[1] / "data" / "stores" / "format-2"


@pytest.mark.parametrize("name", command_names())
def test_help_of_a_command_explains_it_with_an_example_and_the_next_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 8
    if name in COMMANDS:
        assert COMMANDS[name]["text"].splitlines()[0] in text
    assert f"  mrpipe {name} " in text
    assert "\nnext:" in text
    named = re.findall(r"mrpipe ([a-z][a-z-]*)", text)
    assert set(named) <= set(command_names()), named


def test_help_lists_every_command_and_version_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in command_names())
    assert {"train", "report", "run"} <= set(command_names())
    assert "2 usage error, 3 invalid input data, 4 disk, permission or memory" in text
    assert main([]) == 2
    assert capsys.readouterr().out == text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mrpipe {mrpipe.__version__}\n"


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "mrpipe: unknown command 'trian'. Did you mean 'train'?\n"


def test_show_verify_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(STORE), "--deep"]) == 0
    assert main(["show", str(STORE)]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    assert main(["export", str(STORE), "--out", str(tmp_path / "npz"), "--format", "npz"]) == 0
    with np.load(tmp_path / "npz" / "series.npz") as file:
        assert file["offsets"][-1] == len(file["x"]) == len(file["time"])
    assert (
        main(["export", str(STORE), "--out", str(tmp_path / "csv"), "--modalities", "table", "series", "genotype"]) == 0
    )
    table = pl.read_csv(tmp_path / "csv" / "table.csv")
    plain = pl.read_parquet(STORE / "modalities" / "table.parquet")
    assert table["sample_id"].to_list() == plain["sample_id"].to_list()
    assert set(pl.read_csv(tmp_path / "csv" / "genotype.csv").drop("sample_id").to_numpy().ravel()) <= {0, 1, 2, 3}
    assert pl.read_csv(tmp_path / "csv" / "series.csv").columns[:3] == ["sample_id", "step", "time"]


def test_an_export_with_other_options_is_replaced_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", "tables", "--out", str(tmp_path / "raw"), "--set"]
    assert main([*command, "n_visits=80"]) == 0
    before = {path: path.read_bytes() for path in sorted((tmp_path / "raw").iterdir())}
    assert main([*command, "n_visits=80"]) == 0
    assert main([*command, "n_visits=90"]) == 2
    assert "Choose another --out, or replace it with --overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted((tmp_path / "raw").iterdir())} == before
    assert main([*command, "n_visits=90", "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in sorted((tmp_path / "raw").iterdir())} != before


def test_mask_prints_the_combinations_and_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mask", str(STORE), "--p", "0.5", "--seed", "3", "--out", str(tmp_path / "m.parquet")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counts = [int(first) for first, *_ in lines if not first.endswith("%")]
    assert sum(counts) == pl.read_parquet(tmp_path / "m.parquet").height
    overall = next(first for first, *rest in lines if rest == ["hidden", "of", "all", "modalities"])
    assert 25 < float(overall.rstrip("%")) < 50


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "nowhere"], 3, "no such folder"),
        (["mask", str(STORE), "--p", "2", "--out", "x"], 2, "p must be in"),
        (["mask", str(STORE), "--mechanism", "magic", "--out", "x"], 2, "mnar_label"),
        (["mask", str(STORE), "--modalities", "mri", "--out", "x"], 2, "mri"),
        (["export", str(STORE), "--out", "x", "--modalities", "image"], 2, "npz"),
        (["check", "mosy", "--raw", "x"], 2, "mosi"),
        (["check", "mosi", "--raw", "x", "--set", "text_encoder"], 2, "key=value"),
        (["split", "mosi", "--work", "x", "--scheme", "../mine"], 2, "letters, digits"),
        (["ingest", "mosi", "smell", "--raw", "x", "--work", "x"], 2, "smell"),
        # Steps in the wrong order.
        (["ingest", "mosi", "text", "--raw", "x", "--work", "x"], 2, "run mrpipe cohort first"),
        (["prepare", "mimic", "lab", "--part", "0", "--raw", "x", "--work", "x"], 2, "run mrpipe cohort first"),
        (["samples", "mosi", "--work", "x", "--modalities", "text"], 2, "run mrpipe cohort first"),
        (["samples", "tables", "--work", "x", "--modalities", "a"], 2, "run mrpipe check --work first"),
        (["split", "tables", "--work", "x", "--scheme", "standard"], 2, "run mrpipe samples first"),
        (["seal", "mosi", "--work", "x", "--store", "x"], 2, "run mrpipe check --work first"),
    ],
)
def test_exit_code_is_2_for_usage_errors_and_3_for_invalid_data(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nowhere"], "nowhere: expected a sealed store (manifest.json); found no such folder."),
        (["show", "file"], "file: expected a sealed store (manifest.json); found a file."),
        (["verify", "empty"], "empty: expected a sealed store (manifest.json); found no manifest."),
        (["audit", "nowhere"], "no such folder"),
        (["mask", "nowhere", "--out", "x"], "no such folder"),
        (["export", "empty", "--out", "x"], "no manifest"),
        (["train", "--store", "nowhere", "--out", "x"], "no such folder"),
        (["export", str(STORE), "--out", "file/x", "--format", "npz"], "it is inside of the file"),
        (["mask", str(STORE), "--out", "file/x"], "it is inside of the file"),
        (["simulate", "mosi", "--out", "file/x"], "it is inside of the file"),
        (["split", "mosi", "--work", "empty", "--scheme", "a", "--ids", "no.json"], "run mrpipe samples first"),
        (["build", "mosi", "--raw", "nowhere", "--out", "x"], "nowhere: expected the folder of the export"),
        (["check", "tables", "--raw", "empty", "--set", "config=no.yaml"], "no.yaml"),
        (["cohort", "mosi", "--raw", "nowhere", "--work", "x"], "nowhere"),
        (["seal", "mosi", "--work", "empty", "--store", "empty"], "run mrpipe check --work first"),
    ],
)
def test_a_wrong_path_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert main(arguments) in (2, 3)
    error = capsys.readouterr().err
    assert error.startswith(f"mrpipe {arguments[0]}: ")
    assert words in error
    assert error.count("\n") == 1


PROGRAM = [sys.executable, "-c", "import sys; from mrpipe.cli.main import main; sys.exit(main())"]


@pytest.mark.parametrize("arguments", [["--help"], ["options", "mimic"], ["show", str(STORE)], ["show", "--help"]])
def test_a_closed_pipe_ends_a_command_quietly(arguments: list[str]) -> None:
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        # argparse ignores errors of its own output.
        assert process.wait() == (0 if arguments[-1:] == ["--help"] and len(arguments) > 1 else 141)


# A command waits in a function of its own for the signal, as it would in the middle of its work.
WAITING = """
import signal, sys, time
from pathlib import Path
import mrpipe.{module} as module
from mrpipe.cli.main import main

ready = Path(sys.argv.pop())

def wait(*arguments, **named):
    ready.touch()
    time.sleep(60)

module.{function} = wait
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "function", "arguments", "left"),
    [
        ("stages.build", "build_cohort", ["build", "tables", "--raw", "raw", "--out", "store", "-q"], set()),
        ("stages.check", "inventory", ["check", "tables", "--raw", "raw", "--work", "work"], {"work"}),
        ("store.parquet", "os.fsync", ["mask", str(STORE), "--out", "mask.parquet"], set()),
        ("store.parquet", "os.fsync", ["export", str(STORE), "--out", "npz", "--format", "npz"], {"npz"}),
        ("stages.simulate", "write_text", ["simulate", "mosi", "--out", "new", "--set", "n_videos=8"], set()),
        ("store.show", "show", ["show", str(STORE)], set()),
    ],
)
def test_an_interrupted_command_says_so_and_leaves_no_temporary_file(
    module: str, function: str, arguments: list[str], left: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    assert main(["simulate", "tables", "--out", str(folder / "raw"), "--set", "n_visits=80"]) == 0
    before = set(folder.rglob("*"))
    program = [
        sys.executable,
        "-c",
        WAITING.format(module=module, function=function),
        *arguments,
        str(tmp_path / "ready"),
    ]
    with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate()[1].decode()
    said = f"mrpipe {arguments[0]}: interrupted (SIGINT); run the same command again to continue\n"
    assert (error, process.returncode) == (said, 130)
    assert {p.relative_to(folder).as_posix() for p in set(folder.rglob("*")) - before} <= left


def test_archived_manifest_has_the_keys_of_the_format() -> None:
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
