"""The tests notice at least nine of ten small changes to the core modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("mutmut")
_SPEC = importlib.util.spec_from_file_location("mutation", Path(__file__).parents[1] / "mutation.py")
assert _SPEC is not None
assert _SPEC.loader is not None
mutation = importlib.util.module_from_spec(_SPEC)
sys.modules["mutation"] = mutation
_SPEC.loader.exec_module(mutation)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("package", mutation.PACKAGES)
def test_at_least_nine_of_ten_mutants_are_killed(tmp_path: Path, package: str) -> None:
    outcome = mutation.run_package(package, sample=40, workers=2, folder=tmp_path)
    assert outcome.rate >= 0.9, "\n\n".join(outcome.survivors.values())


def test_every_mutated_module_and_its_tests_exist(project: Path) -> None:
    for package in mutation.PACKAGES.values():
        for module in package.modules:
            root = project / "model" if module.startswith("moe_retriever") else project
            assert list(root.glob(module)), module
        for tests in package.tests:
            assert (project / "tests" / tests).exists(), tests
