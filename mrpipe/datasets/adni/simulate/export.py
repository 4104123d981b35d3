"""Simulate a LONI export (tables, PLINK sets with chain file and reference, images) and write its ground truth."""

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpipe.datasets.adni.simulate import biospecimen as sim_biospecimen
from mrpipe.datasets.adni.simulate import forms as sim_forms
from mrpipe.datasets.adni.simulate.genotypes import write_genotypes
from mrpipe.datasets.adni.simulate.image import ImageSimulation, simulate_images
from mrpipe.datasets.adni.simulate.people import FACTOR_MEANS, best_accuracies, draw_people, posterior, truth_frame
from mrpipe.datasets.adni.simulate.tables import LAYOUTS, Writer
from mrpipe.datasets.adni.tables import CLASSES
from mrpipe.errors import UsageError
from mrpipe.experiment.truth import subsets, write_best
from mrpipe.options import option
from mrpipe.store.parquet import write_frame, write_text


@dataclass(frozen=True)
class AdniSimulation(ImageSimulation):
    n_subjects: int = option(150, "number of participants; about 70 % become samples with the default label option")
    seed: int = option(0, "random seed")
    layout: str = option("2025", "export generation to imitate (file names, headers, codes)", choices=LAYOUTS)
    n_snps: int = option(400, "total number of SNPs over all chips; the ADNI release has about 600000")
    separation: float = option(1.0, "distance between class means of the latent factors, in standard deviations")
    missing_strength: float = option(0.3, "correlation of missing modalities with disease severity, 0 (none) to 1")
    images: bool = option(True, "write images; if false, the export has no image modality")


def simulate_export(raw: Path, truth: Path, options: AdniSimulation) -> None:
    """Write the export to `raw`, and the ground truth (Parquet files truth, best, snps, images; model.json) to `truth`.

    Raises:
        UsageError: an option is out of range.
    """
    for name, least in (("n_subjects", 30), ("n_snps", 48)):
        if (given := getattr(options, name)) < least:
            raise UsageError(f"simulation of adni: {name}={given} must be at least {least}")
    if not 0 <= options.missing_strength <= 1:
        raise UsageError(f"simulation of adni: missing_strength={options.missing_strength} must be between 0 and 1")
    raw.mkdir(parents=True, exist_ok=True)
    people = draw_people(options.n_subjects, options.seed, options.separation, options.missing_strength)
    writer = Writer(raw, options.layout, options.seed)
    for write_form in (*sim_forms.FORMS, *sim_biospecimen.FORMS):
        write_form(writer, people)
    if options.layout == "old":
        sim_forms.write_roster(writer, people)
    genotyped = people.subjects.filter("has_genomic")
    effect = 0.35 * options.separation
    snps = write_genotypes(raw / "genetics", genotyped, n_snps=options.n_snps, seed=options.seed, effect=effect)
    write_frame(truth / "snps.parquet", snps)
    if options.images:
        diagnosis = pl.col("cls").replace_strict(dict(enumerate(CLASSES)), return_dtype=pl.String)
        named = {"subject_id": pl.col("ptid"), "diagnosis": diagnosis, "visit_date": pl.col("start")}
        imaged = people.subjects.filter("has_image").select("u", "v_image", **named)
        write_frame(truth / "images.parquet", simulate_images(raw, imaged, options))
    write_frame(truth / "truth.parquet", truth_frame(people, options.separation))
    best = {names: posterior(people.subjects, names, options.separation) for names in subsets(list(FACTOR_MEANS))}
    write_best(truth, "diagnosis", CLASSES, people.subjects["ptid"].to_list(), best)
    model = {
        "best_accuracy": best_accuracies(people, options.separation),
        "note": "mean highest posterior given u and the factors themselves: above what noisy features allow",
    }
    write_text(truth / "model.json", json.dumps(model, indent=1, sort_keys=True) + "\n")
