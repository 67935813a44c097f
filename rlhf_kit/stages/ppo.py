"""Stage 3: a recipe's PPO. The four roles are adapters on one base, and `PPOTrainer` does the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from rlhf_kit import health, launch, rewards
from rlhf_kit.checkpoint import MetricsLog
from rlhf_kit.data import Encoder, columns_of
from rlhf_kit.errors import DataError, ModelError, Problem, RlhfKitError
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.models.probe import Probe
from rlhf_kit.ppo.config import OWN_TO_RECIPES, PPOConfig
from rlhf_kit.ppo.heldout import SAMPLES
from rlhf_kit.ppo.live import STORE
from rlhf_kit.ppo.roles import POLICY, REFERENCE, VALUE
from rlhf_kit.ppo.setup import RewardFunc
from rlhf_kit.ppo.trainer import PPOTrainer
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Demonstration, Message, Prompt, Text
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.rollout import sample
from rlhf_kit.stages.arguments import build, mode
from rlhf_kit.stages.origin import adapter_at

log = logging.getLogger(__name__)

_SUMMED_UP = (
    *("score", "kl", "kl_coef", "entropy", "response_length", "eos_rate", "explained_variance", "clip_fraction"),
    *("ptx_loss",),
)


@dataclass(frozen=True)
class PpoData:
    """What PPO reads."""

    prompts: Sequence[Prompt]
    heldout: Sequence[Prompt] = ()
    """For `ppo.eval_steps`."""
    text: Sequence[Text] | Sequence[Demonstration] = field(default_factory=tuple)
    """For `ppo.ptx_coef`."""


def origin_of(recipe: Recipe, sft: Path | None) -> Path | None:
    """The directory of the adapter that `ppo.init` means; None is the raw base.

    Raises:
        CheckpointError: there is no such adapter, or it was trained on another base.
    """
    if recipe.ppo.init in ("sft", "base"):
        return sft if recipe.ppo.init == "sft" else None
    return adapter_at("ppo.init", recipe.ppo.init, ("ppo", "sft"), recipe.model)


def prepare(recipe: Recipe, sft: Path | None, reward: Path | None) -> Backbone:
    """The roles on one base: reference = SFT adapter, policy a copy of it, value a copy of the reward adapter where
    there is one on this base, else of the policy."""
    backbone = load_backbone(recipe.model)
    lora = lora_config(recipe.lora)
    if sft is None:
        backbone.add_adapter(POLICY, lora)
    else:
        backbone.load_adapter(REFERENCE, sft)
        backbone.load_adapter(POLICY, sft)
    if reward is None or recipe.reward.model is not None:
        return backbone
    rewards.load(backbone, reward)
    if recipe.ppo.value == "adapter":
        backbone.load_adapter(VALUE, reward)
    if recipe.ppo.value != "model":
        backbone.add_head(VALUE, _value_head(recipe, backbone, reward))
    return backbone


def _value_head(recipe: Recipe, backbone: Backbone, reward: Path) -> ScalarHead:
    if recipe.ppo.value_head_init == "reward":
        return ScalarHead.load(reward, backbone.hidden_size)
    return ScalarHead(backbone.hidden_size, zero=True)


def _value_model(recipe: Recipe, reward: Path | None) -> Backbone | None:
    """A second base with an adapter for the values, that of the reward model where there is one (`value: model`)."""
    if recipe.ppo.value != "model":
        return None
    backbone = load_backbone(recipe.reward_model)
    if reward is None:
        backbone.add_adapter(VALUE, lora_config(recipe.lora))
        backbone.add_head(VALUE, ScalarHead(backbone.hidden_size, zero=True))
    else:
        backbone.load_adapter(VALUE, reward)
        backbone.add_head(VALUE, _value_head(recipe, backbone, reward))
    return backbone


def _sources(recipe: Recipe, reward: Path | None) -> list[RewardFunc]:
    """`ppo.reward_funcs`, with a reward model on another base than the policy's loaded beside it."""
    found: list[RewardFunc] = []
    for name in recipe.ppo.reward_funcs:
        if name == rewards.REWARD and recipe.reward.model is not None and reward is not None:
            model = RewardModel.from_run(reward)
            model.name = name
            found.append(model)
        else:
            found.append(name)
    return found


