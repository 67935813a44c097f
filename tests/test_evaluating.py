"""An evaluation from answers to figures: by hand, and against the functions that it is made of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_kit.evaluation.answering import Said
from rlhf_kit.evaluation.evaluated import Evaluated
from rlhf_kit.evaluation.frontier import Point, frontier, frontiers
from rlhf_kit.evaluation.gain import gain_in_words, summary
from rlhf_kit.evaluation.judges.base import Judgement
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.evaluation.results import to_json
from rlhf_kit.evaluation.standings import standings
from rlhf_kit.measures import bootstrap_mean, explain_gain, win_rate
from rlhf_kit.recipe import ModelSection
from rlhf_kit.records import Message, Prompt
from rlhf_kit.sampling.drawing import Settings
from rlhf_kit.tournament import Resamples, Verdicts

MODEL = ModelSection(name_or_path="tiny/tiny", dtype="float32")
RNG = np.random.default_rng(0)


class Judged:
    """A judge of which only the names are asked."""

    def __init__(self, name: str) -> None:
        self.name, self.kind, self.what = name, "function", f"the judge {name}"


def policy(name: str, stage: str, tmp: Path, step: int | None = None, updates: int | None = None) -> Policy:
    """With an adapter whose content is its name."""
    adapter = None
    if stage != "base":
        adapter = tmp / name
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_model.safetensors").write_text(name)
        (adapter / "adapter_config.json").write_text(json.dumps({"r": name}))
    held = tmp / "sft" if stage == "ppo" else None
    return Policy(name, name.upper(), MODEL, adapter, 64, tmp, stage, step, updates, held)


def said(text: str, kl: float | None = None) -> Said:
    return Said(text, text.endswith("."), tuple(range(len(text.split()) + 1)), kl)


def evaluated(tmp: Path, scores: dict[str, np.ndarray], **changes: Any) -> Evaluated:
    """Four prompts, two answers each of base, SFT and PPO."""
    policies = [policy("base", "base", tmp), policy("sft", "sft", tmp), policy("ppo", "ppo", tmp, updates=8)]
    prompts = [Prompt(prompt=f"question {i}") for i in range(3)]
    prompts.append(Prompt(prompt=(Message(role="user", content="<b>last</b>"),)))
    answers = {
        "base": [[said("a b c"), said("a b.")] for _ in prompts],
        "sft": [[said("d e."), said("d e f.")] for _ in prompts],
        "ppo": [[said("g.", 0.5 + i), said("g h.", 1.5 + i)] for i in range(4)],
    }
    judgements = {name: Judgement(Verdicts.of_scores(found), found) for name, found in scores.items()}
    made = Evaluated(
        policies,
        prompts,
        "heldout.jsonl",
        Settings(k=2, temperature=0.8, max_new_tokens=8, seed=1),
        answers,
        [Judged(name) for name in scores],
        judgements,
        Resamples.draw(4, resamples=500),
    )
    return replace(made, **changes)


# -------------------------------------------------------------------- figures


def test_the_figures_are_those_of_the_scores(tmp_path: Path) -> None:
    reward, rubric = RNG.normal(size=(4, 3, 2)), RNG.integers(0, 3, size=(4, 3, 2)).astype(float)
    found = to_json(evaluated(tmp_path, {"reward": reward, "rubric": rubric}))
    assert found["policies"] == ["base", "sft", "ppo"] and found["checkpoints"] == []
    assert [judge["name"] for judge in found["judges"]] == ["reward", "rubric"]
    rates = found["judges"][1]["win_rates"]
    by_hand = [win_rate(rubric[p, 2], rubric[p, 1]) for p in range(4)]
    assert rates["ppo"]["sft"]["value"] == pytest.approx(np.mean(by_hand))
    assert rates["ppo"]["sft"]["prompts"] == 4 and "ppo" not in rates["ppo"]
    assert found["judges"][0]["scores"]["sft"]["value"] == pytest.approx(reward[:, 1].mean())
    assert found["summary"]["ppo"]["score"] == pytest.approx(reward[:, 2].mean())
    assert found["kl"] == {"ppo": found["kl"]["ppo"]} and found["kl"]["ppo"]["value"] == pytest.approx(2.5)
    spread = reward[:, 1].std()
    assert found["reward_gain"]["value"] == pytest.approx((reward[:, 2].mean() - reward[:, 1].mean()) / spread)
    assert found["samples_per_prompt"] == 2 and found["temperature"] == 0.8 and found["confidence"] == 0.95


def test_every_answer_stands_beside_what_was_said_of_it(tmp_path: Path) -> None:
    reward, other = RNG.normal(size=(4, 3, 2)), RNG.normal(size=(4, 3, 2))
    found = to_json(evaluated(tmp_path, {"reward": reward, "other": other}))["prompts"]
    assert found[0]["prompt"] == "question 0"
    assert found[3]["prompt"] == [{"role": "user", "content": "<b>last</b>"}]
    answer = found[2]["answers"]["ppo"][1]
    assert answer == {
        "text": "g h.",
        "ended": True,
        "tokens": 3,
        "score": reward[2, 2, 1],
        "rubric": None,
        "kl": 3.5,
        "scores": {"other": other[2, 2, 1]},
    }


def test_without_judges_that_score_nothing_is_made_up(tmp_path: Path) -> None:
    rows = [(p, 0, 1, 0, 0, 0.0, 0.0) for p in range(4)]
    compared = Judgement(Verdicts.of_rows(rows), missing=2)
    one = evaluated(tmp_path, {}, judges=[Judged("people")], judgements={"people": compared})
    found = to_json(one)
    judge = found["judges"][0]
    assert judge["scores"] is None and judge["missing"] == 2
    assert judge["win_rates"]["sft"]["base"]["value"] == 1 and judge["win_rates"]["ppo"] == {}
    assert judge["bradley_terry"].keys() == judge["elo"].keys() == {"base", "sft"}
    assert judge["position"]["first_preferred"]["value"] == 0.5
    assert found["reward_gain"] is None and found["gain"] == {} and found["frontier"] == []


def test_flags_are_counted_where_a_judge_gives_them() -> None:
    flags = {"truthful": np.array([[1.0, 0.5], [0.0, np.nan]])}
    judgement = Judgement(Verdicts.of_rows([(0, 0, 1, 0, 0, 1, 1)]), flags=flags)
    found = standings(Judged("x"), judgement, ["a", "b"], np.ones((2, 2, 1)), Resamples.draw(2), 0)
    assert found["flags"]["a"]["truthful"]["yes"] == 1 and found["flags"]["a"]["truthful"]["of"] == 2
    assert found["flags"]["b"]["truthful"]["of"] == 1 and found["flags"]["b"]["truthful"]["rate"]["value"] == 0.5


def test_policies_behind_the_named_ones_are_left_out_of_a_tournament() -> None:
    scores = RNG.normal(size=(6, 4, 2))
    lengths, draws = np.ones((6, 4, 2)), Resamples.draw(6)
    whole = Judgement(Verdicts.of_scores(scores), scores)
    part = Judgement(Verdicts.of_scores(scores[:, :3]), scores[:, :3])
    names = ["a", "b", "c"]
    assert standings(Judged("x"), whole, names, lengths, draws, 0) == standings(
        Judged("x"), part, names, lengths[:, :3], draws, 0
    )


def test_the_gain_is_split_as_the_measures_split_it() -> None:
    before = [[said("a b c."), said("a b")], [said("a."), said("a b c d")]]
    after = [[said("a b c d e."), said("a b.")], [said("a b."), said("a b c d.")]]
    scores = np.array([[0.1, -0.4], [0.9, 0.2]]), np.array([[1.0, 0.7], [1.2, 0.8]])
    found = gain_in_words(before, after, scores)

    def features(rows: Any) -> dict[str, list[list[float]]]:
        flat = [answer for row in rows for answer in row]
        return {"length": [[a.tokens, a.tokens**2] for a in flat], "ended": [[float(a.ended)] for a in flat]}

    expected = explain_gain((features(before), scores[0].ravel()), (features(after), scores[1].ravel()))
    assert found["parts"] == pytest.approx(expected)
    assert "rose by" in found["words"][0]
    rows = summary({"x": before}, {"reward": {"x": scores[0]}})["x"]
    assert rows == {
        "reward": pytest.approx(0.2),
        "tokens": pytest.approx((4 + 3 + 2 + 5) / 4),
        "eos_rate": 0.5,
        "sentences": 0.5,
        "distinct": 1.0,
    }


# -------------------------------------------------------------------- the frontier


def point(step: int, reward: float, rubric: float, prompts: int = 40) -> Point:
    noise = np.random.default_rng(0).normal(0, 0.5, prompts)
    scores = {"reward": noise + reward, "rubric": noise + rubric + RNG.normal(0, 0.05, prompts)}
    return Point(f"ppo@{step}", step, np.full(prompts, step / 4), scores)


DRAWS = Resamples.draw(40)


def test_over_optimisation_is_found_where_the_gold_falls_and_the_proxy_rises() -> None:
    points = [point(0, 0, 0), point(12, 1.2, 0.2), point(4, 0.5, 0.5), point(8, 1.0, 0.9)]
    found = frontier("run", points, "reward", "rubric", DRAWS)
    assert [one["step"] for one in found["points"]] == [0, 4, 8, 12]
    turn = found["over_optimised"]
    assert (turn["step"], turn["kl"], turn["proxy"], turn["gold"]) == (8, 2.0, "reward", "rubric")
    assert turn["change"]["value"] == pytest.approx(-0.7, abs=0.05) and turn["change"]["high"] < 0
    assert found["words"].startswith("Over-optimisation begins after update 8, at 2.0 nats")
    kl = found["points"][2]["kl"]
    assert kl == bootstrap_mean(points[3].kl).as_dict()


def test_a_fall_of_both_is_no_over_optimisation_and_neither_is_a_fall_that_may_be_chance() -> None:
    both = frontier("run", [point(0, 0, 0), point(4, 1, 1), point(8, 0.2, 0.2)], "reward", "rubric", DRAWS)
    assert both["over_optimised"] is None
    little = [point(0, 0, 0), point(4, 1, 1), point(8, 1.1, 0.999)]
    found = frontier("run", little, "reward", "rubric", DRAWS)
    assert found["over_optimised"] is None and "No over-optimisation up to 2.0 nats" in found["words"]


def test_a_frontier_says_what_it_lacks() -> None:
    alone = frontier("run", [point(0, 0, 0), point(4, 1, 1), point(8, 1, 1)], "reward", None, DRAWS)
    assert "two judges" in alone["words"] and alone["over_optimised"] is None
    assert "Too few checkpoints" in frontier("run", [point(0, 0, 0)], "reward", "rubric", DRAWS)["words"]


def test_a_frontier_goes_from_where_ppo_started_over_its_checkpoints(tmp_path: Path) -> None:
    """The last checkpoint is the stage's own adapter: it comes once."""
    scores = RNG.normal(size=(4, 5, 2))
    one = evaluated(tmp_path, {"rubric": scores, "reward": scores})
    last = replace(policy("ppo@8", "ppo", tmp_path, 8, 8), adapter=tmp_path / "ppo")
    more = [policy("ppo@4", "ppo", tmp_path, 4, 4), last]
    answers = {**one.answers, "ppo@4": one.answers["ppo"], "ppo@8": one.answers["ppo"]}
    (found,) = frontiers(replace(one, policies=[*one.policies, *more], answers=answers))
    assert [(p["policy"], p["step"]) for p in found["points"]] == [("sft", 0), ("ppo@4", 4), ("ppo@8", 8)]
    assert found["points"][0]["kl"]["value"] == 0 and found["points"][1]["kl"]["value"] == pytest.approx(2.5)
    assert found["points"][1]["scores"]["rubric"]["value"] == pytest.approx(scores[:, 3].mean())
    assert found["run"] == tmp_path.name
    named = [replace(p, name="tuned", label="Tuned") if p.name == "ppo" else p for p in one.policies]
    (found,) = frontiers(replace(one, policies=[*named, *more], answers={**answers, "tuned": answers["ppo"]}))
    assert found["run"] == "Tuned"
    assert frontiers(one) == [], "without checkpoints there is no curve"


def test_nothing_that_is_written_is_no_number(tmp_path: Path) -> None:
    found = to_json(evaluated(tmp_path, {"reward": RNG.normal(size=(4, 3, 2))}))

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [number for one in value for number in numbers(one)]
        return [value] if isinstance(value, float) else []

    assert len(numbers(found)) > 100 and all(math.isfinite(number) for number in numbers(found))
