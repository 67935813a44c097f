"""What leaves the trainer: uploads to the Hub, with the Hub's functions replaced, and figures for `report_to`."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from backbones import lora, tiny_base, tiny_directory
from huggingface_hub import ModelCard, RepoUrl
from peft import PeftModel
from ppo_trainers import ROWS, config, tiny_roles
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_kit import PPOTrainer
from rlhf_kit.checkpoint import is_whole
from rlhf_kit.models import ScalarHead

HUB = {"push_to_hub": True, "hub_model_id": "someone/policy", "hub_token": "secret"}


class Job:
    """An upload in the background that is done at once."""

    def is_done(self) -> bool:
        return True

    def done(self) -> bool:
        return True


class Hub:
    """Stands for `HfApi`: keeps a copy of what an upload would have taken, as `upload_folder` chooses it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made: list[tuple[str, str | None]] = []
        self.uploads: list[tuple[str, Path]] = []

    def create_repo(self, name: str, *, token: str | None, private: bool | None, exist_ok: bool) -> RepoUrl:
        self.made.append((name, token))
        return RepoUrl(f"http://127.0.0.1/{name}", endpoint="http://127.0.0.1")

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str,
        commit_message: str,
        ignore_patterns: list[str] | None = None,
        path_in_repo: str | None = None,
        **others: Any,
    ) -> Job:
        assert repo_id == "someone/policy" and others["token"] == "secret"
        copy = self.directory / str(len(self.uploads))
        for path in Path(folder_path).rglob("*"):
            name = str(path.relative_to(folder_path))
            if path.is_file() and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns or ()):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy / name)
        self.uploads.append((commit_message, copy))
        return Job()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: made)
    return made


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


POLICY = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
VALUE = {"value/adapter_config.json", "value/adapter_model.safetensors", "value/head.safetensors"}
AVERAGE = {"ema/adapter_config.json", "ema/adapter_model.safetensors"}


def test_a_policy_is_uploaded_with_its_card_its_tokenizer_and_its_value_model(tmp_path: Path, hub: Hub) -> None:
    args = config(tmp_path / "out", **HUB, save_strategy="steps", save_steps=1, ema_decay=0.9, kl_coef=0.07)
    made = PPOTrainer(model=tiny_roles(), reward_funcs="reward", args=args, train_dataset=ROWS)
    assert hub.made == [("someone/policy", "secret")]
    made.train()
    made.push_to_hub(tags="cats", dataset_name="someone/prompts")
    messages = [message for message, _ in hub.uploads]
    assert messages == ["Training in progress, step 1", "Training in progress, step 2", "End of training"]
    for _, copy in hub.uploads:
        assert files(copy) >= POLICY | VALUE | AVERAGE
        assert not [name for name in files(copy) if "checkpoint" in name or "saving" in name or "optimizer" in name]
    last = hub.uploads[-1][1]
    assert b"secret" not in (last / "README.md").read_bytes()

    card = ModelCard.load(last / "README.md")
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-generation"
    assert card.data.base_model == "someone/tiny-llama" and card.data.base_model_relation == "adapter"
    assert {"ppo", "lora", "cats"} <= set(card.data.tags) and card.data.datasets == "someone/prompts"
    assert "# policy\n" in card.text and "| `kl_coef` | `0.07` |" in card.text and "| `eos_rate` | `" in card.text

    # What was uploaded is what was trained: the policy by plain PEFT, the head by its own reader.
    again = PeftModel.from_pretrained(tiny_base(), last).eval()
    backbone, ids = made.roles.policy.backbone, torch.tensor([[5, 6, 7]])
    with torch.no_grad(), backbone.role("policy"):
        torch.testing.assert_close(again(input_ids=ids).logits, backbone.base(input_ids=ids).logits)
    assert torch.equal(ScalarHead.load(last / "value", 32).linear.weight, made.roles.head.linear.weight)
    assert AutoTokenizer.from_pretrained(last).eos_token == backbone.tokenizer.eos_token


def test_a_card_may_be_written_twice_and_checkpoints_may_go_along(tmp_path: Path, hub: Hub) -> None:
    args = config(tmp_path / "out", **HUB, hub_strategy="checkpoint", save_strategy="steps", save_steps=2)
    made = PPOTrainer(model=tiny_roles(), reward_funcs="reward", args=args, train_dataset=ROWS)
    made.train()
    assert [message for message, _ in hub.uploads] == [
        "Training in progress, step 2",
        "Training in progress, step 2, checkpoint",
    ]
    assert is_whole(hub.uploads[1][1], sealed=True)
    for _ in range(2):  # transformers' own fails here where PEFT has left a card
        made.create_model_card()
    assert "# out\n" in (tmp_path / "out" / "README.md").read_text()


def test_only_at_the_end_where_it_is_wished(tmp_path: Path, hub: Hub) -> None:
    args = config(tmp_path / "out", **HUB, hub_strategy="end", save_strategy="steps", save_steps=1)
    made = PPOTrainer(
        model=str(tiny_directory()), reward_funcs=length, args=args, train_dataset=ROWS, peft_config=lora()
    )
    made.train()
    assert hub.uploads == []
    made.push_to_hub("done")
    assert files(hub.uploads[0][1]) >= POLICY | VALUE | {"README.md"}
    assert ModelCard.load(hub.uploads[0][1] / "README.md").data.library_name == "peft"


def test_a_whole_model_is_uploaded_as_one(tmp_path: Path, hub: Hub) -> None:
    args = config(tmp_path / "out", **HUB, value="shared")
    made = PPOTrainer(model=str(tiny_directory()), reward_funcs=length, args=args, train_dataset=ROWS)
    made.train()
    made.push_to_hub(license="apache-2.0", language="en")
    (copy,) = [copy for _, copy in hub.uploads]
    card = ModelCard.load(copy / "README.md")
    assert (card.data.library_name, card.data.license, card.data.language) == ("transformers", "apache-2.0", "en")
    again = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    trained = made.roles.policy.backbone.base.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in again.state_dict().items())
    assert files(copy / "value") == {"head.safetensors"}


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


# -------------------------------------------------------------------- report_to


def test_tensorboard_gets_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = config(tmp_path, report_to="tensorboard", logging_steps=1, eval_steps=2)
    made = PPOTrainer(
        model=tiny_roles(), reward_funcs=["reward", length], args=args, train_dataset=ROWS, eval_dataset=ROWS[:2]
    )
    made.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    history = [entry for entry in made.state.log_history if "kl" in entry]
    for name in ("kl", "score", "rewards/length", "policy_loss", "value_grad_norm", "eos_rate"):
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert found == [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in history] and len(found) == 2
    evaluated = next(entry for entry in made.state.log_history if "eval_win_rate" in entry)
    (event,) = events.Scalars("eval/win_rate")
    assert (event.step, event.value) == (2, pytest.approx(evaluated["eval_win_rate"]))


@pytest.mark.parametrize(("name", "available"), [("wandb", "is_wandb_available"), ("trackio", "is_trackio_available")])
def test_a_library_that_is_not_there_is_named_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, available: str
) -> None:
    from transformers.integrations import integration_utils

    missing: Callable[[], bool] = lambda: False  # noqa: E731 - also where it is installed
    monkeypatch.setattr(integration_utils, available, missing)
    with pytest.raises(RuntimeError, match=f"requires {name} to be installed"):
        PPOTrainer(model=tiny_roles(), reward_funcs="reward", args=config(tmp_path, report_to=name), train_dataset=ROWS)
