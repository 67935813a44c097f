"""`export --check`: sound adapters of PEFT's own making pass, and one that is broken in one way is told so."""

from __future__ import annotations

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import base_of_type, tiny_base, tiny_directory
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_tiny_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_kit.errors import ExportError, ModelError
from rlhf_kit.export.check import Check, check, effect
from rlhf_kit.export.check.files import AdapterConfig
from rlhf_kit.export.check.keys import Pair
from rlhf_kit.export.check.vllm import vllm_findings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_kept: list[tempfile.TemporaryDirectory[str]] = []


def save(directory: Path, base: PreTrainedModel | None = None, config: Any = None, **fields: Any) -> Path:
    """A trained adapter as PEFT saves it: its weights are stirred, because a new one changes nothing."""
    usual: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base or tiny_base(), config or LoraConfig(**{**usual, **fields}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


@functools.cache
def saved(kind: str = "plain") -> Path:
    """Adapters that several tests copy, each made once a test run."""
    _kept.append(tempfile.TemporaryDirectory(prefix="rlhf-kit-check-"))
    directory = Path(_kept[-1].name)
    if kind == "plain":
        return save(directory)
    auto = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}[kind]
    return save(directory, auto.from_pretrained(tiny_directory(), num_labels=3), task_type=kind)


def base_on_disk(directory: Path, model_type: str, **fields: Any) -> str:
    base_of_type(model_type, **fields).save_pretrained(directory)
    return str(directory)


def rewrite(
    directory: Path,
    config: Callable[[dict[str, Any]], object] = lambda fields: None,
    tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors,
    source: Path | None = None,
) -> Path:
    """A copy of an adapter, changed."""
    shutil.copytree(source or saved(), directory, dirs_exist_ok=True)
    fields = json.loads((directory / CONFIG).read_text())
    config(fields)
    (directory / CONFIG).write_text(json.dumps(fields))
    changed = tensors(load_file(directory / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, directory / WEIGHTS)
    return directory


def faults(found: Check) -> set[str]:
    """Codes of errors and warnings."""
    return {finding.code for finding in found.findings if finding.severity != "note"}


def notes(found: Check) -> set[str]:
    return {finding.code for finding in found.findings if finding.severity == "note"}


def words(found: Check, code: str) -> str:
    return " ".join(finding.message for finding in found.findings if finding.code == code)


# -------------------------------------------------------------------- sound adapters

SOUND: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora, patterns": {
        "use_rslora": True,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "DoRA": {"use_dora": True},
    "some layers": {"layers_to_transform": [1]},
    "regular expression": {"target_modules": r".*\.1\.self_attn\.(q|k)_proj"},
    "all linear but some": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "lm_head saved": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "lm_head"]},
    "embeddings saved": {"modules_to_save": ["embed_tokens"]},
    "embeddings adapted": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "biases": {"bias": "all"},
    "biases in LoRA": {"lora_bias": True},
    "tokens": {"trainable_token_indices": [1, 2]},
    "aLoRA": {"alora_invocation_tokens": [4, 5]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "EVA's ranks": {"target_modules": ["q_proj"], "rank_pattern": {"model.layers.1.self_attn.q_proj": 7}},
    "features": {"task_type": "FEATURE_EXTRACTION"},
}


@pytest.mark.parametrize("fields", SOUND.values(), ids=SOUND.keys())
def test_adapters_of_pefts_own_making_pass(tmp_path: Path, fields: dict[str, Any]) -> None:
    base = LlamaModel.from_pretrained(tiny_directory()) if "task_type" in fields else None
    found = check(save(tmp_path, base, **fields))
    assert faults(found) == set() and found.is_sound
    assert found.effect is not None and found.effect > 1e-3
    assert found.compared_with == found.base == str(tiny_directory())
    assert "base-path" in notes(found), "a directory of this machine is no name for others"


@pytest.mark.parametrize(("kind", "labels"), [("SEQ_CLS", 3), ("TOKEN_CLS", 3)])
def test_classifiers_pass(kind: str, labels: int) -> None:
    found = check(saved(kind))
    assert load_file(saved(kind) / WEIGHTS)["base_model.model.score.weight"].shape[0] == labels
    assert faults(found) == set()
    assert found.effect is not None and found.effect > 1e-3
    assert found.task_type == kind


