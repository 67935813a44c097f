"""The model card of an exported reward model: what it is, how texts are rendered for it, how it was verified."""

from __future__ import annotations

from typing import Any

from rlhf_kit.export.card import code, figures_of, metadata, table
from rlhf_kit.export.lineage import data_of, name_of, settings_of
from rlhf_kit.export.source import REWARD, VALUE, Source
from rlhf_kit.models.loading import base_id

_LOAD_ADAPTER = """base = AutoModelForSequenceClassification.from_pretrained(
    "{base}", num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
)
model = PeftModel.from_pretrained(base, "THIS_DIRECTORY").eval()"""
_LOAD_MERGED = (
    'model = AutoModelForSequenceClassification.from_pretrained("THIS_DIRECTORY", dtype=torch.float32).eval()'
)

_WHATS = {
    REWARD: """from ranked answers (arXiv 2203.02155, section 3.5): of two answers
to a prompt, the one with the higher score is the one that the labelers would rather have""",
    VALUE: """by PPO (arXiv 1707.06347), beside its policy: at any token of an
answer, the reward that the policy is expected to get from there on, penalties included""",
}

_CHAT = """prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Why is the sky blue?"}], add_generation_prompt=True, tokenize=False
)
prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]"""
_PLAIN = 'prompt = tokenizer("Why is the sky blue?")["input_ids"]'


def reward_card(source: Source, figures: dict[str, Any], *, chat: bool) -> str:
    """The text of `README.md`, metadata included.

    Args:
        figures: what `export_reward` measured.
        chat: whether prompts are rendered by a chat template.
    """
    base, trained, recipe = source.model, source.trained, source.recipe
    name = base_id(base)
    weights = code(name_of(base.name_or_path)) + (f", sha256 {code(base.sha256)}" if base.sha256 else "")
    merged = figures["merged"]
    return f"""---
{_metadata(name, merged=merged)}---

# {source.role.capitalize()} model on {code(name)}

{_kind(merged)}, made with `rlhf_kit` {_WHATS[source.role]}.
The weights that it was trained on: {weights}, in {base.dtype}{_quantised(base.quantization, merged)}.

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

{table(figures_of(trained.metrics), "figure", "value")}

## Data

{table(((data.field, data.name, data.sha256) for data in data_of(trained)), "data", "name", "sha256")}

## Settings

Those that are not the recipe's defaults.

{table(settings_of(trained), "setting", "value")}

Seed {recipe.seed}. Versions: {", ".join(f"{name} {number}" for name, number in trained.versions.items())}.
"""


def _metadata(base: str, *, merged: bool) -> str:
    """What the Hub reads, as YAML."""
    return metadata(
        base,
        "finetune" if merged else "adapter",
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-classification",
        tags=["reward-model", "rlhf", "rlhf_kit", *([] if merged else ["lora"])],
    )


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
