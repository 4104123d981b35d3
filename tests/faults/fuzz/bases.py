"""Intact inputs that are mutated: the smallest simulated exports, and files that the project itself writes."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from mrpipe.cli.main import main
from mrpipe.datasets import get_dataset
from mrpipe.datasets.adni.genomic import plink
from mrpipe.datasets.adni.simulate.image import simulate_images
from mrpipe.genetics.packing import bed_rows
from mrpipe.imaging.nifti import write_nifti
from mrpipe.stages.simulate import simulate
from tests.datasets.adni.image_toy import Simulation, subjects
from tests.datasets.tables.tables_toy import write_workbook
from tests.faults.toy_files import TOY_CHAIN, TRAIN_OPTIONS, vcf_text

ADNI: dict[str, Any] = {"n_subjects": 30, "n_snps": 48, "images": False}
PEOPLE = 6
MIMIC: dict[str, Any] = {"n_patients": 60, "n_chart_rows": 200, "n_lab_rows": 200, "n_rare_items": 2}
MOSI: dict[str, Any] = {"n_videos": 4, "clips_per_video": 5.0, "frames_per_second": 2.0, "infinite_audio": 0.0}
ENRICO: dict[str, Any] = {"n_screens": 20, "scale": 0.05}


def export(name: str, folder: Path, **settings: Any) -> None:
    """A simulated export."""
    simulate(get_dataset(name), folder, settings)


def _tables_other_forms(folder: Path) -> None:
    """The declared tables as a workbook, a zip archive, a semicolon-separated file and a Feather file."""
    export("tables", folder, n_visits=80)
    spec = (folder / "tables.yaml").read_text(encoding="utf-8")
    write_workbook(folder / "vitals.xlsx", pl.read_csv(folder / "vitals.csv"))
    with zipfile.ZipFile(folder / "labs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labs.csv", gzip.decompress((folder / "labs.csv.gz").read_bytes()))
    pl.read_parquet(folder / "survey.parquet").write_ipc(folder / "survey.feather")
    (folder / "people.tsv").write_text(pl.read_csv(folder / "people.csv", infer_schema=False).write_csv(separator="\t"))
    for old, new in (("vitals.csv", "vitals.xlsx"), ("labs.csv.gz", "labs.zip"), ("people.csv", "people.tsv")):
        (folder / old).unlink()
        spec = spec.replace(old, new)
    (folder / "survey.parquet").unlink()
    (folder / "tables.yaml").write_text(spec.replace("survey.parquet", "survey.feather"), encoding="utf-8")


def _genotypes(folder: Path) -> None:
    """A PLINK set, the same as VCF, and a chain file."""
    n, p = 6, 9
    calls = np.array([[(i * j + i) % 4 for j in range(p)] for i in range(n)], dtype=np.uint8)
    people = [f"002_S_{i:04d}" for i in range(1, n + 1)]
    fam = pl.DataFrame({"fid": ["0"] * n, "iid": people, "father": ["0"] * n, "mother": ["0"] * n, "sex": ["1"] * n})
    names = {"chrom": ["1"] * p, "id": [f"rs{j}" for j in range(p)], "pos": [1000 * j + 1000 for j in range(p)]}
    bim = pl.DataFrame(names | {"a1": ["A"] * p, "a2": ["G"] * p})
    folder.mkdir(parents=True)
    plink.write_set(folder / "ADNI_set", fam, bim, iter([bed_rows(calls)]))
    text = vcf_text(bim.rows(), calls.tolist(), people)
    (folder / "set.vcf").write_text(text)
    (folder / "set2.vcf.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "toy.chain").write_text(TOY_CHAIN)
    (folder / "toy2.chain.gz").write_bytes(gzip.compress(TOY_CHAIN.encode(), mtime=0))


def _maps(folder: Path, **settings: Any) -> None:
    simulate_images(folder, subjects(PEOPLE), Simulation(image_shape=(4, 4, 4), image_max_scans=1, **settings))


def _scans(folder: Path) -> None:
    """A T1 scan of 34 voxels of 3 mm along each axis, plain and compressed."""
    folder.mkdir(parents=True)
    data = np.indices((34, 34, 34)).sum(axis=0).astype(np.int16)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    write_nifti(folder / "scan.nii", data, affine)
    write_nifti(folder / "scan2.nii.gz", data, affine)


def run_command(*arguments: object) -> None:
    """Run a command that must succeed."""
    code = main([str(a) for a in arguments])
    if code:
        raise RuntimeError(f"mrpipe {arguments[0]} ended with exit code {code}")


def _own_files(folder: Path) -> None:
    """A store, a mask, a run, a search, a table of results, id lists, a checked.json and a candidate space."""
    export("tables", folder / "raw", n_visits=80)
    store, run = folder / "store", folder / "runs" / "run"
    run_command("build", "tables", "--raw", folder / "raw", "--out", store)
    run_command("mask", store, "--p", "0.3", "--out", folder / "mask.parquet")
    data = ("--store", store, "--quiet")
    run_command("train", *data, "--out", run, "--mask", folder / "mask.parquet", "--set", *TRAIN_OPTIONS)
    run_command("search", *data, "--out", folder / "search", "--method", "logistic", "--trials", 2)
    place = ("--raw", folder / "raw", "--work", folder / "work")
    run_command("check", "tables", *place)
    run_command("cohort", "tables", *place)
    run_command("ingest", "tables", "vitals", *place)
    run_command("samples", "tables", "--work", folder / "work", "--modalities", "vitals")
    run_command("split", "tables", "--work", folder / "work", "--scheme", "standard")
    ids = pl.read_parquet(store / "samples.parquet")["subject_id"].unique(maintain_order=True).to_list()
    parts = {part: [i for k, i in enumerate(ids) if k % 3 == n] for n, part in enumerate(("train", "val", "test"))}
    (folder / "ids.json").write_text(json.dumps(parts))
    (folder / "space.yaml").write_text(yaml.safe_dump({"dropout": [0.1, 0.3], "lr": [0.001]}))


def _configuration(folder: Path) -> None:
    from tests.faults.fuzz.targets import PROJECT
    from tests.workflow.conftest import TINY

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY))
    shutil.copy(PROJECT / "workflow/config/suites.yaml", folder / "suites.yaml")


BASES: dict[str, Callable[[Path], None]] = {
    "tables": partial(export, "tables", n_visits=80),
    "tables_other": _tables_other_forms,
    "adni": partial(export, "adni", **ADNI),
    "maps_stack": partial(_maps, image_maps_as="stack"),
    "maps_nifti": partial(_maps, image_maps_as="nifti"),
    "scans": _scans,
    "genotypes": _genotypes,
    "mimic": partial(export, "mimic", **MIMIC),
    "mimic_parquet": partial(export, "mimic", **MIMIC, form="parquet"),
    "meds": partial(export, "meds", n_subjects=40),
    "enrico": partial(export, "enrico", **ENRICO),
    "enrico_zip": partial(export, "enrico", **ENRICO, zipped=True),
    **{
        f"mosi_{form}": partial(export, "mosi", **MOSI, format=form)
        for form in ("csd", "multibench", "mult", "mag", "files")
    },
    "mosei_aligned": partial(export, "mosei", **MOSI, format="mmsa_aligned"),
    "ch_sims": partial(export, "ch_sims", **MOSI),
    "own": _own_files,
    "configuration": _configuration,
}
