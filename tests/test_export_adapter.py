"""An exported adapter does in plain PEFT what was trained, or it is not there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import lora, stir
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from tiny import make_tiny_tokenizer
from torch import Tensor
from transformers import AutoTokenizer
from whole_run import BASE_ID, base_of, change, left_in, logits_of, rehash, write_base, write_run

from rlhf_kit.checkpoint import MANIFEST, read_manifest, write_json
from rlhf_kit.errors import ExportError
from rlhf_kit.export import adapter as adapter_module
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.export.source import Source, find
from rlhf_kit.models import Backbone
from rlhf_kit.models.adapters import WEIGHTS_FILE

CONFIG = "adapter_config.json"


pytest_plugins = ["whole_run"]  # the fixtures place, run and half


@pytest.mark.parametrize("role", ["policy", "sft", "ema"])
def test_plain_peft_gives_the_trained_logits(place: Path, tmp_path: Path, role: str) -> None:
    out = export(place / "run", Wish(), role=role, out=tmp_path / "out")
    trained = PeftModel.from_pretrained(base_of(place / "base"), str(find(place / "run", role).adapter))
    plain = PeftModel.from_pretrained(base_of(place / "base"), str(out))
    assert torch.equal(logits_of(plain), logits_of(trained))
    assert (logits_of(plain) - logits_of(base_of(place / "base"))).abs().max() > 1
    metrics = read_manifest(out).metrics
    assert metrics["positions"] >= 256 and metrics["max_difference"] == 0.0 and metrics["base_mean_kl"] > 0.01
    assert metrics["loader"] == "PEFT" and metrics["limit"] == {"max_difference": 1e-5}


def test_the_kit_s_own_backbone_gives_them_too(place: Path, tmp_path: Path) -> None:
    out = export(place / "run", Wish(), out=tmp_path / "out")
    backbone = Backbone(base_of(place / "base"), make_tiny_tokenizer(), BASE_ID)
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 3)  # as in `write_run`
    with backbone.role("policy"):
        expected = logits_of(backbone.base)
    found = logits_of(PeftModel.from_pretrained(base_of(place / "base"), str(out)))
    assert (found - expected).abs().max() < 1e-5


def test_of_a_base_in_bfloat16(half: Path, tmp_path: Path) -> None:
    """Compared in float32, on the base's rounded weights."""
    out = export(half / "run", Wish(), out=tmp_path / "out")
    assert read_manifest(out).metrics["max_difference"] <= 1e-5
    assert {tensor.dtype for tensor in load_file(out / WEIGHTS_FILE).values()} == {torch.float32}
    whole = base_of(half / "base", "bfloat16").float()
    assert torch.equal(
        logits_of(PeftModel.from_pretrained(whole, str(out))),
        logits_of(PeftModel.from_pretrained(base_of(half / "base", "bfloat16").float(), str(half / "run" / "ppo"))),
    )


def test_what_it_says_of_itself(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "ppo" / MANIFEST).read_text())
    manifest["recipe"]["model"]["revision"] = "abc123"
    write_json(run / "ppo" / MANIFEST, manifest)
    out = export(run, Wish(), out=tmp_path / "out")
    config = json.loads((out / CONFIG).read_text())
    assert config["base_model_name_or_path"] == BASE_ID and config["revision"] == "abc123"
    assert (config["r"], config["lora_alpha"], config["task_type"], config["bias"]) == (4, 8, "CAUSAL_LM", "none")
    weights = load_file(out / WEIGHTS_FILE)
    layers = {re.sub(r"base_model\.model\.(.*)\.lora_[AB]\.weight", r"\1", name) for name in weights}
    assert config["target_modules"] == sorted(layers) and len(layers) == 2 * 7 and len(weights) == 2 * len(layers)
    assert config["inference_mode"] is True
    assert all(name.startswith("base_model.model.model.layers.") for name in weights)
    assert all(tensor.shape[0 if ".lora_A." in name else 1] == 4 for name, tensor in weights.items())
    tokenizer, ours = AutoTokenizer.from_pretrained(out), make_tiny_tokenizer()
    assert tokenizer.chat_template == ours.chat_template and tokenizer.get_vocab() == ours.get_vocab()
    assert (tokenizer.eos_token, tokenizer.pad_token) == (ours.eos_token, ours.pad_token)
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == BASE_ID and card.data.base_model_relation == "adapter"


def test_only_what_is_needed_is_written(place: Path, tmp_path: Path) -> None:
    out = export(place / "run", Wish(), out=tmp_path / "out")
    assert left_in(tmp_path) == [
        "out",
        "out/README.md",
        "out/adapter_config.json",
        "out/adapter_model.safetensors",
        "out/chat_template.jinja",
        "out/manifest.json",
        "out/tokenizer.json",
        "out/tokenizer_config.json",
    ]
    for path in out.iterdir():
        if path.name != MANIFEST:
            assert str(place).encode() not in path.read_bytes(), path.name


