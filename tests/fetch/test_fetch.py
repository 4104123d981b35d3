"""`mrpipe fetch` against a local server, and the conversion of what it downloads."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.errors import DataError
from mrpipe.fetch.convert import FIVE, RANGES, STATIC, TWO
from mrpipe.fetch.download import OpenData, catalogue, fetch
from mrpipe.stages.build import build

CONTENT = {"/a.txt": b"alpha " * 50_000, "/deep/b.bin": bytes(range(256)) * 100}


class Server:
    """A local server of `content`; `cut` are paths whose transfer breaks off half way."""

    def __init__(self) -> None:
        self.content, self.cut, self.asked = dict(CONTENT), set[str](), list[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.content.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if self.path in outer.cut else body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def made_up(base: str, **checksums: str | None) -> OpenData:
    files = {path[1:]: hashlib.sha256(content).hexdigest() for path, content in CONTENT.items()}
    known: dict[str, str | None] = {**files, **{k.replace("_", "."): v for k, v in checksums.items()}}
    return OpenData(name="made_up", title="Made up (1 kB)", licence="CC0", reader="enrico", base=base, files=known)


def get(entry: OpenData, out: Path) -> str:
    said: list[str] = []
    fetch([entry], out, out, said.append)
    return "\n".join(said)


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_files_are_downloaded_once_and_the_licence_is_shown_first(server: Server, tmp_path: Path) -> None:
    text = get(made_up(server.base), tmp_path)
    assert text.startswith("made_up: Made up (1 kB)\n  licence: CC0\n  http://127.0.0.1")
    for path, content in CONTENT.items():
        assert (tmp_path / "made_up" / path[1:]).read_bytes() == content
    assert sorted(server.asked) == sorted(CONTENT)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert "http" not in get(made_up(server.base), tmp_path)
    assert sorted(server.asked) == sorted(CONTENT)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times


def test_a_file_without_published_checksum_prints_the_one_it_has(server: Server, tmp_path: Path) -> None:
    text = get(made_up(server.base, a_txt=None), tmp_path)
    assert f"no published checksum; SHA-256 {hashlib.sha256(CONTENT['/a.txt']).hexdigest()}" in text


def test_other_content_than_published_is_an_error_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    server.content["/a.txt"] = b"something else"
    with pytest.raises(DataError, match=r"a\.txt.*SHA-256.*does not match") as error:
        get(made_up(server.base), tmp_path)
    assert len(error.value.faults) == 1
    assert files_in(tmp_path) == {"made_up/deep/b.bin"}


def test_an_interrupted_download_leaves_no_file_and_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cut = {"/a.txt"}
    for checksum in (made_up(server.base).files["a.txt"], None):
        with pytest.raises(DataError, match=r"a\.txt"):
            get(made_up(server.base, a_txt=checksum), tmp_path)
        assert files_in(tmp_path) == {"made_up/deep/b.bin"}
    server.cut, server.asked = set(), []
    get(made_up(server.base), tmp_path)
    assert server.asked == ["/a.txt"]


def test_a_damaged_file_is_replaced_but_kept_without_connection(server: Server, tmp_path: Path) -> None:
    get(made_up(server.base), tmp_path)
    damaged = tmp_path / "made_up/a.txt"
    damaged.write_bytes(b"damaged")
    with pytest.raises(DataError, match="another checksum; no connection"):
        get(made_up("http://127.0.0.1:1/"), tmp_path)
    assert damaged.read_bytes() == b"damaged"
    get(made_up(server.base), tmp_path)
    assert damaged.read_bytes() == CONTENT["/a.txt"]


def test_without_connection_the_error_lists_all_files_with_address_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def refuse(*arguments: object, **named: object) -> None:
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert main(["fetch", "physionet2012", "mimic_demo", "--out", str(tmp_path / "open")]) == 3
    text = capsys.readouterr().err
    for name in ("physionet2012", "mimic_demo"):
        entry = catalogue()[name]
        for path, checksum in entry.files.items():
            assert f"{tmp_path}/open/{name}/{path}: expected {entry.base}{path}, SHA-256 {checksum}" in text
    # Both are on the same host.
    assert len(tried) == 1
    assert not files_in(tmp_path)


def test_unknown_data_sets_and_those_of_other_providers_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "mfaet"]) == 2
    assert "Did you mean 'mfeat'?" in capsys.readouterr().err
    assert main(["fetch", "mosi"]) == 2
    assert "Not downloaded: get the .csd files" in capsys.readouterr().err


def test_the_catalogue_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--list"]) == 0
    text = capsys.readouterr().out
    for name, entry in catalogue().items():
        assert f"{name}: " in text
        assert entry.licence
        assert all(checksum is None or re.fullmatch("[0-9a-f]{64}", checksum) for checksum in entry.files.values())
        assert entry.base.startswith("https://") or not entry.files


def stay(number: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Records of a made-up stay, in order of time, with values of −1 and out of range."""
    records = [("00:00", "RecordID", str(number))]
    records += [("00:00", "Age", "61"), ("00:00", "Gender", "-1" if number % 3 else "1"), ("00:00", "Height", "1.8")]
    records += [("00:00", "ICUType", str(number % 4 + 1)), ("00:00", "Weight", "80.5")]
    for minute in sorted(rng.integers(1, 2880, 60).tolist()):
        name = str(rng.choice([*FIVE, *TWO, "MechVent", "Urine"]))
        value = 1.0 if name == "MechVent" else round(float(rng.uniform(-5, 60)), 2)
        records.append((f"{minute // 60:02d}:{minute % 60:02d}", name, f"{value:g}"))
    return records


