"""The plan of PPO: sampling, scoring and the updates of policy and value model, and which of them needs most."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rlhf_kit.errors import ModelError
from rlhf_kit.planning.footprint import Footprint, footprint
from rlhf_kit.planning.lengths import Lengths, lengths_of
from rlhf_kit.planning.meter import ACTIVATIONS, LOGITS, WORKSPACE
from rlhf_kit.planning.ppo_phases import Continuing, Judging, Learning, Probing, Reading, Update
from rlhf_kit.planning.results import StagePlan, Work
from rlhf_kit.planning.setup import BELOW, Setup, layer_kinds
from rlhf_kit.planning.sharing import Kept
from rlhf_kit.planning.speed import sampling_seconds
from rlhf_kit.planning.stage_plans import LEFT_BY_SAMPLING, loading, memory_of, shared_out
from rlhf_kit.planning.stages import POLICY, REWARD, VALUE, ppo_setup, reward_setup, supervised_batches
from rlhf_kit.planning.weights import Weights, kept, weights_of
from rlhf_kit.planning.wishes import Wishes
from rlhf_kit.recipe import ModelSection, Recipe
from rlhf_kit.recipe_live import LIVE
from rlhf_kit.recipe_ppo import Sizes

__all__ = ["plan_ppo"]


@dataclass(frozen=True)
class _Run:
    """Sizes of an update on one device, at the longest prompts."""

    sizes: Sizes
    prompt: int
    mean_prompt: float
    response: int
    beside: int
    """Answers sampled side by side."""
    groups: int
    """Batches of answers in an update."""
    copies: int
    lowered: bool = False
    """Roles go on from what the layers below every adapter have made."""
    states: int = 0
    """Bytes of that, where it is kept for all passes of an update."""

    @property
    def scored(self) -> Update:
        """A pass that scores."""
        return Update(self.sizes.micro, self.prompt, self.response, self.lowered)

    @property
    def learned(self) -> Update:
        """A pass that learns: it has the states only where those of the whole update are kept."""
        return Update(self.sizes.micro, self.prompt, self.response, self.lowered and self.states > 0)

    @property
    def share(self) -> float:
        """Of the tokens of the longest prompts that there are in the mean."""
        return (self.mean_prompt + self.response) / (self.prompt + self.response)


def plan_ppo(recipe: Recipe, wishes: Wishes) -> StagePlan:
    """PPO."""
    ppo = recipe.ppo
    _, setup = ppo_setup(recipe, wishes)
    weights = weights_of(setup)
    lengths = lengths_of(recipe, "prompts", recipe.model, None, wishes.rows)
    run = _with_states(_run(recipe, lengths, wishes), recipe, setup, wishes)
    trainer = ppo.trainer
    whole = kept(weights, str(trainer.get("optim", "adamw_torch")), "ppo.trainer.optim")
    others, beside, notes = _other_models(recipe, wishes)
    whole = dataclasses.replace(whole, adapters=whole.adapters + _average(recipe, weights))
    held = shared_out(whole, weights, wishes)
    held = _with(held, others)
    found = {name: footprint(setup, phase) for name, phase in _phases(recipe, run).items()}
    if wishes.joint:
        found = _at_once(found)
    found = {name: _holding(name, one, run, weights, setup, wishes) for name, one in found.items()}
    gathers = wishes.shards_base and ppo.ds3_gather_for_generation
    # The probe's logits are blocks of their own, on top of what the updates have left in the heap.
    learned = max(sum(one.parts.values()) for name, one in found.items() if name not in _WITHOUT)
    left_by_sampling = LEFT_BY_SAMPLING if PROMPTS in found else 0
    left = dict.fromkeys(found.keys() - set(_WITHOUT), left_by_sampling) | {PROBE: left_by_sampling + learned}
    steps = tuple(
        memory_of(
            *(name, held, one, weights, setup, wishes),
            gathered=weights.base if gathers and name in _WITHOUT else None,
            left=left.get(name),
        )
        for name, one in found.items()
    )
    if PROMPTS not in found:
        notes.append(
            f"rollout.engine: vllm: answers are sampled by the server at {ppo.rollout.base_url}; the memory that it "
            "takes and its time are not counted here"
        )
    work = _work(recipe, run, lengths, found, _judging(recipe, run, setup), held, wishes)
    return StagePlan(
        "ppo",
        weights.parameters | beside,
        weights.trained,
        (*loading(setup, weights, wishes), *steps),
        held.host,
        work,
        tuple(notes),
    )


PROMPTS, LAST = "the rollout: prompts", "the rollout: last token"
LOWER, SCORES = "the lower layers", "the scores"
PROBE = "the probe of the finished policy"
POLICY_STEP, VALUE_STEP, BOTH, TEXT = (
    "the update: policy",
    "the update: value model",
    "the update: policy and values",
    "the update: pretraining text",
)
_WITHOUT = (PROMPTS, LAST, LOWER, SCORES, PROBE)
"""Phases without a gradient."""


def _phases(recipe: Recipe, run: _Run) -> dict[str, Any]:
    ppo = recipe.ppo
    rows = min(run.beside, run.sizes.batch)
    found: dict[str, Any] = {}
    if ppo.rollout.engine == "hf":
        found[PROMPTS] = Reading(max(1, math.ceil(rows / run.copies)), run.prompt, POLICY)
        found[LAST] = Continuing(rows, run.prompt, run.response, POLICY)
    if run.states:  # the adapters' layers are left out of it, which saves no memory worth counting
        found[LOWER] = Judging(Update(rows, run.prompt, run.response), POLICY, log_probs=False)
    found[SCORES] = Judging(run.scored, POLICY)
    shared = ppo.value == "shared"
    found[BOTH if shared else POLICY_STEP] = Learning(
        run.learned, POLICY, True, VALUE if shared else None, ppo.entropy_coef > 0
    )
    if ppo.value == "adapter":
        found[VALUE_STEP] = Learning(run.learned, VALUE, False, VALUE)
    if ppo.ptx_coef:
        text = Update(min(run.sizes.micro, ppo.ptx_batch_size), 1, ppo.ptx_max_length - 1)
        found[TEXT] = Learning(text, POLICY, True, None)
    # Answers until there are as many tokens as an export is compared at, with the logits of all of them.
    each = run.sizes.micro * (run.mean_prompt + run.response)
    rows = run.sizes.micro * max(1, math.ceil(recipe.export.positions / each))
    found[PROBE] = Probing(rows, run.prompt + run.response, POLICY)
    return found


def _at_once(found: dict[str, Footprint]) -> dict[str, Footprint]:
    """Engines that shard have policy, value model and text in one backward pass, so that what each saves adds up."""
    learned = [found[name] for name in (POLICY_STEP, VALUE_STEP, BOTH, TEXT) if name in found]
    rest = {name: one for name, one in found.items() if name not in (POLICY_STEP, VALUE_STEP, BOTH, TEXT)}
    parts = {name: sum(one.parts.get(name, 0) for one in learned) for name in (ACTIVATIONS, LOGITS)}
    parts[WORKSPACE] = max(one.parts.get(WORKSPACE, 0) for one in learned)
    return {**rest, BOTH: Footprint(parts, sum(one.flops for one in learned), 0)}


def _run(recipe: Recipe, lengths: Lengths, wishes: Wishes) -> _Run:
    ppo = recipe.ppo
    sizes = Sizes.of(ppo, wishes.devices)
    mine = max(1, sizes.batch // wishes.devices)
    prompts = supervised_batches(lengths, mine)
    beside = min(mine, ppo.local_rollout_forward_batch_size)
    return _Run(
        sizes=sizes,
        prompt=prompts.width,
        mean_prompt=prompts.mean / mine,
        response=ppo.response_length,
        beside=beside,
        groups=math.ceil(mine / beside),
        copies=ppo.num_generations,
    )


def _with_states(run: _Run, recipe: Recipe, setup: Setup, wishes: Wishes) -> _Run:
    """Knows what is computed once below every adapter; engines that share the base out have each role compute it."""
    below = layer_kinds(setup).count(BELOW)
    lowest = below
    if REWARD in setup.adapters and recipe.reward.lora is not None:
        lowest = min(below, *(recipe.reward.lora.layers_to_transform or [0]))
    limit = recipe.ppo.frozen_states_limit * 2**20
    if not lowest or not limit or wishes.shards_base:
        return run
    tokens = run.sizes.batch * (run.prompt + run.response)
    size = tokens * setup.config.get_text_config().hidden_size * setup.dtype.itemsize
    # A reward adapter that reaches further down than the others leaves less to save: none of it is counted as saved.
    return dataclasses.replace(run, lowered=lowest == below, states=size if size <= limit else 0)


def _holding(name: str, one: Footprint, run: _Run, weights: Weights, setup: Setup, wishes: Wishes) -> Footprint:
    """With what is in memory beside the tensors of a phase: the states below the adapters from when they are made until
    the update is over, and, while a CPU samples, a second copy of the layers' matrices (`models/packed_linear.py`)."""
    parts = dict(one.parts)
    if name not in (PROMPTS, LAST, PROBE):
        parts["states"] = run.states
    if name == LOWER:  # the parts of it that are put together at the end
        parts[WORKSPACE] = max(parts.get(WORKSPACE, 0), run.states)
    if name in (PROMPTS, LAST) and not wishes.gpu and setup.quantization is None and not wishes.shards_base:
        parts["ordered"] = weights.base - weights.outside
    return dataclasses.replace(one, parts=parts)


