"""The model card of an exported reward model: what it is, how texts are rendered for it, how it was verified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from rlhf_kit.checkpoint import Manifest
from rlhf_kit.models.loading import base_id
from rlhf_kit.recipe import Recipe

# Settings of the stage that are not a plain value, or may name a place on the machine of the training.
_NOT_SHOWN = ("trainer", "model", "lora", "phases", "init")

_LOAD_ADAPTER = """base = AutoModelForSequenceClassification.from_pretrained(
    "{base}", num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
)
model = PeftModel.from_pretrained(base, "THIS_DIRECTORY").eval()"""
_LOAD_MERGED = (
    'model = AutoModelForSequenceClassification.from_pretrained("THIS_DIRECTORY", dtype=torch.float32).eval()'
)

_CHAT = """prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Why is the sky blue?"}], add_generation_prompt=True, tokenize=False
)
prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]"""
_PLAIN = 'prompt = tokenizer("Why is the sky blue?")["input_ids"]'


def reward_card(recipe: Recipe, trained: Manifest, figures: dict[str, Any], *, chat: bool) -> str:
    """The text of `README.md`, metadata included.

    Args:
        trained: the manifest of the reward stage.
        figures: what `export_reward` measured.
        chat: whether prompts are rendered by a chat template.
    """
    base = trained.base
    name = base_id(recipe.reward_model)
    weights = f"`{base['name_or_path']}`" + (f", sha256 `{base['sha256']}`" if base["sha256"] else "")
    return f"""---
{_metadata(name, merged=figures["merged"])}---

# Reward model on {name}

{_kind(figures["merged"])}, made with `rlhf_kit` from ranked answers (arXiv 2203.02155, section 3.5): of two answers
to a prompt, the one with the higher score is the one that the labelers would rather have.
The weights that it was trained on: {weights}, in {base["dtype"]}{_quantised(base["quantization"], figures["merged"])}.

## Scores

```python
{_example(name, figures, chat=chat)}
```

A text is the prompt {"by the chat template with its generation prompt" if chat else "as it is"}, the response, and EOS
where the response has ended; prompt and response are made tokens one by one, without further special tokens.
The score stands at the last token. Pad on the right, with the tokenizer's pad token, which is not EOS.

The score of `rlhf_kit` is the model's own plus **{figures["offset"]!r}** (its head has no bias to hold this).
It makes no difference to a comparison of two answers.

## Verified

Reloaded from the disk and compared with the trained model on {figures["sequences"]} sequences, in batches and alone;
weights in {figures["dtype"]}, computed in float32; scores computed in bfloat16 are coarser.
Largest difference between two differences of scores: {figures["max_difference"]:.2g}; of a score with the offset:
{figures["max_error"]:.2g}. The limit: {figures["limit"]:.2g}; the scores' standard deviation: {figures["spread"]:.3g}.

## Measured at the end of the training

{_table("figure", _figures(trained.metrics))}

## Data

{_list(trained.inputs["data"])}

## Settings

{_table("setting", _settings(trained))}

Seed {recipe.seed}. Versions: {", ".join(f"{name} {number}" for name, number in trained.versions.items())}.
"""


def _metadata(base: str, *, merged: bool) -> str:
    """What the Hub reads, as YAML."""
    data: dict[str, Any] = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "rlhf", "rlhf_kit", *([] if merged else ["lora"])],
    }
    try:
        validate_repo_id(base)
        data |= {"base_model": base, "base_model_relation": "finetune" if merged else "adapter"}
    except HFValidationError:
        pass  # weights of no repository; the Hub would refuse the card
    return str(ModelCardData(**data).to_yaml()) + "\n"


def _kind(merged: bool) -> str:
    if merged:
        return "A sequence classification model with one label"
    return "A LoRA adapter with a head, for a sequence classification model with one label"


def _quantised(quantization: str | None, merged: bool) -> str:
    if quantization is None:
        return ""
    done = "dequantised before the adapter was merged into them" if merged else "compared after they were dequantised"
    return f" with {quantization} weights, {done}"


def _example(base: str, figures: dict[str, Any], *, chat: bool) -> str:
    imports = [] if figures["merged"] else ["from peft import PeftModel"]
    return "\n".join(
        [
            "import torch",
            *imports,
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")',
            _LOAD_MERGED if figures["merged"] else _LOAD_ADAPTER.format(base=base),
            "",
            _CHAT if chat else _PLAIN,
            'responses = ["Air scatters blue light more than red light.", "No."]',
            'responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in responses]',
            "texts = [prompt + response + [tokenizer.eos_token_id] for response in responses]",
            'batch = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")',
            "with torch.no_grad():",
            f"    scores = model(**batch).logits[:, 0].float() + {figures['offset']!r}",
        ]
    )


def _figures(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The numbers of nested metrics, an interval as one."""
    for name, value in metrics.items():
        if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
            yield prefix + name, f"{value['value']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
        elif isinstance(value, dict):
            yield from _figures(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _settings(trained: Manifest) -> Iterator[tuple[str, str]]:
    for name, value in trained.recipe[trained.stage].items():
        if name not in _NOT_SHOWN:
            yield name, str(value)


def _table(what: str, rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join([f"| {what} | value |", "|---|---|", *(f"| `{name}` | `{value}` |" for name, value in rows)])


def _list(data: dict[str, Any]) -> str:
    return "\n".join(f"* `{name}`: sha256 `{digest}`" for name, digest in data.items())
