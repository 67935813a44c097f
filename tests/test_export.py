"""Which adapter of a run is exported, and what becomes of the directory: all of it or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from whole_run import IDS, base_of, logits_of, rehash, write_run

from rlhf_kit.checkpoint import MANIFEST, write_json
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.export.source import find
from rlhf_kit.files import sha256_of
from rlhf_kit.models.backbone import WEIGHTS_FILE
from rlhf_kit.models.heads import HEAD_FILE

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` on `base`, both only read."""
    place = tmp_path_factory.mktemp("place")
    write_run(place)
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


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
