"""Cohort and labels: all segments of videos that appear in a fold list; and the check of an export."""

from pathlib import Path

import polars as pl

from mrpipe.datasets.mosi.export import PICKLE_SUFFIXES, open_export
from mrpipe.datasets.mosi.formats.csd import role_of
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.datasets.mosi.readers import survey, text_choice
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Attrition, Checked, Cohort


def cohort(raw: Path, options: MosiOptions) -> Cohort:
    """Samples, labels and attrition of the export.

    The samples have `sample_id`, `subject_id`, `clip`, `fold` (train, val or test) and the times `start` and `end` in
    seconds (null in formats without times). The labels are the tasks of the corpus, functions of the sentiment score.
    """
    clips = open_export(raw, options).clips.sort("sample_id")
    attrition = Attrition(len(clips), "clips in the export")
    kept = clips.filter(pl.col("fold").is_not_null())
    attrition.step("video in none of the three fold lists", len(kept))
    labels = {}
    for task, value in options.corpus.tasks:
        dtype = pl.Float32 if task.kind == "regression" else pl.Int8
        labels[task.name] = kept.select("sample_id", value.cast(dtype).alias("value")).drop_nulls()
    return Cohort(samples=kept.drop("score"), labels=labels, attrition=attrition.frame())


def check(raw: Path, options: MosiOptions) -> Checked:
    """Open the export and check all files that a build reads, and the options against their contents.

    Raises:
        DataError: all errors of the export together.
        UsageError: an option names a file, sequence, form or encoder that does not exist.
        MissingExtraError: the text encoder is not installed.
    """
    export = open_export(raw, options)
    encoder, *note = text_choice(export, options) if "text" in export.modalities else (options.text_encoder,)
    known, notes = survey(export, options)
    files, unused = export.files, dict(export.unused)
    if isinstance(export, SdkExport):
        release = "CMU-MultimodalSDK (.csd)"
        named = {role: role_of(s.path.stem)[0] for role, s in export.chosen.items()}
        if wrong := {role: n for role, n in named.items() if n in ("audio", "vision") and n != role}:
            fix = "Rename the file: the workflow knows by their names which files a step reads."
            raise DataError(
                [
                    Fault(
                        file=export.chosen[role].path.name,
                        expected=f"a name of {role}",
                        found=f"a name of {n}",
                        fix=fix,
                    )
                    for role, n in wrong.items()
                ]
            )
        texts = [s.path for role in ("words", "vectors") if (s := export.chosen.get(role))]
        for path in (p for p in texts if p.name != export.text_source()[0]):
            files = tuple(f for f in files if f != path)
            unused[path.name] = f"{export.text_source()[0]} is read; --set text_sequence={path.name} reads this one"
    else:
        release = f"{export.release} {files[0].name}"
        for path in sorted(p for p in raw.rglob("*") if p.is_file() and p not in files):
            if path.suffix.lower() in (*PICKLE_SUFFIXES, ".csd"):
                unused[path.name] = f"{files[0].name} is read; --set file=NAME reads another pickle"
    ids = export.clips["sample_id"]
    in_fold = export.clips["fold"].is_not_null()
    observed = {m: ids.filter(in_fold & pl.Series(k)) for m, k in known.items()}
    notes, chosen = [*export.notes, *notes, *note], {"text_encoder": encoder}
    return Checked(release=release, files=files, notes=tuple(notes), observed=observed, unused=unused, options=chosen)


def modalities_of(raw: Path, options: MosiOptions) -> tuple[str, ...]:
    return open_export(raw, options).modalities
