"""Configuration, paths and the small functions that rules share. What is planned is in workflow/planning/."""

import hashlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate


def project_folder():
    """Folder of this workflow's Snakefile, also where it is a module of another workflow.

    A module from a hosting service has no folder here: the rest is then taken from the installed package.
    """
    place = Path(str(workflow.current_basedir))
    if place.is_dir():
        return place.parents[1]
    installed = importlib.util.find_spec("mrpipe")
    if installed is None:
        raise WorkflowError("A workflow from a hosting service needs its package: pip install mrpipe, same version.")
    return Path(installed.origin).parent / "_workflow"


PROJECT = project_folder()
# The folder that holds the packages: the checkout, or, in an installed package, site-packages.
IN_CHECKOUT = (PROJECT / "mrpipe").is_dir()
ROOT = PROJECT if IN_CHECKOUT else PROJECT.parents[1]


def import_own_packages():
    """Import `mrpipe`, `moe_retriever`, and workflow/planning as `mrpipe_planning`.

    The user's folder comes first on the search path and may hold a `mrpipe.py` or a `workflow.py`.
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

from moe_retriever.catalogue import module_of as method_module
from mrpipe.codehash import code_hash
from mrpipe.errors import MrpipeError
from mrpipe.stages.prepare import n_parts
from mrpipe_planning.arguments import (
    benchmark_arguments,
    mask_arguments,
    search_arguments,
    set_arguments,
    settings_asked,
    train_arguments,
)
from mrpipe_planning.plan import ConfigError, fingerprint, make_plan, schema_faults
from mrpipe_planning.progress import Cells, Places
from mrpipe_planning.snakemake_internals import Internals
from mrpipe_planning.suite_cells import description
from mrpipe_planning.suites import Suites


def prefixed(variable, *folders):
    """A search path with folders put first, once."""
    rest = filter(None, os.environ.get(variable, "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys([*map(str, folders), *rest]))


# Jobs run this code with this interpreter, on whichever node, and never what lies in the working directory.
os.environ.update(PYTHONSAFEPATH="1", PATH=prefixed("PATH", Path(sys.executable).parent))
if IN_CHECKOUT:
    os.environ.update(PYTHONPATH=prefixed("PYTHONPATH", PROJECT, PROJECT / "model"))


INTERNALS = Internals(workflow)
INTERNALS.resume_interrupted()


def planned():
    """The plan of this configuration and its suites; raises one error with all that is wrong with it."""
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

INTERNALS.limit_node(os.environ.get("SLURM_CPUS_PER_TASK"))


wildcard_constraints:
    dataset="|".join(map(re.escape, [*PLAN.stores, *SUITES.store_names])),
    modality="[A-Za-z0-9_]+",
    part="[0-9]+",
    total="[0-9]+",
    scheme="[A-Za-z0-9_.-]+",
    mask="[^/]+",
    # A cell of suites: its folders are named after data, view (joined by +) and missingness, and after the method with
    # what is particular to its settings.
    experiment="[A-Za-z0-9_.+-]+",
    method="[A-Za-z0-9_.-]+",
    seed="[0-9]+",
    suite="[A-Za-z][A-Za-z0-9_]*",


def particular_rules():
    """The rule files of the datasets at hand, for those that have one."""
    readers = {store.dataset.name for store in PLAN.stores.values()} | SUITES.readers
    files = [f"workflow/rules/{name}.smk" for name in sorted(readers)]
    return [file for file in files if (PROJECT / file).exists()]


def path(template):
    """A path with `<results>` and its kind filled in, for parameters; inputs and outputs do that themselves."""
    return INTERNALS.filled(template)


def memory(mb):
    """Megabytes that grow with each attempt: a job that was killed for memory asks for more the next time."""
    return lambda wildcards, attempt: mb * attempt


def store_plan(wildcards):
    return SUITES.store(wildcards.dataset)


def store_folder(name):
    """Folder of a store: our own, or the sealed one that the configuration names."""
    return SUITES.store(name).sealed or path(f"<results>/stores/{name}")


def store_manifest(wildcards):
    """The file that seals a store. A store of the user's own is where they say, also where other files are in a storage."""
    sealed = store_plan(wildcards).sealed
    return (
        INTERNALS.user_path(f"{sealed}/manifest.json")
        if sealed
        else f"<results>/stores/{wildcards.dataset}/manifest.json"
    )


def raw_folder(wildcards):
    """Folder of the export: the user's, or the simulator's."""
    return store_plan(wildcards).raw or path(f"<results>/raw/{wildcards.dataset}")


