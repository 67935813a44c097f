"""The page and the numbers of an evaluation that has everything; and what must be read before it is believed."""

import copy
import json
import math
import re

import pytest
from html_page import Page
from report_full_run import JUDGE, estimate, full_evaluation, make_full_run
from report_run import LOGS, LONG_WORD, METRICS, SCRIPT, evaluation, make_run

from rlhf_kit.report import write_report
from rlhf_kit.report.evaluation import Span, span
from rlhf_kit.report.frontier import frontier_plots, frontiers
from rlhf_kit.report.lead import questions
from rlhf_kit.report.page import tax_plots, wins_figure
from rlhf_kit.report.run import read_run
from rlhf_kit.report.warnings import evaluation_warnings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    page = write_report(make_full_run(tmp_path_factory.mktemp("full") / "run"))
    html = page.read_text(encoding="utf-8")
    return html, Page(html), json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


def test_better_at_what_and_the_cost_stand_first(whole):
    """69 % is the logistic function of 0.8, the difference of the fixture's strengths."""
    html, page, _ = whole
    assert round(100 / (1 + math.exp(-0.8))) == 69
    for words in (
        *("Did it get better? Yes PPO beats SFT 69 % by “reward” (65 % to 73 %)", "At what?", "What did it cost?"),
        *(
            "answers that end 87 % to 97 % (change +8 to +12 points)",
            "1.84 nats a response away from its reference (1.64 to 2.04)",
        ),
        *("text_heldout.jsonl: +0.200 nats a token (+0.150 to +0.250), lost.", "Over-optimised after update 9."),
    ):
        assert words in page.text, words
    order = [html.index(f'aria-label="{name}"') for name in ("In short", "The figures")]
    order += [html.index(f'id="{name}"') for name in ("warnings", "wins", "gain", "frontier", "tax", "answers-heading")]
    assert order == sorted(order)


def test_every_part_of_the_evaluation_is_shown(whole):
    html, page, _ = whole
    for words in (
        *("win rate against SFT at equal length Bradley–Terry, log-odds Elo score", "1000 970 to 1030"),
        *(
            "the function mine.py:grade of reward",
            "Win rates, row against column",
            "The same between answers of equal length, row against column",
        ),
        "the answer shown first wins 62 % (58 % to 66 %) (50 % would be no bias); both orders give the same verdict in",
        *("80 of 96 83 % (79 % to 87 %)", "distinct pairs of words 0.93 0.91 to 0.95", "self-BLEU", "refusals"),
        *(
            "reward (the proxy that is optimised)",
            "(the gold judge)",
            "Loss on other text.",
            "Right answers elsewhere.",
        ),
        *("3.200 +0.200 (+0.150 to +0.250)", "60.0 % −2.0 (−5.0 to +1.0)", "arc_easy, acc (points)"),
        *("How far to trust the reward model", "Expected calibration error 0.030", "Reliability."),
    ):
        assert words in page.text, words
    assert "update 9 0.9 (0.8 to 1) at 2.7 nats" in html and "over-optimised after update 9" in html


def test_names_and_words_from_outside_are_text(whole):
    """Labels, judges, flags, files of the tax and the frontier's words would be markup."""
    html, page, _ = whole
    assert page.tags.count("script") == 1 and "<img" not in html and SCRIPT not in html and "/home/someone" not in html
    assert f"It turns, says {SCRIPT}." in page.text and f"folded {SCRIPT}" in page.text
    assert len(page.ids) == len(set(page.ids))
    assert "panel &lt;script&gt;" in html


