"""Plan the stores, masks and runs that a configuration requests, and report all its errors before any job starts.

This module reads no data file of an export: it runs on each start of Snakemake, and again on each cluster node.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from moe_retriever.catalogue import names as method_names
from mrpipe.datasets import dataset_names, get_dataset
from mrpipe.errors import MrpipeError, UsageError, did_you_mean
from mrpipe.experiment.missingness import Missingness
from mrpipe.options import normalised, parse_options, step_values
from mrpipe.reading import read_json
from mrpipe.schema import Dataset
from mrpipe.stages.reads import is_read
from mrpipe.transforms.options import TransformOptions

from .runs import PlannedRun, masks_of

SIMULATED = "simulated"


class ConfigError(UsageError):
    """The configuration is invalid; `faults` lists every error found."""

    def __init__(self, faults: list[str]):
        self.faults = tuple(faults)
        head = f"{len(faults)} error{'s' * (len(faults) > 1)} in the configuration:"
        super().__init__("\n".join([head, *(f"  - {f}" for f in faults)]))


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """One entry of `datasets`.

    Attributes:
        name: name of the entry and of the store's folder.
        dataset: declaration of the dataset, including its readers.
        raw: folder of the export; None if the export is simulated or a sealed store is given.
        sealed: path of an existing sealed store.
        modalities: names in bit order; for a sealed store, taken from its manifest.
        tasks: names of the labels, the default first.
        options, simulation: as the user requests them, without defaults, sorted by name.
        schemes: split scheme → `seed` and `ids`.
    """

    name: str
    dataset: Dataset
    raw: str | None
    sealed: str | None
    options: Mapping[str, Any]
    simulation: Mapping[str, Any]
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    schemes: Mapping[str, Mapping[str, Any]]

    def options_of(self, step: str) -> dict[str, Any]:
        """The options that a step reads, without defaults, sorted by name; `check` reads all."""
        read = self.options if step == "check" else step_values(self.parsed, step)
        return {name: value for name, value in self.options.items() if name in read}

    @cached_property
    def parsed(self) -> Any:
        """The reader options as the dataset's dataclass."""
        return parse_options(self.dataset.options, self.options, context=self.name)

    @property
    def default_scheme(self) -> str:
        """The scheme of runs that name none, as `seal` chooses it."""
        return self.dataset.default_scheme if self.dataset.default_scheme in self.schemes else min(self.schemes)

    @property
    def simulated(self) -> bool:
        return self.raw is None and self.sealed is None

    @property
    def possible(self) -> tuple[str, ...]:
        """Modalities that a store of this dataset may have, in bit order."""
        # Modalities declared in a file of the export: for a sealed store, only the manifest lists them.
        of_manifest = self.sealed is not None and self.dataset.resolve is not None
        readers = self.dataset.modalities
        return self.modalities if of_manifest else tuple(sorted(readers, key=lambda m: readers[m].bit))

    @property
    def declared(self) -> list[str]:
        """Fields of the dataset's declaration that are copied to the manifest and the data card."""
        d = self.dataset
        return [d.title, d.citation, d.licence, d.provider, d.default_scheme, *d.notes, *map(repr, d.tasks)]


@dataclass(frozen=True, kw_only=True)
class WorkflowPlan:
    """All stores and runs that the configuration requests."""

    stores: Mapping[str, StorePlan]
    runs: Mapping[str, PlannedRun]

    @cached_property
    def masks(self) -> dict[tuple[str, str], Missingness]:
        """(store, name of the mask file) → settings."""
        return masks_of(self.runs.values())


def schema_faults(config: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """All violations of the schema, each with its location and, for an unknown key, the closest valid one."""
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path])
    return [line for error in errors for line in _schema_fault(error)]


def _schema_fault(error: ValidationError) -> Iterator[str]:
    place = ".".join(map(str, error.absolute_path)) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = sorted(error.schema.get("properties", {}))
        for key in sorted(set(error.instance) - set(known), key=str):
            yield f"{place}: unknown key {key!r}. {did_you_mean(key, known)}"
    else:
        yield f"{place}: {error.message}"


