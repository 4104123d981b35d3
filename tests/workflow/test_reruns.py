"""A changed option, file or key order reruns exactly the steps that read it."""

import ast
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

from mrpipe.codehash import PROJECT, _Module, entry_of, reached
from mrpipe.datasets import dataset_names, get_dataset
from mrpipe.datasets.meds.simulate import YAML as MEDS
from mrpipe.datasets.tables.simulate.export import YAML as TABLES
from mrpipe.options import step_values
from mrpipe.schema import Dataset
from workflow.planning import plan

# Steps of a build from the cohort to the splits, besides the preparation and ingestion of each modality.
REST = {"samples", "split standard"}
ENDS = {"check", "seal", "verify"}
# Dataset → options → the steps that a change of one reruns, besides those that follow from them. Any other option
# reruns the cohort and all that follows.
EXPECTED = {
    "mimic": {
        "checksums rebuilt integrity": (),
        "event_sources event_window n_shards": ("prepare lab", "prepare lab_summary"),
        "bin_hours outlier_ranges": ("ingest lab", "ingest lab_summary"),
        "rollup icd_versions": ("ingest code",),
        "notes summary_time note_sections text_encoder note_features note_pieces": ("ingest note",),
        "leak_guard": ("ingest note", "ingest code"),
    },
    "adni": {
        "dementia_drugs": ("ingest clinical",),
        "plasma_abeta plasma_nfl isoprostane": ("ingest biospecimen",),
        "genotypes vcf_calls vcf_uncertainty vcf_r2 source_builds target_build chain reference frequency_check "
        "off_reference chromosomes mind geno maf hwe merge": ("ingest genomic",),
        "image_dtype image_downsample": ("ingest image",),
        "image_route image_maps image_mask image_mask_label image_scan image_tries "
        "image_parts image_registration image_brain image_smoothing_mm image_template "
        "image_min_overlap image_min_ncc image_timeout_min": ("prepare image",),
    },
    "enrico": {"image_size": ("ingest screenshot", "ingest wireframe"), "max_unmatched": ()},
}
MOSI = {
    "text_form text_features": ("ingest text",),
    "audio_form": ("ingest audio",),
    "vision_form": ("ingest vision",),
    "text_encoder word_rule max_steps": ("ingest text", "ingest audio", "ingest vision"),
    "max_frames": ("ingest audio", "ingest vision"),
}
EXPECTED |= {"mosi": MOSI, "mosei": MOSI, "ch_sims": MOSI}
MOSI_READERS = ("text.ingest", "audio.ingest", "vision.ingest")
# Change of an experiment → rules that run again. `runs` stands for training and evaluation.
TRAINING = {
    "lr": ({"overrides": {"epochs": 2, "lr": 0.01}}, {"settings", "runs"}),
    "epochs": ({"overrides": {"epochs": 3}}, {"settings", "runs"}),
    "preset": ({"preset": "smoke"}, {"settings", "runs"}),
    "seed": ({"seeds": [1]}, {"mask", "runs"}),
    "modalities": ({"modalities": ["text"]}, {"mask", "runs"}),
    "p": ({"missingness": {"p": 0.5}}, {"mask", "runs"}),
    "transforms": ({"transforms": {"scale": "minmax"}}, {"runs"}),
    "scheme": ({"scheme": "uniform"}, {"runs"}),
    "task": ({"task": "sentiment7"}, {"runs"}),
    "written out": ({"transforms": {"scale": "standard"}, "missingness": {"p": 0.3, "mechanism": "mcar"}}, set()),
}


