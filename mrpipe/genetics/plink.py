"""LD pruning by plink 1.9 where it is installed: the SNPs of `genotypes.ld_prune`, some twenty times as fast.

Only 1.9 is asked: of a pair it removes the same SNP in all its releases, while plink 2 has changed that.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.genetics import packing as genotypes
from mrpipe.genetics.packing import LdOptions

# Individual-major: the packed rows as they are, and plink transposes them.
_MAGIC = b"\x6c\x1b\x00"
_MEMORY_MIB = 1024


def _bed_bytes() -> NDArray[np.uint8]:
    """(256,): four packed copies of A1 (3 = not called) → the same calls as codes of a .bed."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)
    codes = np.array([3, 2, 0, 1], dtype=np.uint8)[(np.arange(256)[:, None] >> shifts) & 3]
    table: NDArray[np.uint8] = np.bitwise_or.reduce(codes << shifts, axis=1)
    return table


def find() -> str | None:
    """The program plink 1.9: Debian's `plink1.9`, or its authors' and Bioconda's `plink`; None where there is none."""
    if found := shutil.which("plink1.9"):
        return found
    found = shutil.which("plink")
    if found is None:
        return None
    # Debian calls 1.07 so.
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return found if said.stdout.startswith("PLINK v1.9") else None


def ld_prune(packed: NDArray[np.uint8], chromosome: NDArray[np.generic], options: LdOptions) -> NDArray[np.int64]:
    """Positions of the SNPs that stay, rising: by plink 1.9, or by `genotypes.ld_prune` where plink is not to be had.

    Where plink is there and fails (no room in the folder for temporary files, say), a RuntimeWarning has its words. Its
    files are as large as `packed`, twice; they name neither people nor SNPs.

    Args:
        packed: (n, bytes) training subjects' genotypes, SNPs in order of position within each chromosome.
        chromosome: (p,) chromosome of each SNP; each chromosome one stretch.
    """
    # plink refuses the rest, or, with windows that leave gaps, removes SNPs that correlate with none.
    suits = 1 < options.window >= options.step and 0 < options.r2 < 1 < len(packed)
    program = find() if suits else None
    if program is not None:
        try:
            return _by_plink(program, packed, chromosome, options)
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", None) or error).strip()
            warnings.warn(
                f"{program} failed and mrpipe prunes itself, which takes longer: {said}", RuntimeWarning, stacklevel=2
            )
    return genotypes.ld_prune(packed, chromosome, options)


def _by_plink(
    program: str, packed: NDArray[np.uint8], chromosome: NDArray[np.generic], options: LdOptions
) -> NDArray[np.int64]:
    # Names of their own, so that no chromosome counts as haploid and SNPs are known by their position here.
    stretch = np.cumsum(np.r_[False, chromosome[1:] != chromosome[:-1]])
    bim = pl.DataFrame({"stretch": stretch, "snp": np.arange(len(chromosome))}).select(
        pl.format("c{}", "stretch"),
        "snp",
        pl.lit(0).alias("cm"),
        (pl.col("snp") + 1).alias("pos"),
        pl.lit("A").alias("a1"),
        pl.lit("C").alias("a2"),
    )
    table = _bed_bytes()
    with tempfile.TemporaryDirectory(prefix="mrpipe-plink-") as folder:
        prefix = Path(folder) / "train"
        bim.write_csv(prefix.with_suffix(".bim"), include_header=False, separator="\t")
        prefix.with_suffix(".fam").write_text("".join(f"p{i} p{i} 0 0 0 -9\n" for i in range(len(packed))))
        with prefix.with_suffix(".bed").open("wb") as handle:
            handle.write(_MAGIC)
            for start in range(0, len(packed), 64):
                handle.write(table[packed[start : start + 64]].tobytes())
        command = [
            program,
            "--bfile",
            str(prefix),
            "--allow-extra-chr",
            "--allow-no-sex",
            "--threads",
            "1",
            "--memory",
            str(_MEMORY_MIB),
            "--out",
            str(prefix),
            "--indep-pairwise",
            str(options.window),
            str(options.step),
            str(options.r2),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return np.array(prefix.with_suffix(".prune.in").read_text().split(), dtype=np.int64)
