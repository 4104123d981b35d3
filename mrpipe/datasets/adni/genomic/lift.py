"""Lift over positions with a UCSC or Ensembl chain file, vectorised per chromosome."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrpipe.budget import read_small
from mrpipe.constants import constants
from mrpipe.delimited import decode
from mrpipe.errors import DataError, Fault
from mrpipe.forms import open_binary
from mrpipe.genetics.chromosomes import plain_name
from mrpipe.reading import reading

MAX_BYTES = 2**24  # of a chain file, decompressed; those between builds of the human genome have at most 5 MiB
# Lengths of chromosomes 1 to 22, used to identify genome builds.
FETCH = "Download it again, for example hg18ToHg19.over.chain.gz from UCSC goldenPath."
LENGTHS: dict[str, tuple[int, ...]] = constants(__file__, "lift.json")


def chromosome_length(build: str, chromosome: str) -> int | None:
    """Length of an autosome in base pairs; None for other chromosomes."""
    return LENGTHS[build][int(chromosome) - 1] if chromosome.isdecimal() and 1 <= int(chromosome) <= 22 else None


def build_of(sizes: Iterable[tuple[str, int]]) -> str | None:
    """Genome build in which an autosome has one of these (chromosome, length); None if unknown."""
    pairs = list(sizes)
    return next((b for b in LENGTHS if any(chromosome_length(b, c) == n for c, n in pairs)), None)


@dataclass(frozen=True)
class _Chain:
    """A chain of ungapped blocks: 0-based source starts, lengths, and target starts (of the strand in `reverse`)."""

    score: float
    target: str
    target_size: int
    reverse: bool
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Lifted:
    """Result per position: whether it was found, chromosome, 1-based position, and whether the strand is reversed."""

    found: NDArray[np.bool_]
    chromosome: NDArray[np.str_]
    position: NDArray[np.int64]
    reversed: NDArray[np.bool_]


class ChainFile:
    """A chain file, loaded into memory.

    Attributes:
        source_sizes, target_sizes: chromosome lengths from the headers.
    """

    def __init__(self, path: Path, *, shown_as: str | None = None):
        self.shown_as = shown_as or path.name
        self.source_sizes: dict[str, int] = {}
        self.target_sizes: dict[str, int] = {}
        self._chains: dict[str, list[_Chain]] = {}
        with reading(self.shown_as, "a complete chain file", FETCH):
            read_small(path, self.shown_as, MAX_BYTES)
            with open_binary(path, self.shown_as, MAX_BYTES) as handle:
                text = handle.read()
            self._parse(decode(text, shown_as=self.shown_as, encoding="ascii").splitlines())

    def _fault(self, expected: str, found: str, line: int | None = None) -> Fault:
        return Fault(file=self.shown_as, line=line, expected=expected, found=found, fix=FETCH)

    def _parse(self, lines: Iterable[str]) -> None:
        head: list[str] = []
        blocks: list[tuple[int, int, int]] = []
        source = target = 0
        number = 0
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields or line.startswith("#"):
                continue
            try:
                if fields[0] == "chain":
                    if head:
                        raise DataError(self._fault("the last block of the chain", "the header of another", number))
                    head, blocks = fields, []
                    # Numbers that do not fit into 64 bits raise an OverflowError.
                    places = np.array([fields[k] for k in (5, 6, 3, 10, 11, 8)], dtype=np.int64).reshape(2, 3)
                    if (places < 0).any() or (np.diff(places) < 0).any():
                        raise ValueError("a chain outside its chromosome")
                    source, target = places[:, 0].tolist()
                    continue
                if not head:
                    raise DataError(self._fault("a chain header", repr(line[:40]), number))
                size, *gaps = (int(f) for f in fields)
                if size <= 0 or min(gaps, default=0) < 0 or len(gaps) not in (0, 2):
                    raise ValueError("a block without length, or overlapping blocks")
                blocks.append((source, size, target))
                if gaps:
                    source, target = source + size + gaps[0], target + size + gaps[1]
                    continue
                if source + size != int(head[6]) or target + size != int(head[11]):
                    raise DataError(self._fault(f"blocks ending at {head[6]}", f"an end at {source + size}", number))
                self._add(head, blocks)
                head = []
            except (ValueError, IndexError, OverflowError) as error:
                raise DataError(self._fault("the numbers of a chain", repr(line[:40]), number)) from error
        if head or not self._chains:
            raise DataError(self._fault("chains that end with a last block", "a truncated file", number or None))

    def _add(self, head: list[str], blocks: list[tuple[int, int, int]]) -> None:
        source, target = plain_name(head[2]), plain_name(head[7])
        self.source_sizes[source] = int(head[3])
        self.target_sizes[target] = int(head[8])
        table = np.array(blocks, dtype=np.int64)
        chain = _Chain(float(head[1]), target, int(head[8]), head[9] == "-", table[:, 0], table[:, 1], table[:, 2])
        self._chains.setdefault(source, []).append(chain)

    def builds(self) -> tuple[str | None, str | None]:
        """Source and target build, identified by the autosome lengths in the headers; None if unknown."""
        return build_of(self.source_sizes.items()), build_of(self.target_sizes.items())

    def lift(self, chromosome: NDArray[np.str_], position: NDArray[np.int64]) -> Lifted:
        """Lift over 1-based positions. Where chains overlap, the one with the highest score is used."""
        found = np.zeros(len(position), dtype=np.bool_)
        to_chromosome = np.array(chromosome, dtype="U8")
        to_position = np.zeros(len(position), dtype=np.int64)
        turned = np.zeros(len(position), dtype=np.bool_)
        for name in np.unique(chromosome):
            rows = np.flatnonzero(chromosome == name)
            rows = rows[np.argsort(position[rows], kind="stable")]
            zero_based = position[rows] - 1
            for chain in sorted(self._chains.get(str(name), []), key=lambda c: -c.score):
                low, high = np.searchsorted(zero_based, [chain.starts[0], chain.starts[-1] + chain.lengths[-1]])
                block = np.searchsorted(chain.starts, zero_based[low:high], side="right") - 1
                inside = zero_based[low:high] - chain.starts[block]
                hit = (inside < chain.lengths[block]) & ~found[rows[low:high]]
                chosen = rows[low:high][hit]
                lifted = chain.offsets[block[hit]] + inside[hit]
                found[chosen] = True
                to_chromosome[chosen] = chain.target
                to_position[chosen] = (chain.target_size - 1 - lifted if chain.reverse else lifted) + 1
                turned[chosen] = chain.reverse
        return Lifted(found, to_chromosome, to_position, turned)
