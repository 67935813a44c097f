"""An exported reward model scores as the trained one does, in the hands of transformers, PEFT and TRL alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import base_of_type, lora, stir
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from tiny import make_tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rlhf_kit import rewards
from rlhf_kit.checkpoint import INPUTS, Manifest
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.export import reward as module
from rlhf_kit.export.reward import compare, export_reward
from rlhf_kit.export.source import Source
from rlhf_kit.models import Backbone, ScalarHead
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.recipe import Recipe

KINDS = ("llama", "qwen3", "gpt2")
PAD, END = make_tiny_tokenizer().pad_token_id, make_tiny_tokenizer().eos_token_id
# Of different lengths, so that a batch has padding.
SEQUENCES = [[*range(5 + 7 * n, 5 + 7 * n + 3 + 4 * n), END] for n in range(6)]


def source_of(recipe: Recipe, stage: Path, manifest: Manifest) -> Source:
    return Source(stage, "reward", stage, stage, manifest, recipe)


def make_stage(
    directory: Path, kind: str, *, axes: tuple[str, ...] = ("overall",), **model: Any
) -> tuple[Recipe, Manifest]:
    """A base and the directory of a finished reward stage on it."""
    tokenizer = make_tiny_tokenizer()
    base = base_of_type(kind)
    # What a base of the Hub may say; a copy that read its score at the wrong token would be found out.
    base.config.pad_token_id = END
    base.save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    settings = json.loads((directory / "base" / "tokenizer_config.json").read_text())
    settings["padding_side"] = "left"  # as many on the Hub
    (directory / "base" / "tokenizer_config.json").write_text(json.dumps(settings))
    backbone = Backbone(base, tokenizer, "someone/tiny")
    backbone.add_adapter("reward", lora())
    stir(backbone, "reward", 3, 0.3)
    torch.manual_seed(1)
    head = ScalarHead(backbone.hidden_size, axes=axes, weights=[1.0, -0.5, 2.0][: len(axes)])
    nn.init.normal_(head.linear.bias)
    head.spread.copy_(torch.tensor([1.0, 0.25, 3.0])[: len(axes)])
    head.mean.fill_(1.75)
    head.std.fill_(0.6)
    backbone.add_head("reward", head)
    (directory / "reward").mkdir()
    rewards.save(backbone, directory / "reward")
    return manifest_of(directory, **model)


def manifest_of(directory: Path, **model: Any) -> tuple[Recipe, Manifest]:
    base = str(directory / "base")
    recipe = Recipe(model={"name_or_path": base, "base_id": base, "dtype": "float32", **model}, seed=5)
    metrics = {
        "heldout_pair_accuracy": 0.75,
        "heldout_accuracy_by_prompt": {"value": 0.7512, "low": 0.61, "high": 0.88},
        "baseline_accuracy": {"shorter": 0.52},
        "curve": [{"prompts": 1}],
    }
    described = {"id": "x", "name_or_path": "x", "revision": None, "sha256": None}
    described |= {"dtype": recipe.model.dtype, "quantization": recipe.model.quantization}
    inputs = {"data": {"rankings": "ab" * 32}}
    return recipe, Manifest("reward", inputs, metrics, 1.0, described, {}, recipe.model_dump(), versions={"peft": "1"})


@torch.no_grad()
def kit_scores(directory: Path, sequences: list[list[int]] = SEQUENCES) -> Tensor:
    """By PEFT's causal language model and the head's formula, one unpadded sequence at a time."""
    base = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(directory / "reward")).eval()
    head = {name: tensor.double() for name, tensor in load_file(directory / "reward" / HEAD_FILE).items()}
    scores = []
    for ids in sequences:
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        axes = head["linear.weight"] @ states[0, -1].double() + head["linear.bias"]
        scores.append((sum(axes * head["weights"] / head["spread"]) - head["mean"]) / head["std"])
    return torch.stack(scores)


@torch.no_grad()
def batch_scores(model: nn.Module, out: Path, sequences: list[list[int]] = SEQUENCES) -> Tensor:
    """In one batch, padded by the tokenizer that was written."""
    batch = AutoTokenizer.from_pretrained(out).pad({"input_ids": sequences}, return_tensors="pt")
    return model.eval()(**batch).logits[:, 0].double()


def by_transformers(directory: Path, out: Path, **options: Any) -> nn.Module:
    """As the card says."""
    if (out / "config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(out, **options)
    base = AutoModelForSequenceClassification.from_pretrained(
        directory / "base", num_labels=1, pad_token_id=PAD, dtype=torch.float32, **options
    )
    return PeftModel.from_pretrained(base, str(out))


def assert_equal_scores(found: Tensor, expected: Tensor, offset: float) -> None:
    assert expected.std() > 0.1 and abs(offset) > 0.1
    differences = (found[:, None] - found[None]) - (expected[:, None] - expected[None])
    assert differences.abs().max() < 1e-4
    assert (found + offset - expected).abs().max() < 1e-4


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_libraries_give_the_trained_scores(kind: str, merged: bool, tmp_path: Path, out: Path) -> None:
    axes = ("helpful", "truthful", "harmless") if kind == "llama" else ("overall",)
    recipe, manifest = make_stage(tmp_path, kind, axes=axes)
    figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=merged)
    model = by_transformers(tmp_path, out)
    assert_equal_scores(batch_scores(model, out), kit_scores(tmp_path), figures["offset"])
    assert figures["sequences"] >= 32 and figures["max_difference"] <= figures["limit"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_merged_model_is_whole_and_says_what_it_is(tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "gpt2")
    figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    _, report = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["rlhf_kit_score_offset"] == figures["offset"]
    assert config["pad_token_id"] == PAD != END == config["eos_token_id"]
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "reward"}
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.pad_token_id == PAD and tokenizer.padding_side == "right" and tokenizer.chat_template
    assert not list(out.glob("adapter*")) and not list(out.glob("*.bin"))
    # A pipeline must give the number itself and not a probability.
    text = "What is the capital of France?<|im_end|>"
    ids = make_tiny_tokenizer()(text)["input_ids"]
    answer = pipeline("text-classification", model=str(out), tokenizer=str(out))(text)[0]
    assert answer["label"] == "reward"
    assert answer["score"] + figures["offset"] == pytest.approx(float(kit_scores(tmp_path, [ids])), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_loads_by_every_door(kind: str, tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, kind)
    offset = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=False)["offset"]
    expected = kit_scores(tmp_path)
    for door in (AutoPeftModelForSequenceClassification, AutoModelForSequenceClassification):
        model = (
            door.from_pretrained(str(out), num_labels=1, pad_token_id=PAD)
            if door is (AutoModelForSequenceClassification)
            else door.from_pretrained(str(out), num_labels=1)
        )
        model.config.pad_token_id = PAD
        assert_equal_scores(batch_scores(model, out), expected, offset)
    assert json.loads((out / "rlhf_kit_reward.json").read_text()) == {"score_offset": offset, "pad_token_id": PAD}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    merged = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=PAD), str(out)
    ).merge_and_unload()
    assert_equal_scores(batch_scores(merged, out), expected, offset)


@pytest.mark.parametrize("merged", [False, True])
def test_trl_trains_on_from_the_same_loss(merged: bool, tmp_path: Path, out: Path) -> None:
    from trl import RewardConfig, RewardTrainer

    recipe, manifest = make_stage(tmp_path, "qwen3")
    export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=merged)
    if merged:
        model: Any = str(out)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
        model = PeftModel.from_pretrained(base, str(out), is_trainable=True)
    pairs = Dataset.from_dict({"chosen_ids": SEQUENCES[:3], "rejected_ids": SEQUENCES[3:]})
    arguments = RewardConfig(
        output_dir=str(tmp_path / "trl"), report_to=[], per_device_train_batch_size=3, use_cpu=True, bf16=False
    )
    trainer = RewardTrainer(model, arguments, train_dataset=pairs, processing_class=AutoTokenizer.from_pretrained(out))
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(3)])
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    scores = kit_scores(tmp_path)
    expected = -nn.functional.logsigmoid(scores[:3] - scores[3:]).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.model.parameters())


@pytest.mark.parametrize("merged", [False, True])
def test_card_is_valid_and_its_code_runs(merged: bool, tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "llama")
    figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=merged)
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == ("transformers" if merged else "peft")
    assert {"reward-model", "rlhf"} <= set(card.data.tags)
    assert "base_model" not in card.data.to_dict(), "a path is no repository"
    assert repr(figures["offset"]) in card.text and "0.7512 (0.61 to 0.88)" in card.text and "ab" * 32 in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("THIS_DIRECTORY", str(out)), names)
    tokenizer = make_tiny_tokenizer()
    prompt = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    answers = ["Air scatters blue light more than red light.", "No."]
    sequences = [tokenizer(prompt)["input_ids"] + tokenizer(a)["input_ids"] + [END] for a in answers]
    assert torch.allclose(names["scores"].double(), kit_scores(tmp_path, sequences), atol=1e-4)


def test_card_names_a_base_of_the_hub_and_no_place_of_this_machine(tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "llama", base_id="someone/tiny-llama")
    export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=False)
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data["base_model"] == "someone/tiny-llama" and data["base_model_relation"] == "adapter"
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/tiny-llama"
    assert "adapter_model" not in (out / "README.md").read_text()
    (tmp_path / "merged").mkdir()
    export_reward(source_of(recipe, tmp_path / "reward", manifest), tmp_path / "merged", merged=True)
    for path in (*out.iterdir(), *(tmp_path / "merged").iterdir()):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_model_without_chat_template(tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "gpt2")
    for path in (tmp_path / "base").glob("chat_template*"):
        path.unlink()
    settings = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(settings))
    export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code[1].replace("THIS_DIRECTORY", str(out)), names)
    tokenizer = make_tiny_tokenizer()
    answers = ["Air scatters blue light more than red light.", "No."]
    prompt = tokenizer("Why is the sky blue?")["input_ids"]
    expected = kit_scores(tmp_path, [prompt + tokenizer(a)["input_ids"] + [END] for a in answers])
    assert torch.allclose(names["scores"].double(), expected, atol=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_two_exports_are_the_same_bytes(merged: bool, tmp_path: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "llama")
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        export_reward(source_of(recipe, tmp_path / "reward", manifest), tmp_path / name, merged=merged)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1] and len(made[0]) >= 5
    if not merged:
        modules = json.loads(made[0]["adapter_config.json"])["target_modules"]
        assert modules == sorted(modules) and modules


def test_bfloat16(tmp_path: Path, out: Path) -> None:
    """The adapter is exact on the base's rounded weights; merged weights are rounded once more, and float32 is there
    for whoever asks."""
    recipe, manifest = make_stage(tmp_path, "llama", dtype="bfloat16")
    figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=False)
    assert figures["limit"] <= 1e-4 * max(1, figures["spread"]) and figures["dtype"] == "float32"
    exact = export_of(recipe, manifest, tmp_path, "float32")
    assert exact["limit"] == figures["limit"] and exact["spread"] == figures["spread"]
    rounded = export_of(recipe, manifest, tmp_path, None)
    assert rounded["dtype"] == "bfloat16" and figures["limit"] < rounded["max_difference"] < rounded["limit"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "None").dtype == torch.bfloat16
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, pad_token_id=PAD, dtype=torch.bfloat16
    ).float()
    model = PeftModel.from_pretrained(base, str(out))
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "float32")
    assert torch.allclose(batch_scores(model, out), batch_scores(whole, out), atol=1e-4)


def test_the_base_is_loaded_as_it_was_in_training(tmp_path: Path, out: Path) -> None:
    """In the precision that the manifest names, whatever this machine would choose, without an attention that knows
    no float32, and from the reward model's own section."""
    recipe, manifest = make_stage(tmp_path, "llama", dtype="auto", attn_implementation="flash_attention_2")
    recipe = Recipe(model={"name_or_path": "nobody/nothing"}, reward={"model": recipe.model.model_dump()})
    for dtype in ("float32", "bfloat16"):
        manifest.base["dtype"] = dtype
        (tmp_path / dtype).mkdir()
        figures = export_reward(source_of(recipe, tmp_path / "reward", manifest), tmp_path / dtype, merged=True)
        assert figures["dtype"] == dtype
        assert str(AutoModelForSequenceClassification.from_pretrained(tmp_path / dtype).dtype) == f"torch.{dtype}"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "float32")
    assert_equal_scores(batch_scores(model, tmp_path / "float32"), kit_scores(tmp_path), figures["offset"])


