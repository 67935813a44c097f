"""What the stages changed, on prompts that nothing was trained on: base, SFT and PPO answer the same prompts, and are
judged blind.

Two judges: the reward model (which PPO was trained to please, so its verdict says whether PPO did its work) and,
where the recipe
names one, a rubric that neither trained nor ranked anything (which says whether that work was worth doing).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.progress import Progress

from rlhf_kit import rewards
from rlhf_kit.batches import Sequences
from rlhf_kit.checkpoint import read_json, write_json
from rlhf_kit.data import Encoder, prompt_texts
from rlhf_kit.measures import Estimate, bootstrap_mean, explain_gain, pooled_pair_accuracy, win_rate
from rlhf_kit.models import Backbone, load_backbone
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Prompt, Ranking
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.rollout import sample_in_batches
from rlhf_kit.user_code import load_function

Rubric = Callable[..., Sequence[float]]

# Sequences of a forward pass that needs no cache.
_BATCH = 16


@dataclass(frozen=True)
class Answer:
    """One sampled answer and what the judges said."""

    text: str
    ended: bool
    tokens: int
    score: float | None
    rubric: float | None
    kl: float | None = None


def load_rubric(name: str) -> Rubric:
    """The function that `data.rubric` names: `path.py:function` or `module:function`, called as TRL calls reward
    functions.

    Raises:
        DataError: no such file, module or function.
    """
    rubric: Rubric = load_function(name, "data.rubric")
    return rubric


def answer_and_judge(
    recipe: Recipe, prompts: Sequence[Prompt], adapters: dict[str, Path], reward: Path | None, work: Path
) -> dict[str, list[list[Answer]]]:
    """Answers of the base and of each adapter: a list a prompt, `samples_per_prompt` each.

    What one policy said is kept in `work` as soon as it is done, so that an interrupted evaluation loses at most one
    policy.
    """
    backbone = load_backbone(recipe.model).to(PartialState().device)
    for name, run in adapters.items():
        backbone.load_adapter(name, run)
    judge = None
    if reward is not None and recipe.reward.model is not None:  # on a base of its own
        judge = RewardModel.from_run(reward)
    elif reward is not None:
        rewards.load(backbone, reward)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length)
    ids = [encoder.prompt(p.prompt) for p in prompts]
    rubric = load_rubric(recipe.data.rubric) if recipe.data.rubric else None
    answers = {}
    for name in ("base", *adapters):
        kept = work / f"answers.{name}.json"
        if not kept.is_file():
            said = _answers(backbone, recipe, encoder, ids, prompts, name, rubric, judge)
            write_json(kept, [[asdict(a) for a in row] for row in said])
        answers[name] = [[Answer(**a) for a in row] for row in read_json(kept)]
    return answers


def _answers(
    backbone: Backbone,
    recipe: Recipe,
    encoder: Encoder,
    ids: list[list[int]],
    prompts: Sequence[Prompt],
    name: str,
    rubric: Rubric | None,
    judge: RewardModel | None,
) -> list[list[Answer]]:
    k, texts = recipe.evaluate.samples_per_prompt, prompt_texts(prompts)
    eos = backbone.tokenizer.eos_token_id
    repeated = [prompt for prompt in ids for _ in range(k)]
    generator = torch.Generator().manual_seed(recipe.seed)
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{name} answers", total=2 * len(repeated))
        role = None if name == "base" else name
        with backbone.role(role), rewards.autocast(backbone):
            responses = sample_in_batches(
                backbone,
                repeated,
                batch_size=recipe.evaluate.per_device_eval_batch_size,
                progress=lambda done: progress.advance(task, done),
                max_new_tokens=recipe.ppo.response_length,
                temperature=recipe.evaluate.temperature,
                generator=generator,
            )
        spoken = [encoder.text(response) for response in responses]
        advance = partial(progress.advance, task)
        scores: list[float] | None = None
        if judge is not None:
            asked = [prompt.prompt for prompt in prompts for _ in range(k)]
            ended = [response[-1] == eos for response in responses]
            scores = judge.score(asked, spoken, ended=ended, progress=advance).tolist()
        elif rewards.REWARD in backbone.heads:
            scores = rewards.score(backbone, repeated, responses, progress=advance).tolist()
    marks = list(rubric(prompts=[t for t in texts for _ in range(k)], completions=spoken)) if rubric else None
    divergences = kl_to_reference(backbone, repeated, responses, recipe) if name == "ppo" else None
    flat = [
        Answer(
            text,
            response[-1] == eos,
            len(response),
            None if scores is None else scores[i],
            None if marks is None else float(marks[i]),
            None if divergences is None else divergences[i],
        )
        for i, (text, response) in enumerate(zip(spoken, responses, strict=True))
    ]
    return [flat[i : i + k] for i in range(0, len(flat), k)]


@torch.no_grad()
def kl_to_reference(
    backbone: Backbone, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], recipe: Recipe
) -> list[float]:
    """log policy - log reference of each response, in nats, at the temperature it was sampled with. Policy and
    reference see the same
    padding: in bfloat16 another padding alone moves the sum by up to half a nat."""
    reference = "sft" if "sft" in backbone.adapters else None
    divergences: list[float] = []
    for start in range(0, len(prompts), _BATCH):
        rows = slice(start, start + _BATCH)
        batch = Sequences.collate(prompts[rows], responses[rows], backbone.tokenizer.pad_token_id).to(backbone.device)
        sums = []
        for role in ("ppo", reference):
            with backbone.role(role), rewards.autocast(backbone):
                hidden = batch.before_response(backbone(batch.input_ids, batch.attention_mask))
                log_probs, _ = backbone.log_probs(hidden, batch.responses, temperature=recipe.evaluate.temperature)
            sums.append(torch.where(batch.response_mask, log_probs, 0.0).sum(1))
        divergences += (sums[0] - sums[1]).tolist()
    return divergences


# -------------------------------------------------------------------- figures


def compare(
    recipe: Recipe, answers: dict[str, list[list[Answer]]], field: str, ours: str, theirs: str
) -> Estimate | None:
    """Win rate of one policy over another by `score` or `rubric`, averaged over prompts, with its interval; None
    without judge."""
    rows = zip(_column(answers[ours], field), _column(answers[theirs], field), strict=True)
    rates = [win_rate(a, b) for a, b in rows if a and b]
    return _interval(recipe, rates) if rates else None


def reward_gain(recipe: Recipe, answers: dict[str, list[list[Answer]]]) -> Estimate | None:
    """Mean score of PPO minus SFT, in standard deviations of the SFT policy's scores, with its interval over
    prompts."""
    sft, ppo = _column(answers["sft"], "score"), _column(answers["ppo"], "score")
    if not any(sft):
        return None
    spread = float(np.std([s for row in sft for s in row])) or 1.0
    return _interval(recipe, [(float(np.mean(b)) - float(np.mean(a))) / spread for a, b in zip(sft, ppo, strict=True)])


def _column(rows: list[list[Answer]], field: str) -> list[list[float]]:
    return [[value for answer in row if (value := getattr(answer, field)) is not None] for row in rows]


def _interval(recipe: Recipe, values: list[float]) -> Estimate:
    e = recipe.evaluate
    return bootstrap_mean(values, resamples=e.bootstrap, confidence=e.confidence, seed=recipe.seed)


def figures(recipe: Recipe, answers: dict[str, list[list[Answer]]]) -> dict[str, dict[str, Any]]:
    """What goes into `metrics.json` of each stage."""
    found: dict[str, dict[str, Any]] = {"sft": {}, "ppo": {}}
    if "sft" in answers and (rate := compare(recipe, answers, "rubric", "sft", "base")) is not None:
        found["sft"] |= {"win_rate_vs_base": rate.value, "win_rate_vs_base_interval": rate.as_dict()}
    if "ppo" not in answers:
        return found
    ppo = [answer for row in answers["ppo"] for answer in row]
    found["ppo"] |= {
        "kl": float(np.mean([a.kl for a in ppo if a.kl is not None])),
        "eos_rate": float(np.mean([a.ended for a in ppo])),
        "tokens": float(np.mean([a.tokens for a in ppo])),
    }
    if "sft" in answers:
        if (rate := compare(recipe, answers, "rubric", "ppo", "sft")) is not None:
            found["ppo"] |= {"win_rate_vs_sft": rate.value, "win_rate_vs_sft_interval": rate.as_dict()}
        if (gain := reward_gain(recipe, answers)) is not None:
            found["ppo"] |= {"heldout_reward_gain": gain.value, "heldout_reward_gain_interval": gain.as_dict()}
    return found


def rubric_agreement(recipe: Recipe, rankings: Sequence[Ranking]) -> float | None:
    """How many of the labelers' pairs the rubric orders as they did; it was not used to make them."""
    if recipe.data.rubric is None or not rankings:
        return None
    rubric = load_rubric(recipe.data.rubric)
    texts = prompt_texts([Prompt(prompt=r.prompt) for r in rankings])
    marks = [
        [float(m) for m in rubric(prompts=[text] * len(r.responses), completions=[a.text for a in r.responses])]
        for text, r in zip(texts, rankings, strict=True)
    ]
    return pooled_pair_accuracy(marks, [[a.rank for a in r.responses] for r in rankings])


