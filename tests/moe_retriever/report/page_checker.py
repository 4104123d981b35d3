"""Parser of a page of the report, which collects its ids, links and assets."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Checker(HTMLParser):
    """Collects open tags, ids, headings, links and assets of a page."""

    VOID = ("meta", "br", "link", "img", "path", "use", "rect", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.links: list[str] = []
        self.assets: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {k: v or "" for k, v in attrs}
        self.ids += [said["id"]] if "id" in said else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h\d", tag) else []
        self.links += [said["href"]] if tag == "a" else []
        self.assets += [said[k] for k in ("src", "href", "xlink:href") if k in said and tag != "a"]
        if (tag == "svg" and not said.get("aria-label")) or (tag == "img" and not said.get("alt")):
            self.unlabelled.append(tag)
        if tag == "th" and "scope" not in said:
            self.unlabelled.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def checked(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text())
    return checker


def untimed(page: Path) -> str:
    """The page without the section of times."""
    return re.sub(r"<!-- times:begin -->.*<!-- times:end -->", "", page.read_text(), flags=re.DOTALL)
