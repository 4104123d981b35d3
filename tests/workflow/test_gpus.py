"""`cells_per_gpu`: how many jobs may use the GPUs of this machine at a time."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake.api  # noqa: F401 (first, because modules of Snakemake import each other)
from snakemake.resources import Resources

from workflow.planning import snakemake_internals


@pytest.mark.parametrize(
    ("local", "limits", "expected"),
    [
        (True, {"gpu": 2}, {"gpu": 8}),
        # Without a limit there is nothing to share, and a cluster hands out whole GPUs.
        (True, {}, {}),
        (False, {"gpu": 1}, {"gpu": 1}),
    ],
)
def test_the_limit_of_a_local_run_counts_jobs_per_gpu(
    local: bool, limits: dict[str, int], expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snakemake_internals, "remove_stale_locks", lambda folder, register: None)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    calls: list[Any] = []
    resources = Resources.from_mapping(limits)
    workflow = SimpleNamespace(modifier=None, pathvars=None, is_main_process=True, dag_settings=SimpleNamespace())
    workflow.global_resources, workflow.register_resource = resources, resources.__setitem__
    workflow.execute = lambda *args, **kwargs: calls.append({name: each.value for name, each in resources.items()})
    internals = snakemake_internals.Internals(workflow)
    internals.resume_interrupted()
    internals.jobs_per_gpu = 4
    executor = SimpleNamespace(common_settings=SimpleNamespace(local_exec=local, dryrun_exec=True))
    workflow.execute(executor_plugin=executor)
    assert calls == [expected]
