"""Processing of one scan in a separate process: `python -m mrpipe.imaging.worker JOB`.

Crashes, hangs and memory leaks of a library thus affect only one scan. Seeds and the number of threads take effect only
if they are set before ITK is loaded.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from mrpipe.errors import DataError, MrpipeError, StorageError
from mrpipe.imaging.chain import SEED, ChainResult, ChainSettings, run_chain
from mrpipe.imaging.failure import ScanFailedError
from mrpipe.imaging.qc import scan_picture
from mrpipe.reading import refusal_of

# Signals from outside (scheduler, out-of-memory killer, user), which do not indicate a problem of the scan.
_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU}
_SHORTAGE_STATUS = os.EX_TEMPFAIL
OUT_OF_TIME = "no result in the time allowed"
_LIMITS = (f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS"))
ENVIRONMENT = dict.fromkeys(("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", *_LIMITS), "1") | {"ANTS_RANDOM_SEED": str(SEED)}


def process_scan(
    scan: Path, shown_as: str, templates: tuple[Path, Path], settings: ChainSettings, picture: Path, *, timeout_s: float
) -> ChainResult:
    """Run the chain on one scan in a separate process.

    Args:
        templates: files of the template's T1 and brain mask.

    Raises:
        ScanFailedError: the scan is unsuitable, the chain crashed, or it took longer than `timeout_s`.
        MrpipeError: the process was killed from outside (out of memory, scheduler) or the machine ran out of memory or
            disk space; the scan can be retried.
    """
    with tempfile.TemporaryDirectory(prefix="scan.", dir=picture.parent) as temporary:
        work = Path(temporary)
        job, result = work / "job", work / "result"
        call = (scan.resolve(), shown_as, *(t.resolve() for t in templates), settings, work.resolve())
        job.write_bytes(pickle.dumps((call, picture.resolve(), result.resolve())))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "mrpipe.imaging.worker", str(job)],
                env={**os.environ, **ENVIRONMENT},
                capture_output=True,
                text=True,
                errors="backslashreplace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ScanFailedError(OUT_OF_TIME, f"{timeout_s / 60:g} minutes") from error
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            if -done.returncode in _OUTSIDE:
                raise MrpipeError(f"the process of a scan was killed by {name}: out of memory, or stopped from outside")
            raise ScanFailedError("the chain crashed", name)
        if done.returncode == _SHORTAGE_STATUS:
            raise MrpipeError(f"a scan could not be processed on this machine: {last}")
        if done.returncode != 0:
            # The last line contains the reason; without one, e.g. after a failed import, the chain crashed.
            reason, tab, detail = last.partition("\t")
            raise ScanFailedError(reason, detail) if tab else ScanFailedError("the chain crashed", last)
        done_scan: ChainResult = pickle.loads(result.read_bytes())
        return done_scan


def _run(job: Path) -> None:
    call, picture, result = pickle.loads(job.read_bytes())
    done, volumes = run_chain(*call)
    scan_picture(done, volumes, call[2], picture)
    result.write_bytes(pickle.dumps(done))


def main(job: str) -> int:
    """Entry point of the process; after a failure, the last line of stderr is the reason, a tab and the detail.

    Returns:
        Exit status: 0 success, 1 a step failed, 3 unsuitable scan, EX_TEMPFAIL out of memory or disk space.
    """
    try:
        _run(Path(job))
    except StorageError as error:
        print(error, file=sys.stderr)
        return _SHORTAGE_STATUS
    except DataError as error:
        found = "; ".join(f"found {fault.found}. {fault.fix}".rstrip(". ") for fault in error.faults)
        print(f"unusable image, expected {error.faults[0].expected}\t{found}", file=sys.stderr)
        return 3
    except Exception as error:  # of several libraries
        if refusal := refusal_of(error):
            print(refusal[1], file=sys.stderr)
            return _SHORTAGE_STATUS
        message = (str(error).strip().splitlines() or [""])[0]
        print(f"the chain failed\t{type(error).__name__}: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
