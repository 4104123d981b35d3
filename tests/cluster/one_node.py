"""A single-node SLURM cluster on this machine, started for a test session and always stopped afterwards.

Needs root and Debian's packages slurm-wlm and munge. A separate process, `python one_node.py FOLDER`, keeps the cluster
and stops it when its standard input closes, i.e. when the tests have finished or were killed. The daemons end with that
process. An existing SLURM installation is left untouched.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ETC = Path("/etc/slurm")
MUNGE = {"key": Path("/etc/munge/munge.key"), "run": Path("/run/munge")}
LOCK = Path("/run/lock/mrpipe-test-cluster.lock")
PROGRAMS = ("slurmctld", "slurmd", "munged", "munge", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
N_GPUS = 2
# Output of the keeper process: the cluster is up, or the prefix of the reason that it cannot be started.
UP, NO = "up", "no cluster: "
PR_SET_PDEATHSIG = 1
MARK = "# Written for a test run of mrpipe."

# Declares eight CPUs regardless of the hardware, so that several jobs run at once. The daemon itself kills jobs that
# exceed their memory, because cgroups may be unavailable. The GPUs are terminal devices, which SLURM merely counts.
CONF = """\
{mark}
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
MinJobAge=3600
KillWait=5
GresTypes=gpu
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


class NoClusterError(Exception):
    """A cluster cannot be started on this machine."""


@dataclass(frozen=True)
class Job:
    """A submission as shown by `scontrol`; memory in MB, time limit in minutes."""

    id: int
    comment: str
    state: str
    memory: int
    cpus: int
    limit: int
    partition: str
    gpus: int
    start: datetime | None
    end: datetime | None


class Cluster:
    """The running cluster."""

    def jobs(self) -> list[Job]:
        """All submissions so far, in order."""
        shown = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True, check=True).stdout
        return sorted(map(_job, (line for line in shown.splitlines() if "JobId=" in line)), key=lambda job: job.id)

    def wait_for(self, found: Callable[[list[Job]], list[Job]], seconds: float = 120) -> list[Job]:
        """Wait until `found` selects at least one job, and return the selection."""
        end = time.monotonic() + seconds
        while not (jobs := found(self.jobs())):
            if time.monotonic() > end:
                raise TimeoutError(f"no such job in {seconds} s; there are {self.jobs()}")
            time.sleep(0.2)
        return jobs


def _job(line: str) -> Job:
    fields = dict(re.findall(r"(\S+?)=(\S*)", line))
    days, hours, minutes = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):\d+", fields["TimeLimit"]).groups()  # type: ignore[union-attr]
    memory, unit = re.fullmatch(r"([\d.]+)([MG])", fields["MinMemoryNode"]).groups()  # type: ignore[union-attr]
    gpus = re.search(r"gpu:(\d+)", fields.get("TresPerJob", ""))
    return Job(
        id=int(fields["JobId"]),
        comment=fields.get("Comment", ""),
        state=fields["JobState"],
        memory=round(float(memory) * (1024 if unit == "G" else 1)),
        cpus=int(fields["NumCPUs"]),
        limit=(int(days or 0) * 24 + int(hours)) * 60 + int(minutes),
        partition=fields["Partition"],
        gpus=int(gpus[1]) if gpus else 0,
        start=_time(fields["StartTime"]),
        end=_time(fields["EndTime"]),
    )


def _time(text: str) -> datetime | None:
    return None if text in ("Unknown", "N/A") else datetime.fromisoformat(text)


