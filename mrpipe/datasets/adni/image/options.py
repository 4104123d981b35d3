"""Options of ADNI's images; the dataset's options inherit them."""

from __future__ import annotations

from dataclasses import dataclass

from mrpipe.options import option


@dataclass(frozen=True)
class ImageOptions:
    """How images are found, chosen and processed; paths are absolute or relative to the export."""

    image_route: str = option(
        "auto",
        "where images come from: precomputed maps, raw T1 scans, or maps and, for subjects without one, raw scans",
        choices=("auto", "maps", "raw"),
    )
    image_maps: str = option(
        "", "ADNI_G.npy, a manifest CSV of NIfTI maps, or a folder of RAVENS maps; empty: found in the export"
    )
    image_mask: str = option("", "NIfTI mask of grey matter on the maps' grid; empty: found beside the maps")
    image_mask_sha256: str = option("", "SHA-256 that the mask must have; empty: not checked")
    image_mask_label: int = option(150, "label of grey matter in the mask (150 in MUSE's label image)")
    image_scan: str = option(
        "earliest",
        "which scan of a subject: the earliest (baseline), the latest (as the authors), or the one nearest to the "
        "cohort's image_date_column",
        choices=("earliest", "latest", "nearest"),
    )
    image_date_column: str = option("visit_date", "date column of the cohort that `nearest` refers to")
    image_tries: int = option(2, "how many scans of a subject are tried, best first, before it has no image")
    image_dtype: str = option("float16", "stored dtype of the maps", choices=("float16", "float32"))
    image_downsample: int = option(1, "mean over blocks of this edge; 2 makes 4 mm volumes of 2 mm maps")
    image_parts: int = option(1, "number of parallel jobs over raw T1 scans; each job goes on where it was killed")
    image_registration: str = option(
        "quality",
        "registration of raw T1 scans: SyN with mean squares (40,20,10), SyN with mutual information (40,20,0), affine",
        choices=("quality", "fast", "affine"),
    )
    image_brain: str = option(
        "extract", "raw T1 scans show the head, or are skull-stripped", choices=("extract", "stripped")
    )
    image_segment_mm: float = option(
        1.0, "voxel size of the tissue segmentation; finer raw T1 scans are resampled to it"
    )
    image_smoothing_mm: float = option(2.0, "standard deviation of the Gaussian on maps of raw T1 scans; 0: none")
    image_template: str = option("", "skull-stripped T1 template (NIfTI) for raw scans; empty: MNI152 of nilearn")
    image_gm_threshold: float = option(0.5, "grey-matter probability of the MNI152 mask, where no mask is given")
    image_min_overlap: float = option(0.8, "Dice of brain and template below which a registration counts as failed")
    image_timeout_min: float = option(60.0, "minutes after which the processing of one scan is given up")
