"""The cluster that these tests share, and how they start Snakemake on it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType

import pytest

from tests.cluster.one_node import Cluster, NoClusterError, one_node


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """SLURM on this machine; skips with the reason where that cannot be."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra 'slurm' is not installed")
    up = ExitStack()
    before = signal.signal(signal.SIGTERM, _interrupt)
    up.callback(signal.signal, signal.SIGTERM, before)
    with up:
        try:
            running = up.enter_context(one_node(tmp_path_factory.mktemp("slurm")))
        except NoClusterError as reason:
            pytest.skip(str(reason))
        yield running


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """A test run that is asked to end takes its cluster down like one that is interrupted from the keyboard."""
    raise KeyboardInterrupt
