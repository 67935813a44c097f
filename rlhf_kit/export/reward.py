"""A reward or value model as a plain sequence classification model with one label, verified: a copy that does not
score as the trained model did is not written."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_kit.checkpoint import INPUTS, clear_work
from rlhf_kit.classifier import write_adapter, write_merged
from rlhf_kit.data import Encoder
from rlhf_kit.errors import ExportError
from rlhf_kit.export.merged import refuse_strays
from rlhf_kit.export.questions import QUESTIONS
from rlhf_kit.export.reward_card import reward_card
from rlhf_kit.export.source import Source
from rlhf_kit.models import Backbone, ScalarHead, load_base, load_tokenizer, resolve
from rlhf_kit.models.exact import cast_to_float32
from rlhf_kit.models.loading import base_id, resolve_dtype
from rlhf_kit.recipe import ModelSection, Recipe
from rlhf_kit.rewards import REWARD, score

log = logging.getLogger(__name__)

# Largest difference between two differences of scores, for scores with a standard deviation of 1 or less.
TOLERANCE = 1e-4
# The same in standard deviations of the scores, where the written weights were rounded to bfloat16. Measured: 0.08 on
# SmolLM2-135M, 0.01 to 0.05 on tiny models of four architectures, with random adapters and heads.
ROUNDED = 0.25

_ANSWERS = (
    "No.",
    "I do not know, sorry.",
    "Red, green and blue.",
    "Air scatters blue light more than red light, so the sky looks blue from below.",
    "1. Read the question.\n2. Think.\n3. Answer it in plain words.\n\nThat is all.",
    "你好！我可以回答问题，也可以帮忙写作。",
)
_QUESTIONS = 4
_RANDOM_SEQUENCES = 12
_LONGEST = 24


@dataclass(frozen=True)
class Texts:
    """What scores are compared on: N prompts with N responses, as token ids."""

    prompts: list[list[int]]
    responses: list[list[int]]

    @property
    def whole(self) -> list[list[int]]:
        """Each prompt with its response."""
        return [prompt + response for prompt, response in zip(self.prompts, self.responses, strict=True)]


def export_reward(source: Source, out: Path, *, merged: bool, dtype: str | None = None) -> dict[str, Any]:
    """Writes a reward or value model to `out` as transformers and PEFT load it, reloads it and compares scores.

    Both sides are computed in float32, so that the limit can be narrow: of a base in bfloat16 with its weights as they
    are, of a quantised base with its dequantised weights. A merged model in bfloat16 is first written and compared in
    float32, and once more after its weights were rounded.

    Args:
        source: with a head.
        out: an empty directory, or the work directory of a step; what was written is gone if this function raises.
        merged: a whole model; else a PEFT adapter (task type SEQ_CLS) that holds the head too.
        dtype: of a merged model's weights, float32 or bfloat16; where left out, that of the base it was trained on. An
            adapter is float32.

    Returns:
        What was measured: the number of sequences, the scores' standard deviation, the largest difference between
        two differences of scores (the kit's and the reloaded model's), the largest difference of a score with the
        offset added, the limit of both, the offset.

    Raises:
        ExportError: the reloaded model differs, all scores are equal, or transformers has no classification model of
            this kind with one linear layer on top.
        CheckpointError: the stage's adapter or head is damaged.
    """
    if (out / INPUTS).is_file():
        clear_work(out)  # of what an interrupted attempt has left
    elif any(out.iterdir()):
        raise ExportError(f"{out}: not empty; name a new directory")
    if dtype is not None and not merged:
        raise ExportError("dtype is of a merged model; an adapter is written in float32, as it was trained")
    if dtype not in (None, "float32", "bfloat16"):
        raise ExportError(f"dtype: a {source.role} model is written in float32 or bfloat16, not in {dtype}")
    model = source.model.model_copy(update={"attn_implementation": None})
    try:
        return _export(source, model, out, dtype or model.dtype if merged else None)
    except BaseException:
        clear_work(out)
        raise


def _export(source: Source, model: ModelSection, out: Path, dtype: str | None) -> dict[str, Any]:
    """A merged model in `dtype`, or an adapter where it is None. `model` is what the base is loaded by."""
    backbone, quantization = _in_float32(model)
    backbone.load_adapter(REWARD, source.adapter)
    backbone.add_head(REWARD, ScalarHead.load(source.head or source.adapter, backbone.hidden_size))
    tokenizer = backbone.tokenizer
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(out)
    texts = probe_texts(backbone, source.recipe)
    expected = score(backbone, texts.prompts, texts.responses, packed=False)
    offset = backbone.heads[REWARD].folded()[1]
    if dtype is not None:
        write_merged(backbone, model, out)
        del backbone
        reloaded: nn.Module = _reload_merged(out, model)
    else:
        write_adapter(backbone, source.adapter, model, out)
        del backbone
        reloaded = _reload_adapter(out, model, tokenizer.pad_token_id, quantization)
    figures = compare(out, expected, _both_ways(reloaded, texts, tokenizer.pad_token_id), offset)
    if dtype == "bfloat16":
        reloaded.to(torch.bfloat16).save_pretrained(out)
        found = _both_ways(_reload_merged(out, model), texts, tokenizer.pad_token_id)
        figures = compare(out, expected, found, offset, rounded=True)
    figures |= {"merged": dtype is not None, "dtype": dtype or "float32"}
    card = reward_card(source, figures, chat=tokenizer.chat_template is not None)
    (out / "README.md").write_text(card, encoding="utf-8")
    return figures


def _in_float32(model: ModelSection) -> tuple[Backbone, Any]:
    """The base's weights in float32, and how it was quantised, if it was. A quantised base is dequantised before the
    adapter comes to it: merging into quantised weights loses half of the adapter."""
    base = load_base(model)
    quantization = None if model.quantization is None else base.config.quantization_config
    base = cast_to_float32(base if quantization is None else base.dequantize(dtype=torch.float32))
    return Backbone(base, load_tokenizer(model), base_id(model)), quantization


def probe_texts(backbone: Backbone, recipe: Recipe) -> Texts:
    """Short texts as the kit renders them, ended and not, and tokens from the whole vocabulary; the same every time."""
    tokenizer = backbone.tokenizer
    encoder = Encoder(tokenizer, max_prompt_length=recipe.data.max_prompt_length, max_length=recipe.reward.max_length)
    texts = Texts([], [])
    for question in QUESTIONS[:_QUESTIONS]:
        prompt = encoder.prompt(question)
        for number, answer in enumerate(_ANSWERS):
            texts.prompts.append(prompt)
            texts.responses.append(encoder.response(answer, len(prompt), ended=number != 3))
    rng = random.Random(0)
    size = min(len(tokenizer), backbone.base.get_input_embeddings().num_embeddings)
    special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
    usable = [token for token in range(size) if token not in special]
    for _ in range(_RANDOM_SEQUENCES):
        texts.prompts.append(rng.choices(usable, k=rng.randint(1, _LONGEST)))
        texts.responses.append([*rng.choices(usable, k=rng.randint(1, _LONGEST)), tokenizer.eos_token_id])
    return texts


# -------------------------------------------------------------------- verifying


def _reload_merged(out: Path, model: ModelSection) -> PreTrainedModel:
    """The written model as anyone loads it, computed in float32."""
    found, report = AutoModelForSequenceClassification.from_pretrained(
        out,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=model.trust_remote_code,
        output_loading_info=True,
    )
    refuse_strays(out, report)
    return found.eval()


def _reload_adapter(out: Path, model: ModelSection, pad: int, quantization: Any) -> PeftModel:
    """The written adapter on a freshly loaded classification model, as PEFT loads it."""
    base = AutoModelForSequenceClassification.from_pretrained(
        resolve(model.name_or_path, model.sha256),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
        dtype=resolve_dtype(model.dtype),
        num_labels=1,
        pad_token_id=pad,
        **({} if quantization is None else {"quantization_config": quantization}),
    )
    base = cast_to_float32(base if quantization is None else base.dequantize(dtype=torch.float32))
    return PeftModel.from_pretrained(base, str(out)).eval()


def _both_ways(model: nn.Module, texts: Texts, pad: int) -> Tensor:
    """(2, N) scores in batches and alone: what is wrong with padding shows as a difference."""
    return torch.stack([plain_scores(model, texts.whole, pad, batch_size=size) for size in (8, 1)])


@torch.no_grad()
def plain_scores(model: nn.Module, sequences: list[list[int]], pad: int, *, batch_size: int) -> Tensor:
    """(N,) float32: what a sequence classification model says of N sequences of tokens, padded on the right."""
    scores = torch.empty(len(sequences))
    device = next(model.parameters()).device
    for rows in _rows(len(sequences), batch_size):
        width = max(len(sequences[row]) for row in rows)
        ids = torch.tensor([sequences[row] + [pad] * (width - len(sequences[row])) for row in rows])
        lengths = torch.tensor([len(sequences[row]) for row in rows])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        scores[list(rows)] = logits[:, 0].float().cpu()
    return scores


def _rows(count: int, batch_size: int) -> Iterator[range]:
    for start in range(0, count, batch_size):
        yield range(start, min(start + batch_size, count))


def compare(out: Path, expected: Tensor, found: Tensor, offset: float, *, rounded: bool = False) -> dict[str, Any]:
    """Compares differences of scores, and scores with the offset added.

    Args:
        expected: (N,) the kit's scores.
        found: (ways, N) the reloaded model's, computed in several ways.
        rounded: the reloaded weights were rounded to bfloat16.

    Raises:
        ExportError: they differ, are not finite, or are all the same.
    """
    if not (torch.isfinite(expected).all() and torch.isfinite(found).all()):
        raise ExportError(f"{out}: scores that are not finite; the trained reward model or its copy is damaged")
    spread = float(expected.std())
    limit = ROUNDED * spread if rounded else TOLERANCE * max(1.0, spread)
    if spread <= 10 * TOLERANCE:
        raise ExportError(f"{out}: the reward model gives all sequences the same score (they differ by {spread:.1g})")
    error = (found - expected).double()
    # The largest |(a_i - a_j) - (b_i - b_j)| over all i and j is the range of a - b.
    difference = float((error.amax(1) - error.amin(1)).max())
    figures = {
        "sequences": expected.numel(),
        "spread": spread,
        "max_difference": difference,
        "max_error": float((error + offset).abs().max()),
        "limit": limit,
        "offset": offset,
    }
    log.info("differences of scores agree within %.1e (limit %.1e, spread %.2f)", difference, limit, spread)
    if max(difference, figures["max_error"]) > limit:
        raise ExportError(
            f"{out}: reloaded, its scores differ from the trained reward model's: differences by up to "
            f"{difference:.3g}, scores with the offset by {figures['max_error']:.3g}; the limit is {limit:.3g} "
            f"(the scores' standard deviation is {spread:.3g})"
        )
    return figures
