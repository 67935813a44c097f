"""The health of a run in words: a log made for each sentence, and a healthy one that gets none of them."""

import math

import pytest
from ppo_trainers import trainer

from rlhf_kit import RlhfKitError
from rlhf_kit.health import _REMEDIES, LIMITS, breached, verdict
from rlhf_kit.ppo.checkpoints import last_whole

HEALTHY = {
    "kl": (0.5, 3.0),
    "score": (0.1, 1.2),
    "score_std": (1.0, 0.9),
    "entropy": (3.0, 2.0),
    "eos_rate": (0.9, 0.95),
    "response_length": (40.0, 38.0),
    "clip_fraction": (0.0, 0.08),
    "explained_variance": (-0.2, 0.4),  # a critic that begins with nothing is well
}


def log_of(updates=16, **changes):
    """A log in which each figure goes from its first value to its second in a straight line."""
    figures = {**HEALTHY, **changes}
    part = [n / (updates - 1) for n in range(updates)]
    return [{name: a + (b - a) * share for name, (a, b) in figures.items()} for share in part]


SENTENCES = {
    "ran away from the reference": {"kl": (1.0, 30.0)},
    "The KL is negative": {"kl": (0.1, -4.0)},
    "Fewer answers end (85%, then 45%) while the score rose": {"eos_rate": (0.9, 0.4)},
    "Fewer answers end (85%, then 45%) and the score did not rise": {"eos_rate": (0.9, 0.4), "score": (1.2, 1.1)},
    "The policy says nearly the same every time": {"entropy": (3.0, 0.05)},
    "The score fell from": {"score": (1.2, -0.5)},
    "of the tokens were clipped": {"clip_fraction": (0.2, 0.6)},
    "The value model explains nothing": {"explained_variance": (0.1, -0.4)},
    "Some figures were no numbers (value_loss)": {"value_loss": (math.nan, math.nan)},
}


def test_a_healthy_run_gets_one_sentence_with_its_figures():
    # Means over the first and last 4 of 16 updates: 0.1 + 1.1 x 1.5/15 and 0.1 + 1.1 x 13.5/15, and so on.
    assert verdict(log_of()) == [
        "Nothing looks wrong: the score went from 0.21 to 1.09 at 2.8 nats a response from the reference, and 94% of "
        "the answers end."
    ]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_sentence_appears_for_its_log_alone(sentence):
    said = verdict(log_of(**SENTENCES[sentence]))
    assert len(said) == 1 and sentence in said[0], said
    others = [other for other in SENTENCES if other != sentence and other in said[0]]
    assert not others


def test_all_that_is_wrong_is_said_the_gravest_first():
    worst = {
        "value_loss": (math.inf, math.inf), "kl": (1.0, 30.0), "eos_rate": (0.9, 0.1), "entropy": (3.0, 0.0),
        "score": (1.0, -3.0), "clip_fraction": (0.5, 0.5), "explained_variance": (-1.0, -1.0),
    }  # fmt: skip
    said = verdict(log_of(**worst))
    order = ("no numbers", "ran away", "Fewer answers", "nearly the same", "score fell", "clipped", "explains nothing")
    assert [word in line for word, line in zip(order, said, strict=True)] == [True] * 7


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": (8.0, 12.0)},  # far, but it began far
        {"kl": (0.2, -0.3)},  # what sampling explains
        {"eos_rate": (0.9, 0.82)},
        {"entropy": (3.0, 0.9)},
        {"score": (1.0, 0.9)},  # within the noise of one update
        {"clip_fraction": (0.5, 0.1)},  # large steps at the beginning only
    ],
)
def test_what_is_not_ill_gets_no_sentence(changes):
    assert verdict(log_of(**changes))[0].startswith("Nothing looks wrong")


def test_evaluations_are_left_out_and_short_runs_not_judged():
    with_evaluations = [e for entry in log_of() for e in (entry, {"eval_kl": 900.0, "eval_score": -9.0})]
    assert verdict(with_evaluations) == verdict(log_of())
    assert verdict(log_of(3)) == ["3 updates are too few to judge the run by."]
    assert verdict([]) == ["0 updates are too few to judge the run by."]
    assert verdict(log_of(4))[0].startswith("Nothing looks wrong")


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_is_kept_on_one_side_and_breached_on_the_other(name):
    inside, outside = (0.4, 0.6) if LIMITS[name] == "above" else (0.6, 0.4)
    assert breached({name: inside}, {name: 0.5}) is None
    assert breached({name: 0.5}, {name: 0.5}) is None
    said = breached({name: outside}, {name: 0.5})
    assert said == f"{name} is {outside}, {LIMITS[name]} the limit of 0.5; {_REMEDIES[name]}"


def test_what_is_not_bounded_or_not_logged_breaches_nothing():
    assert breached({"kl": 100.0}, {}) is None
    assert breached({"kl": 1.0}, {"entropy": 0.5}) is None


# ---------------------------------------------------------------- through the trainer


def test_a_limit_ends_the_run_with_a_checkpoint_and_one_line(tmp_path):
    made = trainer(tmp_path, total_episodes=80, stop_on={"kl": 50, "response_length": 5}, logging_steps=100)
    words = (
        r"^ppo: stopped after update 1 of 10 by ppo\.stop_on: response_length is 6, above the limit of 5; "
        r"raise ppo\.length_penalty or ppo\.missing_eos_penalty$"
    )
    with pytest.raises(RlhfKitError, match=words):
        made.train()
    assert made.state.global_step == 1
    assert last_whole(tmp_path) == tmp_path / "checkpoint-1"
    assert any("kl" in entry for entry in made.state.log_history)  # though none was due


@pytest.mark.parametrize("name", ["approx_kl", "clip_fraction"])
def test_limits_on_figures_of_the_optimiser_steps_hold_too(tmp_path, name):
    limits = {name: 1e-6}
    made = trainer(tmp_path, total_episodes=80, num_ppo_epochs=3, learning_rate=0.1, cliprange=0.01, stop_on=limits)
    with pytest.raises(RlhfKitError, match=f"stopped after update 1 of 10 by ppo.stop_on: {name} is"):
        made.train()


def test_limits_that_are_kept_do_nothing(tmp_path):
    limits = {name: 1e9 if side == "above" else -1e9 for name, side in LIMITS.items()}
    made = trainer(tmp_path, stop_on=limits)
    made.train()
    assert made.state.global_step == 2 and made.stopped is None
