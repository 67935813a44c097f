"""An adapter in PEFT's layout, verified: one that does not do what the trained model did is not written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

from rlhf_kit.export.comparison import POSITIONS, Limit, judge, logits_of, own_answers, refer
from rlhf_kit.export.source import Source
from rlhf_kit.export.trained import TRAINED, Mixture, load_plain_base, load_trained
from rlhf_kit.models import Backbone
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.loading import base_id, save_lora_config

LIMIT = Limit(max_difference=1e-5)


def export_adapter(
    source: Source, out: Path, *, mixture: Mixture | None = None, positions: int = POSITIONS
) -> dict[str, Any]:
    """Writes adapter, tokenizer and chat template to `out`, reloads the adapter with plain PEFT on a fresh base, and
    compares logits in float32.

    Args:
        out: an empty directory; what is in it counts only if this function returns.

    Returns:
        What was measured.

    Raises:
        ExportError: the reloaded adapter differs from the trained model, or changes nothing.
        CheckpointError: the trained adapter is damaged.
    """
    backbone = load_trained(source, mixture)
    reference = refer(backbone, TRAINED, own_answers(backbone, TRAINED, positions), out)
    write_adapter(backbone, source, out, mixture)
    del backbone
    base = load_plain_base(source.model)
    reloaded = PeftModel.from_pretrained(base, str(out))
    found = reference.compare(logits_of(reloaded, base, reference.answers))
    return judge(out, reference, found, LIMIT, loader="PEFT")


def write_adapter(backbone: Backbone, source: Source, out: Path, mixture: Mixture | None = None) -> None:
    """The adapter's own bytes (of a mixture: what PEFT makes of it), what others need to know of it, and the
    tokenizer."""
    if mixture is None:
        shutil.copyfile(source.adapter / WEIGHTS_FILE, out / WEIGHTS_FILE)
        config = LoraConfig.from_pretrained(str(source.adapter))
    else:
        backbone.save_adapter(TRAINED, out)
        config = LoraConfig.from_pretrained(str(out))
    save_lora_config(config, out, base_id(source.model), source.model.revision)
    backbone.tokenizer.save_pretrained(out)
