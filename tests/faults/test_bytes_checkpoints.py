"""Tampered checkpoints: an error that names the entry, before memory is taken, or a bit-identical method."""

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_retriever.config import make_config
from moe_retriever.data.load import DataSpec
from moe_retriever.data.tables import ModalitySpec
from moe_retriever.evaluation.evaluate import prepare
from moe_retriever.methods import get
from moe_retriever.training import checkpoint
from moe_retriever.training.checkpoint import NAME, Origin, Trained, load_run, save_run
from mrpipe.errors import DataError
from mrpipe.transforms.features import FeatureTransform
from mrpipe.transforms.fit import Transforms

SMALL = {"hidden": 8, "tokens": 2, "heads": 2, "encoder_hidden": 4, "fusion_ffn": 8}
EXPERTS = {"n_experts": 2, "expert_ffn": 4, "top_k": 1, "n_shared": 1}
Change = Callable[[dict[str, Any]], object]


def reference(method: str) -> dict[str, object] | None:
    """What a method keeps of five training samples of two modalities."""
    observed = torch.tensor([[True, True], [True, False], [False, True], [True, True], [True, False]])
    if method in ("moe_retriever", "confsmoe"):
        kept: dict[str, object] = {"observed": observed, "banks": [torch.ones(4, 2, 8), torch.ones(3, 2, 8)]}
        return kept | ({"nearest": []} if method == "moe_retriever" else {})
    return {"observed": observed, "h": torch.ones(5, 2, 8)} if method == "m3care" else None


def made(folder: Path, name: str = "moe_retriever") -> Path:
    """A run folder with an untrained method."""
    modalities = tuple(ModalitySpec(name=m, kind="vector", shape=(3,)) for m in ("a", "b"))
    spec = DataSpec(modalities=modalities, classes=("no", "yes"))
    options = SMALL | (EXPERTS if name == "moe_retriever" else {})
    config = make_config(get(name), preset="paper", seed=0, overrides=options)
    declared = tuple(
        {"name": m, "kind": "vector", "shape": [3], "encoding": "dense", "irregular": False, "encoder": None}
        for m in ("a", "b")
    )
    origin = Origin("toy", "0" * 16, "simulated", "label", "standard", declared)
    transforms = Transforms("0" * 16, "standard", {m: FeatureTransform(()) for m in "ab"}, {m: (3,) for m in "ab"})
    method = get(name).create(spec, config)
    trained = Trained(method, config, spec, transforms, origin, reference(name), {"best_epoch": 1})
    folder.mkdir(exist_ok=True)
    save_run(folder / NAME, trained, "f" * 64)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("checkpoints") / "run")


@pytest.fixture(scope="module")
def content(run: Path) -> dict[str, Any]:
    return torch.load(run / NAME, weights_only=True)


def faults_of(content: dict[str, Any], folder: Path, change: Change) -> list[str]:
    """Columns of the faults of a changed checkpoint."""
    value = copy.deepcopy(content)
    change(value)
    torch.save(value, folder / NAME)
    with pytest.raises(DataError) as caught:
        prepare(load_run(folder), folder, None, "cpu")
    assert all(f.file == str(folder / NAME) and len(str(f)) < 3000 for f in caught.value.faults)
    return [str(f.column) for f in caught.value.faults]


def test_a_checkpoint_is_read_as_torch_reads_it(run: Path, content: dict[str, Any]) -> None:
    read = checkpoint.read(run / NAME)
    assert list(read) == list(content)
    for key, value in content["state"].items():
        found = read["state"][key]  # type: ignore[index]
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
    assert {k: v for k, v in read.items() if k not in ("state", "reference")} == {
        k: v for k, v in content.items() if k not in ("state", "reference")
    }
    method = load_run(run).method
    assert all(torch.equal(v, content["state"][k]) for k, v in method.state_dict().items())


WRONG = [None, 7, -1.5, True, "text", [], ["x", 1], {}, {"a": [1]}, float("nan"), torch.zeros(2), [torch.zeros(2)]]


def test_every_entry_of_another_type_is_refused(run: Path, content: dict[str, Any], tmp_path: Path) -> None:
    fitting = {"fingerprint": ["text"], "store_id": ["text"], "reference": [None], "classes": [[]]}
    for key in content:
        for wrong in WRONG:
            if isinstance(wrong, str | list | None) and wrong in fitting.get(key, []):
                continue
            columns = faults_of(content, tmp_path, lambda c, key=key, wrong=wrong: c.update({key: wrong}))
            assert key == "format" or all(c.startswith((key, "state", "config")) for c in columns), (
                key,
                wrong,
                columns,
            )


@pytest.mark.parametrize("key", ["fingerprint", "state", "config", "classes", "reference", "target", "transforms"])
def test_missing_and_additional_entries_are_refused(key: str, content: dict[str, Any], tmp_path: Path) -> None:
    assert faults_of(content, tmp_path, lambda c: c.pop(key))
    assert faults_of(content, tmp_path, lambda c: c.update({f"{key}2": 1}))


