"""A finished HTML page as tests look at it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that every element is closed in order; keeps tags, ids, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def check_page(page: Page, *, scripts: int = 0) -> None:
    """Well formed, with no id twice and none that is pointed at missing; nothing is loaded from anywhere, and nothing
    runs but so many scripts of its own."""
    assert page.html.startswith("<!DOCTYPE html>")
    assert len(page.ids) == len(set(page.ids))
    named = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    linked = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    assert named | linked <= set(page.ids)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
    assert page.tags.count("script") == scripts and "img" not in page.tags and "\x1b" not in page.html
    assert "@import" not in page.html and not re.search(r"url\((?!#)", page.html)
    assert "default-src 'none'" in page.html.replace("&#39;", "'")
