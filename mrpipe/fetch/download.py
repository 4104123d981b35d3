"""Download the data sets of `catalogue.yaml`: complete files with the right checksum, which a second run keeps."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mrpipe.errors import Fault, FaultCollector
from mrpipe.fetch.convert import convert

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
FOLDER = Path("data/open")


@dataclass(frozen=True, kw_only=True)
class OpenData:
    """An entry of the catalogue; one without files has to be obtained as its title says."""

    name: str
    title: str
    licence: str
    reader: str = "tables"
    base: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def present(self) -> bool:
        """Whether the default folder has the files that the reader needs."""
        needed = ["tables.yaml"] if self.reader == "tables" else self.files
        return all((FOLDER / self.name / file).is_file() for file in needed)

    def __str__(self) -> str:
        return f"{self.name}: {self.title}\n  licence: {self.licence}"


def catalogue(path: Path = CATALOGUE) -> dict[str, OpenData]:
    return {name: OpenData(name=name, **entry) for name, entry in yaml.safe_load(path.read_text("utf-8")).items()}


def fetch(data: Iterable[OpenData], out: Path, declarations: Path, say: Callable[[str], None]) -> None:
    """Download data sets to `out/NAME`; convert tables, and copy their declaration from `declarations/NAME.yaml`.

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
            faults.attempt(convert, out / entry.name, entry.files, declarations / f"{entry.name}.yaml")
        say(f"  {out / entry.name}: {f'{len(failed)} files missing' if failed else 'complete'}")
    faults.raise_if_any()


def _download(entry: OpenData, path: str, out: Path, unreachable: set[str], say: Callable[[str], None]) -> Fault | None:
    """Download a file unless it exists with the right checksum; an interrupted download leaves no file."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    target, checksum, url = out / entry.name / path, entry.files[path], entry.addresses.get(path, entry.base + path)
    if target.is_file() and pooch.hashes.hash_matches(str(target), checksum):
        return None
    found = f"no connection to {(host := urlsplit(url).netloc)}"
    if host not in unreachable:
        say(f"  {url}")
        # The checksum is that of the published file, which a server may compress unless told otherwise.
        get = pooch.HTTPDownloader(timeout=60, chunk_size=2**16, headers={"Accept-Encoding": "identity"})
        try:
            pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=get)
        except requests.ConnectionError:
            unreachable.add(host)
        except (requests.RequestException, ValueError) as error:
            found = str(error).splitlines()[0]
        else:
            if checksum is None:
                say(f"    no published checksum; SHA-256 {pooch.file_hash(str(target))}")
            return None
    found = f"{'a file with another checksum; ' if target.is_file() else ''}{found}"
    expected, fix = url + (f", SHA-256 {checksum}" if checksum else ""), "Put it there and run the same command again."
    return Fault(file=str(target), expected=expected, found=found, fix=fix)
