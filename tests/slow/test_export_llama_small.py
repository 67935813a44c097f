"""GGUF adapters on small models of every kind in llama.cpp, and what it and its converter do not let pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from backbones import lora, stir
from export_run import write_stage
from llama_python import ask, kl, logits_of
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from whole_run import write_run

from rlhf_kit import load_backbone
from rlhf_kit.cli import main
from rlhf_kit.export import gguf_adapter
from rlhf_kit.export.environments import python_of
from rlhf_kit.export.gguf_adapter import write_gguf
from rlhf_kit.export.gguf_model import CONVERTER, convert
from rlhf_kit.models import load_tokenizer
from rlhf_kit.recipe import ModelSection, Recipe, load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROOT = Path(__file__).parents[2]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SENTENCEPIECE = """
import sys
import sentencepiece
from transformers import GemmaTokenizer

directory, text = sys.argv[1:]
sentencepiece.SentencePieceTrainer.train(
    input=text, model_prefix=directory + "/tokenizer", model_type="bpe", vocab_size=600, byte_fallback=True,
    pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
    user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "<mask>"], split_digits=True, add_dummy_prefix=False,
    remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
)
tokenizer = GemmaTokenizer.from_pretrained(directory, extra_special_tokens=["<start_of_turn>", "<end_of_turn>"])
tokenizer.chat_template = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\\n{{ message['content'] }}"
    "<end_of_turn>\\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\\n{% endif %}"
)
tokenizer.save_pretrained(directory)
"""


@pytest.fixture(scope="module")
def smollm() -> ModelSection:
    return load_recipe(ROOT / "recipes" / "quickstart.yaml", ["model.dtype=float32"]).model


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as a Gemma has it, made where the converter is: there is SentencePiece."""
    directory = tmp_path_factory.mktemp("pieces")
    command = [str(python_of(CONVERTER)), "-c", SENTENCEPIECE, str(directory), str(ROOT / "README.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (directory / "tokenizer.model").is_file()
    return directory


def small(model_type: str, tokenizer: PreTrainedTokenizerBase, **fields: Any) -> PreTrainedModel:
    """A model of two layers with grouped heads whose logits are a few units wide, as a trained model's are."""
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**sizes, **fields})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def adapted(base: PreTrainedModel, **fields: Any) -> PeftModel:
    model = get_peft_model(base, lora(**fields)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize(
    ("model_type", "fields", "adapter"),
    [
        ("llama", {"tie_word_embeddings": False}, {"target_modules": [*ALL, "lm_head"], "use_rslora": True}),
        ("mistral", {}, {"lora_alpha": 30, "layers_to_transform": [1], "target_modules": ALL}),
        ("qwen2", {"head_dim": 16}, {}),
        ("qwen3", {}, {"rank_pattern": {"k_proj": 9}, "alpha_pattern": {"k_proj": 3, "down_proj": 20}}),
        ("gemma", {}, {}),
        ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 32}, {}),
        ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 32}, {}),
    ],
)
def test_adapter_of_every_kind_of_model(
    tmp_path: Path,
    smollm: ModelSection,
    request: pytest.FixtureRequest,
    model_type: str,
    fields: dict[str, Any],
    adapter: dict[str, Any],
) -> None:
    tokenizer = load_tokenizer(smollm)
    if model_type not in ("llama", "qwen3"):
        pieces = request.getfixturevalue("sentencepiece")
        shutil.copytree(pieces, tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(pieces)
    tokenizer.save_pretrained(tmp_path / "base")
    base = small(model_type, tokenizer, **fields)
    base.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "base.gguf", "f16", ModelSection(name_or_path=str(tmp_path / "base")))
    model = adapted(base, **adapter)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    write_gguf(tmp_path / "adapter", base.config, tmp_path / "adapter.gguf")
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(len(tokenizer), (48,), generator=generator).tolist() for _ in range(3)]
    ours = logits_of(model, sequences)
    with model.disable_adapter():
        without = logits_of(model, sequences)
    theirs, _ = ask(tmp_path, tmp_path / "base.gguf", tmp_path / "adapter.gguf", sequences=sequences)
    assert kl(ours, theirs) < 1e-4
    assert kl(ours, without) > 0.1


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory, smollm: ModelSection) -> Path:
    directory, tokenizer = tmp_path_factory.mktemp("small"), load_tokenizer(smollm)
    small("llama", tokenizer).save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    recipe = Recipe(model={"name_or_path": str(directory / "base"), "base_id": "someone/small", "dtype": "float32"})
    backbone = load_backbone(recipe.model)
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 1)
    write_stage(directory / "run", recipe, backbone, "policy")
    return directory / "run"


@pytest.mark.parametrize("fault", [None, "rows", "alpha"])
def test_llama_catches_a_file_that_is_wrong(
    tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """Rows of queries and keys in transformers' order, and an alpha twice as large: llama.cpp loads both."""
    if fault == "rows":
        monkeypatch.setattr(gguf_adapter, "permuted", lambda module, b, config: b)
    if fault == "alpha":
        add = gguf.GGUFWriter.add_float32
        monkeypatch.setattr(gguf.GGUFWriter, "add_float32", lambda self, key, value: add(self, key, 2 * value))
    code = main(["export", str(small_run), "--to", "gguf-adapter", "--out", str(tmp_path / "out")])
    if fault is None:
        assert code == 0 and (tmp_path / "out" / "adapter.gguf").is_file()
        return
    assert code == 2
    said = capsys.readouterr().err
    assert "reloaded by llama.cpp at" in said and "KL from the trained model is" in said and "Nothing was kept" in said
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "converter" in line and "cannot" in line]
    assert line.startswith("llama.cpp's converter cannot write this model as GGUF: ") and "pre-tokenizer" in line
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
