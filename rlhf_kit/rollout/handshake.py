"""What a vLLM server must be able to do before anything is sampled from it, found out by asking it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from rlhf_kit.rollout.client import Client, Refused, Unanswered
from rlhf_kit.rollout.completions import COMPLETIONS

__all__ = [
    "ADD_LORA_FAILED",
    "LOAD",
    "NO_FILES",
    "UNLOAD",
    "Served",
    "has_tokens_of",
    "highest_rank",
    "serve_line",
    "served",
    "shortcomings",
]

MODELS, TOKENIZE = "/v1/models", "/tokenize"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADD_LORA_FAILED = "Call to add_lora method failed"  # how vLLM says of status 500 that it is the adapter's fault
NO_FILES = "No adapter found"

_TEXT = "Hello there, 12 cats!\n\tnaïve = f(x) # 東京"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_SAME = 0.02  # nats; the batch that a request falls into moves log-probabilities in bfloat16 by less


@dataclass(frozen=True)
class Served:
    """A model that the server answers for: its name, the base that it is an adapter of (None of a base), and where it
    was loaded from."""

    name: str
    parent: str | None
    root: str | None


def served(client: Client) -> list[Served]:
    """What the server has now; raises as `Client.get` does."""
    try:
        return [
            Served(str(model["id"]), model.get("parent"), model.get("root")) for model in client.get(MODELS)["data"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise Unanswered(f"{MODELS} answers something else than a list of models") from None


def serve_line(base: str, rank: int) -> str:
    """The command by which such a server is started."""
    enough = next((most for most in _RANKS if most >= rank), rank)
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {base} --enable-lora --max-lora-rank {enough} "
        "--logprobs-mode processed_logprobs"
    )


def highest_rank(adapters: Iterable[LoraConfig]) -> int:
    """What `--max-lora-rank` must be at least for adapters of these configurations; 1 where there are none."""
    return max((max([adapter.r, *adapter.rank_pattern.values()]) for adapter in adapters), default=1)


def shortcomings(
    client: Client, base: str, tokenizer: PreTrainedTokenizerBase, adapters: Path, *, temperature: float, rank: int
) -> Iterator[str]:
    """All that the server cannot do and must.

    Args:
        adapters: the directory in which it must find adapters.
        temperature: of sampling; its log-probabilities must be those at this temperature.
        rank: of the adapters.

    Raises:
        Unanswered: it does not answer.
        Refused: it does not answer such questions at all (a key that is wrong, another kind of server).
    """
    if not has_tokens_of(client, base, tokenizer):
        yield "its tokens are other ones than the policy's: it serves another model, or one with another tokenizer"
    else:
        yield from _wrong_log_probs(client, base, tokenizer.encode(_TEXT, add_special_tokens=False), temperature)
    yield from _wrong_adapters(client, adapters, rank)


def has_tokens_of(client: Client, model: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the server makes of a text what the tokenizer makes of it; raises as `Client.post` does."""
    theirs = client.post(TOKENIZE, {"model": model, "prompt": _TEXT, "add_special_tokens": False})
    ours = tokenizer.encode(_TEXT, add_special_tokens=False)
    return isinstance(theirs, dict) and theirs.get("tokens") == ours


def _wrong_log_probs(client: Client, base: str, prompt: list[int], temperature: float) -> Iterator[str]:
    """Of one token at two temperatures: raw ones are the same, which no processed ones are."""
    asked = {"model": base, "prompt": prompt, "max_tokens": 1, "logprobs": 5, "seed": 0, "top_k": 0, "top_p": 1.0}
    said = [client.post(COMPLETIONS, {**asked, "temperature": heat}) for heat in (1.0, 0.5)]
    try:
        first, second = (_top(reply) for reply in said)
    except (KeyError, IndexError, TypeError, AttributeError):
        yield "it gives no log-probabilities of its tokens"
        return
    shared = first.keys() & second.keys()
    if max((*first.values(), *second.values())) > 1e-3:
        yield "it gives logits where log-probabilities are needed (--logprobs-mode processed_logprobs)"
    elif temperature != 1 and shared and all(abs(first[token] - second[token]) < _SAME for token in shared):
        yield (
            f"its log-probabilities are those at temperature 1, while sampling is at {temperature:g} "
            "(--logprobs-mode processed_logprobs)"
        )


def _top(reply: Any) -> dict[str, float]:
    return {token: float(value) for token, value in reply["choices"][0]["logprobs"]["top_logprobs"][0].items()}


def _wrong_adapters(client: Client, adapters: Path, rank: int) -> Iterator[str]:
    """By an adapter of this rank without a single matrix: the server refuses it, and what it says first is what counts.

    vLLM looks for the route, `--enable-lora`, the directory and the rank in this order, and only then at the weights;
    its log has an error of it.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
    }
    probe = Path(tempfile.mkdtemp(prefix=".probe-", dir=adapters))  # several processes may ask at the same time
    probe.chmod(0o755)  # the server may be another user's
    (probe / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
    save_file({}, probe / "adapter_model.safetensors", {"format": "pt"})
    name = f"rlhf-kit{probe.name}"
    try:
        client.order(LOAD, {"lora_name": name, "lora_path": str(probe.resolve())})
        client.order(UNLOAD, {"lora_name": name})
    except Refused as failure:
        if failure.status != 404:
            raise
        if NO_FILES in failure.said:
            yield f"it does not see the directory of adapters, {adapters.resolve()} (ppo.rollout.adapters_dir)"
        else:
            yield "it takes no adapters while it runs (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
    except Unanswered as failure:
        if not failure.said.startswith(ADD_LORA_FAILED):
            raise
        if "LoRA is not enabled" in failure.said:
            yield "it takes no adapters (--enable-lora)"
        elif "max_lora_rank" in failure.said:
            yield f"it takes no adapters of rank {rank} (--max-lora-rank)"
    finally:
        shutil.rmtree(probe, ignore_errors=True)
