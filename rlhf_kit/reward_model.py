"""A trained reward model to score answers with: a run of this kit, or anyone's one-label classification model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_kit import rewards
from rlhf_kit.checkpoint import read_manifest, recipe_of
from rlhf_kit.data import Encoder, beginning
from rlhf_kit.errors import CheckpointError, DataError, RlhfKitError
from rlhf_kit.models import Backbone, load_backbone, to_device
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.parsing import parse
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Conversation
from rlhf_kit.reward_classifier import Classifier, PairEncoder, load_classifier

__all__ = ["RewardModel"]

Progress = Callable[[int], None]


class RewardModel:
    """Scores responses to prompts. Made by `from_run`, `from_pretrained` or `open`.

    A score depends on its prompt and response alone, not on what else is scored with it (up to rounding).

    Attributes:
        name: the run, or the Hub id, as it was given.
    """

    def __init__(self, name: str, scorer: _Trained | Classifier) -> None:
        self.name = name
        self._scorer = scorer

    @classmethod
    def open(cls, name: str | Path, *, device: torch.device | str | None = None) -> RewardModel:
        """A run of this kit where a directory of that name is one, else what `from_pretrained` takes.

        Raises:
            CheckpointError, ModelError: as the two others do.
        """
        stage = rewards.stage_of(name)
        if stage is not None and (stage / HEAD_FILE).is_file():  # an export has a manifest too
            return cls.from_run(name, device=device)
        return cls.from_pretrained(str(name), device=device)

    @classmethod
    def from_run(cls, run: str | Path, *, device: torch.device | str | None = None) -> RewardModel:
        """The reward model of a run, in the precision in which it was trained.

        Args:
            run: the output directory of a run, or of its reward stage.
            device: where it computes; by default on the accelerator, where there is one.

        Raises:
            CheckpointError: there is no finished reward stage, or its files have changed.
            ModelError: the base cannot be loaded.
        """
        stage = rewards.stage_of(run)
        if stage is None:
            raise CheckpointError(f"{run}: no finished reward stage in it; name the output_dir of a run")
        manifest = read_manifest(stage)
        if manifest.stage != rewards.REWARD:
            raise CheckpointError(f"{stage}: is a {manifest.stage} stage, which scores nothing; name a reward stage")
        recipe = recipe_of(manifest, stage)
        backbone = load_backbone(recipe.reward_model)
        rewards.load(backbone, stage)
        to_device(backbone, recipe.reward_model, device or PartialState().device)
        return cls(str(run), _Trained(backbone, recipe))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """A sequence classification model with one label: whole, or as a PEFT adapter with its head.

        It is given what it was trained on: the whole conversation as its tokenizer's chat template renders it, or,
        without one, prompt and response as plain text. What this kit exports reads the very tokens that it was
        trained on, and scores as the run does. The score is read where the model itself reads that of a single text.

        Args:
            name: a Hub id, or a directory.
            revision: of the Hub repository.
            dtype: auto (bfloat16 where the hardware has it), float32 or bfloat16; the head is always float32.
            device: as in `from_run`.
            trust_remote_code: allows the model's own code to run.

        Raises:
            ModelError: it cannot be loaded, has no trained head, or more than one label.
        """
        place = torch.device(device or PartialState().device)
        return cls(name, load_classifier(name, revision, dtype, place, trust_remote_code))

    @classmethod
    def of(cls, model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> RewardModel:
        """A sequence classification model with one label that is in memory already."""
        return cls(name, Classifier(model, tokenizer, name, None))

    @property
    def takes_texts(self) -> bool:
        """Whether it scores any text and not answers to prompts only: so do models that this kit has not made."""
        return isinstance(self._scorer, Classifier) and self._scorer.offset is None

    def score_texts(self, texts: Sequence[str]) -> Tensor:
        """(N,) float32 on the CPU: the scores of whole texts as they are, where the model `takes_texts`.

        Raises:
            ValueError: it does not.
        """
        if not self.takes_texts or not isinstance(self._scorer, Classifier):
            raise ValueError(f"{self.name} scores responses to prompts; call score")
        return self._scorer.score_texts(texts)

    @property
    def shortened_prompts(self) -> int:
        """How many prompts were longer than the model takes and lost their oldest turns, over all calls."""
        return self._scorer.shortened_prompts

    @property
    def cut_responses(self) -> int:
        """How many responses were longer than the model takes and were cut, over all calls."""
        return self._scorer.cut_responses

    def lengths(self, responses: Sequence[str]) -> list[int]:
        """(N,) the tokens of each response, EOS not counted."""
        return [len(self._scorer.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in responses]

    def score(
        self,
        prompts: Sequence[Conversation | Sequence[Mapping[str, str]]],
        responses: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        progress: Progress = lambda done: None,
    ) -> Tensor:
        """(N,) float32 on the CPU: the score of each response to the prompt beside it; more is better.

        Hand over all there is at once: it is sorted by length, and responses to the same prompt share one copy of it
        where the model can.

        Args:
            prompts: N texts or conversations; their turns are messages or mappings of `role` and `content`.
            responses: N texts; an empty one is scored as the model's silence.
            ended: False for a response that was cut off before its end; by default all have ended. Models of others
                know no such responses and score them like the rest.
            progress: is called with the number of responses of each batch when it is done.

        Raises:
            ValueError: the numbers of prompts, responses and endings differ.
            DataError: prompts that are neither texts nor conversations that end with the user, all of them.
            RlhfKitError: a score that is not finite.
        """
        ended = [True] * len(responses) if ended is None else ended
        if not len(prompts) == len(responses) == len(ended):
            raise ValueError(
                f"{len(prompts)} prompts, {len(responses)} responses and {len(ended)} endings do not match"
            )
        conversations = _conversations(prompts)
        if not conversations:
            return torch.empty(0)
        scores = self._scorer.score(conversations, responses, ended, progress)
        if not (finite := torch.isfinite(scores)).all():
            first = int((~finite).nonzero()[0])
            raise RlhfKitError(
                f"{self.name}: the score of response {first + 1} of {len(scores)} is {float(scores[first])}, to the "
                f"prompt {beginning(conversations[first])!r} ({int((~finite).sum())} such in all); the model is "
                "damaged, or its numbers leave the range of its precision"
            )
        return scores


class _Trained:
    """Base, adapter and head of a run."""

    def __init__(self, backbone: Backbone, recipe: Recipe) -> None:
        longest = min(recipe.reward.max_length, backbone.context_length)
        self.backbone, self.tokenizer = backbone, backbone.tokenizer
        self.encoder = Encoder(backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length, max_length=longest)
        self.pairs = PairEncoder(self.encoder)
        # As in training: what the recipe forbids there is not done here.
        self.backbone.packs_up_to = 0 if recipe.reward.packing == "off" else None

    @property
    def shortened_prompts(self) -> int:
        return len(self.pairs.shortened)

    @property
    def cut_responses(self) -> int:
        return self.encoder.cut_responses

    def score(
        self, prompts: Sequence[Conversation], responses: Sequence[str], ended: Sequence[bool], progress: Progress
    ) -> Tensor:
        encoded = self.pairs(prompts, responses, ended)
        return rewards.score(self.backbone, *encoded, progress=progress)


def _conversations(prompts: Sequence[Any]) -> list[Conversation]:
    """Texts and tuples of messages, checked.

    Raises:
        DataError: all that is wrong with any of them.
    """
    found: list[Conversation] = []
    problems = []
    for number, prompt in enumerate(prompts, 1):
        try:
            found.append(parse({"prompt": prompt}, "prompt", f"prompt {number}").prompt)  # type: ignore[union-attr]
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return found
