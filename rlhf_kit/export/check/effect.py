"""What an adapter changes, measured: the outputs of its base with and without it, loaded as any PEFT user loads it."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_kit.export.check.base import Adapter, Base, quiet
from rlhf_kit.export.check.files import FAILURES, Finding, first_line
from rlhf_kit.export.check.fit import embedding_rows, model_class_of, resize, with_labels
from rlhf_kit.export.check.weights import CLASSIFIERS
from rlhf_kit.process import memory_of_machine

_SEQUENCES, _LENGTH = 4, 16


def effect_of(base: Base, adapter: Adapter, parameters: int) -> tuple[float | None, list[Finding]]:
    """The mean difference that the adapter makes to the logits of a few token sequences, in float32.

    Of a classifier it is that of the last hidden states, because the head of its base is random.

    Args:
        parameters: of the base.
    """
    if (memory := memory_of_machine()) is not None and (needed := 4 * parameters) > memory:
        sizes = f"{needed / 1e9:.1f} GB in float32, this machine has {memory / 1e9:.1f} GB"
        said = f"{base.name}: too large to be loaded here ({sizes})"
        return None, [Finding("not-loaded", "note", f"{said}; not checked whether the adapter changes anything")]
    model_class = model_class_of(adapter.config)
    try:
        with quiet():
            model = model_class.from_pretrained(
                base.source,
                config=with_labels(base.config, adapter),
                revision=base.revision,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
    except FAILURES as failure:
        said = f"{base.name}: its weights cannot be loaded ({first_line(failure)})"
        return None, [Finding("not-loaded", "note", f"{said}; not checked whether the adapter changes anything")]
    try:
        with quiet():
            resize(model, adapter)
            ids = _sequences(model, adapter)
            before = _outputs(model.eval(), ids, adapter.config.task_type)
            model = PeftModel.from_pretrained(model, str(adapter.directory), torch_device="cpu").eval()
            after = _outputs(model, ids, adapter.config.task_type)
    except FAILURES as failure:
        said = f"{adapter.directory}: PEFT cannot load it on {base.name}: {first_line(failure)}"
        return None, [Finding("peft-refuses", "error", f"{said}; mend what is named, or save it again")]
    if not torch.isfinite(after).all():
        said = f"{adapter.directory}: loaded on {base.name}, it gives outputs that are not finite"
        return None, [Finding("not-finite", "error", f"{said}; the training diverged: take an earlier checkpoint")]
    effect = float((after - before).abs().mean())
    if effect == 0.0:
        said = f"{adapter.directory}: loaded by PEFT on {base.name}, it changes nothing"
        return effect, [Finding("no-effect", "error", f"{said}: outputs with and without it are the same")]
    return effect, []


def _sequences(model: PreTrainedModel, adapter: Adapter) -> Tensor:
    """(B, T) token ids, the same every time, with those in them that an adapter may wait for."""
    generator = torch.Generator().manual_seed(0)
    rows = embedding_rows(model)
    ids = torch.randint(rows, (_SEQUENCES, _LENGTH), generator=generator)
    trained = adapter.config.trainable_token_indices or []
    tokens = [token for some in trained.values() for token in some] if isinstance(trained, dict) else trained
    awaited = [t for t in (*tokens[:_LENGTH], *(adapter.config.alora_invocation_tokens or [])) if t < rows]
    middle = torch.tensor(awaited, dtype=torch.long).expand(_SEQUENCES, len(awaited))
    return torch.cat([ids[:, : _LENGTH // 2], middle, ids[:, _LENGTH // 2 :]], dim=1)


@torch.no_grad()
def _outputs(model: torch.nn.Module, ids: Tensor, task: str | None) -> Tensor:
    """(B, T, V) logits, or the (B, T, H) last hidden states where there are none or they are a classifier's."""
    given = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return given.hidden_states[-1] if task in CLASSIFIERS or "logits" not in given else given.logits
