"""Held-out evaluation of PPO: its figures against separate models and counting by hand."""

import json
from dataclasses import replace

import pytest
import torch
from ppo_trainers import PROMPTS, ROWS, config, separate, tiny_roles, trainer

from rlhf_kit import PPOTrainer, RlhfKitError
from rlhf_kit.rollout import Ending

HELD_OUT = [{"input_ids": ids, "wish": n} for n, ids in enumerate(PROMPTS[2:8])]


def evens(completion_ids, **columns):
    """A reward of few levels, so that there are ties."""
    return [float(sum(token % 2 == 0 for token in ids) // 2) for ids in completion_ids]


def with_held_out(directory, reward_funcs=evens, rows=HELD_OUT, **fields):
    made = config(directory, **fields)
    return PPOTrainer(
        model=tiny_roles(), reward_funcs=reward_funcs, args=made, train_dataset=ROWS, eval_dataset=rows
    )  # fmt: skip


def watched(made):
    """The answers that a trainer samples from now on, in their order."""
    seen, sample = [], made.experience.sample

    def watching(rows, generator, role=None):
        seen.append(sample(rows, generator, role))
        return seen[-1]

    made.experience.sample = watching
    return seen


def test_the_figures_by_hand(tmp_path):
    made = with_held_out(tmp_path, missing_eos_penalty=0.5, length_penalty=0.25, response_length=7)
    answers = watched(made)
    ends = tuple(range(0, 512, 5))  # so many tokens end a response that lengths and endings differ
    made.experience.sampler.sampling = replace(made.experience.sampler.sampling, ending=Ending(ends, 7))
    found = made.evaluate()
    reference, policy = answers
    scores = [
        [n - (0.0 if ids[-1] in ends else 0.5) - 0.25 * len(ids) for n, ids in zip(evens(a), a, strict=True)]
        for a in (policy.completion_ids, reference.completion_ids)
    ]
    wins = [1.0 if p > r else 0.5 if p == r else 0.0 for p, r in zip(*scores, strict=True)]
    assert found["eval_score"] == pytest.approx(sum(scores[0]) / 6)
    assert found["eval_reference_score"] == pytest.approx(sum(scores[1]) / 6)
    assert found["eval_win_rate"] == sum(wins) / 6
    assert found["eval_response_length"] == pytest.approx(sum(map(len, policy.completion_ids)) / 6)
    assert found["eval_eos_rate"] == pytest.approx(sum(ids[-1] in ends for ids in policy.completion_ids) / 6)
    assert found["eval_rewards/evens"] == pytest.approx(sum(evens(policy.completion_ids)) / 6)
    assert len({len(ids) for ids in policy.completion_ids}) > 1

    models = [separate(made, tmp_path, name) for name in ("policy", "sft")]
    kl = 0.0
    for row, response in zip(policy.rows, policy.completion_ids, strict=True):
        with torch.no_grad():
            both = [
                torch.log_softmax(model(input_ids=torch.tensor([row.ids + response])).logits[0].float() / 0.8, -1)
                for model in models
            ]
        for place, token in enumerate(response, len(row.ids) - 1):
            kl += float(both[0][place, token] - both[1][place, token])
    assert found["eval_kl"] == pytest.approx(kl / 6, abs=1e-4)
    assert abs(kl) > 0.01


def test_ties_count_half(tmp_path):
    found = with_held_out(tmp_path, lambda completions: [1.0] * len(completions)).evaluate()
    assert found["eval_win_rate"] == 0.5


def test_the_same_random_numbers_each_time_and_the_references_answers_once(tmp_path):
    made = with_held_out(tmp_path)
    answers = watched(made)
    first, again = made.evaluate(), made.evaluate()
    del first["eval_runtime"], again["eval_runtime"]
    assert first == again
    assert len(answers) == 3  # reference, policy, policy
    assert answers[1].completion_ids == answers[2].completion_ids != answers[0].completion_ids
    made.roles.policy = made.roles.reference  # the same weights on the same numbers say the same
    assert made.evaluate()["eval_kl"] == 0.0
    assert answers[3].completion_ids == answers[0].completion_ids


def test_evaluation_changes_nothing_in_the_training(tmp_path):
    runs = []
    for steps in (None, 1):
        settings = {"num_sample_generations": 0} if steps is None else {"eval_steps": steps}
        made = with_held_out(
            tmp_path / str(steps), ["reward", evens], total_episodes=32, reward_normalization="running",
            scale_rewards="running", **settings,
        )  # fmt: skip
        made.train()
        runs.append(made)
    plain, evaluated = runs
    entries = [[e for e in made.state.log_history if "eval_score" in e] for made in runs]
    assert [len(e) for e in entries] == [0, 4] and [e["step"] for e in entries[1]] == [1, 2, 3, 4]
    for a, b in zip(plain.roles.parameters(), evaluated.roles.parameters(), strict=True):
        assert torch.equal(a, b)
    assert plain.experience.rewards.state() == evaluated.experience.rewards.state()


@pytest.mark.parametrize("settings", [{"reward_normalization": "running"}, {"reward_normalization": "batch"},
                                      {"scale_rewards": "running"}])  # fmt: skip
def test_policy_and_reference_are_compared_by_the_same_moments(tmp_path, settings):
    """The reference is scored once, the moments go on: a policy that is its reference must tie at any time."""
    made = with_held_out(tmp_path, total_episodes=32, **settings)
    made.roles.policy = made.roles.reference
    assert made.evaluate()["eval_win_rate"] == 0.5
    for moments in (*made.experience.rewards.moments.values(), made.experience.rewards.total_moments):
        moments.update(torch.tensor([5.0, 50.0, 500.0]))
    found = made.evaluate()
    assert found["eval_win_rate"] == 0.5
    assert found["eval_score"] == pytest.approx(found["eval_reference_score"])


def test_functions_see_the_columns_of_held_out_rows_and_what_they_log_is_the_evaluations(tmp_path):
    wishes = []

    def function(completions, wish=None, log_metric=None, trainer_state=None):
        wishes.append(wish)
        log_metric("call", len(wishes))
        return [float(trainer_state.global_step)] * len(completions)

    made = with_held_out(tmp_path, function, eval_steps=1)
    assert made.evaluate()["eval_call"] == 2  # before any training, too; the first was for the reference
    made.train()
    assert wishes[0] == wishes[1] == list(range(6))
    training = [entry for entry in made.state.log_history if "score" in entry]
    evaluations = [entry for entry in made.state.log_history if "eval_score" in entry]
    assert [entry["call"] for entry in training] == [3, 5]
    assert [entry["eval_call"] for entry in evaluations] == [4, 6]
    assert [entry["eval_rewards/function"] for entry in evaluations] == [1.0, 2.0]


def test_the_answers_are_in_a_file_a_step_each(tmp_path):
    made = with_held_out(tmp_path, eval_steps=1)
    made.train()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1] * 6 + [2] * 6
    assert rows[0].keys() == {"step", "prompt", "policy", "reference", "score", "reference_score"}
    assert [row["prompt"] for row in rows[:6]] == [row.shown for row in made.held_out.rows]
    last = [entry for entry in made.state.log_history if "eval_score" in entry][-1]
    assert last["eval_score"] == pytest.approx(sum(row["score"] for row in rows[6:]) / 6)
    made.evaluate()  # at the same step: in place of what was there
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 12
    assert not list(tmp_path.glob(".samples*"))


def test_how_often_and_on_how_many_prompts(tmp_path):
    def steps(**fields):
        made = with_held_out(tmp_path, total_episodes=64, **fields)
        made.train()
        return [entry["step"] for entry in made.state.log_history if "eval_score" in entry], len(made.held_out.rows)

    assert steps(eval_steps=3, num_eval_prompts=2) == ([3, 6, 8], 2)  # and at the end
    assert steps(num_sample_generations=4) == ([2, 4, 6, 8], 6)  # TRL's name
    assert steps(num_sample_generations=0) == ([], 6)


def test_without_held_out_prompts_evaluation_is_a_clear_error(tmp_path):
    made = trainer(tmp_path, eval_steps=1)
    with pytest.raises(RlhfKitError, match=r"^ppo: there are no held-out prompts to evaluate on; give an eval_dataset"):
        made.evaluate()
    made.train()  # eval_steps alone ask for nothing
    assert made.state.global_step == 2


def test_held_out_rows_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(RlhfKitError, match=r"^eval_dataset#2: prompt: neither a prompt nor input_ids; the row has x"):
        with_held_out(tmp_path, rows=[HELD_OUT[0], {"x": 1}])


def test_a_reward_that_fails_in_an_evaluation_costs_no_update(tmp_path):
    """transformers evaluates before it saves: the update that was due to be saved must be there all the same."""

    def fails_on_held_out(completion_ids, **columns):
        if "wish" in columns and made.state.global_step == 2:
            raise OSError("the judge does not answer")
        return evens(completion_ids)

    made = with_held_out(
        tmp_path, fails_on_held_out, total_episodes=32, eval_steps=1, save_strategy="steps", save_steps=1
    )
    with pytest.raises(RlhfKitError, match="the judge does not answer"):
        made.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
