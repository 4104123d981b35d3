"""Read VCF and BCF files as PLINK sets."""

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrpipe.budget import in_child
from mrpipe.datasets.adni.genomic.lift import build_of
from mrpipe.datasets.adni.genomic.plink import PlinkSet, open_set
from mrpipe.errors import DataError, Fault, MissingExtraError
from mrpipe.genetics.vcf import DAMAGED, Conversion


def open_vcf(files: Sequence[Path], prefix: Path, conversion: Conversion, names: Sequence[str] = ()) -> PlinkSet:
    """Convert the biallelic SNPs of VCF or BCF files to a PLINK set: one file, or files of different chromosomes.

    A1 is ALT. Sites with several ALT, in one record or in several, and SNPs below the thresholds are left out.

    Args:
        prefix: path of the .bed, .bim and .fam without the ending; its name is that of the set.
        names: names of the files in errors; default: without folder.

    Raises:
        DataError: a file is damaged or not sorted, or lacks GT and DS; or the files differ in people or genome build.
        MissingExtraError: cyvcf2 is not installed.
    """
    if importlib.util.find_spec("cyvcf2") is None:
        raise MissingExtraError("cyvcf2", "genotypes", "reading VCF and BCF files")
    names = list(names or (f.name for f in files))
    job: dict[str, Any] = {"files": [str(f) for f in files], "names": names, "prefix": str(prefix)}
    job["settings"] = dataclasses.asdict(conversion)
    stored = sum(f.stat().st_size for f in files)
    fault = Fault(file=", ".join(names), expected="a valid VCF", found="", fix=DAMAGED)
    result = json.loads(in_child("mrpipe.genetics.vcf", job, stored, fault))
    builds = {b: name for name, pairs in zip(names, result["lengths"], strict=True) if (b := build_of(pairs))}
    if len(builds) > 1:
        found = ", ".join(f"{name} in {build}" for build, name in builds.items())
        raise DataError(Fault(file=names[0], column="contig", expected="files in one build", found=found))
    plink = open_set(prefix.with_name(f"{prefix.name}.bed"))
    dropped = np.load(prefix.with_name(f"{prefix.name}.npy"))
    origin = {"vcf": tuple(files), "note": result["note"], "build": next(iter(builds), None)}
    return dataclasses.replace(plink, dropped=dropped, **origin)
