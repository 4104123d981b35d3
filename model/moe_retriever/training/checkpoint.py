"""Checkpoints: `model.pt` of a finished run, and `.resume.pt` from which an interrupted run continues.

Both contain only tensors and plain values and are read with `weights_only=True`, so loading one never executes code.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from moe_retriever.config import AnyConfig, Config, ConfigRecord, OptionValue
from moe_retriever.data.load import DataSpec
from moe_retriever.data.tables import ModalitySpec
from moe_retriever.methods import get
from moe_retriever.methods.base import AnyMethod, ReferenceState
from moe_retriever.metrics import convention_of
from mrpipe.errors import DataError, Fault, MrpipeError
from mrpipe.schema import Modality
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
    "metrics*.json metrics*.csv risk_coverage*.csv predictions*.parquet routing*.parquet "
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
    """The content of `model.pt`; `training` and `origin` are JSON."""

    format: int
    fingerprint: str
    training: str
    config: ConfigRecord
    state: dict[str, Tensor]
    modalities: list[ModalityRecord]
    classes: list[str]
    target: list[float]
    transforms: str
    store_id: str
    origin: str
    reference: dict[str, object] | None


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
    with _reading(path):
        value = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(value, dict) or value.get("format") != FORMAT or "fingerprint" not in value:
        expected = f"a checkpoint of format {FORMAT}"
        raise DataError(Fault(file=str(path), expected=expected, found="another file", fix=FIX))
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report a damaged checkpoint, which can raise any exception, as a DataError."""
    try:
        yield
    except MrpipeError:
        raise
    except Exception as error:
        found = f"an unreadable file ({type(error).__name__}: {error})".splitlines()[0]
        found = "nothing" if isinstance(error, FileNotFoundError) else found
        raise DataError(Fault(file=str(path), expected="a checkpoint", found=found, fix=FIX)) from error


@dataclass(frozen=True)
class Origin:
    """Provenance of a run's data.

    Attributes:
        dataset, store_id, origin: of the training store; origin is "simulated" or "export".
        task, scheme: names of the task and of the split scheme.
        modalities: declared name, kind, stored shape, encoding and encoder of each modality, in bit order.
        mask: settings of the simulated missingness, or None.
        mask_sha256: hash of the mask file, or "".
    """

    dataset: str
    store_id: str
    origin: str
    task: str
    scheme: str
    modalities: tuple[dict[str, object], ...]
    mask: dict[str, object] | None = None
    mask_sha256: str = ""

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
    if store.store_id != origin.store_id:
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
    """Read `model.pt` of a run folder and rebuild the method with its trained weights."""
    value = cast(RunFile, read(run / NAME, device))
    with _reading(run / NAME):
        cls = get(value["config"]["method"])
        config = Config.from_dict(value["config"], cls)
        declared = value["modalities"]
        modalities = [ModalitySpec(name=m["name"], kind=m["kind"], shape=tuple(m["shape"])) for m in declared]
        center, scale = value["target"]
        stored = json.loads(value["origin"])
        origin = Origin(**{**stored, "modalities": tuple(stored["modalities"])})
        spec = DataSpec(modalities=tuple(modalities), classes=tuple(value["classes"]), center=center, scale=scale)
        spec = replace(spec, convention=convention_of(origin.dataset, origin.task))
        # Trained weights replace those of the file of initial weights, which may be gone.
        without_file = replace(config, common=replace(config.common, image_weights=""))
        method = cls.create(spec, without_file).to(device)
        method.load_state_dict(value["state"])
        fitted = Transforms.from_json(value["transforms"])
        return Trained(method, config, spec, fitted, origin, value["reference"], json.loads(value["training"]))
