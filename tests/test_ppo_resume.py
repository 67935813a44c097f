"""A PPO run that is stopped, killed, terminated or runs out of disk goes on where it was, and ends bit for bit as if it
had not been: the oracle is the same run undisturbed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ppo_trainers
import pytest
import torch
from backbones import stir, tiny_base, tiny_directory
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerCallback,
)

from rlhf_kit import CheckpointError, PPOTrainer, RlhfKitError
from rlhf_kit.checkpoint import MetricsLog, by_step, is_whole, read_json, read_metrics
from rlhf_kit.ppo import checkpoints

UPDATES = 6
SETTINGS: dict[str, Any] = {
    "total_episodes": 8 * UPDATES,
    "batch_size": 8,
    "mini_batch_size": 4,
    "per_device_train_batch_size": 2,
    "num_ppo_epochs": 2,
    "num_generations": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "ptx_coef": 0.5,
    "ptx_batch_size": 3,
    "ema_decay": 0.9,
    "kl_controller": "adaptive",
    "kl_target": 0.2,
    "kl_horizon": 100,
    "reward_normalization": "running",
    "scale_rewards": "running",
    "eval_steps": 2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
}
TEXT = [{"input_ids": list(range(5 + n, 12 + 2 * n))} for n in range(5)]
HELD_OUT = [{"input_ids": [9, 8, 7 + n]} for n in range(3)]


def length(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def noise(completions: list[str], **columns: Any) -> list[float]:
    """Depends on every global generator that a checkpoint must hold."""
    return [random.random() + float(np.random.rand()) + float(torch.rand(())) for _ in completions]


def make(
    directory: Path,
    value: str = "adapter",
    *,
    junk: bool = False,
    reward_funcs: Any = ("reward", length),
    callbacks: Any = None,
    **fields: Any,
) -> PPOTrainer:
    """A trainer with everything that a run can carry from one update to the next.

    Args:
        junk: what learns starts from something else, so that what it ends as can come from a checkpoint only.
    """
    settings = {**SETTINGS, "value": "adapter" if value == "models" else value, **fields}
    model: Any = ppo_trainers.tiny_roles(value == "shared")
    options: dict[str, Any] = {}
    if value == "models":
        reward_funcs, model = length, tiny_base()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            options["value_model"] = AutoModelForSequenceClassification.from_pretrained(
                tiny_directory(), num_labels=1, dtype=torch.float32
            )
        options["processing_class"] = AutoTokenizer.from_pretrained(tiny_directory())
    made = PPOTrainer(
        model=model,
        reward_funcs=list(reward_funcs) if isinstance(reward_funcs, tuple) else reward_funcs,
        args=ppo_trainers.config(directory, **settings),
        train_dataset=ppo_trainers.ROWS,
        eval_dataset=HELD_OUT if settings["eval_steps"] else None,
        ptx_dataset=TEXT,
        callbacks=callbacks,
        **options,
    )
    if junk:
        for seed, parameter in enumerate(p for p in made.roles.parameters() if p.requires_grad):
            generator = torch.Generator().manual_seed(seed)
            parameter.data = torch.randn(parameter.shape, generator=generator)
        torch.manual_seed(12345)
        np.random.seed(12345)
        random.seed(12345)
    return made


def entries(made: PPOTrainer) -> list[dict[str, Any]]:
    """What was logged, without wall-clock figures and the summary of one call of `train`."""
    timed = ("seconds_", "eval_runtime", "total_flos")
    return [
        {name: value for name, value in entry.items() if not name.startswith(timed)}
        for entry in made.state.log_history
        if "train_runtime" not in entry
    ]


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from flat(inner, f"{prefix}.{place}")
    else:
        yield prefix, value


def everything(made: PPOTrainer) -> dict[str, Any]:
    """All that a run ends with."""
    return dict(
        flat(
            {
                "weights": dict(made.roles.named_parameters()),
                "average": [] if made.average is None else made.average.values,
                "optimizer": made.optimizer.state_dict(),
                "scheduler": {n: v for n, v in made.lr_scheduler.state_dict().items() if n != "lr_lambdas"},
                "kl_coef": made.kl.coef,
                "rewards": made.experience.rewards.state(),
                "logged": entries(made),
                "torch": torch.get_rng_state(),
                "random": random.getstate(),
                "numpy": np.random.get_state()[1].tolist(),  # type: ignore[union-attr]
            }
        )
    )


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every tensor and number exactly."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The undisturbed run of each kind, made once: its directory, with a checkpoint of every update, and its end."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(value: str) -> tuple[Path, dict[str, Any]]:
        if value not in made:
            directory = tmp_path_factory.mktemp(value)
            trainer = make(directory, value)
            trainer.train()
            assert trainer.state.global_step == UPDATES
            made[value] = directory, everything(trainer)
        return made[value]

    return run


def begun(source: Path, directory: Path, *steps: int) -> Path:
    """A directory with some checkpoints of a run."""
    for step in steps:
        shutil.copytree(source / f"checkpoint-{step}", directory / f"checkpoint-{step}")
    return directory


# -------------------------------------------------------------------- going on


def test_the_run_that_the_others_are_compared_with_carries_all_that_there_is(
    whole: Callable[[str], tuple[Path, dict[str, Any]]],
) -> None:
    directory, end = whole("adapter")
    states = [read_json(directory / f"checkpoint-{step}" / checkpoints.STATE) for step in (1, 2, 3)]
    assert len({state["kl_coef"] for state in states}) == 3
    assert states[0]["rewards"]["total"]["count"] == 8.0 and states[2]["rewards"]["source.length"]["count"] == 24.0
    assert [len(state["unlogged"]["figures"].get("kl", [])) for state in states] == [1, 0, 1]
    logged = {name.split(".", 3)[-1] for name in end if name.startswith(".logged")}
    assert {"ptx_loss", "eval_score", "eval_win_rate", "rewards/length", "policy_grad_norm"} <= logged
    assert any(name.startswith(".average") for name in end)


@pytest.mark.parametrize(
    ("value", "step"), [("adapter", 2), ("adapter", 3), ("adapter", 5), ("shared", 3), ("models", 4)]
)
def test_a_run_goes_on_bit_for_bit(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path, value: str, step: int
) -> None:
    source, end = whole(value)
    again = make(begun(source, tmp_path, step), value, junk=True)
    again.train(resume_from_checkpoint=True)
    check_same(everything(again), end)


def test_random_numbers_of_a_reward_function_go_on(tmp_path: Path) -> None:
    fields = {"reward_funcs": noise, "eval_steps": None, "total_episodes": 24}
    first = make(tmp_path / "a", **fields)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    first.train()
    again = make(begun(tmp_path / "a", tmp_path / "b", 2), junk=True, **fields)
    again.train(resume_from_checkpoint=True)
    check_same(everything(again), everything(first))


def test_a_directory_that_is_named_is_gone_on_from_as_text_and_as_path(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    source, end = whole("adapter")
    for kind in (str, Path):
        again = make(tmp_path / kind.__name__, junk=True, save_strategy="no")
        again.train(resume_from_checkpoint=kind(source / "checkpoint-5"))
        check_same(everything(again), end)


def test_a_finished_run_started_again_does_nothing(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    source, end = whole("adapter")
    again = make(begun(source, tmp_path, 5, 6), junk=True)
    again.train(resume_from_checkpoint=True)
    weights = {name: value for name, value in everything(again).items() if name.startswith((".weights", ".average"))}
    check_same(weights, {name: value for name, value in end.items() if name in weights})
    assert again.state.global_step == UPDATES


def test_without_a_checkpoint_the_run_begins(tmp_path: Path) -> None:
    made = make(tmp_path, total_episodes=8, eval_steps=None)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 1


def test_the_metrics_file_of_a_resumed_run_is_that_of_an_undisturbed_one(tmp_path: Path) -> None:
    def run(directory: Path, **options: Any) -> None:
        made = make(directory, callbacks=[MetricsLog("ppo", directory)], eval_on_start=True, **options)
        made.train(resume_from_checkpoint=True)

    run(tmp_path / "a", total_episodes=24)
    begun(tmp_path / "a", tmp_path / "b", 1)
    # Killed when it had logged the second update, in the middle of a line.
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:9])
    run(tmp_path / "b", total_episodes=24, junk=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text(lines[0])  # killed before the first checkpoint
    run(tmp_path / "c", total_episodes=24)
    expected = read_metrics(tmp_path / "a")
    assert [entry["step"] for entry in expected] == [0, 2, 2, 3]  # evaluated; logged and evaluated; evaluated
    for name in ("b", "c"):
        found = read_metrics(tmp_path / name)
        for entry in (*found, *expected):
            for timed in [n for n in entry if n.startswith("seconds_") or n.endswith("runtime")]:
                del entry[timed]
        assert found == expected


def test_the_average_of_bfloat16_weights_is_kept_exactly(tmp_path: Path) -> None:
    """Its weights round it where they are saved for others; the average itself must not be."""
    from rlhf_kit.ppo.roles import MovingAverage, Role

    backbone = ppo_trainers.tiny_roles()
    backbone.base.to(torch.bfloat16)
    average = MovingAverage(Role(backbone, "policy"), 0.992)
    stir(backbone, "policy", 5)
    average.update()
    before = [value.clone() for value in average.values]
    weights = [parameter.detach().clone() for parameter in backbone.adapter_parameters("policy")]
    assert any(not torch.equal(value, value.bfloat16().float()) for value in before)
    average.save(tmp_path / "ema")
    checkpoints.write_state(tmp_path, {}, average.values)
    assert all(torch.equal(a, b) for a, b in zip(average.values, before, strict=True))
    average.update()
    average.restore(checkpoints.read_average(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(average.values, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(backbone.adapter_parameters("policy"), weights, strict=True))


# -------------------------------------------------------------------- callbacks, limits


class Recorder(TrainerCallback):  # type: ignore[misc]
    """A user's callback."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.saved: list[tuple[int, bool]] = []
        self.ended = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.stop_after

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.saved.append((state.global_step, is_whole(directory, sealed=True)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended += 1


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_a_users_callback_sees_whole_checkpoints_and_may_stop(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    seen, seen_again = Recorder(stop_after=3), Recorder()
    made = make(tmp_path, callbacks=[seen], save_total_limit=2)
    made.train()
    assert made.state.global_step == 3 and seen.ended == 1
    assert seen.saved == [(1, True), (2, True), (3, True)]
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    again = make(tmp_path, callbacks=[seen_again], save_total_limit=2, junk=True)
    again.train(resume_from_checkpoint=True)
    assert seen_again.saved == [(4, True), (5, True), (6, True)]
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-6"]
    check_same(everything(again), whole("adapter")[1])


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=10)],
        eval_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl",
        greater_is_better=False,  # the policy moves away from its reference, so an early one is the best
    )
    made.train()
    figures = {e["step"]: e["eval_kl"] for e in made.state.log_history if "eval_kl" in e}
    best = min(figures, key=lambda step: figures[step])
    assert best < UPDATES, "nothing is shown where the last one is the best"
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert f"checkpoint-{best}" in names(tmp_path)
    expected = made.held_out()[0]["kl"]  # type: ignore[misc]
    assert expected == figures[best]


