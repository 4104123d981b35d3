"""CMU-MOSEI: 22,856 segments of 3,228 videos, read by the reader of CMU-MOSI (Zadeh et al., 2018)."""

from mrpipe.datasets.mosi import declare
from mrpipe.datasets.mosi.corpora import MOSEI

DATASET = declare(MOSEI)