def make_plan(config: Mapping[str, Any]) -> WorkflowPlan:
    """Plan a configuration that satisfies the schema and has its defaults filled in.

    Raises:
        ConfigError: unknown names, options that a dataset does not have, or experiments without a store.
    """
    faults: list[str] = []
    stores: dict[str, StorePlan] = {}
    for name, entry in config["datasets"].items():
        try:
            stores[name] = plan_store(name, entry)
        except ConfigError as error:
            faults += error.faults
        except MrpipeError as error:
            faults.append(str(error))
    runs: dict[str, PlannedRun] = {}
    for name, entry in config["experiments"].items():
        place = f"experiments.{name}"
        if entry["dataset"] not in config["datasets"]:
            faults.append(f"{place}.dataset: no entry {entry['dataset']!r} in datasets")
        elif entry["dataset"] in stores:
            faults += _experiment_faults(place, entry, stores[entry["dataset"]])
        transforms: Mapping[str, Any] = {}
        try:
            transforms = parse_transforms(entry["transforms"], place)
        except MrpipeError as error:
            faults.append(str(error))
        try:
            runs |= {run.folder: run for run in _runs(name, entry, transforms)}
        except MrpipeError as error:
            faults.append(f"{place}.missingness: {error}")
    if faults:
        raise ConfigError(faults)
    return WorkflowPlan(stores=stores, runs=runs)