def export_of(recipe: Recipe, manifest: Manifest, directory: Path, dtype: Any) -> dict[str, Any]:
    (directory / str(dtype)).mkdir()
    return export_reward(
        source_of(recipe, directory / "reward", manifest), directory / str(dtype), merged=True, dtype=dtype
    )


# -------------------------------------------------------------------- what is refused


def damage(path: Path, **tensors: Tensor) -> None:
    save_file(load_file(path) | tensors, path)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("linear.weight", torch.zeros(1, 32), "same score"), ("std", torch.tensor(float("nan")), "not finite")],
)
def test_a_damaged_head_is_refused_and_nothing_is_left(
    merged: bool, name: str, value: Tensor, message: str, tmp_path: Path, out: Path
) -> None:
    recipe, manifest = make_stage(tmp_path, "llama")
    damage(tmp_path / "reward" / HEAD_FILE, **{name: value})
    (out / INPUTS).write_text("{}")  # as a step's work directory has it
    with pytest.raises(ExportError, match=message):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=merged)
    assert [path.name for path in out.iterdir()] == [INPUTS]


def test_a_head_cut_off_is_refused(tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "llama")
    whole = (tmp_path / "reward" / HEAD_FILE).read_bytes()
    (tmp_path / "reward" / HEAD_FILE).write_bytes(whole[:-20])
    with pytest.raises(CheckpointError, match=HEAD_FILE):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    assert not list(out.iterdir())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("what", ["head", "adapter"])
