"""Carrying the policy adapter away, verified: an export that does not do what the trained model did is not written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rlhf_kit.checkpoint import Manifest
from rlhf_kit.errors import ExportError
from rlhf_kit.models import load_base, load_tokenizer
from rlhf_kit.models.backbone import WEIGHTS_FILE
from rlhf_kit.models.probe import Probe
from rlhf_kit.recipe import Recipe

# Largest difference of a logit between the trained model and the reloaded adapter. The same kernels on the same
# numbers agree to the last bit; another thread count or batch shape may not.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# How much closer the export must be to the trained model than the base is.
MARGIN = 10.0


def export_adapter(recipe: Recipe, run: Path, trained: Manifest, out: Path) -> dict[str, Any]:
    """Writes adapter, tokenizer and card to `out`, reloads the adapter with plain PEFT on a fresh base, and compares
    logits.

    Args:
        run: directory of the stage whose adapter is exported.
        trained: its manifest.
        out: an empty directory; what is in it counts only if this function returns.

    Returns:
        What was measured: positions, the largest and mean difference from the trained model, and the adapter's mean
        effect.

    Raises:
        ExportError: the reloaded adapter differs from the trained model, or changes nothing.
    """
    for name in ("adapter_config.json", WEIGHTS_FILE):
        shutil.copyfile(run / name, out / name)
    load_tokenizer(recipe.model).save_pretrained(out)
    figures = verify(recipe, out, Probe.load(run))
    (out / "README.md").write_text(card(recipe, trained, figures), encoding="utf-8")
    return figures


def verify(recipe: Recipe, adapter: Path, probe: Probe) -> dict[str, Any]:
    """Compares an adapter directory, loaded as any PEFT user loads it, with the probe of the trained model."""
    base = load_base(recipe.model)
    base_logits = probe.repeat(base)
    reloaded = probe.repeat(PeftModel.from_pretrained(base, str(adapter)))
    difference = (reloaded - probe.logits).abs()
    effect = (base_logits - probe.logits).abs().mean().item()
    figures = {
        "positions": probe.logits.size(0),
        "max_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
        "mean_effect": effect,
    }
    if not torch.isfinite(reloaded).all():
        raise ExportError(f"{adapter}: the reloaded adapter gives logits that are not finite")
    if effect == 0.0 or (reloaded - base_logits).abs().mean().item() == 0.0:
        raise ExportError(f"{adapter}: the adapter changes nothing: its logits equal those of the base model")
    limit = TOLERANCE[base.dtype]
    if figures["max_difference"] > limit or figures["mean_difference"] * MARGIN > effect:
        raise ExportError(
            f"{adapter}: reloaded with PEFT, its logits differ from the trained model's by up to "
            f"{figures['max_difference']:.3g} "
            f"(mean {figures['mean_difference']:.3g}; the adapter's own effect is {effect:.3g}, the limit {limit:g})"
        )
    return figures


def card(recipe: Recipe, trained: Manifest, figures: dict[str, Any]) -> str:
    """A model card: what it is, what it stands on, how it was verified, how to load it."""
    base = trained.base
    settings = "\n".join(
        f"| `{key}` | `{value}` |" for key, value in trained.recipe[trained.stage].items() if key != "trainer"
    )
    weights = f"`{base['name_or_path']}`" + (f", sha256 `{base['sha256']}`" if base["sha256"] else "")
    data = "\n".join(f"* `{name}`: sha256 `{digest}`" for name, digest in trained.inputs["data"].items())
    return f"""---
base_model: {base["id"]}
library_name: peft
pipeline_tag: text-generation
tags: [lora, rlhf, ppo, rlhf_kit]
---

# {trained.stage} adapter for {base["id"]}

A LoRA adapter made with `rlhf_kit` (SFT, a reward model on ranked answers, PPO).
The weights that it was trained on: {weights}, in {base["dtype"]}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base["id"]}")
model = PeftModel.from_pretrained(base, "THIS_DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")
```

## Verified

Reloaded with plain PEFT on a freshly loaded base and compared with the trained model.
Positions: {figures["positions"]}.
Largest difference of a logit: {figures["max_difference"]:.3g}; mean: {figures["mean_difference"]:.3g}.
The adapter's own effect on the base's logits: {figures["mean_effect"]:.3g} on average.

## Data

{data}

## Settings of the last stage

| setting | value |
|---|---|
{settings}

Seed {recipe.seed}. Versions: {", ".join(f"{name} {number}" for name, number in trained.versions.items())}.
"""
