"""GGUF exports as a whole with another program in llama.cpp's place, and programs that fail.

Its own is in tests/slow/test_export_llama.py.
"""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import tiny_backbone, tiny_base, tiny_directory
from export_run import write_stage
from gguf_adapters import updates
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_kit.errors import ExportError
from rlhf_kit.export import gguf_adapter, gguf_model, llama
from rlhf_kit.export.comparison import Answers, logits_of
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.recipe import ModelSection, Recipe

# -------------------------------------------------------------------- the whole export, with another llama.cpp


def model(directory: Path | None = None) -> ModelSection:
    return ModelSection(name_or_path=str(directory or tiny_directory()), base_id="someone/tiny", dtype="float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(model=model())
    stage = write_stage(tmp_path_factory.mktemp("run") / "run", recipe, tiny_backbone("policy"), "policy")
    return stage.parent


class OtherLlama:
    """In the place of converter and llama.cpp: a model stays transformers' own, an adapter comes from its file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.scale, self.types = tiny_base(), 1.0, []
        for module in (gguf_adapter, gguf_model):
            monkeypatch.setattr(module, "convert", self.convert)
            monkeypatch.setattr(module, "logits_of_gguf", self.logits)

    def convert(self, directory: Path, file: Path, outtype: str, base: ModelSection) -> None:
        assert base == model()
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.types.append(outtype)
        file.write_bytes(b"GGUF")

    def logits(self, model: Path, answers: Answers, tokenizer: Any, *, adapter: Path | None = None) -> Any:
        assert model.read_bytes() == b"GGUF"
        with torch.no_grad():
            for name, update in (updates(adapter, True) if adapter else {}).items():
                self.model.get_submodule(name).weight += self.scale * update
        return logits_of(self.model, self.model, answers)


def test_an_adapter_is_written_whole(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = OtherLlama(monkeypatch)
    out = export(run, Wish("gguf-adapter"), out=tmp_path / "out")
    assert other.types == ["f16"], "the base that it is tried on"
    assert sorted(p.name for p in out.iterdir()) == ["Modelfile", "README.md", "adapter.gguf", "manifest.json"]
    lines = (out / "Modelfile").read_text().splitlines()
    assert {"FROM ./base.gguf", "ADAPTER ./adapter.gguf", 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["files"]) == {"adapter.gguf"}
    metrics = manifest["metrics"]
    assert (metrics["loader"], metrics["bytes"]) == ("llama.cpp", (out / "adapter.gguf").stat().st_size)
    assert metrics["mean_kl"] < 1e-8 < 1e-3 < metrics["base_mean_kl"] and metrics["positions"] >= 256


@pytest.mark.parametrize(("dtype", "outtype"), [(None, "f16"), ("bfloat16", "bf16"), ("q8_0", "q8_0")])
def test_a_model_is_written_whole(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None, outtype: str
) -> None:
    other = OtherLlama(monkeypatch)
    out = export(run, Wish("gguf", dtype), out=tmp_path / "out")
    assert other.types == [outtype]
    assert sorted(p.name for p in out.iterdir()) == ["Modelfile", "README.md", "manifest.json", f"model-{outtype}.gguf"]
    assert f"FROM ./model-{outtype}.gguf" in (out / "Modelfile").read_text().splitlines()
    assert json.loads((out / "manifest.json").read_text())["metrics"]["dtype"] == outtype


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_an_adapter_that_does_something_else_is_not_kept(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    OtherLlama(monkeypatch).scale = scale
    with pytest.raises(ExportError, match=r"reloaded by llama\.cpp at \d+ positions.*KL from the trained model is"):
        export(run, Wish("gguf-adapter"), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_the_base_is_not_kept(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OtherLlama(monkeypatch)
    base = tiny_base()
    monkeypatch.setattr(gguf_model, "logits_of_gguf", lambda model, answers, tokenizer: logits_of(base, base, answers))
    with pytest.raises(ExportError, match=r"reloaded by llama\.cpp at \d+ positions.*KL from the trained model is"):
        export(run, Wish("gguf"), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------- programs that fail


def program(path: Path, text: str) -> Path:
    """Something that is started in the place of another environment's Python."""
    path.write_text(f"#!{sys.executable}\nimport array, json, pathlib, sys\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_the_converter_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "INFO:loading\nTraceback (most recent call last):\n  File 1\nNotImplementedError: no such pre-tokenizer\n"
    python = program(tmp_path / "python", f"sys.exit({said!r})")
    monkeypatch.setattr(gguf_model, "python_of", lambda environment: python)
    with pytest.raises(ExportError) as failure:
        gguf_model.convert(tmp_path, tmp_path / "model.gguf", "f16", model())
    assert str(failure.value) == (
        "llama.cpp's converter cannot write this model as GGUF: NotImplementedError: no such pre-tokenizer"
    )


def test_a_converter_that_writes_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_model, "python_of", lambda environment: program(tmp_path / "python", ""))
    with pytest.raises(ExportError, match="cannot write this model as GGUF"):
        gguf_model.convert(tmp_path, tmp_path / "model.gguf", "f16", model())


def test_the_converter_finds_the_sentencepiece_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers saves the tokenizer without it, and the converter takes added tokens from the configuration."""
    base, merged = tmp_path / "base", tmp_path / "merged"
    shutil.copytree(tiny_directory(), base)
    (base / "tokenizer.model").write_bytes(b"pieces")
    tiny_backbone().tokenizer.save_pretrained(merged)
    assert not (merged / "tokenizer.model").exists()
    python = program(tmp_path / "python", "pathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).touch()")
    monkeypatch.setattr(gguf_model, "python_of", lambda environment: python)
    gguf_model.convert(merged, tmp_path / "model.gguf", "f16", model(base))
    assert (merged / "tokenizer.model").read_bytes() == b"pieces"
    added = json.loads((merged / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert added == {
        str(number): {"content": token, "special": True}
        for number, token in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    }


def answers_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[Tensor]:
    monkeypatch.setenv(llama.PYTHON_VARIABLE, str(program(tmp_path / "python", text)))
    answers = Answers([[1, 2, 3, 4], [5, 6, 7]], [1, 0])
    return list(llama.logits_of_gguf(tmp_path / "model.gguf", answers, tiny_backbone().tokenizer))


REPLY = """
request = json.load(sys.stdin)
pathlib.Path("{seen}").write_text(json.dumps(request))
array.array("f", range(4 * 2)).tofile(open(request["logits"], "wb"))
print(json.dumps({{"vocabulary": 2, "positions": 4, "tokens": {tokens}}}))
"""


def test_what_llama_is_asked_and_how_its_logits_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen.json"
    ours = [ids for _, ids in (llama._rendered(tiny_backbone().tokenizer, question) for question in llama.QUESTIONS)]
    rows = answers_of(tmp_path, monkeypatch, REPLY.format(seen=seen, tokens=ours))
    assert [r.tolist() for r in rows] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]], "two positions of each, of two tokens"
    asked = json.loads(seen.read_text())
    assert (asked["sequences"], asked["first"], asked["lora"]) == ([[1, 2, 3], [5, 6]], [1, 0], None)
    assert asked["texts"][0] == "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["python", "seen.json"], "the logits are gone"


def test_other_tokens_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"model\.gguf: llama\.cpp makes other tokens of '<\|im_start\|>user.*\[7\]"):
        answers_of(tmp_path, monkeypatch, REPLY.format(seen=tmp_path / "seen.json", tokens=[[7]] * 32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sys.exit('llama_model_load: error loading model: bad magic\\nmore\\nllama.cpp cannot load x')",
         r"llama\.cpp cannot use the export: .*bad magic \| llama\.cpp cannot load x$"),
        ("import os; os.kill(os.getpid(), 9)", "llama.cpp cannot use the export: it ended with -9$"),
    ],
)  # fmt: skip
def test_a_loader_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        answers_of(tmp_path, monkeypatch, text)


def test_a_python_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llama.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ExportError, match=r"RLHF_KIT_LLAMA_PYTHON: .*none cannot be started"):
        list(llama.logits_of_gguf(tmp_path / "m", Answers([[1, 2]], [0]), tiny_backbone().tokenizer))
