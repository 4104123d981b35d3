"""The archived stores follow docs/store-format.md, read as the page says: with pyarrow and polars, without mrpipe."""

from __future__ import annotations

import hashlib
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "store-format.md").read_text(encoding="utf-8")
STORES = sorted((PROJECT / "tests" / "data" / "stores").glob("format-2*"))
DOCUMENTED = set(re.findall(r"`([\w<>.]+)`", PAGE))
NOT_IN_ID = {"code_hash", "mrpipe_version", "card", "store_id", "checksum"}
HISTORY = {"options", "options_changed", "inputs", "notes"}
DECLARATION = ("name", "bit", "kind", "shape", "dtype", "encoding", "irregular", "time_unit", "encoder", "description")


@pytest.fixture(params=STORES, ids=lambda p: p.name)
def store(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def manifest(store: Path) -> dict[str, Any]:
    return json.loads((store / "manifest.json").read_text(encoding="utf-8"))


def entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for key in ("tables", "modalities", "labels", "splits") for e in manifest[key]]


def rising(ids: pl.Series) -> bool:
    encoded = [i.encode() for i in ids]
    return all(a < b for a, b in pairwise(encoded))


def metadata(path: Path) -> dict[str, Any]:
    return {k.decode(): v for k, v in (pq.read_metadata(path).metadata or {}).items()}


def test_there_is_an_archived_store() -> None:
    assert STORES


def test_manifest_has_the_required_keys(manifest: dict[str, Any]) -> None:
    table = PAGE.split("## manifest.json", 1)[1].split("**File entry.**", 1)[0]
    keys = {k for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for k in re.findall(r"`(\w+)`", row)}
    assert set(manifest) == keys
    assert manifest["format"] == 2
    assert manifest["origin"] in ("simulated", "export")


def test_every_key_and_column_is_documented(store: Path, manifest: dict[str, Any]) -> None:
    lists = ("modalities", "labels", "splits", "tables", "inputs")
    names = set(manifest) | {key for name in lists for entry in manifest[name] for key in entry}
    modalities = {m["name"] for m in manifest["modalities"]}
    for path in store.rglob("*.parquet"):
        names |= set(pq.read_schema(path).names)
        names |= set(metadata(path)) - {"ARROW:schema"}
    names -= {f"row_{m}" for m in modalities}
    # Further columns of samples.parquet are free; the archive has one.
    names -= {s["column"] for s in manifest["splits"] if "column" in s}
    assert names <= DOCUMENTED, names - DOCUMENTED


def test_layout(store: Path, manifest: dict[str, Any]) -> None:
    listed = {e["file"] for e in entries(manifest)}
    assert {t["name"]: t["file"] for t in manifest["tables"]} == {
        n: f"{n}.parquet" for n in ("samples", "dictionary", "attrition")
    }
    assert {m["file"] for m in manifest["modalities"]} == {
        f"modalities/{m['name']}.parquet" for m in manifest["modalities"]
    }
    assert {t["file"] for t in manifest["labels"]} == {f"labels/{t['name']}.parquet" for t in manifest["labels"]}
    assert {s["file"] for s in manifest["splits"]} == {f"splits/{s['scheme']}.parquet" for s in manifest["splits"]}
    assert all(m["name"].isidentifier() for m in manifest["modalities"])
    assert listed <= {p.relative_to(store).as_posix() for p in store.rglob("*")}
    ids = set(pl.read_parquet(store / "samples.parquet").select("sample_id", "subject_id").to_numpy().ravel())
    for name in ("manifest.json", "README.md"):
        text = (store / name).read_text(encoding="utf-8")
        assert not set(re.findall(r"\w+", text)) & ids
        assert not re.search(r'["` ]/\w', text)


