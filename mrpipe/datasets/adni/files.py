"""Find the tables of a LONI export by their names."""

import os
import re
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path

from mrpipe.datasets.adni.tables import LoniTable
from mrpipe.errors import DataError, Fault
from mrpipe.forms import ENDINGS, is_table
from mrpipe.raw import sha256

_DATED = r"(?:.*_)?(?:{stem})(?:_(?P<date>\d\d[A-Za-z]{{3}}\d{{4}}|\d{{4}}-\d\d-\d\d))?(?: ?\(\d+\))?"
# Folders of participants, hidden folders and leftovers of archives.
_PERSON = re.compile(r"\d{3}_S_\d{4}|sub-|\.|__MACOSX", re.IGNORECASE)


def shown(raw: Path, path: Path) -> str:
    """Name of a file in messages: its path in the export, or the name of one outside it."""
    return path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name


def _file_date(text: str | None) -> date:
    """Parse the date in a file name; a file without a date counts as the oldest."""
    for form in ("%d%b%Y", "%Y-%m-%d"):
        try:
            return datetime.strptime(text or "", form).date()
        except ValueError:
            continue
    return date.min


def table_files(raw: Path) -> list[Path]:
    """Tables and zip archives in the export folder and its subfolders, except those of single participants (images)."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(raw):
        subfolders[:] = [f for f in subfolders if not _PERSON.match(f)]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += (path for path in paths if path.suffix.lower() == ".zip" or is_table(path))
    return sorted(found)


def find_tables(raw: Path, files: Sequence[Path], table: LoniTable) -> tuple[list[Path], list[Path]]:
    """All files of a table, and of older assays or versions of it; the file to read is the first of the first list.

    The table itself precedes older assays and versions, whatever the dates of the files. Among files of the same
    table, the latest version, then the latest date in the file name, then the newest name precedes.

    Raises:
        DataError: several files that differ in content have the same table name and date.
    """
    own = table.stems or (table.name,)
    endings = rf"(?:{ENDINGS}|\.zip)"
    expressions = [re.compile(_DATED.format(stem=s) + endings, re.IGNORECASE) for s in (*own, *table.older)]
    found: list[tuple[int, str, date, int, Path]] = []
    for path in files:
        for age, expression in enumerate(expressions):
            if match := expression.fullmatch(path.name):
                kind = max(age - len(own) + 1, 0)
                version = match.groupdict().get("version") or ""
                found.append((-kind, version, _file_date(match["date"]), -age, path))
                break
    found.sort(key=lambda f: f[:4], reverse=True)
    best = [path for *key, path in found if tuple(key) == found[0][:4]]
    if len(best) > 1 and len({sha256(path) for path in best}) > 1:
        names = ", ".join(p.relative_to(raw).as_posix() for p in best)
        expected, fix = f"a single newest file of {table.name}", "Remove the copies that you do not want to use."
        raise DataError(Fault(file=f"{table.name}_ddMonYYYY.csv", expected=expected, found=names, fix=fix))
    same = [path for kind, version, _, _, path in found if (kind, version) == found[0][:2]]
    return same, [path for *_, path in found if path not in same]