def train(recipe: Recipe, data: PpoData, sft: Path | None, reward: Path | None, work: Path) -> dict[str, Any]:
    """Trains the policy and leaves it in `work`, the value model in `work/value`; returns the figures of the last
    updates and a verdict in words."""
    arguments = _arguments(recipe, work)
    if recipe.ppo.ema_decay is not None and launch.by_fsdp():
        raise RlhfKitError("ppo.ema_decay: not under FSDP, which has the weights in parts; leave it out, or use ZeRO-3")
    torch.manual_seed(recipe.seed)
    backbone = prepare(recipe, sft, reward)
    encoder = Encoder(backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length)
    if not data.prompts:
        raise DataError([Problem("data.prompts", "", "holds no prompts; PPO needs at least one")])
    if rewards.REWARD in recipe.ppo.reward_funcs and reward is None:
        raise ModelError("ppo.reward_funcs names the reward stage, but there is none; run it first, or name another")
    trainer = PPOTrainer(
        model=backbone,
        args=arguments,
        reward_funcs=_sources(recipe, reward),
        value_model=_value_model(recipe, reward),
        train_dataset=[_row(record, encoder) for record in data.prompts],
        eval_dataset=[_row(record, encoder) for record in data.heldout] if recipe.ppo.eval_steps else None,
        ptx_dataset=[_text(record, encoder) for record in data.text],
        callbacks=[MetricsLog("ppo", work)],
    )
    trainer.samples_file = work / SAMPLES
    encoder.report("ppo")
    trainer.remove_callback(PrinterCallback)  # `MetricsLog` prints the same, one line a step
    trainer.train(resume_from_checkpoint=True)
    trainer.roles.save(work)
    if trainer.average is not None:
        trainer.average.save(work / "ema")
    taken = launch.serve(trainer.model_wrapped, lambda: probe(trainer, recipe.export.positions))
    if trainer.is_world_process_zero():
        taken.save(work)
    words = health.verdict(trainer.state.log_history)
    for sentence in words:
        log.info("ppo: %s", sentence)
    return {
        "updates": trainer.updates,
        "episodes": trainer.updates * trainer.experience.sizes.batch,
        "prompts": len(data.prompts),
        "processes": arguments.world_size,
        "distributed": mode(arguments),
        "shortened_prompts": encoder.shortened_prompts,
        **_last_means(trainer.state.log_history),
        "verdict": words,
    }


def _row(record: Prompt, encoder: Encoder) -> dict[str, Any]:
    """What PPO and reward functions are told of a prompt."""
    prompt = record.prompt if isinstance(record.prompt, str) else [_turn(message) for message in record.prompt]
    return {**columns_of(record), "prompt": prompt, "input_ids": encoder.prompt(record.prompt)}


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _text(record: Text | Demonstration, encoder: Encoder) -> dict[str, Any]:
    if isinstance(record, Demonstration):
        return encoder.demonstration(record)
    return {"text": record.text, "source": record.source, "weight": record.weight}


def probe(trainer: PPOTrainer, positions: int) -> Probe:
    """Logits of the trained policy on its own answers, at `positions` or more tokens: what an export must reproduce."""
    role, rows = trainer.roles.policy, trainer.prompts
    backbone, sequences = role.backbone, list[list[int]]()
    generator = torch.Generator().manual_seed(trainer.args.seed)
    with role.playing():
        while sum(map(len, sequences)) < positions:
            prompts = [rows[(len(sequences) + i) % len(rows)].ids for i in range(trainer.experience.sizes.micro)]
            with trainer.experience.precision(role):
                answers = sample(backbone, prompts, max_new_tokens=trainer.ppo.response_length, generator=generator)
            sequences += [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        with as_peft():  # as an export is reloaded
            return Probe.take(backbone.base, sequences, len(backbone.tokenizer), backbone.tokenizer.pad_token_id)


def _last_means(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over the last quarter of the updates: one update's figures are noise."""
    entries = [entry for entry in history if "score" in entry]
    tail = entries[-max(1, len(entries) // 4) :]
    columns = {name: [entry[name] for entry in tail if name in entry] for name in _SUMMED_UP}
    return {f"train_{name}": sum(values) / len(values) for name, values in columns.items() if values}


def _arguments(recipe: Recipe, work: Path) -> PPOConfig:
    fixed = recipe.ppo.model_dump(exclude=set(OWN_TO_RECIPES))
    # The stage's own directory goes when it is done.
    fixed["live"]["store"] = recipe.ppo.live.store or str(Path(recipe.output_dir) / STORE)
    fixed["save_total_limit"] = max(recipe.ppo.save_total_limit, recipe.ppo.keep_checkpoints)
    return build(PPOConfig, recipe, work, fixed, recipe.ppo.trainer)
