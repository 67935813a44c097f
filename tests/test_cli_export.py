"""`rlhf-kit export` as it is typed: which options go together, exit codes, one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import tiny_directory
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf_kit import pipeline, process
from rlhf_kit.cli import main
from rlhf_kit.export import exporting, hub
from rlhf_kit.export.exporting import Wish
from rlhf_kit.export.trained import Mixture


def test_a_run_alone_is_its_own_export_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ppo").mkdir()
    calls: list[Path] = []
    monkeypatch.setattr(pipeline, "export_run", lambda run: calls.append(run) or run / "export")
    assert main(["export", str(tmp_path)]) == 0
    assert calls == [tmp_path] and capsys.readouterr().out == f"{tmp_path / 'export'}\n"


CASES: list[tuple[list[str], Wish, str | None, str | None]] = [
    (["--out", "o"], Wish(), None, "o"),
    (["--adapter", "sft"], Wish(), "sft", None),
    (["--to", "merged", "--dtype", "float16"], Wish("merged", "float16"), None, None),
    (["--to", "gguf", "--dtype", "q8_0"], Wish("gguf", "q8_0"), None, None),
    (["--to", "reward", "--merged", "--adapter", "value"], Wish("reward", merged=True), "value", None),
    (
        ["--merge-with", "a", "b", "--weights", "0.5", "0.3", "0.2", "--method", "ties", "--density", "0.4"],
        Wish(mixture=Mixture((Path("a"), Path("b")), (0.5, 0.3, 0.2), "ties", 0.4)),
        None,
        None,
    ),
    (["--merge-with", "a"], Wish(mixture=Mixture((Path("a"),), (0.5, 0.5), "cat")), None, None),
]


@pytest.mark.parametrize(("typed", "wish", "role", "out"), CASES)
def test_what_is_asked_for(
    typed: list[str],
    wish: Wish,
    role: str | None,
    out: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []
    (tmp_path / "ppo").mkdir()  # of which the run's own export step would be made, if nothing else were asked for

    def export(run: Path, asked: Wish, *, role: str | None, out: Path | None) -> Path:
        calls.append((run, asked, role, out))
        return tmp_path / "done"

    monkeypatch.setattr(exporting, "export", export)
    assert main(["export", str(tmp_path), *typed]) == 0
    assert calls == [(tmp_path, wish, role, out and Path(out))]
    assert capsys.readouterr().out == f"{tmp_path / 'done'}\n"


def test_freed_memory_makes_room_for_the_next_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(process, "_manage_freed_memory", lambda *, keep: kept.append(keep))
    monkeypatch.setattr(exporting, "export", lambda *_, **__: tmp_path)
    assert main(["export", str(tmp_path), "--to", "merged"]) == 0 and kept == [False]
    process.prepare_torch()
    assert kept == [False, True], "a step of training takes and frees the same buffers again and again"


def test_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Any] = []
    pushed: list[Any] = []
    monkeypatch.setattr(exporting, "export", lambda run, wish, **rest: made.append((wish, rest)) or tmp_path / "done")
    monkeypatch.setattr(hub, "push", lambda *args, **rest: pushed.append((args, rest)) or "its address")
    typed = ["export", str(tmp_path), "--to", "hub", "--repo", "me/mine"]
    assert main([*typed, "--as", "gguf"]) == 0
    assert made == [(Wish("gguf"), {"role": None, "out": None})]
    assert pushed == [((tmp_path / "done", "me/mine"), {"private": True, "revision": None})]
    monkeypatch.setattr(hub, "is_export", lambda directory: True)
    assert main([*typed, "--public", "--revision", "next"]) == 0
    assert len(made) == 1, "a finished export is pushed as it is"
    assert pushed[1] == ((tmp_path, "me/mine"), {"private": False, "revision": "next"})
    assert capsys.readouterr().out == "its address\n" * 2
    for asked in (["--as", "gguf"], ["--dtype", "f16"], ["--adapter", "sft"], ["--merge-with", "a"]):
        assert main([*typed, *asked]) == 2
        assert capsys.readouterr().err.startswith(f"{tmp_path}: is a finished export, and pushed as it is; leave out")
    assert (len(made), len(pushed)) == (1, 2)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["RUN", "--to", "hub"], "--to hub needs --repo OWNER/NAME"),
        (["RUN", "--repo", "me/mine"], "--repo: only with --to hub"),
        (["RUN", "--as", "gguf", "--public"], "--as and --public: only with --to hub"),
        (["RUN", "--merged"], "--merged is for --to reward; --to merged writes a whole policy"),
        (["RUN", "--weights", "1"], "--weights: only with --merge-with"),
        (["RUN", "--base", "b"], "--base: only with --check"),
        (["RUN", "--check", "RUN"], "--check DIR looks at DIR alone; leave RUN out"),
        (["RUN", "--merge-with", "a", "--weights", "1"], "--weights: 1 given for 2 adapters"),
        (["RUN", "--merge-with", "a", "--method", "ties"], "--density: --method ties needs the share"),
        (["nowhere"], "nowhere: no such directory"),
        ([], "RUN: no such directory"),
        (["RUN"], "no finished ppo or sft stage in it; name the output_dir of a run"),
    ],
)
def test_mistakes_end_with_one_line(
    typed: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(str(tmp_path) if word == "RUN" else word for word in typed)]) == 2
    said = capsys.readouterr()
    assert line in said.err and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


def save_adapter(directory: Path, *, zero: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_directory())
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name and not zero:
                parameter.normal_(std=0.1)
    peft.peft_config["default"].base_model_name_or_path = "tiny/tiny"
    peft.save_pretrained(str(directory))


def test_check_names_faults_and_passes_what_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(tmp_path / "sound", zero=False)
    save_adapter(tmp_path / "zero", zero=True)
    base = ["--base", str(tiny_directory())]
    assert main(["export", "--check", str(tmp_path / "sound"), *base]) == 0
    said = capsys.readouterr()
    assert "error" not in said.out and "sound (4 modules of rank 8, alpha 8" in said.err
    assert "loaded onto it, moves its outputs by" in said.err
    assert main(["export", "--check", str(tmp_path / "zero"), *base]) == 2
    said = capsys.readouterr()
    assert "[zero-b]" in said.out and "not sound: 2 errors (" in said.err
    config = json.loads((tmp_path / "sound" / "adapter_config.json").read_text())
    (tmp_path / "sound" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    assert main(["export", "--check", str(tmp_path / "sound"), *base]) == 2
    assert "error: " in (said := capsys.readouterr().out) and "alpha" in said
    assert main(["export", "--check", str(tmp_path / "nowhere")]) == 2
