"""A merged model has the base's weights with the adapter's update added to them, or it is not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from whole_run import base_of, change, left_in, logits_of

from rlhf_kit.checkpoint import MANIFEST, read_manifest, write_json
from rlhf_kit.errors import ExportError
from rlhf_kit.export import merged
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.export.source import find
from rlhf_kit.files import sha256_of
from rlhf_kit.models.adapters import WEIGHTS_FILE

CONFIG = "adapter_config.json"


pytest_plugins = ["whole_run"]  # the fixtures place, run and half


def merged_by_hand(place: Path, role: str = "policy", dtype: str = "float32") -> dict[str, Tensor]:
    """W + alpha / r B A in float64, one layer at a time, and all other weights as they are."""
    base = {name: w.double() for name, w in load_file(place / "base" / "model.safetensors").items()}
    adapter = {name: w.double() for name, w in load_file(find(place / "run", role).adapter / WEIGHTS_FILE).items()}
    for name in (name for name in adapter if ".lora_A." in name):
        weight = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        base[weight] = base[weight] + 8 / 4 * adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
    return base


def weights_of(out: Path) -> dict[str, Tensor]:
    return {name: w for path in sorted(out.glob("*.safetensors")) for name, w in load_file(path).items()}


@pytest.mark.parametrize("role", ["policy", "sft"])
def test_merged_in_float32(place: Path, tmp_path: Path, role: str) -> None:
    before = {path.name: sha256_of(str(path)) for path in (place / "base").iterdir()}
    out = export(place / "run", Wish("merged"), role=role, out=tmp_path / "out")
    found, expected = weights_of(out), merged_by_hand(place, role)
    assert found.keys() == expected.keys() and {w.dtype for w in found.values()} == {torch.float32}
    for name, weight in found.items():
        assert (weight - expected[name]).abs().max() < 1e-6, name
    trained = PeftModel.from_pretrained(base_of(place / "base"), str(find(place / "run", role).adapter))
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32 and (logits_of(model) - logits_of(trained)).abs().max() < 1e-4
    assert (logits_of(model) - logits_of(base_of(place / "base"))).abs().max() > 1
    assert {path.name: sha256_of(str(path)) for path in (place / "base").iterdir()} == before, "it was only read"
    assert read_manifest(out).metrics["max_difference"] < 1.5e-5, "3e-5 where it is computed in float32"
    assert left_in(out) == [
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "manifest.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and card.data.base_model_relation == "finetune"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merged_weights_are_rounded_once(half: Path, tmp_path: Path, dtype: str) -> None:
    """PEFT rounds twice: with `safe_merge` the update and then the sum, and a sum that is cast afterwards anyway."""
    out = export(half / "run", Wish("merged", dtype), out=tmp_path / "out")
    peft = PeftModel.from_pretrained(base_of(half / "base", "bfloat16"), str(half / "run" / "ppo"))
    of_peft = peft.merge_and_unload(safe_merge=dtype == "bfloat16").to(getattr(torch, dtype)).state_dict()
    off, off_by_peft, count = 0, 0, 0
    for name, exact in merged_by_hand(half).items():
        once, found = exact.to(getattr(torch, dtype)), weights_of(out)[name]
        # The sum is made in float32: what lies between two numbers up to that may go to the other one.
        strays = found != once
        assert ((found.double() + once.double()) / 2 - exact)[strays].abs().sum() < 1e-6, name
        off, off_by_peft, count = off + strays.sum(), off_by_peft + (of_peft[name] != once).sum(), count + once.numel()
    assert count > 40_000 and off < 1e-3 * count and off_by_peft > 0.02 * count
    metrics = read_manifest(out).metrics
    assert (
        metrics["dtype"] == dtype
        and metrics["limit"]
        == {
            "bfloat16": {"top1_agreement": 0.96, "mean_kl": 5e-3},
            "float16": {"top1_agreement": 0.995, "mean_kl": 1e-4},
        }[dtype]
    )
    assert 0 < metrics["mean_kl"] < metrics["base_mean_kl"] / 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_precision_that_was_asked_for(half: Path, tmp_path: Path, dtype: str) -> None:
    out = export(half / "run", Wish("merged", dtype), out=tmp_path / "out")
    assert {str(w.dtype) for w in weights_of(out).values()} == {f"torch.{dtype}"}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert str(AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype) == f"torch.{dtype}"
    assert f"* Weights of this export: {dtype}\n" in (out / "README.md").read_text()
    expected = merged_by_hand(half)
    step = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    for name, weight in weights_of(out).items():
        assert ((weight.double() - expected[name]).abs() <= 0.51 * step * expected[name].abs() + 1e-7).all(), name


def test_float16_that_overflows_is_refused(run: Path, place: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(place / "base", tmp_path / "base"))
    big, name = torch.zeros(32), "model.layers.0.self_attn.q_proj.weight"
    big[3] = 70_000.0
    change(base / "model.safetensors", lambda key, w: torch.cat([w[:-1], big[None]]) if key == name else w)
    manifest = json.loads((run / "sft" / MANIFEST).read_text())
    manifest["recipe"]["model"]["name_or_path"] = str(base)
    write_json(run / "sft" / MANIFEST, manifest)
    before = left_in(tmp_path)
    said = rf"^{name}: the merged weights are not finite in torch\.float16; export in bfloat16 or float32$"
    with pytest.raises(ExportError, match=said):
        export(run, Wish("merged", "float16"), role="sft", out=tmp_path / "out")
    assert left_in(tmp_path) == before


def test_several_files(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "_SMALLEST", 1000)
    whole = export(place / "run", Wish("merged"), out=tmp_path / "out")
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(names) > 8 and names[0].startswith("model-00001-of-")
    assert set(read_manifest(whole).files) == set(names)
    expected = merged_by_hand(place)
    model = AutoModelForCausalLM.from_pretrained(whole)
    for name, weight in expected.items():
        assert (model.state_dict()[name] - weight).abs().max() < 1e-6


def other_layer(out: Path) -> None:
    change(out / "model.safetensors", lambda name, w: w * 1.001 if name.endswith("layers.1.mlp.up_proj.weight") else w)


def lost_layer(out: Path) -> None:
    change(out / "model.safetensors", lambda name, w: None if "layers.1.mlp.up_proj" in name else w)


def stray_layer(out: Path) -> None:
    save_file(load_file(out / "model.safetensors") | {"model.extra": torch.zeros(2)}, out / "model.safetensors")


def base_again(out: Path) -> None:
    weights = load_file(Path(json.loads((out / "base.json").read_text())) / "model.safetensors")
    save_file(weights, out / "model.safetensors", {"format": "pt"})


def not_a_number(out: Path) -> None:
    change(out / "model.safetensors", lambda name, w: w / 0 if "layers.1.mlp.up_proj" in name else w)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (other_layer, "reloaded by transformers at .*, logits differ"),
        (base_again, "reloaded by transformers at .*, logits differ"),
        (lost_layer, r"weights are missing or are none of the model's: model\.layers\.1\.mlp\.up_proj\.weight"),
        (stray_layer, r"weights are missing or are none of the model's: model\.extra"),
        (not_a_number, "logits that are not finite"),
    ],
)
def test_a_written_model_that_does_otherwise_is_not_left(
    run: Path, place: Path, tmp_path: Path, damage: Callable[[Path], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, save = left_in(tmp_path), merged.save

    def careless(model: Any, out: Path) -> None:
        save(model, out)
        (out / "base.json").write_text(json.dumps(str(place / "base")))
        damage(out)

    monkeypatch.setattr(merged, "save", careless)
    with pytest.raises(ExportError, match=said):
        export(run, Wish("merged"), out=tmp_path / "out")
    assert left_in(tmp_path) == before
