"""What several processes of a run agree on, as far as one process can show it; tests/slow/test_launched.py has two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import BatchSamplerShard
from backbones import lora, stir, tiny_backbone
from ppo_trainers import trainer
from torch.utils.data import BatchSampler, DataLoader

from rlhf_kit import launch
from rlhf_kit.checkpoint import LAUNCH, write_json
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.process import line_for
from rlhf_kit.ranking import pairs_of, ranking_loss, rating_loss
from rlhf_kit.recipe_ppo import PpoSection, Sizes, mistakes
from rlhf_kit.stages import arguments
from rlhf_kit.stages.filling import FilledUp

FILES = Path(__file__).parents[1] / "recipes" / "accelerate"


# ---------------------------------------------------------------- how it was launched


def test_accelerates_launcher_that_started_one_process_for_several_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RlhfKitError, match=r"asked for several processes on CPUs and has started one .*cpu_ddp\.yaml"):
        launch.connect()
    monkeypatch.delenv("MASTER_ADDR")  # as `--num_processes 1` leaves it
    launch.connect()


def test_fsdp_without_accelerators_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RlhfKitError, match=r"FSDP needs accelerators: .*zero3\.yaml"):
        launch.connect()


def test_a_process_whose_peer_is_gone_says_so_in_a_line_and_only_under_a_launcher(monkeypatch):
    failure = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
    assert line_for(failure) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "another process of this run has ended" in str(line_for(failure))


@pytest.mark.parametrize("path", sorted(FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_accelerates_and_leave_the_precision_to_the_recipe(path):
    found = load_config_from_file(str(path))
    assert found.mixed_precision == "no"
    assert f"recipes/accelerate/{path.name}" in path.read_text(), "its header has the command"
    plugin = yaml.safe_load(path.read_text()).get("deepspeed_config", {})
    assert plugin.get("gradient_accumulation_steps", "auto") == "auto" == plugin.get("gradient_clipping", "auto")
    assert found.num_processes >= 2


def test_there_is_a_launch_file_for_each_way():
    names = {"cpu_ddp", "multi_gpu", "zero2", "zero3", "zero3_offload", "fsdp2", "multi_node"}
    assert {path.stem for path in FILES.glob("*.yaml")} == names


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("count", [13, 16, 5])
def test_several_processes_get_the_examples_of_one_and_none_twice(count):
    """Oracle: accelerate's own sharding of batches, and its order for one process."""
    examples, per_device, processes = list(range(count)), 2, 4
    sampler = FilledUp(examples, per_device * processes, seed=7)
    alone = list(sampler.order)
    sampler.set_epoch(0)
    batches = BatchSampler(sampler, per_device, drop_last=False)
    shards = [
        list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes) if not sampler.set_epoch(0)
    ]
    assert len({len(shard) for shard in shards}) == 1
    steps = [[row for shard in shards for row in shard[step]] for step in range(len(shards[0]))]
    assert [sorted(step) for step in steps] == [
        sorted(alone[at : at + 8] + [count] * (8 - len(alone[at : at + 8]))) for at in range(0, count, 8)
    ]


def test_the_order_of_one_process_is_accelerates(tmp_path):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3)
    )
    loader = accelerator.prepare(DataLoader(list(range(11)), shuffle=True))
    loader.set_epoch(2)
    mine = FilledUp(list(range(11)), 1, seed=3)
    mine.set_epoch(2)
    assert [int(row) for batch in loader for row in batch] == list(mine)


def resumed(tmp_path: Path, monkeypatch, before: dict, processes: int, mode: str, sizes: tuple[int, int]):
    """As if begun so before, with a checkpoint, and now launched on so many processes."""
    (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True, exist_ok=True)
    write_json(tmp_path / LAUNCH, before)
    monkeypatch.setattr(launch, "processes", lambda: processes)
    monkeypatch.setattr(launch, "agreed", lambda value: value)
    return arguments.batches(tmp_path, mode, *sizes)


@pytest.mark.parametrize(
    ("before", "now", "sizes", "expected"),
    [
        (2, 1, (4, 1), (4, 2)),
        (1, 2, (4, 1), (2, 1)),
        (4, 2, (3, 2), (3, 4)),
        (2, 3, (6, 1), (4, 1)),
        (2, 2, (4, 3), (4, 3)),
    ],
)
def test_a_step_keeps_its_size_on_another_number_of_processes(tmp_path, monkeypatch, before, now, sizes, expected):
    found = resumed(tmp_path, monkeypatch, {"processes": before, "mode": "ddp"}, now, "ddp", sizes)
    assert found == expected
    assert found[0] * found[1] * now == sizes[0] * sizes[1] * before and found[0] <= sizes[0]


def test_numbers_that_cannot_make_such_steps_and_other_engines_are_refused(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="begun by 2 processes in steps of 8; 3 processes cannot"):
        resumed(tmp_path, monkeypatch, {"processes": 2, "mode": "ddp"}, 3, "ddp", (4, 1))
    for before, now, mode in ((2, 1, "zero2"), (2, 4, "zero3"), (2, 1, "fsdp")):
        with pytest.raises(CheckpointError, match=rf"was begun by 2 processes \({mode}\).*this is {now} \({mode}\)"):
            resumed(tmp_path, monkeypatch, {"processes": before, "mode": mode}, now, mode, (4, 1))
    with pytest.raises(
        CheckpointError, match=r"\(zero2\), and the state of its optimiser is kept so; this is 2 \(ddp\)"
    ):
        resumed(tmp_path, monkeypatch, {"processes": 2, "mode": "zero2"}, 2, "ddp", (4, 1))


