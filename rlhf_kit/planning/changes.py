"""What would make a plan fit: changes of the recipe or the launch, each planned anew, the cheapest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_kit.planning.results import Change, StagePlan
from rlhf_kit.planning.wishes import Wishes
from rlhf_kit.recipe import Recipe

__all__ = ["BARELY", "cheapest"]

BARELY = 0.9
"""Of a device: above it a plan fits only just, because fragments and what others take are not planned."""
_SHOWN = 3
_WORTH = 0.98
"""A change that leaves more of the peak than this is not shown."""

Replan = Callable[[Recipe, Wishes], tuple[StagePlan, ...]]


@dataclass(frozen=True)
class _State:
    """A recipe on some devices, with the settings that have been changed so far."""

    recipe: Recipe
    wishes: Wishes
    settings: tuple[str, ...] = ()

    def setting(self, section: str, key: str, value: Any) -> _State:
        """With another value in a section of the recipe."""
        old = getattr(self.recipe, section)
        recipe = self.recipe.model_copy(update={section: old.model_copy(update={key: value})})
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        return _State(recipe, self.wishes, _put(self.settings, f"{section}.{key}", shown))

    def launched(self, **changes: Any) -> _State:
        """With other devices."""
        settings = self.settings
        for name, value in changes.items():
            settings = (*(one for one in settings if not one.startswith(f"--{name} ")), f"--{name} {value}")
        return _State(self.recipe, dataclasses.replace(self.wishes, **changes), settings)


def _put(settings: tuple[str, ...], name: str, value: str) -> tuple[str, ...]:
    return (*(one for one in settings if not one.startswith(f"{name}=")), f"{name}={value}")


Step = Callable[[_State, frozenset[str]], _State]
"""A change, made to the stages that do not fit; the same state where it does not apply."""


def cheapest(recipe: Recipe, wishes: Wishes, stages: Sequence[StagePlan], replan: Replan) -> tuple[Change, ...]:
    """The three cheapest changes that help, those first that are enough alone; if none is, one that adds them up."""
    assert wishes.device is not None
    tight = _too_large(stages, BARELY * wishes.device)
    if not tight:
        return ()
    start = _State(recipe, wishes)
    before = {stage.stage: stage.peak.total for stage in stages}
    enough, helpful, harder = list[Change](), list[Change](), list[tuple[Step, str]]()
    for step, cost in _STEPS:
        found = _tried(start, step, cost, tight, replan, before)
        if found is not None:
            (enough if found.fits else helpful).append(found)
            harder.append((step, cost))
        if len(enough) == _SHOWN:
            return tuple(enough)
    together = () if enough else _together(start, harder, replan)
    return (*enough, *together, *helpful)[: max(_SHOWN, len(enough))]


def _too_large(stages: Sequence[StagePlan], limit: float) -> frozenset[str]:
    return frozenset(stage.stage for stage in stages if stage.peak.total > limit)


def _tried(
    state: _State, step: Step, cost: str, tight: frozenset[str], replan: Replan, before: dict[str, int]
) -> Change | None:
    """A change on its own, repeated where it can be (half of a batch, and half again) until it is enough."""
    found: Change | None = None
    while True:
        changed = step(state, tight)
        if changed.settings == state.settings:
            return found
        after = _change(changed, cost, replan)
        worst = found.peaks if found is not None else before
        if max(after.peaks[name] for name in tight) > _WORTH * max(worst[name] for name in tight):
            return found
        found, state = after, changed
        if found.fits:
            return found


def _change(state: _State, cost: str, replan: Replan) -> Change:
    peaks = {stage.stage: stage.peak.total for stage in replan(state.recipe, state.wishes)}
    assert state.wishes.device is not None
    return Change(state.settings, cost, peaks, max(peaks.values()) <= state.wishes.device)


def _together(
    start: _State, steps: Sequence[tuple[Step, str]], replan: Replan
) -> Iterator[Change] | tuple[Change, ...]:
    """All of them one after another, each as often as it helps, until everything fits; nothing if it never does."""
    state, costs = start, list[str]()
    assert start.wishes.device is not None
    for step, cost in steps:
        while True:
            stages = replan(state.recipe, state.wishes)
            tight = _too_large(stages, start.wishes.device)
            if not tight:
                return (_change(state, "; ".join(dict.fromkeys(costs)), replan),)
            changed = step(state, tight)
            if changed.settings == state.settings:
                break
            peak = max(stage.peak.total for stage in stages)
            if max(stage.peak.total for stage in replan(changed.recipe, changed.wishes)) > _WORTH * peak:
                break
            state = changed
            costs.append(cost)
    final = _change(state, "; ".join(dict.fromkeys(costs)), replan)
    return (final,) if final.fits else ()


# -------------------------------------------------------------------- the changes, the cheapest first


def _fewer_side_by_side(state: _State, tight: frozenset[str]) -> _State:
    size = state.recipe.ppo.local_rollout_forward_batch_size
    mine = -(-_update(state) // state.wishes.devices)
    size = min(size, mine)
    if "ppo" not in tight or size < 2:
        return state
    return state.setting("ppo", "local_rollout_forward_batch_size", size // 2)


def _states_again(state: _State, tight: frozenset[str]) -> _State:
    kept = "ppo" in tight and state.recipe.lora.layers_to_transform and state.recipe.ppo.frozen_states_limit
    return state.setting("ppo", "frozen_states_limit", 0) if kept else state


def _smaller_batches(state: _State, tight: frozenset[str]) -> _State:
    """Half as many rows in a forward pass, and twice as many passes."""
    for name in sorted(tight):
        section = getattr(state.recipe, name)
        size = section.per_device_train_batch_size
        if size % 2:
            continue
        if name == "ppo":
            if section.batch_size is None:
                state = state.setting("ppo", "batch_size", _update(state))
        else:
            state = state.setting(name, "gradient_accumulation_steps", 2 * section.gradient_accumulation_steps)
        state = state.setting(name, "per_device_train_batch_size", size // 2)
    return state


def _update(state: _State) -> int:
    from rlhf_kit.recipe_ppo import Sizes

    return Sizes.of(state.recipe.ppo, state.wishes.devices).batch


def _checkpointing(state: _State, tight: frozenset[str]) -> _State:
    for name in sorted(tight):
        if not getattr(state.recipe, name).gradient_checkpointing:
            state = state.setting(name, "gradient_checkpointing", True)
    return state


def _small_optimizer(state: _State, tight: frozenset[str]) -> _State:
    for name in sorted(tight):
        trainer = getattr(state.recipe, name).trainer
        if "8bit" not in str(trainer.get("optim", "")):
            state = state.setting(name, "trainer", {**trainer, "optim": "adamw_8bit"})
    return state


def _shared(mode: str) -> Step:
    def step(state: _State, tight: frozenset[str]) -> _State:
        wishes = state.wishes
        if wishes.devices == 1 or wishes.mode in (mode, "zero3", "zero3_offload", "fsdp2"):
            return state
        if mode == "zero3" and state.recipe.model.quantization is not None:  # training refuses it
            return state
        return state.launched(mode=mode)

    return step


def _eight_bit(state: _State, tight: frozenset[str]) -> _State:
    possible = state.recipe.model.quantization is None and not state.wishes.shards_base
    return state.setting("model", "quantization", "8bit") if possible else state


def _four_bit(state: _State, tight: frozenset[str]) -> _State:
    possible = state.recipe.model.quantization != "4bit" and not state.wishes.shards_base
    return state.setting("model", "quantization", "4bit") if possible else state


def _value_on_policy(state: _State, tight: frozenset[str]) -> _State:
    return state.setting("ppo", "value", "shared") if "ppo" in tight and state.recipe.ppo.value != "shared" else state


def _shorter(state: _State, tight: frozenset[str]) -> _State:
    """Three quarters of what the rows may have, not below 128 tokens."""
    for name, key in (("sft", "max_length"), ("reward", "max_length"), ("ppo", "response_length")):
        value = getattr(getattr(state.recipe, name), key)
        if name in tight and value * 3 // 4 >= 128:
            state = state.setting(name, key, value * 3 // 4)
    return state


def _more_devices(state: _State, tight: frozenset[str]) -> _State:
    wishes = state.wishes
    if not wishes.gpu or wishes.devices >= 64 or state.recipe.model.quantization is not None:
        return state
    if wishes.devices > 1 and wishes.shards_base:
        return state.launched(devices=2 * wishes.devices)
    return state.launched(devices=max(2, wishes.devices), mode="zero3")


_STEPS: tuple[tuple[Step, str], ...] = (
    (_fewer_side_by_side, "sampling takes longer, in more and smaller batches; the same answers to learn from"),
    (_states_again, "the layers below the adapters are computed again by each role in each pass"),
    (_smaller_batches, "the same steps in smaller pieces, which use a device less well"),
    (_checkpointing, "each layer is computed again in the backward pass: about a third more time to train"),
    (_shared("zero2"), "gradients and optimiser state are exchanged between the devices"),
    (_small_optimizer, "the optimiser's moments are rounded to 8 bits (bitsandbytes)"),
    (_shared("zero3"), "every layer is sent between the devices in every pass: slower without fast links"),
    (_value_on_policy, "the value model shares the policy's trunk, and explains the returns less well"),
    (_eight_bit, "the base is rounded to 8 bits (bitsandbytes): slower, close to the same answers"),
    (_four_bit, "the base is rounded to 4 bits (nf4): slower, and the rounding costs some quality"),
    (_shorter, "long rows lose their end, and answers end sooner"),
    (_more_devices, "more devices, each with a part of the base"),
)
