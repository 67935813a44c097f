"""The model card of a policy that `PPOTrainer` uploads: what it was trained from, how, and with which figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from rlhf_kit.checkpoint import versions
from rlhf_kit.models.sources import is_repository_name
from rlhf_kit.ppo.config import OWN_TO_RECIPES, PPOConfig
from rlhf_kit.recipe_ppo import PpoSection

_FIGURES = (
    *("score", "kl", "entropy", "response_length", "eos_rate", "explained_variance"),
    *("eval_score", "eval_win_rate", "eval_kl"),
)


def ppo_card(
    name: str,
    base: str,
    config: PPOConfig,
    history: Sequence[Mapping[str, Any]],
    *,
    adapter: bool,
    tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """The text of `README.md`, metadata included.

    Args:
        name: of the model.
        base: Hub id of the weights that were trained; anything else is left out of the metadata.
        history: the log entries of the run.
        adapter: whether an adapter was trained, or the model as a whole.
        tags: further ones.
        metadata: further fields for the Hub: `license`, `language`, `datasets`.
    """
    what = "A LoRA adapter" if adapter else "A model"
    return f"""---
{_metadata(base, adapter, tags, metadata or {})}---

# {name}

{what} trained from `{base}` by PPO (arXiv 1707.06347, 2203.02155) with `rlhf_kit`. The value model is in `value/`.

## Figures

The last that were logged.

{_table("figure", _figures(history))}

## Settings

Those that are not the default.

{_table("setting", _settings(config))}

Seed {config.seed}. Versions: {", ".join(f"{package} {number}" for package, number in versions().items())}.
"""


def _metadata(base: str, adapter: bool, tags: Sequence[str], further: Mapping[str, Any]) -> str:
    data: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(("ppo", "rlhf", "rlhf_kit", *(["lora"] if adapter else []), *tags))),
    }
    if is_repository_name(base):  # the Hub would refuse the card with another
        data |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    data |= {key: value for key, value in further.items() if value is not None}
    return str(ModelCardData(**data).to_yaml()) + "\n"


def _figures(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    latest = {key: value for entry in history for key, value in entry.items()}
    for key in _FIGURES:
        if key in latest:
            yield key, f"{float(latest[key]):.4g}"


def _settings(config: PPOConfig) -> Iterator[tuple[str, str]]:
    for key, default in PpoSection().model_dump().items():
        if key not in OWN_TO_RECIPES and getattr(config, key) != default:
            yield key, str(getattr(config, key))


def _table(what: str, rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join([f"| {what} | value |", "|---|---|", *(f"| `{key}` | `{value}` |" for key, value in rows)])