def _judging(recipe: Recipe, run: _Run, setup: Setup) -> float:
    """Operations of an answer's scores, all roles together, at the longest prompts."""
    whole = dataclasses.replace(run.scored, lowered=False)
    full = footprint(setup, Judging(whole, POLICY)).flops
    roles = 3 if recipe.ppo.value == "shared" else 4  # policy, reference, reward model, value model
    if not run.lowered:
        return roles * full / whole.rows
    # Those on the base of the policy, the reward model among them only where the states of a whole update are kept.
    on_base = 2 + (recipe.ppo.value == "adapter") + (REWARD in setup.adapters and run.states > 0)
    upper = footprint(setup, Judging(run.scored, POLICY)).flops
    once = full - upper
    once *= (run.prompt / run.copies + run.response) / (run.prompt + run.response)  # a prompt's copies are read once
    return (on_base * upper + (roles - on_base) * full + once) / whole.rows


def _average(recipe: Recipe, weights: Weights) -> int:
    """Of the policy's moving average, float32."""
    return 0 if recipe.ppo.ema_decay is None else 4 * weights.parameters[POLICY]


def _other_models(recipe: Recipe, wishes: Wishes) -> tuple[Kept, dict[str, int], list[str]]:
    """Models beside the policy's base: a value model of its own, reward models on other bases.

    Their engines do not shard what DeepSpeed or FSDP has not been given, so that each device keeps them whole.
    """
    ppo = recipe.ppo
    total, beside, notes = Kept(0, 0, 0, 0, 0, 0), dict[str, int](), list[str]()
    if ppo.value == "model":
        setup = dataclasses.replace(
            reward_setup(recipe, wishes)[1], adapters=(VALUE,), trained=(VALUE,), heads={VALUE: 1}, adapters_learn=True
        )
        weights = weights_of(setup)
        beside["value model"] = sum(weights.parameters.values())
        total = _with(total, kept(weights, str(ppo.trainer.get("optim", "adamw_torch")), "ppo.trainer.optim"))
        notes.append("value: model: its own activations are taken to be no more than the policy's")
    for source in ppo.reward_funcs:
        setups = _reward_model(recipe, source, wishes)
        if source == LIVE:
            notes.append("reward_funcs: live: each update waits for people, which no time here counts")
        elif setups is None:
            notes.append(f"reward_funcs: {source}: what it needs is not counted")
        elif setups:
            weights = weights_of(setups[0])
            beside[f"reward model {source}" if source != REWARD else "reward model"] = weights.parameters["base"]
            total = _with(total, kept(weights, "sgd", "", learns=False))
    return total, beside, notes