def slow_row(records: list[tuple[str, str, str]]) -> dict[str, float]:
    """The row of a stay, record by record."""
    row: dict[str, float] = {}
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for time, name, text in records:
        low, high = RANGES.get(name, (0, 1e9))
        if not low <= float(text) <= high:
            continue
        if time == "00:00" and name in (*STATIC, "ICUType"):
            row[name] = float(text)
        else:
            series[name].append((int(time[:2]) * 60 + int(time[3:]), float(text)))
    unit = row.pop("ICUType")
    row |= {"CCU": unit == 1, "CSRU": unit == 2, "SICU": unit == 4}
    for name in {*FIVE, *TWO} & set(series):
        values = [v for _, v in series[name]]
        row |= {f"{name}_first": values[0], f"{name}_last": values[-1]}
        if name in FIVE:
            row |= {f"{name}_lowest": min(values), f"{name}_highest": max(values), f"{name}_median": median(values)}
    if minutes := [m for m, _ in series["MechVent"]]:
        row |= {"MechVentStartTime": min(minutes), "MechVentDuration": max(minutes) - min(minutes)}
        row |= {"MechVentLast8Hour": max(minutes) >= 2400, "UrineOutputSum": len(minutes)}
    return row


def write_stays(folder: Path, stays: dict[int, list[tuple[str, str, str]]], *, evil: bool = False) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "set-a.tar.gz", "w:gz") as archive:
        for number, records in stays.items():
            body = "\n".join(map(",".join, [("Time", "Parameter", "Value"), *records])).encode()
            name = f"../../{number}.txt" if evil else f"./set-a/{number}.txt"
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    lines = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    lines += [f"{number},1,2,3,-1,{number % 2}" for number in sorted(stays)]
    (folder / "Outcomes-a.txt").write_text("\n".join(lines) + "\n")


def convert_only(name: str, files: list[str], out: Path, project: Path) -> None:
    """Convert files that are there, as after a download by hand."""
    entry = OpenData(name=name, title="", licence="", files=dict.fromkeys(files))
    fetch([entry], out, project / "workflow/config/examples/tables", lambda line: None)


