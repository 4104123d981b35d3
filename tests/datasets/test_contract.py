"""Requirements on every registered dataset; new datasets are included automatically.

Builds a store from a tiny simulated export and tests integrity, determinism, atomic writes and error handling.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mrpipe
from mrpipe.cli.main import main
from mrpipe.datasets import dataset_names, get_dataset
from mrpipe.errors import UsageError
from mrpipe.experiment.truth import ANY, read_best, subsets
from mrpipe.options import parse_options
from mrpipe.stages.build import build
from mrpipe.stages.simulate import simulate
from mrpipe.store import masks
from mrpipe.store.layout import StoreLayout, truth_folder
from mrpipe.store.splits import PARTS
from mrpipe.transforms.fit import Transforms, fit
from mrpipe.transforms.options import TransformOptions

# These share the reader of CMU-MOSI; their own tests are in datasets/mosi.
KIN = ("mosei", "ch_sims")
DATASETS = [pytest.param(n, marks=pytest.mark.slow) if n in KIN else n for n in dataset_names()]
# Transform option → another value, and the modalities of two stores whose transformed values depend on it.
EVENTS = {"lab", "code", "lab_summary"}
TABLES = {"clinical", "biospecimen"}
TRANSFORMS: dict[str, tuple[object, set[str]]] = {
    "scale": ("minmax", TABLES),
    "impute": ("median", TABLES),
    "clip": (1.5, TABLES | {"lab", "lab_summary"}),
    "svd_dim": (2, {"note"}),
    "event_floor": (0.3, EVENTS),
    "event_cap": (5, EVENTS),
    "event_step_hours": (6.0, {"lab"}),
    "event_steps": (3, {"lab"}),
    "ld_r2": (0.02, {"genomic"}),
    "ld_window": (4, {"genomic"}),
    "ld_step": (40, {"genomic"}),
}


def settings_of(name: str) -> list[str]:
    return [f"{k}={v}" for k, v in get_dataset(name).tiny.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


class Built(dict[str, Path]):
    """Sealed stores by dataset name, built on first access. The export is in the same folder as `<name>.raw`."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        dataset = get_dataset(name)
        simulate(dataset, self.folder / f"{name}.raw", dataset.tiny)
        build(dataset, self.folder / f"{name}.raw", self.folder / name, {})
        self[name] = self.folder / name
        return self[name]


@pytest.fixture(scope="module")
def built(folder: Path) -> Built:
    return Built(folder)


@pytest.mark.parametrize("name", DATASETS)
def test_every_store_verifies_and_is_marked_simulated(name: str, built: dict[str, Path]) -> None:
    store = mrpipe.open_store(built[name])
    store.verify(deep=True)
    assert store.manifest.origin == "simulated"
    samples = store.samples().collect()
    for modality in store.modalities:
        ids = store.modality(modality.name).collect()["sample_id"].to_list()
        assert ids == samples.filter(masks.expression(modality.name, store.bits))["sample_id"].to_list()
        assert len(ids) > 0
    assert (samples["modality_mask"] > 0).all()


@pytest.mark.parametrize("name", DATASETS)
def test_every_scheme_splits_by_subject_into_non_empty_parts(name: str, built: dict[str, Path]) -> None:
    store = mrpipe.open_store(built[name])
    assert set(store.schemes) == set(get_dataset(name).schemes)
    for scheme in store.schemes:
        split = store.split(scheme).collect().join(store.samples().collect(), on="sample_id")
        assert split.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
        assert set(split["split"].unique()) == set(PARTS)


@pytest.mark.parametrize("name", DATASETS)
def test_labels_are_valid_classes_or_finite_numbers(name: str, built: dict[str, Path]) -> None:
    store = mrpipe.open_store(built[name])
    for task in store.tasks:
        value = store.labels(task.name).collect()["value"]
        assert len(value) > 0
        assert value.null_count() == 0
        if task.kind == "classification":
            assert value.dtype == pl.Int8
            assert value.is_between(0, len(task.classes) - 1).all()
        else:
            assert value.dtype == pl.Float32
            assert value.is_finite().all()


@pytest.mark.parametrize("name", DATASETS)
def test_every_feature_has_a_source_and_can_be_transformed(name: str, built: dict[str, Path]) -> None:
    store = mrpipe.open_store(built[name])
    transforms = fit(store)
    for modality in store.modalities:
        rows = store.dictionary.filter(modality=modality.name)
        assert rows["source_file"].null_count() == 0
        arrays = transforms.apply(modality.name, store.arrays(modality.name))
        assert np.isfinite(arrays.x).all()
        assert arrays.x.shape[1:] == transforms.shapes[modality.name]


