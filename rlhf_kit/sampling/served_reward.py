"""Scores by a vLLM server that serves a reward model of this kit's (`vllm serve DIR --runner pooling`).

The server reads the score of a sequence where the model has its last token, as the kit does, and gives it as it leaves
the head: `/pooling` without an activation. What an export keeps in its configuration because the head has no room for
it, a constant, is added here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_kit.classifier import OFFSET
from rlhf_kit.data import Encoder
from rlhf_kit.errors import EngineError, ModelError
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Conversation
from rlhf_kit.reward_classifier import PairEncoder
from rlhf_kit.rollout.client import Client, Patience, Refused, Unanswered
from rlhf_kit.rollout.handshake import has_tokens_of, served

__all__ = ["ServedReward"]

POOLING = "/pooling"
_BATCH = 64  # sequences of a request


class ServedReward:
    """A reward model that a vLLM server has; a `Scorer`.

    Args:
        directory: of the export that is served; its tokenizer and its configuration are read here, its weights are not.
        section: where the server is.

    Raises:
        ModelError: the directory holds no reward model that a server can score with as the kit does.
        EngineError: the server does not answer, or serves something else.
    """

    def __init__(self, directory: str, section: RolloutSection) -> None:
        config = _config(directory)
        self.name, self.section, self.offset = directory, section, float(config[OFFSET])
        tokenizer = AutoTokenizer.from_pretrained(directory)
        text = config.get("text_config") or config
        context = int(text.get("max_position_embeddings") or 2**31)
        self.pairs = PairEncoder(Encoder(tokenizer, max_prompt_length=context, max_length=context))
        self._client = Client(section.base_url, section.timeout / 2)
        self._model = self._asked(lambda: self._served_as(tokenizer))

    @property
    def shortened_prompts(self) -> int:
        """Prompts that lost their oldest turns."""
        return len(self.pairs.shortened)

    @property
    def cut_responses(self) -> int:
        """Responses that lost a part."""
        return self.pairs.encoder.cut_responses

    def score(
        self,
        prompts: Sequence[Conversation],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """(N,) float32 on the CPU, as `RewardModel.score` gives them.

        Raises:
            EngineError: the server does not answer, or refuses.
        """
        ended = [True] * len(responses) if ended is None else ended
        pairs = zip(*self.pairs(prompts, responses, ended), strict=True)
        rows = [prompt + response for prompt, response in pairs]
        scores: list[float] = []
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            scores += self._asked(lambda some=some: self._scores(some))  # type: ignore[misc]
            progress(len(some))
        return torch.tensor(scores, dtype=torch.float32) + self.offset

    def _scores(self, rows: list[list[int]]) -> list[float]:
        asked = {"model": self._model, "input": rows, "task": "classify", "use_activation": False}
        said = self._client.post(POOLING, asked)
        try:
            data = sorted(said["data"], key=lambda one: int(one["index"]))
            scores = [float(value) for one in data for value in one["data"]]
            places = [int(one["index"]) for one in data]
        except (KeyError, TypeError, ValueError):
            raise Unanswered(f"{POOLING} answers something else than scores") from None
        if places != list(range(len(rows))) or len(scores) != len(rows) or not all(map(math.isfinite, scores)):
            raise Unanswered(f"not one score for each of {len(rows)} responses")
        return scores

    def _served_as(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The name under which the server has the model."""
        here = Path(self.name).resolve()
        models = served(self._client)
        ours = [model for model in models if Path(model.root or model.name).name == here.name]
        if not ours:
            there = ", ".join(str(model.root or model.name) for model in models) or "nothing"
            raise EngineError(f"{self._client.url}: serves {there}, not {here}; {_serve(self.name)}")
        if not has_tokens_of(self._client, ours[0].name, tokenizer):
            raise EngineError(f"{self._client.url}: its tokens are other ones than those of {here}")
        return ours[0].name

    def _asked(self, do: Callable[[], Any]) -> Any:
        """What the server answers, which may be starting again."""
        try:
            return Patience(self._client.url, self.section.timeout).persist(do)
        except Refused as failure:
            raise EngineError(
                f"{self._client.url}: the vLLM server refuses what it is asked, {failure}; {_serve(self.name)}"
            ) from None


def _serve(directory: str) -> str:
    return f"start it as: vllm serve {directory} --runner pooling --dtype float32"


def _config(directory: str) -> dict[str, Any]:
    """The configuration of a whole reward model that this kit has exported.

    Raises:
        ModelError: it is none.
    """
    file = Path(directory) / "config.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if OFFSET not in found:
        raise ModelError(
            f"{directory}: no whole reward model of this kit, which is what a vLLM server can score with; make one: "
            f"rlhf-kit export RUN --to reward --merged --dtype float32 --out DIR, then {_serve('DIR')}"
        )
    return dict(found)