def reader_name(wildcards):
    return store_plan(wildcards).dataset.name


def reader_options(wildcards):
    return set_arguments(store_plan(wildcards).options)


# What reading a modality costs where it is not the usual, set in <dataset>.smk: dataset → modality → threads, mem_mb,
# runtime, and part_mem_mb, part_runtime of a part; and `group`, the name under which profiles say how many parts go into
# one submission. A value may be a function of the wildcards.
INGEST_COST = {}


# Further files that a dataset's own rules make and that `stores` asks for, set in <dataset>.smk.
EXTRA_TARGETS = []

# Stores with quality control that the report shows → its folder; set in <dataset>.smk.
QUALITY = {}
QUALITY_FILES = ("qc.parquet", "contact_sheet.png")


def ingest_cost(wildcards, what, usual):
    value = INGEST_COST.get(reader_name(wildcards), {}).get(wildcards.modality, {}).get(what, usual)
    return value(wildcards) if callable(value) else value


def job_group(name):
    """Jobs that profiles may put into one submission, under the name that profiles know them by."""

    def group(wildcards):
        INTERNALS.join_group(name)
        return name

    return group


def group_of_parts(wildcards):
    return job_group(ingest_cost(wildcards, "group", "parts"))(wildcards)


def modality_parts(wildcards):
    """The parts that a modality's reader joins; most readers have none."""
    store, modality = store_plan(wildcards), wildcards.modality
    total = n_parts(store.dataset, modality, store.options)
    return [f"<results>/build/{store.name}/parts/{modality}/{part}-of-{total}.parquet" for part in range(total)]


def run_folder(run):
    return path(f"<results>/runs/{run.folder}")


def run_plan(wildcards):
    """The run of an experiment, or the cell of suites."""
    folder = f"{wildcards.experiment}/{wildcards.method}/seed{wildcards.seed}"
    return PLAN.runs[folder] if folder in PLAN.runs else SUITES.runs[folder]


def mask_plan(wildcards):
    key = wildcards.dataset, wildcards.mask
    return PLAN.masks[key] if key in PLAN.masks else SUITES.masks[key]


def search_result(run):
    """The settings that a search found for a run and those that share its settings, if there is to be one."""
    return [f"<results>/searches/{run.experiment}/{run.label}/best.json"] if run.trials else []


def mask_file(run):
    """The mask that a run trains and is tested with, if modalities are taken away."""
    return [f"<results>/masks/{run.store}/{run.mask}.parquet"] if run.mask else []


def store_targets(wildcards):
    return [*(f"<results>/verified/{name}.txt" for name in PLAN.stores), *EXTRA_TARGETS]


def run_targets(wildcards):
    checked = [
        f"<results>/runs/{name}/settings.json" for name in dict.fromkeys(r.experiment for r in PLAN.runs.values())
    ]
    return [*checked, *(f"<results>/runs/{run.folder}/metrics.json" for run in PLAN.runs.values())]


def all_targets(wildcards):
    """Stores, runs, and the page that shows both."""
    return ["<results>/report/index.html", *run_targets(wildcards), *store_targets(wildcards)]


def rendered_suites(wildcards):
    """Folders of the suites that were rendered before: the report shows what is there, and asks for none."""
    folders = sorted(f for f in Path(path("<results>/suites")).glob("*") if f.is_dir())
    return [str(f) for f in folders if (f / "table.html").is_file() or next(f.glob("*.svg"), None)]


def rendered_state(wildcards):
    """Hash of what the suites hold, as a parameter: a suite that is rendered anew makes the report run again."""
    shown = ("*.html", "*.svg", "suite.json")
    files = [f for folder in rendered_suites(wildcards) for kind in shown for f in sorted(Path(folder).glob(kind))]
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()[:16]


def code_of(*entries, function=None):
    """Hash of the code that a step runs, as a parameter: an edit of it, not of a comment, makes the step run again.

    `function` takes a dataset's declaration and the wildcards to the function of the dataset that the step calls;
    only the module that holds it counts, so that an edit of one reader does not touch the other modalities.
    """

    def code(wildcards):
        called = function and function(store_plan(wildcards).dataset, wildcards)
        while isinstance(called, partial):
            called = called.func
        modules = [called.__module__] if called else []
        return code_hash(*entries, *modules)

    return code


def summarise():
    """Print scores, stores and the report's path."""
    from mrpipe_planning.summary import print_summary

    print_summary(Path(path("<results>")))
