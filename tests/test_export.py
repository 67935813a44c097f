"""Which adapter of a run is exported, and what becomes of the directory: all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from whole_run import IDS, base_of, change, left_in, logits_of, rehash, write_base, write_run

from rlhf_kit.checkpoint import MANIFEST, read_manifest, write_json
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.export import adapter, exporting, reward, trained
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.export.source import Source, find
from rlhf_kit.export.trained import Mixture
from rlhf_kit.files import sha256_of
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.heads import HEAD_FILE

CONFIG = "adapter_config.json"


pytest_plugins = ["whole_run"]  # the fixtures place, run and half


# -------------------------------------------------------------------- which adapter


@pytest.mark.parametrize(
    ("where", "role", "found", "adapter"),
    [
        ("", None, "policy", "ppo"),
        ("", "policy", "policy", "ppo"),
        ("", "sft", "sft", "sft"),
        ("", "reward", "reward", "reward"),
        ("", "value", "value", "ppo/value"),
        ("", "ema", "ema", "ppo/ema"),
        ("sft", None, "sft", "sft"),
        ("reward", None, "reward", "reward"),
        ("ppo", None, "policy", "ppo"),
        ("ppo", "value", "value", "ppo/value"),
    ],
)
def test_every_role_is_found(place: Path, where: str, role: str | None, found: str, adapter: str) -> None:
    source = find(place / "run" / where, role)
    assert (source.role, source.adapter) == (found, place / "run" / adapter)
    assert source.run == place / "run" / adapter.split("/")[0] and source.name == f"run/{found}"
    assert source.head == (source.adapter if found in ("reward", "value") else None)
    # Of its own files alone, by their own hashes.
    folder = place / "run" / adapter
    assert set(source.files.values()) >= {sha256_of(str(folder / WEIGHTS_FILE))}
    assert set(source.files.values()) == {sha256_of(str(path)) for path in folder.glob("*.safetensors")}


def test_a_value_head_on_the_policy(tmp_path: Path) -> None:
    run = write_run(tmp_path, value="shared")
    source = find(run, "value")
    assert (source.adapter, source.head) == (run / "ppo", run / "ppo" / "value")
    assert not (run / "ppo" / "value" / WEIGHTS_FILE).exists()
    assert {WEIGHTS_FILE, "value/head.safetensors"} <= set(source.files)
    out = export(run, Wish("reward"), role="value", out=tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=0)
    offset = json.loads((out / "rlhf_kit_reward.json").read_text())["score_offset"]
    scores = logits_of(PeftModel.from_pretrained(plain, str(out)))[:, 0] + offset
    policy = PeftModel.from_pretrained(base_of(tmp_path / "base"), str(run / "ppo"))
    with torch.no_grad():
        states = policy(input_ids=IDS, output_hidden_states=True).hidden_states[-1][:, -1]
    head = load_file(run / "ppo" / "value" / HEAD_FILE)
    expected = (states @ head["linear.weight"][0] + head["linear.bias"] - head["mean"]) / head["std"]
    assert (expected[0] - expected[1]).abs() > 0.01 and torch.allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("where", "role", "error", "said"),
    [
        ("gone", None, CheckpointError, "gone: no finished ppo or sft stage in it; name the output_dir of a run"),
        ("ppo", "sft", ExportError, "ppo: is a finished ppo stage; the sft adapter is of the sft stage"),
        ("sft", "ema", ExportError, "sft: is a finished sft stage; the ema adapter is of the ppo stage"),
    ],
)
def test_what_is_not_there(run: Path, where: str, role: str | None, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=f"^{run / where}".removesuffix(where) + said):
        find(run / where, role)


def test_what_is_there_is_named(run: Path) -> None:
    shutil.rmtree(run / "ppo")
    assert find(run).role == "sft", "the last policy of a run without PPO"
    with pytest.raises(
        CheckpointError, match="no finished ppo stage in it; there is sft, reward: name it with --adapt"
    ):
        find(run, "ema")
    shutil.rmtree(run / "sft")
    with pytest.raises(CheckpointError, match="no finished ppo or sft stage in it; there is reward: name it with --ad"):
        find(run)


@pytest.mark.parametrize(("role", "lost"), [("ema", "ema"), ("value", "value"), ("value", "value/head.safetensors")])
def test_a_role_that_the_run_did_not_have(run: Path, role: str, lost: str) -> None:
    path = run / "ppo" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    rehash(run / "ppo")
    with pytest.raises(ExportError, match=f"ppo: this run has no {role} adapter"):
        find(run, role)


def test_a_damaged_stage_and_one_that_trains_nothing(run: Path) -> None:
    weights = run / "ppo" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="changed since the stage finished"):
        find(run)
    write_json(run / "sft" / MANIFEST, json.loads((run / "sft" / MANIFEST).read_text()) | {"stage": "evaluation"})
    with pytest.raises(CheckpointError, match="is an evaluation step, not a stage that has trained an adapter"):
        find(run / "sft")


def test_the_base_is_as_it_was_in_the_training(run: Path) -> None:
    for stage in ("ppo", "reward"):
        manifest = json.loads((run / stage / MANIFEST).read_text())
        manifest["base"]["dtype"] = "bfloat16"
        manifest["recipe"]["model"] |= {"dtype": "auto", "attn_implementation": "flash_attention_2"}
        manifest["recipe"]["reward"]["model"] = {"name_or_path": "someone/larger"}
        manifest["recipe"]["ppo"]["value"] = "model" if stage == "ppo" else "adapter"
        write_json(run / stage / MANIFEST, manifest)
    policy, reward, value = (find(run, role).model for role in ("policy", "reward", "value"))
    assert (policy.dtype, policy.attn_implementation) == ("bfloat16", None)
    assert reward.name_or_path == value.name_or_path == "someone/larger" != policy.name_or_path


# -------------------------------------------------------------------- all of it or nothing


def times(directory: Path) -> dict[str, int]:
    return {name: (directory / name).stat().st_mtime_ns for name in left_in(directory)}


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_base(model: Any) -> None:
        raise AssertionError("nothing is to be loaded")

    for module in (trained, reward):
        monkeypatch.setattr(module, "load_base", load_base)


def test_what_the_manifest_says(run: Path) -> None:
    out = export(run, Wish(positions=300))
    assert out == run / "export-adapter"
    manifest, stage = read_manifest(out), read_manifest(run / "ppo")
    assert (manifest.stage, manifest.parents) == ("export", {"ppo": "../ppo"})
    assert (manifest.base, manifest.recipe) == (stage.base, stage.recipe)
    assert manifest.files == {WEIGHTS_FILE: sha256_of(str(out / WEIGHTS_FILE))} and manifest.metrics["positions"] >= 300
    assert manifest.inputs["adapter"] == {name: stage.files[name] for name in (WEIGHTS_FILE, "probe.safetensors")}
    assert manifest.seconds > 0 and manifest.finished and manifest.versions["peft"] == version("peft")


def test_the_default_directory_is_named_after_kind_and_role(run: Path) -> None:
    assert export(run, Wish(), role="sft") == run / "export-adapter-sft"
    assert export(run, Wish("merged")) == run / "export-merged"
    assert export(run, Wish("reward")) == run / "export-reward"
    assert read_manifest(run / "export-reward").inputs["role"] == "reward"


def test_elsewhere_there_is_no_parent(place: Path, tmp_path: Path) -> None:
    out = export(place / "run", Wish(), out=tmp_path / "some" / "where")
    assert read_manifest(out).parents == {} and left_in(tmp_path / "some")[0] == "where"


def test_the_same_again_does_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = export(run, Wish("merged"))
    before = times(run)
    refuse_to_load(monkeypatch)
    caplog.clear()  # of the first one, where a test before has switched the log on
    with caplog.at_level(logging.INFO, "rlhf_kit"):
        assert export(run, Wish("merged")) == out
        assert export(run / "ppo", Wish("merged"), role="policy", out=out) == out
    assert times(run) == before
    assert [record.message for record in caplog.records] == [f"{out}: exported and verified already"] * 2


@pytest.mark.parametrize(
    ("wish", "role", "said"),
    [
        (Wish("merged"), None, r'kind: "adapter" -> "merged"'),
        (Wish(positions=257), None, "positions: 256 -> 257"),
        (Wish(mixture=Mixture((Path("../sft"),), (0.5, 0.5))), None, "mixture: null -> "),
        (Wish(), "ema", r"adapter\.adapter_model\.safetensors: "),
    ],
)
def test_another_wish_into_the_same_directory(
    run: Path, wish: Wish, role: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run / "ppo")
    out = export(run, Wish(), out=run / "out")
    before = times(run)
    refuse_to_load(monkeypatch)
    with pytest.raises(CheckpointError, match=rf"out: exists already, of something else \({said}.*; name a new one"):
        export(run, wish, role=role, out=out)
    assert times(run) == before


def test_an_adapter_that_was_trained_anew(run: Path) -> None:
    out = export(run, Wish(), role="sft")
    change(run / "sft" / WEIGHTS_FILE, lambda name, w: 1.5 * w)
    rehash(run / "sft")
    with pytest.raises(CheckpointError, match=r"of something else \(adapter\.adapter_model\.safetensors: "):
        export(run, Wish(), role="sft")
    shutil.rmtree(out)
    export(run, Wish(), role="sft")


def test_an_export_that_was_damaged_since(run: Path) -> None:
    out = export(run, Wish())
    (out / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="changed since the stage finished"):
        export(run, Wish())


def test_a_directory_of_somebody_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="mine: exists already; name a new directory with --out"):
        export(run, Wish(), out=tmp_path / "mine")
    assert left_in(tmp_path / "mine") == ["notes.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["own_answers", "write_adapter", "policy_card", "finish"])
def test_whatever_fails_leaves_nothing(
    run: Path, error: type[BaseException], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    before = left_in(run)
    monkeypatch.setattr(exporting if where in vars(exporting) else adapter, where, fail)
    with pytest.raises(error):
        export(run, Wish())
    assert left_in(run) == before


@pytest.mark.parametrize("wish", [Wish(), Wish("merged")])
def test_what_a_killed_attempt_has_left_is_cleared(run: Path, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Source, wish: Wish, out: Path) -> None:
        (out / ".scratch").mkdir()
        (out / "model-00001-of-00002.safetensors").write_bytes(b"half")
        (out / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exporting, "write", killed)
        patch.setattr(exporting.shutil, "rmtree", lambda *arguments, **options: None)  # as when it had no time
        export(run, Wish(), out=run / "out")
    assert (run / ".out.partial" / ".scratch").is_dir()
    export(run, wish, out=run / "out")
    assert not (run / ".out.partial").exists()
    assert "model-00001-of-00002.safetensors" not in left_in(run / "out") and ".scratch" not in left_in(run / "out")
    assert (run / "out" / "adapter_model.safetensors").exists() == (wish.kind == "adapter")


# -------------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("wish", "role", "said"),
    [
        (Wish("adapter", "bfloat16"), None, "^--dtype is of a whole model; --to adapter writes float32"),
        (Wish("gguf-adapter", "f16"), None, "^--dtype is of a whole model; --to gguf-adapter writes float32"),
        (Wish("merged", "f16"), None, "^--dtype f16: --to merged writes float32, bfloat16, float16$"),
        (Wish("merged", "q8_0"), None, "^--dtype q8_0: --to merged writes"),
        (Wish("gguf", "float32"), None, "^--dtype float32: --to gguf writes f16, bf16, q8_0$"),
        (Wish("reward"), "policy", "^run/policy: gives texts, not scores; only reward and value have a head$"),
        (Wish("reward"), "sft", "^run/sft: gives texts, not scores"),
        (Wish("gguf"), "reward", "^--to gguf: llama.cpp has no place for the head of a reward model; --to reward$"),
        (Wish("gguf-adapter"), "value", "^--to gguf-adapter: llama.cpp has no place for the head of a value model"),
        (Wish("reward", "bfloat16"), None, "dtype is of a merged model; an adapter is written in float32"),
        (
            Wish("reward", "float16", merged=True),
            None,
            "a reward model is written in float32 or bfloat16, not in float",
        ),
        (Wish("merged", "q8_0"), "value", "a value model is written in float32 or bfloat16, not in q8_0"),
    ],
)
def test_it_is_refused_before_anything_is_loaded(
    run: Path, wish: Wish, role: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_load(monkeypatch)
    before = left_in(run)
    with pytest.raises(ExportError, match=said) as failure:
        export(run, wish, role=role)
    assert left_in(run) == before and "\n" not in str(failure.value)


def test_the_head_of_a_mixture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)
    mixture = Mixture((run / "sft",), (0.5, 0.5))
    with pytest.raises(ExportError, match="--merge-with: the head of a value model belongs to one adapter"):
        export(run, Wish("reward", mixture=mixture), role="value")


# -------------------------------------------------------------------- the other kinds


@pytest.mark.parametrize("kind", ["adapter", "merged", "reward"])
def test_a_role_with_a_head(place: Path, tmp_path: Path, kind: str) -> None:
    out = export(place / "run", Wish(kind), role="value", out=tmp_path / "out")
    assert (out / "config.json").is_file() == (kind == "merged")
    assert read_manifest(out).inputs["role"] == "value"
    assert read_manifest(out).metrics["merged"] == (kind == "merged")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_model_on_gemma_in_bfloat16(dtype: str, tmp_path: Path) -> None:
    """Its embeddings are multiplied with a number that is another one in bfloat16; loaded in float32 it is exact."""
    base = write_base(tmp_path / "base", "gemma2", dtype=torch.bfloat16)
    run = write_run(tmp_path, base=base, dtype="bfloat16")
    metrics = read_manifest(export(run, Wish("reward", dtype, merged=True))).metrics
    assert metrics["dtype"] == dtype and metrics["max_difference"] < metrics["limit"]


@pytest.mark.parametrize(
    ("dtype", "outtype"), [(None, "f16"), ("float16", "f16"), ("bfloat16", "bf16"), ("q8_0", "q8_0"), ("bf16", "bf16")]
)
def test_gguf_files_are_in_the_manifest(
    place: Path, tmp_path: Path, dtype: str | None, outtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_gguf(source: Source, out: Path, *, outtype: str, **options: Any) -> dict[str, Any]:
        (out / f"model-{outtype}.gguf").write_bytes(b"GGUF")
        assert options == {"mixture": None, "positions": 256}
        return {"positions": 300, "dtype": outtype, "loader": "llama.cpp"}

    monkeypatch.setattr(exporting.gguf_model, "export_gguf", export_gguf)
    out = export(place / "run", Wish("gguf", dtype), out=tmp_path / "out")
    name = f"model-{outtype}.gguf"
    assert read_manifest(out).files == {name: hashlib.sha256(b"GGUF").hexdigest()}
    assert f"FROM ./{name}" in (out / "Modelfile").read_text() and name in (out / "README.md").read_text()
    (out / name).write_bytes(b"GGUG")
    with pytest.raises(CheckpointError, match="changed since"):
        export(place / "run", Wish("gguf", dtype), out=out)
