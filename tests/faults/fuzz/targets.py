"""Which files are mutated, what reads them, and which changes must not be accepted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mrpipe.cli.main import command_parser, find_command
from mrpipe.datasets.adni.genomic import plink
from mrpipe.datasets.adni.genomic.lift import ChainFile
from mrpipe.datasets.adni.genomic.plink import open_vcf
from mrpipe.datasets.adni.genomic.strand import read_reference
from mrpipe.datasets.adni.image.join import read_images
from mrpipe.datasets.adni.image.plan import check_images
from mrpipe.datasets.adni.image.raw import prepare_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.errors import FaultCollector
from mrpipe.genetics.vcf import Conversion
from mrpipe.imaging.nifti import read_scan
from tests.datasets.adni.image_toy import cohort, subjects
from tests.faults.fuzz.bases import PEOPLE

PROJECT = Path(__file__).parents[3]
Read = Callable[[Path, Path], Any]
# Whether the content that a mutation (its name) made from the intact content must be refused.
MustRefuse = Callable[[str, bytes, bytes], bool]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Files of one format.

    Attributes:
        name: reader/format.
        base: name of the intact input in `bases.BASES`.
        pattern: files that are mutated.
        read: reads the folder; the second path is a scratch folder that exists.
        build: builds what `read` has accepted; None if `read` does all.
        must_refuse: changes that must be refused.
        cost: how much longer a mutation takes than that of other formats; short campaigns do fewer.
    """

    name: str
    base: str
    pattern: str
    read: Read
    build: Read | None = None
    must_refuse: MustRefuse = lambda kind, before, after: False
    cost: int = 1

    @property
    def reader(self) -> str:
        return self.name.partition("/")[0]


def verb(name: str, *arguments: object) -> None:
    """Run a command in this process; its errors are raised."""
    command = find_command(name)
    assert command is not None
    arguments_given = command_parser(name, command).parse_args([str(a) for a in arguments])
    arguments_given.rest = []
    command.run(arguments_given)


def _check(dataset: str, *arguments: object) -> Read:
    return lambda folder, scratch: verb("check", dataset, "--raw", folder, *arguments)


def _build(dataset: str, *arguments: object) -> Read:
    return lambda folder, scratch: verb("build", dataset, "--raw", folder, "--out", scratch / "store", *arguments)


def cut_short(kind: str, before: bytes, after: bytes) -> bool:
    """The file lacks its end, which formats with a length or a checksum reveal."""
    return len(after.rstrip(b"\n")) < len(before.rstrip(b"\n")) and before.startswith(after)


def any_change(kind: str, before: bytes, after: bytes) -> bool:
    return True


def repeated_row(kind: str, before: bytes, after: bytes) -> bool:
    """A row of a table with one row per sample occurs twice."""
    return kind.endswith("line repeat") and not after.startswith(before[: before.index(b"\n") + 1] * 2)


def _dataset(
    name: str, base: str, *formats: tuple[str, str], cost: int = 1, refuse: MustRefuse | None = None
) -> list[Target]:
    """Targets of a dataset's export: (format, pattern of its files)."""
    dataset = name.partition("/")[0]
    # The provider's checksums would reveal every mutation before a reader sees it.
    options = {"mimic": ("--set", 'notes=["discharge", "radiology"]', "checksums=skip")}.get(dataset, ())
    how: dict[str, Any] = {"read": _check(dataset, *options), "build": _build(dataset, *options), "cost": cost}
    if refuse is not None:
        how["must_refuse"] = refuse
    return [Target(name=f"{dataset}/{format}", base=base, pattern=pattern, **how) for format, pattern in formats]


def _lift(folder: Path, scratch: Path, name: str) -> None:
    chromosome, position = np.repeat(["1", "2", "9"], 500), np.tile(np.arange(1, 501), 3)
    chain = ChainFile(folder / name)
    chain.builds()
    chain.lift(chromosome, position)


def _plink(folder: Path, scratch: Path) -> None:
    opened = plink.open_set(folder / "ADNI_set.bed")
    plink.calls(opened)
    plink.missing_per_person(opened)


