"""What time and memory should grow with, as counted before anything is measured.

A Llama of L layers, hidden size h, inner size I and vocabulary V has N = L (4 h^2 + 3 h I) weights in its linear
layers and E = h V in its head, which is tied; rank r on all of them has M = r L (8 h + 3 (h + I)) weights. B prompts of
P tokens, K answers of R tokens each.

Operations. A token costs 2 (N + M) forward and 4 N + 6 M in training (a frozen base has no gradient of its own); each
token of a row of n attends over n, 4 L h n forward and 12 L h n in training; the head costs 2 E and 4 E a token.

* SFT: B rows of P + R, the head at every token.
* reward: B rows of P + K R (the answers behind one copy of the prompt), no head.
* PPO: the prompts once and R tokens a row to sample, the head at those; policy, reference, reward and value forward
  (the head for the first two, at the R tokens); policy and value in training (the head for the policy).

Time is operations over the machine's rate; where there is a head, what passes over the logits (tokens x V numbers:
loss, softmax, what the trainer logs of them) and fits no cache; and for sampling the weights, read once for each of the
R steps. So a constant for each of these, one set a stage. The optimiser and Python are not in it.

Memory. Known: 4 bytes a weight of the base, 16 a weight of a trained adapter (itself, its gradient, Adam's two
moments), 4 of a frozen one. The activations that backward keeps are so many bytes a token, a layer and a unit of h
(the attention kernel keeps no n x n), the logits so many a token and a word of V where the head is at every token: a
constant each and one for what a first step allocates once, fitted over all points of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VOCABULARY, RANK, HEAD_DIM = 49_152, 16, 64


@dataclass(frozen=True)
class Point:
    """One measurement: a stage at these sizes, everything in float32."""

    stage: str
    hidden: int
    inner: int
    layers: int
    batch: int
    answers: int
    prompt: int
    response: int

    @property
    def config(self) -> dict[str, Any]:
        """Fields of a `LlamaConfig`."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // HEAD_DIM,
            "num_key_value_heads": self.hidden // HEAD_DIM,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
        }

    @property
    def linear(self) -> int:
        """N."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)

    @property
    def adapter(self) -> int:
        """M."""
        return RANK * self.layers * (8 * self.hidden + 3 * (self.hidden + self.inner))

    @property
    def head(self) -> int:
        """E."""
        return self.hidden * VOCABULARY

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return self.prompt + (self.answers if self.stage == "reward" else 1) * self.response

    def operations(self) -> float:
        """Of one optimiser step, of PPO of one update."""
        tokens, said = self.batch * self.row, self.batch * self.response
        forward = 2.0 * (self.linear + self.adapter) + 4.0 * self.layers * self.hidden * self.row
        training = 4.0 * self.linear + 6.0 * self.adapter + 12.0 * self.layers * self.hidden * self.row
        if self.stage == "reward":
            return tokens * training
        if self.stage == "sft":
            return tokens * (training + 4.0 * self.head)
        sampling = tokens * forward + said * 2.0 * self.head
        scoring = 4 * tokens * forward + 2 * said * 2.0 * self.head
        return sampling + scoring + 2 * tokens * training + said * 4.0 * self.head

    def spent_on(self) -> list[float]:
        """What seconds are proportional to: operations, numbers of the logits, bytes of the weights that are read."""
        said = self.batch * self.response * VOCABULARY
        weights = 4.0 * (self.linear + self.head) * self.response
        return {
            "sft": [self.operations(), float(self.batch * self.row * VOCABULARY)],
            "reward": [self.operations()],
            "ppo": [self.operations(), float(said), weights],
        }[self.stage]

    def known_bytes(self) -> float:
        """Weights, gradients and moments."""
        adapters = {"sft": 16, "reward": 16, "ppo": 16 + 16 + 4}[self.stage]
        return 4.0 * (self.linear + self.head) + adapters * self.adapter

    def grown_with(self) -> list[float]:
        """What the rest is proportional to: tokens x layers x hidden, and tokens x vocabulary where it matters."""
        tokens = self.batch * self.row
        activations = float(tokens * self.layers * self.hidden)
        return [activations, float(tokens * VOCABULARY)] if self.stage == "sft" else [activations]


def expected_seconds(points: Sequence[Point], measured: Sequence[float]) -> tuple[list[float], list[float]]:
    """Seconds by the law, and its constants: seconds a unit of each of `spent_on`."""
    spent = np.array([point.spent_on() for point in points])
    constants = _fitted(spent, np.array(measured), np.array(measured))
    return [float(value) for value in spent @ constants], [float(value) for value in constants]


def expected_bytes(points: Sequence[Point], measured: Sequence[float]) -> tuple[list[float], list[float]]:
    """Bytes by the law, and its constants: bytes a unit of each of `grown_with`, then the bytes allocated once."""
    known = np.array([point.known_bytes() for point in points])
    grown = np.array([[*point.grown_with(), 1.0] for point in points])
    constants = _fitted(grown, np.array(measured) - known, np.array(measured))
    return [float(value) for value in known + grown @ constants], [float(value) for value in constants]


def _fitted(terms: Any, values: Any, whole: Any) -> Any:
    """Constants from 0 that fit best in ratios to `whole`, so that a small point counts as much as a large one."""
    from scipy.optimize import nnls

    scale = terms.max(axis=0)
    found, _ = nnls(terms / scale / whole[:, None], values / whole)
    return found / scale


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
