"""Checkpoints: `model.pt` of a finished run, and `.resume.pt` from which an interrupted run continues.

Both contain only tensors and plain values, which `mrpipe.pickles` reads without executing anything. All entries of a
`model.pt` are checked before memory is taken for the method.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import jsonschema
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from moe_retriever.config import AnyConfig, Config, ConfigRecord, OptionValue
from moe_retriever.data.load import DataSpec
from moe_retriever.data.tables import ModalitySpec
from moe_retriever.methods import get
from moe_retriever.methods.base import AnyMethod, ReferenceState
from moe_retriever.metrics import convention_of
from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.pickles import read_tensors
from mrpipe.reading import reading
from mrpipe.schema import Modality
from mrpipe.store.content import data_identity
from mrpipe.store.parquet import replacing
from mrpipe.store.reader import Store
from mrpipe.transforms.fit import Transforms

FORMAT = 2
FIX = "Train again with --overwrite, or copy the run folder again."
NAME = "model.pt"
RESUME_NAME = ".resume.pt"
# A run keeps a copy of its mask file, so that an evaluation needs only the store and the run folder.
MASK_NAME = "mask.parquet"
# Patterns of all files that a run can have.
RUN_FILES = (
    f"{NAME} {RESUME_NAME} {MASK_NAME} config.json *cost.json log.txt history.parquet curves.* gradients.parquet "
    "metrics*.json metrics*.csv cell.json risk_coverage*.csv predictions*.parquet validation.parquet routing*.parquet "
    "tests/*/*"
).split()
# One epoch of the history: its number, losses and scores.
EpochRow = dict[str, float]


class TrainingRecord(TypedDict, total=False):
    """How a training went: kept epoch and number of epochs, or what `fit` chose; validation scores, sizes, code etc."""

    best_epoch: int
    epochs: int
    chosen: dict[str, OptionValue | None]
    val: dict[str, float]
    n: dict[str, int]
    parameters: int
    code_hash: str
    notes: list[str]
    image_weights_sha256: str


class ModalityRecord(TypedDict):
    """A `ModalitySpec` as plain values."""

    name: str
    kind: str
    shape: list[int]


class RunFile(TypedDict):
    """The content of `model.pt` that a run is made of, see `SCHEMA`; `training` and `origin` are JSON."""

    training: str
    config: ConfigRecord
    state: dict[str, Tensor]
    modalities: list[ModalityRecord]
    classes: list[str]
    target: list[float]
    transforms: str
    origin: str
    reference: dict[str, object] | None


def _record(**entries: object) -> dict[str, object]:
    """JSON Schema of an object with these entries and no others; a name is that of a type."""
    properties = {k: v if isinstance(v, dict) else {"type": v} for k, v in entries.items()}
    return {"type": "object", "required": list(entries), "properties": properties, "additionalProperties": False}


_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 1}}
_MODALITY = _record(name="string", kind="string", shape=_SHAPE)
_ORIGIN = {**dict.fromkeys(("dataset", "store_id", "origin", "task", "scheme", "mask_sha256"), "string")}
# The content of `model.pt`, with the JSON of `training` and `origin` decoded.
SCHEMA = _record(
    format={"const": FORMAT},
    fingerprint="string",
    training="object",
    config=_record(method="string", preset="string", seed="integer", common="object", options="object"),
    state="object",
    modalities={"type": "array", "items": _MODALITY},
    classes={"type": "array", "items": {"type": "string"}},
    target={"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    transforms="string",
    store_id="string",
    origin=_record(**_ORIGIN, mask=["object", "null"], modalities={"type": "array", "items": {"required": ["name"]}})
    # Absent from runs of earlier versions.
    | {"patternProperties": {r"\Adata_id\Z": {"type": "string"}}},
    reference=["object", "null"],
)


def clear(run: Path, keep: tuple[str, ...] = ()) -> None:
    """Remove the files of an earlier run, so that none of them mixes with those of the next one."""
    for path in (path for pattern in RUN_FILES for path in run.glob(pattern)):
        if path.name not in keep:
            path.unlink()


def write(path: Path, value: Mapping[str, object]) -> None:
    """Save atomically. The bytes do not depend on the name of the temporary file, which torch would put into it."""
    with replacing(path) as temporary, temporary.open("wb") as handle:
        torch.save(dict(value), handle)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, object]:
    """Load tensors and plain values.

    Raises:
        DataError: the file does not exist, or is not a checkpoint of this project.
    """
    with reading_entry(path):
        value = _as_tensors(read_tensors(path, str(path)), device)
    if not isinstance(value, dict) or str(value.get("format")) != str(FORMAT) or "fingerprint" not in value:
        expected = f"a checkpoint of format {FORMAT}"
        raise DataError(Fault(file=str(path), expected=expected, found="another file", fix=FIX))
    return value


def _as_tensors(value: object, device: torch.device | str) -> object:
    if isinstance(value, dict):
        return {k: _as_tensors(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as_tensors(v, device) for v in value)
    return torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value


def reading_entry(path: Path, key: str | None = None) -> AbstractContextManager[None]:
    """Context of code that reads a checkpoint, or one entry of it; see `reading` for the errors."""
    return reading(path, "a checkpoint", FIX, column=key)


def require_weights(path: Path, method: nn.Module, state: Mapping[str, object]) -> None:
    """Raise a DataError unless `state` has finite weights of the names, shapes and types of the method's own."""
    own, parameters, faults = method.state_dict(), dict(method.named_parameters()), FaultCollector()
    for key in sorted(own.keys() | state.keys(), key=str):
        there, value = own.get(key), state.get(key)
        expected = "a checkpoint without it" if there is None else f"a checkpoint of shape {tuple(there.shape)} here"
        found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if there is not None and isinstance(value, Tensor):
            # Buffers that scikit-learn's models fit have any size, and bounds that may be infinite.
            fitted = key not in parameters
            same = value.shape == there.shape or (fitted and not there.numel())
            finite = not value.isnan().any() if fitted else value.dtype == there.dtype and value.isfinite().all()
            if same and finite:
                continue
            found += "" if finite else ", or NaN or infinite numbers"
        faults.add(Fault(file=str(path), column=f"state.{key}", expected=expected, found=found, fix=FIX))
    faults.raise_if_any()


