"""Image options of the ADNI reader, inherited by `AdniOptions`."""

from dataclasses import dataclass

from mrpipe.options import option


@dataclass(frozen=True)
class ImageOptions:
    """How images are found, selected and processed. Paths are absolute or relative to the export folder."""

    image_route: str = option(
        "auto",
        "source of the images. maps: precomputed grey-matter maps; raw: T1-weighted scans, which mrpipe processes; "
        "auto: maps, and raw scans for participants without a map",
        choices=("auto", "maps", "raw"),
    )
    image_maps: str = option(
        "", "precomputed maps: ADNI_G.npy, a CSV that lists NIfTI maps, or a RAVENS folder. Empty: search the export"
    )
    image_mask: str = option("", "NIfTI grey-matter mask on the grid of the maps. Empty: search the folder of the maps")
    image_mask_label: int = option(150, "label of grey matter in the mask image (150 in label images made by MUSE)")
    image_scan: str = option(
        "earliest",
        "scan to use if a participant has several: the earliest, the latest (as in the authors' code), or the one "
        "nearest to the date of the visit",
        choices=("earliest", "latest", "nearest"),
    )
    image_tries: int = option(2, "maximum number of scans tried per participant; if all fail, the image is missing")
    image_dtype: str = option("float16", "data type of stored volumes", choices=("float16", "float32"))
    image_downsample: int = option(
        1, "edge of the cubes of voxels averaged before storing; 2 turns 2 mm voxels into 4 mm"
    )
    image_parts: int = option(
        1, "number of parallel jobs for raw T1 scans; an interrupted job resumes at its next scan"
    )
    image_registration: str = option(
        "quality",
        "registration of raw T1 scans to the template. quality: SyN with mean squares (iterations 60, 20, 3); fast: "
        "SyN with mutual information (iterations 40, 20, 0); affine: no deformation",
        choices=("quality", "fast", "affine"),
    )
    image_brain: str = option(
        "extract",
        "extract: skull-strip raw T1 scans; stripped: the scans are already skull-stripped",
        choices=("extract", "stripped"),
    )
    image_smoothing_mm: float = option(
        2.0, "standard deviation in mm of the Gaussian filter applied to maps of raw T1 scans. 0: no smoothing"
    )
    image_template: str = option("", "skull-stripped T1 template (NIfTI) for raw T1 scans. Empty: MNI152 of nilearn")
    image_min_overlap: float = option(0.8, "scans with a lower Dice overlap of registered brain and template fail")
    image_min_ncc: float = option(
        0.5,
        "scans whose brain correlates less with the template after registration fail; with image_registration=affine, "
        "0.6 times this value",
    )
    image_timeout_min: float = option(60.0, "time limit per raw T1 scan in minutes")
