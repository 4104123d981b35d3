"""Stores: invariants, sealing, verification and reading, on a store with every kind of modality."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mrpipe
from mrpipe.errors import DataError, UsageError
from mrpipe.genetics.packing import unpack_range
from mrpipe.raw import sha256
from mrpipe.schema import SPLIT_KEY
from mrpipe.stages.build import build
from mrpipe.stages.seal import seal
from mrpipe.stages.simulate import simulate
from mrpipe.stages.split import make_split
from mrpipe.store import masks
from mrpipe.store.layout import WorkLayout
from mrpipe.store.manifest import content_id
from mrpipe.store.parquet import read_metadata, replacing, write_batches, write_frame
from tests import toy
from tests.stores import manifest_of, reseal, tables

NAMES = ("table", "series", "image", "genotype")


@pytest.fixture(autouse=True)
def toy_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy dataset is not registered, so the code hash covers only the stages."""
    toy.skip_code_of_dataset(monkeypatch)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "raw"
    simulate(toy.TOY, out, {})
    return out


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        toy.skip_code_of_dataset(patch)
        path = tmp_path_factory.mktemp("toy") / "store"
        build(toy.TOY, raw, path, {})
    return path


@pytest.fixture(scope="module")
def work(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of a build, complete up to `seal`."""
    return toy.staged(raw, tmp_path_factory.mktemp("work") / "work")


@pytest.fixture
def staged(work: Path, tmp_path: Path) -> Path:
    """A copy of a work folder that a test may change."""
    return Path(shutil.copytree(work, tmp_path / "work"))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_mask_row_index_and_table_agree(built: Path) -> None:
    store = mrpipe.open_store(built)
    samples = store.samples().collect()
    for name in NAMES:
        ids = store.modality(name).collect()["sample_id"].to_list()
        by_mask = samples.filter(masks.expression(name, store.bits))["sample_id"].to_list()
        by_row = samples.filter(pl.col(f"row_{name}").is_not_null())
        assert ids == by_mask == by_row["sample_id"].to_list()
        assert [ids[r] for r in by_row[f"row_{name}"]] == ids
    assert (samples["modality_mask"] > 0).all()
    store.verify(deep=True)


def test_samples_without_modality_are_counted_as_attrition(built: Path) -> None:
    store = mrpipe.open_store(built)
    last = store.attrition.row(-1, named=True)
    assert last["reason"] == "no modality observed"
    assert last["n_before"] == 60 > last["n_after"] == store.manifest.n_samples
    assert sum(store.manifest.pattern_counts.values()) == store.manifest.n_samples == store.patterns()["n"].sum()


def test_origin_is_simulated_if_the_export_has_a_truth_folder(built: Path, raw: Path, tmp_path) -> None:
    assert mrpipe.open_store(built).manifest.origin == "simulated"
    assert "Simulated" in (built / "README.md").read_text()
    moved = Path(shutil.copytree(raw, tmp_path / "elsewhere"))
    build(toy.TOY, moved, tmp_path / "store", {})
    assert mrpipe.open_store(tmp_path / "store").manifest.origin == "export"


def test_store_is_independent_of_the_order_of_raw_rows(built: Path, raw: Path, tmp_path: Path) -> None:
    build(toy.TOY, raw, tmp_path / "store", {"order_seed": 5})
    assert tables(tmp_path / "store") == tables(built)


def test_rebuilding_in_place_is_reproducible_and_drops_old_files(raw: Path, copy: Path) -> None:
    before = {p.name: p.read_bytes() for p in copy.rglob("*.parquet")}
    build(toy.TOY, raw, copy, {})
    assert {p.name: p.read_bytes() for p in copy.rglob("*.parquet")} == before
    build(toy.TOY, raw, copy, {}, modalities=["table"], schemes=["uniform"])
    store = mrpipe.open_store(copy)
    assert [m.name for m in store.modalities] == ["table"]
    assert store.schemes == ("uniform",) == (store.manifest.default_scheme,)
    store.verify(deep=True)


def test_id_list_with_the_name_of_a_scheme_has_its_own_metadata(built: Path, staged: Path, tmp_path: Path) -> None:
    ids = mrpipe.open_store(built).samples().collect()["subject_id"].unique().sort().to_list()
    (tmp_path / "ids.json").write_text(json.dumps({"train": ids[:20], "val": ids[20:24], "test": ids[24:]}))
    make_split(toy.TOY, staged, "standard", ids=tmp_path / "ids.json")
    recorded = json.loads(read_metadata(staged / "store" / "splits" / "standard.parquet")[SPLIT_KEY])
    assert (recorded["method"], recorded["source"], recorded["description"]) == ("id list", "ids.json", "")
    make_split(toy.TOY, staged, "my-own.list", ids=tmp_path / "ids.json")
    seal(toy.TOY, staged, tmp_path / "store")
    store = mrpipe.open_store(tmp_path / "store")
    store.verify(deep=True)
    assert store.schemes == ("my-own.list", "standard", "uniform")
    with pytest.raises(UsageError, match="no split scheme 'mine'"):
        make_split(toy.TOY, staged, "mine")


@pytest.mark.parametrize("wrong", [{"modalities": ["table", "smell"]}, {"schemes": ["uniform", "mine"]}])
def test_build_refuses_unknown_names_before_the_cohort_step(raw: Path, tmp_path: Path, wrong: dict) -> None:
    messages: list[str] = []
    with pytest.raises(UsageError, match=r"smell|mine"):
        build(toy.TOY, raw, tmp_path / "store", {}, report=messages.append, **wrong)
    assert messages == []
    assert not (tmp_path / "store").exists()


def test_arrays_have_the_declared_shapes_and_agree_with_polars(built: Path) -> None:
    store = mrpipe.open_store(built)
    image = store.arrays("image")
    assert image.x.shape == (len(image), 3, 4, 5)
    plain = np.array(store.modality("image").collect()["x"].to_list()).reshape(image.x.shape)
    np.testing.assert_array_equal(image.x, plain)
    series = store.arrays("series")
    frame = store.modality("series").collect()
    for i in (0, 3, len(series) - 1):
        steps = slice(*series.offsets[i : i + 2])
        np.testing.assert_array_equal(series.x[steps], np.array(frame["x"][i].to_list(), dtype=np.float32))
        np.testing.assert_array_equal(series.time[steps], frame["time"][i].to_numpy())
    genotype = store.arrays("genotype")
    calls = unpack_range(genotype.x, 0, toy.N_SNPS)
    np.testing.assert_array_equal(calls, toy.genotype_calls(list(genotype.sample_id)))


def test_split_name_default_selects_the_default_scheme(built: Path) -> None:
    store = mrpipe.open_store(built)
    standard, named = (store.arrays("table", split=s, part="train") for s in ("standard", "default"))
    np.testing.assert_array_equal(named.sample_id, standard.sample_id)
    assert store.manifest.default_scheme == "standard"


def test_arrays_of_a_part_are_sorted_and_complete(built: Path) -> None:
    store = mrpipe.open_store(built)
    for name in NAMES:
        parts = [store.arrays(name, part=p) for p in ("train", "val", "test")]
        assert sorted(np.concatenate([p.sample_id for p in parts])) == sorted(store.arrays(name).sample_id)
        for arrays, part in zip(parts, ("train", "val", "test"), strict=True):
            expected = store.split().filter(pl.col("split") == part).collect()["sample_id"].to_list()
            assert set(arrays.sample_id) <= set(expected)
            assert list(arrays.sample_id) == sorted(arrays.sample_id)


def test_take_keeps_the_steps_of_every_sequence(built: Path) -> None:
    series = mrpipe.open_store(built).arrays("series")
    rows = np.array([5, 0, 5, 2])
    taken = series.take(rows)
    for position, row in enumerate(rows):
        new, old = slice(*taken.offsets[position : position + 2]), slice(*series.offsets[row : row + 2])
        np.testing.assert_array_equal(taken.x[new], series.x[old])
        np.testing.assert_array_equal(taken.time[new], series.time[old])


def test_numeric_columns_are_not_copied(built: Path) -> None:
    arrays = mrpipe.open_store(built).arrays("table")
    assert not arrays.x.flags.owndata


def test_code_examples_of_the_data_card_run(built: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    card = (built / "README.md").read_text()
    monkeypatch.chdir(built)
    scopes = []
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        if "from datasets import" in block or "import mudata" in block:
            continue
        scope: dict[str, object] = {}
        exec(block, scope)
        scopes.append(scope)
    store = mrpipe.open_store(built)
    complete = store.samples("table & series & image & genotype").collect()
    assert capsys.readouterr().out.split()[0] == str(len(complete))
    _, pandas, packed = scopes
    assert pandas["complete"]["sample_id"].to_list() == complete["sample_id"].to_list()
    assert len(pandas["labelled"]) == len(store.labels().collect())
    assert pandas["features"].columns.to_list() == [f"table{i}" for i in range(7)]
    np.testing.assert_array_equal(pandas["features"], store.arrays("table").x)
    np.testing.assert_array_equal(packed["calls"], unpack_range(store.arrays("genotype").x, 0, toy.N_SNPS))
    (statements,) = re.findall(r"```sql\n(.*?)```", card, re.DOTALL)
    first, second = [duckdb.execute(s).fetchall() for s in statements.split(";") if s.strip()]
    assert first == [(len(complete),)]
    assert len(second) == store.manifest.labels[0]["rows"]


@pytest.mark.parametrize("library", ["datasets", "mudata"])
def test_recipes_of_other_libraries_run(
    built: Path, library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    pytest.importorskip(library)
    blocks = re.findall(r"```python\n(.*?)```", (built / "README.md").read_text(), re.DOTALL)
    (block,) = [b for b in blocks if re.search(rf"^(import|from) {library}", b, re.MULTILINE)]
    monkeypatch.chdir(built)
    scope: dict[str, object] = {}
    exec(block, scope)
    arrays = mrpipe.open_store(built).arrays("table")
    if library == "datasets":
        np.testing.assert_array_equal(np.stack(scope["first"]["x"]), arrays.x)
    else:
        np.testing.assert_array_equal(scope["data"]["table"].X, arrays.x)
        assert scope["data"].obs["subject_id"].notna().all()


def test_manifest_contains_no_absolute_path_or_sample_id(built: Path) -> None:
    text = (built / "manifest.json").read_text()
    assert str(built.parent) not in text
    assert "s0001" not in text


def test_store_id_depends_on_the_data_but_not_on_the_version(built: Path) -> None:
    values = manifest_of(built)
    for key, value in (("origin", "export"), ("release", "other"), ("title", "other"), ("splits", [])):
        assert content_id(values | {key: value}) != values["store_id"], key
    for key in ("code_hash", "mrpipe_version", "card", "options", "options_changed", "inputs", "notes"):
        assert content_id(values | {key: "other"}) == values["store_id"] == content_id(dict(reversed(values.items())))


def test_unsealed_stores_and_other_formats_are_refused(copy: Path) -> None:
    manifest = manifest_of(copy)
    for version, words in ((99, "format 99, written by a newer"), (1, "format 1, written by an older")):
        (copy / "manifest.json").write_text(json.dumps(manifest | {"format": version}))
        with pytest.raises(DataError, match=words):
            mrpipe.open_store(copy)
    reseal(copy, manifest | {"a_later_addition": 1})
    mrpipe.open_store(copy).verify(deep=True)
    for key, value in (("modalities", "file"), ("tables", "rows"), ("labels", "kind"), ("splits", "sha256")):
        reseal(copy, {**manifest, key: [{k: v for k, v in entry.items() if k != value} for entry in manifest[key]]})
        with pytest.raises(DataError, match=rf"'{key}\[0\]': expected all keys of the format; found '{value}'"):
            mrpipe.open_store(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="no manifest"):
        mrpipe.open_store(copy)


def test_verify_finds_changed_missing_and_swapped_files(copy: Path) -> None:
    image = copy / "modalities/image.parquet"
    original = image.read_bytes()
    flipped = bytearray(original)
    flipped[len(flipped) // 3] ^= 1
    image.write_bytes(bytes(flipped))
    with pytest.raises(DataError, match="SHA-256"):
        mrpipe.open_store(copy).verify(deep=True)
    image.write_bytes(original[:-100])
    with pytest.raises(DataError, match="bytes"):
        mrpipe.open_store(copy)
    image.unlink()
    with pytest.raises(DataError, match=r"image\.parquet"):
        mrpipe.open_store(copy)


@pytest.mark.parametrize(
    ("breakage", "fault"),
    [
        (
            pl.col("modality_mask") * (pl.int_range(pl.len()) < 4).cast(pl.UInt16),
            "'modality_mask', row 5: expected at least one modality per sample; found 51 samples without a modality",
        ),
        (
            pl.col("modality_mask") | pl.lit(1 << 9, dtype=pl.UInt16),
            "'modality_mask': expected one declared bit per modality; found 55 samples with undeclared bits",
        ),
        (
            pl.col("row_table") + 1,
            "'row_table': expected row numbers 0..23 of modalities/table.parquet, in order; found 24 other row numbers",
        ),
        (
            pl.col("row_series").reverse(),
            "'modality_mask', row 2: expected bit 1 set exactly where row_series is not null; "
            "found 22 samples for which this does not hold",
        ),
        (
            pl.col("sample_id").reverse(),
            "'sample_id': expected unique ids in ascending order; found unsorted or repeated ids",
        ),
    ],
)
def test_violated_invariants_are_found(copy: Path, breakage: pl.Expr, fault: str) -> None:
    from mrpipe.store.invariants import find_breaches

    assert find_breaches(copy) == []
    samples = pl.read_parquet(copy / "samples.parquet").with_columns(breakage)
    write_frame(copy / "samples.parquet", samples)
    assert str(find_breaches(copy)[0]) == f"samples.parquet, column {fault}. Build the store again."


def test_attrition_must_end_with_the_samples(copy: Path) -> None:
    from mrpipe.store.invariants import find_breaches

    attrition = pl.read_parquet(copy / "attrition.parquet")
    write_frame(copy / "attrition.parquet", attrition.with_columns(pl.col("n_after") + 1))
    assert "expected consistent counts that end with 55 samples" in str(find_breaches(copy)[0])


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table, and keep its metadata."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def column(name: str, change: Callable[[list], list]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(
            place, table.schema.field(place), pa.array(change(table[name].to_pylist()), table.schema.field(place).type)
        )

    return changed


def first(value: Callable[[object], object]) -> Callable[[list], list]:
    return lambda values: [value(values[0]), *values[1:]]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("modalities/table", column("x", first(lambda x: [np.inf, *x[1:]])), "infinities"),
        ("modalities/series", column("x", first(lambda x: [[-np.inf, 0], *x[1:]])), "infinities"),
        ("modalities/table", column("x", first(lambda x: [None, *x[1:]])), "nulls"),
        ("modalities/table", column("x", first(lambda x: None)), "nulls"),
        ("modalities/series", column("x", first(lambda x: [])), "at least 1"),
        ("modalities/series", column("length", first(lambda n: n + 1)), "number of steps"),
        ("modalities/series", column("time", first(lambda t: [np.nan, *t[1:]])), "finite time"),
        ("modalities/series", column("time", first(lambda t: [*t, 9.0])), "one finite time per step"),
        # A row without a bit, and a bit without a row.
        ("modalities/image", lambda t: pa.concat_tables([t, t.slice(0, 1)]), "row numbers 0.."),
        ("modalities/image", lambda t: t.slice(1), "row numbers 0.."),
        ("samples", column("row_table", lambda v: [None if i else i for i in v]), "set exactly where row_table"),
        ("samples", column("row_table", lambda v: [0 if i is None else i for i in v]), "set exactly where row_table"),
        ("samples", column("subject_id", first(lambda s: None)), "column 'subject_id': expected String, without nulls"),
        ("labels/outcome", column("value", first(lambda v: 2)), "0 to 1"),
        ("labels/outcome", column("value", first(lambda v: -1)), "0 to 1"),
        ("labels/outcome", column("value", first(lambda v: None)), "0 to 1"),
        ("labels/score", column("value", first(lambda v: np.nan)), "float32, finite"),
        ("labels/score", column("value", first(lambda v: np.inf)), "float32, finite"),
        ("labels/score", lambda t: t.set_column(1, "value", t["value"].cast("float64")), "float32, finite"),
        ("labels/outcome", column("sample_id", first(lambda s: "0")), "'sample_id': expected unique ids of this store"),
        (
            "labels/outcome",
            lambda t: pa.concat_tables([t.slice(0, 1), t]),
            "0 unknown ids, or unsorted or repeated ids",
        ),
        ("splits/uniform", column("split", lambda v: ["test"] * len(v)), "expected training samples"),
        ("splits/uniform", column("split", lambda v: [("train", "test")[i % 2] for i in range(len(v))]), "in one part"),
        ("splits/uniform", column("split", first(lambda v: None)), "train, val, test"),
        # Every n_before is the n_after of the step before; the last is the number of samples.
        ("attrition", column("n_before", lambda v: [v[0], v[1] - 1, *v[2:]]), "consistent counts"),
        ("attrition", column("n_after", lambda v: [*v[:-1], v[-1] - 1]), "consistent counts"),
        ("attrition", lambda t: t.slice(0, 0), "consistent counts"),
        ("dictionary", column("position", first(lambda v: 7)), "positions 0.."),
        ("dictionary", column("modality", first(lambda v: "smell")), "'smell'"),
    ],
)
def test_every_rule_of_the_format_is_checked_by_verify_and_by_seal(
    copy: Path, staged: Path, tmp_path: Path, file: str, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    manifest = manifest_of(copy)
    path = copy / f"{file}.parquet"
    rewritten(path, change)
    # The manifest of the changed file, so that only the content is at fault.
    for entry in (e for key in ("tables", "modalities", "labels", "splits") for e in manifest[key]):
        if entry["file"] == f"{file}.parquet":
            entry |= {"rows": pq.read_metadata(path).num_rows, "size": path.stat().st_size, "sha256": sha256(path)}
    reseal(copy, manifest)
    with pytest.raises(DataError, match=re.escape(words)):
        mrpipe.open_store(copy).verify(deep=True)
    if file != "dictionary":  # written by seal
        path = staged / "store" / f"{file}.parquet"
        rewritten(path, change)
        with pytest.raises(DataError, match=f"{re.escape(path.name)}.*changed after the step that wrote it"):
            seal(toy.TOY, staged, tmp_path / "store")
        WorkLayout(staged).record(path)
        with pytest.raises(DataError, match=re.escape(words)):
            seal(toy.TOY, staged, tmp_path / "store")
        assert not (tmp_path / "store").exists()


def test_unknown_names_are_usage_errors(built: Path) -> None:
    store = mrpipe.open_store(built)
    for call in (
        lambda: store.modality("mri"),
        lambda: store.split("mine"),
        lambda: store.labels("death"),
        lambda: store.arrays("table", part="dev"),
        lambda: store.samples("mri"),
    ):
        with pytest.raises(UsageError):
            call()


def test_killed_writer_leaves_no_file(tmp_path: Path) -> None:
    script = f"""
import os, signal, pyarrow as pa
from pathlib import Path
from mrpipe.store.parquet import write_batches
schema = pa.schema([("sample_id", pa.string())])
def batches():
    yield pa.RecordBatch.from_pydict({{"sample_id": ["a"]}}, schema=schema)
    os.kill(os.getpid(), signal.SIGKILL)
write_batches(Path({str(tmp_path / "x.parquet")!r}), schema, batches())
"""
    result = subprocess.run([sys.executable, "-c", script], check=False)
    assert result.returncode == -9
    assert not (tmp_path / "x.parquet").exists()


def test_failed_writer_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


def test_row_groups_are_independent_of_batch_sizes(tmp_path: Path) -> None:
    schema = pa.schema([("sample_id", pa.string()), ("x", pa.float32())])
    table = pa.table({"sample_id": [f"{i:04d}" for i in range(1000)], "x": np.arange(1000.0)}, schema=schema)
    files = []
    for size in (1000, 64, 7):
        path = tmp_path / f"{size}.parquet"
        assert write_batches(path, schema, table.to_batches(size), row_group_rows=100, metadata={"k": "v"}) == 1000
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]
    assert read_metadata(tmp_path / "7.parquet")["k"] == "v"
