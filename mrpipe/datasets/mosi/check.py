"""Check of a CMU-MOSI export: report every error before a build starts."""

from __future__ import annotations

from pathlib import Path

from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import MosiOptions
from mrpipe.schema import Checked

RELEASES = {"csd": "CMU-MultimodalSDK (.csd)", "mmsa": "MMSA", "multibench": "MultiBench"}


def check(raw: Path, options: MosiOptions) -> Checked:
    """Open the export and check all files that a build reads.

    Raises:
        DataError: all errors of the export together.
        UsageError: an option names a file or sequence that does not exist.
    """
    export = open_export(raw, options)
    release = RELEASES[export.format]
    if export.format != "csd":
        release += f" {export.files[0].name}"
    return Checked(release=release, files=export.files, notes=tuple(export.notes))


def modalities_of(raw: Path, options: MosiOptions) -> tuple[str, ...]:
    """Modalities (text, audio, vision) in the export."""
    return open_export(raw, options).modalities
