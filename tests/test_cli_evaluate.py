"""`rlhf-kit evaluate reward` as it is typed, on a run that was never trained and on one that is."""

from __future__ import annotations

import json

import pytest
from backbones import base_of_type, tiny_directory
from test_reward_evaluation import make_run, row, write
from tiny import make_tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from rlhf_kit.cli import main
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.ranked_files import read_rankings


def evaluate(*words):
    return main(["evaluate", "reward", *map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and its rankings of twelve prompts, of which it was trained on four."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        row(f"p{i}", (1, "Paris is the capital."), (2, "No."), (3, "I do not know, sorry."), labeler="anna[red]")
        for i in range(12)
    ]
    path = write(folder / "rankings.jsonl", rows)
    reward = {"init": "base", "learning_rate": 1e-3, "max_length": 64}
    return make_run(folder / "run", path, read_rankings([path]).records[:4], reward=reward)


@pytest.fixture
def rankings(place):
    return place.parent / "rankings.jsonl"


def test_figures_as_tables(place, rankings, capsys):
    assert evaluate(place, rankings) == 0
    said = capsys.readouterr()
    text = " ".join(said.out.split())
    for words in (
        "Beside rules that read nothing",
        "anna[red]",
        "4 of 12 prompts were trained on",
        "pairs",
        "places apart",
    ):
        assert words in text, words
    assert "Weak: not surely good enough" in text and "a verdict needs 100 of 30" in text
    assert "wrote" not in said.err and not list(place.parent.glob("*.html"))


def test_figures_as_json_and_files_only_where_they_were_asked_for(place, rankings, tmp_path, capsys):
    out, page = tmp_path / "new" / "out", tmp_path / "other.html"
    assert evaluate(place, rankings, "--format", "json", "--out", out, "--html", page) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["counts"]["prompts"], found["prompts_trained_on"], found["memorised"]["training"]["pairs"]) == (
        8,
        4,
        12,
    )
    assert json.loads((out / "reward_quality.json").read_text()) == found
    assert (out / "reward_quality.html").read_text() == page.read_text()
    assert sorted(path.name for path in out.iterdir()) == ["reward_quality.html", "reward_quality.json"]
    assert "! 4 of 12 prompts were trained on" in said.err and f"wrote {out / 'reward_quality.json'}" in said.err


def test_a_model_of_others_is_measured_too_and_what_is_not_known_is_said(rankings, tmp_path, capsys):
    base_of_type("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    model.save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert evaluate(tmp_path / "model", rankings, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["prompts"] == 12 and found["prompts_trained_on"] is None
    assert "Nothing is known" in found["notes"][0]


def test_rows_of_a_foreign_format(place, tmp_path, capsys):
    said = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": said.format(f"q{i}", "Good."), "rejected": said.format(f"q{i}", "Bad.")} for i in range(3)]
    path = write(tmp_path / "hh.jsonl", rows)
    for words in ([], ["--from", "auto"], ["--from", "hh-rlhf", "--schema", "ranking"]):
        assert evaluate(place, path, *words, "--format", "json") == 0
        assert json.loads(capsys.readouterr().out)["sources"][0]["format"] == "hh-rlhf"


def test_the_curve_trains_parts_and_keeps_them(place, rankings, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(place, rankings, "--out", out, "--curve", "0.5,1", "--format", "json") == 0
    first = json.loads(capsys.readouterr().out)["curve"]
    assert [(one["prompts"], one["pairs"]) for one in first] == [(2, 6), (4, 12)]
    assert first[1]["seconds"] == 4.0  # the run itself
    stage = out / "curve" / "0.5" / "reward"
    before = (stage / "manifest.json").stat().st_mtime_ns
    assert evaluate(place, rankings, "--out", out, "--curve", "0.5,1", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["curve"] == first
    assert (stage / "manifest.json").stat().st_mtime_ns == before
    assert "learning-curve-title" in (out / "reward_quality.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}", "{run}/none.jsonl"], "none.jsonl"),
        (["{run}", "{tied}"], "no pair to measure on"),
        (["{run}", "{leaked}"], "every prompt in it was trained on"),
        (["{run}", "{file}", "--curve"], "--curve: name a directory with --out"),
        (["{run}", "{file}", "--schema", "rating"], "--schema rating"),
        (["{run}", "{file}", "--out", "{file}"], "is a file; name a directory"),
        (["{run}", "{file}", "--html", "{run}"], "is a directory; name a file"),
        (["{base}", "{file}", "--curve", "--out", "{run}/new"], "no finished reward stage"),
        (["{run}/nothing", "{file}"], "nothing"),
    ],
)
def test_each_mistake_is_one_line_before_anything_is_scored(words, said, place, rankings, tmp_path, capsys):
    tied = write(tmp_path / "tied.jsonl", [row("t", (1, "a"), (1, "b"))])
    leaked = write(tmp_path / "leaked.jsonl", [row("p1", (1, "a"), (2, "b"))])
    names = {"run": place, "file": rankings, "tied": tied, "leaked": leaked, "base": tiny_directory()}
    capsys.readouterr()
    assert evaluate(*(word.format(**names) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert not (place / "new").exists()


def test_debug_keeps_the_traceback(place):
    with pytest.raises(RlhfKitError, match=r"none\.jsonl"):
        evaluate(place, "none.jsonl", "--debug")


@pytest.mark.parametrize("shares", ["0", "1.5", "x", "0.5,", "nan"])
def test_shares_of_the_curve_that_make_no_sense(shares, place, rankings, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(place, rankings, "--out", tmp_path, "--curve", shares)
    assert "share" in capsys.readouterr().err


def test_without_what_is_to_be_evaluated_the_help_says_so(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate"])
    assert "WHAT" in capsys.readouterr().err
