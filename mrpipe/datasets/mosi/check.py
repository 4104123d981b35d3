"""Check of an export: report every error before a build starts."""

from pathlib import Path

import polars as pl

from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.formats.csd import role_of
from mrpipe.datasets.mosi.formats.pickles import PICKLE_SUFFIXES
from mrpipe.datasets.mosi.formats.sdk import SdkExport
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.datasets.mosi.readers import survey, text_choice
from mrpipe.errors import DataError, Fault
from mrpipe.schema import Checked

RELEASES = {
    "csd": "CMU-MultimodalSDK (.csd)",
    "mmsa": "MMSA",
    "multibench": "MultiBench",
    "mag": "MAG-BERT",
    "files": "features by clip,",
}


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
    release = RELEASES[export.format]
    files, unused = export.files, dict(export.unused)
    if isinstance(export, SdkExport):
        for role, sequence in export.chosen.items():
            if (named := role_of(sequence.path.stem)[0]) in ("audio", "vision") and named != role:
                fix = "Rename the file: the workflow knows by their names which files a step reads."
                expected, found = f"a name of {role}", f"a name of {named}"
                raise DataError(Fault(file=sequence.path.name, expected=expected, found=found, fix=fix))
        texts = [s.path for role in ("words", "vectors") if (s := export.chosen.get(role))]
        for path in (p for p in texts if p.name != export.text_source()[0]):
            files = tuple(f for f in files if f != path)
            unused[path.name] = f"{export.text_source()[0]} is read; --set text_sequence={path.name} reads this one"
    else:
        release += f" {files[0].name}"
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
