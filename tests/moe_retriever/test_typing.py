"""Options are typed: mypy finds a misspelt option, and each method's type parameter is its `Options` class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TypeVar, get_args

import pytest

from moe_retriever.methods import get, names


def type_parameter(method: type) -> object:
    """The options class in `Method[…]` among the bases of a method."""
    arguments = [a for c in method.__mro__ for base in vars(c).get("__orig_bases__", ()) for a in get_args(base)]
    return next(a for a in arguments if not isinstance(a, TypeVar))


@pytest.mark.parametrize("name", names())
def test_the_type_parameter_is_the_options_class(name: str) -> None:
    assert type_parameter(get(name)) is get(name).Options


@pytest.mark.whole
def test_a_misspelt_option_is_a_type_error(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    source = (project / "model/moe_retriever/methods/late_fusion.py").read_text()
    assert "self.config.own.unimodal:" in source
    (tmp_path / "right.py").write_text(source)
    (tmp_path / "wrong.py").write_text(source.replace("self.config.own.unimodal:", "self.config.own.unimodall:"))
    command = [sys.executable, "-m", "mypy", tmp_path / "right.py", tmp_path / "wrong.py"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert "wrong.py" in errors[0]
    assert '"LateFusionOptions" has no attribute "unimodall"' in errors[0]
