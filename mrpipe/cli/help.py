"""Texts of `mrpipe --help` and of the pipeline's commands."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrpipe.schema import Dataset

PROGRAM = """\
Raw clinical and multimodal exports to sealed Parquet feature stores, and from stores to trained models.

  mrpipe run --cores 8                        the whole workflow on simulated exports
  mrpipe check mosi --raw DIR                 all errors of an export at once
  mrpipe build mosi --raw DIR --out STORE     from an export to a sealed store
  mrpipe train --store STORE --out RUN        from a store to a trained, evaluated model"""

# Headings of `mrpipe --help` and the commands below them.
GROUPS = {
    "Workflow": ("run",),
    "From an export to a store": ("fetch", "init", "simulate", "check", "build", "options"),
    "Stores": ("show", "verify", "audit", "mask", "export"),
    "From a store to results": (
        *("methods", "train", "evaluate", "predict", "search", "analyse", "benchmark", "report", "results"),
    ),
}
STEPS = ("cohort", "prepare", "ingest", "qc", "samples", "split", "seal", "code-hash")

# Command → one line for `mrpipe --help`, and the rest of its own help.
COMMANDS: dict[str, tuple[str, str]] = {
    "fetch": (
        "download openly licensed data sets",
        "Downloads each data set to FOLDER/NAME and converts it to tables where needed. Complete files with the right\n"
        "checksum are kept, so the same command resumes. Without a connection, the error names all files, their\n"
        "addresses and where to put them. By downloading, you accept the licences that are shown.\n\n"
        "  mrpipe fetch mfeat physionet2012",
    ),
    "init": (
        "propose the declaration of your own tables",
        "Reads your tables and writes a YAML file that declares them: ids, subjects, label, modalities, categories,\n"
        "columns that are no features. Each guess has its reason as a comment. It is a starting point: read it and\n"
        "correct it. Only values that several rows share are listed; those of texts with --show-values alone.\n\n"
        "  mrpipe init tables visits.csv patients.csv labs.xlsx\n"
        "  mrpipe check tables --raw .\n"
        "  mrpipe build tables --raw . --out ../stores/mine",
    ),
    "simulate": (
        "write a simulated export in the provider's file formats",
        "To try the pipeline without data. The ground truth (latent states, best possible prediction) is written\n"
        "to PATH.truth. While that folder exists, every store built from the export is marked `simulated`.\n\n"
        "  mrpipe simulate enrico --out raw/enrico --set n_screens=200 seed=1",
    ),
    "check": (
        "validate an export before anything is built",
        "Reads the header of every file that a build will need, selects the cohort and splits it, and reports all\n"
        "errors at once, each with file, column, expected value, found value and remedy. Exit code 3 if there are\n"
        "errors. Ends with the modalities that the store will have or lack, and with the files that are not used.\n\n"
        "  mrpipe check mosi --raw ~/exports/mosi",
    ),
    "build": (
        "build a sealed store from an export",
        "Runs all steps in one process: check, cohort, prepare, ingest, samples, split, seal. A finished store is\n"
        "replaced only by one of the same dataset, export and options, or with --overwrite.\n\n"
        "  mrpipe build mosi --raw ~/exports/mosi --out stores/mosi --set text_encoder=minilm",
    ),
    "options": (
        "list the datasets, or the options of one",
        "Options of the reader and of the simulator; pass them as --set key=value.\n\n  mrpipe options mosi",
    ),
    "show": (
        "summarise a store",
        "Prints modalities, modality combinations, cohort flow, labels, splits and provenance.\n\n"
        "  mrpipe show stores/mosi",
    ),
    "verify": (
        "verify the integrity of a store",
        "Checks that all files are present, that sizes and row counts match the manifest, and that masks, labels and\n"
        "splits agree with the modality tables. --deep also compares file hashes and scans every value.\n\n"
        "  mrpipe verify stores/mosi --deep",
    ),
    "audit": (
        "report features that nearly determine the label on their own",
        "Computes the AUROC of every single feature on training rows (by order, bins and levels of its values, and by\n"
        "whether it is known) and of each bit of the modality mask. Those above the threshold that are unlikely to be\n"
        "due to chance are listed with their raw columns; for a regression label, features with a rank correlation\n"
        "above 0.99. Codes and measurements are tested one by one, by presence and by mean value. Such a feature may\n"
        "be the label in disguise: inspect it before training.\n\n"
        "  mrpipe audit stores/mosi --threshold 0.9",
    ),
    "mask": (
        "simulate missing modalities",
        "Writes one mask file per store, mechanism, p and seed, to be shared by all methods. Mechanisms: mcar,\n"
        "mnar_label, mnar_value, block; timestep_drop and gaussian corrupt values when the store is loaded.\n"
        "Prints the combinations of modalities that remain, and the realised rate: the share of observed modalities\n"
        "that are hidden. A sample keeps at least one modality, so this rate is below p unless --rate is marginal.\n\n"
        "  mrpipe mask stores/mosi --mechanism mcar --p 0.3 --seed 0 --out masks/mcar-0.3-0.parquet",
    ),
    "export": (
        "convert a store to CSV or NumPy files",
        "For tools that do not read Parquet. csv: one wide file per modality; npz: arrays with their sample ids.\n\n"
        "  mrpipe export stores/mosi --out csv",
    ),
    "cohort": (
        "select the cohort and assign labels",
        "Writes WORK/cohort.parquet and WORK/attrition.parquet (the reason for every exclusion).\n\n"
        "  mrpipe cohort mosi --raw raw/mosi --work build/mosi",
    ),
    "prepare": (
        "process one part of a modality",
        "Expensive modalities are cut into independent parts (by subject or by scan); `ingest` joins them. The number\n"
        "of parts is an option of the dataset.\n\n"
        "  mrpipe prepare mimic lab --part 0 --raw raw/mimic --work build/mimic",
    ),
    "ingest": (
        "extract the features of one modality",
        "Writes WORK/store/modalities/MODALITY.parquet and its rows of the data dictionary, in bounded memory.\n\n"
        "  mrpipe ingest mosi text --raw raw/mosi --work build/mosi",
    ),
    "qc": (
        "write quality control of a modality",
        "Writes OUT/qc.parquet (one row per scan: measurements, outliers, reason of a failure) and\n"
        "OUT/contact_sheet.png. Neither names a subject: column `scan` is a row of WORK/tried/MODALITY.parquet, which\n"
        "holds the ids and stays private.\n\n"
        "  mrpipe qc adni image --work build/adni --out build/adni/qc",
    ),
    "samples": (
        "assemble the sample table: masks, row index and labels",
        "Writes samples.parquet, labels/*.parquet and attrition.parquet to WORK/store. A sample whose scans all\n"
        "failed keeps its other modalities; the attrition table counts the reasons.\n\n"
        "  mrpipe samples mosi --work build/mosi --modalities text audio",
    ),
    "split": (
        "write one split, grouped by subject",
        "Either a scheme of the dataset or your own list of ids, to WORK/store/splits:\n\n"
        "  mrpipe split mosi --work build/mosi --scheme mine --ids ids.json\n\n"
        '  ids.json: {"train": [...], "val": [...], "test": [...]}',
    ),
    "seal": (
        "copy the finished files to a store, check its invariants and seal it",
        "Copies the tables of WORK/store to a hidden folder beside STORE, checks them against the hashes that the\n"
        "steps recorded and against the invariants of the format, and renames the folder to STORE. An interruption\n"
        "leaves the old store or the new one. Equal inputs give an equal store_id.\n\n"
        "  mrpipe seal mosi --work build/mosi --store stores/mosi",
    ),
    "code-hash": (
        "print the hash of the code that a step depends on",
        "Comments and docstrings do not count. The workflow uses the hash to rerun the steps that an edit affects.\n\n"
        "  mrpipe code-hash mrpipe.stages.ingest",
    ),
}


def datasets_page() -> str:
    """Name and title of every dataset."""
    from mrpipe.datasets import dataset_names, get_dataset

    names = dataset_names()
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {get_dataset(name).title}" for name in names]
    return "\n".join(["datasets:", *lines, "", "`mrpipe options DATASET` lists the options of one."])


def options_page(dataset: "Dataset") -> str:
    """Every option of a dataset with its default, choices and meaning."""
    lines = [f"{dataset.name}: {dataset.title}"]
    for title, cls in (("reader", dataset.options), ("simulator", dataset.simulation)):
        lines += ["", f"{title} options (--set key=value):"]
        for field in dataclasses.fields(cls):
            choices = field.metadata.get("choices")
            allowed = f" [{' | '.join(map(str, choices))}]" if choices else ""
            lines.append(f"  {field.name} = {field.default}{allowed}\n      {field.metadata.get('help', '')}")
    return "\n".join(lines)
