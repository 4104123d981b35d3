"""Budgets of memory and time for files from elsewhere, since a small file can expand beyond any memory.

A file may take `allowed(stored bytes)`: 256 MiB, or 100 times its size if that is more. Tables compress 5- to 20-fold
and images 2- to 5-fold. The environment variable of `OPTION` raises the budget. Libraries that allocate by themselves
run in a child process with the same budget.
"""

import dataclasses
import io
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mrpipe.errors import DataError, Fault, UsageError
from mrpipe.reading import reading

OPTION = "MRPIPE_MAX_INFLATED"
FLOOR, RATIO = 2**28, 100
# Bytes of a YAML or JSON file; depth, values with aliases expanded, and length of a number of a YAML.
MAX_YAML, MAX_JSON = 2**20, 2**25
MAX_DEPTH, MAX_NODES, MAX_NUMBER = 100, 250_000, 400
VALUE_BYTES = 16  # of a value in memory; text takes as much besides its characters
# A child process starts with `BASE` bytes, and may compute for so many seconds per 256 MiB of its budget.
BASE, SECONDS = 2**29, 15
_NO_MEMORY = 75  # exit code of a child


def allowed(stored: int, floor: int = FLOOR) -> int:
    """Bytes that a file of `stored` bytes may take in memory; a UsageError if the environment variable is no size."""
    text = os.environ.get(OPTION, "0")
    size = re.fullmatch(r"(\d{1,9})([KMGT]?)", text)
    if size is None:
        raise UsageError(f"{OPTION}={text}: expected a size such as 8G")
    option = int(size[1]) << 10 * " KMGT".find(size[2] or " ")
    return max(floor, RATIO * stored if floor == FLOOR else 0, option)


def too_large(shown_as: str, limit: int, found: str, what: str = "content") -> DataError:
    """The error for a file beyond its budget; it names the option that raises the budget."""
    fix = f"If the file is what you expect, set the environment variable {OPTION}, for example to 8G."
    return DataError(Fault(file=shown_as, expected=f"{what} of at most {limit:,} bytes", found=found, fix=fix))


class Bounded(io.RawIOBase):
    """The decompressed content of a file, which is counted while it is read; a DataError beyond its budget."""

    def __init__(self, stream: IO[bytes], path: Path, shown_as: str, floor: int = FLOOR):
        self._stream, self._shown, self._n = stream, shown_as, 0
        self._stored = path.stat().st_size
        self._limit = allowed(self._stored, floor)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._n += len(data)
        if self._n > self._limit:
            raise too_large(self._shown, self._limit, f"more in a file of {self._stored:,} bytes")
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(2**20) or b"", b""))

    def close(self) -> None:
        self._stream.close()
        super().close()