def test_what_must_be_known_first_is_said(whole):
    warned = whole[0][whole[0].index('id="warnings"') : whole[0].index('id="health"')]
    words = Page(f"<ul>{warned[warned.index('<li>') : warned.rindex('</li>')]}</li></ul>").text.replace("\xa0", " ")
    for sentence in (
        "run is over-optimised after update 9, at 2.7 nats a response: from there on",
        "gave no verdict on 3 comparisons",
        "prefers the answer that it is shown first, whatever it says: 62 % of its verdicts",
        "beats SFT by “reward” (57 %) only by the length of its answers: between answers of equal length it is 52 %",
        "less varied than those of SFT: distinct pairs of words 0.92 to 0.71 (change −0.23 to −0.19); self-BLEU 0.13",
        "PPO refuses 30 % of the prompts (28 % to 32 %); SFT refused 10 %.",
        "text_heldout.jsonl, compared with Base: SFT +0.100 nats a token (+0.050 to +0.150)",
    ):
        assert sentence in words, sentence


def sound() -> dict:
    """The same evaluation with nothing to warn of."""
    judged = full_evaluation()
    judged["frontier"][0]["over_optimised"] = None
    for judge in judged["judges"]:
        judge["missing"] = 0
        if judge["position"]:
            judge["position"]["first_preferred"] = estimate(0.52)
        for ours in judge["win_rates"].values():
            for rate in ours.values():
                rate["length_controlled"] = {part: rate[part] for part in ("value", "low", "high")}
    judged["measures"]["ppo"] = copy.deepcopy(judged["measures"]["sft"])
    judged["changes"]["ppo"] = {key: estimate(0.0, 0.02) for key in judged["measures"]["ppo"]}
    judged["changes"]["ptx"] = dict(judged["changes"]["ppo"])
    for changed in judged["tax"]["text"]:
        changed["change"] = {policy: estimate(0.01, 0.02) for policy in changed["change"]}
    return judged


def warned(judged: dict, tmp_path) -> list[str]:
    run = read_run(make_run(tmp_path / "run", judged=judged))
    return evaluation_warnings(run.evaluation, frontiers(run))


def test_a_sound_evaluation_and_an_old_one_have_no_warning(tmp_path):
    assert warned(sound(), tmp_path / "a") == []
    assert warned(evaluation(), tmp_path / "b") == []


@pytest.mark.parametrize(
    "part",
    [
        "missing",
        "first",
        "second",
        "length",
        "variety",
        "variety, unpaired",
        "refusals",
        "refusals, unpaired",
        "text",
        "accuracy",
    ],
)
def test_each_fault_is_said_once(tmp_path, part):
    judged = sound()
    judge = judged["judges"][1]
    measures = judged["measures"]
    if part == "missing":
        judge["missing"] = 1
    elif part in ("first", "second"):
        judge["position"]["first_preferred"] = estimate(0.58 if part == "first" else 0.42)
    elif part == "length":
        judge["win_rates"]["ppo"]["sft"]["length_controlled"] = estimate(0.53)
    elif part.startswith("variety"):
        measures["ppo"]["distinct_1"] = estimate(0.65, 0.02)
        judged["changes"]["ppo"]["distinct_1"] = estimate(-0.05, 0.04)
    elif part.startswith("refusals"):
        measures["ppo"]["refusal_rate"] = estimate(0.2, 0.05)
        judged["changes"]["ppo"]["refusal_rate"] = estimate(0.1, 0.05)
    elif part == "text":
        judged["tax"]["text"][0]["change"]["ppo"] = estimate(0.05, 0.04)
    else:
        judged["tax"]["choices"][0]["change"]["ppo"] = estimate(-0.05, 0.04)
    if part.endswith("unpaired"):  # without the interval of the difference the two intervals must not overlap
        del judged["changes"]
    (said,) = warned(judged, tmp_path)
    words = {
        "missing": "no verdict on 1 comparison;",
        "first": "shown first, whatever it says: 58 %",
        "second": "shown second, whatever it says: 58 %",
        "length": "between answers of equal length it is 53 % (49 % to 57 %)",
        "variety": "distinct words 0.70 to 0.65 (change −0.09 to −0.01)",
        "variety, unpaired": "distinct words 0.70 to 0.65.",
        "refusals": "PPO refuses 20 %",
        "refusals, unpaired": "PPO refuses 20 %",
        "text": "PPO +0.050 nats a token (+0.010 to +0.090)",
        "accuracy": "PPO −5.0 points (−9.0 to −1.0)",
    }
    assert words[part] in said


