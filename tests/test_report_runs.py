"""Several runs on one page: what differs, whose line is whose, which answers are the same; and the command."""

import json
import re
from pathlib import Path

import pytest
from html_page import Page
from report_full_run import make_full_run
from report_run import LOGS, RECIPE, SCRIPT, make_run

from rlhf_kit.cli import main
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.report import write_report
from rlhf_kit.report.figures import end_labels, style
from rlhf_kit.report.overlay import overlaid
from rlhf_kit.report.run import read_runs
from rlhf_kit.report.runs import view
from rlhf_kit.report.stages import differing_settings
from rlhf_kit.svg import new_axes


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = make_full_run(folder / "first"), make_full_run(folder / f"second {SCRIPT.split('>')[0]}>", seed=8)
    page = write_report(*runs, out=folder / "both.html")
    html = page.read_text(encoding="utf-8")
    return html, Page(html), json.loads((folder / "both.json").read_text(encoding="utf-8"))


def test_the_page_is_whole_and_says_first_what_differs(two):
    html, page, numbers = two
    assert len(page.ids) == len(set(page.ids)) and page.tags.count("script") == 1
    assert "2 runs side by side" in page.text
    assert "Setting A B ppo.kl_coef 0.05 0.1 seed 7 8" in page.text
    order = [html.index(f'id="{name}"') for name in ("differing", "figures", "wins", "frontier", "answers", "training")]
    assert order == sorted(order)
    assert numbers["differing_settings"] == {"ppo.kl_coef": ["0.05", "0.1"], "seed": ["7", "8"]}
    assert [run["settings"]["seed"] for run in numbers["runs"]] == [7, 8]
    assert re.findall(r'class="differs"><span>(\w+)</span> ([\d.]+)', html) == [("kl_coef", "0.05"), ("kl_coef", "0.1")]


def test_nothing_from_outside_is_markup_and_nothing_is_loaded(two):
    html, page, _ = two
    assert SCRIPT.split(">")[0] + ">" not in html.replace("<script>", "", 1).split("<body>")[1].split("<script>")[0]
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith("#"), (tag, name, value)


def test_what_both_runs_say_is_said_once(two):
    page = two[1]
    assert page.text.count("gave no verdict on 3 comparisons") == 1 and "A, B. The judge “panel" in page.text
    assert "A. first is over-optimised" in page.text and "B. second" in page.text


def test_policies_that_answered_the_same_share_a_column(two):
    html, page, _ = two
    heads = re.search(r'<table id="answers".*?</thead>', html, re.DOTALL)
    names = re.findall(r'<th scope="col">([^<]+)</th>', heads.group())
    assert [name.split(" &lt;")[0] for name in names] == [
        *("A B · Base", "A B · SFT", "A · PPO", "A B · PPO-ptx", "B · PPO"),
    ]
    assert "Of seed 8." in page.text and 'name="change"' not in html  # which PPO would it be?


def test_curves_lie_over_each_other_and_differ_in_more_than_colour(two):
    ours, theirs = LOGS["ppo"], [{**e, "kl": 2 * e["kl"]} if "kl" in e else e for e in LOGS["ppo"]]
    drawn = {plot.name: plot.svg for plot in overlaid("ppo", [("A", ours), ("B", theirs)])}
    assert "KL from SFT by update: A 0.1 to 2; B 0.2 to 4." in drawn["KL from SFT"]
    letters = [re.findall(r">([AB ]+)</text>", drawn[name]) for name in ("KL from SFT", "Entropy")]
    assert sorted(letters[0]) == ["A", "B"] and letters[1] == ["A B"]  # the same curve has both letters
    assert "stroke-dasharray" in drawn["KL from SFT"]
    styles = [(style(place).line, style(place).marker) for place in range(15)]
    assert len(set(map(str, styles))) == 15


def test_letters_at_the_ends_of_lines_do_not_overlap():
    _, axes = new_axes(3, 2)
    axes.set_ylim(0, 1)
    end_labels(axes, [(letter, 0.5 + 0.001 * place) for place, letter in enumerate("ABCDE")])
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert [letter for letter, _ in sorted(heights.items(), key=lambda item: item[1])] == list("ABCDE")
    gaps = [b - a for a, b in zip(sorted(heights.values()), sorted(heights.values())[1:], strict=False)]
    assert min(gaps) > 0.1 and max(heights.values()) <= 1 + 1e-9


