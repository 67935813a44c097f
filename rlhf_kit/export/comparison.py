"""The trained model beside the exported one: the same tokens, the trained model's own answers, logit by logit."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlhf_kit.data import Encoder
from rlhf_kit.errors import ExportError
from rlhf_kit.export.questions import QUESTIONS
from rlhf_kit.models import Backbone
from rlhf_kit.models.exact import computed_in
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.rewards import autocast
from rlhf_kit.rollout import sample

log = logging.getLogger(__name__)

POSITIONS = 256
_LONGEST_ANSWER = 64
_LONGEST_PROMPT = 256
_BATCH = 8
_MOST_ROUNDS = 8
# Positions whose logits are in memory several times over, of a vocabulary of any size.
_ROWS = 16
# Logits of one forward pass, 67 MB in float32: casting a model's layers up is worth several sequences at once.
_NUMBERS = 2**24
# How much closer the export must be to the trained model than the base is.
MARGIN = 10.0


@dataclass(frozen=True)
class Answers:
    """Prompts with the answers of the trained model.

    Attributes:
        sequences: token ids, prompt and answer.
        first: of each, the position whose logits predict the answer's first token; compared from there on.
    """

    sequences: list[list[int]]
    first: list[int]

    @property
    def positions(self) -> int:
        """How many positions are compared: those whose logits predict a token of an answer."""
        return sum(len(s) - 1 - f for s, f in zip(self.sequences, self.first, strict=True))


def own_answers(backbone: Backbone, name: str, positions: int = POSITIONS) -> Answers:
    """The trained model's likeliest answers to fixed questions, and sampled ones if these have too few tokens.

    In a likeliest answer each token is the trained model's first choice: where the export's is the same, it would have
    given the same answer.

    Args:
        name: the adapter that answers.
    """
    encoder = Encoder(backbone.tokenizer, max_prompt_length=min(_LONGEST_PROMPT, backbone.context_length // 2))
    prompts = [encoder.prompt(question) for question in QUESTIONS]
    room = min(_LONGEST_ANSWER, backbone.context_length - max(map(len, prompts)))
    generator = torch.Generator().manual_seed(0)
    found = Answers([], [])
    for number, start in product(range(_MOST_ROUNDS), range(0, len(prompts), _BATCH)):
        asked, temperature = prompts[start : start + _BATCH], 0.0 if number == 0 else 1.0
        with torch.no_grad(), backbone.role(name), autocast(backbone):
            answers = sample(backbone, asked, max_new_tokens=room, temperature=temperature, generator=generator)
        for prompt, answer in zip(asked, answers, strict=True):
            if prompt + answer not in found.sequences:  # said once more, it is no new position
                found.sequences.append(prompt + answer)
                found.first.append(len(prompt) - 1)
        if found.positions >= positions:
            return found
    raise ExportError(
        f"the trained model ends its answers at once: {found.positions} tokens in {len(found.sequences)} answers, "
        f"where {positions} are to be compared; there is nothing to carry away"
    )


def logits_of(
    model: torch.nn.Module, causal: PreTrainedModel, answers: Answers, dtype: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    """(T, V) logits of each sequence's compared positions, one sequence after another.

    Args:
        model: what is called: the causal model itself, or PEFT's around it.
        causal: the causal model.
        dtype: of the computation, whatever the weights are in.
    """
    model.eval()
    width = max(map(len, answers.sequences)) - 1
    together = max(1, _NUMBERS // (width * causal.get_output_embeddings().weight.size(0)))
    for start in range(0, len(answers.sequences), together):
        rows = [torch.tensor(sequence[:-1]) for sequence in answers.sequences[start : start + together]]
        # On the right, where no token of the sequence sees it.
        ids = pad_sequence(rows, batch_first=True).to(causal.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(causal.device)
        with computed_in(causal, dtype):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, tokens, first in zip(logits, rows, answers.first[start : start + together], strict=True):
            yield row[first : len(tokens)].to(dtype).cpu()


@dataclass(frozen=True)
class Figures:
    """Means are over positions, differences over positions and vocabulary; KL in nats, from the trained model.

    Attributes:
        positions: how many.
        max_difference: the largest of a logit between the trained and the other model.
        mean_difference: the mean of it.
        top1_agreement: at how many positions both hold the same token for the likeliest.
        mean_kl: of KL(trained || other).
    """

    positions: int
    max_difference: float
    mean_difference: float
    top1_agreement: float
    mean_kl: float


class Logits:
    """Logits of several sequences in a file without a name, gone with this object: hundreds of positions of a large
    vocabulary would be a good part of the model's own size in memory."""

    def __init__(self, directory: Path, rows: Iterable[Tensor]) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - read again and again, closed by its end
        self._shapes: list[torch.Size] = []
        for logits in rows:
            logits.numpy().tofile(self._file)
            self._shapes.append(logits.shape)
            self._dtype = logits.numpy().dtype

    def __iter__(self) -> Iterator[Tensor]:
        self._file.seek(0)
        for shape in self._shapes:
            yield torch.from_numpy(np.fromfile(self._file, self._dtype, shape.numel()).reshape(shape))