def test_adapter_of_a_class_without_a_task_passes(tmp_path: Path) -> None:
    """PEFT then writes down the base's class, and the names of the modules are those of that class."""
    base = LlamaModel.from_pretrained(tiny_directory())
    save(tmp_path, base, task_type=None)
    assert "base_model.model.layers.0.self_attn.q_proj.lora_A.weight" in load_file(tmp_path / WEIGHTS)
    found = check(tmp_path)
    assert faults(found) == set() and found.effect is not None and found.effect > 1e-3


def test_gpt2_passes(tmp_path: Path) -> None:
    """Its layers hold their weights transposed."""
    base = base_on_disk(tmp_path / "base", "gpt2")
    model = AutoModelForCausalLM.from_pretrained(base)
    found = check(save(tmp_path / "a", model, target_modules="all-linear", fan_in_fan_out=True))
    assert faults(found) == set() and found.pairs == 8
    assert found.effect is not None and found.effect > 1e-3


def test_experts_pass(tmp_path: Path) -> None:
    """Four experts in one parameter: their factors stand behind one another, so the rank is 4 times 4."""
    base = base_on_disk(tmp_path / "base", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = AutoModelForCausalLM.from_pretrained(base)
    found = check(save(tmp_path / "a", model, target_modules=["q_proj"], target_parameters=parameters))
    assert faults(found) == set() and found.ranks == (4, 16)


def test_experts_of_older_checkpoints_pass(tmp_path: Path) -> None:
    """PEFT still reads adapters that were made when every expert was a module."""
    base = base_on_disk(tmp_path / "base", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    plain = save(tmp_path / "plain", AutoModelForCausalLM.from_pretrained(base), target_modules=["q_proj"])

    def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for layer in range(2):
            for expert in range(4):
                for name, (inner, outer) in {"w1": (32, 64), "w2": (64, 32), "w3": (32, 64)}.items():
                    start = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.lora_"
                    tensors[start + "A.weight"] = torch.full((4, inner), 0.1)
                    tensors[start + "B.weight"] = torch.full((outer, 4), 0.1)
        return tensors

    targets = {"target_modules": ["q_proj", "w1", "w2", "w3"]}
    found = check(rewrite(tmp_path / "a", lambda fields: fields.update(targets), older, plain))
    assert faults(found) == set() and found.pairs == 2 + 2 * 4 * 3


def test_pickled_weights_are_read(tmp_path: Path) -> None:
    shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    assert "two-weights" in notes(check(tmp_path))
    (tmp_path / WEIGHTS).unlink()
    found = check(tmp_path)
    assert faults(found) == set() and "pickled-weights" in notes(found)
    assert found.effect == check(saved()).effect


def test_resized_embeddings_in_the_adapter_pass(tmp_path: Path) -> None:
    base, tokenizer = tiny_base(), make_tiny_tokenizer()
    tokenizer.add_tokens([f"<new{number}>" for number in range(8)])
    base.resize_token_embeddings(520, mean_resizing=False)
    save(tmp_path, base)
    tokenizer.save_pretrained(tmp_path)
    found = check(tmp_path)
    assert faults(found) == set() and "resize_token_embeddings(520)" in words(found, "resized")
    assert found.effect is not None and found.effect > 1e-3


def test_the_figures_of_a_sound_adapter(tmp_path: Path) -> None:
    found = check(save(tmp_path, rank_pattern={"v_proj": 2}, lora_alpha=12))
    assert (found.tensors, found.pairs, found.ranks, found.alpha) == (8, 4, (2, 4), 12)  # 2 layers, q and v
    assert (found.peft_type, found.task_type, found.base) == ("LORA", "CAUSAL_LM", str(tiny_directory()))


def test_the_effect_is_that_of_the_logits(tmp_path: Path) -> None:
    """With LoRA on the last layer alone the logits are linear in its scale: alpha / r, and alpha / sqrt(r)."""
    plain = save(tmp_path / "plain", target_modules=["lm_head"])
    doubled = rewrite(tmp_path / "doubled", lambda fields: fields.update(lora_alpha=16), source=plain)
    root = rewrite(tmp_path / "root", lambda fields: fields.update(use_rslora=True), source=plain)
    effect = check(plain).effect
    assert effect is not None
    assert check(doubled).effect == pytest.approx(2 * effect, rel=1e-4)
    assert check(root).effect == pytest.approx(math.sqrt(4) * effect, rel=1e-4)


def test_a_small_effect_is_seen(tmp_path: Path) -> None:
    """In bfloat16 it would be lost among logits of a few units; small effects are proportional to alpha."""
    hundredth, thousandth = (
        check(rewrite(tmp_path / str(alpha), lambda fields, alpha=alpha: fields.update(lora_alpha=alpha))).effect
        for alpha in (1e-2, 1e-3)
    )
    assert hundredth is not None and thousandth == pytest.approx(hundredth / 10, rel=0.05)


# -------------------------------------------------------------------- faults of the configuration


def without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda fields: [fields.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f.update(lora_alpha=0), {"alpha-zero", "no-effect"}),
        (lambda f: f.update(alpha_pattern={"q_proj": 0}), {"alpha-zero"}),
        (lambda f: f.update(alpha_pattern={"q_porj": 4}), {"unmatched-pattern"}),
        (lambda f: f.update(rank_pattern={"q_porj": 4}), {"unmatched-pattern"}),
        (lambda f: f.update(rank_pattern={"q_proj": 8}), {"rank-pattern"}),
        (lambda f: f.update(r=8), {"rank-pattern"}),
        (lambda f: f.update(target_modules=["q_proj", "v_proj", "no_such"]), {"unused-target"}),
        (lambda f: f.update(target_modules=["q_proj", "v_proj", "k_proj"]), {"unused-target", "missing-tensors"}),
        (lambda f: f.update(target_modules=["q_proj"]), {"untargeted"}),
        (lambda f: f.update(layers_to_transform=[0]), {"untargeted"}),
        (
            lambda f: f.update(layers_to_transform=[0, 1], target_modules=["q_proj", "v_proj", "no_such"]),
            {"unused-target"},
        ),
        (lambda f: f.update(target_modules=r".*\.no_such"), {"untargeted", "unused-target", "peft-refuses"}),
        (lambda f: f.update(use_dora=True), {"missing-tensors"}),
        (lambda f: f.update(base_model_name_or_path=""), {"base-unnamed"}),
        (lambda f: f.update(base_model_name_or_path=None), {"base-unnamed"}),
        (lambda f: f.update(base_model_name_or_path="/home/somebody/models/llama"), {"base-path"}),
        (lambda f: f.update(base_model_name_or_path="C:\\models\\llama"), {"base-path"}),
        (lambda f: f.update(base_model_name_or_path="./llama"), {"base-path"}),
        (lambda f: f.update(modules_to_save=["lm_head"]), {"missing-head"}),
        (lambda f: f.update(task_type="SEQ_CLS"), {"missing-head"}),
        (lambda f: f.update(peft_version="99.0", tomorrow={"on": True}), {"unknown-fields"}),
        (lambda f: f.update(peft_type="NOT_YET"), {"unknown-peft-type"}),
        (lambda f: f.update(task_type="SINGING"), {"peft-refuses"}),
        (lambda f: f.update(r="16"), {"bad-config"}),
        (lambda f: f.update(r=0), {"bad-config"}),
        (lambda f: f.update(lora_alpha=math.nan), {"bad-config"}),
        (lambda f: f.update(rank_pattern={"q_proj": 2.5}), {"bad-config"}),
        (lambda f: f.update(rank_pattern={"q_proj(": 4}), {"bad-config"}),
        (lambda f: f.update(target_modules="*.q_proj"), {"bad-config"}),
        (without("peft_type"), {"bad-config"}),
        (without("lora_alpha"), {"missing-field"}),
        (without("r"), {"missing-field", "rank-pattern"}),  # PEFT's default is 8, the tensors have 4
        (without("target_modules"), {"missing-field"}),
    ],
)
def test_a_fault_of_the_configuration(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], expected: set[str]
) -> None:
    found = check(rewrite(tmp_path, change))
    assert faults(found) == expected, "\n".join(map(str, found.findings))


