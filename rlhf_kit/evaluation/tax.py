"""The alignment tax: what the training cost elsewhere, on text, on questions of one's own and on tasks of lm-eval.

Each policy is measured item by item (a text, a question, a document), and the items are kept, so that policies on
different bases, measured one base at a time, can be put together at the end: `section`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_kit.checkpoint import read_json, write_json
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.files import load, sha256_of
from rlhf_kit.measures import Estimate, Floats
from rlhf_kit.models import Backbone
from rlhf_kit.ppo.ptx import collate
from rlhf_kit.rewards import autocast
from rlhf_kit.tournament import Resamples

__all__ = ["WINDOW", "ByPolicy", "Items", "kept_items", "names_of", "nats", "section", "text_tax"]

WINDOW = 1024
"""Tokens of a window that a longer text is cut into; fewer where the model's context is shorter."""


@dataclass(frozen=True)
class Items:
    """What one policy got on each of N items. The figure is sum(values) / sum(counts).

    Attributes:
        name: of the file or the task.
        metric: loss, or what lm-eval calls it.
        values: (N,) the nats of a text; what a question or a document scored.
        counts: (N,) the tokens of a text; 1 of a question.
    """

    name: str
    metric: str
    values: tuple[float, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.counts):
            raise ValueError(f"{self.name}: {len(self.values)} values for {len(self.counts)} counts")


ByPolicy = Mapping[str, Sequence[Items]]
"""By the policy's name, what it got on each source."""


# -------------------------------------------------------------------- text


def text_tax(
    backbone: Backbone,
    roles: Mapping[str, str | None],
    sources: Sequence[str],
    kept: Path,
    identities: Mapping[str, str],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Items]]:
    """The language-model loss of held-out texts under each policy, in nats.

    Texts are plain, without a chat template and without EOS: how likely a policy ends a text is not what pretraining
    taught it. The first token of a text has nothing before it and is not counted. A text of more than `WINDOW` tokens
    is cut into windows, each of which begins with the last token of the one before, so that every other token counts
    once.

    Args:
        roles: by the policy's name, the adapter that plays it; None is the base.
        sources: files, folders or Hub datasets of texts.
        kept: the directory for what has been measured already.
        identities: by the policy's name, a hash of everything that decides what it says.
        progress: is called with the number of texts done.

    Returns:
        For each policy, the items of each source, in the order given.

    Raises:
        DataError: every problem of all sources; a source none of whose texts has two tokens.
    """
    texts, problems = dict[str, list[str]](), list[Problem]()
    for source in sources:
        try:
            texts[source] = [record.text for record in load(source, "text")]
        except DataError as failure:
            problems += failure.problems
    if problems:
        raise DataError(problems)
    window, hashes = min(backbone.context_length, WINDOW), {source: sha256_of(source) for source in sources}
    found: dict[str, list[Items]] = {policy: [] for policy in roles}
    for policy, role in roles.items():
        for source, name in names_of(sources).items():
            key = {"texts": hashes[source], "policy": identities[policy], "window": window}
            measure = partial(_losses, backbone, role, name, texts[source], window, batch_size)
            found[policy] += [replace(items, name=name) for items in kept_items(kept, "text", key, measure)]
            progress(len(texts[source]))
    return found


def _losses(
    backbone: Backbone, role: str | None, name: str, texts: Sequence[str], window: int, batch_size: int
) -> list[Items]:
    items, owners = list[dict[str, list[int]]](), list[int]()
    for place, text in enumerate(texts):
        ids = list(backbone.tokenizer(text)["input_ids"])
        for start in range(0, len(ids) - 1, window - 1):
            items.append({"input_ids": ids[start : start + window]})
            owners.append(place)
    if not items:
        raise DataError([Problem(name, "", "holds no text of two tokens; a loss needs a token with one before it")])
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
    with backbone.role(role):
        np.add.at(sums, owners, nats(backbone, items, batch_size))
    np.add.at(counts, owners, [len(item["input_ids"]) - 1 for item in items])
    return [Items(name, "loss", tuple(sums.tolist()), tuple(counts.tolist()))]


