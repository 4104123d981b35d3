"""CH-SIMS: 2,281 clips of Chinese films and shows, read by the reader of CMU-MOSI (Yu et al., 2020)."""

from mrpipe.datasets.mosi import declare
from mrpipe.datasets.mosi.corpora import CH_SIMS

DATASET = declare(CH_SIMS)
