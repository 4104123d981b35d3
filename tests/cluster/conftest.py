"""The SLURM cluster shared by these tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.cluster.one_node import Cluster, NoClusterError, one_node


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM cluster on this machine; skips with the reason if it cannot be started."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra 'slurm' is not installed")
    with ExitStack() as up:
        try:
            running = up.enter_context(one_node(tmp_path_factory.mktemp("slurm")))
        except NoClusterError as reason:
            pytest.skip(str(reason))
        yield running