def test_without_a_checkpoint_a_stage_begins_as_it_is_launched(tmp_path, monkeypatch):
    write_json(tmp_path / LAUNCH, {"processes": 4, "mode": "zero3"})
    assert arguments.batches(tmp_path, "ddp", 4, 2) == (4, 2)
    assert (tmp_path / LAUNCH).read_text() == '{\n  "processes": 1,\n  "mode": "ddp"\n}\n'


def test_deepspeeds_own_precision_and_shared_out_quantised_bases_are_refused():
    def given(stage: int, **config: dict) -> SimpleNamespace:
        return SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage, deepspeed_config=config))

    none, some = SimpleNamespace(quantization=None), SimpleNamespace(quantization="4bit")
    recipe = SimpleNamespace(model=none, reward_model=none)
    arguments._refuse_what_trains_wrongly(recipe, given(2, bf16={"enabled": False}))
    with pytest.raises(RlhfKitError, match="the DeepSpeed configuration enables bf16, which casts what is trained"):
        arguments._refuse_what_trains_wrongly(recipe, given(2, bf16={"enabled": True}))
    for field, recipe in (
        ("model", SimpleNamespace(model=some, reward_model=some)),
        ("reward.model", SimpleNamespace(model=none, reward_model=some)),
    ):
        arguments._refuse_what_trains_wrongly(recipe, given(2))
        with pytest.raises(RlhfKitError, match=rf"^{field}\.quantization 4bit cannot be shared out by zero3"):
            arguments._refuse_what_trains_wrongly(recipe, given(3))


# ---------------------------------------------------------------- losses in parts


def test_parts_of_a_step_add_up_to_its_loss():
    torch.manual_seed(0)
    scores, group = torch.randn(14), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4])
    rank = torch.tensor([1, 2, 3, 1, 1, 1, 2, 2, 3, 2, 1, 1, 2, 3])  # prompt 1 is tied: no pair
    rated, target = torch.rand(14) < 0.5, torch.rand(14)
    whole = ranking_loss(scores, group, rank, centering=0.1)
    prompts = pairs_of(group, rank).prompts
    assert prompts == 4
    parts = [group < 2, (group >= 2) & (group < 4), group == 4, group == 9]  # the last one is empty
    found = sum(ranking_loss(scores[p], group[p], rank[p], centering=0.1, prompts=prompts) for p in parts)
    assert float(found) == pytest.approx(float(whole), abs=1e-6)
    count = group[rated].unique().numel()
    found = sum(rating_loss(scores[p], target[p], rated[p], group[p], prompts=count) for p in parts)
    assert float(found) == pytest.approx(float(rating_loss(scores, target, rated, group)), abs=1e-6)


def test_sizes_of_an_update_are_of_all_processes_together():
    ppo = PpoSection(batch_size=64, mini_batch_size=32, per_device_train_batch_size=16, total_episodes=640)
    assert Sizes.of(ppo, 2) == Sizes(64, 32, 16)
    assert Sizes.of(ppo, 4) == Sizes(64, 32, 8), "a forward pass has no more than the device's share"
    assert Sizes.of(PpoSection(per_device_train_batch_size=8, gradient_accumulation_steps=2), 4) == Sizes(64, 32, 8)
    assert not list(mistakes(ppo, 4))
    assert list(mistakes(ppo, 3)) == [("batch_size", "must divide among 3 processes; 64 does not")]
    odd = PpoSection(batch_size=24, mini_batch_size=12, per_device_train_batch_size=4)
    assert list(mistakes(odd, 2)) == [
        ("per_device_train_batch_size", "must divide mini_batch_size (12 / 2 processes), 4 does not")
    ]
    text = PpoSection(batch_size=8, mini_batch_size=8, per_device_train_batch_size=4, ptx_coef=1.0, ptx_batch_size=3)
    assert [field for field, _ in mistakes(text, 2)] == ["ptx_batch_size"]


# ---------------------------------------------------------------- one backward pass for all roles


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_checkpointed_is_recomputed_in_the_role_of_its_forward_pass(checkpointing):
    """Oracle: a backward pass of its own for each role, without checkpointing. A joint one used to recompute the layers
    of both roles under whichever adapter was active last."""

    def gradients(*, joint: bool, checkpointing: bool) -> list[torch.Tensor]:
        backbone = tiny_backbone()
        for seed, name in enumerate(("policy", "value")):
            backbone.add_adapter(name, lora())
            stir(backbone, name, seed)
        backbone.train_only("policy", "value")
        if checkpointing:
            backbone.use_checkpointing()
            backbone.train()
        ids = torch.arange(5, 25).view(2, 10)
        mask, losses = torch.ones_like(ids, dtype=torch.bool), []
        for name in ("policy", "value"):
            with backbone.role(name):
                losses.append(backbone(ids, mask).pow(2).mean())
                if not joint:
                    losses.pop().backward()
        if joint:
            sum(losses).backward()
        return [p.grad for name in ("policy", "value") for p in backbone.adapter_parameters(name)]

    expected = gradients(joint=False, checkpointing=False)
    found = gradients(joint=True, checkpointing=checkpointing)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(expected, found, strict=True))


def test_a_joint_backward_pass_learns_the_same(tmp_path):
    def gradients(joint: bool, **settings: float) -> list[torch.Tensor]:
        made = trainer(tmp_path, gradient_checkpointing=True, **settings)
        made.learner.joint = joint
        episodes, _ = made.experience.collect(made.prompts[:8], torch.Generator().manual_seed(1), 0.05)
        made.roles.train()
        made.learner.minibatch(episodes, 0)
        return [p.grad for group in made.roles.parameter_groups() for p in group]

    expected, found = gradients(False), gradients(True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(expected, found, strict=True))
    assert any(one.abs().max() > 1e-4 for one in expected)
