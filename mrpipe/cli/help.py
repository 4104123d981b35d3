"""Texts of `mrpipe --help` and of the pipeline's commands."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

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
STEPS = ("cohort", "prepare", "ingest", "qc", "samples", "split", "seal")

# Command → its `summary`, one line for `mrpipe --help`, and its `text`, the rest of its own help.
COMMANDS: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("help.yaml").read_text(encoding="utf-8"))
# Command, also of other packages → the end of its own help.
CLOSING = COMMANDS.pop("closing")


def datasets_page() -> str:
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
