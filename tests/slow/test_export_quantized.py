"""Exports of adapters that were trained on a 4-bit base, with bitsandbytes on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbones import lora, stir
from export_run import write_stage
from safetensors.torch import load_file
from tiny import make_tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from whole_run import BASE_ID, recipe_of, rehash, write_base

from rlhf_kit.checkpoint import MANIFEST, read_json, write_json
from rlhf_kit.errors import ExportError
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.models import load_backbone
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.models.probe import Probe

pytestmark = pytest.mark.slow
pytest.importorskip("bitsandbytes")
KEY = "base_model.model."


@pytest.fixture(params=["4bit", "8bit"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A PPO stage on a quantised base, with what was kept of the model at its end."""
    recipe = recipe_of(write_base(tmp_path / "base"), "float32", model={"quantization": request.param})
    backbone = load_backbone(recipe.model)
    backbone.add_adapter("policy", lora(target_modules="all-linear"))
    stir(backbone, "policy", 5)
    ppo = write_stage(tmp_path / "run", recipe, backbone, "policy")
    manifest = read_json(ppo / MANIFEST)
    manifest["base"] |= {"id": BASE_ID, "dtype": "float32"}
    write_json(ppo / MANIFEST, manifest)
    with as_peft(), backbone.role("policy"):
        Probe.take(backbone.base, [list(range(5, 45))], 500, make_tiny_tokenizer().pad_token_id).save(ppo)
    rehash(ppo)
    return tmp_path / "run"


def test_merged_is_the_dequantised_base_with_the_update(run: Path, tmp_path: Path) -> None:
    quantization = read_json(run / "ppo" / MANIFEST)["base"]["quantization"]
    out = export(run, Wish("merged"))
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.float32 and "quantization_config" not in merged.config.to_dict()
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**(options if quantization == "4bit" else {"load_in_8bit": True}))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, quantization_config=config)
    before, plain = base.dequantize(dtype=torch.float32).state_dict(), load_base(tmp_path / "base")
    weights = {name: tensor.double() for name, tensor in load_file(run / "ppo" / WEIGHTS_FILE).items()}
    after, seen = merged.state_dict(), 0
    for name in (name for name in weights if "lora_A" in name):
        module = name.removeprefix(KEY).removesuffix(".lora_A.weight")
        alpha = read_json(run / "ppo" / "adapter_config.json")
        b = weights[f"{KEY}{module}.lora_B.weight"]
        by_hand = before[f"{module}.weight"].double() + alpha["lora_alpha"] / alpha["r"] * b @ weights[name]
        assert (after[f"{module}.weight"].double() - by_hand).abs().max() < 1e-5, module
        assert (plain[f"{module}.weight"] - before[f"{module}.weight"]).abs().max() > 1e-4, "the quantisation shows"
        seen += 1
    assert seen == 14
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{quantization[0]}-bit weights. They were dequantised first" in card


def load_base(directory: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    return state


def test_the_adapter_is_exported_and_another_is_not(run: Path, tmp_path: Path) -> None:
    out = export(run, Wish("adapter"))
    assert read_json(out / MANIFEST)["metrics"]["max_difference"] <= 1e-5
    from whole_run import change

    change(run / "ppo" / WEIGHTS_FILE, lambda name, tensor: tensor * 1.2)
    rehash(run / "ppo")
    with pytest.raises(ExportError, match="is not the model that was trained"):
        export(run, Wish("adapter"), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