def _reward_model(recipe: Recipe, source: str, wishes: Wishes) -> list[Setup] | None:
    """The model behind a reward function: none where it shares the policy's base, or people score; None where it is not
    known."""
    if source == LIVE:
        return []
    if source == REWARD:
        return [] if recipe.reward.model is None else [reward_setup(recipe, wishes)[1]]
    if ":" in source:
        return None  # a function
    try:
        section = ModelSection(name_or_path=source)
        return [reward_setup(recipe.model_copy(update={"model": section}), wishes)[1]]
    except ModelError:
        return None


def _with(one: Kept, other: Kept) -> Kept:
    sums = (getattr(one, f.name) + getattr(other, f.name) for f in dataclasses.fields(Kept))
    return Kept(*sums)


def _work(
    recipe: Recipe,
    run: _Run,
    lengths: Lengths,
    found: dict[str, Footprint],
    judging: float,
    held: Kept,
    wishes: Wishes,
) -> Work:
    ppo, sizes = recipe.ppo, run.sizes
    shape = f"{sizes.micro} x ({run.prompt} + {run.response}) tokens"
    updates = None if lengths.rows is None and ppo.total_episodes is None else sizes.updates(ppo, lengths.rows or 0)
    max_steps = ppo.trainer.get("max_steps")
    updates = max_steps if max_steps else updates
    if updates is None:
        return Work(lengths.rows, None, None, shape, None, None, lengths.source)
    learned = sum(one.flops for name, one in found.items() if name in (POLICY_STEP, VALUE_STEP, BOTH, TEXT))
    trained = sizes.batch * run.share * (judging + ppo.num_ppo_epochs * learned / sizes.micro)
    prefill, step = (found[name].flops if name in found else 0 for name in (PROMPTS, LAST))
    sampled = run.groups * wishes.devices * (prefill + run.response * step)
    tokens = updates * sizes.batch * (run.mean_prompt + run.response)
    seconds = None
    if wishes.throughput is not None:
        seconds = updates * trained / wishes.throughput / wishes.devices
        if LAST in found:
            seconds += (
                updates
                * run.groups
                * sampling_seconds(
                    prefill=prefill,
                    step=step,
                    steps=run.response,
                    read=held.base + held.adapters + found[LAST].cache / 2,
                    throughput=wishes.throughput,
                    bandwidth=wishes.bandwidth,
                )
            )
    return Work(lengths.rows, updates, round(tokens), shape, updates * (trained + sampled), seconds, lengths.source)
