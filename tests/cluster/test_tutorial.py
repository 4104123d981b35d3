"""The tutorial on SLURM, with its last command submitted to a real one."""

from pathlib import Path

import polars as pl
import pytest

from tests.cluster.one_node import Cluster
from tests.docs.tutorial import Tutorial

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_from_a_laptop_to_slurm(cluster: Cluster, tmp_path: Path) -> None:
    before = {job.id for job in cluster.jobs()}
    tutorial = Tutorial(tmp_path / "here")

    def without_accounting(block: str) -> str:
        """The copy of the profile for this cluster, and for jobs of seconds."""
        settings = "slurm-status-command: squeue\nslurm-init-seconds-before-status-checks: 1\n"
        return block.replace("grep SITE", f"printf '{settings}' >> slurm/profile.v9+.yaml\ngrep SITE")

    tutorial.run("slurm.md", change=without_accounting)
    submitted = [job for job in cluster.jobs() if job.id not in before]
    trainings = [job for job in submitted if job.partition == "gpu"]
    assert len(trainings) == 4
    assert all(job.gpus == 1 and job.state == "COMPLETED" for job in trainings)
    scores = pl.read_csv(tutorial.folder / "results/report/results.csv")
    assert set(scores["seed"]) == {0, 1, 2}