def test_icu_stays_equal_a_slow_conversion_and_can_be_built(project: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stays = {number: stay(number, rng) for number in rng.permutation(np.arange(132539, 132599)).tolist()}
    raw = tmp_path / "physionet2012"
    write_stays(raw, stays, evil=True)
    convert_only("physionet2012", ["set-a.tar.gz", "Outcomes-a.txt"], tmp_path, project)
    # Nothing is written to the paths in the archive.
    expected = {"set-a.tar.gz", "Outcomes-a.txt", "PhysionetChallenge2012-set-a.csv", "tables.yaml"}
    assert files_in(tmp_path) == {f"physionet2012/{name}" for name in expected}
    frame = pl.read_csv(raw / "PhysionetChallenge2012-set-a.csv", infer_schema_length=None)
    assert frame["recordid"].to_list() == sorted(stays)
    for found in frame.iter_rows(named=True):
        wanted = slow_row(stays[found["recordid"]])
        seen = {k: v for k, v in found.items() if v is not None and k in {*frame.columns[6:]}}
        assert seen == pytest.approx({k: float(v) for k, v in wanted.items()})
    build(get_dataset("tables"), raw, tmp_path / "store", {})
    assert len(mrpipe.open_store(tmp_path / "store").labels().collect()) == len(stays)


def test_stays_without_outcome_are_an_error(project: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_stays(tmp_path / "physionet2012", {n: stay(n, rng) for n in (1, 2)})
    (tmp_path / "physionet2012/Outcomes-a.txt").write_text("RecordID,In-hospital_death\n1,0\n")
    with pytest.raises(DataError, match=r"set-a\.tar\.gz: expected the 1 stays of Outcomes-a\.txt; found 2"):
        convert_only("physionet2012", ["set-a.tar.gz", "Outcomes-a.txt"], tmp_path, project)
    assert not (tmp_path / "physionet2012/tables.yaml").exists()


@pytest.mark.real_data
def test_columns_of_icu_stays_are_those_of_the_known_table(project: Path, tmp_path: Path, real_data_dir: Path) -> None:
    known = pl.read_csv(real_data_dir / "generic/physionet2012/PhysionetChallenge2012-set-a.csv.gz", infer_schema=False)
    rng = np.random.default_rng(0)
    write_stays(tmp_path / "physionet2012", {n: stay(n, rng) for n in (1, 2)})
    convert_only("physionet2012", ["set-a.tar.gz", "Outcomes-a.txt"], tmp_path, project)
    found = pl.read_csv(tmp_path / "physionet2012/PhysionetChallenge2012-set-a.csv", infer_schema=False)
    assert sorted(found.columns) == sorted(known.columns)
    assert len(found.columns) == 120


@pytest.mark.real_data
def test_checksums_of_mimic_are_those_of_the_demo(real_data_dir: Path) -> None:
    sums = (real_data_dir / "mimic-iv-demo/SHA256SUMS.txt").read_text()
    for path, checksum in catalogue()["mimic_demo"].files.items():
        assert f"{checksum} {path}\n" in sums


def digits(folder: Path, n: int = 2000) -> list[str]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for view in ("fou", "fac", "kar", "pix", "zer", "mor"):
        lines = [" ".join(f"{x:7.3f}" for x in row) for row in rng.normal(size=(n, 3))]
        (folder / f"mfeat-{view}").write_text("\n".join(lines) + "\n")
    return sorted(p.name for p in folder.iterdir())


def test_digits_get_their_class_and_can_be_built(project: Path, tmp_path: Path) -> None:
    raw = tmp_path / "mfeat"
    files = digits(raw)
    convert_only("mfeat", files, tmp_path, project)
    frame = pl.read_csv(raw / "mfeat-kar.csv")
    assert frame.columns == ["kar_1", "kar_2", "kar_3", "class"]
    assert frame["class"].to_list() == [i // 200 for i in range(2000)]
    assert frame["kar_2"].to_list() == np.loadtxt(raw / "mfeat-kar")[:, 1].tolist()
    build(get_dataset("tables"), raw, tmp_path / "store", {})
    store = mrpipe.open_store(tmp_path / "store")
    assert [m.name for m in store.modalities] == ["fou", "fac", "kar", "pix", "zer", "mor"]
    assert store.labels().collect()["value"].value_counts()["count"].to_list() == [200] * 10
    times = {p: p.stat().st_mtime_ns for p in raw.iterdir()}
    convert_only("mfeat", files, tmp_path, project)
    assert {p: p.stat().st_mtime_ns for p in raw.iterdir()} == times


def test_truncated_digits_are_an_error(project: Path, tmp_path: Path) -> None:
    files = digits(tmp_path / "mfeat", 1999)
    with pytest.raises(DataError, match="expected 2000 lines of equal length; found 1999 lines"):
        convert_only("mfeat", files, tmp_path, project)
