"""Modality `image`: grey-matter maps in template space, from precomputed maps or from raw T1 scans."""

from __future__ import annotations

from mrpipe.datasets.adni.image_raw import prepare_images
from mrpipe.datasets.adni.image_read import read_images
from mrpipe.schema import ModalityReader

DESCRIPTION = (
    "grey-matter density in template space, volume-preserving (RAVENS or Jacobian-modulated; 1000 = a voxel full of "
    "grey matter), cropped to the bounding box of the mask; 0 outside the mask"
)

READER = ModalityReader(
    bit=0,
    description=DESCRIPTION,
    read=read_images,
    prepare=prepare_images,
    n_parts=lambda options: max(1, int(options.image_parts)),
)
