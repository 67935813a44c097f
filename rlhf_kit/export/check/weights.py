"""What is wrong with an adapter by its own files: numbers, ranks, scale, targets, heads. No base is needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import EMBEDDING_LAYER_NAMES, INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from peft.utils.other import get_pattern_key
from torch import Tensor

from rlhf_kit.export.check.files import AdapterConfig, Finding, listed
from rlhf_kit.export.check.keys import PREFIX, Pair

_USUAL = (torch.float32, torch.bfloat16, torch.float16)
CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")
"""Task types whose head is trained with the adapter and saved in it."""


# -------------------------------------------------------------------- numbers


def number_findings(file: str, tensors: dict[str, Tensor], pairs: dict[str, Pair]) -> Iterator[Finding]:
    """NaN, infinity, factors that are zero, have no shape or no partner, and unusual number formats.

    Args:
        file: where the tensors are from.
        tensors: under canonical names.
        pairs: of these tensors.
    """
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]:
        said = f"{file}: NaN or infinity in {len(bad)} of {len(tensors)} tensors ({listed(bad)})"
        yield Finding("not-finite", "error", f"{said}; the training diverged: take an earlier checkpoint")
    if flat := [name for name, t in tensors.items() if ".lora_" in name and t.numel() == 0]:
        said = f"{file}: {len(flat)} of {len(tensors)} tensors are empty ({listed(flat)}), as when ZeRO-3 or FSDP "
        yield Finding("empty-tensors", "error", f"{said}shards were not gathered; save again with them gathered")
    yield from _zero_findings(file, tensors, pairs)
    halves = [pair for pair in pairs.values() if pair.a is None or pair.b is None]
    if lone := [f"{pair.module} has no {'B' if pair.b is None else 'A'}" for pair in halves]:
        yield Finding("unpaired", "error", f"{file}: {listed(lone)}; without both it does nothing: save it again")
    formats = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    if odd := sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.dtype not in _USUAL}):
        said = f"{file}: tensors in {', '.join(odd)}; adapters are usually float32, bfloat16 or float16"
        yield Finding("odd-dtype", "note", f"{said}, and a quantised one is read as plain numbers")
    elif len(formats) > 1:
        several = ", ".join(f"{count} in {name}" for name, count in formats.most_common())
        yield Finding("mixed-dtypes", "note", f"{file}: the tensors are of several formats: {several}")


def _zero_findings(file: str, tensors: dict[str, Tensor], pairs: dict[str, Pair]) -> Iterator[Finding]:
    """Either factor being zero switches a module's LoRA off; a new adapter has every B zero."""
    others = any(name.endswith("lora_magnitude_vector") for name in tensors)
    for side, why in (("b", "as in a new adapter"), ("a", "which no initialisation makes")):
        factors = {module: getattr(pair, side) for module, pair in pairs.items()}
        there = {module: factor for module, factor in factors.items() if factor is not None and factor.numel()}
        zero = [module for module, factor in there.items() if not factor.float().any()]
        if not zero:
            continue
        if len(zero) < len(there):
            said = f"{file}: {side.upper()} is zero in {len(zero)} of {len(there)} modules ({listed(zero)})"
            advice = "the adapter does nothing there: were they trained?"
            yield Finding(f"some-zero-{side}", "warning", f"{said}, {why}; {advice}")
            continue
        said = f"{file}: every {side.upper()} matrix is zero, {why}"
        if others:
            yield Finding(f"zero-{side}", "warning", f"{said}; only DoRA's magnitudes can change anything")
        else:
            advice = "LoRA changes nothing: it was saved before the training, or another adapter was trained"
            yield Finding(f"zero-{side}", "error", f"{said}; {advice}")


# -------------------------------------------------------------------- scale and ranks


def alpha_findings(file: str, config: AdapterConfig) -> Iterator[Finding]:
    """A scale of zero switches LoRA off."""
    if config.lora_alpha == 0:
        said = f"{file}: lora_alpha is 0, so LoRA is multiplied by 0"
        yield Finding("alpha-zero", "error", f"{said}; write the alpha it was trained with")
    if zero := [key for key, alpha in (config.alpha_pattern or {}).items() if alpha == 0]:
        said = f"{file}: alpha_pattern has 0 for {listed(zero)}, so LoRA is multiplied by 0 there"
        yield Finding("alpha-zero", "error", f"{said}; write the alpha it was trained with")


def rank_findings(file: str, config: AdapterConfig, pairs: dict[str, Pair]) -> Iterator[Finding]:
    """Ranks of the tensors against `r` and `rank_pattern`, and patterns that match no module."""
    unequal, other = [], []
    for module, pair in pairs.items():
        rank = pair.rank
        if rank is None:
            continue
        if pair.a is not None and pair.b is not None and pair.b.dim() > 1 and pair.b.shape[1] != rank:
            unequal.append(f"{module}: A {tuple(pair.a.shape)}, B {tuple(pair.b.shape)}")
            continue
        wanted = rank_of(config, module)
        # The experts of a layer share one tensor, with their factors one after the other.
        if rank != wanted and not (_by_parameter(config, module) and rank % wanted == 0):
            other.append(f"{module}: {rank} in the tensors, {wanted} in the configuration")
    if unequal:
        said = f"{file}: A and B do not belong together in {len(unequal)} of {len(pairs)} modules"
        yield Finding("unequal-ranks", "error", f"{said} ({listed(unequal, 2)}); save the adapter again")
    if other:
        said = f"{file}: r and rank_pattern do not fit {len(other)} of {len(pairs)} modules ({listed(other, 2)})"
        yield Finding("rank-pattern", "error", f"{said}; PEFT cannot load it: write the ranks that the tensors have")
    for field, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        if unused := [key for key in pattern or {} if not any(get_pattern_key([key], m) == key for m in pairs)]:
            said = f"{file}: {field} names {listed(unused)}, which no module of the adapter matches"
            yield Finding("unmatched-pattern", "warning", f"{said}; mend the name, or leave it out")


