"""Download the data sets of `catalogue.yaml`: complete files with the right checksum, which a second run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mrpipe.errors import DataError, Fault, FaultCollector
from mrpipe.fetch.convert import convert

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
FOLDER = Path("data/open")
_FIX = "Put the file there and run the same command again."


@dataclass(frozen=True, kw_only=True)
class OpenData:
    """An entry of the catalogue; one without files has to be obtained from its provider, as `size` says."""

    name: str
    title: str
    licence: str
    size: str
    reader: str
    base: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def present(self, folder: Path) -> bool:
        """Whether a folder has the files that the reader needs."""
        needed = ["tables.yaml"] if self.reader == "tables" else self.files
        return all((folder / name).is_file() for name in needed)

    def __str__(self) -> str:
        return f"{self.name}: {self.title} ({self.size})\n  licence: {self.licence}"


def catalogue(path: Path = CATALOGUE) -> dict[str, OpenData]:
    """All data sets by name."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: OpenData(name=name, **entry) for name, entry in entries.items()}


def fetch(data: Iterable[OpenData], out: Path, declarations: Path, say: Callable[[str], None]) -> None:
    """Download data sets to `out/NAME` and convert them.

    Args:
        declarations: folder of NAME.yaml for data sets of tables, copied to `out/NAME/tables.yaml`.

    Raises:
        DataError: lists all files that could not be downloaded, with their addresses and where to put them.
    """
    faults = FaultCollector()
    unreachable: set[str] = set()
    for entry in data:
        say(str(entry))
        failed = [fault for path in entry.files if (fault := _download(entry, path, out, unreachable, say))]
        faults.faults += failed
        if entry.reader == "tables" and not failed:
            try:
                convert(entry.name, out / entry.name, list(entry.files), declarations)
            except DataError as error:
                faults.absorb(error)
        say(f"  {out / entry.name}: {f'{len(failed)} files missing' if failed else 'complete'}")
    faults.raise_if_any()


def _download(
    entry: OpenData, path: str, out: Path, unreachable: set[str], say: Callable[[str], None]
) -> Fault | None:
    """Download a file unless it exists with the right checksum; an interrupted download leaves no file."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    target, checksum, url = out / entry.name / path, entry.files[path], entry.addresses.get(path, entry.base + path)
    if target.is_file() and pooch.hashes.hash_matches(str(target), checksum):
        return None
    host = urlsplit(url).netloc
    found = f"no connection to {host}"
    if host not in unreachable:
        say(f"  {url}")
        # The checksum is that of the published file, which a server may compress unless told otherwise.
        get = pooch.HTTPDownloader(timeout=60, chunk_size=2**16, headers={"Accept-Encoding": "identity"})
        try:
            pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=get)
            if checksum is None:
                say(f"    no published checksum; SHA-256 {pooch.file_hash(str(target))}")
            return None
        except requests.ConnectionError:
            unreachable.add(host)
        except (requests.RequestException, ValueError) as error:
            found = str(error).splitlines()[0]
    found = f"{'a file with another checksum; ' if target.is_file() else ''}{found}"
    return Fault(file=str(target), expected=url + (f", SHA-256 {checksum}" if checksum else ""), found=found, fix=_FIX)
