"""GGUF exports in llama.cpp itself, with its own converter: both are made ready once, llama.cpp compiled.

What llama.cpp makes of the files is asked of llama-cpp-python's own class here, as a user would; the kit's verification
calls the C functions.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from backbones import add_head, lora, stir
from export_run import write_stage
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from whole_run import write_run

from rlhf_kit import load, load_backbone
from rlhf_kit.cli import main
from rlhf_kit.export import gguf_adapter
from rlhf_kit.export.environments import python_of
from rlhf_kit.export.gguf_adapter import write_gguf
from rlhf_kit.export.gguf_model import CONVERTER, convert
from rlhf_kit.export.llama import ENVIRONMENT, PYTHON_VARIABLE
from rlhf_kit.models import load_tokenizer, lora_config
from rlhf_kit.models.sources import resolve
from rlhf_kit.recipe import ModelSection, load_recipe
from rlhf_kit.stages import sft

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROOT = Path(__file__).parents[2]

ASK = """
import json, sys
import llama_cpp
import numpy as np

asked = json.load(sys.stdin)
llm = llama_cpp.Llama(asked["model"], lora_path=asked["lora"], n_ctx=512, logits_all=True, n_threads=2, verbose=False)
rows, answers = [], []
for sequence in asked["sequences"]:
    llm.reset()
    llm.eval(sequence)
    rows.append(llm.scores[: len(sequence)].copy())
for prompt in asked["prompts"]:
    answer = []
    for token in llm.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
        answer.append(int(token))
        if token == llm.token_eos() or len(answer) == asked["length"]:
            break
    answers.append(answer)
chats = [
    llm.create_chat_completion([{"role": "user", "content": text}], temperature=0.0, max_tokens=asked["length"])
    for text in asked["chats"]
]
if rows:
    np.save(asked["logits"], np.concatenate(rows))
print(json.dumps({"answers": answers, "chats": chats}))
"""


def ask(
    directory: Path,
    model: Path,
    adapter: Path | None = None,
    *,
    sequences: list[list[int]] | None = None,
    prompts: list[list[int]] | None = None,
    chats: list[str] | None = None,
    length: int = 32,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Logits (T, V) of sequences and greedy answers to prompts and to chats, by llama-cpp-python's own class."""
    python = os.environ.get(PYTHON_VARIABLE) or str(python_of(ENVIRONMENT))
    request = {
        "model": str(model),
        "lora": adapter and str(adapter),
        "sequences": sequences or [],
        "prompts": prompts or [],
        "chats": chats or [],
        "length": length,
        "logits": str(directory / "logits.npy"),
    }
    done = subprocess.run([python, "-c", ASK], input=json.dumps(request), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows: list[Tensor] = []
    if sequences:
        logits = torch.from_numpy(np.load(directory / "logits.npy"))
        rows = list(logits.split([len(sequence) for sequence in sequences]))
    return rows, json.loads(done.stdout.splitlines()[-1])


def kl(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Mean of KL(ours || theirs) over positions, in nats."""
    p, q = (torch.cat(rows).double().log_softmax(-1) for rows in (ours, theirs))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def logits_of(model: torch.nn.Module, sequences: list[list[int]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([sequence])).logits[0] for sequence in sequences]


# -------------------------------------------------------------------- the quickstart's model, every kind of export

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
LENGTH = 48


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the quickstart's model: a policy that a few steps of SFT have changed, and a reward model."""
    directory = tmp_path_factory.mktemp("quickstart")
    recipe = load_recipe(
        ROOT / "recipes" / "quickstart.yaml",
        [
            "model.dtype=float32",
            "sft.per_device_train_batch_size=4",
            "sft.learning_rate=1e-3",
            "sft.trainer={max_steps: 6, logging_steps: 6}",
        ],
    )
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


def test_llama_answers_as_peft_does(
    tmp_path: Path, smollm: ModelSection, exports: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The GGUF model, and the GGUF adapter on a GGUF of the base, beside the exported adapter in PEFT, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(exports["adapter"])
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question in QUESTIONS
    ]
    directory = resolve(smollm.name_or_path, smollm.sha256)
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(exports["adapter"])).eval()
    answers = answers_of(model, prompts, tokenizer.eos_token_id)
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    ours = logits_of(model, sequences)
    convert(Path(directory), tmp_path / "base.gguf", "f16", smollm)
    for name, files in {
        "GGUF model, f16": (exports["f16"] / "model-f16.gguf", None),
        "GGUF adapter": (tmp_path / "base.gguf", exports["gguf-adapter"] / "adapter.gguf"),
    }.items():
        theirs, said = ask(tmp_path, *files, sequences=sequences, prompts=prompts, chats=list(QUESTIONS), length=LENGTH)
        same, firsts, equal = [], 0, 0
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            other = said["answers"][number]
            agree = next(
                (n for n, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b), min(len(answer), len(other))
            )
            firsts, equal = firsts + (agree > 0), equal + (answer == other)
            forced = theirs[number][len(prompt) - 1 : -1].argmax(-1)
            same += (forced == torch.tensor(answer)).tolist()
            with capsys.disabled():
                print(f"\n{name}, {QUESTIONS[number]} {agree} of {len(answer)} tokens the same")
                print(f"  PEFT       {tokenizer.decode(answer)!r}\n  llama.cpp  {tokenizer.decode(other)!r}")
        with capsys.disabled():
            print(f"{name}: {equal} of {len(answers)} answers equal, {sum(same)} of {len(same)} tokens teacher-forced")
        assert firsts >= len(prompts) - 1
        assert sum(same) / len(same) >= 0.995
        assert kl(ours, theirs) < 1e-4


def test_llama_catches_queries_that_are_rotated_otherwise(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gguf_adapter, "permuted", lambda module, b, config: b)
    assert main(["export", str(run), "--to", "gguf-adapter", "--out", str(run.parent / "wrong")]) == 2
    assert "reloaded by llama.cpp" in (said := capsys.readouterr().err) and "Nothing was kept" in said
    assert not [path for path in run.parent.iterdir() if "wrong" in path.name]


def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "converter" in line and "cannot" in line]
    assert line.startswith("llama.cpp's converter cannot write this model as GGUF: ") and "pre-tokenizer" in line
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


# -------------------------------------------------------------------- small models of every kind

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


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