@pytest.mark.parametrize(
    ("rates", "answer"),
    [
        ((0.6, 0.7), "Yes"),
        ((0.4, 0.3), "No, worse"),
        ((0.51, 0.52), "Not surely"),
        ((0.51, 0.7), "By some judges"),
        ((0.3, 0.7), "The judges disagree"),
        ((0.3, 0.5), "No"),
    ],
)
def test_it_got_better_only_where_the_intervals_say_so(rates, answer):
    judged = full_evaluation()
    for judge, rate in zip(judged["judges"], rates, strict=True):
        judge["win_rates"]["ppo"]["sft"] = estimate(rate)
    assert questions(judged, [])[0].answer == answer


def test_the_old_evaluation_has_none_of_the_new_sections(tmp_path):
    html = write_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    for name in ("wins", "tax"):
        assert f'id="{name}"' not in html
    assert "Did it get better?" not in html and questions(evaluation(), []) == []
    assert wins_figure(evaluation()) is None and tax_plots(evaluation()) == []


def test_what_evaluate_policy_found_goes_before_the_runs_own_step(tmp_path):
    run = make_full_run(tmp_path / "run")
    assert read_run(run).evaluation["policies"] == ["base", "sft", "ppo", "ptx"]
    (run / "policies" / "evaluation.json").unlink()
    assert read_run(run).evaluation["policies"] == ["base", "sft", "ppo"]


# -------------------------------------------------------------------- reward against KL