def test_unknown_fields_that_are_not_set_are_a_note(tmp_path: Path) -> None:
    found = check(rewrite(tmp_path, lambda f: f.update(peft_version="99.0", tomorrow=None, later=False)))
    assert faults(found) == set()
    assert "later, tomorrow (it was written by PEFT 99.0)" in words(found, "unknown-fields")


@pytest.mark.parametrize(
    ("content", "code"),
    [("{'r': 8}", "broken-config"), ("[]", "broken-config"), ("", "broken-config"), (None, "missing-config")],
)
def test_a_configuration_that_is_none(tmp_path: Path, content: str | None, code: str) -> None:
    """The tensors are examined all the same."""
    zero = {name: torch.zeros_like(tensor) for name, tensor in load_file(saved() / WEIGHTS).items()}
    rewrite(tmp_path, tensors=lambda _: zero)
    (tmp_path / CONFIG).unlink()
    if content is not None:
        (tmp_path / CONFIG).write_text(content)
    found = check(tmp_path)
    assert faults(found) == {code, "zero-a", "zero-b"} and not found.is_sound
    assert found.alpha is None and found.pairs == 4


def test_named_adapters_are_found_in_their_directories(tmp_path: Path) -> None:
    shutil.copytree(saved(), tmp_path / "policy")
    found = check(tmp_path)
    assert "adapters are in policy" in words(found, "missing-config")
    assert faults(found) == {"missing-config", "missing-weights"}


