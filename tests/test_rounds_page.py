"""The page of a history of rounds: its figures are the history's, and it says where another round gains nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from html_page import Page, check_page

from rlhf_kit.rounds.history import History, Row
from rlhf_kit.rounds.page import write_page


def span(value, width=0.05):
    return {"value": value, "low": value - width, "high": value + width}


START = Row(0, span(900, 20), None, None, None, 25.0, 0, 0, 0.0, None, {}, {})
FIRST = Row(
    1, span(1000, 20), span(0.61), span(0.61), span(4.4, 0.4), 22.4, 96, 976, 0.0, span(0.794), {2: span(0.737)}, {}
)
SECOND = Row(
    2, span(1100, 20), span(0.731), span(0.649), span(6.4, 0.4), 22.1, 90, 700, 1830.0, span(0.877), {}, {"ppo": 120.0}
)
SOUND = History("<b>rubric</b>", 96, (START, FIRST, SECOND))


def page_of(found, path):
    return Page(write_page(found, "<i>mine</i>", path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return page_of(SOUND, tmp_path_factory.mktemp("page") / "rounds.html")


def test_the_page_is_well_formed_and_loads_and_runs_nothing(whole):
    check_page(whole)
    assert "<i>" not in whole.html and "<b>rubric" not in whole.html


@pytest.mark.parametrize(
    "words",
    [
        "The rounds of <i>mine</i> 2 rounds compared by <b>rubric</b>",
        "Beats the start 73.1 % of the time 68.1 % to 78.1 %",
        "Beats the round before 64.9 % of the time 59.9 % to 69.9 %",
        "Gone from the start 6.4 nats 6.0 to 6.8",
        "Labels 186 rankings 30 minutes of people's time.",  # 96 + 90, 1,830 seconds
        "start 900 (880 to 920) – – – 25.0",
        "2 1100 (1080 to 1120) 73.1% (68.1% to 78.1%) 64.9% (59.9% to 69.9%) 6.40 (6.00 to 6.80) 22.1",
        "1 96 (976) 79.4% (74.4% to 84.4%) 73.7% (68.7% to 78.7%) – –",
        "2 90 (700) 87.7% (82.7% to 92.7%) – 2.0 30.5",
    ],
)
def test_its_figures_are_the_historys(whole, words):
    assert words in whole.text


def test_each_plot_says_its_figures_in_words(whole):
    said = [value for _, name, value in whole.attributes if name == "aria-label"]
    titles = " ".join(said) + whole.html
    for words in (
        "1: 61.0% (56.0% to 66.0%); 2: 73.1%",
        "1: 4.40 (4.00 to 4.80); 2: 6.40",
        "1: 73.7% (68.7% to 78.7%)",
    ):
        assert words in titles


def test_where_all_is_well_nothing_is_noted(whole):
    assert "Before you believe this" not in whole.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            (START, FIRST, replace(SECOND, over_before=span(0.53))),
            "Round 2 is not surely better than round 1: it wins 53.0 %.",
        ),
        ((START, FIRST, replace(SECOND, kl=span(12.3, 1.0))), "Round 2 is 12.3 nats a response from the start."),
        (
            (START, replace(FIRST, reward_fresh={2: span(0.54)}), SECOND),
            "The reward model of round 1 is no better than a coin on the next round's labels",
        ),
    ],
)
def test_what_a_reader_must_know_comes_first(tmp_path, rows, words):
    text = page_of(replace(SOUND, rows=rows), tmp_path / "rounds.html").text
    assert words in text and text.index("Before you believe this") < text.index("In pictures Wins over")


def test_one_round_has_no_round_before_to_beat(tmp_path):
    text = page_of(replace(SOUND, rows=(START, FIRST)), tmp_path / "rounds.html").text
    assert "1 round compared" in text and "Beats the start 61.0 %" in text and "Beats the round before" not in text