def changed(field: Any) -> Any:
    """A valid value of an option that differs from its default."""
    value, choices = field.default, field.metadata["choices"]
    if choices:
        return next(c for c in choices if c != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return [*value, *value[:1]] or ["other"]
    return value + 1 if isinstance(value, int) else value * 0.7 + 0.01 if isinstance(value, float) else "other"


def expected(dataset: Dataset, name: str) -> set[str]:
    """Jobs that a change of a reader option reruns."""
    ingested = {f"ingest {m}" for m in dataset.modalities}
    prepared = {f"prepare {m}" for m, reader in dataset.modalities.items() if reader.prepare}
    table = EXPECTED.get(dataset.name, {})
    steps = next((set(s) for names, s in table.items() if name in names.split()), {"cohort", *ingested, *prepared})
    steps |= {step.replace("prepare", "ingest") for step in steps}
    return ENDS | steps & {"cohort", *ingested, *prepared} | (REST if steps - {"cohort"} else set())


class Graph:
    """The graph of jobs of a configuration, without running any.

    Args:
        folder: working directory.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], targets: set[str]):
        here = Path.cwd()
        environment = dict(os.environ)
        try:
            with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
                flow = api.workflow(
                    resource_settings=ResourceSettings(cores=2),
                    config_settings=ConfigSettings(config=json.loads(json.dumps(config))),
                    snakefile=PROJECT / "Snakefile",
                    workdir=folder,
                )
                flow.dag(DAGSettings(targets=targets)).execute_workflow(executor="dryrun")
                self._flow = flow._workflow
                self._dag, self._state = self._flow.dag, self._flow.persistence
                self.jobs = list(self._dag.jobs)
                self._signatures = {job: [self._state._params(job), self._state._input(job)] for job in self.jobs}
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)

    def rerun(self, name: str, base: str, file: str) -> set[str]:
        """Jobs of the entry `name` that would run after the entry `base` was changed to it.

        Args:
            file: a part of the name of the last file of an entry, with `{}` for the name of the entry.
        """
        before, after = self._behind(base, file), self._behind(name, file)
        waiting = [job for key, (job, content) in after.items() if key not in before or content != before[key][1]]
        found = set(waiting)
        inside = {job for job, _ in after.values()}
        while waiting:
            for other, files in self._dag.depending[waiting.pop()].items():
                if other in inside - found and not all(f.is_ancient for f in files):
                    found.add(other)
                    waiting.append(other)
        hidden = ("dataset", "part", "total", "experiment", "mask", "seed", "method")
        values = ((job.rule.name, [v for k, v in job.wildcards.items() if k not in hidden]) for job in found)
        return {" ".join([rule, *shown]) for rule, shown in values}

    def _behind(self, name: str, file: str) -> dict[tuple[str, ...], tuple[Any, str]]:
        """Rule and wildcards → job and what Snakemake compares, of all jobs behind an entry; its name is replaced."""
        last = [job for job in self.jobs if any(file.format(name) in f for f in job.output)]
        assert last, (name, file)
        found = set(self._dag.bfs(self._dag._dependencies, *last))
        return {
            (job.rule.name, *(v.replace(name, "X") for v in job.wildcards)): (
                job,
                json.dumps(self._signatures[job]).replace(name, "X"),
            )
            for job in found
        }


def variants(dataset: Dataset, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changed option → settings, of the reader options or of the simulation."""
    for field in dataclasses.fields(getattr(dataset, kind)):
        yield field.name, {field.name: changed(field)}


def written_out(cls: type[Any]) -> dict[str, Any]:
    """All options with their defaults, in another order."""
    plain = json.loads(json.dumps(dataclasses.asdict(cls())))
    return dict(reversed(list(plain.items())))


def store_graph(folder: Path, dataset: Dataset, kind: str) -> tuple[Graph, dict[str, str]]:
    """Graph of stores that differ in one option each, from the entry `base0`, and the entry of each option."""
    entries = {"base0": dict[str, Any](), "same0": {kind: written_out(getattr(dataset, kind))}}
    names = {}
    for i, (name, settings) in enumerate(variants(dataset, kind)):
        names[name] = f"entry{i:03}x"
        entries[names[name]] = {kind: settings}
    config = {n: {"dataset": dataset.name, "raw": "simulated", **entry} for n, entry in entries.items()}
    return Graph(folder, {"datasets": config}, {"stores"}), names


@pytest.mark.parametrize("name", dataset_names())
def test_a_reader_option_reruns_the_steps_that_read_it(name: str, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    graph, names = store_graph(tmp_path, dataset, "options")
    found = {option: graph.rerun(entry, "base0", "verified/{}.txt") for option, entry in names.items()}
    assert found == {option: expected(dataset, option) for option in names}
    assert graph.rerun("same0", "base0", "verified/{}.txt") == set()


@pytest.mark.parametrize("name", dataset_names())
def test_a_simulation_option_reruns_everything(name: str, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    graph, names = store_graph(tmp_path, dataset, "simulation")
    every = {"simulate"} | expected(dataset, "any other")
    assert {option: graph.rerun(e, "base0", "verified/{}.txt") for option, e in names.items()} == dict.fromkeys(
        names, every
    )
    assert graph.rerun("same0", "base0", "verified/{}.txt") == set()


def test_options_of_notes_rerun_the_cohort_that_stores_their_text(tmp_path: Path) -> None:
    options = {"base0": {}, "other0": {"note_sections": ["service"]}, "other1": {"note_features": 64}}
    entries = {
        n: {"dataset": "mimic", "raw": "simulated", "options": {"store_text": True, **o}} for n, o in options.items()
    }
    graph = Graph(tmp_path, {"datasets": entries}, {"stores"})
    assert graph.rerun("other0", "base0", "verified/{}.txt") == expected(get_dataset("mimic"), "any other")
    assert graph.rerun("other1", "base0", "verified/{}.txt") == expected(get_dataset("mimic"), "note_features")


def test_a_training_option_reruns_the_runs_that_use_it(tmp_path: Path) -> None:
    store = {"raw": "simulated", "schemes": {"standard": {}, "uniform": {"seed": 0}}}
    base = {"dataset": "mosi", "methods": ["logistic"], "missingness": {"p": 0.3}, "overrides": {"epochs": 2}}
    entries = {f"trial{i:03}x": base | change for i, (change, _) in enumerate(TRAINING.values())}
    config = {"datasets": {"mosi": store}, "experiments": {"base0": base, **entries}, "cells_per_job": 1}
    graph = Graph(tmp_path, config, {"runs"})
    for name, (case, (_, rules)) in zip(entries, TRAINING.items(), strict=True):
        found = {job.split()[0] for job in graph.rerun(name, "base0", "/{}/")}
        assert {r if r in ("settings", "mask") else "runs" for r in found} == rules, case


# Change of a store → jobs that run again for runs of MIMIC-IV's notes and codes. Of those in the last column, a
# process starts and finds that their results are complete: tests/moe_retriever/cli/test_cells.py.
STORES = {
    "checksums": ({"options": {"checksums": "note"}}, {"check"}, set()),
    "another modality": (
        {"options": {"bin_hours": 2.0}},
        {"check", "ingest lab", "ingest lab_summary", "samples", "split standard"},
        {"mask", "runs"},
    ),
    "its own modality": (
        {"options": {"note_features": 64}},
        {"check", "ingest note", "samples", "split standard"},
        {"mask", "runs"},
    ),
    "another seed of its split": ({"schemes": {"standard": {"seed": 1}}}, {"split standard"}, {"mask", "runs"}),
}


def test_an_option_of_a_store_reruns_the_runs_that_read_its_tables(tmp_path: Path) -> None:
    base = {"dataset": "mimic", "raw": "simulated"}
    stores = {"base0": base} | {f"entry{i:03}x": base | change for i, (change, *_) in enumerate(STORES.values())}
    how = {"methods": ["logistic"], "modalities": ["note", "code"], "missingness": {"p": 0.3}}
    config = {"datasets": stores, "experiments": {name: how | {"dataset": name} for name in stores}}
    graph = Graph(tmp_path, config | {"cells_per_job": 1}, {"runs"})
    for name, (case, (_, built, begun)) in zip(list(stores)[1:], STORES.items(), strict=True):
        found = {"runs" if "cells" in job else job for job in graph.rerun(name, "base0", "/{}/")}
        assert found == {"seal", "verify"} | built | begun, case


def test_another_split_reruns_the_runs_that_use_it(tmp_path: Path) -> None:
    both = {"standard": {}, "uniform": {"seed": 0}}
    stores = {"base0": both, "other0": both | {"uniform": {"seed": 1}}}
    datasets = {name: {"dataset": "mosi", "raw": "simulated", "schemes": schemes} for name, schemes in stores.items()}
    experiments = {name: {"dataset": name, "methods": ["logistic"]} for name in stores}
    graph = Graph(tmp_path, {"datasets": datasets, "experiments": experiments}, {"runs"})
    assert graph.rerun("other0", "base0", "/{}/") == {"split uniform", "seal", "verify"}


@cache
def option_reads(function: Any, fields: frozenset[str]) -> set[str]:
    """Options that the code reachable from a function may read: attributes of a name that ends with `options`."""
    found = set()
    for module, indices in reached(entry_of(function)).items():
        for statement in (_Module.of(module, PROJECT).statements[i] for i in indices):
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and node.attr in fields:
                    owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                    found |= {node.attr} if owner.endswith("options") else set()
    return found


# Reachable code that a step does not run: notes are read with store_text only, volumes and words in other steps.
UNUSED = {
    ("mimic", "cohort"): {"notes", "summary_time", "note_sections", "leak_guard"},
    ("adni", "image.prepare"): {"image_dtype"},
    ("mosi", "cohort"): {"text_encoder", "word_rule"},
}


@pytest.mark.parametrize("name", ["adni", "enrico", "mimic", "mosi"])
def test_no_step_can_reach_code_that_reads_another_option(name: str) -> None:
    dataset = get_dataset(name)
    fields = frozenset(f.name for f in dataclasses.fields(dataset.options))
    functions = {"cohort": dataset.cohort} | {f"{m}.ingest": r.read for m, r in dataset.modalities.items()}
    functions |= {f"{m}.prepare": r.prepare for m, r in dataset.modalities.items() if r.prepare}
    undeclared = {
        step: sorted(
            option_reads(function, fields) - set(step_values(dataset.options(), step)) - UNUSED.get((name, step), set())
        )
        for step, function in functions.items()
    }
    assert {step: names for step, names in undeclared.items() if names} == {}


def test_declared_options_exist() -> None:
    for dataset in map(get_dataset, dataset_names()):
        fields = {f.name for f in dataclasses.fields(dataset.options)}
        declared = getattr(dataset.options, "STEPS", {})
        assert fields.issuperset(name for names in declared for name in names.split()), dataset.name
        steps = {s.partition(" if ")[0].partition(".")[0] for read_by in declared.values() for s in read_by}
        assert steps <= {"cohort", *dataset.modalities} >= dataset.files.keys(), dataset.name


@pytest.mark.parametrize(
    ("name", "file", "steps"),
    [
        ("mimic", "note/discharge.csv.gz", {"check", "note.ingest"}),
        ("mimic", "hosp/labevents/part-0.parquet", {"check", "lab.prepare", "lab.ingest", "lab_summary.ingest"}),
        ("adni", "genetics/set.bed", {"check", "genomic.ingest"}),
        ("adni", "images/map.nii.gz", {"check", "image.prepare", "image.ingest"}),
        ("enrico", "screenshots.zip", {"check", "cohort", "screenshot.ingest"}),
        ("mosi", "CMU_MOSI_COVAREP.csd", {"check", "audio.ingest"}),
        ("mosei", "acoustic/video_1.npy", {"check", "audio.ingest"}),
        ("mosi", "CMU_MOSI_Visual_Facet_42.csd", {"check", "vision.ingest"}),
        ("mosi", "CMU_MOSI_TimestampedWords.csd", {"check", "cohort", *MOSI_READERS}),
        ("ch_sims", "unaligned.pkl", {"check", "cohort", *MOSI_READERS}),
        ("tables", "Labs.csv.zst", {"check", "labs.ingest"}),
        ("tables", "people.csv", {"check", "cohort"}),
        ("tables", "other.csv", {"check"}),
        ("tables", "tables.yaml", {"check", "cohort", "labs.ingest", "survey.ingest", "vitals.ingest"}),
        ("meds", "metadata/dataset.json", {"check"}),
        ("meds", "metadata/subject_splits.parquet", {"check", "cohort"}),
    ],
)
def test_a_changed_file_reruns_the_steps_that_read_it(name: str, file: str, steps: set[str], tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    (tmp_path / "README.md").write_text("1")
    (tmp_path / "meds.yaml").write_text(MEDS)
    (tmp_path / "tables.yaml").write_text(TABLES.replace("labs.csv.gz", "Labs.csv"))
    store = plan.plan_store(name, {"raw": str(tmp_path), "options": {}, "simulation": {}, "modalities": []})
    every = ["check", "cohort", *(f"{m}.{verb}" for m in store.dataset.modalities for verb in ("prepare", "ingest"))]
    before = {step: plan.fingerprint(store, step) for step in every}
    os.utime(path, ns=(1, 1))
    plan._listing.cache_clear()
    found = {step for step in every if plan.fingerprint(store, step) != before[step]}
    prepared = {f"{m}.prepare" for m, reader in store.dataset.modalities.items() if not reader.prepare}
    assert found - prepared - {"lab_summary.prepare"} == steps


@pytest.mark.whole
def test_snakemake_lists_the_same_jobs(snakemake: Any, finished: Path, tiny: dict[str, Any]) -> None:
    mosi = tiny["datasets"]["mosi"]
    mosi["options"] = {"audio_form": "collapse"}
    outcome = snakemake("stores", "-n", folder=finished, config={"datasets": tiny["datasets"]})
    jobs = {" ".join(job.split()[:1] + job.split()[2:]) for job in outcome.jobs}
    assert jobs == {"stores", *expected(get_dataset("mosi"), "audio_form")}, outcome.text
    mosi["options"] = written_out(get_dataset("mosi").options)
    mosi["simulation"] = dict(reversed(mosi["simulation"].items())) | {"seed": 0}
    tiny["experiments"]["mosi"]["overrides"] = dict(reversed(tiny["experiments"]["mosi"]["overrides"].items()))
    assert snakemake("-n", folder=finished, config=tiny).idle
    # An option that only the check reads trains nothing.
    tiny["datasets"]["enrico"]["options"] = {"max_unmatched": 0.5}
    outcome = snakemake("-n", folder=finished, config=tiny)
    assert {job.split()[0] for job in outcome.jobs} == {"all", "report_page", *ENDS}, outcome.text


@pytest.mark.slow
@pytest.mark.whole
def test_a_failed_check_rebuilds_nothing(snakemake: Any, finished: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    config = {"datasets": {"mosi": tiny["datasets"]["mosi"] | {"options": {"file": "absent.pkl"}}}}
    assert snakemake("stores", folder=folder, config=config).code != 0
    outcome = snakemake("stores", "-n", folder=folder, config={"datasets": {"mosi": tiny["datasets"]["mosi"]}})
    assert outcome.idle or {job.split()[0] for job in outcome.jobs} <= {"stores", *ENDS}, outcome.text
