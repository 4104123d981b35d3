"""ADNI: diagnosis (CN, MCI, Dementia) from clinical data, biospecimens, genotypes and brain images."""

from mrpipe.datasets.adni.check import check_export, present_modalities
from mrpipe.datasets.adni.cohort import build_cohort
from mrpipe.datasets.adni.forms import biospecimen, clinical
from mrpipe.datasets.adni.genomic import reader as genomic
from mrpipe.datasets.adni.image import join as image
from mrpipe.datasets.adni.image.qc import write_image_qc
from mrpipe.datasets.adni.image.raw import prepare_images
from mrpipe.datasets.adni.options import AdniOptions
from mrpipe.datasets.adni.simulate.export import AdniSimulation, simulate_export
from mrpipe.datasets.adni.tables import CLASSES, PROVIDER
from mrpipe.schema import Dataset, ModalityReader, Scheme, Task

_GENOTYPES = ("*.bed", "*.bim", "*.fam", "*.vcf", "*.vcf.gz", "*.legend", "*.legend.gz", "*.chain", "*.chain.gz")
_IMAGES = ("*.nii", "*.nii.gz", "*.dcm", "*.npy", "*.json")
_TABLES = ("*", *(f"!{pattern}" for pattern in (*_GENOTYPES, *_IMAGES)))

DATASET = Dataset(
    name="adni",
    title="Alzheimer's Disease Neuroimaging Initiative",
    citation=(
        "R. C. Petersen et al. Alzheimer's Disease Neuroimaging Initiative (ADNI): clinical characterization. "
        "Neurology 74(3), 2010"
    ),
    licence="ADNI data use agreement (not redistributable)",
    provider=PROVIDER,
    options=AdniOptions,
    simulation=AdniSimulation,
    modalities={
        "image": ModalityReader(
            bit=image.BIT,
            description=image.DESCRIPTION,
            read=image.read_images,
            prepare=prepare_images,
            n_parts=lambda options: max(1, int(options.image_parts)),
            qc=write_image_qc,
        ),
        "genomic": ModalityReader(bit=genomic.BIT, description=genomic.DESCRIPTION, read=genomic.read_genomic),
        "clinical": ModalityReader(bit=clinical.BIT, description=clinical.DESCRIPTION, read=clinical.read_clinical),
        "biospecimen": ModalityReader(
            bit=biospecimen.BIT, description=biospecimen.DESCRIPTION, read=biospecimen.read_biospecimen
        ),
    },
    tasks=(
        Task(name="diagnosis", kind="classification", classes=CLASSES, description="diagnosis under the label policy"),
    ),
    schemes={"standard": Scheme(stratify="diagnosis", description="70/15/15 by participant, stratified by diagnosis")},
    check=check_export,
    cohort=build_cohort,
    simulate=simulate_export,
    modalities_of=present_modalities,
    files={
        **dict.fromkeys(("cohort", "clinical", "biospecimen"), _TABLES),
        "genomic": _GENOTYPES,
        "image": ("*", *(f"!{pattern}" for pattern in _GENOTYPES)),
    },
    tiny={"n_subjects": 90, "n_snps": 192, "image_shape": [10, 12, 10], "image_max_scans": 2},
    notes=(
        "One sample per participant, taken at one visit: sample_id = subject_id = PTID.",
        "By default only participants whose diagnosis never changes are included, as in the authors' code. This is an "
        "easier task than predicting the diagnosis at baseline.",
        "The paper cites ISOPROSTANE for CSF amyloid and batemanlab for plasma NfL, but these tables contain urine "
        "isoprostanes and plasma Abeta42/40. CSF biomarkers are read from the Roche Elecsys table instead.",
        "The store keeps every SNP that passes quality control; LD pruning is fitted on training participants.",
    ),
)
