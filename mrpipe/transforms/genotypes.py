"""Fitted transform of packed genotypes: LD pruning and mode imputation, computed from training rows."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mrpipe.genetics import packing as genotypes
from mrpipe.genetics.packing import LdOptions
from mrpipe.schema import Modality
from mrpipe.store.reader import Arrays
from mrpipe.transforms.encoding import Encoded

# The dictionary description of a SNP starts with chromosome:position.
CHROMOSOME = r"^(?:chr)?(\w+):\d+"


@dataclass(frozen=True)
class GenotypeTransform(Encoded):
    """Selection of SNPs, and imputation of missing calls by each SNP's most frequent training call.

    `apply` decodes to float32: copies of A1 minus 1, in {-1, 0, 1}. A caller that keeps the packed bytes can use
    `genotypes.take_snps(x, kept)` and impute `mode` itself.

    Attributes:
        mode: (k,) copies of A1.
        kept: (k,) positions in the store of the SNPs kept by LD pruning on the training rows.
    """

    kind = "genotypes"
    mode: NDArray[np.uint8]
    kept: NDArray[np.int64]

    @classmethod
    def fit(cls, arrays: Arrays, dictionary: pl.DataFrame, options: LdOptions) -> Self:
        chromosome = dictionary["description"].str.extract(CHROMOSOME)
        if options.r2 > 0 and len(chromosome) == arrays.modality.size and not chromosome.null_count():
            kept = genotypes.ld_prune(arrays.x, chromosome.to_numpy(), options)
        else:
            kept = np.arange(arrays.modality.size, dtype=np.int64)
        counts = genotypes.call_counts(arrays.x, arrays.modality.size)[:3, kept]
        return cls(counts.argmax(axis=0).astype(np.uint8), kept)

    def apply(self, arrays: Arrays) -> Arrays:
        calls = genotypes.unpack_at(arrays.x, self.kept)
        return replace(arrays, x=np.where(calls == genotypes.MISSING, self.mode, calls).astype(np.float32) - 1.0)

    def shape(self, modality: Modality) -> tuple[int, ...]:
        return (len(self.kept),)
