"""The quickstart's model as every kind of export; its GGUF files in llama.cpp, with answers beside PEFT's.

The first test makes llama.cpp and its converter ready: llama.cpp is compiled, once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import gguf
import pytest
import torch
from backbones import add_head, stir
from export_run import write_stage
from llama_python import LENGTH, ask, kl, logits_of
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_kit import load, load_backbone
from rlhf_kit.cli import main
from rlhf_kit.export.gguf_model import convert
from rlhf_kit.models import lora_config
from rlhf_kit.models.sources import resolve
from rlhf_kit.recipe import Recipe, load_recipe
from rlhf_kit.stages import sft

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROOT = Path(__file__).parents[2]
EXPORTS = {
    "adapter": ["--to", "adapter"],
    "merged": ["--to", "merged"],
    "f16": ["--to", "gguf"],
    "bf16": ["--to", "gguf", "--dtype", "bf16"],
    "q8_0": ["--to", "gguf", "--dtype", "q8_0"],
    "gguf-adapter": ["--to", "gguf-adapter"],
    "reward": ["--to", "reward"],
}
QUESTIONS = (
    "Name the planets.",
    "Why do leaves fall in autumn?",
    "How do I make tea?",
    "What is a noun?",
    "Write a line about the moon.",
    "Is seven a prime number?",
    "What do bees eat?",
    "Tell me something about Norway.",
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(
        ROOT / "recipes" / "quickstart.yaml",
        [
            "model.dtype=float32",
            "sft.per_device_train_batch_size=4",
            "sft.learning_rate=1e-3",
            "sft.trainer={max_steps: 6, logging_steps: 6}",
        ],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """A run of the quickstart's model: a policy that a few steps of SFT have changed, and a reward model."""
    directory = tmp_path_factory.mktemp("quickstart")
    (directory / "trained").mkdir()
    sft.train(recipe, load(str(recipe.data.demonstrations), "demonstration")[:24], directory / "trained")
    backbone = load_backbone(recipe.model)
    backbone.load_adapter("policy", directory / "trained")
    backbone.add_adapter("reward", lora_config(recipe.lora))
    stir(backbone, "reward", 3, size=0.02)
    add_head(backbone, "reward")
    write_stage(directory / "run", recipe, backbone, "policy")
    write_stage(directory / "run", recipe, backbone, "reward")
    return directory / "run"


@pytest.fixture(scope="module")
def exports(run: Path) -> dict[str, Path]:
    """The command itself, for every kind."""
    found = {}
    for name, options in EXPORTS.items():
        found[name] = run.parent / name
        assert main(["export", str(run), *options, "--out", str(found[name])]) == 0, name
    return found


def test_every_kind_is_on_disk_and_verified(exports: dict[str, Path]) -> None:
    for name, (loader, files) in {
        "adapter": ("PEFT", {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}),
        "merged": ("transformers", {"config.json", "tokenizer.json"}),
        "f16": ("llama.cpp", {"model-f16.gguf", "Modelfile"}),
        "bf16": ("llama.cpp", {"model-bf16.gguf", "Modelfile"}),
        "q8_0": ("llama.cpp", {"model-q8_0.gguf", "Modelfile"}),
        "gguf-adapter": ("llama.cpp", {"adapter.gguf", "Modelfile"}),
    }.items():
        there = {path.name for path in exports[name].iterdir()}
        assert {*files, "README.md", "manifest.json"} <= there, name
        metrics = json.loads((exports[name] / "manifest.json").read_text())["metrics"]
        assert metrics["loader"] == loader and metrics["positions"] >= 256
        assert 10 * metrics["mean_kl"] < metrics["base_mean_kl"]
        assert not [path for path in there if path.startswith(".")], "nothing of the making is left"
    assert {"adapter_model.safetensors", "rlhf_kit_reward.json"} <= {p.name for p in exports["reward"].iterdir()}


