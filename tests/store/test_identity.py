"""The identity of the tables that a run reads, from the manifest of a store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mrpipe
from mrpipe.errors import DataError
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from mrpipe.store.content import data_identity
from mrpipe.store.manifest import read_manifest
from tests import toy
from tests.stores import manifest_of, reseal


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        toy.skip_code_of_dataset(patch)
        simulate(toy.TOY, root / "raw", {"n": 60})
        build(toy.TOY, root / "raw", root / "store", {})
    return root / "store"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_identity_of_data_depends_on_the_tables_that_are_read(built: Path) -> None:
    manifest = read_manifest(built)
    known = {m["name"]: m for m in manifest.modalities}
    views = {"all": (), "table": ("table",), "both": ("table", "series")}

    def identities(**changes: Any) -> dict[str, str]:
        changed = replace(manifest, **changes)
        return {name: data_identity(changed, view or None) for name, view in views.items()}

    def differing(**changes: Any) -> set[str]:
        after = identities(**changes)
        return {name for name in views if after[name] != before[name]}

    def with_modality(name: str, **values: Any) -> dict[str, Any]:
        return {"modalities": tuple({**m, **(values if m["name"] == name else {})} for m in known.values())}

    def with_first(key: str, **values: Any) -> dict[str, Any]:
        first, *others = getattr(manifest, key)
        return {key: ({**first, **values}, *others)}

    before = identities()
    assert differing(options={"x": 1}, inputs=(), notes=("new",), release="other", code_hash="other") == set()
    assert differing(**with_modality("series", sha256="0")) == {"all", "both"}
    assert differing(**with_modality("table", dictionary_sha256="0")) == set(views)
    assert differing(**with_modality("series", shape=[1])) == {"all", "both"}
    assert differing(**with_first("labels", sha256="0")) == set(views)
    for name, whom in (("samples", set(views)), ("attrition", set()), ("dictionary", set())):
        changed = [{**t, "sha256": "0"} if t["name"] == name else t for t in manifest.tables]
        assert differing(tables=tuple(changed)) == whom, name
    read = next(s for s in manifest.splits if s["scheme"] == manifest.default_scheme)
    other = {**read, "scheme": "other", "sha256": "0"}
    assert differing(splits=(*manifest.splits, other)) == set()
    assert differing(splits=tuple({**s, "sha256": "0"} if s is read else s for s in manifest.splits)) == set(views)
    without = tuple({k: v for k, v in m.items() if k != "dictionary_sha256"} for m in manifest.modalities)
    assert differing(modalities=without) == set(views)  # an older store: its whole dictionary counts


def test_a_store_without_identities_of_its_dictionary_opens_and_verifies(copy: Path) -> None:
    values = manifest_of(copy)
    older = [{k: v for k, v in m.items() if k != "dictionary_sha256"} for m in values["modalities"]]
    reseal(copy, {"modalities": older})
    mrpipe.open_store(copy).verify(deep=True)
    wrong = [{**m, "dictionary_sha256": "0" * 64} for m in values["modalities"]]
    reseal(copy, {"modalities": wrong})
    with pytest.raises(DataError, match="dictionary_sha256"):
        mrpipe.open_store(copy).verify()
