"""Rewards of PPO: functions as TRL calls them, models on single unpadded texts as the oracle, numbers by hand."""

import asyncio
import json
import math

import numpy as np
import pytest
import torch
from backbones import tiny_backbone, tiny_directory
from ppo_trainers import config, trainer
from transformers import (
    AutoTokenizer,
)
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from rlhf_kit import DataError, RlhfKitError
from rlhf_kit.batches import Sequences
from rlhf_kit.ppo.answers import Answers
from rlhf_kit.ppo.checkpoints import is_whole, last_whole
from rlhf_kit.ppo.prompts import read_prompts
from rlhf_kit.ppo.reward_sources import FunctionReward, names_of
from rlhf_kit.ppo.rewarding import Rewards
from rlhf_kit.ppo.setup import make_sources
from rlhf_kit.rollout import Drawn

TOKENIZER = AutoTokenizer.from_pretrained(tiny_directory())
CHAT = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Name three colours."}]
PLAIN = [{"prompt": "Why is the sky blue?", "level": 3}, {"prompt": "Hi"}, {"prompt": "Say hello. " * 4, "level": 1}]
TURNS = [{"prompt": CHAT}, {"prompt": CHAT[1:]}, {"prompt": [{"role": "user", "content": "Hi"}]}]
TEXTS = ["Air scatters blue light.", "Hello!", "No. " * 9]


def answered(rows, texts=TEXTS, end=True):
    """Answers as `Experience.sample` makes them, with these texts."""
    prompts = read_prompts(rows, TOKENIZER, room=500)
    eos = [TOKENIZER.eos_token_id] if end else []
    responses = [TOKENIZER(text)["input_ids"] + eos for text in texts]
    sequences = Sequences.collate([row.ids for row in prompts], responses, TOKENIZER.pad_token_id)
    drawn = [Drawn(tuple(response), ()) for response in responses]
    return Answers.of(prompts, drawn, torch.full((len(texts),), end), sequences, TOKENIZER)


# ---------------------------------------------------------------- functions


def test_a_function_is_called_by_keyword_as_trl_calls_it():
    calls = []

    def function(**given):
        calls.append(given)
        return [1, 2.5, torch.tensor(3.0)]

    made = FunctionReward(function, "function", state="the state")
    found = made(answered(PLAIN))
    assert found.tolist() == [1.0, 2.5, 3.0] and found.dtype == torch.float32
    (given,) = calls
    assert given["prompts"] == [row["prompt"] for row in PLAIN]
    assert given["completions"] == TEXTS
    assert given["completion_ids"] == [TOKENIZER(text)["input_ids"] + [TOKENIZER.eos_token_id] for text in TEXTS]
    assert given["level"] == [3, None, 1]
    assert given["trainer_state"] == "the state"
    assert given.keys() == {
        "prompts", "completions", "completion_ids", "level", "trainer_state", "log_extra", "log_metric"
    }  # fmt: skip
    made(answered(TURNS))
    assert calls[1]["prompts"] == [row["prompt"] for row in TURNS]
    assert calls[1]["completions"] == [[{"role": "assistant", "content": text}] for text in TEXTS]
    calls.clear()


def test_a_function_need_not_take_what_it_does_not_use():
    def short(completions, level):
        return [len(text) + (n or 0) for text, n in zip(completions, level, strict=True)]

    assert FunctionReward(short, "short")(answered(PLAIN)).tolist() == [27, 6, 37]

    class Judge:
        def __call__(self, prompts, completions):
            return np.array([len(p) for p in prompts])

    assert FunctionReward(Judge(), "judge")(answered(PLAIN)).tolist() == [20, 2, 44]


def test_a_coroutine_function_is_awaited_also_where_a_loop_runs_already():
    async def later(completions, **columns):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    source, answers = FunctionReward(later, "later"), answered(PLAIN)
    expected = [len(text) for text in TEXTS]
    assert source(answers).tolist() == expected

    async def notebook():
        return source(answers).tolist()

    assert asyncio.run(notebook()) == expected


def test_none_is_where_a_function_does_not_apply():
    assert torch.isnan(FunctionReward(lambda completions: [1, None, 3], "f")(answered(PLAIN))).tolist() == [
        False, True, False
    ]  # fmt: skip


def test_reward_functions_of_trl_work_as_they_are():
    texts = ["<think>\nwhy\n</think>\nblue", "blue", "blue blue blue blue blue blue"]
    answers = answered(TURNS, texts)
    assert FunctionReward(think_format_reward, "think")(answers).tolist() == [1.0, 0.0, 0.0]
    lengths = [len(TOKENIZER(text)["input_ids"]) + 1 for text in texts]
    longest = max(lengths)
    overlong = FunctionReward(get_soft_overlong_punishment(longest - 1, 0), "overlong")(answers)
    assert overlong.tolist() == [-1.0 if n == longest else 0.0 for n in lengths]
    repeated = FunctionReward(get_repetition_penalty_reward(ngram_size=1), "repeated")(answers)
    unique = [len({*TOKENIZER(text)["input_ids"]}) + 1 for text in texts]
    assert repeated.tolist() == pytest.approx([-(1 - u / n) for u, n in zip(unique, lengths, strict=True)])
    assert repeated[2] < repeated[1]


