"""Changes that affect the code hash and changes that do not, on a small example project."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mrpipe.codehash
from mrpipe.codehash import code_hash, reached
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


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return written(tmp_path, FILES)


def hash_now(root: Path, *entries: str) -> str:
    """Hash of the current files, without the cache of the process."""
    importlib.reload(mrpipe.codehash)
    return mrpipe.codehash.code_hash(*entries, root=root)


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_closure_follows_lazy_relative_and_aliased_imports(project: Path) -> None:
    assert sorted(reached("mrpipe.store", root=project)) == ["mrpipe.masks", "mrpipe.store"]
    assert sorted(reached("mrpipe.readers.text", root=project)) == [
        "mrpipe.masks",
        "mrpipe.readers.common",
        "mrpipe.readers.text",
    ]
    assert sorted(reached("mrpipe.readers.audio", root=project)) == ["mrpipe.masks", "mrpipe.readers.audio"]
    assert sorted(reached("moe_retriever.train", root=project)) == [
        "moe_retriever.train",
        "mrpipe.masks",
        "mrpipe.store",
    ]
    assert sorted(reached("mrpipe.dynamic", root=project)) == ["mrpipe.dynamic", "mrpipe.masks"]


def test_imports_for_type_checking_only_do_not_count(project: Path) -> None:
    assert sorted(reached("mrpipe.typed", root=project)) == ["mrpipe.typed"]


def test_package_is_included_if_something_is_imported_from_it(project: Path) -> None:
    assert "mrpipe.readers.audio" in reached("mrpipe.readers", root=project)
    assert "mrpipe.readers.audio" not in reached("mrpipe.readers.text", root=project)


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
def test_comments_docstrings_and_formatting_do_not_change_the_hash(project: Path, old: str, new: str) -> None:
    before = hash_now(project, "mrpipe.store")
    edit(project, "mrpipe/masks.py", old, new)
    assert hash_now(project, "mrpipe.store") == before


def test_code_edit_changes_exactly_the_dependent_hashes(project: Path) -> None:
    entries = ("mrpipe.store", "mrpipe.readers.text", "mrpipe.readers.audio", "moe_retriever.train", "mrpipe.typed")
    before = {e: hash_now(project, e) for e in entries}
    edit(project, "mrpipe/readers/common.py", "legend.json", "legends.json")
    after = {e: hash_now(project, e) for e in entries}
    assert {e for e in entries if before[e] != after[e]} == {"mrpipe.readers.text"}
    edit(project, "mrpipe/masks.py", "return x", "return x + 1")
    last = {e: hash_now(project, e) for e in entries}
    assert {e for e in entries if after[e] != last[e]} == set(entries) - {"mrpipe.typed"}


@pytest.mark.parametrize(("old", "new"), [("return x", "return None"), ("return x", "return 'x'"), ("(x)", "(x=0)")])
def test_small_semantic_changes_change_the_hash(project: Path, old: str, new: str) -> None:
    before = hash_now(project, "mrpipe.masks")
    edit(project, "mrpipe/masks.py", old, new)
    assert hash_now(project, "mrpipe.masks") != before


def test_equal_constants_of_different_type_change_the_hash(project: Path) -> None:
    hashes = set()
    for value in ("1", "1.0", "True", "'1'", "b'1'", "None", "..."):
        (project / "mrpipe/masks.py").write_text(f"X = {value}\n")
        hashes.add(hash_now(project, "mrpipe.masks"))
    assert len(hashes) == 7


def test_data_file_named_in_the_code_changes_the_hash(project: Path) -> None:
    before = hash_now(project, "mrpipe.readers.text"), hash_now(project, "mrpipe.readers.audio")
    (project / "mrpipe/readers/legend.json").write_text('{"text": 1}')
    after = hash_now(project, "mrpipe.readers.text"), hash_now(project, "mrpipe.readers.audio")
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_errors_name_the_module_and_line(project: Path) -> None:
    with pytest.raises(UsageError, match=r"mrpipe\.nothing"):
        code_hash("mrpipe.nothing", root=project)
    (project / "mrpipe/masks.py").write_text("x = 1\ndef (:\n")
    with pytest.raises(mrpipe.codehash.UsageError, match=r"masks\.py, line 2"):
        hash_now(project, "mrpipe.store")


def test_hashes_are_remembered_until_a_file_changes(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MRPIPE_CACHE", str(cache))
    before = hash_now(project, "mrpipe.store")
    assert not list(cache.rglob("*.json")), "the files have just been written"
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 10)
    assert hash_now(project, "mrpipe.store") == before
    (file,) = cache.rglob("*.json")
    file.write_text(file.read_text().replace(before, "remembered"))
    assert hash_now(project, "mrpipe.store") == "remembered"
    # Same size and modification time.
    masks = project / "mrpipe/masks.py"
    stat = masks.stat()
    edit(project, "mrpipe/masks.py", "return x", "return 1")
    os.utime(masks, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_now(project, "mrpipe.store") not in (before, "remembered")
    file.write_text("[1")
    assert hash_now(project, "mrpipe.store") not in (before, "remembered")


def test_hash_is_independent_of_the_process() -> None:
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
    assert found == {code_hash("mrpipe.store.masks", "mrpipe.store.parquet") + "\n"}


LIBRARY = {
    "mrpipe/entry.py": "from mrpipe.api import run as start\nfrom mrpipe import tools\n\n\ndef step():\n"
    "    from mrpipe.lazy import late\n    return start(late(), tools.used(), LIMIT)\n\nLIMIT = 1\nOTHER = 2\n",
    "mrpipe/api/__init__.py": "from .inner import go as run\nfrom .inner import stop\n",
    "mrpipe/api/inner.py": "import dataclasses\nfrom mrpipe.bases import Base, unused\n\n\ndef hint(x): return x\n\n\n"
    "DEFAULT = 3\n\n\n@dataclasses.dataclass\nclass Item(Base):\n    size: int = DEFAULT\n\n\n"
    "def go(a, b, c, n=DEFAULT) -> Item:\n    return Item(n)\n\n\ndef stop():\n    return 0\n",
    "mrpipe/bases.py": "class Base:\n    kind = 'a'\n\n\ndef unused():\n    return 1\n",
    "mrpipe/tools.py": "TABLE = {}\n\n\ndef used():\n    return TABLE\n\n\ndef spare():\n    return 5\n\n\n"
    "TABLE['x'] = 6\n",
    "mrpipe/lazy.py": "FILE = 'late.csv'\n\n\ndef late():\n    return FILE\n\n\ndef early():\n    return 'early.csv'\n",
    "mrpipe/late.csv": "1",
    "mrpipe/early.csv": "1",
    "mrpipe/registry.py": "ALL = []\n\n\ndef register(f):\n    ALL.append(f)\n    return f\n\n\ndef every():\n"
    "    from mrpipe import plugin\n    return ALL\n",
    "mrpipe/plugin.py": "from mrpipe.registry import register\n\n\n@register\ndef one():\n    return 7\n\n\n"
    "VALUE = register(8)\n\n\ndef none():\n    return 9\n",
    "mrpipe/objects.py": "import mrpipe.lazy as m\n\n\ndef get(name):\n    return getattr(m, name)\n\n\n"
    "def own(name):\n    return globals()[name]\n\n\ndef hidden():\n    return 10\n",
    "mrpipe/dotted.py": "import mrpipe.lazy\n\n\ndef f():\n    return mrpipe.lazy.late()\n",
    "mrpipe/starred.py": "from mrpipe.lazy import *\n\n\ndef f():\n    return late()\n",
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return written(tmp_path, LIBRARY | {"mrpipe/__init__.py": ""})


@pytest.mark.parametrize(
    ("entry", "file", "old", "new", "counts"),
    [
        ("entry:step", "entry.py", "LIMIT = 1", "LIMIT = 11", True),
        ("entry:step", "entry.py", "OTHER = 2", "OTHER = 22", False),
        ("entry:step", "entry.py", "import run as start", "import stop as start", True),
        ("entry:step", "api/__init__.py", "import go as run", "import stop as run", True),
        ("entry:step", "api/inner.py", "return Item(n)", "return Item(-n)", True),
        ("entry:step", "api/inner.py", "return 0", "return 00", False),
        ("entry:step", "api/inner.py", "return 0", "return 2", False),
        ("entry:step", "api/inner.py", "DEFAULT = 3", "DEFAULT = 33", True),
        ("entry:step", "api/inner.py", "@dataclasses.dataclass", "@dataclasses.dataclass(frozen=True)", True),
        ("entry:step", "api/inner.py", "import dataclasses", "import attr as dataclasses", True),
        ("entry:step", "api/inner.py", "return x", "return -x", False),
        ("entry:step", "bases.py", "kind = 'a'", "kind = 'b'", True),
        ("entry:step", "bases.py", "return 1", "return 11", False),
        ("entry:step", "tools.py", "return TABLE", "return dict(TABLE)", True),
        ("entry:step", "tools.py", "return 5", "return 55", False),
        ("entry:step", "tools.py", "= 6", "= 66", True),
        ("entry:step", "lazy.py", "return FILE", "return FILE * 2", True),
        ("entry:step", "lazy.py", "return 'early.csv'", "return ''", False),
        ("entry:step", "late.csv", "1", "2", True),
        ("entry:step", "early.csv", "1", "2", False),
        ("registry:every", "plugin.py", "return 7", "return 77", True),
        ("registry:every", "plugin.py", "register(8)", "register(88)", True),
        ("registry:every", "plugin.py", "return 9", "return 99", False),
        ("objects:get", "lazy.py", "return 'early.csv'", "return ''", True),
        ("objects:get", "objects.py", "return 10", "return 1010", False),
        ("objects:own", "objects.py", "return 10", "return 1010", True),
        ("dotted:f", "lazy.py", "return FILE", "return FILE * 2", True),
        ("starred:f", "lazy.py", "return FILE", "return FILE * 2", True),
    ],
)
def test_only_an_edit_of_reachable_code_changes_the_hash(
    library: Path, entry: str, file: str, old: str, new: str, counts: bool
) -> None:
    before = hash_now(library, f"mrpipe.{entry}")
    edit(library, f"mrpipe/{file}", old, new)
    assert (hash_now(library, f"mrpipe.{entry}") != before) == counts


def test_no_base_class_of_the_project_registers_its_subclasses() -> None:
    root = Path(__file__).parents[2]
    files = [f for folder in ("mrpipe", "model") for f in (root / folder).rglob("*.py") if f.name != "codehash.py"]
    hooks = ("__init_subclass__", "__subclasses__", "metaclass=")
    assert [f.name for f in files if any(hook in f.read_text() for hook in hooks)] == []