@torch.no_grad()
def nats(backbone: Backbone, items: Sequence[Mapping[str, list[int]]], batch_size: int) -> list[float]:
    """-log p of the learned tokens of each item, summed, under the active role.

    Args:
        items: `input_ids`, and perhaps `labels` with -100 on what is not learned; the first token never is.
    """
    backbone.eval()
    found = torch.zeros(len(items), dtype=torch.float64)
    order = sorted(range(len(items)), key=lambda place: len(items[place]["input_ids"]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = collate([items[row] for row in rows], backbone.padding_id).to(backbone.device)
        learned, targets = batch.learned[:, 1:], batch.input_ids[:, 1:]
        with autocast(backbone):
            hidden = backbone(batch.input_ids, batch.attention_mask)[:, :-1]
            log_probs, _ = backbone.log_probs(hidden[learned][None], targets[learned][None])
        owners = torch.tensor(rows)[learned.nonzero()[:, 0].cpu()]
        found.index_add_(0, owners, -log_probs[0].double().cpu())
    values: list[float] = found.tolist()
    return values


# -------------------------------------------------------------------- kept


def names_of(sources: Sequence[str]) -> dict[str, str]:
    """By the source, what it is called: a file by its name, or by its path where another file has the same name."""
    short = [Path(source).name for source in sources]
    return {source: name if short.count(name) == 1 else source for source, name in zip(sources, short, strict=True)}


def kept_items(kept: Path, kind: str, key: Mapping[str, Any], measure: Callable[[], list[Items]]) -> list[Items]:
    """What has been measured under the same key already; else it is measured now, and kept.

    Args:
        key: everything that the values depend on.

    Raises:
        CheckpointError: what was kept is damaged.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = kept / f"{kind}.{digest}.json"
    if not path.is_file():
        items = measure()
        kept.mkdir(parents=True, exist_ok=True)
        write_json(path, [asdict(one) for one in items])
    rows = read_json(path)
    return [Items(row["name"], row["metric"], tuple(row["values"]), tuple(row["counts"])) for row in rows]


# -------------------------------------------------------------------- put together


def section(
    text: ByPolicy,
    choices: ByPolicy,
    tasks: ByPolicy,
    *,
    against: str,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The section `tax` of `evaluation.json`; None where nothing was measured.

    Each figure has its bootstrap interval over the items, each change from the policy `against` that of the difference
    over the same resamples: items are hard or easy for all policies alike, and the difference does not suffer from it.

    Args:
        against: the policy that the others are compared with.

    Raises:
        ValueError: the policies were not measured on the same items, or `against` was not measured.
    """
    options = (against, resamples, confidence, seed)
    found: dict[str, Any] = {}
    if text:
        tokens = [int(sum(items.counts)) for items in text[against]] if against in text else []
        found["text"] = [row | {"tokens": n} for row, n in zip(_entries(text, "loss", *options), tokens, strict=True)]
    if choices:
        found["choices"] = _entries(choices, "accuracy", *options)
    if tasks:
        found["tasks"] = _entries(tasks, "value", *options)
    return found | {"against": against} if found else None


def _entries(
    measured: ByPolicy, figure: str, against: str, resamples: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """One entry for each source and metric; `figure` is what its values are called."""
    if against not in measured:
        raise ValueError(f"{against} was not measured; {', '.join(measured)} were")
    entries = []
    for place, first in enumerate(measured[against]):
        items = {policy: rows[place] for policy, rows in measured.items()}
        for policy, one in items.items():
            if (one.name, one.metric, len(one.values)) != (first.name, first.metric, len(first.values)):
                raise ValueError(f"{policy} was measured on other items of {first.name} than {against}")
        draws = Resamples.draw(len(first.values), resamples=resamples, confidence=confidence, seed=seed)
        ratios = {policy: _ratio(one, draws) for policy, one in items.items()}
        changes = {
            policy: _difference(ratios[policy], ratios[against], draws).as_dict()
            for policy, one in items.items()
            # Nats of tokens of another tokenizer are nats of something else.
            if policy != against and one.counts == first.counts
        }
        values = {policy: draws.estimate(*ratio).as_dict() for policy, ratio in ratios.items()}
        entry = {"name": first.name, "metric": first.metric, "rows": len(first.values)}
        entries.append(entry | {figure: values, "change": changes})
    return entries


def _ratio(items: Items, draws: Resamples) -> tuple[float, Floats]:
    """sum(values) / sum(counts), and the same of each resample (R,); NaN where a resample has no count."""
    values, counts = np.asarray(items.values), np.asarray(items.counts)
    with np.errstate(invalid="ignore"):
        resampled: Floats = (draws.counts @ values) / (draws.counts @ counts)
    return float(values.sum() / counts.sum()), resampled


def _difference(ours: tuple[float, Floats], theirs: tuple[float, Floats], draws: Resamples) -> Estimate:
    return draws.estimate(ours[0] - theirs[0], ours[1] - theirs[1])
