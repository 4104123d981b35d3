"""Configuration, paths and helper functions shared by the rules. The planning code is in workflow/planning/."""

import hashlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from functools import cache
from operator import itemgetter
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate


def project_folder():
    """Folder of this workflow's Snakefile, also if another workflow imports this one as a module.

    A module from a hosting service has no local folder; the remaining files are then taken from the installed package.
    """
    place = Path(str(workflow.current_basedir))
    if place.is_dir():
        return place.parents[1]
    installed = importlib.util.find_spec("mrpipe")
    if installed is None:
        raise WorkflowError(
            "A workflow from a hosting service requires the package: pip install mrpipe (same version)."
        )
    return Path(installed.origin).parent / "_workflow"


PROJECT = project_folder()
# The folder of the packages: the checkout or, if installed, site-packages.
IN_CHECKOUT = (PROJECT / "mrpipe").is_dir()
ROOT = PROJECT if IN_CHECKOUT else PROJECT.parents[1]


def import_own_packages():
    """Import `mrpipe`, `moe_retriever`, and workflow/planning as `mrpipe_planning`.

    The working directory precedes them on the search path and may contain a `mrpipe.py` or a `workflow.py`.
    """
    folders = [str(ROOT), str(ROOT / "model")]
    sys.path[:0] = folders
    import moe_retriever
    import mrpipe

    del sys.path[: len(folders)]
    folder = PROJECT / "workflow" / "planning"
    spec = importlib.util.spec_from_file_location("mrpipe_planning", folder / "__init__.py")
    sys.modules["mrpipe_planning"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


import_own_packages()

from moe_retriever.catalogue import gradient_steps, module_of as method_module
from mrpipe.codehash import code_hash, entry_of
from mrpipe.errors import MrpipeError
from mrpipe.stages.prepare import parts_of
from mrpipe_planning.arguments import (
    benchmark_arguments,
    mask_arguments,
    protocol_arguments,
    search_arguments,
    set_arguments,
    settings_asked,
    train_arguments,
)
from mrpipe_planning.batches import files_of, incomplete_batches, make_batches
from mrpipe_planning.plan import ConfigError, fingerprint, make_plan, schema_faults
from mrpipe_planning.runs import mask_name
from mrpipe_planning.progress import PlannedStep, Steps, shown
from mrpipe_planning.snakemake_internals import Internals
from mrpipe_planning.suite_cells import description
from mrpipe_planning.suites import Suites


def prefixed(variable, *folders):
    """An environment variable's search path with the given folders first, without duplicates."""
    rest = filter(None, os.environ.get(variable, "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys([*map(str, folders), *rest]))


# On every node, jobs use this code and this interpreter, and never import modules from the working directory. Their logs
# are UTF-8 and have the traceback of an unexpected error.
os.environ.update(PYTHONSAFEPATH="1", PYTHONUTF8="1", MRPIPE_DEBUG="1")
os.environ.update(PATH=prefixed("PATH", Path(sys.executable).parent))
if IN_CHECKOUT:
    os.environ.update(PYTHONPATH=prefixed("PYTHONPATH", PROJECT, PROJECT / "model"))


INTERNALS = Internals(workflow)
INTERNALS.resume_interrupted()
INTERNALS.follow_umask()
INTERNALS.examine_behind_ancient()


def planned():
    """The plan of this configuration and its suites; a single error lists everything that is invalid."""
    schema = yaml.safe_load((PROJECT / "workflow/schemas/config.schema.yaml").read_text())
    try:
        if faults := schema_faults(config, schema):
            raise ConfigError(faults)
        validate(config, str(PROJECT / "workflow/schemas/config.schema.yaml"))
        plan = make_plan(config)
        return plan, Suites(config, plan)
    except MrpipeError as error:
        raise WorkflowError(str(error)) from error


PLAN, SUITES = planned()
EXPERIMENTS = make_batches(
    ((run, [run.experiment]) for run in PLAN.runs.values()), per_job=config.get("cells_per_job"), small=False
)
BATCH_OF = files_of(EXPERIMENTS.values())
SUITE_BATCH_OF = cache(lambda: files_of(SUITES.batches.values()))
# A batch of which a result was deleted runs again.
INTERNALS.force(lambda: incomplete_batches(Path(path("<results>/batches"))))

INTERNALS.limit_node(os.environ.get("SLURM_CPUS_PER_TASK"))
INTERNALS.jobs_per_gpu = config["cells_per_gpu"]


wildcard_constraints:
    dataset="|".join(map(re.escape, [*PLAN.stores, *SUITES.store_names])),
    modality="[A-Za-z0-9_]+",
    part="[0-9]+",
    total="[0-9]+",
    scheme="[A-Za-z0-9_.-]+",
    mask="[^/]+",
    # A cell of suites has one folder named after data, view (joined by +) and missingness, and one named after the
    # method and its non-default settings.
    experiment="[A-Za-z0-9_.+-]+",
    method="[A-Za-z0-9_.-]+",
    batch="[A-Za-z0-9_./+-]+",
    suite="[A-Za-z][A-Za-z0-9_]*",


def particular_rules():
    """The dataset-specific rule files of the datasets in use."""
    readers = {store.dataset.name for store in PLAN.stores.values()} | SUITES.readers
    files = [f"workflow/rules/{name}.smk" for name in sorted(readers)]
    return [file for file in files if (PROJECT / file).exists()]


@cache
def path(template):
    """Fill in `<results>` and similar variables for use in params; Snakemake does so for inputs and outputs."""
    return INTERNALS.filled(template)


def memory(mb):
    """Memory request that grows with each attempt, for jobs that were killed because they ran out of memory."""
    return lambda wildcards, attempt: mb * attempt


def store_plan(wildcards):
    return SUITES.store(wildcards.dataset)


def store_folder(name):
    """Folder of a store: the sealed one given in the configuration, or one that the workflow builds."""
    return SUITES.store(name).sealed or path(f"<results>/stores/{name}")


def store_manifest(wildcards):
    """The manifest of a store. A user's sealed store keeps its path even if a default storage is configured."""
    sealed = store_plan(wildcards).sealed
    built = f"<results>/stores/{wildcards.dataset}/manifest.json"
    return INTERNALS.user_path(f"{sealed}/manifest.json") if sealed else built


def raw_folder(wildcards):
    """Folder of the export: the user's, or the one that the simulator writes."""
    return store_plan(wildcards).raw or path(f"<results>/raw/{wildcards.dataset}")


def reader_name(wildcards):
    return store_plan(wildcards).dataset.name


def step_of(wildcards, rule):
    """Name of a step in the declarations of its options and files, e.g. `lab.prepare`."""
    return f"{wildcards.modality}.{rule}" if "modality" in wildcards.keys() else rule


def reader_options(rule):
    """The options that a step reads: other options do not rerun it."""
    return lambda wildcards: set_arguments(store_plan(wildcards).options_of(step_of(wildcards, rule)))


def export_files(rule):
    """Hash of the state of the files of a real export that a step reads."""
    return lambda wildcards: fingerprint(store_plan(wildcards), step_of(wildcards, rule))


def simulated_export(wildcards):
    """The flag file of a simulated export; a change of the simulation reruns every step that reads the export."""
    return ["<results>/build/{dataset}/simulated"] * store_plan(wildcards).simulated


# Non-default resources for reading a modality, set in <dataset>.smk: dataset → modality → threads, mem_mb, runtime, and
# part_mem_mb and part_runtime for one part. `group` is the name under which a profile sets the number of parts per
# submission. A value can be a function of the wildcards.
INGEST_COST = {}


# Additional files built by dataset-specific rules and required by the target `stores`, set in <dataset>.smk.
EXTRA_TARGETS = []

# Store → folder of its quality control, which the report shows; set in <dataset>.smk.
QUALITY = {}
QUALITY_FILES = ("qc.parquet", "contact_sheet.png")


def ingest_cost(wildcards, what, usual):
    value = INGEST_COST.get(reader_name(wildcards), {}).get(wildcards.modality, {}).get(what, usual)
    return value(wildcards) if callable(value) else value


def job_group(name):
    """Name of a job group, which profiles use to combine several jobs into one submission."""

    def group(wildcards):
        INTERNALS.join_group(name)
        return name

    return group


def group_of_parts(wildcards):
    return job_group(ingest_cost(wildcards, "group", "parts"))(wildcards)


def of_modalities(template):
    """Input function for one file per modality of a store."""
    return lambda wildcards: expand(template, dataset=wildcards.dataset, modality=store_plan(wildcards).modalities)


def modality_parts(wildcards):
    """Files of the parts that a modality's reader joins, which may be those of another modality; most have none."""
    store, modality = store_plan(wildcards), wildcards.modality
    source, total = parts_of(store.dataset, modality, store.options)
    return [f"<results>/build/{store.name}/parts/{source}/{part}-of-{total}.parquet" for part in range(total)]


def batch_of(wildcards):
    """The batch of experiments or of suites."""
    return EXPERIMENTS.get(wildcards.batch) or SUITES.batches[wildcards.batch]


def batch_files(runs):
    """Files of the batches that hold the given evaluations, without duplicates."""
    files = dict.fromkeys(BATCH_OF.get(run.tested) or SUITE_BATCH_OF()[run.tested] for run in runs)
    return [f"<results>/batches/{file}" for file in files]


def minutes_of_batch(wildcards):
    """Time limit. A batch that reaches it is submitted again and continues with its next cell."""
    batch = batch_of(wildcards)
    return max(14 * 60 if batch.large else 2 * 60, len(batch.cells) * (120 if batch.large else 10))


def run_folder(run):
    return f"{path('<results>/runs')}/{run.folder}"


@cache
def code_of_method(method):
    """Hash of the code that trains and evaluates a method."""
    entries = "moe_retriever.training.loop:run_training", "moe_retriever.evaluation.evaluate:evaluate_run"
    return code_hash(*entries, method_module(method))


def cell_request(cell):
    """Arguments of `mrpipe train` and `mrpipe evaluate` for a training and its evaluations, for `mrpipe cells`."""
    run, store, tests = cell[0], store_folder(cell[0].store), {}
    train = [word for file in mask_file(run) for word in ("--mask", path(file))]
    train += [word for file in search_result(run) for word in ("--options", path(file))]
    for tested in cell:
        hidden = [mask_name(tested.test_missingness)] if tested.test and tested.test_missingness else []
        files = [path(f"<results>/masks/{tested.test_store}/{mask}.parquet") for mask in hidden]
        protocol = protocol_arguments(tested, files, store)
        tests[tested.test.name if tested.test else ""] = ["--store", store_folder(tested.test_store), *protocol]
    train = ["--store", store, *train, *train_arguments(run)]
    return {"run": run_folder(run), "train": train, "tests": tests, "code": code_of_method(run.method)}


def mask_plan(wildcards):
    key = wildcards.dataset, wildcards.mask
    return PLAN.masks[key] if key in PLAN.masks else SUITES.masks[key]


def search_result(run):
    """File with the settings that a search selects for a run, if a search is requested; seeds share it."""
    return [f"<results>/searches/{run.experiment}/{run.label}/best.json"] if run.trials else []


def mask_file(run):
    """Mask file for the training and evaluation of a run with simulated missingness."""
    return [f"<results>/masks/{run.store}/{run.mask}.parquet"] if run.mask else []


def content_files(name, modalities=(), scheme=None):
    """Verification of a store, which alone reruns no job, and hashes of the tables (default: all) that a job reads.

    The tables of a sealed store are known by its verification only.
    """
    store, verified = SUITES.store(name), f"<results>/verified/{name}.txt"
    if store.sealed:
        return [verified]
    tables = ["samples", *(f"modalities/{m}" for m in modalities or store.modalities if m in store.modalities)]
    tables += [f"splits/{s}" for s in store.schemes if scheme in (None, s)]
    return [ancient(verified), *(f"<results>/contents/{name}/{table}.txt" for table in tables)]


def contents(runs):
    """The files of `content_files` of trainings and evaluations."""
    stores = {(name, r.modalities, r.scheme) for r in runs for name in (r.store, r.test_store)}
    asked = {(name, view, scheme or SUITES.store(name).default_scheme) for name, view, scheme in stores}
    return sorted({file for key in asked for file in content_files(*key)})


def store_files(name):
    """The verification of a store and, so that a deleted store is built again, its manifest."""
    built = [] if SUITES.store(name).sealed else [f"<results>/stores/{name}/manifest.json"]
    return [f"<results>/verified/{name}.txt", *built]


def store_targets(wildcards):
    return [*(file for name in PLAN.stores for file in store_files(name)), *EXTRA_TARGETS]


def run_targets(wildcards):
    experiments = dict.fromkeys(run.experiment for run in PLAN.runs.values())
    checked = [f"<results>/runs/{name}/settings.json" for name in experiments]
    return [*checked, *batch_files(PLAN.runs.values())]


def all_targets(wildcards):
    """Stores, runs, and the report page."""
    return ["<results>/report/index.html", *run_targets(wildcards), *store_targets(wildcards)]


def rendered_suites(wildcards):
    """Folders of suites that are already rendered: the report shows them but does not request any."""
    folders = sorted(f for f in Path(path("<results>/suites")).glob("*") if f.is_dir())
    return [str(f) for f in folders if (f / "table.html").is_file() or next(f.glob("*.svg"), None)]


def rendered_state(wildcards):
    """Hash of the rendered suites, used as a parameter so that rendering a suite again also rebuilds the report."""
    shown = ("*.html", "*.svg", "suite.json")
    files = [f for folder in rendered_suites(wildcards) for kind in shown for f in sorted(Path(folder).glob(kind))]
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()[:16]


def code_of(*entries, function=None):
    """Hash of a step's code, used as a parameter so that editing the code (comments excepted) reruns the step.

    An entry is a module or `module:function`; only the definitions that it can reach are hashed. `function` maps a
    dataset's declaration and the wildcards to the dataset function, or functions, that the step calls.
    """

    def code(wildcards):
        called = function(store_plan(wildcards).dataset, wildcards) if function else ()
        return code_hash(*entries, *map(entry_of, called if isinstance(called, tuple) else (called,)))

    return code


# Set by `mrpipe run`, which prints steps instead of Snakemake's messages: steps, or quiet for failed steps only.
OUTPUT = os.environ.pop("MRPIPE_OUTPUT", "")
if OUTPUT:
    INTERNALS.show_only(shown)


def summarise():
    """Print the answer, scores, stores and the paths of the reports."""
    from mrpipe_planning.summary import print_summary

    pages = [f"<results>/suites/{job.wildcards.suite}/report" for job in INTERNALS.jobs("suite_report")]
    pages += ["<results>/report"] * bool(INTERNALS.jobs("report_page"))
    print_summary(Path(path("<results>")), [Path(path(page)) for page in pages])
