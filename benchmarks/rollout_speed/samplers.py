"""Who answers: each takes the same work and returns the responses, EOS included and what follows it left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from rlhf_kit.models import Backbone
from rlhf_kit.models.loading import load_base
from rlhf_kit.recipe import ModelSection
from rlhf_kit.rollout import sample_in_batches
from rollout_speed.asked import POLICY, Asked

__all__ = ["Sampler", "continuous", "generate", "kit", "peers_model"]

Sampler = Callable[[Asked], list[list[int]]]
Responses = list[list[int]]


def kit(backbone: Backbone) -> Sampler:
    """The kit's own loop, as PPO calls it."""

    def run(asked: Asked) -> Responses:
        with backbone.role(POLICY):
            return sample_in_batches(
                backbone,
                asked.prompts,
                batch_size=asked.beside,
                max_new_tokens=asked.most,
                temperature=asked.temperature,
            )

    return run


def peers_model(model: ModelSection, adapter: Path, *, merged: bool) -> PreTrainedModel:
    """The base with the adapter as PEFT puts it there, nothing of the kit's in it; or with the adapter merged."""
    wrapped = PeftModel.from_pretrained(load_base(model), str(adapter)).eval()
    found: PreTrainedModel = wrapped.merge_and_unload() if merged else wrapped.get_base_model()
    return found


def generate(model: PreTrainedModel, pad: int, eos: int) -> Sampler:
    """transformers' `generate`, in the same batches of like length as the kit makes, padded on the left."""

    def run(asked: Asked) -> Responses:
        order = sorted(range(len(asked.prompts)), key=lambda row: len(asked.prompts[row]))
        responses: Responses = [[] for _ in order]
        for start in range(0, len(order), asked.beside):
            rows = order[start : start + asked.beside]
            for row, response in zip(rows, batch([asked.prompts[row] for row in rows], asked), strict=True):
                responses[row] = response
        return responses

    @torch.no_grad()
    def batch(prompts: list[list[int]], asked: Asked) -> Responses:
        width = max(map(len, prompts))
        whole: Any = model.generate(
            input_ids=torch.tensor([[pad] * (width - len(p)) + p for p in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
            generation_config=_wish(asked, pad, eos),
        )
        return [_useful(row, eos) for row in whole[:, width:].tolist()]

    return run


def continuous(model: PreTrainedModel, pad: int, eos: int) -> Sampler:
    """transformers' continuous batching: rows come in where others have ended. It is told how many rows stand side by
    side and is given room for all of them; the rest is its own default."""

    def run(asked: Asked) -> Responses:
        config = ContinuousBatchingConfig(
            max_requests_per_batch=asked.beside,
            num_blocks=2 * asked.beside,  # of 256 tokens
            max_batch_tokens=1024,  # inferred from a GPU's memory otherwise
        )
        found = model.generate_batch(
            asked.prompts, generation_config=_wish(asked, pad, eos), continuous_batching_config=config
        )
        outputs = list(found.values())
        failed = [output.error for output in outputs if output.error]
        if failed or len(outputs) != len(asked.prompts):
            raise RuntimeError(f"{len(outputs)} of {len(asked.prompts)} requests came back: {failed[:1]}")
        return [_useful(output.generated_tokens, eos) for output in outputs]

    return run


def _wish(asked: Asked, pad: int, eos: int) -> GenerationConfig:
    """Sampling from the whole vocabulary, as PPO needs it."""
    return GenerationConfig(
        do_sample=True,
        temperature=asked.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=asked.most,
        pad_token_id=pad,
        eos_token_id=eos,
    )


def _useful(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row