def test_two_exports_are_the_same_bytes(place: Path, tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        out = export(place / "run", Wish(), out=tmp_path / name)
        made.append({path.name: path.read_bytes() for path in out.iterdir() if path.name != MANIFEST})
    assert made[0] == made[1]


def test_auto_class_of_peft(tmp_path: Path) -> None:
    """With a base that it can find by the name in the configuration."""
    run = write_run(tmp_path)
    for stage in ("ppo", "sft"):
        manifest = json.loads((run / stage / MANIFEST).read_text())
        manifest["recipe"]["model"]["base_id"] = str(tmp_path / "base")
        write_json(run / stage / MANIFEST, manifest)
    out = export(run, Wish(), out=tmp_path / "out")
    trained = PeftModel.from_pretrained(base_of(tmp_path / "base"), str(run / "ppo"))
    assert torch.equal(logits_of(AutoPeftModelForCausalLM.from_pretrained(str(out))), logits_of(trained))


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen3"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", kind, dtype=torch.bfloat16)
    run = write_run(tmp_path, base=base, dtype="bfloat16")
    adapter = export(run, Wish(), out=tmp_path / "adapter")
    whole = export(run, Wish("merged", "float32"), out=tmp_path / "merged")
    ours = PeftModel.from_pretrained(base_of(base, "float32"), str(adapter))
    assert (logits_of(base_of(whole)) - logits_of(ours)).abs().max() < 1e-4
    assert read_manifest(whole).metrics["max_difference"] < 1e-5, "in float64"
    rounded = export(run, Wish("merged"), out=tmp_path / "rounded")
    assert base_of(rounded, "auto").dtype == torch.bfloat16


# -------------------------------------------------------------------- what is not what was trained


def zero_b(stage: Path) -> None:
    change(stage / WEIGHTS_FILE, lambda name, w: torch.zeros_like(w) if "lora_B" in name else w)


def nearly_zero_b(stage: Path) -> None:
    change(stage / WEIGHTS_FILE, lambda name, w: w * 1e-8 if "lora_B" in name else w)


def other_weights(stage: Path) -> None:
    change(stage / WEIGHTS_FILE, lambda name, w: w * 1.02)


def of_another_run(stage: Path) -> None:
    shutil.copyfile(stage.parent / "sft" / WEIGHTS_FILE, stage / WEIGHTS_FILE)


def other_alpha(stage: Path) -> None:
    config = json.loads((stage / CONFIG).read_text())
    (stage / CONFIG).write_text(json.dumps(config | {"lora_alpha": 9}))


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("spoil", [of_another_run, other_weights, other_alpha, zero_b])
def test_an_adapter_that_is_not_the_one_of_the_training(
    run: Path, tmp_path: Path, spoil: Callable[[Path], None], kind: str
) -> None:
    """With its hash in the manifest mended: only what was kept of the trained model can tell."""
    before = left_in(tmp_path)
    spoil(run / "ppo")
    rehash(run / "ppo")
    with pytest.raises(ExportError, match="is not the model that was trained: its logits differ by up to"):
        export(run, Wish(kind), out=tmp_path / "out")
    assert left_in(tmp_path) == before


def test_so_in_bfloat16(half: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(half / "run", tmp_path / "run"))
    export(run, Wish("merged", "float32"), out=tmp_path / "out")
    of_another_run(run / "ppo")
    rehash(run / "ppo")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ExportError, match="is not the model that was trained"):
            export(run, Wish("merged", dtype), out=tmp_path / dtype)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("spoil", [zero_b, nearly_zero_b])
def test_an_adapter_that_changes_nothing(run: Path, tmp_path: Path, spoil: Callable[[Path], None], kind: str) -> None:
    """Of SFT, of which nothing was kept to compare it with."""
    before = left_in(tmp_path)
    spoil(run / "sft")
    rehash(run / "sft")
    with pytest.raises(ExportError, match=r"\.out\.partial: the adapter changes nothing"):
        export(run, Wish(kind), role="sft", out=tmp_path / "out")
    assert left_in(tmp_path) == before


def doubled_alpha(out: Path) -> None:
    config = json.loads((out / CONFIG).read_text())
    (out / CONFIG).write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))


def one_layer_less(out: Path) -> None:
    change(out / WEIGHTS_FILE, lambda name, w: None if "layers.1.mlp.up_proj" in name else w)


def one_rank_flipped(out: Path) -> None:
    change(out / WEIGHTS_FILE, lambda name, w: w.flip(0) if "layers.0.self_attn.q_proj.lora_A" in name else w)


def transposed(out: Path) -> None:
    """q_proj is square, so that nobody would see it by the shapes of its update."""

    def turned(name: str, weight: Tensor) -> Tensor:
        other = name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")
        return weights[other].T if "q_proj" in name else weight

    weights = load_file(out / WEIGHTS_FILE)
    change(out / WEIGHTS_FILE, turned)


def bare_names(out: Path) -> None:
    weights = load_file(out / WEIGHTS_FILE)
    save_file({name.removeprefix("base_model.model."): w for name, w in weights.items()}, out / WEIGHTS_FILE)


def rounded(out: Path) -> None:
    change(out / WEIGHTS_FILE, lambda name, w: w.to(torch.bfloat16))


@pytest.mark.parametrize("damage", [doubled_alpha, one_layer_less, one_rank_flipped, transposed, bare_names, rounded])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_written_adapter_that_does_otherwise_is_not_left(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = left_in(tmp_path), adapter_module.write_adapter

    def careless(backbone: Backbone, source: Source, out: Path, *rest: Any) -> None:
        write(backbone, source, out, *rest)
        damage(out)

    monkeypatch.setattr(adapter_module, "write_adapter", careless)
    with pytest.raises(
        ExportError, match=r"reloaded by PEFT at .* positions of the trained model's own answers, logits"
    ):
        export(run, Wish(), out=tmp_path / "out")
    assert left_in(tmp_path) == before
