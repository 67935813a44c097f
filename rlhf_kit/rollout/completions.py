"""One response from a vLLM server: what is asked, and what counts as an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_kit.rollout.client import Client, Refused, Unanswered

__all__ = ["COMPLETIONS", "Drawn", "asked", "draw_one"]

COMPLETIONS = "/v1/completions"
_SLACK = 1e-3  # nats by which rounding may bring a log-probability above 0


@dataclass(frozen=True)
class Drawn:
    """A response as it was drawn.

    Attributes:
        ids: its tokens, EOS or whatever ended it included.
        log_probs: the engine's log-probability of each in nats, at the temperature of sampling.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


def asked(
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop: Sequence[str],
    stop_token_ids: Sequence[int],
) -> dict[str, Any]:
    """The fields of a request but for model, prompt and seed.

    All that a server may take from its model's generation config is named, or it would sample otherwise.
    """
    return {
        "max_tokens": max_new_tokens,
        "min_tokens": max(0, min_new_tokens - 1),  # vLLM counts the tokens before the one that may end a response
        **{"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": 0.0},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        **{"stop": list(stop), "stop_token_ids": list(stop_token_ids), "ignore_eos": True},
        **{"skip_special_tokens": False, "logprobs": 0, "return_token_ids": True},
    }


def draw_one(client: Client, request: dict[str, Any]) -> Drawn:
    """One response.

    Raises:
        Unanswered: there is none, or not a whole one of the version that was asked for.
        Refused: there will be none.
    """
    try:
        reply = client.post(COMPLETIONS, request)
    except Refused as failure:
        if failure.status == 404 and "does not exist" in failure.said:
            raise Unanswered("the server no longer has the adapter") from None
        raise
    try:
        (choice,) = reply["choices"]
        name, ids, log_probs = reply["model"], choice["token_ids"], choice["logprobs"]["token_logprobs"]
        prompt, finish = choice["prompt_token_ids"], choice["finish_reason"]
        whole = len(ids) == len(log_probs) and all(isinstance(token, int) for token in ids)
        sound = all(math.isfinite(value) and value <= _SLACK for value in log_probs)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unanswered("an answer without its tokens or their log-probabilities") from None
    if name != request["model"]:
        raise Unanswered(f"an answer of {name}, where {request['model']} was asked")
    if prompt != request["prompt"]:
        raise Unanswered("an answer to another prompt")
    if not whole or not sound or not 0 < len(ids) <= request["max_tokens"]:
        raise Unanswered("an answer whose log-probabilities are not those of its tokens")
    ended = bool(request["stop"]) or ids[-1] in request["stop_token_ids"]
    if not ((finish == "stop" and ended) or (finish == "length" and len(ids) == request["max_tokens"])):
        raise Unanswered(f"an answer that is not whole (finish_reason {finish})")
    return Drawn(tuple(ids), tuple(map(float, log_probs)))