def test_trls_functions_train(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("red", "green", "blue")]
    made = trainer(tmp_path, rows, [think_format_reward, get_soft_overlong_punishment(5, 3)], reward_weights=[1.0, 0.5])
    made.train()
    logged = [entry for entry in made.state.log_history if "kl" in entry]
    assert len(logged) == 2
    for entry in logged:  # no answer of six tokens thinks
        assert entry["rewards/think_format_reward"] == 0.0
        assert entry["rewards/soft_overlong_punishment_reward"] <= -0.3
        assert entry["score"] == pytest.approx(0.5 * entry["rewards/soft_overlong_punishment_reward"])


def test_what_a_function_logs_is_in_the_log_and_cannot_overwrite_the_trainers_figures(tmp_path):
    steps = []

    def chatty(completions, log_metric, log_extra, trainer_state, **columns):
        log_extra("texts", completions)
        log_metric("letters", sum(map(len, completions)))
        log_metric("kl", 999.0)
        steps.append(trainer_state.global_step)
        return [0.0] * len(completions)

    made = trainer(tmp_path, reward_funcs=chatty)
    made.train()
    logged = [entry for entry in made.state.log_history if "score" in entry]
    assert [entry["letters"] > 0 for entry in logged] == [True, True]
    assert all(entry["kl"] < 100 for entry in logged)
    assert steps == [0, 1]


def test_functions_are_found_by_file_and_by_module(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text("def count(completions, **columns):\n    return map(len, completions)\n")
    monkeypatch.chdir(tmp_path)
    backbone, made = tiny_backbone("policy"), config(tmp_path)
    sources = make_sources([f"{tmp_path}/my_judges.py:count", "my_judges:count", len], None, backbone, made)
    assert [source.name for source in sources] == ["count_1", "count_2", "len"]
    for source in sources[:2]:
        assert source(answered(PLAIN)).tolist() == list(map(len, TEXTS))
    with pytest.raises(DataError, match=r"ppo\.reward_funcs: my_judges:nothing: cannot be loaded"):
        make_sources("my_judges:nothing", None, backbone, made)
    with pytest.raises(DataError, match=r"nowhere\.py:count: cannot be loaded"):
        make_sources("nowhere.py:count", None, backbone, made)


def test_names_are_numbered_where_they_are_alike():
    assert names_of(["a", "b", "a", "c", "a"]) == ["a_1", "b", "a_2", "c", "a_3"]


# ---------------------------------------------------------------- several sources


def total(said, **settings):
    """What `Rewards` makes of sources that say these numbers, one list of them an update."""
    rows = [{"prompt": "Hi"}] * len(said[0][0])
    answers = answered(rows, ["x"] * len(rows))
    updates = [iter(source) for source in said]
    sources = [FunctionReward(lambda completions, s=s: next(s), f"f{n}") for n, s in enumerate(updates)]
    made = Rewards(sources, config("unused", **settings))
    return made, [made.total(made.raw(answers)).tolist() for _ in said[0]]


def test_sources_are_weighted_summed_and_each_keeps_its_own_scores():
    made, found = total([[[1.0, 2.0, None]], [[10.0, -1.0, 4.0]]], reward_weights=[2.0, 0.5])
    assert found == [[7.0, 3.5, 2.0]]
    assert set(made.moments) == {"f0", "f1"}


def test_the_sources_are_one_each_by_default_and_weights_must_be_as_many():
    assert total([[[1.0]], [[2.0]]])[1] == [[3.0]]
    with pytest.raises(DataError, match="PPOConfig: reward_weights: has 3 weights for 2 reward_funcs"):
        total([[[1.0]], [[2.0]]], reward_weights=[1.0, 1.0, 1.0])


def test_normalisation_by_the_batch_and_clipping_of_each_source_by_hand():
    # 1, 2, 3, 6 have mean 3 and deviation sqrt(14/4); the second source's own are 0 and 100.
    _, found = total([[[1.0, 2.0, 3.0, 6.0]], [[100.0, -100.0, None, None]]], reward_normalization="batch")
    root = math.sqrt(3.5)
    assert found[0] == pytest.approx([-2 / root + 1, -1 / root - 1, 0.0, 3 / root])
    _, clipped = total([[[1.0, 2.0, 3.0, 6.0]]], reward_normalization="batch", reward_clip=0.6)
    assert clipped[0] == pytest.approx([-0.6, -1 / root, 0.0, 0.6])


def test_running_normalisation_uses_all_that_was_said_so_far():
    updates = [[1.0, 3.0], [5.0, 7.0], [-100.0, None]]
    made, found = total([updates], reward_normalization="running")
    assert found[0] == pytest.approx([-1.0, 1.0])
    root = math.sqrt(5)  # 1, 3, 5, 7: mean 4, variance 5
    assert found[1] == pytest.approx([1 / root, 3 / root])
    seen = np.array([1, 3, 5, 7, -100.0])
    assert found[2] == pytest.approx([(-100 - seen.mean()) / seen.std(), 0.0])
    before = made.state()
    made.total({"f0": torch.tensor([50.0, 60.0])}, learn=False)
    assert made.state() == before


def test_scaling_divides_the_sum_by_its_deviation_so_far_and_clips_after():
    made, found = total([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 1.0], [1.0, 1.0]]], scale_rewards="running")
    assert found[0] == pytest.approx([1.0, 3.0])  # deviation 1; the mean stays
    assert found[1] == pytest.approx([5 / math.sqrt(5), 7 / math.sqrt(5)])
    _, clipped = total([[[0.0, 4.0]]], scale_rewards="running", score_clip=1.5)
    assert clipped == [[0.0, 1.5]]
    again = Rewards(made.sources, made.config)
    again.restore(json.loads(json.dumps(made.state())))
    assert again.state() == made.state() and again.total_moments.count == 4