def test_a_copy_that_scores_otherwise_is_not_left(
    merged: bool, what: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written weights are changed a little before they are reloaded, by less than anyone would see."""
    recipe, manifest = make_stage(tmp_path, "llama")
    writer = "write_merged" if merged else "write_adapter"
    written = getattr(module, writer)

    def careless(*arguments: Any) -> None:
        written(*arguments)
        path = out / ("model.safetensors" if merged else WEIGHTS_FILE)
        weights = load_file(path)
        key = next(k for k in sorted(weights) if ("score" in k) == (what == "head") and "layernorm" not in k)
        weights[key] *= 1.001
        save_file(weights, path, {"format": "pt"})

    monkeypatch.setattr(module, writer, careless)
    with pytest.raises(ExportError, match="differ from the trained"):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=merged)
    assert not list(out.iterdir())


def test_a_merged_model_without_its_head_is_not_left(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, manifest = make_stage(tmp_path, "llama")
    written = module.write_merged

    def forgetful(*arguments: Any) -> None:
        written(*arguments)
        weights = load_file(out / "model.safetensors")
        save_file(
            {k: v for k, v in weights.items() if k != "score.weight"}, out / "model.safetensors", {"format": "pt"}
        )

    monkeypatch.setattr(module, "write_merged", forgetful)
    with pytest.raises(ExportError, match=r"missing.*score\.weight"):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    assert not list(out.iterdir())


def test_a_wrong_pad_token_is_found(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts alone score as they should then; only a batch reads its scores at padding."""
    recipe, manifest = make_stage(tmp_path, "llama")
    written = module.write_merged

    def careless(*arguments: Any) -> None:
        written(*arguments)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | {"pad_token_id": 1}))

    monkeypatch.setattr(module, "write_merged", careless)
    with pytest.raises(ExportError, match="differ from the trained"):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)


