"""The page of figures: whole without a network, and what the data say is text on it."""

import json
import re

import pytest
from html_page import Page, check_page

from rlhf_kit.errors import DataError
from rlhf_kit.stats import page, statistics

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"


def rows():
    for i in range(24):
        for labeler in (IMAGE, "$\\frac{1}{2}$", "丽"):
            ranks = [1, 2, 3] if (i + len(labeler)) % 3 else [2, 1, 3]
            sources = [SCRIPT, "b\x1b[31m", "c"]
            answers = [
                {"text": "x" * (3 + k + i), "rank": ranks[k], "source": sources[k], "flags": {"hallucination": k == 2}}
                for k in range(3)
            ]
            yield {"prompt": f"p{i}", "labeler": labeler, "category": [SCRIPT, "open_qa"][i % 2], "responses": answers}


def make(folder, name, lines, **options):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    html = page.write_page(statistics([str(path)], **options), folder / "stats.html").read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("page"), "<b>rows</b>.jsonl".replace("/", "_"), rows(), max_lengths=[10])


def test_the_page_is_well_formed_and_loads_and_runs_nothing(whole):
    check_page(whole[1])


def test_what_the_data_say_is_text(whole):
    html, found = whole
    assert re.search(r"<text[^>]*>\$\\frac\{1\}\{2\}\$ ", html)  # in a plot too, where it is no formula
    for words in (SCRIPT, IMAGE, "$\\frac{1}{2}$", "丽", "<b>rows<_b>.jsonl"):
        assert words in found.text, words


def test_the_figures_and_plots_stand_there(whole):
    _, found = whole
    for words in ("Pairs to learn from", "Labelers agree", "Krippendorff", "95 % interval", "hallucination", "33.3 %"):
        assert words in found.text, words
    titles = [value for tag, name, value in found.attributes if tag == "svg" and name == "aria-labelledby"]
    assert {"sizes-title", "categories-title", "labelers-title", "length-response-characters-title"} <= set(titles)
    assert "nan" not in found.text.lower() and "None" not in found.text


def test_the_page_does_not_tell_of_directories(tmp_path):
    _, found = make(tmp_path, "p.jsonl", [{"prompt": "p"}])
    assert str(tmp_path) not in found.text and "p.jsonl" in found.text


def test_every_kind_has_a_page(tmp_path):
    kinds = {
        "demonstration": {"prompt": "p", "completion": "c"},
        "prompt": {"prompt": "p"},
        "rating": {"prompt": "p", "response": "r", "score": 3},
        "text": {"text": "t", "source": SCRIPT, "weight": 2.0},
        "ranking": {"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]},
    }
    for kind, row in kinds.items():
        html, found = make(tmp_path, f"{kind}.jsonl", [row])
        assert f"1 {kind} " in found.text, kind
        assert html == make(tmp_path, f"{kind}.jsonl", [row])[0]
    (tmp_path / "bad.jsonl").write_text("{\n")
    page.write_page(statistics([str(tmp_path / "bad.jsonl")], kind="text"), tmp_path / "bad.html")
    assert "1 of 1 rows are left out" in Page((tmp_path / "bad.html").read_text(encoding="utf-8")).text


def test_where_it_cannot_be_written(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
    found = statistics([str(tmp_path / "p.jsonl")])
    with pytest.raises(DataError, match=r"p\.jsonl: cannot be written"):
        page.write_page(found, tmp_path / "p.jsonl" / "stats.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="/folder: is a directory"):
        page.write_page(found, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "p.jsonl"]
