"""The tokenizer that lies beside an adapter against that of its base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_kit.export.check.base import Adapter, Base, quiet
from rlhf_kit.export.check.files import FAILURES, Finding, first_line, listed

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_EMBEDDINGS = ("embed", "wte", "word_embeddings", "token_adapter")


def tokenizer_findings(base: Base | None, adapter: Adapter, rows: int | None) -> Iterator[Finding]:
    """Whether the adapter's tokenizer fits the base's, where there are both.

    Args:
        rows: of the input embeddings, the base's or those that the adapter brings along; None where not known.
    """
    place = str(adapter.directory)
    if not any((adapter.directory / name).is_file() for name in _FILES):
        return
    try:
        own = _load(place)
    except (HTTPError, *FAILURES) as failure:
        said = f"{place}: its tokenizer cannot be loaded ({first_line(failure)})"
        yield Finding("damaged-tokenizer", "warning", f"{said}; save it again, or remove its files")
        return
    vocabulary = own.get_vocab()
    if rows is not None and (highest := max(vocabulary.values())) >= rows:
        said = f"{place}: its tokenizer has ids up to {highest}, the base has {rows} rows of embeddings"
        advice = "save the resized embeddings with the adapter, or take the base's tokenizer"
        yield Finding("vocabulary-too-large", "error", f"{said}: tokens beyond them cannot be read; {advice}")
    if base is None:
        return
    try:
        theirs = _load(base.source, revision=base.revision)
    except (HTTPError, *FAILURES) as failure:
        said = f"{base.name}: its tokenizer cannot be loaded ({first_line(failure)})"
        yield Finding("no-base-tokenizer", "note", f"{said}; not compared with the adapter's")
        return
    yield from _id_findings(place, base.name, adapter, vocabulary, theirs.get_vocab())
    yield from _special_findings(place, base.name, own, theirs)


def _load(source: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    with quiet():
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)


def _id_findings(
    place: str, base: str, adapter: Adapter, own: dict[str, int], theirs: dict[str, int]
) -> Iterator[Finding]:
    moved = [f"{t!r}: {number}, not {theirs[t]}" for t, number in own.items() if theirs.get(t, number) != number]
    if moved:
        said = f"{place}: its tokenizer gives {len(moved)} tokens other ids than that of {base} ({listed(moved, 2)})"
        yield Finding("token-ids", "error", f"{said}; take the base's, or name the base it was trained on")
    new = [repr(token) for token in own if token not in theirs]
    trained = any(part in name for name in adapter.tensors for part in _EMBEDDINGS)
    if new and not trained:
        said = f"{place}: its tokenizer has {len(new)} tokens that {base} does not know ({listed(new)})"
        yield Finding("new-tokens", "warning", f"{said}, and the adapter has no embeddings for them: train those too")


def _special_findings(
    place: str, base: str, own: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    if own.eos_token != theirs.eos_token:
        said = f"{place}: EOS is {own.eos_token!r}, that of {base} {theirs.eos_token!r}"
        yield Finding("eos-differs", "warning", f"{said}; answers end where the tokenizer in use says: take this one")
    if own.pad_token != theirs.pad_token:
        # Who trains on a base whose padding is missing, or is its EOS, has to choose another.
        chosen = theirs.pad_token is None or theirs.pad_token == theirs.eos_token
        said = f"{place}: padding is {own.pad_token!r}, that of {base} {theirs.pad_token!r}"
        advice = "pad with the one it was trained with, or mask the padding"
        yield Finding("pad-differs", "note" if chosen else "warning", f"{said}; {advice}")
    if own.chat_template is not None and own.chat_template != theirs.chat_template:
        said = f"{place}: its chat template is not that of {base}"
        yield Finding("chat-template-differs", "note", f"{said}; take it from here, where it was trained with it")
