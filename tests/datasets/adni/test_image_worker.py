"""The subprocess of a scan (crashes, kills, timeouts) and quality control (smoothing, outliers, contact sheet)."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mrpipe.datasets.adni.image.raw import smoothed
from mrpipe.datasets.adni.simulate.image import simulated_grid
from mrpipe.errors import MrpipeError
from mrpipe.imaging import worker
from mrpipe.imaging.chain import ChainSettings
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.qc import CAPTION, PANEL, SHEET_ROW, contact_sheet, outliers, robust_z
from mrpipe.imaging.worker import process_scan

GRID, _ = simulated_grid((14, 16, 14))


# --- subprocess of a scan


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        (-signal.SIGSEGV, ScanFailedError, "SIGSEGV"),
        (-signal.SIGKILL, MrpipeError, "SIGKILL"),
        (-signal.SIGTERM, MrpipeError, "SIGTERM"),
        (os.EX_TEMPFAIL, MrpipeError, "on this machine"),
        (3, ScanFailedError, r"^expected a brain \(found 3 ml\)$"),
        (1, ScanFailedError, r"^expected a brain \(found 3 ml\)$"),
    ],
)
def test_a_crash_fails_the_scan_and_a_kill_stops_the_job(code, error, expected, tmp_path: Path, monkeypatch) -> None:
    finished = subprocess.CompletedProcess([], code, "", "a warning\nexpected a brain\tfound 3 ml\n")
    monkeypatch.setattr(worker.subprocess, "run", lambda *a, **k: finished)
    with pytest.raises(error, match=expected):
        process_scan(tmp_path / "x.nii", "I1", (tmp_path, tmp_path), ChainSettings(), tmp_path / "x.png", timeout_s=1)


def test_output_of_a_crash_is_kept_in_the_detail_only(tmp_path: Path, monkeypatch) -> None:
    finished = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no module at /data/002_S_0413/x\n")
    monkeypatch.setattr(worker.subprocess, "run", lambda *a, **k: finished)
    with pytest.raises(ScanFailedError) as error:
        process_scan(tmp_path / "x.nii", "I1", (tmp_path, tmp_path), ChainSettings(), tmp_path / "x.png", timeout_s=1)
    # Reasons are counted in stores and reports, so participant IDs may only be in the detail.
    assert error.value.reason == "the chain crashed"
    assert "002_S_0413" in error.value.detail


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (MemoryError("cannot allocate"), os.EX_TEMPFAIL, "not enough memory"),
        (OSError(errno.ENOSPC, "full", "/data/002_S_0413/x.nii"), os.EX_TEMPFAIL, "the disk is full"),
        (OSError("not a gzip file"), 1, "the chain failed\tOSError: not a gzip file"),
        (RuntimeError("ITK gave up"), 1, "the chain failed\tRuntimeError: ITK gave up"),
    ],
)
def test_running_out_of_memory_or_disk_does_not_fail_the_scan(
    error: Exception, status: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(values: object) -> None:
        raise error

    monkeypatch.setattr(worker, "_run", fail)
    (tmp_path / "job.json").write_text("{}")
    assert worker.main(str(tmp_path / "job.json")) == status
    assert capsys.readouterr().err == f"{expected}\n"


def test_a_scan_that_exceeds_the_time_limit_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments, timeout: float, **_):
        raise subprocess.TimeoutExpired("chain", timeout)

    monkeypatch.setattr(worker.subprocess, "run", hang)
    with pytest.raises(ScanFailedError, match="2 minutes"):
        process_scan(tmp_path / "x.nii", "I1", (tmp_path, tmp_path), ChainSettings(), tmp_path / "x.png", timeout_s=120)


# --- quality control


def test_smoothing_preserves_the_total() -> None:
    gm = np.zeros((20, 22, 18), dtype=np.float32)
    gm[8:12, 9:13, 7:11] = 1000.0
    grid = dataclasses.replace(GRID, mask=gm > 0, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    out = smoothed(gm, grid, 2.0)
    assert float(out.sum()) == pytest.approx(float(gm.sum()), rel=1e-4)
    assert out.max() < gm.max()
    assert smoothed(gm, grid, 0.0) is gm


def test_outliers_are_robust_and_need_enough_scans() -> None:
    values = np.array([700.0, 705, 695, 702, 698, 701, 699, 703, 320, np.nan])
    z = robust_z(values)
    assert np.isnan(z[-1])
    assert np.argmax(np.abs(np.nan_to_num(z))) == 8
    flags = outliers({"gm_ml": values, "ncc": np.ones(10)})
    assert flags == [""] * 8 + ["gm_ml", ""]
    assert outliers({"gm_ml": values[[0, 1, 8]]}) == ["", "", ""]


def test_contact_sheet_shows_every_picture(tmp_path: Path) -> None:
    from PIL import Image

    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (3 * PANEL, 3 * PANEL + CAPTION), (50 * i, 0, 0)).save(paths[-1])
    captions = ["brief", "word " * 60, *("ok",) * 3]
    contact_sheet(paths, captions, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        side = 3 * PANEL // 2
        assert sheet.size == (2 * side, 3 * SHEET_ROW)
        for i in range(5):
            left, bottom = i % 2 * side, (i // 2 + 1) * SHEET_ROW
            corners = [(left, bottom - side), (left + side - 1, bottom - 1)]
            assert [sheet.getpixel(p) for p in corners] == [(50 * i, 0, 0)] * 2
        # Long captions stay above their own scan.
        brief, long = (np.asarray(sheet)[: SHEET_ROW - side, k * side :][:, :side].max(axis=2) > 128 for k in (0, 1))
        assert 0 < brief.sum() < long.sum()
        assert long.any(axis=1).sum() > 2 * brief.any(axis=1).sum()
