"""`PPOConfig`: transformers' training arguments with the settings of a recipe's `ppo` section."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from transformers import TrainingArguments

from rlhf_kit.errors import DataError, Problem
from rlhf_kit.reasons import field_of, findings, reason_of
from rlhf_kit.recipe_live import LiveSection
from rlhf_kit.recipe_ppo import PpoSection, mistakes
from rlhf_kit.recipe_rollout import RolloutSection

log = logging.getLogger(__name__)

OWN_TO_RECIPES = ("init", "reward_funcs", "keep_checkpoints", "trainer")
"""Settings of the section that `PPOConfig` lacks: models and rewards are arguments of the trainer, the trainer removes
no checkpoints when it is done, and the config is what `trainer` adds to."""

WITHOUT_EFFECT = {
    "torch_compile": "it was tried layer by layer, and an update took as long (benchmarks/RESULTS.md)",
    "use_liger_kernel": "Liger looks for one whole model, and here several roles play on one",
}
"""transformers' arguments that are switched off, with a word why."""

MAPPINGS = ("stop_on", "rollout", "live")
"""Settings that are mappings, which a command line gives as JSON."""


def _from_section() -> list[tuple[str, Any, Any]]:
    """The section's settings as fields of a dataclass: name, type, and default with its description."""
    found = []
    for name, info in PpoSection.model_fields.items():
        if name in OWN_TO_RECIPES:
            continue
        default: Any = {"default": info.default}
        if info.default_factory is not None:
            default = {"default_factory": info.default_factory}
        kind: Any = info.annotation
        if name in MAPPINGS:  # JSON on a command line
            kind = dict[str, Any] | str | None
        if name in ("rollout", "live"):
            default = {"default_factory": dict}
        text = (info.description or "").replace("%", "%%")
        found.append((name, kind, field(**default, metadata={"help": text})))
    return found


_Settings = dataclasses.make_dataclass("_Settings", _from_section(), bases=(TrainingArguments,))


@dataclass
class PPOConfig(_Settings):  # type: ignore[valid-type, misc]
    """Arguments of `PPOTrainer`: all of a recipe's `ppo` section (names, defaults and meaning; `PpoSection` in
    `rlhf_kit/recipe_ppo.py` has a line on each) on top of transformers' `TrainingArguments`.

    A step is an update of the policy, as it was in TRL: rollouts and all optimiser steps on them. `save_steps`,
    `eval_steps`, `logging_steps`, `warmup_steps` and `max_steps` count updates.

    Args:
        model_init_kwargs: for `from_pretrained`, where the model is given by name.
        stop_on: figures at which the run stops, `{"kl": 20, "eos_rate": 0.2}`.
        rollout: what samples, `{"engine": "vllm", "base_url": "http://127.0.0.1:8000"}` (`RolloutSection` in
            `rlhf_kit/recipe_rollout.py`); what is left out is filled in.
        live: how people are asked who score answers, `{"overlap": 2}` (`LiveSection` in `rlhf_kit/recipe_live.py`).
        num_sample_generations: as in TRL: how often held-out prompts are answered over the run, where there is an
            `eval_dataset` and `eval_steps` is left out; 0 is never.
        model_adapter_name: as in TRL: the adapter of a `PeftModel` that is trained.
        ref_adapter_name: as in TRL: the adapter of it that is the reference.
        dataset_num_proc, num_total_batches, micro_batch_size, local_batch_size, local_mini_batch_size, sft_model_path,
            reward_model_path: of TRL's, so that its scripts run: the paths are read by scripts only, the others have no
            effect here.

    Raises:
        DataError: settings that a recipe would refuse, or sizes that do not divide each other, all of them.
    """

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For from_pretrained, where the model is given by name."}
    )
    num_sample_generations: int = field(
        default=10, metadata={"help": "How often held-out prompts are answered over the run; 0 is never."}
    )
    model_adapter_name: str | None = field(
        default=None, metadata={"help": "The adapter of a PeftModel that is trained."}
    )
    ref_adapter_name: str | None = field(
        default=None, metadata={"help": "The adapter of a PeftModel that is the reference."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "No effect."})
    num_total_batches: int | None = field(default=None, metadata={"help": "No effect."})
    micro_batch_size: int | None = field(default=None, metadata={"help": "No effect."})
    local_batch_size: int | None = field(default=None, metadata={"help": "No effect."})
    local_mini_batch_size: int | None = field(default=None, metadata={"help": "No effect."})
    sft_model_path: str | None = field(default=None, metadata={"help": "For scripts to read."})
    reward_model_path: str | None = field(default=None, metadata={"help": "For scripts to read."})

    def __post_init__(self) -> None:
        if self.eval_steps is not None and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        for name in MAPPINGS:
            if isinstance(getattr(self, name), str):
                with contextlib.suppress(ValueError):  # what is no JSON is no mapping, and said below
                    setattr(self, name, json.loads(getattr(self, name)))
        # Else transformers warns of the older name, even where it is off; before 5.23 it has no other.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        by_default = self.eval_steps is None and not self.load_best_model_at_end
        for name in [name for name in WITHOUT_EFFECT if getattr(self, name)]:
            log.warning("ppo: %s has no effect: %s", name, WITHOUT_EFFECT[name])
            setattr(self, name, False)
        super().__post_init__()
        if by_default:  # transformers takes logging_steps; here it is num_sample_generations that says how often
            self.eval_steps = None
        found = list(_out_of_bounds(self)) or list(mistakes(self, self.world_size))
        if found:
            raise DataError([Problem("PPOConfig", name, reason) for name, reason in found])
        self.rollout, self.live = self.engine.model_dump(), self.live_section.model_dump()

    @property
    def engine(self) -> RolloutSection:
        """`rollout` as the section that it is."""
        return RolloutSection.model_validate(self.rollout)

    @property
    def live_section(self) -> LiveSection:
        """`live` as the section that it is."""
        return LiveSection.model_validate(self.live)


def _out_of_bounds(config: PPOConfig) -> Iterator[tuple[str, str]]:
    """Settings that the section would refuse, as (setting, reason); those that transformers has are its own affair."""
    transformers_own = {setting.name for setting in dataclasses.fields(TrainingArguments)}
    names = PpoSection.model_fields.keys() - transformers_own - set(OWN_TO_RECIPES)
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    given = {name: getattr(config, name) for name in (*names, *sizes)}
    given["reward_funcs"] = ["any"] * len(config.reward_weights or ["any"])  # the trainer counts them
    try:
        PpoSection.model_validate(given)
    except ValidationError as error:
        for mistake in findings(error):
            yield field_of(mistake), reason_of(mistake, PpoSection)