def _counter(state: Mapping[str, object]) -> Callable[[nn.Module, str, Tensor | None], None]:
    """Hook that stops the creation of a method, before memory is taken, if it needs much more weights than `state`."""
    room = 4 * sum(v.numel() for v in state.values() if isinstance(v, Tensor)) + 2**20

    def count(_: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal room
        # `nn.init.build` creates modules without memory first.
        room -= 256 + value.numel() if value is not None and value.is_meta else 0
        if room < 0:
            raise ValueError("the options need more weights than the checkpoint has")

    return count


@dataclass(frozen=True)
class Origin:
    """Provenance of a run's data.

    Attributes:
        dataset, store_id, origin: of the training store; origin is "simulated" or "export".
        task, scheme: names of the task and of the split scheme.
        modalities: declared name, kind, stored shape, encoding and encoder of each modality, in bit order.
        mask: settings of the simulated missingness, or None.
        mask_sha256: hash of the masks and their settings (`mask_hash`), or "".
        data_id: identity of the tables that the run read (`data_identity`), or "" if an earlier version trained it.
    """

    dataset: str
    store_id: str
    origin: str
    task: str
    scheme: str
    modalities: tuple[dict[str, object], ...]
    mask: dict[str, object] | None = None
    mask_sha256: str = ""
    data_id: str = ""

    def is_of(self, store: Store) -> bool:
        """Whether the run was trained on the tables of this store; other tables of the store may have changed since."""
        names = [str(m["name"]) for m in self.modalities]
        same = self.data_id and data_identity(store.manifest, names, self.task, self.scheme) == self.data_id
        return bool(same) or store.store_id == self.store_id

    def require_same_kind(self, store: Store) -> None:
        """Require a store of the same dataset whose modalities have the same shapes and encoders.

        Raises:
            DataError: lists every difference.
        """
        faults = []
        name = str(store.path / "manifest.json")
        if store.manifest.dataset != self.dataset:
            faults.append(Fault(file=name, column="dataset", expected=self.dataset, found=store.manifest.dataset))
        there = {m.name: m for m in store.modalities}
        for m in self.modalities:
            name_of = str(m["name"])
            if name_of not in there:
                column, found = f"modalities.{name_of}", f"only {', '.join(there)}"
                fix = "Samples may lack the modality, but the store must declare it."
                faults.append(Fault(file=name, column=column, expected="this modality", found=found, fix=fix))
                continue
            for key, value in describe(there[name_of]).items():
                if value != m[key]:
                    column, fix = f"modalities.{name_of}.{key}", "Build the store with the same reader options."
                    faults.append(Fault(file=name, column=column, expected=str(m[key]), found=str(value), fix=fix))
        if faults:
            raise DataError(faults)


def describe(modality: Modality) -> dict[str, object]:
    """Properties of a modality that must be equal in two stores for one trained model to read both."""
    return {
        "name": modality.name,
        "kind": modality.kind,
        "shape": list(modality.shape),
        "encoding": modality.encoding,
        "irregular": modality.irregular,
        "encoder": modality.encoder,
    }


def require_training_store(origin: Origin, store: Store) -> None:
    """Raise a DataError unless `store` is the store that the run was trained on."""
    if not origin.is_of(store):
        file, expected = str(store.path), f"{origin.store_id}, the training store"
        fix = "To evaluate a run on another store, pass --name; to predict unlabelled samples, use `mrpipe predict`."
        raise DataError(Fault(file=file, column="store_id", expected=expected, found=store.store_id, fix=fix))


@dataclass(frozen=True)
class Trained:
    """A trained method with the transforms for its input data and a summary of its training."""

    method: AnyMethod
    config: AnyConfig
    spec: DataSpec
    fitted: Transforms
    origin: Origin
    reference: ReferenceState | None
    training: TrainingRecord


def save_run(path: Path, trained: Trained, fingerprint: str) -> None:
    """Write `model.pt`: weights, options, transforms, origin, training summary and, if given, the retrieval bank."""
    t, spec = trained, trained.spec
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "training": json.dumps(t.training),
        "config": t.config.to_dict(),
        "state": {k: v.cpu() for k, v in t.method.state_dict().items()},
        "modalities": [{"name": m.name, "kind": m.kind, "shape": list(m.shape)} for m in spec.modalities],
        "classes": list(spec.classes),
        "target": [spec.center, spec.scale],
        "transforms": t.fitted.to_json(),
        "store_id": t.origin.store_id,
        "origin": json.dumps({**vars(t.origin), "modalities": list(t.origin.modalities)}),
        "reference": None if t.reference is None else dict(t.reference),
    }
    write(path, content)


