"""Run Snakemake as a user does, in a separate folder, and parse its output."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.workflow.forks import SnakemakeForks

# Both datasets at the smallest size that has all splits, modality combinations and quirks; a narrow model, two epochs.
TINY: dict[str, Any] = {
    "datasets": {
        "mosi": {"raw": "simulated", "simulation": {"n_videos": 9, "clips_per_video": 6, "frames_per_second": 2}},
        "enrico": {"raw": "simulated", "simulation": {"n_screens": 60, "scale": 0.1}},
    },
    "experiments": {
        name: {
            "dataset": name,
            "methods": ["moe_retriever"],
            "missingness": {"p": 0.3},
            "overrides": {"epochs": 2, "hidden": 16, "tokens": 2, "encoder_hidden": 16, "cnn_width": 0.125},
        }
        for name in ("mosi", "enrico")
    },
}


def store_ids(folder: Path) -> dict[str, str]:
    """Name of each store of a finished run → its id."""
    return {
        path.parent.name: json.loads(path.read_text())["store_id"]
        for path in sorted(folder.glob("results/stores/*/manifest.json"))
    }


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a Snakemake run."""

    code: int
    text: str

    @property
    def jobs(self) -> list[str]:
        """Sorted jobs of a dry run: rule name and wildcard values, e.g. `ingest mosi audio`."""
        # Jobs of one cluster submission are indented below their group.
        _, *found = re.split(r"^ *(?:local)?rule (\w+):\n", self.text, flags=re.MULTILINE)
        jobs = []
        for rule, body in zip(found[::2], found[1::2], strict=True):
            values = re.search(r"^ *wildcards: (.*)$", body, flags=re.MULTILINE)
            jobs.append(" ".join([rule, *re.findall(r"\w+=([^,]+)", values[1] if values else "")]))
        return sorted(jobs)

    @property
    def idle(self) -> bool:
        return "Nothing to be done" in self.text


Snakemake = Callable[..., Outcome]


@pytest.fixture(scope="session")
def forks(project: Path) -> Iterator[Callable[[Path], SnakemakeForks]]:
    """Starts Snakemake with the code of a checkout: this one has been imported and hashed before, others are not."""
    with ExitStack() as open_:
        made: dict[bool, SnakemakeForks] = {}

        def of(root: Path) -> SnakemakeForks:
            own = root == project
            if own not in made:
                made[own] = SnakemakeForks(project if own else None)
                open_.callback(made[own].close)
            return made[own]

        yield of


@pytest.fixture(scope="session")
def snakemake(project: Path, forks: Callable[[Path], SnakemakeForks]) -> Snakemake:
    """Runs `snakemake [arguments] --cores 2` with a configuration in a folder, from a checkout."""

    def run(
        *arguments: str, folder: Path, config: dict[str, Any] | None = None, root: Path = project, seconds: int = 300
    ) -> Outcome:
        command = [*arguments, "--snakefile", str(root / "Snakefile"), "--directory", str(folder), "--cores", "2"]
        if config is not None:
            path = folder / "config.yaml"
            path.write_text(yaml.safe_dump(config))
            command += ["--configfile", str(path)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return Outcome(*forks(root).call(command, folder=folder, env=env, seconds=seconds))

    return run


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A copy of the tiny configuration that a test may modify."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def finished(snakemake: Snakemake, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder in which the tiny configuration ran from end to end; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            outcome = snakemake("--show-failed-logs", folder=folder, config=TINY)
            assert outcome.code == 0, outcome.text
            (folder / "first_run.txt").write_text(outcome.text)
    assert (folder / "first_run.txt").exists(), "the run failed in another worker"
    return folder


@pytest.fixture
def checkout(project: Path, tmp_path: Path) -> Path:
    """A copy of the code that a test may edit."""
    root = tmp_path / "checkout"
    for name in ("mrpipe", "model", "workflow"):
        shutil.copytree(project / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(project / name, root / name)
    return root


@pytest.fixture
def user_folder(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A configuration, beside modules with the names of ours and of our dependencies, which must not run."""
    folder = tmp_path / "user"
    folder.mkdir()
    for name in ("model", "moe_retriever", "mrpipe", "mrpipe_planning", "torch", "workflow"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user's {name}.py ran')\n")
    config = {key: {"mosi": tiny[key]["mosi"]} for key in ("datasets", "experiments")}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    return folder
