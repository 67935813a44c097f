"""Chooses the checkpoint of SFT by the reward model's scores of its answers, as InstructGPT did.

SFT overfits on the validation loss after one epoch, while more epochs still help the reward model's score and what
people prefer (arXiv 2203.02155, section 3.5).

The best of several scores on the same prompts is a little too good to be true: the interval of the difference from the
others says how sure the choice is.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlhf_kit.checkpoint import (
    CHECKPOINTS,
    INPUTS,
    MANIFEST,
    checkpoints,
    finish,
    open_work,
    read_json,
    read_manifest,
    recipe_of,
    write_json,
)
from rlhf_kit.errors import CheckpointError
from rlhf_kit.evaluation.judges.ledger import key_of
from rlhf_kit.evaluation.policies import SFT, Policy
from rlhf_kit.files import sha256_of
from rlhf_kit.gathering.answers import answers_of
from rlhf_kit.measures import Estimate, bootstrap_mean
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.outputs import check_outputs
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.sampling.drawing import Answer, Progress, Settings, only_process, silent
from rlhf_kit.sampling.judges import Judge
from rlhf_kit.sampling.prompts import read_prompts
from rlhf_kit.sampling.scoring import distinct, score_answers

log = logging.getLogger(__name__)

FINAL = "final"


@dataclass(frozen=True)
class Candidate:
    """An adapter that may become the stage's.

    Attributes:
        name: checkpoint-N, or final for the stage's own where it is none of them.
        weights: its file.
        sha256: of the file.
        current: whether it is the stage's own now.
    """

    name: str
    weights: Path
    sha256: str
    current: bool


@dataclass(frozen=True)
class Standing:
    """How a candidate did.

    Attributes:
        score: mean over the prompts, each prompt's answers averaged first.
        behind: its score less the best one's, prompt by prompt; None for the best.
        eos_rate: share of the answers that it ended itself.
        tokens: mean length, EOS included.
    """

    name: str
    score: Estimate
    behind: Estimate | None
    eos_rate: float
    tokens: float


@dataclass(frozen=True)
class Comparison:
    """All candidates in the order of their steps, and the best of them."""

    standings: tuple[Standing, ...]
    best: str
    reward: str
    prompts: int
    k: int

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Comparison:
        """What `to_json` gave."""

        def estimate(found: dict[str, float] | None) -> Estimate | None:
            return None if found is None else Estimate(**found)

        rows = [{**row, **{f: estimate(row[f]) for f in ("score", "behind")}} for row in value["standings"]]
        return cls(**{**value, "standings": tuple(Standing(**row) for row in rows)})


def candidates(stage: Path) -> list[Candidate]:
    """The checkpoints that a stage kept, the oldest first, then its own adapter unless that is one of them.

    Raises:
        CheckpointError: there is nothing to choose from, or an adapter cannot be read.
    """
    folders = checkpoints(stage)
    if not folders:
        raise CheckpointError(
            f"{stage}: has kept no checkpoints to choose from; set sft.keep_checkpoints in the recipe, such as "
            "sft.keep_checkpoints=5, and run SFT again"
        )
    own = _weights(stage / WEIGHTS_FILE)
    found = []
    for folder in folders:
        # The Trainer saves an adapter with a name of its own in a folder of that name.
        places = (folder / WEIGHTS_FILE, *sorted(folder.glob(f"*/{WEIGHTS_FILE}")))
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise CheckpointError(f"{folder}: holds no {WEIGHTS_FILE}; remove the folder")
        found.append(Candidate(folder.name, file, sha256_of(str(file)), _same(_weights(file), own)))
    if not any(candidate.current for candidate in found):
        found.append(Candidate(FINAL, stage / WEIGHTS_FILE, sha256_of(str(stage / WEIGHTS_FILE)), True))
    if len(found) < 2:
        raise CheckpointError(
            f"{stage}: its only checkpoint, {found[0].name}, is its own adapter, so there is nothing to choose from; "
            "set sft.save_steps lower or sft.keep_checkpoints higher, and run SFT again"
        )
    return found


def _weights(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as failure:
        raise CheckpointError(f"{file}: not an adapter: {failure}") from failure


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def judge_checkpoints(
    policy: Policy,
    source: str,
    out: Path,
    settings: Settings,
    judge: Judge,
    progress: Progress = silent,
    *,
    server: RolloutSection | None = None,
) -> Comparison:
    """Samples every candidate on the same prompts with the same seeds, scores the answers, and writes the comparison.

    What is in `out` already is taken as it is if it was made from the same prompts, weights and settings.

    Args:
        policy: a run's SFT policy.
        server: a vLLM server of the policy's base, which draws the answers; None draws them here.

    Raises:
        CheckpointError: nothing to choose from.
        DataError: every bad row of the prompts.
        EngineError: the server cannot be used; what it has drawn is kept.
        RlhfKitError: several processes were launched.
    """
    only_process()
    stage = policy.adapter
    if policy.stage != SFT or stage is None:
        raise CheckpointError(f"{policy.run}: checkpoints are those of the SFT stage; it answers as {policy.name} here")
    found = candidates(stage)
    check_outputs([source], [out])
    prompts, _ = read_prompts(source)
    policies = [
        replace(policy, name=candidate.name, label=candidate.name, adapter=candidate.weights.parent)
        for candidate in found
    ]
    inputs = {
        "policies": [[one.name, one.identity] for one in policies],
        "prompts": key_of([prompt.model_dump(mode="json") for prompt in prompts]),
        "settings": asdict(settings),
        "reward": [judge.name, judge.identity],
        **({} if server is None else {"engine": server.engine}),
    }
    if out.is_file() and (kept := read_json(out)).get(INPUTS) == inputs:
        log.info("%s: scored before with the same prompts, weights and settings", out)
        return Comparison.from_json(kept["comparison"])
    work = open_work(out, inputs)
    said = answers_of(policies, prompts, settings, work, server=server, progress=progress)
    drawn = {one.name: answers for one, answers in zip(policies, said, strict=True)}
    reward = judge.load()
    scored = {
        name: score_answers(
            reward,
            [prompt.prompt for prompt in prompts],
            [distinct(row) for row in rows],
            kept=work,
            name=f"scores of {name}",
            progress=progress,
        )
        for name, rows in drawn.items()
    }
    e = recipe_of(read_manifest(stage), stage).evaluate
    standings = compare(drawn, scored, resamples=e.bootstrap, confidence=e.confidence, seed=settings.seed)
    best = next(standing.name for standing in standings if standing.behind is None)
    comparison = Comparison(standings, best, judge.name, len(prompts), settings.k)
    write_json(out, {INPUTS: inputs, "comparison": comparison.to_json()})
    shutil.rmtree(work)
    return comparison


def compare(
    drawn: Mapping[str, Sequence[Sequence[Answer]]],
    scored: Mapping[str, Sequence[Sequence[Answer]]],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Standing, ...]:
    """The standings of all candidates; the earliest is the best of equals.

    Args:
        drawn: all answers to each prompt, of each candidate.
        scored: the distinct ones with their scores.
    """
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    means = {name: np.array([_mean(row) for row in rows]) for name, rows in scored.items()}
    best = max(means, key=lambda name: float(means[name].mean()))
    standings = []
    for name, values in means.items():
        behind = None if name == best else bootstrap_mean(values - means[best], **options)  # type: ignore[arg-type]
        every = [answer for row in drawn[name] for answer in row]
        ended, tokens = float(np.mean([a.ended for a in every])), float(np.mean([a.tokens for a in every]))
        standings.append(Standing(name, bootstrap_mean(values, **options), behind, ended, tokens))  # type: ignore[arg-type]
    return tuple(standings)


def _mean(answers: Sequence[Answer]) -> float:
    return float(np.average([float(a.score or 0.0) for a in answers], weights=[a.count for a in answers]))


def choose(stage: Path, candidate: Candidate, comparison: Comparison) -> None:
    """Makes a candidate the stage's adapter. The stage as it was is kept as `NAME.previous-N`; its checkpoints go with
    the new one, so that one can choose again. What was trained from the stage differs from it now and will run again.

    Raises:
        CheckpointError: a damaged stage.
    """
    if candidate.current:
        return
    manifest = read_manifest(stage)
    standing = next(s for s in comparison.standings if s.name == candidate.name)
    metrics = {
        **manifest.metrics,
        "chosen_checkpoint": candidate.name,
        "chosen_checkpoint_score": standing.score.value,
        "chosen_checkpoint_score_interval": standing.score.as_dict(),
        "chosen_by": comparison.reward,
    }
    work = stage.with_name(f".{stage.name}.chosen.partial")  # not where an interrupted training of the stage works
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(stage, work, ignore=shutil.ignore_patterns(MANIFEST, CHECKPOINTS))
    shutil.copyfile(candidate.weights, work / WEIGHTS_FILE)
    before = set(stage.parent.glob(f"{stage.name}.previous-*"))
    finish(work, stage, replace(manifest, metrics=metrics))
    (older,) = set(stage.parent.glob(f"{stage.name}.previous-*")) - before
    (older / CHECKPOINTS).rename(stage / CHECKPOINTS)
