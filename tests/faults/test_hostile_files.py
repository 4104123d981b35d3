"""Small files that expand, nest or claim beyond any memory: the project's error in 20 s and 1 GiB (`hostile`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrpipe import budget
from mrpipe.errors import DataError, UsageError
from mrpipe.forms import open_binary
from tests.faults import hostile, hostile_images  # noqa: F401

# Files that take a second or more to write or to read.
SLOW = {
    *("csv.bz2", "csv.bz2 in a zip", "csv.xz", "zip of LZMA members", "json of 40 MB", "feather of zeros"),
    *("xlsx of a million columns", "xlsx with a huge sheet", "xlsx of spaces", "zsav of equal rows"),
    *("parquet of equal values", "parquet of zeros", "parquet of a long text in each row", "mask file of equal rows"),
    *("mimic of line ends", "mimic of commas", "nifti that is zeros"),
    *("vcf with a line of 3 GB", "vcf with a header of 3 GB", "vcf of line ends", "vcf of 10^6 samples"),
    *("vcf of one record repeated", "nifti.gz of many voxels of a byte", "csv of a million columns"),
    *("search space of nested anchors", "search space nested deep", "search space of bad dates"),
    *("bim without line ends", "fam of one long line", "sav that claims many rows", "parquet.gz"),
    *("csv.gz of line ends", "csv.gz of commas", "csv.gz in cp1252", "legend of line ends"),
    *(
        "yaml of many keys",
        "nifti.gz with a huge extension",
        "nifti.gz with a far offset",
        "png with a compressed profile",
    ),
}
SHORT = [name for name in hostile.CASES if name not in SLOW]


def outcomes(folder: Path, names: list[str]) -> list[dict[str, object]]:
    """Outcomes of reading the files in a process with limited address space, in their order."""
    hostile.write_all(folder, names)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "tests/faults/hostile.py", "read", str(folder), *names],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'model'}", "POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=25 * len(names) + 20,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert len(found) == len(names), f"{names[len(found)]} ended the process: {done.stderr[-2000:]}"
    return found


def require(found: list[dict[str, object]]) -> None:
    wrong = [f for f in found if f["code"] != DataError.exit_code or "Traceback" in str(f["message"])]
    wrong += [f for f in found if float(str(f["seconds"])) > 20 or int(str(f["mib"])) > 1024]
    assert not wrong, "\n".join(map(str, wrong))


def test_forty_hostile_files_are_errors_in_bounded_time_and_memory(tmp_path: Path) -> None:
    assert len(SHORT) >= 40
    require(outcomes(tmp_path / "files", SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_larger_hostile_files_are_errors_in_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    require(outcomes(tmp_path / "files", [name]))


def test_the_budget_is_raised_by_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv.gz").write_bytes(hostile.gz(2**28, start=b"id"))

    def size() -> int:
        with open_binary(tmp_path / "a.csv.gz", "a.csv.gz") as handle:
            return sum(len(block) for block in iter(lambda: handle.read(2**20), b""))

    with pytest.raises(DataError, match="MRPIPE_MAX_INFLATED"):
        size()
    monkeypatch.setenv(budget.OPTION, "512M")
    assert budget.allowed(1) == 2**29
    assert size() == 2**28 + 2
    monkeypatch.setenv(budget.OPTION, "much")
    with pytest.raises(UsageError, match="expected a size such as 8G"):
        budget.allowed(1)


def test_a_file_may_expand_a_hundredfold_or_to_256_mib() -> None:
    assert budget.allowed(1) == 2**28
    assert budget.allowed(10**9) == 10**11


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: &a [1, 2]\nb: [*a, *a]\nc: {x: *a}\n", {"a": [1, 2], "b": [[1, 2]] * 2, "c": {"x": [1, 2]}}),
        ("a: 2020-01-01x\nb: 0x10\nc: 1e3\n", {"a": "2020-01-01x", "b": 16, "c": "1e3"}),
        ("", None),
    ],
)
def test_yaml_is_read_as_before(text: str, found: object) -> None:
    assert budget.load_yaml(text, "a.yaml") == found


def test_an_error_of_json_names_its_line() -> None:
    with pytest.raises(DataError) as caught:
        budget.load_json('{"a": 1,\n"b": }', "a.json")
    assert caught.value.faults[0].line == 2