def load_run(run: Path, device: torch.device | str = "cpu") -> Trained:
    """Read `model.pt` of a run folder and rebuild the method with its trained weights.

    Raises:
        DataError: a damaged file, or entries of other types, shapes or sizes; lists the keys.
    """
    path = run / NAME
    value = cast(RunFile, read(path))
    with reading_entry(path, "training"):
        training = json.loads(value["training"])
    with reading_entry(path, "origin"):
        stored = json.loads(value["origin"])
    faults = FaultCollector()
    for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors({**value, "training": training, "origin": stored}):
        column, found = error.json_path.removeprefix("$").removeprefix("."), f"a {type(error.instance).__name__}"
        expected = f"a checkpoint with {error.validator} {error.validator_value}"[:200]
        faults.add(Fault(file=str(path), column=column, expected=expected, found=found, fix=FIX))
    faults.raise_if_any()
    origin = Origin(**{**stored, "modalities": tuple(stored["modalities"])})
    center, scale = value["target"]
    with reading_entry(path, "target"):
        if not (math.isfinite(center) and 0 < scale < math.inf):
            raise ValueError(f"center {center}, scale {scale}")
    modalities = tuple(ModalitySpec(name=m["name"], kind=m["kind"], shape=(*m["shape"],)) for m in value["modalities"])
    spec = DataSpec(modalities=modalities, classes=tuple(value["classes"]), center=center, scale=scale)
    spec = replace(spec, convention=convention_of(origin.dataset, origin.task))
    count = _counter(value["state"])
    with reading_entry(path, "config"), hooks.register_module_parameter_registration_hook(count):
        cls = get(value["config"]["method"])
        config = Config.from_dict(value["config"], cls)
        # Trained weights replace those of the file of initial weights, which may be gone.
        without_file = replace(config, common=replace(config.common, image_weights=""))
        with hooks.register_module_buffer_registration_hook(count):
            method = cls.create(spec, without_file)
    require_weights(path, method, value["state"])
    with reading_entry(path, "state"):
        method.to(device).load_state_dict(value["state"])
    with reading_entry(path, "transforms"):
        fitted = Transforms.from_json(value["transforms"])
    return Trained(method, config, spec, fitted, origin, value["reference"], training)