@pytest.mark.parametrize("name", ["adni", "mimic"])
def test_each_transform_option_changes_the_modalities_it_is_for_and_no_other(
    name: str, built: Built, tmp_path: Path
) -> None:
    store = mrpipe.open_store(built[name])
    if name == "adni":
        # Few SNPs are in every set of this small export, too few for the steps of pruning to matter.
        build(get_dataset(name), built.folder / f"{name}.raw", tmp_path / "union", {"merge": "union"})
        store = mrpipe.open_store(tmp_path / "union")
    assert set(TRANSFORMS) == {f.name for f in dataclasses.fields(TransformOptions)}

    def values(options: TransformOptions) -> dict[str, bytes]:
        fitted = Transforms.from_json(fit(store, options=options).to_json())
        assert fitted.options == options
        arrays = {m.name: fitted.apply(m.name, store.arrays(m.name)) for m in store.modalities}
        return {
            n: b"".join(np.ascontiguousarray(v).tobytes() for v in (a.x, a.time) if v is not None)
            for n, a in arrays.items()
        }

    usual = values(TransformOptions())
    for option, (value, expected) in TRANSFORMS.items():
        changed = values(TransformOptions(**{option: value}))
        assert {m for m in usual if changed[m] != usual[m]} == expected & set(usual), option


@pytest.mark.parametrize("name", DATASETS)
def test_manifest_contains_no_local_path_and_no_subject(name: str, built: dict[str, Path], folder: Path) -> None:
    text = (built[name] / "manifest.json").read_text()
    assert str(folder) not in text
    subjects = mrpipe.open_store(built[name]).samples().collect()["subject_id"].to_list()
    values = {w for entry in json.loads(text)["inputs"] for w in entry["path"].replace(".", "/").split("/")}
    assert not values & set(subjects)


@pytest.mark.parametrize("name", DATASETS)
def test_store_does_not_depend_on_cores_or_hash_seed(name: str, built: dict[str, Path], tmp_path: Path) -> None:
    """The store of this process, with a random hash seed and all cores, is that of one with another seed and one core.

    `make test` gives one thread to linear algebra in this process.
    """
    threads = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    raw, out = tmp_path / f"{name}.raw", tmp_path / "store"
    pairs = settings_of(name)
    verbs = [
        ["simulate", name, "--out", str(raw), *(["--set", *pairs] if pairs else [])],
        ["build", name, "--raw", str(raw), "--out", str(out)],
    ]
    code = "import json, sys; from mrpipe.cli.main import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    env = {**os.environ, "PYTHONHASHSEED": "4242", **threads}
    subprocess.run([sys.executable, "-c", code, json.dumps(verbs)], env=env, check=True, capture_output=True)
    assert mrpipe.open_store(out).store_id == mrpipe.open_store(built[name]).store_id


# The two readers with the longest builds; all others are slow tests.
KILLED = {"mimic": (), "adni": pytest.mark.whole}