@dataclass(frozen=True)
class Reference:
    """What an export is compared with: made from the trained model before anything is written.

    Attributes:
        logits: of each sequence (T, V).
        base: the figures of the model without the adapter.
    """

    answers: Answers
    logits: Logits
    base: Figures

    def compare(self, others: Iterable[Tensor]) -> Figures:
        """The figures of another model's logits, sequence by sequence; a wider vocabulary is cut (padding rows)."""
        return figures(self.logits, others)


def refer(
    backbone: Backbone, name: str, answers: Answers, scratch: Path, dtype: torch.dtype = torch.float32
) -> Reference:
    """The trained model's logits, and how far the base without the adapter is from them.

    Args:
        scratch: a directory on a disk with room for the logits.
    """
    with as_peft():  # the very sums that PEFT's own layers make
        with backbone.role(name):
            logits = Logits(scratch, logits_of(backbone.base, backbone.base, answers, dtype))
        with backbone.role(None):
            base = figures(logits, logits_of(backbone.base, backbone.base, answers, dtype))
    return Reference(answers, logits, base)


def figures(trained: Iterable[Tensor], others: Iterable[Tensor]) -> Figures:
    """Compares two models' logits (T, V), sequence by sequence."""
    positions, largest, total, count, same, kl = 0, 0.0, 0.0, 0, 0, 0.0
    for ours_all, theirs_all in zip(trained, others, strict=True):
        for ours, theirs in zip(ours_all.split(_ROWS), theirs_all[:, : ours_all.size(1)].split(_ROWS), strict=True):
            difference = (ours - theirs).abs()
            largest = max(largest, difference.max().item()) if torch.isfinite(difference).all() else float("inf")
            total, count = total + difference.double().sum().item(), count + difference.numel()
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            log_p, log_q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
            kl += (log_p.exp() * (log_p - log_q)).sum().item()
            positions += ours.size(0)
    return Figures(positions, largest, total / count, same / positions, kl / positions)


# -------------------------------------------------------------------- what is enough


@dataclass(frozen=True)
class Limit:
    """What an export must keep to; None is not asked.

    Attributes:
        max_difference: of any logit.
        top1_agreement: at least.
        mean_kl: at most, nats.
    """

    max_difference: float | None = None
    top1_agreement: float | None = None
    mean_kl: float | None = None


def judge(out: Path, reference: Reference, found: Figures, limit: Limit, *, loader: str) -> dict[str, Any]:
    """What stands in the manifest and on the card.

    Raises:
        ExportError: the adapter changes nothing, or the export differs from the trained model.
    """
    base = reference.base
    wrong = []
    if base.max_difference <= (limit.max_difference or 0.0):  # else an adapter that is not there would pass
        raise ExportError(
            f"{out}: the adapter changes nothing: the trained model's logits are those of its base, up to "
            f"{base.max_difference:.3g}"
        )
    if found.max_difference == float("inf"):
        raise ExportError(f"{out}: reloaded by {loader}, it gives logits that are not finite")
    if limit.max_difference is not None and found.max_difference > limit.max_difference:
        wrong.append(f"logits differ by up to {found.max_difference:.3g} (limit {limit.max_difference:g})")
    if limit.top1_agreement is not None and found.top1_agreement < limit.top1_agreement:
        wrong.append(f"the likeliest token agrees at {found.top1_agreement:.2%} (limit {limit.top1_agreement:.1%})")
    if limit.mean_kl is not None and found.mean_kl > limit.mean_kl:
        wrong.append(f"KL from the trained model is {found.mean_kl:.3g} nats (limit {limit.mean_kl:g})")
    # Of two weights in float32 the rest of a difference is rounding, and the largest was judged above.
    if limit.max_difference is None and found.mean_kl * MARGIN > base.mean_kl:
        wrong.append(
            f"KL from the trained model is {found.mean_kl:.3g} nats, that of the base alone {base.mean_kl:.3g}: "
            "rounding has taken what the training gave; export in float32"
        )
    if wrong:
        raise ExportError(
            f"{out}: reloaded by {loader} at {found.positions} positions of the trained model's own answers, "
            f"{'; '.join(wrong)}. Nothing was kept"
        )
    log.info(
        "reloaded by %s: likeliest token the same at %.2f %% of %d positions, KL %.2g nats (the base: %.2g)",
        *(loader, 100 * found.top1_agreement, found.positions, found.mean_kl, base.mean_kl),
    )
    return {
        **asdict(found),
        "loader": loader,
        "limit": {name: value for name, value in asdict(limit).items() if value is not None},
        "base_mean_difference": base.mean_difference,
        "base_top1_agreement": base.top1_agreement,
        "base_mean_kl": base.mean_kl,
    }
