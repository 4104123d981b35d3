"""Coverage-guided fuzzing of PLINK sets: the three files are cut from the data, calls compared with a slow reading.

python -m tests.faults.fuzz.atheris_bed -max_total_time=120
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.faults.fuzz.guided import guided, instrumented

with instrumented():
    from mrpipe.datasets.adni.genomic import plink
    from mrpipe.errors import MrpipeError

FOLDER = Path(tempfile.mkdtemp(prefix="bed-"))
_COPIES = {0b00: 2, 0b01: 3, 0b10: 1, 0b11: 0}


def read_one(data: bytes) -> None:
    """Parts separated by `|||` are .fam, .bim and .bed."""
    fam, _, rest = data.partition(b"|||")
    bim, _, bed = rest.partition(b"|||")
    for suffix, content in (("fam", fam), ("bim", bim), ("bed", bed)):
        (FOLDER / f"x.{suffix}").write_bytes(content)
    try:
        opened = plink.open_set(FOLDER / "x.bed")
    except MrpipeError as error:
        str(error)
        return
    calls = plink.calls(opened)
    assert calls.shape == (opened.n_people, len(opened.bim))
    for j in range(calls.shape[1]):
        row = bed[3 + j * opened.n_bytes :]
        for i in range(calls.shape[0]):
            assert calls[i, j] == _COPIES[(row[i // 4] >> (2 * (i % 4))) & 3]
    assert plink.missing_per_person(opened).tolist() == (calls == 3).sum(axis=1).tolist()


if __name__ == "__main__":
    people = b"".join(b"0 002_S_%04d 0 0 1 -9\n" % i for i in range(1, 6))
    sites = b"".join(b"1\trs%d\t0\t%d\tA\tG\n" % (j, 1000 + j) for j in range(3))
    guided(read_one, [b"|||".join((people, sites, b"\x6c\x1b\x01" + bytes(range(6)))), b"||||||\x6c\x1b\x01"])