@pytest.mark.parametrize(("name", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_gguf_is_of_the_type_asked_for(exports: dict[str, Path], name: str, kind: str) -> None:
    reader = gguf.GGUFReader(exports[name] / f"model-{name}.gguf")
    assert {t.tensor_type.name for t in reader.tensors if t.name.startswith("blk.3.ffn")} == {kind, "F32"}
    assert reader.fields["general.architecture"].contents() == "llama"


def answers_of(model: torch.nn.Module, prompts: list[list[int]], end: int) -> list[list[int]]:
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=LENGTH,
                eos_token_id=end,
            )
        found.append(out[0, len(prompt) :].tolist())
    return found


@dataclass(frozen=True)
class Peft:
    """The exported adapter in plain PEFT, in float32: prompts, its greedy answers, and its logits on both."""

    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    answers: list[list[int]]
    sequences: list[list[int]]
    logits: list[Tensor]


@pytest.fixture(scope="module")
def peft(recipe: Recipe, exports: dict[str, Path]) -> Peft:
    tokenizer = AutoTokenizer.from_pretrained(exports["adapter"])
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question in QUESTIONS
    ]
    base = AutoModelForCausalLM.from_pretrained(
        resolve(recipe.model.name_or_path, recipe.model.sha256), dtype=torch.float32
    )
    model = PeftModel.from_pretrained(base, str(exports["adapter"])).eval()
    answers = answers_of(model, prompts, tokenizer.eos_token_id)
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return Peft(tokenizer, prompts, answers, sequences, logits_of(model, sequences))


def assert_beside(peft: Peft, name: str, theirs: list[Tensor], others: list[list[int]]) -> None:
    """Compares llama.cpp's logits and greedy answers with PEFT's, and prints both."""
    same, lines = [], []
    for number, (answer, other) in enumerate(zip(peft.answers, others, strict=True)):
        agree = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, other, strict=False)))
        forced = theirs[number][len(peft.prompts[number]) - 1 : -1].argmax(-1)
        same += (forced == torch.tensor(answer)).tolist()
        lines += [f"{QUESTIONS[number]} ({agree} of {len(answer)} tokens the same)"]
        lines += [
            f"    {who:10}{peft.tokenizer.decode(ids)!r}" for who, ids in (("PEFT", answer), ("llama.cpp", other))
        ]
    equal = sum(answer == other for answer, other in zip(peft.answers, others, strict=True))
    distance = kl(peft.logits, theirs)
    lines += [f"{name}: {equal} of {len(others)} answers the same; teacher-forced {sum(same)} of {len(same)} tokens"]
    lines[-1] += f", KL {distance:.2g}"
    print("\n".join(lines))
    assert len(same) >= 200
    assert sum(same) / len(same) >= 0.995
    assert distance < 1e-4
    firsts = [answer[0] == other[0] for answer, other in zip(peft.answers, others, strict=True)]
    assert sum(firsts) >= len(firsts) - 1 and equal >= len(others) // 2


def test_the_gguf_model_answers_as_peft_does(
    tmp_path: Path, exports: dict[str, Path], peft: Peft, capsys: pytest.CaptureFixture[str]
) -> None:
    model = exports["f16"] / "model-f16.gguf"
    theirs, said = ask(tmp_path, model, sequences=peft.sequences, prompts=peft.prompts, chats=list(QUESTIONS))
    with capsys.disabled():
        assert_beside(peft, "GGUF model, f16", theirs, said["answers"])
    for prompt, answer, chat in zip(peft.prompts, said["answers"], said["chats"], strict=True):
        assert chat["usage"]["prompt_tokens"] == len(prompt), "the chat template in the file makes the same prompt"
        words = peft.tokenizer.decode(answer, skip_special_tokens=True)
        assert chat["choices"][0]["message"]["content"] == words


def test_the_gguf_adapter_answers_as_peft_does(
    tmp_path: Path, recipe: Recipe, exports: dict[str, Path], peft: Peft, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(Path(resolve(recipe.model.name_or_path, recipe.model.sha256)), tmp_path / "base.gguf", "f16", recipe.model)
    adapter = exports["gguf-adapter"] / "adapter.gguf"
    theirs, said = ask(tmp_path, tmp_path / "base.gguf", adapter, sequences=peft.sequences, prompts=peft.prompts)
    with capsys.disabled():
        assert_beside(peft, "GGUF adapter", theirs, said["answers"])
    without, _ = ask(tmp_path, tmp_path / "base.gguf", sequences=peft.sequences)
    assert kl(peft.logits, without) > 100 * kl(peft.logits, theirs)
