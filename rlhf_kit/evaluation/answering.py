"""All policies answer the same prompts, with the same sampling and the same seeds; what they said is kept by content.

Prompts come in chunks, each with a generator of its own. The answers of a chunk are kept under a hash of everything
that decides them (policy, prompts, sampling, what samples), so that what was interrupted goes on, and another policy,
judge or prompt later asks for nothing again that is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlhf_kit.batches import Sequences
from rlhf_kit.checkpoint import read_json, write_json
from rlhf_kit.data import Encoder, prompt_texts
from rlhf_kit.errors import EngineError, RlhfKitError
from rlhf_kit.evaluation.policies import Policy
from rlhf_kit.models import Backbone, load_backbone, to_device
from rlhf_kit.recipe import ModelSection
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Prompt
from rlhf_kit.rewards import autocast
from rlhf_kit.sampling.drawing import Settings, draw_chunk, only_process
from rlhf_kit.sampling.served import Server

__all__ = ["Crew", "Said", "answer", "crews"]

Progress = Callable[[str, int], None]
"""Is told who answers, and how many answers more are done."""

_BATCH = 16  # sequences of a forward pass that needs no cache
_VERSION = 1  # of the sampler and of what is kept


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        text: without EOS.
        ended: whether the policy ended it, or it was cut off at the limit.
        ids: its tokens, EOS included.
        kl: log policy - log reference of it, in nats; None for a policy without reference.
        log_prob: what the server that drew it says of it, in nats; None where it was drawn here.
    """

    text: str
    ended: bool
    ids: tuple[int, ...]
    kl: float | None = None
    log_prob: float | None = None

    @property
    def tokens(self) -> int:
        """Its length, EOS included."""
        return len(self.ids)


@dataclass(frozen=True)
class Loaded:
    """A base with the adapters of its policies.

    Attributes:
        roles: the name of each policy's adapter in the backbone; None is the base.
        references: the same for what its KL is measured from; policies without reference are left out.
    """

    backbone: Backbone
    roles: dict[str, str | None]
    references: dict[str, str | None]


class Crew:
    """Policies on the same base, which is loaded when it is asked something that is not kept.

    Args:
        server: a vLLM server of the base, which draws the answers; None draws them here.
        scratch: where adapters are written for it, unless it names a directory.
    """

    def __init__(
        self, policies: Sequence[Policy], server: RolloutSection | None = None, scratch: Path = Path("adapters")
    ) -> None:
        self.policies, self.server, self.scratch = tuple(policies), server, scratch

    @cached_property
    def served(self) -> Server | None:
        """The server with the adapters of these policies, where one draws."""
        if self.server is None:
            return None
        only_process()
        adapters = [policy.adapter for policy in self.policies]
        return Server(self.server, self.policies[0].model, adapters, self.scratch)

    def close(self) -> None:
        """Takes the adapters from the server again."""
        server: Server | None = vars(self).get("served")  # not connected only to say goodbye
        if server is not None:
            server.close()

    @cached_property
    def loaded(self) -> Loaded:
        """Base and adapters, where they can run.

        Raises:
            RlhfKitError: several processes were launched.
            ModelError, CheckpointError: the base or an adapter cannot be loaded.
        """
        device = only_process().device
        model = self.policies[0].model
        backbone = load_backbone(model)
        names: dict[Path, str] = {}
        roles = {policy.name: _load(backbone, policy.adapter, names) for policy in self.policies}
        references = {p.name: _load(backbone, p.held_to, names) for p in self.policies if p.reference is not None}
        to_device(backbone, model, device)
        return Loaded(backbone, roles, references)


def crews(
    policies: Sequence[Policy], server: RolloutSection | None = None, scratch: Path = Path("adapters")
) -> Iterator[Crew]:
    """The policies base by base: who goes on to the next drops the one before, so that one is in memory at a time.

    Raises:
        RlhfKitError: a server shall draw, and there are several bases.
    """
    models = dict.fromkeys(_name(policy.model) for policy in policies)
    if server is not None and len(models) > 1:
        bases = ", ".join(dict.fromkeys(policy.model.name_or_path for policy in policies))
        raise RlhfKitError(
            f"the policies have {len(models)} bases ({bases}), a vLLM server has one: ask for each alone"
        )
    for model in models:
        crew = Crew([policy for policy in policies if _name(policy.model) == model], server, scratch)
        try:
            yield crew
        finally:
            crew.close()


def _name(model: ModelSection) -> str:
    return json.dumps(model.model_dump(mode="json"), sort_keys=True)


def _load(backbone: Backbone, adapter: Path | None, names: dict[Path, str]) -> str | None:
    if adapter is None:
        return None
    place = adapter.resolve()
    if place not in names:
        names[place] = f"adapter_{len(names)}"
        backbone.load_adapter(names[place], adapter)
    return names[place]


def answer(
    crew: Crew, prompts: Sequence[Prompt], settings: Settings, kept: Path, progress: Progress = lambda who, done: None
) -> dict[str, list[list[Said]]]:
    """K answers of each policy to each prompt, with the KL of those that have a reference.

    Args:
        kept: the directory of what was said; it may be shared by any number of evaluations.
    """
    found = {}
    size = settings.prompts_of_a_chunk
    for policy in crew.policies:
        said: list[list[Said]] = []
        for chunk, start in enumerate(range(0, len(prompts), size)):
            some = prompts[start : start + size]
            engine = None if crew.server is None else crew.server.engine
            file = kept / f"{_key(policy.identity, prompt_texts(some), chunk, settings, engine)}.json"
            flat = _answered(crew, policy, some, settings, chunk, file, progress)
            said += [flat[at : at + settings.k] for at in range(0, len(flat), settings.k)]
        found[policy.name] = said
    return found


