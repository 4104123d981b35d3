"""What changes the code hash and what does not, on small projects written for the purpose."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mrpipe.codehash
from mrpipe.codehash import closure, code_hash
from mrpipe.errors import UsageError

FILES = {
    "mrpipe/__init__.py": '"""Package."""\nfrom mrpipe.store import open_store\n',
    "mrpipe/store.py": "def open_store(path):\n    from mrpipe import masks\n    return masks.bits(path)\n",
    "mrpipe/masks.py": '"""Masks."""\n\ndef bits(x):\n    """Bits of x."""\n    return x  # as they are\n',
    "mrpipe/readers/__init__.py": "from mrpipe.readers.audio import read\nfrom mrpipe.readers.text import read as r2\n",
    "mrpipe/readers/text.py": "from ..masks import bits\nfrom .common import LEGEND\n",
    "mrpipe/readers/audio.py": "import numpy\nimport mrpipe.masks as m\n",
    "mrpipe/readers/common.py": "from pathlib import Path\nLEGEND = Path(__file__).with_name('legend.json')\n",
    "mrpipe/readers/legend.json": "{}",
    "mrpipe/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mrpipe.masks import bits\n",
    "mrpipe/dynamic.py": "import importlib\nimportlib.import_module('mrpipe.masks')\nname = 'x'\n"
    "importlib.import_module(f'mrpipe.readers.{name}')\n",
    "model/moe_retriever/train.py": "from mrpipe.store import open_store\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def hash_now(root: Path, *entries: str) -> str:
    """The hash of the files as they are now; one process sees each file once otherwise."""
    importlib.reload(mrpipe.codehash)
    return mrpipe.codehash.code_hash(*entries, root=root)


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_closure_follows_lazy_relative_and_aliased_imports(project: Path) -> None:
    assert closure("mrpipe.store", root=project) == ["mrpipe.masks", "mrpipe.store"]
    assert closure("mrpipe.readers.text", root=project) == [
        "mrpipe.masks",
        "mrpipe.readers.common",
        "mrpipe.readers.text",
    ]
    assert closure("mrpipe.readers.audio", root=project) == ["mrpipe.masks", "mrpipe.readers.audio"]
    assert closure("moe_retriever.train", root=project) == ["moe_retriever.train", "mrpipe.masks", "mrpipe.store"]
    assert closure("mrpipe.dynamic", root=project) == ["mrpipe.dynamic", "mrpipe.masks"]


def test_imports_for_type_checking_only_do_not_count(project: Path) -> None:
    assert closure("mrpipe.typed", root=project) == ["mrpipe.typed"]


def test_a_package_counts_when_something_is_imported_from_it(project: Path) -> None:
    assert "mrpipe.readers.audio" in closure("mrpipe.readers", root=project)
    assert "mrpipe.readers.audio" not in closure("mrpipe.readers.text", root=project)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# as they are", "# unchanged; see the specification"),
        ('"""Bits of x."""', '"""Bits of x, little end first."""'),
        ('"""Masks."""', '"""Masks\n\nand what they mean."""'),
        ('    """Bits of x."""\n', ""),
        ("\n\ndef", "\n\n\n\ndef"),
    ],
)
def test_comments_docstrings_and_layout_are_free(project: Path, old: str, new: str) -> None:
    before = hash_now(project, "mrpipe.store")
    edit(project, "mrpipe/masks.py", old, new)
    assert hash_now(project, "mrpipe.store") == before


def test_a_code_edit_changes_exactly_the_dependants(project: Path) -> None:
    entries = ("mrpipe.store", "mrpipe.readers.text", "mrpipe.readers.audio", "moe_retriever.train", "mrpipe.typed")
    before = {e: hash_now(project, e) for e in entries}
    edit(project, "mrpipe/readers/common.py", "legend.json", "legends.json")
    after = {e: hash_now(project, e) for e in entries}
    assert {e for e in entries if before[e] != after[e]} == {"mrpipe.readers.text"}
    edit(project, "mrpipe/masks.py", "return x", "return x + 1")
    last = {e: hash_now(project, e) for e in entries}
    assert {e for e in entries if after[e] != last[e]} == set(entries) - {"mrpipe.typed"}


@pytest.mark.parametrize(("old", "new"), [("return x", "return None"), ("return x", "return 'x'"), ("(x)", "(x=0)")])
def test_small_changes_of_meaning_are_seen(project: Path, old: str, new: str) -> None:
    before = hash_now(project, "mrpipe.masks")
    edit(project, "mrpipe/masks.py", old, new)
    assert hash_now(project, "mrpipe.masks") != before


def test_constants_of_different_type_differ(project: Path) -> None:
    hashes = set()
    for value in ("1", "1.0", "True", "'1'", "b'1'", "None", "..."):
        (project / "mrpipe/masks.py").write_text(f"X = {value}\n")
        hashes.add(hash_now(project, "mrpipe.masks"))
    assert len(hashes) == 7


def test_a_data_file_that_the_code_names_counts(project: Path) -> None:
    before = hash_now(project, "mrpipe.readers.text"), hash_now(project, "mrpipe.readers.audio")
    (project / "mrpipe/readers/legend.json").write_text('{"text": 1}')
    after = hash_now(project, "mrpipe.readers.text"), hash_now(project, "mrpipe.readers.audio")
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_errors_name_the_module_and_the_line(project: Path) -> None:
    with pytest.raises(UsageError, match=r"mrpipe\.nothing"):
        code_hash("mrpipe.nothing", root=project)
    (project / "mrpipe/masks.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(mrpipe.codehash.UsageError, match=r"masks\.py, line 2"):
        hash_now(project, "mrpipe.store")


def test_the_hash_does_not_depend_on_the_process() -> None:
    program = "from mrpipe.codehash import code_hash; print(code_hash('mrpipe.store.parquet', 'mrpipe.store.masks'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert found == {code_hash("mrpipe.masks", "mrpipe.parquet") + "\n"}