def put(*path: str | int, value: object) -> Change:
    """Change that puts a value into a nested entry, of the JSON of `origin` and `training` as well."""

    def change(content: dict[str, Any]) -> None:
        text = path[0] in ("origin", "training", "transforms")
        at = root = json.loads(content[path[0]]) if text else content[path[0]]
        for step in path[1:-1]:
            at = at[step]
        at[path[-1]] = value
        content[path[0]] = json.dumps(root) if text else root

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("config", "common", "hidden"), 10**9),
        (("config", "common", "fusion_layers"), 10**9),
        (("config", "common", "encoder_hidden"), 10**9),
        (("config", "common", "tokens"), 10**9),
        (("config", "common", "heads"), 0),
        (("config", "common", "dropout"), 2.0),
        (("config", "common", "batch_size"), -1),
        (("config", "common", "vector_encoder"), "other"),
        (("config", "common", "unknown"), 1),
        (("config", "options", "n_experts"), 10**9),
        (("config", "options", "n_experts"), "two"),
        (("config", "method"), "nonesuch"),
        (("config", "method"), "../x"),
        (("config", "seed"), "0"),
        (("config", "common"), [1]),
        (("modalities", 0, "shape"), [10**12]),
        (("modalities", 0, "shape"), [-3]),
        (("modalities", 0, "kind"), "smell"),
        (("modalities", 0), ["a", "vector", [3]]),
        (("target", 1), 0.0),
        (("target", 0), float("inf")),
        (("origin", "task"), 5),
        (("origin", "modalities"), {"a": 1}),
        (("transforms", "format"), 9),
        (("transforms", "modalities", "a"), {"shape": [3]}),
        (("reference", "observed"), torch.ones(5, 3, dtype=torch.bool)),
        (("reference", "observed"), [True]),
        (("reference", "banks"), [torch.ones(4, 2, 8)]),
        (("reference", "banks", 0), torch.full((4, 2, 8), torch.nan)),
        (("reference", "banks", 1), torch.ones(4, 2, 8)),
        (("reference", "nearest"), 5),
        (("reference", "nearest"), [torch.ones(3, 3)]),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, tuple) else str(v)[:12],
)
def test_absurd_options_and_damaged_entries_are_refused(
    path: tuple[str | int, ...], value: object, content: dict[str, Any], tmp_path: Path
) -> None:
    columns = faults_of(content, tmp_path, put(*path, value=value))
    # Another number of weights is a fault of the weights if it is no absurd one.
    assert all(c.startswith(("config" if path[0] == "modalities" else str(path[0]), str(path[0]))) for c in columns)


WEIGHTS: dict[str, Callable[[torch.Tensor], object]] = {
    "nan": lambda t: t.index_fill(0, torch.tensor([0]), torch.nan),
    "infinite": lambda t: t.index_fill(0, torch.tensor([0]), -torch.inf),
    "longer": lambda t: torch.cat([t, t]),
    "expanded": lambda t: t.reshape(-1)[:1].expand(*t.shape, 10**6),
    "double": lambda t: t.double(),
    "integer": lambda t: t.long(),
    "list": lambda t: t.tolist(),
    "none": lambda t: None,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_other_weights_are_refused_by_name(kind: str, content: dict[str, Any], tmp_path: Path) -> None:
    names = [k for k, v in content["state"].items() if v.ndim]
    for name in (names[0], names[-1]):
        columns = faults_of(content, tmp_path, lambda c, n=name: c["state"].update({n: WEIGHTS[kind](c["state"][n])}))
        assert columns == ([f"state.{name}"] if kind != "expanded" else ["None"])
    both = faults_of(content, tmp_path, lambda c: [c["state"].pop(names[0]), c["state"].update({"x": torch.ones(1)})])
    assert sorted(both) == sorted([f"state.{names[0]}", "state.x"])


@pytest.mark.parametrize("name", ["confsmoe", "m3care"])
def test_references_of_other_methods_are_checked(name: str, tmp_path: Path) -> None:
    content = torch.load(made(tmp_path / "run", name) / NAME, weights_only=True)
    prepare(load_run(tmp_path / "run"), tmp_path / "run", None, "cpu")
    for key in content["reference"]:
        for wrong in (None, [], torch.ones(2), torch.ones(5, 2, 9), torch.full((5, 2, 8), torch.nan)):
            assert faults_of(content, tmp_path, put("reference", key, value=wrong)) == ["reference"]


def test_a_compressed_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(run / NAME) as old, zipfile.ZipFile(tmp_path / NAME, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(DataError, match="compressed"):
        load_run(tmp_path)


def test_damaged_bytes_are_an_error_or_the_same_weights(run: Path, content: dict[str, Any], tmp_path: Path) -> None:
    whole, rng, same = (run / NAME).read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), int(rng.integers(1, 4))):
            damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / NAME).write_bytes(damaged)
        try:
            found = load_run(tmp_path).method.state_dict()
        except DataError:
            continue
        same += 1
        assert all(torch.equal(found[k], v) for k, v in content["state"].items())
    assert same < 100
