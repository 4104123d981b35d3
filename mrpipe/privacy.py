"""Counts of people on shared pages, and names and texts escaped for each format of output."""

import re
from typing import Any
from unicodedata import category

# Counts below this are not printed on shared pages; all others are rounded to a multiple of it.
SMALL = 5
NUMBER = r"^\s*[-+]?([0-9]+([.,][0-9]*)*|[.,][0-9]+)([eE][-+]?[0-9]+)?\s*$"
_RECORDS = r"(?=(?: [a-z]+){0,2}? (?:rows?|samples?|subjects?|participants?|people|patients?|ids?|records?|scans?)\b)"


def rounded(n: Any) -> Any:
    """Counts (an int or an expression) as multiples of `SMALL`, so that no two differ by a few; 0 if small."""
    return (n + SMALL // 2) // SMALL * SMALL * (n >= SMALL)


class Count(int):
    """A count of people on a shared page: rounded; if it is small, 1, and printed as `< 5`."""

    def __new__(cls, n: int) -> "Count":
        return super().__new__(cls, rounded(n) or n > 0)

    def __format__(self, form: str) -> str:
        return f"< {SMALL}" if self == 1 else format(int(self), form)


def counts_rounded(note: str) -> str:
    """A note with the numbers of rows and people in it as `Count`."""
    number = rf"\b\d[\d,]*\b(?=(?: of \d[\d,]*)?{_RECORDS})|(?<= of )\d[\d,]*\b{_RECORDS}"
    return re.sub(number, lambda m: f"{Count(int(m[0].replace(',', ''))):,}", note)


def printable(text: str) -> str:
    """Text for a terminal or one line of a file: control characters and marks of direction as escapes."""
    return "".join(c if c in "\n\t" or category(c) not in ("Cc", "Cf") else ascii(c)[1:-1] for c in text)


def markdown_text(text: object) -> str:
    """Text in Markdown, also in the cell of a table, on one line and without HTML, code, images or links."""
    plain = " ".join(printable(f"{text}").split()).replace("<", "&lt;")
    return re.sub(r"[|`]|!(?=\[)|(?<=\])\(", lambda m: f"\\{m[0]}", plain)