def _maps(folder: Path, scratch: Path) -> None:
    faults = FaultCollector()
    options = AdniOptions(image_route="maps")
    check_images(folder, options, faults)
    faults.raise_if_any()
    part = scratch / "0-of-1.parquet"
    prepare_images(folder, cohort(subjects(PEOPLE)), options, 0, 1, part)
    features = read_images(folder, cohort(subjects(PEOPLE)), options, [part])
    for batch in features.batches:
        batch.validate(full=True)


def _ingest(folder: Path, scratch: Path) -> None:
    """Steps that read checked.json and the cohort; the work folder is copied, since they write to it."""
    shutil.copytree(folder / "work", scratch / "work")
    place = ("--raw", folder / "raw", "--work", scratch / "work")
    verb("ingest", "tables", "vitals", *place)
    verb("cohort", "tables", *place)


def _seal(folder: Path, scratch: Path) -> None:
    """Steps that read the files of other steps."""
    shutil.copytree(folder / "work", scratch / "work")
    verb("samples", "tables", "--work", scratch / "work", "--modalities", "vitals")
    verb("seal", "tables", "--work", scratch / "work", "--store", scratch / "store", "--schemes", "standard")
    verb("verify", "--deep", scratch / "store")


def _split(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder / "work", scratch / "work")
    verb("split", "tables", "--work", scratch / "work", "--scheme", "mine", "--ids", folder / "ids.json")


def _report(folder: Path, scratch: Path) -> None:
    runs = ("--runs", folder / "runs" / "run", "--searches", folder / "search")
    verb("report", *runs, "--stores", folder / "store", "--out", scratch / "page.html")


def _train(folder: Path, scratch: Path, *arguments: object) -> None:
    fast = ("--method", "majority", "--quiet", "--no-test")
    verb("train", "--store", folder / "store", "--out", scratch / "run", *fast, *arguments)


def _own(name: str, pattern: str, read: Read, refuse: MustRefuse | None = None, cost: int = 1) -> Target:
    how: dict[str, Any] = {} if refuse is None else {"must_refuse": refuse}
    return Target(name=name, base="own", pattern=pattern, read=read, cost=cost, **how)


def _configuration(folder: Path, scratch: Path) -> None:
    from snakemake.utils import validate

    from workflow.planning.plan import ConfigError, make_plan, schema_faults

    schema_file = PROJECT / "workflow/schemas/config.schema.yaml"
    # Snakemake itself reads the file before the project's code sees it; its own errors are not the project's.
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError):
        return
    if not isinstance(config, dict):
        return
    if faults := schema_faults(config, yaml.safe_load(schema_file.read_text(encoding="utf-8"))):
        raise ConfigError(faults)
    validate(config, str(schema_file))
    make_plan(config)


def _suites(folder: Path, scratch: Path) -> None:
    from workflow.planning.suite_files import read_suites

    read_suites([folder / "suites.yaml"])


