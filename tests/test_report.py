"""The report page: whole without a network, honest about bad figures, and silent about what the run does not have."""

import copy
import json
import re

import pytest
from html_page import Page, check_page
from report_run import LOGS, LONG_WORD, METRICS, RECIPE, SCRIPT, evaluation, make_run

from rlhf_kit.errors import CheckpointError
from rlhf_kit.report import write_report
from rlhf_kit.report.curves import accuracy_plot, plots
from rlhf_kit.report.words import fixed, percent, plain, warnings


def read(run) -> tuple[str, Page]:
    html = write_report(run).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return read(make_run(tmp_path_factory.mktemp("run")))


def test_the_page_is_well_formed_and_loads_nothing(whole):
    check_page(whole[1], scripts=1)


def test_what_models_wrote_is_text(whole):
    html, page = whole
    assert SCRIPT not in html
    assert SCRIPT in page.text
    assert LONG_WORD in page.text


def test_the_figures_and_the_answers_stand_there(whole):
    _, page = whole
    for words in (
        *(
            "Tiny-Instruct, trained on ranked answers",
            "22 November 2026",
            "+0.71",
            "+0.52 to +0.90",
            "66 %",
            "61 % to 71 %",
        ),
        *(
            "averaged by prompt 75 %",
            "“the answer that ends wins”, gets 60 %",
            "PPO's answers are shorter & end more often.",
        ),
        *("34.1", "27.6", "−6.5", "+10 points", "An octopus has three hearts.", "About tides.", "(an empty answer)"),
        *(
            "demonstrations.jsonl",
            "(3f8a1b22)",
            "96 demonstrations",
            "28 held-out ranked prompts",
            "3.7",
            "total_episodes 320",
        ),
        *("Agreement of the rubric with the labelers' ranks 78 %", "torch 2.9.0", "seed 7"),
    ):
        assert words in page.text, words
    assert "/home/someone" not in page.text


def test_a_sound_run_has_no_warning(whole):
    assert "Read this first" not in whole[1].text


def test_ppo_says_how_its_run_was(whole):
    html, page = whole
    assert "Health Nothing looks wrong: the score went from 0.15 to 0.90 & 95% of the answers end." in page.text
    assert html.index('id="health"') < html.index('id="gain"')


def test_answers_during_ppo_stand_beside_the_references(whole):
    """Of four evaluations the first, one in the middle and the last."""
    html, page = whole
    assert "Prompt Reference Update 5 Update 10 Update 20" in page.text
    assert f"What is rain? Water. score −0.25 Drops, said {SCRIPT} after 5 updates. score 0.50" in page.text
    assert "after 20 updates. score 2.00" in page.text and "after 15 updates" not in page.text
    assert "system Be brief. user And snow?" in page.text
    assert html.count('data-label="Update 20"') == 2


def test_settings_of_ppo_that_are_not_the_defaults_are_shown(whole):
    text = whole[1].text
    for words in ("value shared", "reward_funcs reward, mine.py:brief", "kl_controller adaptive", "stop_on kl 20"):
        assert words in text, words
    assert "kl_estimator" not in text and "kl_target" not in text


def test_curves_of_sources_evaluations_and_a_moving_coefficient():
    log = LOGS["ppo"]
    drawn = {plot.name: plot.svg for plot in plots("ppo", log)}
    for name in ("KL coefficient", "Held-out score", "Held-out win rate", "reward", SCRIPT):
        assert name in drawn, name
    assert "Held-out score by update: 0.2 at 5, 0.8 at 20" in drawn["Held-out score"]
    assert SCRIPT not in drawn[SCRIPT] and 'aria-labelledby="ppo-source-2-title"' in drawn[SCRIPT]
    assert drawn["Held-out score"].count("stroke-dasharray") > drawn["Reward"].count("stroke-dasharray")
    still = [{**entry, "kl_coef": 0.05} for entry in log if "kl_coef" in entry]
    for entry in still:
        del entry[f"rewards/{SCRIPT}"]
    names = {plot.name for plot in plots("ppo", still)}
    assert "KL from SFT" in names and not names & {"KL coefficient", "reward", "Held-out score"}


def test_a_run_without_evaluations_or_a_verdict_has_neither_section(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "ppo" / "samples.jsonl").unlink()
    manifest = json.loads((run / "ppo" / "manifest.json").read_text())
    del manifest["metrics"]["verdict"]
    (run / "ppo" / "manifest.json").write_text(json.dumps(manifest))
    page = read(run)[1]
    assert "Answers during PPO" not in page.text and "Health" not in page.text


def test_the_same_run_makes_the_same_page(tmp_path):
    run = make_run(tmp_path / "run")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert sorted(path.name for path in run.iterdir()) == [
        *("evaluation", "metrics.json", "ppo", "report.html", "report.json", "reward", "sft"),
    ]


def test_what_a_run_does_not_have_is_left_out(tmp_path):
    _, page = read(make_run(tmp_path / "a", stages=("sft",), metrics=None, with_evaluation=False))
    assert "trained on demonstrations" in page.text and "96 demonstrations" in page.text
    for words in ("PPO beats", "Reward", "side by side", "What the gain", "None", "Undefined"):
        assert words not in page.text, words
    _, page = read(make_run(tmp_path / "b", metrics={}, judged={"policies": ["base"], "prompts": []}))
    assert "side by side" not in page.text and "The curves" in page.text
    (tmp_path / "b" / "ppo" / "metrics.jsonl").unlink()
    _, page = read(tmp_path / "b")
    assert "Explained variance." not in page.text