def test_other_kinds_of_adapters_are_not_judged(tmp_path: Path) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    found = check(save(tmp_path, config=config))
    assert faults(found) == {"not-lora"} and found.is_sound


# -------------------------------------------------------------------- faults of the tensors

PREFIX = "base_model.model."
Q0 = PREFIX + "model.layers.0.self_attn.q_proj"
Tensors = dict[str, Tensor]


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def changed(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: change(t.clone()) if part in name else t for name, t in tensors.items()}


def dropped(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def one(value: float) -> Callable[[Tensor], Tensor]:
    def put(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return put


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (renamed(lambda name: PREFIX + name), {"doubled-prefix", "no-effect"}),
        (renamed(lambda name: 2 * PREFIX + name), {"doubled-prefix", "no-effect"}),
        (renamed(lambda name: name.removeprefix(PREFIX)), {"bare-keys", "no-effect"}),
        (renamed(lambda name: "module." + name), {"foreign-prefix", "no-effect"}),
        (renamed(lambda name: name.replace(".weight", ".policy.weight")), {"adapter-name", "no-effect"}),
        (
            renamed(lambda name: name.removeprefix(PREFIX).replace(".weight", ".policy.weight")),
            {"bare-keys", "adapter-name", "no-effect"},
        ),
        (changed("lora_B", torch.zeros_like), {"zero-b", "no-effect"}),
        (changed("lora_A", torch.zeros_like), {"zero-a", "no-effect"}),
        (changed(f"{Q0}.lora_B", torch.zeros_like), {"some-zero-b"}),
        (changed(f"{Q0}.lora_A", torch.zeros_like), {"some-zero-a"}),
        (changed(f"{Q0}.lora_B", lambda tensor: tensor[:0]), {"empty-tensors"}),
        (dropped(f"{Q0}.lora_B"), {"unpaired"}),
        (dropped(f"{Q0}.lora_A"), {"unpaired"}),
        (dropped("lora_B"), {"unpaired", "no-effect"}),
        (dropped("layers.1."), {"missing-tensors"}),
        (changed(f"{Q0}.lora_A", lambda tensor: tensor[:2]), {"unequal-ranks"}),
        (
            lambda tensors: (
                tensors
                | {f"{Q0}.lora_A.weight": tensors[f"{Q0}.lora_A.weight"][:2]}
                | {f"{Q0}.lora_B.weight": tensors[f"{Q0}.lora_B.weight"][:, :2]}
            ),
            {"rank-pattern"},
        ),
        (lambda tensors: tensors | {f"{Q0}.lora_magnitude_vector": torch.ones(32)}, {"unexpected-tensors"}),
        (lambda tensors: tensors | {f"{PREFIX}model.rotary.inv_freq": torch.ones(4)}, {"unexpected-tensors"}),
        (
            lambda tensors: (
                tensors
                | {f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}
                | {f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.weight": torch.ones(64, 4)}
            ),
            {"untargeted"},
        ),
        (renamed(lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")), {"no-lora"}),
        (lambda tensors: {}, {"missing-weights"}),
    ],
)
def test_a_fault_of_the_tensors(tmp_path: Path, change: Callable[[Tensors], Tensors], expected: set[str]) -> None:
    found = check(rewrite(tmp_path, tensors=change))
    assert faults(found) == expected, "\n".join(map(str, found.findings))


def test_a_stray_tensor_of_lora_is_an_error_and_another_a_warning(tmp_path: Path) -> None:
    part_of_lora = {f"{Q0}.lora_magnitude_vector": torch.ones(32)}
    another = {f"{PREFIX}model.rotary.inv_freq": torch.ones(4)}
    assert not check(rewrite(tmp_path / "a", tensors=lambda tensors: tensors | part_of_lora)).is_sound
    assert check(rewrite(tmp_path / "b", tensors=lambda tensors: tensors | another)).is_sound


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(tmp_path: Path, value: float) -> None:
    found = check(rewrite(tmp_path, tensors=changed(f"{Q0}.lora_B", one(value))))
    assert faults(found) == {"not-finite"} and f"1 of 8 tensors ({Q0}.lora_B.weight)" in words(found, "not-finite")


def test_the_default_adapters_name_in_the_names_is_found_by_peft_only(tmp_path: Path) -> None:
    found = check(rewrite(tmp_path, tensors=renamed(lambda name: name.replace(".weight", ".default.weight"))))
    assert faults(found) == {"adapter-name"} and found.is_sound
    assert found.effect == check(saved()).effect
    assert "vllm-names" in notes(found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dropped("score"), {"missing-head"}),
        (
            renamed(lambda name: name.replace("score.", "score.modules_to_save.default.")),
            {"adapter-name", "peft-refuses"},
        ),
        (changed("lora_B", torch.zeros_like), {"zero-b", "no-effect"}),  # the head alone is not what LoRA does
    ],
)
def test_a_fault_of_a_classifier(tmp_path: Path, change: Callable[[Tensors], Tensors], expected: set[str]) -> None:
    found = check(rewrite(tmp_path, tensors=change, source=saved("SEQ_CLS")))
    assert {finding.code for finding in found.errors} == faults(found) == expected, "\n".join(map(str, found.findings))


def test_a_head_of_tokens_that_is_missing(tmp_path: Path) -> None:
    assert faults(check(rewrite(tmp_path, tensors=dropped("score"), source=saved("TOKEN_CLS")))) == {"missing-head"}


def test_doras_magnitudes_can_do_something_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "dora", use_dora=True)
    found = check(rewrite(tmp_path / "zero", tensors=changed("lora_B", torch.zeros_like), source=source))
    assert faults(found) == {"zero-b"} and found.is_sound


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed("", lambda tensor: tensor.double()), "odd-dtype"),
        (changed("", lambda tensor: (tensor * 10).sign().to(torch.int8)), "odd-dtype"),
        (changed("", lambda tensor: tensor.to(torch.float8_e4m3fn)), "odd-dtype"),
        (changed("lora_A", lambda tensor: tensor.bfloat16()), "mixed-dtypes"),
    ],
)
def test_formats_of_numbers_are_a_note(tmp_path: Path, change: Callable[[Tensors], Tensors], code: str) -> None:
    found = check(rewrite(tmp_path, tensors=change))
    assert code in notes(found) and found.is_sound