@pytest.mark.parametrize("name", [pytest.param(n, marks=KILLED.get(n, pytest.mark.slow)) for n in dataset_names()])
def test_a_killed_build_resumes_to_the_same_store(
    name: str, built: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """SIGKILL after increasing delays, so that every stage is interrupted; the manifest is written last."""
    out, expected = tmp_path / "store", mrpipe.open_store(built[name]).store_id
    command = [sys.executable, "-m", "mrpipe", "build", name, "--raw", str(folder / f"{name}.raw"), "--out", str(out)]
    started = time.monotonic()
    first = subprocess.run([*command[:-1], str(tmp_path / "undisturbed")], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    duration = time.monotonic() - started
    kills = 0
    for fraction in (0.4, 0.65, 0.85):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(duration * fraction)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            if StoreLayout(out).manifest.exists():
                mrpipe.open_store(out).verify(deep=True)
    assert kills > 0
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    store = mrpipe.open_store(out)
    store.verify(deep=True)
    assert store.store_id == expected
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_or_missing_folder_is_invalid_input(name: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for raw in ("empty", "absent"):
        assert main(["check", name, "--raw", str(tmp_path / raw), "--work", str(tmp_path / "work")]) == 3
        assert "expected" in capsys.readouterr().err
        assert not (tmp_path / "work" / "checked.json").exists()
        assert main(["build", name, "--raw", str(tmp_path / raw), "--out", str(tmp_path / "store")]) == 3
        assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*"))


@pytest.mark.parametrize("name", DATASETS)
def test_truncated_files_are_detected(
    name: str, folder: Path, built: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If any file listed by name in the inventory is empty or truncated, check or build fails and names the file."""
    manifest = mrpipe.open_store(built[name]).manifest
    listed = [e for e in manifest.inputs if "n_files" not in e]
    assert listed
    for number, entry in enumerate(listed[:8]):
        for size in (0, max(1, entry["size"] // 2)):
            raw = tmp_path / f"{number}.{size}" / "raw"
            shutil.copytree(folder / f"{name}.raw", raw)
            os.truncate(raw / entry["path"], size)
            code = main(["build", name, "--raw", str(raw), "--out", str(tmp_path / f"{number}.{size}" / "store")])
            message = capsys.readouterr().err
            store = StoreLayout(tmp_path / f"{number}.{size}" / "store")
            if code == 0:
                # A text table truncated at the end of a row is a valid, shorter table.
                assert size > 0, f"{entry['path']} may be empty without an error"
                assert raw.joinpath(entry["path"]).suffix in (".csv", ".py")
                continue
            assert code == 3, message
            assert Path(entry["path"]).name.split(".")[0] in message
            assert not store.manifest.exists()


@pytest.mark.parametrize("name", DATASETS)
def test_options_have_help_and_unknown_options_are_reported(name: str, capsys) -> None:
    dataset = get_dataset(name)
    for cls in (dataset.options, dataset.simulation):
        assert all(f.metadata.get("help") for f in dataclasses.fields(cls))
        with pytest.raises(UsageError, match="no_such_option"):
            parse_options(cls, {"no_such_option": 1}, context=name)
    assert main(["options", name]) == 0
    assert main(["check", name, "--raw", "x", "--set", "no_such_option=1"]) == 2
    assert "no_such_option" in capsys.readouterr().err


@pytest.mark.parametrize("name", DATASETS)
def test_simulation_does_not_overwrite_an_export(name: str, tmp_path: Path) -> None:
    out = tmp_path / "real"
    out.mkdir()
    (out / "precious.csv").write_text("data")
    with pytest.raises(UsageError, match="not simulated"):
        simulate(get_dataset(name), out, {})
    assert (out / "precious.csv").read_text() == "data"


@pytest.mark.parametrize("name", DATASETS)
def test_ground_truth_is_outside_the_export_and_covers_every_sample(
    name: str, folder: Path, built: dict[str, Path]
) -> None:
    samples = set(mrpipe.open_store(built[name]).samples().collect()["sample_id"])
    truth = truth_folder(folder / f"{name}.raw")
    assert not list((folder / f"{name}.raw").rglob("truth*"))
    assert samples <= set(pl.read_parquet(truth / "truth.parquet")["sample_id"])


@pytest.mark.parametrize("name", DATASETS)
def test_best_possible_predictions_are_calibrated(name: str, folder: Path, built: dict[str, Path]) -> None:
    store = mrpipe.open_store(built[name])
    task = store.task()
    best = read_best(truth_folder(folder / f"{name}.raw"), task.name)
    assert best is not None
    classes = [f"p_{c}" for c in task.classes]
    assert best.columns == ["sample_id", "modalities", *classes]
    np.testing.assert_allclose(best.select(pl.sum_horizontal(classes)).to_series(), 1.0)
    known = {"+".join(c) for c in subsets([m.name for m in store.modalities])}
    assert set(best["modalities"]) <= known | {ANY}
    labels = store.labels(task.name).collect().drop_nulls("value").select("sample_id", pl.col("value").cast(pl.Int64))
    for (combination,), rows in best.group_by("modalities"):
        joined = labels.join(rows, on="sample_id")
        assert len(joined) == len(labels), combination
        p = joined.select(classes).to_numpy()
        right = p.argmax(axis=1) == joined["value"].to_numpy()
        sd = np.sqrt((p.max(axis=1) * (1 - p.max(axis=1))).sum()) / len(p)
        assert abs(right.mean() - p.max(axis=1).mean()) < 4 * sd + 0.02, combination
