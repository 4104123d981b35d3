"""All uses of Snakemake beyond its public interface, each with the reason (Snakemake 9.20 to 9.27).

Made while the Snakefile is parsed: in a module, `workflow.modifier` and `workflow.pathvars` are the module's only then.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import snakemake.common
import snakemake.rules
import snakemake.workflow
from snakemake.dag import DAG
from snakemake.persistence.file import FilePersistence
from snakemake.storage import flag_with_storage_object


class Internals:
    """The running workflow.

    Args:
        workflow: Snakemake's global of this name.
    """

    def __init__(self, workflow: Any):
        self._workflow = workflow
        self._modifier = workflow.modifier
        self._pathvars = workflow.pathvars
        # Snakemake inspects the signature at each call of an input function: a tenth of its time for 10,000 jobs.
        parameters = cache(snakemake.common.get_function_params)
        snakemake.common.get_function_params = snakemake.rules.get_function_params = parameters
        # Python searches all jobs for unused objects again and again: a quarter of the time for 10,000 jobs.
        gc.set_threshold(500_000)
        # Jobs at a time on each GPU of this machine; a cluster hands out whole GPUs.
        self.jobs_per_gpu = 1

    def filled(self, template: str) -> str:
        """A path with `<results>` and its kind filled in and placed in the default storage.

        Inputs and outputs are filled by Snakemake; there is no public way to fill parameters.
        """
        filled = self._pathvars.apply(template)
        # Steps work on the local copies of files in a storage, and on undeclared files beside them.
        return str(self._modifier.path_modifier.apply_default_storage(filled))

    def user_path(self, file: str) -> Any:
        """A file of the user's, which a default storage does not hold."""
        provider = self._workflow.storage_registry.default_storage_provider
        return flag_with_storage_object(file, provider.object(file)) if provider else file

    def rule_name(self, name: str) -> str:
        """Name of one of our rules, which a module's `use rule * as x_*` changes."""
        return str(self._modifier.modify_rulename(name))

    @property
    def rule_names(self) -> set[str]:
        """Names of all rules so far."""
        return {rule.name for rule in self._workflow.rules}

    def jobs(self, rule: str) -> list[Any]:
        """Jobs of one of our rules in this run's graph."""
        name = self.rule_name(rule)
        return [job for job in self._workflow.dag.jobs if job.rule.name == name]

    def jobs_to_run(self) -> set[Any]:
        """Jobs of this run's graph that are not up to date."""
        return set(self._workflow.dag.needrun_jobs())

    def keep_going(self) -> None:
        """As --keep-going, decided once the targets are known."""
        self._workflow.scheduler.keepgoing = True

    def join_group(self, name: str) -> None:
        """On a node, all jobs of a submission form one group again.

        Executors do not pass on how many jobs that are, and Snakemake would run them one after the other.
        """
        if self._workflow.remote_exec:
            self._workflow.group_settings.group_components = {name: sys.maxsize}

    def limit_node(self, cores: str | None) -> None:
        """On a node, respect the requested resources even if the cluster does not enforce them.

        Snakemake runs the jobs of a group there without the limits of the submission.
        """
        if self._workflow.remote_exec:
            self._workflow.register_resource("gpu", 1)
            if cores:
                self._workflow.register_resource("_cores", int(cores))

    def on_job_finished(self, handler: logging.Handler) -> None:
        """Add a handler of Snakemake's log records; logger plugins are a choice of the user's."""
        logging.getLogger("snakemake.logging").addHandler(handler)

    def show_only(self, shown: Callable[[logging.LogRecord], bool]) -> None:
        """Filter the messages that Snakemake prints; its log file keeps all."""
        for handler in logging.getLogger("snakemake.logging").handlers:
            if handler.name == "DefaultStreamHandler" and self._workflow.is_main_process:
                handler.addFilter(shown)

    def on_nothing_to_do(self, call: Callable[[], None]) -> None:
        """Call a function when a run has nothing to do: `onsuccess` is not called then."""

        workflow = self._workflow

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.getMessage().startswith("Nothing to be done") and not workflow.dryrun:
                    call()

        if workflow.is_main_process:
            self.on_job_finished(Listener())

    def force(self, files: Callable[[], Iterable[str]]) -> None:
        """Rerun the jobs of these outputs if they are part of the run; --forcerun would request them as well."""

        class Forcing(DAG):  # type: ignore[misc]
            def __init__(self, *args: Any, forcefiles: Iterable[str] = (), **kwargs: Any):
                super().__init__(*args, forcefiles={*forcefiles, *files()}, **kwargs)

        if self._workflow.is_main_process:
            snakemake.workflow.DAG = Forcing

    def follow_umask(self) -> None:
        """Write Snakemake's metadata with the permissions of the umask; it would let the group read and write them."""
        os.umask(umask := os.umask(0o077))
        FilePersistence._io_write.__defaults__ = (0o666 & ~umask,)

    def examine_behind_ancient(self) -> None:
        """Let Snakemake examine the jobs behind a job to run of which they take only `ancient` files.

        Snakemake 9.27 leaves them out, even if their own parameters or code have changed: they would never run.
        """
        search = DAG.bfs

        def examined(dag: Any, direction: Any, *jobs: Any, **options: Any) -> Any:
            return search(dag, _Triggers(direction) if direction is dag.depending else direction, *jobs, **options)

        DAG.bfs = examined

    def resume_interrupted(self) -> None:
        """Let the same command continue an interrupted run, without --rerun-incomplete and --unlock.

        A default profile would be the public way, but none is found beside a Snakefile at the top of a repository. The
        settings are not there yet while the Snakefile is parsed.
        """
        workflow = self._workflow
        execute = workflow.execute

        def resume(*args: Any, **kwargs: Any) -> Any:
            workflow.dag_settings.force_incomplete = True
            # Snakemake finishes running jobs at SIGTERM; a closed terminal must not leave jobs without it either.
            if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
                signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
            executor = kwargs.get("executor_plugin") or args[0]
            remove_stale_locks(Path(".snakemake"), register=not executor.common_settings.dryrun_exec)
            gpus = workflow.global_resources.get("gpu")
            if (n_gpus := getattr(gpus, "value", gpus)) is not None and executor.common_settings.local_exec:
                # A job requests an integer, so the limit counts jobs.
                workflow.register_resource("gpu", self.jobs_per_gpu * int(n_gpus))
            return execute(*args, **kwargs)

        if workflow.is_main_process:
            workflow.execute = resume


