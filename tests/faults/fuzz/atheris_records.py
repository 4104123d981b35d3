"""Coverage-guided fuzzing of the record scanner of MIMIC-IV, compared with byte-by-byte references.

python -m tests.faults.fuzz.atheris_records -max_total_time=120
"""

from __future__ import annotations

import datetime as dt
import re

import numpy as np
import polars as pl

from tests.faults.fuzz.guided import guided, instrumented

with instrumented():
    from mrpipe.datasets.mimic.scan import records, values

_NUMBER = re.compile(rb"(\d{1,19})[,\n\r]")


def expected_ends(data: bytes) -> list[int]:
    """Positions of line ends outside quotes."""
    quoted, ends = False, []
    for i, byte in enumerate(data):
        quoted ^= byte == 34
        if byte == 10 and not quoted:
            ends.append(i)
    return ends


def expected_number(record: bytes, column: int) -> int | None:
    """The integer in a field of a record, -1 for anything else; None if the record has too few fields."""
    position = 0
    for _ in range(column):
        at = record.find(b",", position)
        if at < 0:
            return None
        if record[position : position + 1] == b'"' or at - position >= 32:
            return -1
        position = at + 1
    found = _NUMBER.match(record, position)
    return int(found[1]) if found else -1


def read_one(data: bytes) -> None:
    """The first byte chooses the column; the rest are records."""
    column, data = (data[0] % 4 if data else 0), data[1:]
    ends = records.record_ends(data)
    assert ends.tolist() == expected_ends(data)
    if len(ends):
        starts = np.concatenate([[0], ends[:-1] + 1])
        padded = np.frombuffer(data + bytes(records.PAD), dtype=np.uint8)
        got = records.numbers_at(padded, starts, column).tolist()
        for start, end, value in zip(starts.tolist(), ends.tolist(), got, strict=True):
            expected = expected_number(data[start : end + 1], column)
            assert expected is None or value == expected or expected >= 2**63, (data[start : end + 1], value)
    text = data[:19].decode("latin-1")
    try:
        time = dt.datetime.strptime(text.replace("T", " ", 1) if text[10:11] == "T" else text, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        time = None
    exact = re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}", text) and "60" not in text[17:]
    value = values.clock_times(pl.Series([text, None, "2150-01-01 00:00:00"]))[0]
    if exact and (time is None or time.year < 2999):
        assert value == time, text
    elif not exact:
        assert value is None, text


if __name__ == "__main__":
    seeds = [
        b"\x0110000001,20000002,50912,2150-01-10 08:00:00\n",
        b'\x02"a ""b"",\n",12,7\n',
        b"\x002150-02-29 23:59:59",
    ]
    guided(read_one, seeds)