def test_a_source_that_applies_to_no_answer_is_left_out_of_the_log(tmp_path):
    made = trainer(tmp_path, reward_funcs=[lambda completions: [None] * len(completions), "reward"])
    made.train()
    logged = [entry for entry in made.state.log_history if "kl" in entry]
    assert logged and all("rewards/<lambda>" not in entry and "rewards/reward" in entry for entry in logged)


# ---------------------------------------------------------------- bad rewards


def failing(completions, **columns):
    raise ValueError("no such\ncolumn")


BAD = {
    "raises": (failing,
               r"failed on sample 1 of 8, 'x' to the prompt 'Say hello' and those .*: ValueError: no such column$"),
    "nan": (lambda completions: [0.0] * 4 + [math.nan] + [0.0] * 3,
            r"returned nan for sample 5 of 8, 'x' to the prompt 'Say hello'; it must return a finite number, or None"),
    "infinite": (lambda completions: [-math.inf] * 8, "returned -inf for sample 1 of 8"),
    "a text": (lambda completions: [0.0, "good"] * 4, "returned 'good' for sample 2 of 8"),
    "too few": (lambda completions: [0.0] * 7,
                "returned 7 numbers for 8 answers, the first of which is sample 1 of 8, 'x' .*; it must return one"),
    "too many": (lambda completions: [0.0] * 9, "returned 9 numbers for 8 answers"),
    "nothing": (lambda completions: None, "failed on sample 1 of 8.*TypeError: 'NoneType' object is not iterable"),
    "a number": (lambda completions: 1.0, "failed on sample 1 of 8.*TypeError: 'float' object is not iterable"),
    "lists": (lambda completions: [[0.0, 1.0]] * 8, r"returned \[0.0, 1.0\] for sample 1 of 8"),
    "tensors": (lambda completions: torch.zeros(8, 40), r"returned tensor\(\[0\., 0\..* for sample 1 of 8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_function_is_one_line_that_names_the_sample(kind):
    bad, said = BAD[kind]
    answers = answered([{"prompt": "Say\nhello"}] * 8, ["x"] * 8)
    with pytest.raises(RlhfKitError, match=rf"^ppo: the reward function 'bad' {said}") as failure:
        FunctionReward(bad, "bad")(answers)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", "failed on sample 1 of 8"),
        ("nan", "returned nan for sample 5 of 8"),
        ("too few", "returned 7 numbers for 8 answers"),
    ],
)
def test_a_function_that_turns_bad_costs_no_checkpoint(tmp_path, kind, said):
    state = {"bad": True}

    def function(completions, trainer_state):
        return BAD[kind][0](completions) if state["bad"] and trainer_state.global_step == 2 else [0.0] * 8

    made = trainer(tmp_path, reward_funcs=function, total_episodes=24, save_strategy="steps", save_steps=1)
    with pytest.raises(RlhfKitError, match=f"^ppo: the reward function 'function' {said}") as failure:
        made.train()
    assert "\n" not in str(failure.value)
    assert last_whole(tmp_path) == tmp_path / "checkpoint-2" and is_whole(tmp_path / "checkpoint-1")
    state["bad"] = False
    made = trainer(tmp_path, reward_funcs=function, total_episodes=24)
    made.train(resume_from_checkpoint=True)  # mended, it goes on
    assert made.state.global_step == 3
