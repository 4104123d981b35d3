"""Files without read permission are reported as such, not as damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mrpipe.datasets.adni.image.maps import open_maps
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.mimic.scan.scanner import read_header
from mrpipe.delimited import read_table
from mrpipe.errors import DataError, FaultCollector
from mrpipe.imaging.nifti import load_nifti
from mrpipe.pickles import read_pickle
from mrpipe.raw import Folder
from tests.datasets.forbidden import forbid


def stack(path: Path) -> None:
    faults = FaultCollector()
    open_maps(path.parent, AdniOptions(), faults)
    raise DataError(faults.faults)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("t.csv", lambda path: read_table(path, shown_as=path.name)),
        ("labevents.csv.gz", lambda path: read_header(path, path.name)),
        ("x.pkl", read_pickle),
        ("x.nii.gz", lambda path: load_nifti(path, path.name)),
        ("shots.zip", lambda path: Folder(path.parent, "shots")),
        ("ADNI_G.npy", stack),
    ],
)
def test_no_permission_is_not_damage(
    name: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"x")
    forbid(monkeypatch, tmp_path / name)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    fault = next(f for f in caught.value.faults if f.file == name)
    assert fault.found == "no permission to read it"
    assert "damaged" not in str(fault)
