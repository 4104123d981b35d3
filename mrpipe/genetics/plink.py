"""LD pruning by plink 1.9, if installed: same result as `packing.ld_prune`, about twenty times as fast.

Only version 1.9 is used, because all its releases remove the same SNP of a pair; plink 2 removes different ones.
"""

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

# Individual-major .bed: the packed rows are written unchanged, and plink transposes them.
_MAGIC = b"\x6c\x1b\x00"
_MEMORY_MIB = 1024


def find() -> str | None:
    """Path of plink 1.9 (`plink1.9` on Debian, else `plink`), or None if it is not installed."""
    if found := shutil.which("plink1.9"):
        return found
    found = shutil.which("plink")
    if found is None:
        return None
    # On Debian, `plink` is version 1.07.
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return found if done.stdout.startswith("PLINK v1.9") else None


def ld_prune(packed: NDArray[np.uint8], chromosome: NDArray[np.generic], options: LdOptions) -> NDArray[np.int64]:
    """Ascending positions of the SNPs that remain after LD pruning, by plink 1.9 or else by `packing.ld_prune`.

    If plink fails, e.g. because the temporary folder is full, a RuntimeWarning contains its message. The temporary
    files are twice as large as `packed` and contain no names of people or SNPs.

    Args:
        packed: genotypes (n, bytes) of training subjects, SNPs sorted by position within each chromosome.
        chromosome: (p,) chromosome of each SNP; the SNPs of a chromosome are consecutive.
        options: parameters of the pruning.
    """
    # plink refuses other values or, if steps exceed windows, removes uncorrelated SNPs.
    supported = 1 < options.window >= options.step and 0 < options.r2 < 1 < len(packed)
    program = find() if supported else None
    if program is not None:
        try:
            return _by_plink(program, packed, chromosome, options)
        except (OSError, subprocess.CalledProcessError) as error:
            message = str(getattr(error, "stderr", None) or error).strip()
            warnings.warn(
                f"{program} failed; using the slower built-in LD pruning: {message}", RuntimeWarning, stacklevel=2
            )
    return genotypes.ld_prune(packed, chromosome, options)


def _by_plink(
    program: str, packed: NDArray[np.uint8], chromosome: NDArray[np.generic], options: LdOptions
) -> NDArray[np.int64]:
    # Neutral names, so that no chromosome is treated as haploid and SNPs are identified by their position.
    run = np.cumsum(np.r_[False, chromosome[1:] != chromosome[:-1]])
    bim = pl.DataFrame({"run": run, "snp": np.arange(len(chromosome))}).select(
        pl.format("c{}", "run"),
        "snp",
        pl.lit(0).alias("cm"),
        (pl.col("snp") + 1).alias("pos"),
        pl.lit("A").alias("a1"),
        pl.lit("C").alias("a2"),
    )
    with tempfile.TemporaryDirectory(prefix="mrpipe-plink-") as folder:
        prefix = Path(folder) / "train"
        bim.write_csv(prefix.with_suffix(".bim"), include_header=False, separator="\t")
        prefix.with_suffix(".fam").write_text("".join(f"p{i} p{i} 0 0 0 -9\n" for i in range(len(packed))))
        with prefix.with_suffix(".bed").open("wb") as handle:
            handle.write(_MAGIC)
            for start in range(0, len(packed), 64):
                handle.write(genotypes.TO_BED[packed[start : start + 64]].tobytes())
        command = [program, *["--allow-extra-chr", "--allow-no-sex", "--threads", "1", "--memory"], str(_MEMORY_MIB)]
        command += ["--bfile", str(prefix), "--out", str(prefix), "--indep-pairwise"]
        command += [str(options.window), str(options.step), str(options.r2)]
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return np.array(prefix.with_suffix(".prune.in").read_text().split(), dtype=np.int64)