@contextmanager
def one_node(folder: Path) -> Iterator[Cluster]:
    """Run a cluster with partitions `cpu` and `gpu` in another process; its state and logs are in `folder`.

    Raises:
        NoClusterError: a cluster cannot be started on this machine.
        RuntimeError: the cluster failed to start.
    """
    keeper = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        said = keeper.stdout.readline().strip()
        if said.startswith(NO):
            raise NoClusterError(said.removeprefix(NO))
        if said != UP:
            raise RuntimeError(f"the cluster did not come up: {said}{keeper.stdout.read()}")
        yield Cluster()
    finally:
        keeper.stdin.close()
        keeper.wait(120)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Run the cluster in this process.

    Raises:
        NoClusterError: not root, a program is missing, or SLURM is already installed.
        RuntimeError: the node failed to start; the message contains the daemons' logs.
    """
    if os.geteuid() != 0:
        raise NoClusterError("only root can bring up SLURM's daemons")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise NoClusterError(f"no {', '.join(missing)}; apt-get install -y --no-install-recommends slurm-wlm munge")
    with ExitStack() as down:
        lock = down.enter_context(LOCK.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoClusterError("another run of these tests has its cluster up") from None
        for name in ("slurm.conf", "gres.conf"):
            if (ETC / name).exists() and not (ETC / name).read_text().startswith(MARK):
                raise NoClusterError(f"this machine has a SLURM of its own ({ETC / name}), which is not touched")
        _write(folder)
        for name in ("slurm.conf", "gres.conf"):
            ETC.mkdir(exist_ok=True)
            # Remove a link left by a keeper that was killed.
            (ETC / name).unlink(missing_ok=True)
            (ETC / name).symlink_to(folder / name)
            down.callback((ETC / name).unlink, missing_ok=True)
        _munge(down)
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.out").open("w") as out:
                _daemon(down, [name, "-D"], stdout=out, stderr=subprocess.STDOUT)
            time.sleep(0.5)
        # Runs first on shutdown, while the node can still end the jobs.
        down.callback(_end_jobs)
        _wait_until_idle(folder)
        yield


def _write(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = _free_ports(2)
    host = socket.gethostname().split(".")[0]
    conf = CONF.format(mark=MARK, host=host, ctld_port=ports[0], d_port=ports[1], folder=folder, gpus=N_GPUS)
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text(f"{MARK}\n" + "".join(f"Name=gpu File=/dev/tty{i}\n" for i in range(N_GPUS)))


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _munge(down: ExitStack) -> None:
    """Start munged unless it is already running; Debian's package creates the key."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    if not MUNGE["key"].is_file():
        raise NoClusterError(f"no {MUNGE['key']}; mungekey --create")
    MUNGE["run"].mkdir(exist_ok=True)
    shutil.chown(MUNGE["run"], "munge", "munge")
    _daemon(down, ["munged", "--foreground"], user="munge", group="munge", stderr=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while subprocess.run(["munge", "-n"], capture_output=True).returncode != 0:
        if time.monotonic() > end:
            raise RuntimeError("munged does not answer")
        time.sleep(0.1)


def die_with_parent() -> None:
    """For `preexec_fn`: the process receives SIGTERM when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _daemon(down: ExitStack, command: list[str], **options: object) -> None:
    process = subprocess.Popen(command, preexec_fn=die_with_parent, start_new_session=True, **options)  # type: ignore[call-overload]
    down.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_jobs() -> None:
    listed = ["squeue", "--noheader", "--format=%i"]
    end = time.monotonic() + 30
    while ids := subprocess.run(listed, capture_output=True, text=True).stdout.split():
        subprocess.run(["scancel", "--signal=KILL", "--full", *ids], capture_output=True)
        subprocess.run(["scancel", *ids], capture_output=True)
        if time.monotonic() > end:
            return
        time.sleep(0.5)


def _wait_until_idle(folder: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
        if time.monotonic() > end:
            logs = "\n".join(path.read_text() for path in [*folder.glob("*.log"), *folder.glob("*.out")])
            raise RuntimeError(f"the node is not idle after {seconds} s\n{logs}")
        time.sleep(0.2)


def main(folder: Path) -> None:
    """Keep a cluster running until standard input closes."""
    try:
        with _kept(folder):
            print(UP, flush=True)
            sys.stdin.read()
    except NoClusterError as reason:
        print(f"{NO}{reason}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