def test_an_architecture_without_a_plain_head_is_refused(tmp_path: Path, out: Path) -> None:
    from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM

    from rlhf_kit.classifier import classifier_like

    tokenizer = make_tiny_tokenizer()
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = ModernBertDecoderConfig(vocab_size=len(tokenizer), pad_token_id=PAD, eos_token_id=END, **sizes)
    with pytest.raises(ExportError, match="not one linear layer"):
        classifier_like(ModernBertDecoderForCausalLM(config), tokenizer)


def test_a_directory_in_use_is_left_alone(tmp_path: Path, out: Path) -> None:
    recipe, manifest = make_stage(tmp_path, "llama")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    assert (out / "mine.txt").read_text() == "mine"
    (out / INPUTS).write_text("{}")  # then it is a step's own, with what an interrupted attempt has left
    export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=True)
    assert not (out / "mine.txt").exists() and (out / INPUTS).exists()
    with pytest.raises(ExportError, match="an adapter is written in float32"):
        export_reward(source_of(recipe, tmp_path / "reward", manifest), out, merged=False, dtype="bfloat16")


def test_compare_by_hand(tmp_path: Path) -> None:
    expected = torch.tensor([0.0, 1.0, -1.0])
    shifted = expected[None] - 2.0
    figures = compare(tmp_path, expected, shifted, 2.0)
    assert figures["max_difference"] == 0 and figures["max_error"] == 0 and figures["spread"] == 1.0
    with pytest.raises(ExportError, match=r"offset by 0\.5"):
        compare(tmp_path, expected, shifted, 2.5)
    # Each score is off by 0.6e-4 and no more, but two of them in opposite ways.
    apart = shifted + torch.tensor([0.6e-4, -0.6e-4, 0.0])
    with pytest.raises(ExportError, match=r"differences by up to 0\.00012"):
        compare(tmp_path, expected, apart, 2.0)
    with pytest.raises(ExportError, match=r"differences by up to"):
        compare(tmp_path, expected, torch.cat([shifted, apart]), 2.0)
    assert compare(tmp_path, expected, apart, 2.0, rounded=True)["limit"] == pytest.approx(0.25)
    wide = compare(tmp_path, 100 * expected, 100 * expected[None], 0.0)
    assert wide["limit"] == pytest.approx(1e-2)