def read_small(path: Path, shown_as: str, limit: int = FLOOR) -> bytes:
    """Content of a file that is read whole; a DataError if it is larger than `limit` and the budget."""
    if (size := path.stat().st_size) > allowed(0, limit):
        raise too_large(shown_as, limit, f"{size:,} bytes")
    return path.read_bytes()


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, shown_as: str) -> IO[bytes]:
    """A member of a zip archive, which may expand to its budget; `zipfile` cannot bound bzip2 and LZMA."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("a member compressed by a method other than DEFLATE")
    if member.file_size > (limit := allowed(member.compress_size)):
        raise too_large(shown_as, limit, f"{member.file_size:,} bytes")
    return archive.open(member)


def require_parquet(path: Path, shown_as: str, content: bytes | None = None) -> bool:
    """Raise a DataError if the metadata of a Parquet file, or of its `content`, claim more than its budget.

    Returns:
        Whether its texts could exceed the budget if the longest were in all rows. Also false for other files.
    """
    try:
        metadata = pq.read_metadata(path if content is None else io.BytesIO(content))
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    except (pa.ArrowException, OSError, ValueError):
        return False
    n_values = max(sum(abs(c.num_values) for c in chunks), metadata.num_rows)
    size = max(n_values * VALUE_BYTES, sum(abs(c.total_uncompressed_size) for c in chunks))
    if size > (limit := allowed(path.stat().st_size)):
        found = f"{metadata.num_rows:,} rows of {metadata.num_columns:,} columns ({size:,} bytes)"
        raise too_large(shown_as, limit, found, "a table")
    texts = (c for c in chunks if c.physical_type == "BYTE_ARRAY")
    return any(c.num_values * c.total_uncompressed_size > limit for c in texts)


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UniqueLoader(_LOADER):  # type: ignore[misc]
    """Reads YAML as `yaml.SafeLoader` does; a repeated key is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for (_, name), n in keys.items() if n > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, shown_as: str, loader: type[UniqueLoader] = UniqueLoader) -> Any:
    """Value of a YAML document; its depth and its values, with aliases expanded, are counted before it is built.

    Raises:
        DataError: not YAML, a repeated key, or too deep or large.
    """
    try:
        sizes, stack = dict[str, int](), [("", 0)]
        for event in yaml.parse(text, loader):
            n, name = int(isinstance(event, yaml.ScalarEvent)), getattr(event, "anchor", None) or ""
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append((name, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                name, n = stack.pop()
                sizes[name] = n
            elif isinstance(event, yaml.AliasEvent):
                n = sizes.get(name, 1)
            elif isinstance(event, yaml.ScalarEvent) and re.fullmatch(rf"[-+.:_\d]{{{MAX_NUMBER},}}", event.value):
                raise ValueError(f"a number of {len(event.value):,} characters")
            stack[-1] = stack[-1][0], stack[-1][1] + n
            if len(stack) > MAX_DEPTH or stack[-1][1] > MAX_NODES:
                raise ValueError(f"more than {MAX_DEPTH} levels, or {MAX_NODES:,} values, as aliases repeat them")
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise DataError(Fault(file=shown_as, expected="YAML", found=found, fix="Correct its syntax.")) from error


def load_json(data: bytes | str, shown_as: str, fix: str = "", hook: Callable[..., Any] | None = None) -> Any:
    """Value of a JSON document; `hook` receives the pairs of each object.

    Raises:
        DataError: not JSON in UTF-8 (with the line), nested too deeply, or too large.
    """
    if len(data) > allowed(0, MAX_JSON):
        raise too_large(shown_as, MAX_JSON, f"{len(data):,} bytes")
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise DataError(Fault(file=shown_as, line=line, expected="JSON", found=str(error), fix=fix)) from error


def in_child(module: str, job: Mapping[str, Any], stored: int, fault: Fault) -> bytes:
    """Output of a program (see `child`) that reads files of `stored` bytes within their budget.

    Raises:
        DataError: those of the program, or `fault` with the reason for which it ended.
    """
    limit = allowed(stored)
    threads = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    env = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    given = json.dumps([limit, dataclasses.asdict(fault), job]).encode()
    done = subprocess.run([sys.executable, "-m", module], input=given, env=env, capture_output=True, check=False)
    if not done.returncode:
        return done.stdout
    text = done.stderr.decode("utf-8", "backslashreplace")
    # Messages of htslib may quote IDs of people.
    said = [re.sub(r"'.*'", "…", m) for m in re.findall(r"^\[E::.*?\] *(.*)", text, re.MULTILINE)][-1:]
    if done.returncode == DataError.exit_code:
        faults = (Fault(**f) for f in json.loads(done.stdout))
        raise DataError(dataclasses.replace(f, found=": ".join([f.found, *said])) for f in faults)
    # SIGKILL and SIGXCPU; Rust and htslib report a failed allocation.
    if done.returncode in (_NO_MEMORY, -9, -24) or re.search("memory allocation|not allocate memory", text):
        found = f"more in a file of {stored:,} bytes, or more than {SECONDS * limit // FLOOR} s of computation"
        raise too_large(fault.file, limit, found)
    found = f"the library that reads it ended with status {done.returncode}{': '.join(['', *said])}"
    raise DataError(dataclasses.replace(fault, found=found))


def child(work: Callable[[Any], bytes]) -> int:
    """Program of `in_child`: writes the result of a job, or with exit code 3 the faults, to standard output."""
    limit, fault, job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_DATA, (BASE + limit,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * limit // FLOOR,) * 2)
    try:
        with reading(fault["file"], fault["expected"], fault["fix"]):
            try:
                result = work(job)
            except MemoryError:
                return _NO_MEMORY
        sys.stdout.buffer.write(result[: limit + 1])
        return 0 if len(result) <= limit else _NO_MEMORY
    except DataError as error:
        print(json.dumps([dataclasses.asdict(f) for f in error.faults]))
        return DataError.exit_code