def rank_of(config: AdapterConfig, module: str) -> int:
    """The rank that PEFT gives a module: the first key of `rank_pattern` that matches, else `r`."""
    patterns = config.rank_pattern or {}
    return patterns.get(get_pattern_key(list(patterns), module), config.r)


def _by_parameter(config: AdapterConfig, module: str) -> bool:
    """Whether a module is there because of `target_parameters`, which name its parameters."""
    owners = [name.rpartition(".")[0] for name in config.target_parameters or ()]
    module = module.removesuffix(".base_layer")
    return any(module == owner or module.endswith(f".{owner}") for owner in owners)


# -------------------------------------------------------------------- targets and heads


def target_findings(file: str, config: AdapterConfig, peft: PeftConfig, pairs: dict[str, Pair]) -> Iterator[Finding]:
    """Modules with tensors against the modules that the configuration names."""
    targets = config.target_modules
    if targets is None or targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return  # PEFT asks the base
    strangers = untargeted(config, peft, pairs)
    if strangers:
        said = f"{file}: {len(strangers)} of {len(pairs)} modules ({listed(strangers)}) have tensors, but"
        why = "target_modules, layers_to_transform, exclude_modules or modules_to_save leave them out"
        yield Finding("untargeted", "error", f"{said} {why}; PEFT ignores them: name them in target_modules")
    if isinstance(targets, str):
        unused = [] if any(re.fullmatch(targets, module) for module in pairs) else [targets]
    else:
        unused = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in pairs)]
        # PEFT writes down what exclude_modules and modules_to_save leave out too; it says no to such a target itself.
        unused = [t for t in unused if check_target_module_exists(peft, t)]
    if unused:
        said = f"{file}: target_modules names {listed(sorted(unused))}, for which there are no tensors"
        yield Finding("unused-target", "warning", f"{said}; were they lost, or does the base have no such modules?")


def untargeted(config: AdapterConfig, peft: PeftConfig, pairs: dict[str, Pair]) -> list[str]:
    """Modules with tensors that PEFT will not adapt, by the configuration alone."""
    if config.target_modules in (None, INCLUDE_LINEAR_LAYERS_SHORTHAND):
        return []
    return [m for m in pairs if not check_target_module_exists(peft, m) and not _by_parameter(config, m)]


def head_findings(file: str, config: AdapterConfig, tensors: dict[str, Tensor]) -> Iterator[Finding]:
    """Modules that should have been saved whole: the head of a classifier, and what `modules_to_save` names.

    PEFT names both `score` and `classifier` in `modules_to_save` of a classifier, whichever the base has.
    """
    saved = [name.removeprefix(PREFIX) for name in tensors if ".lora_" not in name]
    names = config.modules_to_save or []
    absent = [name for name in names if not any(re.match(rf"(.*\.)?{re.escape(name)}\.", key) for key in saved)]
    if config.task_type in CLASSIFIERS:
        heads = [*dict.fromkeys([*SEQ_CLS_HEAD_NAMES, *(n for n in names if n not in EMBEDDING_LAYER_NAMES)])]
        absent = [name for name in absent if name not in SEQ_CLS_HEAD_NAMES]
        if not any(re.match(rf"(.*\.)?({'|'.join(map(re.escape, heads))})\.", key) for key in saved):
            said = f"{file}: task_type is {config.task_type}, but no head ({' or '.join(heads)}) is among the tensors"
            yield Finding(
                "missing-head", "error", f"{said}; its scores would be random: save the head with the adapter"
            )
            return
    if absent:
        said = f"{file}: modules_to_save names {listed(absent)}, but no such tensors are there"
        yield Finding("missing-head", "error", f"{said}; they would be the base's or random: save the adapter again")


def head_labels(tensors: dict[str, Tensor]) -> int | None:
    """The number of labels of a classifier's head, the last layer of it; None where there is no head."""
    named = rf"(.*\.)?({'|'.join(SEQ_CLS_HEAD_NAMES)})\.(.*\.)?weight"
    heads = sorted(
        name for name, t in tensors.items() if re.fullmatch(named, name) and ".lora_" not in name and t.dim() == 2
    )
    return tensors[heads[-1]].shape[0] if heads else None


def ranks_of(pairs: dict[str, Pair]) -> tuple[int, ...]:
    """All ranks that occur, the smallest first."""
    return tuple(sorted({pair.rank for pair in pairs.values() if pair.rank is not None}))