def test_settings_and_data_that_differ():
    other = {**RECIPE, "lora": {**RECIPE["lora"], "r": 8}, "output_dir": "elsewhere"}
    del other["seed"]
    found = differing_settings([RECIPE, other], [{"sft.demonstrations": "aaaa"}, {"sft.demonstrations": "bbbb"}])
    assert found == {"lora.r": ["16", "8"], "seed": ["7", "–"], "data of sft.demonstrations": ["aaaa", "bbbb"]}
    assert differing_settings([RECIPE, RECIPE], [{}, {}]) == {}


def test_runs_of_unlike_stages_and_without_evaluations_stand_side_by_side(tmp_path):
    runs = (
        make_run(tmp_path / "a" / "run", stages=("sft",), metrics=None, with_evaluation=False),
        make_run(tmp_path / "b" / "run"),
        make_full_run(tmp_path / "c"),
    )
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run", "c"]
    page = Page(write_report(*runs, out=tmp_path / "three.html").read_text(encoding="utf-8"))
    assert "A a/run" in re.sub(r"The line of \w", "", page.text).replace("  ", " ")
    for words in ("None", "Undefined"):
        assert words not in page.text


def test_all_that_is_wrong_with_the_runs_is_said_at_once(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as caught:
        write_report(run, tmp_path / "empty", tmp_path / "run" / ".." / "run", out=tmp_path / "page.html")
    assert "no finished stage" in str(caught.value) and "named twice" in str(caught.value)
    with pytest.raises(CheckpointError, match="damaged"):
        (run / "evaluation" / "evaluation.json").write_text("[]")
        write_report(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]


def test_the_command(tmp_path, monkeypatch, capsys):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one"]) == 0
    assert capsys.readouterr().out == "one/report.html\n" and (one / "report.json").is_file()
    assert main(["report", "one", str(other)]) == 0
    assert capsys.readouterr().out == "report.html\n" and (tmp_path / "report.json").is_file()
    assert main(["report", "one", "--out", "page.htm"]) == 0
    assert (tmp_path / "page.json").is_file()
    assert main(["report", "gone", "lost"]) == 2
    assert capsys.readouterr().err == "".join(
        f"{name}: no such directory; name the output_dir of a run\n" for name in ("gone", "lost")
    )
    assert (
        main(["report", "one", "--out", "page.json"]) == 2 and main(["report", "one", "--out", "page.htm/a.html"]) == 2
    )
    said = capsys.readouterr().err.splitlines()
    assert "name an HTML file" in said[0] and "cannot be written" in said[1]
    with pytest.raises(RlhfKitError, match="name an HTML file"):
        write_report(one, out=other)


def test_a_runs_checkpoints_have_its_letter_and_style_whoever_evaluated_them(tmp_path):
    """The first run's evaluation has the second's checkpoints as well; the second has only its log."""
    first, second = make_full_run(tmp_path / "first"), make_run(tmp_path / "second")
    path = first / "policies" / "evaluation.json"
    judged = json.loads(path.read_text())
    judged["frontier"].insert(0, {**judged["frontier"][0], "run": "second"})
    path.write_text(json.dumps(judged))
    shown = view(read_runs([first, second]))
    assert [letter for letter, _ in shown["frontier_words"]] == ["A, B"]
    assert "update 3" in shown["frontier"][0].svg and "rollouts" not in " ".join(p.name for p in shown["frontier"])
    dashed = re.findall(
        r'style="fill: none; stroke-dasharray: [^;]+; stroke-dashoffset: 0; stroke: ([^;"]+)', shown["frontier"][0].svg
    )
    turned = view(read_runs([second, first]))  # the log is read first, and still the checkpoints are drawn
    assert [plot.name for plot in turned["frontier"]] == [plot.name for plot in shown["frontier"]]
    assert "var(--ink)" in dashed  # B's line, though the evaluation has it first


# -------------------------------------------------------------------- docs/report.md


DOCS = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")


def test_the_documented_keys_are_those_of_the_json(two):
    rows = re.findall(r"^\| (`[^|]+`) \|", DOCS[DOCS.index("## report.json") :], re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    numbers = two[2]
    assert told == set(numbers) | {key for run in numbers["runs"] for key in run}
    figures = set(re.findall(r"`(\w+)`", re.search(r"^\| `figures` \|.*$", DOCS, re.MULTILINE).group())) - {"figures"}
    assert figures == {key for key in numbers["runs"][0]["figures"] if "." not in key}


def test_the_documented_commands_write_what_they_say(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "runs" / "mine")
    make_run(tmp_path / "runs" / "other")
    monkeypatch.chdir(tmp_path)
    commands = re.search(r"```bash\n(.*?)```", DOCS, re.DOTALL).group(1).splitlines()
    for command in commands:
        assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out.split() == ["runs/mine/report.html", "both.html"]
    assert (tmp_path / "both.json").is_file() and (tmp_path / "runs" / "mine" / "report.json").is_file()