class _Triggers:
    """Job → the jobs that depend on it by a file that is not `ancient`."""

    def __init__(self, depending: Mapping[Any, Mapping[Any, Any]]):
        self._depending = depending

    def __getitem__(self, job: Any) -> dict[Any, Any]:
        return {d: files for d, files in self._depending[job].items() if not all(f.is_ancient for f in files)}


def remove_stale_locks(folder: Path, *, register: bool) -> None:
    """Remove Snakemake's locks if every process that may hold them is dead.

    Args:
        folder: `.snakemake` of the working directory. A process on another host counts as alive.
        register: let others know of this process until it ends.
    """
    registry = folder / "mrpipe_processes"
    if all([_is_dead(path) for path in registry.glob("*.json")]):
        _remove((folder / "locks").glob("*.lock"))
    if register:
        registry.mkdir(parents=True, exist_ok=True)
        process = psutil.Process()
        own = registry / f"{platform.node()}-{process.pid}.json"
        content = {"host": platform.node(), "pid": process.pid, "started": process.create_time()}
        own.write_text(json.dumps(content), encoding="utf-8")
        atexit.register(_remove, [own])


def _is_dead(path: Path) -> bool:
    """Whether a registered process has ended; its registration is removed then."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["host"] != platform.node():
            return False
        # A process id may belong to another process by now.
        alive = abs(psutil.Process(entry["pid"]).create_time() - entry["started"]) < 1
    except (psutil.NoSuchProcess, FileNotFoundError, ValueError, KeyError, TypeError):
        alive = False
    if not alive:
        _remove([path])
    return not alive


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