def plan_store(name: str, entry: Mapping[str, Any]) -> StorePlan:
    """Plan one entry of `datasets` that has its defaults filled in.

    Raises:
        ConfigError: lists every error of the entry.
    """
    place = f"datasets.{name}"
    raw, sealed = entry.get("raw"), entry.get("store")
    if (raw is None) == (sealed is None):
        found = "both are" if raw else "neither is"
        wanted = f"`raw` (the folder of an export, or {SIMULATED!r}) or `store` (a sealed store)"
        raise ConfigError([f"{place}: set {wanted}; {found} set"])
    kind = entry.get("dataset", name)
    if kind not in dataset_names():
        raise ConfigError([f"{place}.dataset: no dataset {kind!r}; known: {', '.join(dataset_names())}"])
    dataset = get_dataset(kind)
    faults: list[str] = []
    options, plain = None, dict[str, dict[str, Any]]()
    for key, cls in (("options", dataset.options), ("simulation", dataset.simulation)):
        try:
            plain[key] = normalised(cls, entry[key], context=f"{place}.{key}")
            options = parse_options(cls, plain[key], context=place) if key == "options" else options
        except UsageError as error:
            faults.append(str(error))
    if raw not in (None, SIMULATED) and not Path(raw).is_dir():
        faults.append(f"{place}.raw: no folder {raw!r}; source of the export: {dataset.provider}")
    if raw not in (None, SIMULATED) and not faults:
        dataset = dataset.declared(Path(raw), options)
    if sealed is not None and not Path(sealed, "manifest.json").is_file():
        faults.append(f"{place}.store: no sealed store at {sealed!r} (no manifest.json)")
    if raw != SIMULATED and entry["simulation"]:
        faults.append(f"{place}.simulation: has no effect unless raw is {SIMULATED!r}")
    if sealed is not None:
        useless = [k for k in ("options", "modalities", "schemes") if entry.get(k)]
        faults += [f"{place}.{k}: has no effect on a sealed store" for k in useless]
    modalities: tuple[str, ...] = ()
    tasks = tuple(t.name for t in dataset.tasks)
    if sealed is not None and not faults:
        try:
            modalities, tasks = _stored(Path(sealed, "manifest.json"), dataset)
        except (MrpipeError, KeyError, TypeError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            faults.append(f"{place}.store: {sealed}/manifest.json is not a manifest ({why}); seal the store again")
    elif not faults:
        modalities, unknown = _modalities(entry, dataset, options)
        known = ", ".join(dataset.modalities)
        faults += [f"{place}.modalities: {dataset.name} has no {m!r}; it has {known}" for m in unknown]
    schemes = entry.get("schemes", {dataset.default_scheme: {"seed": 0}})
    for scheme, settings in schemes.items():
        if scheme not in dataset.schemes and "ids" not in settings:
            known = ", ".join(dataset.schemes)
            faults.append(f"{place}.schemes: {dataset.name} has no scheme {scheme!r}; it has {known}, or set `ids`")
        if "ids" in settings and not Path(settings["ids"]).is_file():
            faults.append(f"{place}.schemes.{scheme}.ids: no file {settings['ids']!r}")
    if dataset.default_scheme in schemes:
        # Otherwise the first one is the default of the store.
        schemes = dict(sorted(schemes.items()))
    if faults:
        raise ConfigError(faults)
    return StorePlan(
        name=name,
        dataset=dataset,
        raw=None if raw == SIMULATED else raw,
        sealed=sealed,
        **plain,
        modalities=modalities,
        tasks=tasks,
        schemes=schemes,
    )


def _modalities(entry: Mapping[str, Any], dataset: Dataset, options: Any) -> tuple[tuple[str, ...], list[str]]:
    """Modalities to read, in bit order, and requested names that the dataset does not have."""
    raw = entry.get("raw")
    if "modalities" in entry:
        wanted = entry["modalities"]
    elif raw not in (None, SIMULATED) and dataset.modalities_of is not None:
        wanted = dataset.modalities_of(Path(raw), options)
    else:
        wanted = list(dataset.modalities)
    unknown = [m for m in wanted if m not in dataset.modalities]
    return tuple(sorted((m for m in wanted if m not in unknown), key=lambda m: dataset.modalities[m].bit)), unknown


def _stored(manifest: Path, dataset: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modalities, in bit order, and tasks of a sealed store; those of the dataset if the manifest lists none."""
    said = read_json(manifest, "a store manifest", "Copy or seal the store again.")
    modalities = [m["name"] for m in sorted(said.get("modalities", ()), key=lambda m: m["bit"])]
    tasks = [task["name"] for task in said.get("labels", ())]
    return tuple(modalities or dataset.modalities), tuple(tasks or (t.name for t in dataset.tasks))


def _experiment_faults(place: str, entry: Mapping[str, Any], store: StorePlan) -> Iterator[str]:
    for method in entry["methods"]:
        if method not in method_names():
            yield unknown_name(f"{place}.methods", "method", method, method_names())
    for m in entry.get("modalities", ()):
        if m not in store.modalities:
            yield unknown_name(f"{place}.modalities", "modality", m, store.modalities, f"store {store.name}")
    yield from task_and_scheme_errors(f"{place}.", entry, store)


def task_and_scheme_errors(prefix: str, entry: Mapping[str, Any], store: StorePlan) -> Iterator[str]:
    """Errors in `task` and `scheme` of an experiment or of a block of a suite."""
    task, scheme = entry.get("task"), entry.get("scheme")
    if task not in (None, *store.tasks):
        yield unknown_name(f"{prefix}task", "task", task, store.tasks, store.dataset.name)
    # The schemes of a sealed store are known when it is opened.
    if scheme is not None and store.sealed is None and scheme not in store.schemes:
        yield unknown_name(f"{prefix}scheme", "scheme", scheme, store.schemes, f"store {store.name}")


def unknown_name(place: str, kind: str, name: object, known: Iterable[str], owner: str = "") -> str:
    """Error for a name that does not exist, in `owner` if that is given."""
    return f"{place}: no {kind} {name!r}{f' in {owner}' if owner else ''}. {did_you_mean(name, known)}"


def parse_transforms(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Non-default transform options of a `transforms` mapping, sorted by name."""
    return normalised(TransformOptions, values, context=f"{place}.transforms")


def _runs(name: str, entry: Mapping[str, Any], transforms: Mapping[str, Any]) -> Iterator[PlannedRun]:
    methods = entry["methods"] if isinstance(entry["methods"], Mapping) else {m: {} for m in entry["methods"]}
    for (method, own), seed in itertools.product(methods.items(), entry["seeds"]):
        modalities = tuple(entry.get("modalities", ()))
        missing = entry.get("missingness")
        task = entry.get("task")
        mechanism = missing and Missingness(
            **missing, seed=seed, modalities=modalities, task=task if missing.get("mechanism") == "mnar_label" else None
        )
        yield PlannedRun(
            experiment=name,
            label=method,
            method=method,
            seed=seed,
            store=entry["dataset"],
            preset=own.get("preset", entry["preset"]),
            task=task,
            scheme=entry.get("scheme"),
            modalities=modalities,
            missingness=mechanism or None,
            overrides={**entry["overrides"], **own.get("overrides", {})},
            transforms=transforms,
        )


def fingerprint(store: StorePlan, step: str) -> list[str]:
    """Hash of names, sizes and modification times of the files that a step reads (three levels deep; `check`: all).

    The files of the export that `Dataset.files` declares, and those that the options of the step name.
    """
    if store.raw is None:
        return []
    raw, options, files = Path(store.raw), store.options_of(step), _listing(store.raw)
    texts = [value for value in options.values() if isinstance(value, str) and value]
    named = [raw / part for text in texts for part in (text, text.partition(":")[2]) if part]
    inside = [f for f in named if f.is_dir() for f in f.glob("*")]
    lines = {line for file, line in files if step == "check" or is_read(store.dataset, step, store.parsed, file)}
    lines |= {_state(f) for f in [*named, *inside] if f.is_file()}
    return [hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]]


@cache
def _listing(raw: str) -> list[tuple[str, str]]:
    """Path in the export and state of its files."""
    found = (f for depth in ("*", "*/*", "*/*/*") for f in Path(raw).glob(depth) if f.is_file())
    return [(f.relative_to(raw).as_posix(), _state(f)) for f in found]


def _state(file: Path) -> str:
    stat = file.stat()
    return f"{file} {stat.st_size} {stat.st_mtime_ns}"