def _key(identity: str, texts: Sequence[str], chunk: int, settings: Settings, engine: str | None) -> str:
    value: list[Any] = [_VERSION, identity, list(texts), chunk, asdict(settings)]
    value += [] if engine is None else [engine]  # the same seeds draw other answers there
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _answered(
    crew: Crew,
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: Settings,
    chunk: int,
    file: Path,
    progress: Progress,
) -> list[Said]:
    """From the file, or drawn and put there; the KL stands in a file of its own, since its reference may change."""
    if file.is_file():
        flat = [Said(a["text"], a["ended"], tuple(a["ids"]), None, a.get("log_prob")) for a in read_json(file)]
        progress(policy.name, len(flat))
    else:
        encoder, ids = _encoded(crew, policy, prompts, settings)
        drawn = _drawn(crew, policy, ids, settings, chunk, lambda done: progress(policy.name, done))
        eos = encoder.tokenizer.eos_token_id
        flat = [Said(encoder.text(a), a[-1] == eos, tuple(a), None, log_prob) for a, log_prob in drawn]
        encoder.report(policy.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, [_to_keep(said) for said in flat])
    if policy.reference is None:
        return flat
    beside = file.with_name(f"{file.stem}.kl-{policy.reference[:16]}.json")
    if not beside.is_file():
        _, ids = _encoded(crew, policy, prompts, settings)
        repeated = [prompt for prompt in ids for _ in range(settings.k)]
        log_probs, kl = _kl(crew.loaded, policy, repeated, [a.ids for a in flat], settings.temperature)
        if crew.server is not None and settings.top_k == 0 and settings.top_p == 1:
            _check_server(crew.server, policy, log_probs, flat)
        write_json(beside, kl)
    return [replace(said, kl=kl) for said, kl in zip(flat, read_json(beside), strict=True)]


def _drawn(
    crew: Crew,
    policy: Policy,
    prompts: Sequence[list[int]],
    settings: Settings,
    chunk: int,
    progress: Callable[[int], None],
) -> list[tuple[list[int], float | None]]:
    """The tokens of each answer, and the log-probability that a server says it has."""
    if crew.served is not None:
        drawn = crew.served.draw_chunk(policy.adapter, prompts, settings, chunk, progress)
        return [(list(one.ids), sum(one.log_probs)) for one in drawn]
    backbone = crew.loaded.backbone
    with backbone.role(crew.loaded.roles[policy.name]):
        return [(ids, None) for ids in draw_chunk(backbone, prompts, settings, chunk, progress)]


def _to_keep(said: Said) -> dict[str, Any]:
    log_prob = {} if said.log_prob is None else {"log_prob": said.log_prob}
    return {"text": said.text, "ended": said.ended, "ids": said.ids, **log_prob}


def _check_server(server: RolloutSection, policy: Policy, log_probs: Sequence[float], answers: Sequence[Said]) -> None:
    """The server that drew these answers has the base and the adapter that are here.

    Raises:
        EngineError: its log-probabilities are those of something else.
    """
    tokens = sum(said.tokens for said in answers)
    off = sum(abs(ours - (said.log_prob or 0.0)) for ours, said in zip(log_probs, answers, strict=True)) / tokens
    if off > server.max_mismatch:
        raise EngineError(
            f"{server.base_url}: the log-probabilities of its answers as {policy.name} are {off:.2f} nats a token from "
            f"those of {policy.model.name_or_path} (ppo.rollout.max_mismatch is {server.max_mismatch:g}): it serves "
            "another base, or not these adapters"
        )


def _encoded(
    crew: Crew, policy: Policy, prompts: Sequence[Prompt], settings: Settings
) -> tuple[Encoder, list[list[int]]]:
    # A server's answers need no model here, only what its tokens are.
    speaker = crew.loaded.backbone if crew.served is None else crew.served
    longest = min(policy.max_prompt_length, speaker.context_length - settings.max_new_tokens)
    encoder = Encoder(speaker.tokenizer, max_prompt_length=longest)
    return encoder, [encoder.prompt(prompt.prompt) for prompt in prompts]


@torch.no_grad()
def _kl(
    loaded: Loaded,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
) -> tuple[list[float], list[float]]:
    """log policy, and log policy - log reference, of each response, in nats, at the temperature of the sampling.

    Policy and reference see the same padding: in bfloat16 another padding alone moves the sum by up to half a nat.
    """
    backbone, own, divergences = loaded.backbone, list[float](), list[float]()
    for start in range(0, len(prompts), _BATCH):
        rows = slice(start, start + _BATCH)
        batch = Sequences.collate(prompts[rows], responses[rows], backbone.tokenizer.pad_token_id).to(backbone.device)
        sums = []
        for role in (loaded.roles[policy.name], loaded.references[policy.name]):
            with backbone.role(role), autocast(backbone):
                hidden = batch.before_response(backbone(batch.input_ids, batch.attention_mask))
                log_probs, _ = backbone.log_probs(hidden, batch.responses, temperature=temperature or 1.0)
            sums.append(torch.where(batch.response_mask, log_probs, 0.0).sum(1))
        own += sums[0].tolist()
        divergences += (sums[0] - sums[1]).tolist()
    return own, divergences
