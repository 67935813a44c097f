"""The page of a reward model: whole without a network, honest where figures are few, and names on it are text."""

from __future__ import annotations

import json
import re

import pytest
from html_page import Page, check_page
from test_reward_evaluation import Fake, row, write

from rlhf_kit import seen
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.ranked_files import read_rankings
from rlhf_kit.reward_evaluation import evaluate_reward
from rlhf_kit.reward_material import Known, material_of
from rlhf_kit.reward_page import write_page
from rlhf_kit.reward_page_words import reasons, sections
from rlhf_kit.reward_quality import Accuracy, CurvePoint
from rlhf_kit.reward_quality.figures import Reason, Verdict

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"
CURVE = [
    CurvePoint(0.5, 400, 900, Accuracy(0.61, 0.55, 0.67, 36, 24), 60.0),
    CurvePoint(1.0, 800, 1800, Accuracy(0.74, 0.69, 0.79, 36, 24), 120.0),
]
SETTINGS = {
    "base": {"id": "someone/Tiny-Instruct", "dtype": "float32"},
    "lora": {"r": 16, "lora_alpha": 32},
    "reward": {"init": "/home/someone/runs/before", "learning_rate": 2e-4, "axes": {SCRIPT: 1.0}, "lora": None},
    "data": {"rankings": "/home/someone/secret/rankings.jsonl"},
    "seed": 7,
    "trained": {"seconds": 90.0},
}


def rows(prompts, tag="p"):
    """Two labelers of each answer; names that would be markup."""
    for i in range(prompts):
        for labeler in (IMAGE, "$\\frac{1}{2}$"):
            found = row(
                f"{tag}{i}",
                *((1, f"w {'w ' * (i % 5)}{i % 3}"), (2, f"v {i % 2}"), (2 + i % 2, "u u 0")),
                labeler=labeler,
                category=[SCRIPT, "chat"][i % 2],
            )
            for answer, source in zip(found["responses"], (SCRIPT, "b\x1b[31m", "c"), strict=True):
                answer["source"] = source
            yield found


def make(folder, lines, known=None, **options):
    path = write(folder / "rankings.jsonl", lines)
    known = known or Known(frozenset(), frozenset({IMAGE}), settings=SETTINGS)
    material = material_of(read_rankings([path]), known)
    model = Fake(name="/home/someone/runs/mine")
    found = evaluate_reward(model, material, known, bootstrap=100, **options)
    html = write_page(found, folder / "page.html").read_text(encoding="utf-8")
    return found, html, Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    known = Known(
        frozenset(seen.prompt_key(f"t{i}") for i in range(20)), frozenset({IMAGE}), frozenset(), 1.0, SETTINGS
    )
    return make(tmp_path_factory.mktemp("page"), [*rows(24), *rows(20, "t")], known, curve=CURVE)


def test_the_page_is_well_formed_and_loads_and_runs_nothing(whole):
    check_page(whole[2])


def test_what_the_data_say_is_text(whole):
    _, html, page = whole
    for words in (SCRIPT, IMAGE, "$\\frac{1}{2}$"):
        assert words in page.text, words
    assert re.search(r"<text[^>]*>\$\\frac\{1\}\{2\}\$ ", html)  # in a plot, where it is no formula


def test_the_page_does_not_tell_of_directories(whole, tmp_path):
    _, html, page = whole
    assert "/home/someone" not in html and "secret" not in html
    assert "How good is the reward model mine?" in page.text
    found, html, page = make(tmp_path, rows(3))
    assert str(tmp_path) not in html and "rankings.jsonl" in page.text
    assert str(tmp_path) in json.dumps(found.to_json())


def test_the_verdict_stands_first_with_all_its_reasons(whole):
    found, _, page = whole
    verdict = found.quality.verdict
    assert page.text.index("rankings.jsonl") < page.text.index(verdict.reasons[0].text) < page.text.index("Right order")
    for one in verdict.reasons:
        assert one.text in page.text and one.advice in page.text
    assert "44 of 44" not in page.text and "20 of 44 prompts were trained on" in page.text