def test_without_a_rubric_the_scores_decide(tmp_path):
    judged = evaluation()
    judged["rubric_name"] = None
    for item in judged["prompts"]:
        for answers in item["answers"].values():
            for answer in answers:
                answer["rubric"] = None
    for figures in judged["summary"].values():
        figures["rubric"] = None
    html, page = read(make_run(tmp_path / "run", judged=judged))
    assert re.findall(r'data-change="(\w*)"', html) == ["better", "worse", "same"]
    assert "rubric 4" not in page.text and "None" not in page.text


def test_half_a_surrogate_pair_does_not_cost_the_page(tmp_path):
    judged = evaluation()
    judged["prompts"][0]["answers"]["ppo"][0]["text"] = "half \ud83d of it"
    assert "half ? of it" in read(make_run(tmp_path / "run", judged=judged))[1].text


def test_a_directory_without_a_finished_stage_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no finished stage"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def changed(stage: str, **figures) -> dict:
    metrics = copy.deepcopy(METRICS)
    metrics[stage].update(figures)
    return metrics


def span(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (changed("reward", baseline_accuracy={"shorter": 0.69, "ended": 0.5}), "“the shorter answer wins” gets 69 %"),
        (changed("reward", baseline_accuracy={}, heldout_accuracy_by_prompt=span(0.55, 0.48, 0.62)), "a coin"),
        (changed("ppo", heldout_reward_gain_interval=span(0.1, -0.1, 0.3)), "includes 0"),
        (changed("ppo", heldout_reward_gain_interval=span(-0.2, -0.3, -0.1)), "lowered the reward"),
        (changed("ppo", win_rate_vs_sft_interval=span(0.52, 0.5, 0.58)), "PPO's win rate against SFT includes 50 %"),
        (changed("ppo", win_rate_vs_sft_interval=span(0.4, 0.35, 0.45)), "PPO loses to SFT"),
        (changed("sft", win_rate_vs_base_interval=span(0.52, 0.46, 0.58)), "SFT's win rate against the base model"),
        (changed("ppo", kl=10.1), "10.1 nats"),
        (changed("ppo", explained_variance=0.0), "explains nothing"),
        (changed("ppo", score_last=float("nan")), "ppo.score_last"),
    ],
)
def test_each_bad_figure_is_said_once(metrics, words):
    found = warnings(metrics, evaluation()["summary"], [])
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    "metrics",
    [METRICS, {}, {"ppo": {}}, changed("ppo", kl=10.0), changed("reward", baseline_accuracy={"shorter": 0.68})],
)
def test_good_or_missing_figures_raise_no_warning(metrics):
    assert warnings(metrics, evaluation()["summary"], []) == []
    assert warnings(metrics, {}, []) == []


def test_a_reward_that_rises_while_endings_fall_is_said():
    summary = {"sft": {"score": 0.0, "eos_rate": 0.9}, "ppo": {"score": 0.5, "eos_rate": 0.8}}
    assert "(90 % before, 80 % after)" in warnings({}, summary, [])[0]
    assert warnings({}, {**summary, "ppo": {"score": -0.5, "eos_rate": 0.8}}, []) == []
    assert warnings({}, {**summary, "ppo": {"score": 0.5, "eos_rate": 0.89}}, []) == []
    curve = [{"score": i, "eos_rate": 1 - 0.05 * i} for i in range(8)]
    assert len(warnings({}, {}, curve)) == 1
    assert warnings({}, summary | {"ppo": {"score": 0.5, "eos_rate": 0.95}}, curve) == []  # what was evaluated counts


def test_a_warning_reaches_the_page(tmp_path):
    page = read(make_run(tmp_path / "run", metrics=changed("ppo", kl=14.2)))[1]
    assert "Read this first" in page.text and "14.2 nats" in page.text


def test_curves_skip_what_is_not_a_number_and_thin_out_long_logs():
    log = [{"step": i, "loss": "nan" if i % 2 else str(2.0 - i / 1e5)} for i in range(20_000)]
    (plot,) = plots("sft", log)
    assert "2 at" in plot.svg and len(plot.svg) < 40_000
    assert plots("sft", log[:2]) == []
    assert plots("ppo", []) == []


def test_the_accuracy_plot_tells_its_figures_to_a_screen_reader():
    plot = accuracy_plot(METRICS["reward"])
    assert plot is not None
    assert "reward model 74 %; the shorter answer wins 58 %" in plot.svg
    assert accuracy_plot({}) is None
    assert "#a1b0" not in plot.svg and "var(--accent)" in plot.svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (0.0, "0"),
            (-1.5, "−1.5"),
            (8.0, "8"),
            (1234.0, "1,234"),
            (12.345, "12.3"),
            (3e-4, "0.0003"),
            (1e-5, "1e-5"),
        ],
        *[(None, "–"), (True, "–"), (float("nan"), "not a number"), ("0.25", "0.25"), (0.05, "0.05"), (2e6, "2e6")],
    ],
)
def test_numbers_are_written_for_reading(value, text):
    assert plain(value) == text


def test_signs_stand_where_a_change_is_meant():
    assert (fixed(0.714, signed=True), fixed(-0.001, signed=True), fixed(-1)) == ("+0.71", "0.00", "−1.00")
    assert (percent(0.1, signed=True), percent(-0.04, signed=True), percent(0.666)) == (
        "+10 points",
        "−4 points",
        "67 %",
    )


def test_the_recipe_of_the_fixture_is_one_that_the_kit_accepts():
    from rlhf_kit.recipe import Recipe

    Recipe.model_validate({**RECIPE, "model": {**RECIPE["model"], "sha256": "0" * 64}})