TARGETS: tuple[Target, ...] = (
    *_dataset("tables", "tables", ("csv.gz", "labs.csv.gz"), ("parquet", "survey.parquet"), refuse=cut_short, cost=2),
    *_dataset("tables", "tables", ("csv", "vitals.csv"), ("labels", "people.csv"), refuse=repeated_row, cost=2),
    *_dataset("tables", "tables", ("yaml", "tables.yaml"), cost=2),
    *_dataset(
        *("tables", "tables_other", ("xlsx", "*.xlsx"), ("zip", "*.zip"), ("feather", "*.feather"), ("tsv", "*.tsv")),
        cost=2,
    ),
    *_dataset("adni", "adni", ("forms", "*.csv"), cost=8),
    *_dataset("adni", "adni", ("genotypes", "genetics/*"), cost=8),
    Target(name="adni/plink", base="genotypes", pattern="ADNI_set.*", read=_plink),
    Target(
        name="adni/vcf",
        base="genotypes",
        pattern="set*.vcf*",
        read=lambda f, s: [open_vcf([p], s / p.stem, Conversion()) for p in sorted(f.glob("set*.vcf*"))],
        cost=8,
    ),
    Target(name="adni/chain", base="genotypes", pattern="toy.chain", read=lambda f, s: _lift(f, s, "toy.chain")),
    Target(
        name="adni/chain.gz",
        base="genotypes",
        pattern="toy2.chain.gz",
        read=lambda f, s: _lift(f, s, "toy2.chain.gz"),
        must_refuse=cut_short,
    ),
    Target(
        name="adni/reference",
        base="adni",
        pattern="genetics/*.legend.gz",
        read=lambda f, s: read_reference(next(f.glob("genetics/*.legend.gz")), [str(c) for c in range(1, 23)]),
        must_refuse=cut_short,
    ),
    Target(name="adni/maps stack", base="maps_stack", pattern="image/*", read=_maps),
    Target(name="adni/maps nifti", base="maps_nifti", pattern="image/*.nii*", read=_maps, must_refuse=cut_short),
    Target(name="adni/nifti", base="scans", pattern="*.nii", read=lambda f, s: read_scan(f / "scan.nii", "scan")),
    Target(
        name="adni/nifti.gz",
        base="scans",
        pattern="*.nii.gz",
        read=lambda f, s: read_scan(f / "scan2.nii.gz", "scan"),
        must_refuse=cut_short,
    ),
    *_dataset("mimic", "mimic", ("csv.gz", "**/*.csv.gz"), cost=5, refuse=cut_short),
    *_dataset("mimic", "mimic_parquet", ("parquet", "**/*.parquet"), cost=5, refuse=cut_short),
    *_dataset("meds", "meds", ("shards", "data/**/*.parquet"), ("metadata", "metadata/*"), ("yaml", "meds.yaml")),
    *_dataset("enrico", "enrico", ("csv", "*.csv"), ("json", "hierarchies/*"), ("png", "wireframes/*"), cost=2),
    *_dataset("enrico", "enrico", ("jpg", "screenshots/*"), ("metadata", "metadata/*"), cost=2),
    *_dataset("enrico", "enrico_zip", ("zip", "*.zip"), refuse=cut_short, cost=2),
    *_dataset("mosi", "mosi_csd", ("csd", "*.csd"), ("folds", "*.py")),
    *_dataset("mosi", "mosi_multibench", ("multibench", "*.pkl")),
    *_dataset("mosi", "mosi_mult", ("mult", "*.pkl")),
    *_dataset("mosi", "mosi_mag", ("mag", "*.pkl")),
    *_dataset("mosi", "mosi_files", ("npy", "audio/*"), ("labels", "*.csv")),
    *_dataset("mosei", "mosei_aligned", ("mmsa_aligned", "*.pkl")),
    *_dataset("ch_sims", "ch_sims", ("mmsa_unaligned", "*.pkl")),
    # provenance.json is not part of the id: it records time and host.
    _own("own/store", "store/**/*.[mp]*", lambda f, s: verb("verify", "--deep", f / "store"), any_change),
    _own("own/manifest", "store/manifest.json", lambda f, s: verb("verify", f / "store"), any_change),
    _own("own/store read", "store/**/*", lambda f, s: verb("audit", f / "store")),
    _own("own/show", "store/*.json", lambda f, s: verb("show", f / "store")),
    _own("own/mask", "mask.parquet", lambda f, s: _train(f, s, "--mask", f / "mask.parquet")),
    _own("own/id list", "ids.json", _split),
    _own("own/checked.json", "work/checked.json", _ingest),
    _own("own/work files", "work/**/*", _seal),
    _own(
        "own/model",
        "runs/run/model.pt",
        lambda f, s: verb("predict", "--run", f / "runs/run", "--store", f / "store", "--out", s / "p.parquet"),
    ),
    _own("own/run report", "runs/run/*.*[nt]", _report, cost=8),
    _own(
        "own/run results",
        "runs/run/*.json",
        lambda f, s: verb("results", "--runs", f / "runs", "--out", s / "r.parquet"),
    ),
    _own("own/search", "search/best.json", lambda f, s: _train(f, s, "--options", f / "search" / "best.json")),
    _own(
        "own/space",
        "space.yaml",
        lambda f, s: verb(
            *("search", "--store", f / "store", "--out", s / "search", "--method", "majority", "--quiet"),
            *("--space", f / "space.yaml"),
        ),
    ),
    Target(name="own/configuration", base="configuration", pattern="config.yaml", read=_configuration),
    Target(name="own/suites", base="configuration", pattern="suites.yaml", read=_suites),
)