def summary(answers: dict[str, list[list[Answer]]]) -> dict[str, dict[str, float]]:
    """Means of each policy that a reader can check by eye."""
    rows = {}
    for name, by_prompt in answers.items():
        flat = [answer for row in by_prompt for answer in row]
        columns: dict[str, list[float]] = {
            "score": [a.score for a in flat if a.score is not None],
            "rubric": [a.rubric for a in flat if a.rubric is not None],
            "tokens": [float(a.tokens) for a in flat],
            "eos_rate": [float(a.ended) for a in flat],
            "sentences": [float(len(re.findall(r"[.!?。！？]+(?:\s|$)", a.text))) for a in flat],
            "distinct": [len({a.text for a in row}) / len(row) for row in by_prompt],
        }
        rows[name] = {key: float(np.mean(values)) for key, values in columns.items() if values}
    return rows


def gain_in_words(answers: dict[str, list[list[Answer]]]) -> dict[str, Any]:
    """What PPO's gain over SFT consists of: how much of it length and endings explain, and what is left."""
    if not {"sft", "ppo"} <= answers.keys() or any(a.score is None for row in answers["ppo"] for a in row):
        return {}
    sft = [a for row in answers["sft"] for a in row]
    ppo = [a for row in answers["ppo"] for a in row]
    parts = explain_gain(*((_features(group), [a.score or 0.0 for a in group]) for group in (sft, ppo)))
    before, after = summary(answers)["sft"], summary(answers)["ppo"]
    total = sum(parts.values())
    words = [
        f"The mean score rose by {total:.2f} standard deviations of SFT's scores."
        if total > 0
        else f"The mean score fell by {-total:.2f} standard deviations of SFT's scores.",
        f"Answers went from {before['tokens']:.1f} to {after['tokens']:.1f} tokens and from {before['sentences']:.1f} "
        f"to {after['sentences']:.1f} sentences on average; {after['eos_rate']:.0%} end by themselves "
        f"({before['eos_rate']:.0%} before).",
        f"Of the change, {parts['length']:+.2f} is what these lengths and {parts['ended']:+.2f} what these endings "
        f"were worth among SFT's own answers; {parts['rest']:+.2f} is neither: manner and content.",
        f"Of the samples of one prompt {after['distinct']:.0%} are distinct ({before['distinct']:.0%} before).",
    ]
    return {"parts": parts, "words": words}


def _features(answers: list[Answer]) -> dict[str, list[list[float]]]:
    return {
        "length": [[float(a.tokens), float(a.tokens) ** 2] for a in answers],
        "ended": [[float(a.ended)] for a in answers],
    }
