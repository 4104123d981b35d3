"""Reading hostile files in a child process with little memory, so that a crash of it is a result."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from mrpipe.errors import DataError
{reader}
limit = {gib} * 2**30
resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
PLAIN = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex, bool, type(None), np.ndarray)
def closed(value, depth=0):
    assert depth < 80
    assert type(value) in PLAIN or isinstance(value, np.generic), type(value)
    if isinstance(value, np.ndarray):
        assert value.dtype.names is None and value.dtype.kind in "biufcSUO", value.dtype
        value = value.ravel().tolist() if value.dtype.hasobject else []
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for v in value:
            closed(v, depth + 1)
for name in json.loads(sys.stdin.read()):
    print(json.dumps([name, "started", 0]), flush=True)
    start = time.perf_counter()
    try:
        closed(read(Path(name)))
        result = "read"
    except DataError as error:
        result = "DataError: " + str(error)
    except BaseException as error:
        result = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps([name, result[:400], time.perf_counter() - start]), flush=True)
"""


def outcomes(folder: Path, files: Mapping[str, bytes], reader: str, *, gib: float = 1.5) -> dict[str, str]:
    """Outcome of reading each file: "read", "DataError: …", another exception, "crashed" or "slow".

    `reader` is a program that defines the function `read(path)`.
    """
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    found: dict[str, str] = {}
    while rest := [str(folder / name) for name in files if name not in found]:
        program = PROGRAM.format(reader=reader, gib=gib)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, input=json.dumps(rest), capture_output=True, text=True, timeout=240, check=False)
        if not done.stdout:
            raise AssertionError(done.stderr)
        for line in done.stdout.splitlines():
            path, result, seconds = json.loads(line)
            found[Path(path).name] = "slow" if seconds > 20 else {"started": "crashed"}.get(result, result)
    return found
