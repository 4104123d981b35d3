"""Options of the ADNI reader: labels, visits, features, genotypes and images."""

from dataclasses import dataclass
from typing import ClassVar

from mrpipe.options import option

LABEL_POLICIES = ("stable_dx", "baseline_dx", "latest_dx")
ROW_POLICIES = ("profile", "baseline", "latest_update", "latest_before_dx")


@dataclass(frozen=True)
class AdniOptions:
    """How a LONI export becomes samples and features. Paths are absolute or relative to the export folder."""

    STEPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "label blank_diagnosis label_source": ("cohort",),
        "profile rows": ("cohort", "clinical", "biospecimen"),
        "dementia_drugs": ("clinical",),
        "plasma_abeta plasma_nfl isoprostane": ("biospecimen",),
        "genotypes vcf_calls vcf_uncertainty vcf_r2 source_builds target_build chain reference": ("genomic",),
        "frequency_check off_reference chromosomes mind geno maf hwe merge": ("genomic",),
        "image_route image_maps image_mask image_mask_label image_scan": ("image",),
        "image_tries image_parts image_template": ("image",),
        "image_dtype image_downsample": ("image.ingest",),
        "image_registration image_brain image_smoothing_mm": ("image.prepare",),
        "image_min_overlap image_min_ncc image_timeout_min": ("image.prepare",),
    }

    label: str = option(
        "stable_dx",
        "diagnosis used as label. stable_dx: only participants whose diagnosis is the same at every visit (the rule in "
        "the authors' code); baseline_dx: diagnosis at baseline or, if blank, at screening; latest_dx: most recent",
        choices=LABEL_POLICIES,
    )
    blank_diagnosis: str = option(
        "exclude",
        "under label=stable_dx, participants who have a visit without a diagnosis: exclude them (as in the authors' "
        "code), or ignore that visit",
        choices=("exclude", "ignore"),
    )
    label_source: str = option(
        "auto",
        "table with the diagnoses: DXSUM, or column DX of ADNIMERGE; auto: ADNIMERGE if the export has no DXSUM",
        choices=("auto", "dxsum", "adnimerge"),
    )
    profile: str = option(
        "corrected",
        "clinical and biospecimen features. corrected: curated columns, missing-value codes removed, categories "
        "decoded, SI units; paper: columns and types as in the authors' code, values as in the export (docs/adni.md)",
        choices=("corrected", "paper"),
    )
    rows: str = option(
        "profile",
        "records used for a participant's clinical and biospecimen features. baseline: screening and baseline visits; "
        "latest_update: most recently edited record of any visit; latest_before_dx: last record up to the visit that "
        "provides the label; profile: baseline if profile=corrected, latest_update if profile=paper",
        choices=ROW_POLICIES,
    )
    dementia_drugs: bool = option(
        False,
        "include donepezil, rivastigmine, galantamine and memantine among the medications. They are prescribed for "
        "dementia and nearly determine the diagnosis",
    )
    plasma_abeta: bool = option(False, "add plasma Abeta42/40 (mass spectrometry, table batemanlab) to biospecimen")
    plasma_nfl: bool = option(False, "add plasma neurofilament light (table ADNI_BLENNOWPLASMANFL) to biospecimen")
    isoprostane: bool = option(False, "add urine isoprostanes (table ISOPROSTANE) to biospecimen")

    genotypes: str = option("", "folder with the PLINK sets (.bed, .bim, .fam) or VCF files. Empty: search the export")
    vcf_calls: str = option("GT", "field of a VCF with the calls; the other one if it is absent", choices=("GT", "DS"))
    vcf_uncertainty: float = option(
        0.1, "a dosage (DS) is a call if it differs from 0, 1 or 2 by at most this; else the call is missing"
    )
    vcf_r2: float = option(0.8, "minimum quality of imputation of a SNP in a VCF (R2, DR2 or INFO, where it has one)")
    source_builds: tuple[str, ...] = option(
        ("ADNI_cluster_01_forward_757LONI*=hg18", "*=hg19"),
        "genome build of each PLINK set, as a list of pattern=build; the first pattern that matches the name applies",
    )
    target_build: str = option(
        "hg19", "genome build of the store; sets in another build are lifted over", choices=("hg18", "hg19", "hg38")
    )
    chain: str = option("", "chain file for lift-over to target_build (plain or .gz). Empty: search the export")
    reference: str = option(
        "",
        "reference panel for strand and allele frequencies: 1000 Genomes legend or VCF (plain or .gz). Empty: search "
        "the export; if there is none, the first PLINK set is the reference",
    )
    frequency_check: bool = option(
        True,
        "drop SNPs whose allele frequency differs from the reference by more than 0.2, and A/T and C/G SNPs whose "
        "minor allele frequency in the reference exceeds 0.4. If false, all A/T and C/G SNPs are dropped",
    )
    off_reference: str = option("keep", "SNPs that are not in the reference panel", choices=("keep", "drop"))
    chromosomes: tuple[str, ...] = option(tuple(str(c) for c in range(1, 23)), "chromosomes to read")
    mind: float = option(0.1, "maximum fraction of missing calls per person in a PLINK set (plink --mind)")
    geno: float = option(0.05, "maximum fraction of missing calls per SNP in a PLINK set (plink --geno)")
    maf: float = option(0.01, "minimum minor allele frequency of a SNP over all PLINK sets")
    hwe: float = option(
        1e-6, "minimum p-value of the exact Hardy-Weinberg test of a SNP in a PLINK set (plink --hwe). 0: no test"
    )
    merge: str = option(
        "intersection",
        "SNPs to keep when PLINK sets are merged: only those in every set, or those in any set (as in the paper; "
        "missing calls then reveal the set). A SNP that is excluded in one set is excluded in all",
        choices=("intersection", "union"),
    )

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
