"""Layers compiled by `torch.compile`, one after another: what is compiled for one serves all that are alike."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

import torch
from torch import nn

log = logging.getLogger(__name__)

# Each role, with and without a gradient, is a variant of a layer; dynamo's own limit of 8 is for accidents.
_VARIANTS = 64
# Rounds where eager mode rounds. Without it what is fused is not rounded in between, and differently with a gradient
# and without: log-probabilities of the same weights then differ by 0.1 nats a token (measured, SmolLM2 in bfloat16).
_OPTIONS = {"emulate_precision_casts": True}


@contextlib.contextmanager
def compiled(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within, layers are compiled when they are first used. Where that is not possible they stay as they are, with a
    word in the log."""
    if (reason := _why_not()) is not None:
        log.warning("torch_compile: the layers are not compiled: %s", reason)
        yield
        return
    limit, torch._dynamo.config.recompile_limit = torch._dynamo.config.recompile_limit, _VARIANTS
    layers = list(layers)
    for layer in layers:
        layer.compile(dynamic=True, options=_OPTIONS)
    try:
        yield
    finally:
        torch._dynamo.config.recompile_limit = limit
        for layer in layers:
            layer._compiled_call_impl = None


def as_it_is() -> contextlib.AbstractContextManager[None]:
    """Within, nothing compiled is used: for passes of ever new shapes, such as those of a decoding step."""
    eager: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return eager


def _why_not() -> str | None:
    """By compiling something small; None where it works."""
    try:
        torch.compile(torch.nn.functional.silu, options=_OPTIONS)(torch.ones(8))
    except Exception as failure:  # of whatever compiler is behind it
        lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
        return f"{type(failure).__name__}: {lines[0] if lines else 'no reason given'}"
    return None
