"""Scoring with sequence classification models of one label: anyone's from the Hub, and what this kit exports.

Where such a model reads its score is part of it: transformers takes the last token that is not `config.pad_token_id`,
and so did its training. Batches are therefore padded on the right with that very token, which reads each text where it
would be read alone: before EOS, where a model was trained with EOS as its padding. A model that names none reads its
last token; then any token can pad that no text of the batch ends with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from rlhf_kit.classifier import OFFSET, OFFSET_FILE
from rlhf_kit.data import Encoder
from rlhf_kit.errors import ModelError
from rlhf_kit.models.backbone import context_length
from rlhf_kit.models.loading import resolve_dtype
from rlhf_kit.records import Conversation, Message

log = logging.getLogger(__name__)

_BATCH_SIZE = 16
_HEAD = "score"  # as transformers calls it in all models that read the last token
Features = dict[str, list[int]]


class PairEncoder:
    """Token ids of prompts and responses by the rule of training; a prompt gets what room its response leaves it.

    Args:
        encoder: with a `max_length`.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.shortened: set[Conversation] = set()

    def __call__(
        self, prompts: Sequence[Conversation], responses: Sequence[str], ended: Sequence[bool]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """N prompts and N responses; the same prompt is the same ids wherever all of it fits."""
        encoder, known = self.encoder, dict[Conversation, list[int]]()

        def encode(prompt: Conversation, room: int | None) -> list[int]:
            before = encoder.shortened_prompts
            ids = encoder.prompt(prompt, room=room)
            if encoder.shortened_prompts > before:
                self.shortened.add(prompt)
            return ids

        pairs: tuple[list[list[int]], list[list[int]]] = ([], [])
        for prompt, text, whole in zip(prompts, responses, ended, strict=True):
            if prompt not in known:
                known[prompt] = encode(prompt, None)
            ids, room = known[prompt], self._room(text, len(known[prompt]))
            if len(ids) > room:
                ids = encode(prompt, room)
            pairs[0].append(ids)
            # Who says nothing has at least ended.
            pairs[1].append(encoder.response(text, len(ids), ended=whole) or [encoder.tokenizer.eos_token_id])
        return pairs

    def _room(self, response: str, wanted: int) -> int:
        """What a response leaves for its prompt, at least half of all; counted only where `wanted` may be too much."""
        longest = self.encoder.max_length or 2**31
        if wanted <= longest - longest // 2:
            return wanted
        length = len(self.encoder.tokenizer(response, add_special_tokens=False)["input_ids"]) + 1
        return longest - min(length, longest // 2)


class _Conversations:
    """Whole conversations, as models of others are trained on them: by the chat template, or as plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, longest: int) -> None:
        self.tokenizer, self.name, self.longest = tokenizer, name, longest
        self.shortened: set[Conversation] = set()
        self.cut_responses = 0

    def features(self, prompt: Conversation, response: str) -> Features:
        """What the model is given for one response."""
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
        system = turns[:1] if turns[0].role == "system" else ()
        rest = turns[len(system) :]
        found = self._render(turns, response)
        if len(found["input_ids"]) <= self.longest:
            return found
        self.shortened.add(prompt)
        while len(rest) > 1 and len(found["input_ids"]) > self.longest:
            rest = rest[2:] if len(rest) > 2 else rest[-1:]
            found = self._render((*system, *rest), response)
        if len(found["input_ids"]) <= self.longest:
            return found
        if len(self.tokenizer(response, add_special_tokens=False)["input_ids"]) >= self.longest:
            self.cut_responses += 1
        if self._takes_pairs:
            return self._render((*system, *rest), response, truncation="longest_first", max_length=self.longest)
        # The end is where the score is read.
        return {key: values[-self.longest :] for key, values in found.items()}

    @property
    def _takes_pairs(self) -> bool:
        """Whether a prompt and its response are told apart by tokens of the model itself, as BERT's kin do."""
        return self.tokenizer.cls_token_id is not None and self.tokenizer.sep_token_id is not None

    def _render(self, turns: Sequence[Message], response: str, **cut: Any) -> Features:
        if self.tokenizer.chat_template is not None:
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            messages.append({"role": "assistant", "content": response})
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            except TemplateError as failure:
                raise ModelError(
                    f"{self.name}: its chat template does not take {messages[:-1]}: {failure}"
                ) from failure
            return {"input_ids": self.tokenizer(text, add_special_tokens=False)["input_ids"]}
        text = "\n\n".join(turn.content for turn in turns)
        if self._takes_pairs:
            return dict(self.tokenizer(text, response, return_attention_mask=False, **cut))
        return {"input_ids": self.tokenizer(text + response)["input_ids"]}


class Classifier:
    """A sequence classification model of one label with its tokenizer.

    Args:
        offset: of a model that this kit has exported, what its score lacks; such a model is given the tokens of
            training. None for a model of others.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, offset: float | None) -> None:
        self.model, self.tokenizer, self.offset = model.eval(), tokenizer, offset
        self.config: PretrainedConfig = model.config
        text = self.config.get_text_config()
        context = context_length(self.config)
        self.vocabulary: int = text.vocab_size
        self.pad: int | None = text.pad_token_id
        if self.pad is not None and not 0 <= self.pad < self.vocabulary:
            self.pad = None  # no text holds such a token
        self.pairs = PairEncoder(Encoder(tokenizer, max_prompt_length=context, max_length=context))
        self.conversations = _Conversations(tokenizer, name, min(context, tokenizer.model_max_length))

    @property
    def shortened_prompts(self) -> int:
        """Prompts that lost their oldest turns."""
        return len(self.pairs.shortened) + len(self.conversations.shortened)

    @property
    def cut_responses(self) -> int:
        """Responses that lost a part."""
        return self.pairs.encoder.cut_responses + self.conversations.cut_responses

    def score(
        self,
        prompts: Sequence[Conversation],
        responses: Sequence[str],
        ended: Sequence[bool],
        progress: Callable[[int], None],
    ) -> Tensor:
        """(N,) float32 on the CPU, in the order given."""
        if self.offset is None:
            features = [self.conversations.features(p, r) for p, r in zip(prompts, responses, strict=True)]
        else:
            pairs = zip(*self.pairs(prompts, responses, ended), strict=True)
            features = [{"input_ids": prompt + response} for prompt, response in pairs]
        scores = self._scores(features, progress)
        return scores if self.offset is None else scores + self.offset

    def score_texts(self, texts: Sequence[str]) -> Tensor:
        """(N,) float32 on the CPU: the scores of whole texts as they are, without a template or further special
        tokens, as TRL's trainers give them to reward models; one that is too long loses its beginning."""
        longest = self.conversations.longest
        encoded = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return self._scores([{"input_ids": ids[-longest:]} for ids in encoded], lambda done: None)

    def _scores(self, features: Sequence[Features], progress: Callable[[int], None]) -> Tensor:
        scores = torch.empty(len(features), dtype=torch.float32)
        order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
        for start in range(0, len(order), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            scores[rows] = self._logits([features[i] for i in rows])
            progress(len(rows))
        return scores

    @torch.no_grad()
    def _logits(self, features: Sequence[Features]) -> Tensor:
        """(B,) of texts that are padded on the right."""
        pad = self.pad
        if pad is None:
            last = {found["input_ids"][-1] for found in features}
            pad = next(token for token in range(self.vocabulary) if token not in last)
            for part in (self.config, self.config.get_text_config()):
                part.pad_token_id = pad
        mask = [torch.ones(len(found["input_ids"]), dtype=torch.long) for found in features]
        batch = {"attention_mask": nn.utils.rnn.pad_sequence(mask, batch_first=True)}
        for key in features[0]:
            values = [torch.tensor(found[key], dtype=torch.long) for found in features]
            filler = pad if key == "input_ids" else 0
            batch[key] = nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=filler)
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(**{key: value.to(device) for key, value in batch.items()}).logits
        return logits[:, 0].float().cpu()


# -------------------------------------------------------------------- loading


def load_classifier(
    name: str, revision: str | None, dtype: str, device: torch.device, trust_remote_code: bool
) -> Classifier:
    """A whole model, or a PEFT adapter on the base that it names.

    Raises:
        ModelError: it cannot be loaded, has no trained head, or more than one label.
    """
    if Path(name).is_dir() and not any(
        (Path(name) / f"{stem}.json").is_file() for stem in ("config", "adapter_config")
    ):
        raise ModelError(
            f"{name}: neither a run with a finished reward stage nor a model: no config.json or "
            "adapter_config.json in it"
        )
    try:
        model, tokenizer, offset = _load(name, {"revision": revision, "trust_remote_code": trust_remote_code}, dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as failure:
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        raise ModelError(f"{name}: cannot be loaded as a reward model: {lines[0]}") from failure
    if offset is None and tokenizer.eos_token_id is not None and tokenizer.eos_token_id == model.config.pad_token_id:
        log.info("%s: its padding is EOS, so it reads its score before that, as transformers lets it", name)
    return Classifier(model.to(device), tokenizer, name, offset)


def _load(name: str, hub: dict[str, Any], dtype: str) -> tuple[nn.Module, PreTrainedTokenizerBase, float | None]:
    adapter = find_adapter_config_file(name, revision=hub["revision"])
    if adapter is None:
        config = AutoConfig.from_pretrained(name, **hub)
        if config.num_labels != 1:
            raise ModelError(
                f"{name}: has {config.num_labels} labels, a reward model has one; is it a language model, or a "
                "classifier of something else?"
            )
        model, missing = _classifier(name, config, hub, dtype)
        offset = getattr(config, OFFSET, None)
        return _with_exact_head(_checked(model, missing, name)), AutoTokenizer.from_pretrained(name, **hub), offset
    settings = PeftConfig.from_pretrained(name, revision=hub["revision"])
    if settings.task_type != "SEQ_CLS":
        raise ModelError(f"{name}: is an adapter for {settings.task_type}, not for SEQ_CLS; it has no head that scores")
    base, on_base = str(settings.base_model_name_or_path), {**hub, "revision": settings.revision}
    beside = cached_file(name, OFFSET_FILE, revision=hub["revision"], _raise_exceptions_for_missing_entries=False)
    ours: dict[str, Any] = json.loads(Path(beside).read_text(encoding="utf-8")) if beside else {}
    config = AutoConfig.from_pretrained(base, num_labels=1, **on_base)
    if ours:
        for part in (config, config.get_text_config()):
            part.pad_token_id = ours["pad_token_id"]
    model, missing = _classifier(base, config, on_base, dtype)
    weights = load_peft_weights(name, device="cpu", revision=hub["revision"])
    missing = [key for key in missing if not any(own.endswith(f".{key}") for own in weights)]
    model = PeftModel.from_pretrained(_checked(model, missing, name), name, revision=hub["revision"])
    return _with_exact_head(model), _tokenizer(name, hub, base, on_base), ours.get("score_offset")


def _classifier(name: str, config: PretrainedConfig, hub: dict[str, Any], dtype: str) -> tuple[nn.Module, list[str]]:
    """The model, and the names of the weights that are not in its files."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, dtype=resolve_dtype(dtype), use_safetensors=True, output_loading_info=True, **hub
    )
    return model, sorted(report["missing_keys"])


def _checked(model: nn.Module, missing: Sequence[str], name: str) -> nn.Module:
    if missing:
        raise ModelError(f"{name}: {missing[0]} is not among its weights, so its scores would be random numbers")
    return model


def _tokenizer(name: str, hub: dict[str, Any], base: str, on_base: dict[str, Any]) -> PreTrainedTokenizerBase:
    """An adapter's own tokenizer, or that of its base where it has none."""
    own = cached_file(
        name, "tokenizer_config.json", revision=hub["revision"], _raise_exceptions_for_missing_entries=False
    )
    return AutoTokenizer.from_pretrained(name, **hub) if own else AutoTokenizer.from_pretrained(base, **on_base)


def _with_exact_head(model: nn.Module) -> nn.Module:
    """Computes the head in float32: bfloat16 gives a score two or three digits, too few to tell good answers apart."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == _HEAD:
            module.float()
            module.register_forward_pre_hook(lambda head, inputs: (inputs[0].float(), *inputs[1:]))
    return model