def test_without_checkpoints_the_frontier_is_of_the_log_and_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    (found,) = frontiers(read_run(run))
    assert (found.source, len(found.points)) == ("rollouts", 20)
    assert (found.points[3].kl, found.points[3].scores["Score of the rollouts"]) == (Span(0.4), Span(0.2))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "From PPO's own log" in page.text and "over-optimisation cannot be seen" in page.text
    log = [{**entry, "eval_kl": 0.1 * entry["step"]} if "eval_score" in entry else entry for entry in LOGS["ppo"]]
    (run / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    (found,) = frontiers(read_run(run))
    assert (found.source, [point.step for point in found.points]) == ("held-out", [5, 10, 15, 20])
    assert found.points[0].scores == {"Held-out score": Span(0.2)}


def test_the_frontier_has_a_plot_a_judge_with_the_proxy_first(tmp_path):
    run = make_full_run(tmp_path / "run")
    drawn = frontier_plots(frontiers(read_run(run)))
    assert [plot.name.split(" (")[-1] for plot in drawn] == ["the proxy that is optimised)", "the gold judge)"]
    # One interval of the score and one of the KL at each of five points, and the line where over-optimisation begins.
    bars = re.findall(r'<path d="M [\d. ]+\s+L [\d. ]+\s*" clip-path', drawn[0].svg)
    assert len(bars) >= 11
    judged = full_evaluation()
    judged["frontier"][0]["over_optimised"] = None
    (run / "policies" / "evaluation.json").write_text(json.dumps(judged))
    still = frontier_plots(frontiers(read_run(run)))
    assert "over-optimised" not in still[0].svg and "Upright" not in still[0].hint


def test_points_that_are_not_numbers_are_left_out(tmp_path):
    run = make_full_run(tmp_path / "run")
    judged = full_evaluation()
    points = judged["frontier"][0]["points"]
    points[0]["kl"] = {"value": float("nan"), "low": 0, "high": 0}
    points[1]["scores"] = {}
    (run / "policies" / "evaluation.json").write_text(json.dumps(judged))
    assert [point.step for point in frontiers(read_run(run))[0].points] == [9, 12, 15]
    assert span({"value": 1, "low": None, "high": 2}) == Span(1.0)
    assert span({"value": "nan"}) is None and span(None) is None


# -------------------------------------------------------------------- report.json


def leaves(value):
    if isinstance(value, dict):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def test_every_number_in_the_tables_of_the_page_is_in_the_json(whole):
    html, _, numbers = whole
    known = set(leaves(numbers))
    cells = re.findall(r"<td>([^<]*)(?:<small>([^<]*)</small>)?</td>", html)
    cells += [(text, "") for text in re.findall(r'<dd class="(?:figure|range)">\s*([^<]+)', html)]
    told = [text for cell in cells for text in cell if text]
    assert len(told) > 150
    for text in told:
        for sign, figure, unit in re.findall(r"([+−]?)(\d[\d,]*\.?\d*)( %| points)?", text.replace("\xa0", " ")):
            places = len(figure.split(".")[1]) if "." in figure else 0
            value = float(figure.replace(",", "")) * (-1 if sign == "−" else 1)
            scales = (100.0,) if unit else (1.0, 100.0)  # the unit may stand in the row's name
            assert any(abs(scale * one - value) <= 0.501 * 10**-places for scale in scales for one in known), text


def test_the_json_has_every_figure_of_the_evaluation_and_the_settings(whole):
    _, _, numbers = whole
    (run,) = numbers["runs"]
    judged = full_evaluation()
    assert [{**one, "what": ""} for one in run["evaluation"]["judges"]] == [{**j, "what": ""} for j in judged["judges"]]
    for key in ("measures", "kl", "summary", "tax", "changes", "checkpoints"):
        assert run["evaluation"][key] == judged[key], key
    assert run["frontier"][0]["points"][2]["scores"]["reward"] == judged["frontier"][0]["points"][2]["scores"]["reward"]
    assert run["frontier"][0]["over_optimised"]["step"] == 9
    assert run["settings"]["ppo"]["kl_coef"] == 0.05 and run["settings"]["seed"] == 7
    assert run["metrics"] == METRICS and run["figures"]["ppo_beats_sft"]["low"] == 0.61
    assert run["figures"][f"win.{JUDGE}.ppo"]["value"] == judged["judges"][1]["win_rates"]["ppo"]["sft"]["value"]
    assert (
        run["curves"]["ppo"]["kl"]["values"][9] == pytest.approx(1.0) and run["curves"]["ppo"]["kl"]["steps"][9] == 10
    )
    assert run["answers"][0]["means"]["ppo"] == {"score": 1.125, "rubric": 8.5}
    assert run["answers"][0]["answers"]["ptx"][1]["scores"] == {"reward": 0.4, JUDGE: 0.125}
    assert [row["change"] for row in run["answers"]] == ["better", "worse", "same"]
    assert run["mean_changes"]["score"] == pytest.approx(0.71) and run["reward_quality"]["calibration"]["error"] == 0.03
    told = json.dumps(numbers)
    assert run["evaluation"]["judges"][0]["what"] == "the function mine.py:grade of reward"
    assert "/home/someone" not in told and "three hearts" not in told and LONG_WORD not in told


def test_what_is_not_finite_is_null_and_half_a_surrogate_is_no_error(tmp_path):
    metrics = copy.deepcopy(METRICS)
    metrics["ppo"]["score_last"] = float("nan")
    metrics["ppo"]["ratio"] = float("inf")
    run = make_run(tmp_path / "run", metrics=metrics)
    judged = evaluation()
    judged["prompts"][0]["prompt"] = "half \ud83d of it"
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(judged))
    text = write_report(run).with_suffix(".json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["runs"][0]
    assert found["metrics"]["ppo"]["score_last"] is None and found["metrics"]["ppo"]["ratio"] is None
    assert found["answers"][0]["prompt"] == "half ? of it"
