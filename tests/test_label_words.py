"""The texts of the labelers' page: both languages have all of them, and the page asks for none that is not there."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import rlhf_kit.labeling
from rlhf_kit.labeling.replies import AXES, SCALE, SKIP_REASONS
from rlhf_kit.labeling.tasks import KINDS
from rlhf_kit.records import Flags

STATIC = Path(rlhf_kit.labeling.__file__).parent / "web" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
PAGES = sorted(STATIC.glob("*.html"))
WORDS = {name: json.loads((STATIC / f"words.{name}.json").read_text(encoding="utf-8")) for name in ("en", "zh")}


class _Page(HTMLParser):
    """What a page's HTML holds that matters here."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.refused: list[str] = []
        self.addresses: list[str] = []
        self._in_script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.keys += [value or "" for name, value in attrs if name in ("data-t", "data-t-label")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.refused += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        self.refused += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []


def _of_scripts() -> tuple[set[str], set[str]]:
    """Whole keys that stand in the scripts, and the beginnings of those that are put together there."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    whole = set(re.findall(r'"([a-z_]+\.[a-zA-Z_0-9]+)"', text))
    return whole, set(re.findall(r"(?:t|known)\(`([a-z_]+\.[a-z_]*)\$\{", text))


def test_both_languages_have_the_same_keys_with_the_same_places():
    assert list(WORDS["en"]) == list(WORDS["zh"])
    places = {name: {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in WORDS[name].items()} for name in WORDS}
    assert places["en"] == places["zh"]
    assert [key for name in WORDS for key, text in WORDS[name].items() if not text.strip()] == []


def test_chinese_is_chinese():
    """Texts that are the same in both are keys, arrows and the dash."""
    same = {key for key, text in WORDS["en"].items() if text == WORDS["zh"][key]}
    assert same == {"key.ctrl_enter", "compare.key_A", "compare.key_B", "compare.key_tie", "admin.none_yet"}


def test_every_key_that_the_page_asks_for_is_there_and_every_text_is_asked_for():
    whole, beginnings = _of_scripts()
    whole = {key for key in whole if not key.endswith((".js", ".css", ".json")) and not key.startswith("rlhf")}
    in_pages = {key for page in PAGES for key in _Page(page).keys}
    assert (whole | in_pages) - set(WORDS["en"]) == set()
    assert len(in_pages) > 20 and len(whole) > 80
    unused = {key for key in WORDS["en"] if key not in whole | in_pages and not key.startswith(tuple(beginnings))}
    assert unused == set()
    assert [start for start in beginnings if not any(key.startswith(start) for key in WORDS["en"])] == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_all_that_the_server_names_has_words(language):
    known = set(WORDS[language])
    flags = [flag for flag in Flags.model_fields if flag != "satisfies_constraint"]  # it has three states of its own
    expected = [f"flag.{flag}" for flag in flags] + [f"flag_hint.{flag}" for flag in flags]
    expected += [f"axis.{axis}" for axis in AXES] + [f"reason.{reason}" for reason in SKIP_REASONS]
    expected += [f"{part}.{kind}" for part in ("heading", "lead") for kind in KINDS]
    expected += [f"overall.{mark}" for mark in range(SCALE[0], SCALE[1] + 1)]
    expected += [f"role.{role}" for role in ("system", "user", "assistant")]
    assert [key for key in expected if key not in known] == []


def test_pages_have_nothing_that_the_content_security_policy_forbids():
    for page in map(_Page, PAGES):
        assert page.refused == []
        ours = [address for address in page.addresses if address not in ("data:,", "#work", "/api/admin/export")]
        assert len(ours) >= 2
        assert [address for address in ours if not (STATIC / address.removeprefix("static/")).is_file()] == []


def test_scripts_put_no_text_in_as_html_and_import_only_what_is_here():
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://", text
        ), path
        imported = re.findall(r'from "(\./[^"]+)"', text)
        assert [name for name in imported if not (STATIC / name).is_file()] == []
        assert len(text.splitlines()) <= 300


def test_what_is_not_ours_has_its_licence():
    head = (STATIC / "vendor" / "sortable.esm.js").read_text(encoding="utf-8")[:200]
    assert re.search(r"Sortable 1\.15\.\d+", head) and "@license MIT" in head
    assert "Permission is hereby granted, free of charge" in (STATIC / "vendor" / "sortable.LICENSE.txt").read_text()