def canonical_hash(values: dict[str, Any], *, without: set[str]) -> str:
    kept = {key: value for key, value in values.items() if key not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def test_files_match_their_entries_and_name_the_store(store: Path, manifest: dict[str, Any]) -> None:
    for entry in entries(manifest):
        path = store / entry["file"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (path.stat().st_size, digest) == (entry["size"], entry["sha256"])
        assert pq.read_metadata(path).num_rows == entry["rows"]
    card = (store / manifest["card"]["file"]).read_bytes()
    assert (len(card), hashlib.sha256(card).hexdigest()) == (manifest["card"]["size"], manifest["card"]["sha256"])
    forms = (NOT_IN_ID, NOT_IN_ID | HISTORY)
    assert manifest["store_id"] in [canonical_hash(manifest, without=form)[:16] for form in forms]
    assert canonical_hash(manifest, without={"checksum"}) == manifest["checksum"]
    provenance = json.loads((store / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["store_id"] == manifest["store_id"]
    assert canonical_hash(provenance, without={"checksum"}) == provenance["checksum"]
    files = {entry["file"] for entry in entries(manifest)} | {"README.md", "manifest.json", "provenance.json"}
    assert {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()} == files


def test_samples(store: Path, manifest: dict[str, Any]) -> None:
    samples = pl.read_parquet(store / "samples.parquet")
    assert samples.schema["sample_id"] == samples.schema["subject_id"] == pl.String
    assert samples.schema["modality_mask"] == pl.UInt16
    assert samples.select("sample_id", "subject_id", "modality_mask").null_count().sum_horizontal().item() == 0
    assert rising(samples["sample_id"])
    assert (len(samples), samples["subject_id"].n_unique()) == (manifest["n_samples"], manifest["n_subjects"])
    for modality in manifest["modalities"]:
        assert samples.schema[f"row_{modality['name']}"] == pl.Int32


def test_mask_row_and_table_agree(store: Path, manifest: dict[str, Any]) -> None:
    samples = pl.read_parquet(store / "samples.parquet")
    bits = [m["bit"] for m in manifest["modalities"]]
    assert bits == sorted(set(bits))
    assert all(0 <= b < 16 for b in bits)
    assert samples.filter(modality_mask=0).is_empty()
    counts: dict[str, int] = {}
    for mask in samples["modality_mask"].to_list():
        assert mask & ~sum(1 << b for b in bits) == 0
        name = "+".join(m["name"] for m in manifest["modalities"] if mask >> m["bit"] & 1)
        counts[name] = counts.get(name, 0) + 1
    assert counts == manifest["pattern_counts"]
    for modality in manifest["modalities"]:
        row = f"row_{modality['name']}"
        has_bit = [mask >> modality["bit"] & 1 == 1 for mask in samples["modality_mask"].to_list()]
        assert has_bit == samples[row].is_not_null().to_list()
        indexed = samples.drop_nulls(row)
        table = pl.read_parquet(store / modality["file"], columns=["sample_id"])
        assert indexed[row].to_list() == list(range(len(table)))
        assert indexed["sample_id"].equals(table["sample_id"])


def test_modality_tables(store: Path, manifest: dict[str, Any]) -> None:
    for modality in manifest["modalities"]:
        path = store / modality["file"]
        assert json.loads(metadata(path)["mrpipe.modality"]) == {key: modality[key] for key in DECLARATION}
        assert modality["kind"] in ("vector", "sequence", "image", "volume", "genotype")
        assert modality["encoding"] in ("plain", "packed2")
        table, size = pq.read_table(path), math.prod(modality["shape"])
        step = pa.list_(pa.from_numpy_dtype(modality["dtype"]), size)
        expected: dict[str, pa.DataType] = {"sample_id": pa.string(), "x": step}
        if modality["encoding"] == "packed2":
            expected["x"] = pa.binary()
            assert {len(x) for x in table["x"].to_pylist()} == {-(-size // 4)}
        elif modality["kind"] == "sequence":
            expected |= {"x": pa.list_(step), "length": pa.int32()}
            if modality["irregular"]:
                expected["time"] = pa.list_(pa.float32())
                assert [len(t) for t in table["time"].to_pylist()] == table["length"].to_pylist()
            assert [len(x) for x in table["x"].to_pylist()] == table["length"].to_pylist()
            assert min(table["length"].to_pylist()) >= 1
        assert dict(zip(table.schema.names, table.schema.types, strict=True)) == expected
        assert rising(pl.Series(table["sample_id"]))
        values = table["x"].combine_chunks()
        while not pa.types.is_primitive(values.type) and not pa.types.is_binary(values.type):
            assert values.null_count == 0
            values = values.flatten()
        assert values.null_count == 0
        if pa.types.is_floating(values.type):
            assert not any(math.isinf(v) for v in values.to_pylist())


def test_labels(store: Path, manifest: dict[str, Any]) -> None:
    samples = pl.read_parquet(store / "samples.parquet")
    for task in manifest["labels"]:
        frame = pl.read_parquet(store / task["file"])
        declared = {k: task[k] for k in ("name", "kind", "classes", "description")}
        assert json.loads(metadata(store / task["file"])["mrpipe.task"]) == declared
        dtype = pl.Int8 if task["kind"] == "classification" else pl.Float32
        assert dict(frame.schema) == {"sample_id": pl.String, "value": dtype}
        assert rising(frame["sample_id"])
        assert set(frame["sample_id"]) <= set(samples["sample_id"])
        assert frame["value"].null_count() == 0
        if task["kind"] == "classification":
            assert set(frame["value"]) <= set(range(len(task["classes"])))
        else:
            assert task["classes"] == []


def test_splits(store: Path, manifest: dict[str, Any]) -> None:
    samples = pl.read_parquet(store / "samples.parquet")
    schemes = [s["scheme"] for s in manifest["splits"]]
    assert schemes == sorted(schemes)
    assert manifest["default_scheme"] in schemes
    for scheme in manifest["splits"]:
        path = store / scheme["file"]
        frame = pl.read_parquet(path)
        assert dict(frame.schema) == {"sample_id": pl.String, "split": pl.String}
        assert rising(frame["sample_id"])
        assert set(frame["sample_id"]) <= set(samples["sample_id"])
        counts = dict(frame.group_by("split").len().iter_rows())
        assert counts == scheme["counts"]
        assert set(counts) <= {"train", "val", "test"}
        assert counts["train"] > 0
        joined = frame.join(samples, on="sample_id").group_by(scheme["grouping"]).agg(pl.col("split").n_unique())
        assert (joined["split"] == 1).all()
        settings = json.loads(metadata(path)["mrpipe.split"])
        assert settings == {k: v for k, v in scheme.items() if k not in ("counts", "file", "rows", "size", "sha256")}


def test_dictionary(store: Path, manifest: dict[str, Any]) -> None:
    frame = pl.read_parquet(store / "dictionary.parquet")
    text = dict.fromkeys(
        ("modality", "name", "dtype", "unit", "kind", "description", "source_file", "source_column"), pl.String
    )
    number = {"position": pl.Int32, "n_observed": pl.Int64, "n_missing": pl.Int64}
    assert dict(frame.schema) == text | number | {"levels": pl.List(pl.String)}
    assert frame["modality"].unique(maintain_order=True).to_list() == [m["name"] for m in manifest["modalities"]]
    for modality in manifest["modalities"]:
        rows = frame.filter(modality=modality["name"])
        assert rows["position"].to_list() == list(range(len(rows)))
        assert rows["name"].is_unique().all()
        expected = modality["shape"][0] if modality["kind"] == "image" else math.prod(modality["shape"])
        assert len(rows) == (1 if modality["kind"] == "volume" else expected)
    assert frame.filter(kind="categorical")["levels"].null_count() == 0


def test_attrition(store: Path, manifest: dict[str, Any]) -> None:
    frame = pl.read_parquet(store / "attrition.parquet")
    types = {"step": pl.Int32, "reason": pl.String, "n_before": pl.Int64, "n_after": pl.Int64, "modality": pl.String}
    assert dict(frame.schema) == types
    final = {None: manifest["n_samples"]} | {m["name"]: m["rows"] for m in manifest["modalities"]}
    for (name,), flow in frame.group_by("modality", maintain_order=True):
        assert flow["n_before"].to_list()[1:] == flow["n_after"].to_list()[:-1]
        assert flow["n_after"][-1] == final[name]
