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
    assert not outcome.refuted


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("a = x.astype(np.float64)", "a = x.astype(None)", True),
        ("a = x.astype(np.float64) + y.astype(np.int64)", "a = x.astype(np.float64) + y.astype(None)", False),
        ("a = x.astype(np.float32)", "a = x.astype(None)", False),
        ("for a, b in zip(x, y, strict=True):", "for a, b in zip(x, y, strict=False):", True),
        ("for a, b in zip(x, y, strict=True):", "for a, b in zip(x, y, ):", True),
        ("for a, b in zip(x, y, strict=True):", "for a, b in zip(x, strict=True):", False),
        ('y = torch.einsum("qn,qh->nh", a, b)', 'y = torch.einsum("QN,QH->NH", a, b)', True),
        ('y = torch.einsum("qn,qh->nh", a, b)', 'y = torch.einsum("XXqn,qh->nhXX", a, b)', False),
        ('y = f("qn,qh->nh")', 'y = f("QN,QH->NH")', False),
    ],
)
def test_only_the_listed_changes_are_equivalent(before: str, after: str, same: bool) -> None:
    head = "--- mrpipe/a.py\n+++ mrpipe/a.py\n@@ -1,2 +1,2 @@\n def f():\n"
    assert mutation.is_equivalent(f"{head}-    {before}\n+    {after}") is same
    assert not mutation.is_equivalent(f"{head}-    {before}\n+    {after}\n+    pass")


def test_every_mutated_module_and_its_tests_exist(project: Path) -> None:
    for package in mutation.PACKAGES.values():
        for module in package.modules:
            root = project / "model" if module.startswith("moe_retriever") else project
            assert list(root.glob(module)), module
        for tests in package.tests:
            assert (project / "tests" / tests).exists(), tests