def test_checkpoints_of_a_run_that_was_gone_back_on_go_first(tmp_path: Path) -> None:
    for step in (2, 3, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-mine").mkdir()
    checkpoints.keep_last(tmp_path, 2, tmp_path / "checkpoint-4")
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4", "checkpoint-mine"]
    checkpoints.keep_last(tmp_path, None, tmp_path / "checkpoint-4")
    assert len(names(tmp_path)) == 3
    checkpoints.keep_last(tmp_path, 1, tmp_path / "checkpoint-4", best=str(tmp_path / "checkpoint-3"))
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4", "checkpoint-mine"]


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_none_half_there(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(whole("adapter")[0], tmp_path, 1, 2, 3)

    def killed(path: Path, **options: Any) -> None:
        for file in sorted(path.rglob("*.safetensors")):
            file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        checkpoints.keep_last(tmp_path, 2, tmp_path / "checkpoint-3")
    assert [name for name in names(tmp_path) if name.startswith("checkpoint")] == ["checkpoint-2", "checkpoint-3"]
    assert all(is_whole(path, sealed=True) for path in by_step(tmp_path))
    checkpoints.tidy(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


# -------------------------------------------------------------------- damage

FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "checksums.json",
    "ema/adapter_config.json",
    "ema/adapter_model.safetensors",
    "ema_state.safetensors",
    "optimizer.pt",
    "ppo_state.json",
    "rng_state.pth",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "value/adapter_config.json",
    "value/adapter_model.safetensors",
    "value/head.safetensors",
]


def test_these_are_all_files_of_a_checkpoint(whole: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    directory = whole("adapter")[0] / "checkpoint-2"
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()) == FILES


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_is_used(
    whole: Callable[[str], tuple[Path, dict[str, Any]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    how: str,
) -> None:
    begun(whole("adapter")[0], tmp_path, 2, 3)
    damage(tmp_path / "checkpoint-3" / name, how)
    with caplog.at_level("WARNING", "rlhf_kit"):
        assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-2"
    assert caplog.messages == [f"ppo: {tmp_path / 'checkpoint-3'} is damaged; checkpoint-2 is used instead"]
    with pytest.raises(CheckpointError, match="checkpoint-3: missing, damaged or incomplete"):
        checkpoints.start_of(tmp_path, tmp_path / "checkpoint-3")


def test_a_run_goes_on_from_the_one_before_a_damaged_checkpoint(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    source, end = whole("adapter")
    begun(source, tmp_path, 2, 3, 4)
    damage(tmp_path / "checkpoint-3" / "rng_state.pth", "removed")
    damage(tmp_path / "checkpoint-4" / "optimizer.pt", "cut")
    again = make(tmp_path, junk=True, save_total_limit=3)
    again.train(resume_from_checkpoint=True)
    check_same(everything(again), end)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    assert all(is_whole(tmp_path / name, sealed=True) for name in names(tmp_path))


def test_a_damaged_checkpoint_that_was_named_is_refused(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    begun(whole("adapter")[0], tmp_path, 2, 3)
    damage(tmp_path / "checkpoint-3" / "value" / "head.safetensors", "cut")
    made = make(tmp_path)
    for name in ("checkpoint-3", "checkpoint-9"):
        for given in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(CheckpointError, match=f"{name}: missing, damaged or incomplete; go on from the one"):
                made.train(resume_from_checkpoint=given)


def test_where_all_are_damaged_the_run_begins_and_says_so(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(whole("adapter")[0], tmp_path, 2)
    damage(tmp_path / "checkpoint-2" / "scheduler.pt", "cut")
    with caplog.at_level("WARNING", "rlhf_kit"):
        assert checkpoints.last_whole(tmp_path) is None
    assert "checkpoint-2 is damaged, and there is none before it; the run starts from its beginning" in caplog.text


def test_a_checkpoint_of_a_run_with_other_settings_is_one_clear_line(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    source = whole("adapter")[0]
    with pytest.raises(CheckpointError, match=r"checkpoint-2: of a run with other rewards; .*source\.noise"):
        make(tmp_path, reward_funcs=("reward", noise)).train(resume_from_checkpoint=source / "checkpoint-2")
    made = make(tmp_path / "b", ema_decay=None, total_episodes=8, eval_steps=None)
    made.train()
    with pytest.raises(CheckpointError, match="no moving average to go on with"):
        make(tmp_path / "b").train(resume_from_checkpoint=tmp_path / "b" / "checkpoint-1")


def test_what_a_kill_leaves_of_a_save_is_put_right(tmp_path: Path) -> None:
    """Killed between the two renames of a checkpoint that replaces one of the same update."""
    staging = tmp_path / "_saving"
    (staging / "older" / "checkpoint-4").mkdir(parents=True)
    (staging / "older" / "checkpoint-4" / "kept").touch()
    (staging / "checkpoint-4").mkdir()
    checkpoints.tidy(tmp_path)
    assert names(tmp_path) == ["checkpoint-4"] and (tmp_path / "checkpoint-4" / "kept").is_file()


# -------------------------------------------------------------------- the disk is full


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_another_language(*args: Any, **kwargs: Any) -> None:
    raise Exception("No space left on device (os error 28)")


def full_in_torch(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def full_when_torch_closes(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 60672 vs 60564")


POINTS: dict[str, tuple[str, int, Callable[..., None]]] = {
    "adapter": ("rlhf_kit.models.backbone.save_file", 1, full),
    "value adapter": ("rlhf_kit.models.backbone.save_file", 2, full),
    "average": ("rlhf_kit.models.backbone.save_file", 3, full),
    "head": ("rlhf_kit.models.heads.save_file", 1, full),
    "tokenizer": ("transformers.PreTrainedTokenizerBase.save_pretrained", 1, full_in_another_language),
    "optimizer": ("torch.save", 1, full_in_torch),
    "scheduler": ("torch.save", 2, full_when_torch_closes),
    "random states": ("torch.save", 3, full),
    "trainer state": ("transformers.TrainerState.save_to_json", 1, full),
    "average, exactly": ("rlhf_kit.ppo.checkpoints.save_file", 1, full),
    "own state": ("os.fsync", 1, full),
    "seal, first file": ("os.fsync", 2, full),
    "seal, hashes": ("os.fsync", 1 + len(FILES), full),
    "rename": ("rlhf_kit.ppo.checkpoints._flush", 1, full),
}


def fail_at(patch: pytest.MonkeyPatch, target: str, call: int, failure: Callable[..., None]) -> None:
    """The call of that number to a function writes half of a file, where it is told one, and fails."""
    module, _, name = target.rpartition(".")
    owner = pytest.importorskip(module) if not module.rpartition(".")[2][0].isupper() else None
    if owner is None:
        parent, _, cls = module.rpartition(".")
        owner = getattr(pytest.importorskip(parent), cls)
    original, count = getattr(owner, name), 0

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            for given in args:
                if isinstance(given, Path) and given.suffix:
                    given.write_bytes(b"half")
            failure()
        return original(*args, **kwargs)

    patch.setattr(owner, name, sometimes)


@pytest.mark.parametrize("point", POINTS)
def test_a_full_disk_loses_nothing_that_is_saved(
    whole: Callable[[str], tuple[Path, dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    source, _ = whole("adapter")
    begun(source, tmp_path, 3, 4)
    made = make(tmp_path, save_total_limit=2, save_steps=5, eval_steps=None, num_ppo_epochs=1, ptx_coef=0.0)
    with monkeypatch.context() as patch:
        fail_at(patch, *POINTS[point])
        with pytest.raises(CheckpointError) as failure:
            made.train(resume_from_checkpoint=True)
    said = str(failure.value)
    assert said == (
        f"{tmp_path / 'checkpoint-5'}: could not be written (disk full); the checkpoints before it are kept. "
        "Make room, and the same command goes on from the last one"
    )
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"], "no staging is left"
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-4"


def test_after_a_full_disk_the_run_goes_on_bit_for_bit(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, end = whole("adapter")
    begun(source, tmp_path, 3, 4)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError):
        fail_at(patch, *POINTS["optimizer"])
        make(tmp_path, junk=True).train(resume_from_checkpoint=True)
    again = make(tmp_path, junk=True)
    again.train(resume_from_checkpoint=True)
    check_same(everything(again), end)


def test_a_bug_while_saving_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), checkpoints.staged(tmp_path, "checkpoint-1"):
        raise RuntimeError("a bug")
    assert names(tmp_path) == []


# -------------------------------------------------------------------- SIGTERM


def terminating(at: int, times: int = 1) -> Callable[..., list[float]]:
    """A reward function that sends SIGTERM to its own process in an update."""

    def length(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        if trainer_state.global_step == at and len(completions) == 8:  # not while it is evaluated
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
        return [float(len(text)) for text in completions]

    return length


@pytest.mark.parametrize(("at", "save_steps"), [(2, 1), (2, 100), (5, 100)])
def test_sigterm_finishes_and_saves_the_update_and_the_run_goes_on_bit_for_bit(
    whole: Callable[[str], tuple[Path, dict[str, Any]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    at: int,
    save_steps: int,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    made = make(tmp_path, reward_funcs=("reward", terminating(at)), save_steps=save_steps)
    with caplog.at_level("WARNING", "rlhf_kit"), pytest.raises(SystemExit) as ended:
        made.train()
    assert ended.value.code == 143
    assert f"ppo: terminated after update {at + 1} of 6, which is saved; the same command goes on" in caplog.messages
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoints.last_whole(tmp_path) == tmp_path / f"checkpoint-{at + 1}"
    again = make(tmp_path, junk=True)
    again.train(resume_from_checkpoint=True)
    end = whole("adapter")[1]
    found = everything(again)
    if at == 5:  # nothing was left to do: there is no optimiser state and no random number to compare
        end = {
            n: v for n, v in end.items() if n.startswith((".weights", ".average", ".kl_coef", ".rewards", ".logged"))
        }
        found = {name: found[name] for name in end}
    check_same(found, end)


class TerminateWhen(TrainerCallback):  # type: ignore[misc]
    """Sends SIGTERM after an update, when nothing more of it is to be done."""

    def __init__(self, event: str, step: int) -> None:
        self.event, self.step = event, step

    def _send(self, event: str, state: Any) -> None:
        if (event, state.global_step) == (self.event, self.step):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._send("evaluate", state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._send("save", state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._send("end", state)


@pytest.mark.parametrize(
    ("event", "step", "fields"),
    [
        ("evaluate", 2, {"save_steps": 100}),
        ("save", 3, {}),
        ("end", 1, {"save_strategy": "no", "total_episodes": 8}),
        ("end", 1, {"save_steps": 100, "total_episodes": 8}),
    ],
)
def test_sigterm_between_two_updates_begins_no_other(
    whole: Callable[[str], tuple[Path, dict[str, Any]]], tmp_path: Path, event: str, step: int, fields: dict[str, Any]
) -> None:
    made = make(tmp_path, callbacks=[TerminateWhen(event, step)], **fields)
    with pytest.raises(SystemExit) as ended:
        made.train()
    assert ended.value.code == 143 and made.state.global_step == step
    assert checkpoints.last_whole(tmp_path) == tmp_path / f"checkpoint-{step}"
    if event != "end":
        again = make(tmp_path, junk=True)
        again.train(resume_from_checkpoint=True)
        check_same(everything(again), whole("adapter")[1])


def test_a_second_sigterm_does_what_it_did_before(tmp_path: Path) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        made = make(tmp_path, reward_funcs=("reward", terminating(0, times=2)), eval_steps=None)
        with pytest.raises(SystemExit):
            made.train()
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_limit_that_is_reached_is_saved_before_the_run_stops(tmp_path: Path) -> None:
    made = make(tmp_path, stop_on={"kl": -1000.0}, save_steps=100, eval_steps=None)
    with pytest.raises(RlhfKitError, match=r"ppo: stopped after update 1 of 6 by ppo\.stop_on"):
        made.train()
    assert checkpoints.last_whole(tmp_path) == tmp_path / "checkpoint-1"
