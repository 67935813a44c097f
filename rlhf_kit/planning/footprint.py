"""From models of a few layers to the whole one: each further layer of a kind adds what the one before it added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_kit.planning.phases import Measured, Phase, measure
from rlhf_kit.planning.setup import ADAPTED, BELOW, PLAIN, Setup, layer_kinds

__all__ = ["Footprint", "footprint"]

_FEW = 4
"""Models of so many layers are run as they are."""


# Changes of a recipe leave most phases as they are, and each is planned again for every change that is tried.
_KNOWN: dict[str, Footprint] = {}


@dataclass(frozen=True)
class Footprint:
    """A phase on the whole model.

    Attributes:
        parts: bytes at the worst moment, by what they are; without weights, gradients and optimiser.
        flops: of the whole phase.
        cache: bytes of the KV cache when it ends.
    """

    parts: dict[str, int]
    flops: int
    cache: int


def footprint(setup: Setup, phase: Phase) -> Footprint:
    """Measures a phase, once.

    Layers of one kind are alike, so that bytes and operations are linear in their numbers.
    """
    key = f"{setup!r} {phase!r}"
    if key not in _KNOWN:
        _KNOWN[key] = _measured(setup, phase)
    return _KNOWN[key]


def _measured(setup: Setup, phase: Phase) -> Footprint:
    kinds = layer_kinds(setup)
    if len(kinds) <= _FEW:
        found = measure(setup, kinds, phase)
        return Footprint(found.parts, found.flops, found.cache)
    wanted = Counter(kinds)
    few = {kind: min(wanted[kind], 2 if kind == ADAPTED or not wanted[ADAPTED] else 1) for kind in wanted}
    smallest = measure(setup, list(_ordered(few)), phase)
    total = _table(smallest)
    for kind, count in wanted.items():
        if count == few[kind]:
            continue
        larger = _table(measure(setup, list(_ordered({**few, kind: few[kind] + 1})), phase))
        for name in {**total, **larger}:
            step = larger.get(name, 0) - _table(smallest).get(name, 0)
            total[name] = total.get(name, 0) + step * (count - few[kind])
    flops, cache = total.pop("flops"), total.pop("cache")
    return Footprint({name: max(0, size) for name, size in total.items()}, flops, cache)


def _table(found: Measured) -> dict[str, int]:
    return {**found.parts, "flops": found.flops, "cache": found.cache}


def _ordered(counts: dict[str, int]) -> Iterator[str]:
    """Kinds as they follow one another in a model: one with an adapter, those without, the rest with."""
    yield from [BELOW] * counts.get(BELOW, 0)
    yield from [ADAPTED] * min(1, counts.get(ADAPTED, 0))
    yield from [PLAIN] * counts.get(PLAIN, 0)
    yield from [ADAPTED] * max(0, counts.get(ADAPTED, 0) - 1)