# -------------------------------------------------------------------- damaged files


class Trap:
    """What a pickle must never be allowed to call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


def damaged(tmp_path: Path, content: bytes, name: str = WEIGHTS) -> Check:
    shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / name).write_bytes(content)
    return check(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    whole = (saved() / WEIGHTS).read_bytes()
    for number, content in enumerate((whole[:-100], whole[:20], b"", b"\x00" * 64)):
        assert faults(damaged(tmp_path / str(number), content)) == {"damaged-weights"}
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    assert "git lfs pull" in words(damaged(tmp_path / "lfs", pointer), "damaged-weights")


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"a": Trap()}, tmp_path / "trap")
    trap = (tmp_path / "trap").read_bytes()
    for number, content in enumerate((trap, trap[:-50], b"no pickle")):
        assert faults(damaged(tmp_path / str(number), content, "adapter_model.bin")) == {"damaged-weights"}
    torch.save([torch.ones(1)], tmp_path / "list")
    found = damaged(tmp_path / "of a list", (tmp_path / "list").read_bytes(), "adapter_model.bin")
    assert faults(found) == {"damaged-weights"}


def test_weights_of_another_name_are_named(tmp_path: Path) -> None:
    found = damaged(tmp_path, (saved() / WEIGHTS).read_bytes(), "model.safetensors")
    assert faults(found) == {"missing-weights"} and "model.safetensors" in words(found, "missing-weights")


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such directory"):
        check(tmp_path / "nowhere")


# -------------------------------------------------------------------- the base


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gpt2", {}),  # other names
        ("qwen3", {}),  # the same names and shapes
        ("llama", {"hidden_size": 64}),
        ("llama", {"num_hidden_layers": 1}),
        ("llama", {"num_key_value_heads": 4}),  # v's B only
    ],
)
def test_another_base(tmp_path: Path, model_type: str, fields: dict[str, Any]) -> None:
    base = base_on_disk(tmp_path, model_type, **fields)
    found = check(saved(), base=base)
    assert faults(found) == {"wrong-base"} and found.effect is None
    assert Path(base).name in words(found, "wrong-base")


def test_a_deeper_base(tmp_path: Path) -> None:
    assert faults(check(saved(), base=base_on_disk(tmp_path, "llama", num_hidden_layers=3))) == {"missing-tensors"}


def test_the_adapter_itself_names_another_base(tmp_path: Path) -> None:
    wider = base_on_disk(tmp_path / "base", "llama", hidden_size=64)
    found = check(rewrite(tmp_path / "a", lambda fields: fields.update(base_model_name_or_path=wider)))
    assert faults(found) == {"wrong-base"}


def test_a_class_of_another_kind(tmp_path: Path) -> None:
    save(tmp_path / "a", LlamaModel.from_pretrained(tiny_directory()), task_type=None)
    other = base_on_disk(tmp_path / "base", "qwen3")
    found = check(rewrite(tmp_path / "b", without("base_model_name_or_path"), source=tmp_path / "a"), base=other)
    assert faults(found) == {"base-unnamed", "wrong-base"}
    assert "no base for an adapter of LlamaModel, which auto_mapping names" in words(found, "wrong-base")


def test_shapes_are_judged_where_the_initialisation_needs_data(tmp_path: Path) -> None:
    """CorDA's factors come from the base's weights and activations; there are none on the meta device."""
    adapter = rewrite(tmp_path / "a", lambda fields: fields.update(init_lora_weights="corda"))
    assert faults(check(adapter, base=base_on_disk(tmp_path / "base", "llama", hidden_size=64))) == {"wrong-base"}


def test_a_base_that_cannot_be_had(tmp_path: Path) -> None:
    """The files are judged without it, and the command says what was not."""
    found = check(
        rewrite(
            tmp_path / "a", lambda fields: fields.update(base_model_name_or_path="someone/tiny-llama", lora_alpha=0)
        )
    )
    assert faults(found) == {"alpha-zero"} and "no-base" in notes(found)
    assert found.effect is None and found.compared_with is None
    with pytest.raises(ModelError, match="nowhere"):
        check(saved(), base=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="someone/tiny-llama"):
        check(saved(), base="someone/tiny-llama")
    with pytest.raises(ModelError, match="sha256"):
        check(saved(), base="pypi:some-package==1#file.gguf")


def test_a_base_without_weights_is_enough_for_names_and_shapes(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_directory() / name, tmp_path)
    found = check(saved(), base=str(tmp_path))
    assert faults(found) == set() and "not-loaded" in notes(found) and found.effect is None
    wider = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(wider | {"hidden_size": 64}))
    assert faults(check(saved(), base=str(tmp_path))) == {"wrong-base"}


def test_a_base_larger_than_the_memory_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = sum(parameter.numel() for parameter in tiny_base().parameters())
    monkeypatch.setattr(effect, "memory_of_machine", lambda: 4 * parameters - 1)
    found = check(saved())
    assert "not-loaded" in notes(found) and found.effect is None and found.is_sound
    monkeypatch.setattr(effect, "memory_of_machine", lambda: 4 * parameters)
    assert check(saved()).effect is not None


def cached(name: str, revision: str = "0" * 40) -> str:
    """Puts the tiny Llama where huggingface_hub keeps what it has downloaded."""
    place = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    shutil.copytree(tiny_directory(), place / "snapshots" / revision, dirs_exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(revision)
    return name


def test_a_base_in_the_hubs_cache(tmp_path: Path) -> None:
    name = cached("someone/cached-llama")
    directory = rewrite(tmp_path, lambda fields: fields.update(base_model_name_or_path=name, revision="0" * 40))
    found = check(directory)
    assert (faults(found), notes(found)) == (set(), set())
    assert (found.compared_with, found.effect) == (name, check(saved()).effect)
    other = cached("someone/other-llama")
    found = check(directory, base=other)
    assert faults(found) == {"base-differs"} and found.compared_with == other


def test_a_revision_that_is_not_in_the_cache(tmp_path: Path) -> None:
    name = cached("someone/cached-llama")
    revised = {"base_model_name_or_path": name, "revision": "1" * 40}
    assert "no-base" in notes(check(rewrite(tmp_path, lambda fields: fields.update(revised))))


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def unreachable(self: HfApi, name: str, **options: Any) -> None:
        asked.append((name, options["timeout"] <= 10))
        raise HTTPError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    found = check(rewrite(tmp_path, lambda fields: fields.update(base_model_name_or_path="someone/far-away")))
    assert asked == [("someone/far-away", True)]
    assert faults(found) == set() and "no route to host" in words(found, "no-base")


# -------------------------------------------------------------------- tokenizers


def with_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Check:
    shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
    tokenizer.save_pretrained(tmp_path)
    return check(tmp_path)


def test_the_same_tokenizer_passes(tmp_path: Path) -> None:
    assert faults(with_tokenizer(tmp_path, make_tiny_tokenizer())) == set()


def test_a_vocabulary_larger_than_the_embeddings(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    found = with_tokenizer(tmp_path, tokenizer)
    assert faults(found) == {"vocabulary-too-large", "new-tokens"}
    assert "ids up to 512, the base has 512 rows" in words(found, "vocabulary-too-large")


def test_new_tokens_on_rows_that_the_base_has_to_spare(tmp_path: Path) -> None:
    base = tiny_base()
    base.resize_token_embeddings(520, mean_resizing=False)
    base.save_pretrained(tmp_path / "base")
    make_tiny_tokenizer().save_pretrained(tmp_path / "base")
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])

    def made(name: str, **fields: Any) -> Path:
        directory = save(tmp_path / name, AutoModelForCausalLM.from_pretrained(tmp_path / "base"), **fields)
        tokenizer.save_pretrained(directory)
        return directory

    assert faults(check(made("untrained"))) == {"new-tokens"}
    assert faults(check(made("trained", trainable_token_indices=[512]))) == set()


def test_other_ids_for_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    moved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(json.dumps(data)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
    )
    found = with_tokenizer(tmp_path, moved)
    assert faults(found) == {"token-ids"} and "2 tokens" in words(found, "token-ids")


def test_other_special_tokens(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|im_start|>"
    tokenizer.chat_template = "{{ messages }}"
    found = with_tokenizer(tmp_path, tokenizer)
    assert faults(found) == {"eos-differs", "pad-differs"} and found.is_sound
    assert "chat-template-differs" in notes(found)


@pytest.mark.parametrize("padding", [None, "<|im_end|>"])
def test_padding_that_the_base_left_to_be_chosen(tmp_path: Path, padding: str | None) -> None:
    base = tiny_base()
    base.save_pretrained(tmp_path / "base")
    theirs = make_tiny_tokenizer()
    theirs.pad_token = padding
    theirs.save_pretrained(tmp_path / "base")
    save(tmp_path / "a", AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    make_tiny_tokenizer().save_pretrained(tmp_path / "a")
    found = check(tmp_path / "a")
    assert faults(found) == set() and "pad-differs" in notes(found)


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    make_tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    shutil.copytree(saved(), tmp_path, dirs_exist_ok=True)
    assert faults(check(tmp_path)) == {"damaged-tokenizer"}


# -------------------------------------------------------------------- all at once


def test_all_findings_at_once_and_errors_first(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors = changed("lora_B", torch.zeros_like)(tensors)
        tensors = changed(f"{Q0}.lora_A", one(math.nan))(tensors)
        return renamed(lambda name: PREFIX + name)(tensors)

    make_tiny_tokenizer().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda f: f.update(lora_alpha=0, alpha_pattern={"no": 1}, use_dora=False, r=4), spoil)
    found = check(tmp_path)
    assert faults(found) == {"alpha-zero", "unmatched-pattern", "zero-b", "not-finite", "doubled-prefix"}
    severities = [finding.severity for finding in found.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert {"warning", "note"} < set(severities)
    assert [finding.severity for finding in found.errors] == ["error"] * severities.count("error")


def test_what_is_printed_cannot_steer_a_terminal(tmp_path: Path) -> None:
    found = check(rewrite(tmp_path, lambda f: f.update(base_model_name_or_path="/home/\x1b[2J\nme")))
    (finding,) = (finding for finding in found.findings if finding.code == "base-path")
    assert str(finding).startswith("warning: ") and str(finding).endswith(" [base-path]")
    assert "/home/\\x1b[2J\\nme" in str(finding) and str(finding).isprintable()


# -------------------------------------------------------------------- vLLM's rules


@pytest.mark.parametrize(
    ("rank", "code", "said"),
    [
        (16, None, ""),
        (17, "vllm-max-rank", "--max-lora-rank 32"),
        (257, "vllm-max-rank", "--max-lora-rank 320"),
        (512, "vllm-max-rank", "--max-lora-rank 512"),
        (513, "vllm-rank", "513 is more than 512"),
    ],
)
def test_ranks_for_vllm(tmp_path: Path, rank: int, code: str | None, said: str) -> None:
    found = check(save(tmp_path, target_modules=["q_proj"], rank_pattern={"q_proj": rank}))
    assert {note for note in notes(found) if note.startswith("vllm")} == ({code} if code else set())
    assert said in words(found, code or "")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set()),
        ({"use_rslora": True, "alpha_pattern": {"q_proj": 3}}, set()),
        ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, set()),
        ({"use_dora": True}, {"vllm-dora", "vllm-names"}),
        ({"bias": "lora_only"}, {"vllm-bias"}),
        ({"lora_bias": True}, {"vllm-lora-bias", "vllm-names"}),
        ({"modules_to_save": ["lm_head"]}, {"vllm-modules-to-save", "vllm-names"}),
        ({"init_lora_weights": "olora"}, {"vllm-init"}),
        ({"init_lora_weights": "gaussian"}, set()),
        ({"alora_invocation_tokens": [4, 5]}, {"vllm-alora"}),
        ({"trainable_token_indices": [1]}, {"vllm-names"}),
    ],
)
def test_what_vllm_would_refuse(tmp_path: Path, fields: dict[str, Any], expected: set[str]) -> None:
    found = check(save(tmp_path, **fields))
    assert {note for note in notes(found) if note.startswith("vllm")} == expected
    assert not any(finding.code.startswith("vllm") for finding in found.findings if finding.severity != "note")


def test_heads_for_vllm(tmp_path: Path) -> None:
    assert not any(note.startswith("vllm") for note in notes(check(saved("SEQ_CLS"))))
    assert "vllm-head" in notes(check(saved("TOKEN_CLS")))
    unnamed = rewrite(tmp_path, lambda fields: fields.update(modules_to_save=None), source=saved("SEQ_CLS"))
    assert "vllm-head" in notes(check(unnamed))


def test_modules_that_are_no_linear_layers_are_not_for_vllm(tmp_path: Path) -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Conv1d(32, 32, 1)

    config = AdapterConfig(peft_type="LORA", r=4, lora_alpha=8, target_modules=["q_proj"])
    (finding,) = vllm_findings("a", config, [], {"q_proj": Pair("q_proj")}, Convolution())  # type: ignore[arg-type]
    assert finding.code == "vllm-modules" and "q_proj, a Conv1d" in finding.message