def test_an_advice_that_several_reasons_give_stands_once():
    one, two, three = Reason("weak", "a.", "Do."), Reason("weak", "b.", "Do."), Reason(None, "c.", "Wait.")
    assert [reason.advice for reason in reasons(Verdict("weak", (one, two, three)))] == ["", "Do.", "Wait."]


def test_the_figures_are_those_of_the_evaluation(whole):
    found, _, page = whole
    quality = found.quality
    value, ends = quality.accuracy.value, quality.accuracy
    assert f"{100 * value:.1f} %" in page.text
    assert f"95 % interval {100 * ends.low:.1f} % to {100 * ends.high:.1f} %" in page.text
    for words in (
        "800",
        "74.0 %",
        "69.0 % to 79.0 %",
        "Tiny-Instruct",
        "learning_rate 0.0002",
        "seed 7",
        "minutes 1.5",
    ):
        assert words in page.text, words
    assert "lora r 16" in page.text and "before" in page.text
    assert "nan" not in page.text.lower().replace("alignment", "") and "None" not in page.text


def test_every_plot_is_there_with_its_figures_in_words(whole):
    found, html, page = whole
    titles = {value for tag, name, value in page.attributes if tag == "svg" and name == "aria-labelledby"}
    wanted = ("accuracy", "reliability", "score-length", "by-length", "learning-curve", "by-gap", "by-category")
    assert {f"{name}-title" for name in (*wanted, "by-labeler", "by-source")} <= titles
    assert "by-k-title" not in titles  # there is one K only
    assert "400 prompts: 61.0 % (55.0 % to 67.0 %); 800 prompts: 74.0 % (69.0 % to 79.0 %)" in page.text
    group = found.quality.by_rank_gap[0]
    assert f"1 place apart {100 * group.accuracy.value:.1f} %" in page.text
    assert len(html) < 400_000


def test_the_plots_are_drawn_to_scale(whole):
    """The ends of an interval and its point lie on one axis from 0 to 100 %: a linear map from shares to places."""
    found, html, _ = whole
    (svg,) = re.findall(r'<svg class="plot"[^>]*aria-labelledby="by-category-title".*?</svg>', html, re.DOTALL)
    lines = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) \2 \n?"[^>]*stroke: var\(--(?:accent|muted)\)', svg)
    ticks = {float(x) for x in re.findall(r'<use xlink:href="#[^"]*" x="([\d.]+)"', svg)}
    left, right = min(ticks), max(ticks)
    drawn = [((float(a) - left) / (right - left), (float(b) - left) / (right - left)) for a, _, b in lines]
    expected = [(one.accuracy.low, one.accuracy.high) for one in found.quality.by_category]
    assert len(drawn) == len(expected) == 2
    for found_ends, ends in zip(drawn, expected, strict=True):
        assert found_ends == pytest.approx(ends, abs=2e-3)


def test_few_figures_make_a_page_too(tmp_path):
    """One prompt, no labeler, no intervals, nothing known."""
    found, _, page = make(tmp_path, [row("p", (1, "a 2"), (2, "b 1"))], Known())
    assert "too few for an interval" in page.text and "Nothing is known" in page.text
    assert found.quality.verdict.word == "weak" and "How it was made" not in page.text
    assert "nan" not in page.text.lower() and "None" not in page.text


def test_long_tables_end_and_say_so(tmp_path):
    many = [row(f"p{i}", (1, "a 2"), (2, "b 1"), labeler=f"labeler {i}") for i in range(60)]
    found, _, page = make(tmp_path, many)
    (table,) = [one for one in sections(found, 50) if one.title == "By labeler"]
    assert len(table.rows) == 50 and "The first 50 of 60; the JSON has all." in table.note
    assert "The first 12 of 60" in page.text and len(found.to_json()["by_labeler"]) == 60


def test_the_same_figures_make_the_same_page(tmp_path):
    assert make(tmp_path, rows(6))[1] == make(tmp_path, rows(6))[1]


def test_where_it_cannot_be_written(tmp_path):
    found, _, _ = make(tmp_path, rows(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(RlhfKitError, match="cannot be written"):
        write_page(found, tmp_path / "file" / "page.html")
    with pytest.raises(RlhfKitError, match="is a directory; name a file"):
        write_page(found, tmp_path)
    assert not list(tmp_path.glob(".*"))
