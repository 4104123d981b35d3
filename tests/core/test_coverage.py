"""Coverage per package: the sums, the packages and the thresholds."""

from __future__ import annotations

import pytest

from tests.coverage_by_package import THRESHOLDS, below, package_of, shares


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("mrpipe/store/reader.py", "mrpipe.store"),
        ("mrpipe/datasets/mosi/formats/csd.py", "mrpipe.datasets.mosi"),
        ("mrpipe/datasets/events.py", "mrpipe.datasets"),
        ("model/moe_retriever/nn/kernels/linear.py", "moe_retriever.nn"),
        ("mrpipe/raw.py", "mrpipe"),
    ],
)
def test_modules_belong_to_packages(file: str, package: str) -> None:
    assert package_of(file) == package


def test_shares_are_of_lines_and_branches_of_all_modules() -> None:
    def entry(covered: int, lines: int, covered_branches: int, branches: int) -> dict[str, dict[str, int]]:
        numbers = (covered, lines, covered_branches, branches)
        names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
        return {"summary": dict(zip(names, numbers, strict=True))}

    report = {"files": {"mrpipe/store/a.py": entry(8, 10, 1, 4), "mrpipe/store/b.py": entry(1, 4, 0, 2)}}
    found = shares(report)
    assert found == {"mrpipe.store": 50.0}
    assert below(found, {"mrpipe.store": 50}) == []
    assert below(found, {"mrpipe.store": 51, "mrpipe.text": 1}) == ["mrpipe.store", "mrpipe.text"]


def test_the_core_packages_have_thresholds() -> None:
    assert {"mrpipe", "mrpipe.experiment", "mrpipe.stages", "mrpipe.store", "mrpipe.transforms"} == set(THRESHOLDS)
