"""What `--help` says."""

from __future__ import annotations

import dataclasses

from mrpipe.schema import Dataset

PROGRAM = """\
Raw clinical and multimodal exports to sealed Parquet feature stores.

  mrpipe check mosi --raw DIR                 every fault of an export at once
  mrpipe build mosi --raw DIR --out STORE     export to sealed store in one go
  mrpipe show STORE                           what is in a store
  mrpipe verify STORE --deep                  is it whole, is it what it says

The same steps, one by one, as the workflow runs them (each reads files and writes files):
  simulate → check → cohort → [prepare →] ingest (per modality) → samples → split (per scheme) → seal

Exit codes: 0 done, 2 wrong use, 3 the data are at fault (file, column, expected, found, what to do)."""

VERBS: dict[str, tuple[str, str]] = {
    "simulate": (
        "write a raw export that the reader cannot tell from a real one",
        "For trying the pipeline without data. The truth (latent states, best possible prediction) is written beside\n"
        "the export, in PATH.truth; while it lies there, every store made from the export is marked `simulated`.\n\n"
        "  mrpipe simulate enrico --out raw/enrico --set n_screens=200 seed=1",
    ),
    "check": (
        "find every fault of an export before anything runs",
        "Reads every header that a run will need and reports all faults in one go, each with file, column, what was\n"
        "expected, what was found and what to do. Exit code 3 if there is one.\n\n"
        "  mrpipe check mosi --raw ~/exports/mosi",
    ),
    "cohort": (
        "decide who is in and with which label",
        "Writes WORK/cohort.parquet and WORK/attrition.parquet (a reason for every exclusion).",
    ),
    "prepare": (
        "do one part of a modality's expensive work",
        "Large tables are cut by subject, scans by scan: each part is an independent job, and `ingest` joins them.\n"
        "Only modalities that say so have parts; their number is an option of the dataset.",
    ),
    "ingest": (
        "turn one modality of an export into features",
        "Writes STORE/modalities/MODALITY.parquet and its part of the dictionary. Streams: memory stays bounded.",
    ),
    "qc": (
        "show what was tried for a modality, and what failed",
        "Writes OUT/qc.parquet (one row a scan: numbers, outliers, reason of a failure) and OUT/contact_sheet.png.\n"
        "They name no subject: column `scan` is the row in WORK/tried/MODALITY.parquet, which has the ids and stays\n"
        "private.",
    ),
    "samples": (
        "bring cohort and modalities together: masks, row index, labels",
        "Writes STORE/samples.parquet, STORE/labels/*.parquet and STORE/attrition.parquet. A sample whose scans all\n"
        "failed keeps its other modalities; the attrition table counts the reasons.",
    ),
    "split": (
        "write one named split, by subject",
        "A scheme of the dataset (standard, uniform), or your own id list:\n\n"
        "  mrpipe split mosi --store STORE --scheme mine --ids ids.json\n\n"
        '  ids.json: {"train": [...], "val": [...], "test": [...]}',
    ),
    "seal": (
        "check the invariants and write the manifest",
        "The manifest comes last; a folder without one is not a store. Equal inputs give an equal store_id.",
    ),
    "build": (
        "run check … seal in one process",
        "  mrpipe build mosi --raw ~/exports/mosi --out stores/mosi --set text_encoder=minilm",
    ),
    "verify": (
        "is a store whole, and is it what it says",
        "Shallow: sizes, row counts, mask ⇔ row ⇔ table. --deep also hashes every file and scans every value.",
    ),
    "show": ("what is in a store", "Modalities, combinations, cohort flow, labels, splits, and where it came from."),
    "audit": (
        "features that tell the label almost alone",
        "Single-feature AUROC on training rows, of the value and of whether it is known at all, with the raw column\n"
        "that the feature came from; beyond what luck does among so many features. Codes and measurements are looked\n"
        "at one by one: whether a sample has them, and the mean of their values. What stands here may be the label in\n"
        "other words: look before you train.\n\n"
        "  mrpipe audit STORE --threshold 0.9",
    ),
    "export": (
        "copy a store to CSV or NumPy files",
        "For tools that do not read Parquet. csv: one wide file a modality; npz: arrays with their ids.",
    ),
    "mask": (
        "hide modalities at random and write down which",
        "One mask file per (store, mechanism, p, seed), shared by all methods. Mechanisms: mcar, mnar_label,\n"
        "mnar_value, block; timestep_drop and gaussian corrupt values at load time instead.\n\n"
        "  mrpipe mask STORE --mechanism mcar --p 0.3 --seed 0 --out masks/mcar-0.3-0.parquet",
    ),
    "options": ("the options of a dataset's reader and simulator", "Give them with --set key=value."),
    "code-hash": (
        "hash of the code that a step depends on",
        "Comments and docstrings do not count. The workflow uses it to rerun what an edit of the library affects.",
    ),
}


def options_page(dataset: Dataset) -> str:
    """Every option of a dataset with its default, choices and meaning."""
    lines = [f"{dataset.name}: {dataset.title}"]
    for title, cls in (("reader", dataset.options), ("simulator", dataset.simulation)):
        lines += ["", f"{title} options (--set key=value):"]
        for field in dataclasses.fields(cls):
            choices = field.metadata.get("choices")
            allowed = f" [{' | '.join(map(str, choices))}]" if choices else ""
            lines.append(f"  {field.name} = {field.default}{allowed}\n      {field.metadata.get('help', '')}")
    return "\n".join(lines)
