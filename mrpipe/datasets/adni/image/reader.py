"""Modality `image`: grey-matter maps in template space, read from precomputed maps or computed from raw T1 scans."""

from __future__ import annotations

from mrpipe.datasets.adni.image.join import BIT, DESCRIPTION, read_images
from mrpipe.datasets.adni.image.plan import check_images, has_images
from mrpipe.datasets.adni.image.qc import write_image_qc
from mrpipe.datasets.adni.image.raw import prepare_images
from mrpipe.schema import ModalityReader

__all__ = ["READER", "check_images", "has_images"]

READER = ModalityReader(
    bit=BIT,
    description=DESCRIPTION,
    read=read_images,
    prepare=prepare_images,
    n_parts=lambda options: max(1, int(options.image_parts)),
    qc=write_image_qc,
)
