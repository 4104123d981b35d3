"""Coverage-guided fuzzing of chain files; lifted positions stay within the sizes that the headers declare.

python -m tests.faults.fuzz.atheris_chain -max_total_time=120
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.faults.fuzz.guided import guided, instrumented
from tests.faults.toy_files import TOY_CHAIN

with instrumented():
    from mrpipe.datasets.adni.genomic import lift
    from mrpipe.errors import MrpipeError

FILE = Path(tempfile.mkdtemp(prefix="chain-")) / "x.chain"


def read_one(data: bytes) -> None:
    """The data are the file."""
    FILE.write_bytes(data)
    try:
        chain = lift.ChainFile(FILE)
    except MrpipeError as error:
        str(error)
        return
    chain.builds()
    names = sorted(chain.source_sizes)
    chromosome = np.repeat(np.array([*names[:3], "9"], dtype="U40"), 600)
    lifted = chain.lift(chromosome, np.tile(np.arange(1, 601), len(chromosome) // 600))
    assert (lifted.position[~lifted.found] == 0).all()
    for name in {str(c) for c in lifted.chromosome[lifted.found]} & {n for n in chain.target_sizes if len(n) <= 8}:
        positions = lifted.position[lifted.found & (lifted.chromosome == name)]
        assert positions.min() >= 1, name


if __name__ == "__main__":
    guided(read_one, [TOY_CHAIN.encode()])
